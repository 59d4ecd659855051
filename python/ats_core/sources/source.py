"""What every signal that is read piece by piece has in common."""

from __future__ import annotations

import abc
import itertools
import math
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

import numpy as np

from ats_core._arguments import Array, Ints, to_array, to_int, to_ints
from ats_core.sources import handles
from ats_core.sources.cache import TILES
from ats_core.sources.errors import SourceError, of_region, opening
from ats_core.sources.plan import Plan, Shape

if TYPE_CHECKING:
    from typing_extensions import Self


AXES = ("x", "yx", "zyx", "tyx")
MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3}
# A file that says that more than this has to be decoded in one piece is broken, or has to be tiled before use.
LARGEST_TILE = 1 << 30

_tokens = itertools.count()


@dataclass(frozen=True)
class Level:
    """One resolution of a source.

    Attributes:
        shape: spatial shape in this level's pixels.
        downsample: level 0's shape divided by this one's, per axis.
        tile: what is decoded in one piece, in this level's pixels; None where any region can be read by itself.
    """

    shape: Shape
    downsample: tuple[float, ...]
    tile: Shape | None = None


@dataclass(frozen=True)
class Statistics:
    """What a source did in this process.

    Attributes:
        tiles_decoded: tiles decoded, or regions read where there are no tiles.
        bytes_decoded: their size in memory.
        bytes_read: size of the regions that were asked for, without padding.
    """

    tiles_decoded: int = 0
    bytes_decoded: int = 0
    bytes_read: int = 0


@dataclass(frozen=True)
class Description:
    """What a backend says of a file when it is first opened. Workers get it with the source, and do not ask again."""

    axes: str
    dtype: Any
    channels: int
    shapes: Sequence[Sequence[int]]
    tiles: Sequence[Sequence[int] | None] | None = None
    spacing: Sequence[float | None] | None = None
    units: Sequence[str | None] | None = None
    private: Any = field(default=None, repr=False)


class _Handle:
    """Something open, and how many threads are using it."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.users = 0


class Source(abc.ABC):
    """A signal, image, volume or video of which only the parts that are asked for are read.

    Made by `open_source`. Files are opened when first needed, stay open (128 at a time in a process), and are opened
    again in worker processes. Where a source is sent to time and again, as by the workers of a DataLoader, its file is
    opened once, and stays open when it is closed. `read` may be called from any number of threads. A source is a context
    manager.

    Attributes:
        name: the path, or another name for messages.
        backend: name of what reads it.
        axes: "x", "yx", "zyx" or "tyx": the spatial axes, slowest first. Pixels have their channels last.
        dtype: of the pixels.
        channels: number of values a pixel has.
        levels: resolutions, finest first.
        spacing: distance between level 0's pixels per axis, None where it is not known.
        units: its unit per axis, such as "um" or "s".
    """

    backend: ClassVar[str] = ""
    # Whether what is open serves one thread at a time.
    _exclusive: ClassVar[bool] = False
    # Whether opening is work: then copies that come from other processes use what the first of them has opened.
    _lent: ClassVar[bool] = True

    name: str
    axes: str
    dtype: np.dtype[Any]
    channels: int
    levels: tuple[Level, ...]
    spacing: tuple[float | None, ...]
    units: tuple[str | None, ...]

    # The source that stays in this process and whose file this one uses, if it was sent here.
    _lender: Source | None
    _lock: threading.Lock
    _token: int

    def __init__(self, name: str) -> None:
        self.name = name
        self._identity = uuid.uuid4().hex
        self._stamp: object = None
        self._closed = False
        self._start()
        try:
            with self._borrow() as handle, opening(self.name):
                self._set(self._describe(handle))
        except BaseException:
            self.close()
            raise

    # ---- what a backend has to say ----

    @abc.abstractmethod
    def _open(self) -> Any:
        """Open the file. What is returned is handed to `_describe`, `_read_region` and `_read_tile`."""

    def _close(self, handle: Any) -> None:
        """Close what `_open` returned."""
        close = getattr(handle, "close", None)
        if close is not None:
            close()

    @abc.abstractmethod
    def _describe(self, handle: Any) -> Description:
        """Tell axes, dtype, channels and levels."""

    def _read_region(self, handle: Any, level: int, start: Shape, stop: Shape) -> Array:
        """Read the pixels [start, stop), (*size, C). They lie in the level."""
        raise NotImplementedError

    def _read_tile(self, handle: Any, level: int, index: Shape) -> Array:
        """Decode the tile at a place of the level's grid. At the border it may be whole or cut off."""
        raise NotImplementedError

    # ---- what users call ----

    @property
    def mpp(self) -> tuple[float, ...] | None:
        """Micrometres from pixel to pixel of level 0, per axis, None where the file does not tell."""
        if any(unit not in MICROMETRES or value is None for value, unit in zip(self.spacing, self.units, strict=True)):
            return None
        values = zip(self.spacing, self.units, strict=True)
        return tuple(float(value or 0) * MICROMETRES[str(unit)] for value, unit in values)

    @property
    def shape(self) -> Shape:
        """Spatial shape of level 0."""
        return self.levels[0].shape

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def statistics(self) -> Statistics:
        """What was decoded and read so far, in this process."""
        with self._lock:
            return Statistics(self._tiles_decoded, self._bytes_decoded, self._bytes_read)

    def read(
        self,
        level: SupportsIndex,
        origin: Ints,
        size: Ints,
        *,
        padding: str = "constant",
        fill: float = 0.0,
    ) -> Array:
        """Read a region of a level.

        Args:
            level: number of the level; 0 is the finest.
            origin: first pixel, per axis, in this level's pixels. It may lie outside.
            size: pixels per axis; one number for every axis, or one each.
            padding, fill: pixels outside, as in `extract_patches`.

        Returns:
            ndarray, shape (*size, C), of the source's dtype.

        Raises:
            SourceError: the file is broken, gone or closed. The message names it, the level and the region.
            ValueError, TypeError: for an argument that means nothing here.
        """
        number = self._to_level(level)
        first, pixels = to_ints("origin", origin, len(self.axes)), self._to_size("size", size)
        out = np.empty((*pixels, self.channels), self.dtype)
        plan = Plan(padding, fill)
        plan.add(self, number, first, out)
        plan.run()
        return out

    def thumbnail(
        self, size: Ints | None = None, *, downsample: float | Sequence[float] | None = None
    ) -> tuple[Array, tuple[float, ...]]:
        """The whole signal in few pixels: means over the pixels of the coarsest level that is large enough.

        It is read in strips, so that memory does not grow with the source.

        Args:
            size: of the longest axis, or a size per axis. The source's own size is the largest there is.
            downsample: instead of `size`, how many pixels of level 0 a pixel spans, at least 1; one number for every
                axis, or one each. A level with this downsample, within 2% on every axis, is returned as it is.
                Otherwise the size is that of level 0 divided by it, rounded half to even, at least 1.

        Returns:
            ndarray, shape (*size, C), of the source's dtype (integers rounded half to even), and how many pixels of
            level 0 a pixel of it spans per axis.

        Raises:
            SourceError: as for `read`.
            ValueError, TypeError: for a size or downsample that is none; for both or neither of them.
        """
        from ats_core.sources.thumbnails import thumbnail

        return thumbnail(self, size, downsample)

    def crop(self, origin: Ints, size: Ints) -> Source:
        """A part of this source, as a source: an image that a slide has been cut into, a scene of a video.

        It has pixels outside of its own (padding begins at its borders), and levels where its borders lie between pixels
        of the level, rounded to the nearest and so off by half a pixel at most, and by at most 1% of its size there.
        Origins and sizes that are multiples of a level's downsample are exact.

        Nothing is opened or copied: this source reads, keeps and counts the tiles, each once for all of its crops in a
        `SourceBatch`. A crop that is closed leaves it open; once it is closed its crops cannot be read.

        Args:
            origin: first pixel of level 0, per axis.
            size: pixels of level 0 per axis; one number for every axis, or one each.

        Raises:
            ValueError, TypeError: the part does not lie in the source. SourceError: the source is closed.
        """
        from ats_core.sources.crop import CropSource

        return CropSource(self, origin, size)

    def close(self) -> None:
        """Close the file, and forget its tiles. Reads fail from here on; those under way come to their end."""
        with self._lock:
            self._closed = True
            lent, self._lender = self._lender is not None, None
        if lent:
            self._token = next(_tokens)  # others still use the tiles
            return
        self._release()
        handles.OPEN.forget(self._token)
        TILES.discard(self._token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)  # None too when a constructor failed
        if handle is not None:
            with suppress(Exception):
                self._close(handle.value)

    def __repr__(self) -> str:
        if not hasattr(self, "levels"):
            return f"<{type(self).__name__} {self.name!r}>"
        levels = ", ".join(" x ".join(map(str, level.shape)) for level in self.levels)
        closed = " closed" if self._closed else ""
        return f"<Source {self.name!r}: {self.backend}, {self.axes} {levels}, {self.channels} x {self.dtype}{closed}>"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self._transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
        if self._lent and not self._closed:
            key = (self._identity, self.name, self._stamp, self.levels, self.channels, self.dtype)
            self._lender = lender = handles.LENDERS.get(key, self._twin)
            self._token = lender._token

    def _twin(self) -> Source:
        twin: Source = object.__new__(type(self))
        twin.__dict__.update(self.__getstate__())
        twin._start()
        return twin

    # ---- what is open ----

    def _facts(self) -> object:
        """What changes with the file; None: nothing is known that does."""
        return None

    def _check_stamp(self) -> None:
        """A description that was made earlier must not be used for another file."""
        stamp = self._facts()
        if self._stamp is None:
            self._stamp = stamp
        elif self._stamp != stamp:
            raise SourceError(f"{self.name}: has changed since it was first opened")

    def _start(self) -> None:
        """Set up what belongs to this process."""
        before = set(self.__dict__)
        self._token = next(_tokens)
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._handle: _Handle | None = None
        self._lender = None
        self._known = False
        self._tiles_decoded = self._bytes_decoded = self._bytes_read = 0
        self._transient = (set(self.__dict__) - before) | {"_transient"}
        handles.ALIVE.add(self)

    def _abandon(self) -> object:
        handle, self._handle = self._handle, None
        self._lock, self._turn = threading.Lock(), threading.Lock()
        return handle

    def _release(self) -> None:
        with self._lock:
            handle = self._handle
            if handle is None or handle.users:
                return  # whoever uses it puts it back
            self._handle = None
        self._close(handle.value)

    def _borrow(self) -> AbstractContextManager[Any]:
        """What is open here or at the lender, opened if need be."""
        lender = self._lender
        if lender is None:
            return self._borrow_own()
        if not self._known:
            with opening(self.name):
                self._check_stamp()  # as if it were opened now
            self._known = True
        return lender._borrow_own()

    @contextmanager
    def _borrow_own(self) -> Iterator[Any]:
        """After an error it is opened anew: libraries are not to be trusted then."""
        with self._lock:
            if self._closed:
                raise SourceError(f"{self.name}: is closed")
            handle = self._handle
            if handle is None:
                with opening(self.name):
                    handle = self._handle = _Handle(self._open())
            handle.users += 1
        handles.OPEN.touch(self._token, self)
        try:
            if self._exclusive:
                with self._turn:
                    yield handle.value
            else:
                yield handle.value
        except BaseException:
            with self._lock:
                if self._handle is handle:
                    self._handle = None
            raise
        finally:
            with self._lock:
                handle.users -= 1
                if self._closed and self._handle is handle and not handle.users:
                    self._handle = None
                unused = self._handle is not handle and not handle.users
            if unused:
                self._close(handle.value)

    def _set(self, description: Description) -> None:
        axes = description.axes
        if axes not in AXES:
            raise SourceError(f"{self.name}: axes must be one of {', '.join(AXES)}, got {axes!r}")
        shapes = [tuple(int(size) for size in shape) for shape in description.shapes]
        channels = int(description.channels)
        if not shapes or any(len(shape) != len(axes) for shape in shapes):
            raise SourceError(f"{self.name}: every level must have {len(axes)} axes ({axes}), got {shapes}")
        if min(min(shape) for shape in shapes) < 1 or channels < 1:
            raise SourceError(f"{self.name}: has no pixels: levels {shapes}, {channels} channels")
        dtype = np.dtype(description.dtype).newbyteorder("=")
        if dtype.kind not in "iuf":
            raise SourceError(f"{self.name}: pixels must be real numbers, got dtype {dtype}")
        if math.prod(shapes[0]) * channels * dtype.itemsize > 1 << 60:
            raise SourceError(f"{self.name}: says that it has {shapes[0]} pixels")
        tiles = [None] * len(shapes) if description.tiles is None else description.tiles
        levels = []
        for shape, tile in zip(shapes, tiles, strict=True):
            # A tile may be larger than the level.
            sizes = None if tile is None else tuple(int(size) for size in tile)
            if sizes is not None:
                nbytes = math.prod(sizes) * channels * dtype.itemsize
                if min(sizes) < 1:
                    raise SourceError(f"{self.name}: has tiles of {sizes} pixels")
                if nbytes > LARGEST_TILE:
                    raise SourceError(
                        f"{self.name}: {sizes} pixels ({nbytes >> 20} MiB) have to be decoded in one piece, at most "
                        f"{LARGEST_TILE >> 20} MiB can be: write the file with smaller tiles"
                    )
            downsample = tuple(first / size for first, size in zip(shapes[0], shape, strict=True))
            levels.append(Level(shape, downsample, sizes))
        self.axes, self.dtype, self.channels, self.levels = axes, dtype, channels, tuple(levels)
        self.spacing = tuple(description.spacing or [None] * len(axes))
        self.units = tuple(description.units or [None] * len(axes))
        self._private = description.private

    # ---- reading ----

    def _locate(self, level: int, start: Shape) -> tuple[Source, int, Shape]:
        """The source that holds pixel `start` of a level, and the level and pixel there."""
        return self, level, start

    def _to_level(self, level: SupportsIndex) -> int:
        number = to_int("level", level)
        if not 0 <= number < len(self.levels):
            raise ValueError(f"level: must be 0 to {len(self.levels) - 1} for {self.name}, got {number}")
        return number

    def _to_size(self, name: str, size: Ints) -> list[int]:
        pixels = to_ints(name, size, len(self.axes))
        if min(pixels) < 1:
            raise ValueError(f"{name}: must be at least 1 on every axis, got {pixels}")
        return pixels

    def _checked(self, array: Any, shape: Shape | None) -> Array:
        """What a backend returned, if it is what it should be."""
        pixels = array if isinstance(array, np.ndarray) else to_array("pixels", array)
        if pixels.dtype != self.dtype or (shape is not None and pixels.shape != shape):
            raise SourceError(f"got {pixels.dtype} {pixels.shape}, expected {self.dtype} {shape or ''}".rstrip())
        return pixels

    def _count(self, tiles: int, decoded: int, read: int) -> None:
        with self._lock:
            self._tiles_decoded += tiles
            self._bytes_decoded += decoded
            self._bytes_read += read

    def _tile_ends(self, level: int, index: Shape) -> tuple[Shape, Shape]:
        """First pixel of a tile, and the one after its last in the level."""
        grid = self.levels[level]
        assert grid.tile is not None
        start = tuple(place * size for place, size in zip(index, grid.tile, strict=True))
        return start, tuple(min(x + n, end) for x, n, end in zip(start, grid.tile, grid.shape, strict=True))

    def _region(self, level: int, start: Shape, stop: Shape) -> Array:
        try:
            with self._borrow() as handle:
                region = self._read_region(handle, level, start, stop)
            size = tuple(last - first for first, last in zip(start, stop, strict=True))
            region = self._checked(region, (*size, self.channels))
        except Exception as error:
            raise of_region(error, self.name, level, start, stop) from error
        self._count(1, region.nbytes, 0)
        return region

    def _tile(self, level: int, index: Shape, start: Shape, stop: Shape) -> Array:
        def decode() -> Array:
            try:
                with self._borrow() as handle:
                    tile = self._read_tile(handle, level, index)
                tile = self._checked(tile, None)
                needed = [last - first for first, last in zip(start, stop, strict=True)]
                if tile.ndim != len(needed) + 1 or tile.shape[-1] != self.channels:
                    raise SourceError(f"got a tile of shape {tile.shape}")
                if any(size < least for size, least in zip(tile.shape, needed, strict=False)):
                    raise SourceError(f"got a tile of shape {tile.shape}, which lacks pixels")
            except Exception as error:
                raise of_region(error, self.name, level, start, stop) from error
            self._count(1, tile.nbytes, 0)
            return tile

        return TILES.get(self._token, (level, index), decode)


class FileSource(Source):
    """A source that is a file or a folder on this machine."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        super().__init__(self._path)

    def _facts(self) -> object:
        facts = os.stat(self._path)
        return facts.st_size, facts.st_mtime_ns
