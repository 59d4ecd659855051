"""HDF5 datasets: "file.h5::/dataset"."""

from __future__ import annotations

import itertools
import math
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from ats_core._arguments import Array
from ats_core.sources.errors import SourceError, require
from ats_core.sources.layout import native, to_layout
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, FileSource

SEPARATOR = "::"
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3


class HDF5Source(FileSource):
    """A dataset of an HDF5 file. Its chunks are the tiles.

    Chunks that are plain or compressed with gzip (with or without shuffle and Fletcher's checksum) are read and decoded
    here, in as many threads as want some; the HDF5 library itself serves one thread at a time, and crashes on some
    broken files.

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

    def _open(self) -> _File:
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
            return _File(self._path, file, dataset)
        except BaseException:
            file.close()
            raise

    def _describe(self, handle: _File) -> Description:
        self.name = f"{self._path}{SEPARATOR}{self._dataset}"
        dataset = handle.dataset
        layout = self._layout = to_layout(dataset.shape, self._axes, self._select)
        tile = layout.spatial(dataset.chunks) if dataset.chunks else None
        return Description(layout.axes, dataset.dtype, layout.channels, [layout.spatial()], [tile])

    def _read_region(self, handle: _File, level: int, start: Shape, stop: Shape) -> Array:
        return native(self._layout.arrange(handle.dataset[self._layout.index(start, stop)]))

    def _read_tile(self, handle: _File, level: int, index: Shape) -> Array:
        where = self._layout.index(*self._tile_ends(level, index))
        return native(self._layout.arrange(handle.read(where)))


class _File:
    """An open dataset, and where its chunks are."""

    def __init__(self, path: str, file: Any, dataset: Any) -> None:
        self._file, self.dataset = file, dataset
        self._lock = threading.Lock()
        self._chunks: dict[Shape, tuple[int, int, int]] | None = None  # offset, size, filters left out
        self._size = os.path.getsize(path)
        self._descriptor = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        os.close(self._descriptor)
        if self._file:  # false when the library has closed it already
            self._file.close()

    def _find(self) -> dict[Shape, tuple[int, int, int]]:
        """Where the chunks are, after a look at all of them."""
        with self._lock:
            if self._chunks is None:
                dataset, chunks = self.dataset, {}
                properties = dataset.id.get_create_plist()
                self._filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
                plain = dataset.id.get_type().equal(require("h5py", "hdf5").h5t.py_create(dataset.dtype))
                self._ours = plain and set(self._filters) <= {DEFLATE, SHUFFLE, FLETCHER32}

                def note(chunk: Any) -> None:
                    chunks[tuple(chunk.chunk_offset)] = (chunk.byte_offset, chunk.size, chunk.filter_mask)

                dataset.id.chunk_iter(note)
                self._chunks = chunks
            return self._chunks

    def read(self, where: Sequence[slice | int]) -> Array:
        """The dataset at an index."""
        dataset, chunks = self.dataset, self._find()
        ranges = [
            range(*part.indices(size)) if isinstance(part, slice) else range(part, part + 1)
            for part, size in zip(where, dataset.shape, strict=True)
        ]
        out = np.empty([len(part) for part in ranges], dataset.dtype)
        grid = [range(r.start // n * n, r.stop, n) for r, n in zip(ranges, dataset.chunks, strict=True)]
        for corner in itertools.product(*grid):
            place = chunks.get(corner)
            # What the library makes of a chunk that lies elsewhere is a crash at times.
            if place is not None and (place[1] <= 0 or place[0] <= 0 or place[0] + place[1] > self._size):
                raise SourceError(f"the file is broken or cut off: chunk {corner} has {place[1]} bytes at {place[0]}")
            from_, to = [], []
            for first, n, part in zip(corner, dataset.chunks, ranges, strict=True):
                low, high = max(first, part.start), min(first + n, part.stop)
                from_.append(slice(low - first, high - first))
                to.append(slice(low - part.start, high - part.start))
            if place is None:
                out[tuple(to)] = dataset.fillvalue
            elif self._ours:
                out[tuple(to)] = self._decode(corner, *place)[tuple(from_)]
            else:
                inside = [slice(part.start + x.start, part.start + x.stop) for part, x in zip(ranges, to, strict=True)]
                out[tuple(to)] = dataset[tuple(inside)]
        return out[tuple(slice(None) if isinstance(part, slice) else 0 for part in where)]

    def _decode(self, corner: Shape, offset: int, size: int, left_out: int) -> Array:
        dataset = self.dataset
        length = math.prod(dataset.chunks) * dataset.dtype.itemsize
        data = os.pread(self._descriptor, size, offset)
        for number, name in reversed(list(enumerate(self._filters))):
            if left_out >> number & 1:
                continue
            if name == DEFLATE:
                data = zlib.decompressobj().decompress(data, length + 4)  # a checksum may follow
            elif name == FLETCHER32:
                data, stored = data[:-4], data[-4:]
                if stored not in _fletcher32(data):
                    raise SourceError(f"chunk {corner} has a wrong checksum")
            elif name == SHUFFLE and dataset.dtype.itemsize > 1 and len(data) == length:
                data = np.frombuffer(data, np.uint8).reshape(dataset.dtype.itemsize, -1).T.tobytes()
        if len(data) != length:
            raise SourceError(f"chunk {corner} has {len(data)} bytes, {length} expected")
        return np.frombuffer(data, dataset.dtype).reshape(dataset.chunks)


def _fletcher32(data: bytes) -> list[bytes]:
    """Fletcher's checksum of big-endian 16-bit words, as HDF5 stores it: little-endian, or as its old versions did."""
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.int64)
    first, second = int(words.sum()), int((words * np.arange(len(words), 0, -1)).sum())
    # HDF5 folds carries in, so that only a sum of zeros is 0.
    low, high = (total and (total - 1) % 65535 + 1 for total in (first, second))
    stored = (high << 16 | low).to_bytes(4, "little")
    return [stored, bytes(stored[place] for place in (1, 0, 3, 2))]
