"""NumPy arrays, memory maps and .npy files."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from ats_core._arguments import Array, to_array
from ats_core.sources.errors import SourceError
from ats_core.sources.layout import native, to_layout
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, FileSource, Source


class ArraySource(Source):
    """An array in memory. A `numpy.memmap` is sent to workers by its file's name, not by its content."""

    backend = "array"
    _lent = False

    def __init__(
        self,
        array: ArrayLike,
        *,
        axes: str | None = None,
        select: Mapping[str, SupportsIndex] | None = None,
        name: str | None = None,
    ) -> None:
        self._array = to_array("array", array)
        self._layout = to_layout(self._array.shape, axes, select)
        file = getattr(array, "filename", None)
        super().__init__(name or (f"array {self._array.shape}" if file is None else os.fspath(file)))

    def _open(self) -> Array:
        return self._array

    def _close(self, handle: Array) -> None:
        pass

    def _describe(self, handle: Array) -> Description:
        layout = self._layout
        return Description(layout.axes, handle.dtype, layout.channels, [layout.spatial()])

    def _read_region(self, handle: Array, level: int, start: Shape, stop: Shape) -> Array:
        return native(self._layout.arrange(handle[self._layout.index(start, stop)]))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        where = _where(self._array)
        if where is not None:
            state["_array"] = None
            state["_mapped"] = where
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        mapped = state.pop("_mapped", None)
        super().__setstate__(state)
        if mapped is not None:
            self._array = map_array(*mapped)


def _where(array: Array) -> tuple[str, int, str, Shape, Shape] | None:
    """File, first byte, dtype, shape and strides of a memory map or of a view of one."""
    base: Any = array
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    file, memory = getattr(base, "filename", None), getattr(base, "_mmap", None)
    if base is None or file is None or memory is None or array.dtype.hasobject or getattr(base, "mode", "") == "c":
        return None  # pages of a copy-on-write map may differ from the file
    begin = base.offset - base.offset % mmap.ALLOCATIONGRANULARITY
    distance = array.__array_interface__["data"][0] - np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return os.fspath(file), begin + distance, array.dtype.str, array.shape, array.strides


def map_array(path: str, offset: int, dtype: str, shape: Shape, strides: Shape | None = None) -> Array:
    """Map a file's bytes, read-only."""
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray(shape, dtype, memory, offset, strides)


class MappedFile:
    """An array in a file, read through a memory map.

    To touch a page of a file that has become shorter kills the process, so its length is asked for before every read.
    (A file that shrinks during a read is beyond help.)
    """

    def __init__(
        self, path: str, offset: int, dtype: np.dtype[Any], shape: Shape, order: Literal["C", "F"] = "C"
    ) -> None:
        self._end = offset + math.prod(shape) * dtype.itemsize
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < self._end:
                raise SourceError(f"the file is cut off: {size} bytes, {self._end} expected")
            self._memory = mmap.mmap(file.fileno(), self._end, access=mmap.ACCESS_READ)
        self._array: Array | None = np.ndarray(shape, dtype, self._memory, offset, order=order)

    def __getitem__(self, index: Any) -> Array:
        assert self._array is not None
        size = self._memory.size()  # of the file
        if size < self._end:
            raise SourceError(f"the file is cut off: {size} bytes, {self._end} expected")
        return np.array(self._array[index])

    def close(self) -> None:
        self._array = None
        self._memory.close()


class NpySource(FileSource):
    """A .npy file."""

    backend = "npy"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        axes: str | None = None,
        select: Mapping[str, SupportsIndex] | None = None,
    ) -> None:
        self._axes, self._select = axes, select
        self._header: tuple[int, Any, Shape, Literal["C", "F"]] | None = None
        super().__init__(path)

    def _open(self) -> MappedFile:
        self._check_stamp()
        header = self._header or self._read_header()
        self._header = header
        offset, dtype, shape, order = header
        return MappedFile(self._path, offset, dtype, shape, order)

    def _read_header(self) -> tuple[int, Any, Shape, Literal["C", "F"]]:
        with open(self._path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise SourceError(f"{self.name}: is of an unknown version {version} of the npy format")
            # Version 3 differs from 2 in the header's encoding, which numbers do not need.
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject or min(shape, default=1) < 0:
                raise SourceError(f"{self.name}: holds {dtype} {shape}, not numbers")
            return file.tell(), dtype, shape, "F" if fortran else "C"

    def _describe(self, handle: MappedFile) -> Description:
        assert self._header is not None
        self._layout = to_layout(self._header[2], self._axes, self._select)
        return Description(self._layout.axes, self._header[1], self._layout.channels, [self._layout.spatial()])

    def _read_region(self, handle: MappedFile, level: int, start: Shape, stop: Shape) -> Array:
        return native(self._layout.arrange(handle[self._layout.index(start, stop)]))
