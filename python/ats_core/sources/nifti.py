"""NIfTI volumes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np

from ats_core._arguments import Array
from ats_core.sources.errors import SourceError, require
from ats_core.sources.layout import native, to_layout
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, FileSource

UNITS = {"meter": "m", "mm": "mm", "micron": "um"}
LETTERS = "xyzctuv"


class NiftiSource(FileSource):
    """A NIfTI volume; axes z, y, x, and a fourth axis (time, direction) as channels.

    Values are the file's, scaled as its header says (float64 then). Slices of an uncompressed file are read by
    themselves. A .nii.gz file has to be decompressed from its beginning for every read that goes back: decompress such
    files once if patches are to be read at random.

    Args:
        path: of the file.
        axes: a letter for every stored axis; "xyz" or "xyzc" unless given.
        select: at which index other axes are read, as in ``axes="xyzt", select={"t": 0}``.
    """

    backend = "nifti"
    _exclusive = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        axes: str | None = None,
        select: Mapping[str, SupportsIndex] | None = None,
    ) -> None:
        require("nibabel", "nifti")
        self._axes, self._select = axes, select
        super().__init__(path)

    def _open(self) -> Any:
        self._check_stamp()
        nibabel = require("nibabel", "nifti")
        # One file object for all reads; nibabel's own default opens the file anew every time.
        image = nibabel.load(self._path, keep_file_open=True, mmap=False)
        if not isinstance(image, nibabel.Nifti1Image):
            raise SourceError(f"{self.name}: is no NIfTI file")
        return image

    def _close(self, handle: Any) -> None:
        opener = getattr(handle.dataobj, "_opener", None)
        if opener is not None:
            opener.close()

    def _describe(self, handle: Any) -> Description:
        header = handle.header
        shape = handle.dataobj.shape
        if len(shape) == 2:
            shape = (*shape, 1)
        axes = self._axes or LETTERS[: len(shape)]
        layout = self._layout = to_layout(shape, axes, self._select)
        # Scaling is nibabel's: one voxel tells what comes out.
        dtype = np.asarray(handle.dataobj[(0,) * len(handle.dataobj.shape)]).dtype
        unit = UNITS.get(header.get_xyzt_units()[0])
        zooms = [float(zoom) for zoom in header.get_zooms()] + [1.0] * len(shape)
        spacing = [zooms[layout.stored.index(axis)] if axis != "t" else None for axis in layout.axes]
        units = [unit if axis != "t" else None for axis in layout.axes]
        return Description(layout.axes, dtype, layout.channels, [layout.spatial()], None, spacing, units)

    def _read_region(self, handle: Any, level: int, start: Shape, stop: Shape) -> Array:
        index = self._layout.index(start, stop)
        proxy = handle.dataobj
        region = np.asarray(proxy[index[: len(proxy.shape)]]).reshape(
            [
                len(range(*part.indices(size)))
                for part, size in zip(index, self._layout.shape, strict=True)
                if isinstance(part, slice)
            ]
        )
        return native(self._layout.arrange(region)).astype(self.dtype, copy=False)
