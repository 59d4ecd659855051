"""A part of a source, as a source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from ats_core._arguments import Ints, to_ints
from ats_core.sources.errors import SourceError
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, Source

# How far a border may be from the nearest border between pixels of a level, as a share of the crop's size there.
BORDER_TOLERANCE = Fraction(1, 100)


class CropSource(Source):
    """See `Source.crop`."""

    backend = "crop"
    _lent = False

    def __init__(self, parent: Source, origin: Ints, size: Ints) -> None:
        first = to_ints("origin", origin, len(parent.axes))
        pixels = parent._to_size("size", size)
        stop = [start + length for start, length in zip(first, pixels, strict=True)]
        if min(first) < 0 or any(end > whole for end, whole in zip(stop, parent.shape, strict=True)):
            raise ValueError(
                f"origin: {tuple(first)} with size {tuple(pixels)} reaches outside of {parent.name}, whose shape is "
                f"{parent.shape}"
            )
        self._parent = parent
        # Of each level: its number in the parent, and the crop's first pixel and shape there.
        self._places: list[tuple[int, Shape, Shape]] = []
        for number, level in enumerate(parent.levels):
            ranges = [_range(*axis) for axis in zip(first, stop, level.shape, parent.shape, strict=True)]
            found = [axis for axis in ranges if axis is not None]
            if len(found) == len(ranges):
                self._places.append((number, tuple(axis.start for axis in found), tuple(map(len, found))))
        region = ", ".join(f"{start}:{end}" for start, end in zip(first, stop, strict=True))
        super().__init__(f"{parent.name}[{region}]")

    def _locate(self, level: int, start: Shape) -> tuple[Source, int, Shape]:
        if self._closed:
            raise SourceError(f"{self.name}: is closed")
        number, origin, _ = self._places[level]
        return self._parent._locate(number, tuple(x + first for x, first in zip(start, origin, strict=True)))

    @contextmanager
    def _borrow(self) -> Iterator[Any]:
        with self._parent._borrow() as handle:
            yield handle

    def _open(self) -> Any:
        raise NotImplementedError  # what is open is the parent's, see `_borrow`

    def _describe(self, handle: Any) -> Description:
        parent = self._parent
        return Description(
            axes=parent.axes,
            dtype=parent.dtype,
            channels=parent.channels,
            shapes=[shape for _, _, shape in self._places],
            tiles=[parent.levels[number].tile for number, _, _ in self._places],
            spacing=parent.spacing,
            units=parent.units,
        )


def _range(first: int, stop: int, length: int, whole: int) -> range | None:
    """Pixels that show [first, stop) of `whole` pixels where those are `length`; None: no whole ones do."""
    exact = [Fraction(x * length, whole) for x in (first, stop)]
    ends = range(*map(round, exact))
    allowed = BORDER_TOLERANCE * (exact[1] - exact[0])
    near = all(abs(end - x) <= allowed for end, x in zip((ends.start, ends.stop), exact, strict=True))
    return ends if near else None
