"""HDF5 datasets: "file.h5::/dataset"."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, SupportsIndex

from ats_core._arguments import Array
from ats_core.sources.errors import SourceError, require
from ats_core.sources.layout import Shape, native, to_layout
from ats_core.sources.source import Description, FileSource

SEPARATOR = "::"


class HDF5Source(FileSource):
    """A dataset of an HDF5 file. Its chunks are the tiles. (HDF5 itself reads in one thread at a time.)

    Args:
        path: of the file, with the dataset after "::"; it may be left out where the file has only one.
        axes: a letter for every axis of the dataset, "c" the channels.
        select: at which index other axes are read.
    """

    backend = "hdf5"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        axes: str | None = None,
        select: Mapping[str, SupportsIndex] | None = None,
    ) -> None:
        require("h5py", "hdf5")
        file, _, self._dataset = os.fspath(path).partition(SEPARATOR)
        self._axes, self._select = axes, select
        super().__init__(file)

    def _open(self) -> Any:
        self._check_stamp()
        h5py = require("h5py", "hdf5")
        file = h5py.File(self._path, "r")
        try:
            if not self._dataset:
                found: list[str] = []
                file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
                if len(found) != 1:
                    raise SourceError(
                        f"{self.name}: has {len(found)} datasets ({', '.join(found[:9])}): name one, as in "
                        f"'{os.path.basename(self._path)}{SEPARATOR}/{found[0] if found else 'dataset'}'"
                    )
                self._dataset = found[0]
            dataset = file[self._dataset]
            if not isinstance(dataset, h5py.Dataset):
                raise SourceError(f"{self.name}: {self._dataset} is no dataset")
            return dataset
        except BaseException:
            file.close()
            raise

    def _close(self, handle: Any) -> None:
        if handle:  # false when the library has closed it already
            handle.file.close()

    def _describe(self, handle: Any) -> Description:
        self.name = f"{self._path}{SEPARATOR}{self._dataset}"
        layout = self._layout = to_layout(handle.shape, self._axes, self._select)
        tile = layout.spatial(handle.chunks) if handle.chunks else None
        return Description(layout.axes, handle.dtype, layout.channels, [layout.spatial()], [tile])

    def _read_region(self, handle: Any, level: int, start: Shape, stop: Shape) -> Array:
        return native(self._layout.arrange(handle[self._layout.index(start, stop)]))

    def _read_tile(self, handle: Any, level: int, index: Shape) -> Array:
        start, stop = self._tile_ends(level, index)
        return self._read_region(handle, level, start, stop)
