"""A source that a user's function reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from numpy.typing import DTypeLike

from ats_core._arguments import Array, to_dtype, to_int
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, Level, Source


class FunctionSource(Source):
    """Read pixels by calling a function.

    Args:
        function: called as ``function(level, start, stop)`` from any thread, with tuples of pixels of that level which
            lie in it; returns the pixels, (*(stop - start), channels) of `dtype`. A source is sent to worker processes
            with its function, which must be picklable then: one of a module, not a lambda.
        levels: the shape of every level, finest first, or `Level` objects. Where a level has a tile, the function is
            asked for whole tiles (cut off at the end of the level), which are cached.
        dtype: of the pixels.
        channels: number of values a pixel has.
        axes: "x", "yx", "zyx" or "tyx"; by the number of axes unless given.
        name: for messages.
        spacing, units: distance between pixels of level 0 per axis, and its unit.
    """

    backend = "function"
    _lent = False

    def __init__(
        self,
        function: Callable[[int, Shape, Shape], Array],
        levels: Sequence[Level | Sequence[int]],
        dtype: DTypeLike,
        channels: int = 1,
        *,
        axes: str | None = None,
        name: str | None = None,
        spacing: Sequence[float | None] | None = None,
        units: Sequence[str | None] | None = None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"function: must be callable, got {function!r}")
        self._function = function
        given = [level if isinstance(level, Level) else Level(tuple(level), ()) for level in levels]
        if not given:
            raise ValueError("levels: must not be empty")
        names = {1: "x", 2: "yx", 3: "zyx"}
        self._given = Description(
            axes=names.get(len(given[0].shape), "") if axes is None else axes,
            dtype=to_dtype("dtype", dtype),
            channels=to_int("channels", channels),
            shapes=[level.shape for level in given],
            tiles=[level.tile for level in given],
            spacing=spacing,
            units=units,
        )
        super().__init__(name or str(getattr(function, "__qualname__", function)))

    def _open(self) -> Callable[[int, Shape, Shape], Array]:
        return self._function

    def _close(self, handle: object) -> None:
        pass

    def _describe(self, handle: object) -> Description:
        return self._given

    def _read_region(self, handle: Callable[..., Array], level: int, start: Shape, stop: Shape) -> Array:
        return handle(level, start, stop)

    def _read_tile(self, handle: Callable[..., Array], level: int, index: Shape) -> Array:
        start, stop = self._tile_ends(level, index)
        size = (last - first for first, last in zip(start, stop, strict=True))
        return self._checked(handle(level, start, stop), (*size, self.channels))
