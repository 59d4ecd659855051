"""Stored arrays whose axes stand in any order, as (*spatial, C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np

from ats_core._arguments import Array, to_int
from ats_core.sources.plan import Shape

SPATIAL = {"x": "x", "xy": "yx", "xyz": "zyx", "txy": "tyx"}
DEFAULTS = {1: "x", 2: "yx", 3: "yxc", 4: "zyxc"}


@dataclass(frozen=True)
class Layout:
    """Where in a stored array the spatial axes and the channels are.

    Attributes:
        axes: the spatial axes, in the order of a source.
        stored: a letter for every stored axis.
        fixed: the index at which every other axis is read.
        shape: of the stored array.
    """

    axes: str
    stored: str
    fixed: Mapping[str, int]
    shape: Shape

    @property
    def channels(self) -> int:
        return self.shape[self.stored.index("c")] if "c" in self.stored else 1

    def spatial(self, sizes: Sequence[int] | None = None) -> Shape:
        """The spatial ones of sizes that are given for every stored axis."""
        given = self.shape if sizes is None else sizes
        return tuple(int(given[self.stored.index(axis)]) for axis in self.axes)

    def index(self, start: Sequence[int], stop: Sequence[int]) -> tuple[slice | int, ...]:
        """Index of a region in the stored array."""
        ranges = {axis: slice(*ends) for axis, ends in zip(self.axes, zip(start, stop, strict=True), strict=True)}
        return tuple(ranges.get(axis, self.fixed.get(axis, slice(None))) for axis in self.stored)

    def arrange(self, region: Array) -> Array:
        """What was read at such an index, as (*spatial, C)."""
        left = [axis for axis in self.stored if axis not in self.fixed]
        wanted = [*self.axes, "c"] if "c" in left else list(self.axes)
        region = region.transpose([left.index(axis) for axis in wanted])
        return region if "c" in left else region[..., None]


def to_layout(shape: Sequence[int], axes: str | None, select: Mapping[str, SupportsIndex] | None = None) -> Layout:
    """Find the spatial axes.

    Args:
        shape: of the stored array.
        axes: a letter for every axis, "c" the channels: "yxc", "tczyx". None: "x", "yx", "yxc" or "zyxc".
        select: at which index other axes are read. Axes of size 1 need not be named.
    """
    if axes is None:
        if len(shape) not in DEFAULTS:
            raise ValueError(f"axes: must be given for an array of shape {tuple(shape)}, such as 'tczyx'")
        axes = DEFAULTS[len(shape)]
    axes = axes.lower()
    if len(axes) != len(shape) or len(set(axes)) != len(axes):
        raise ValueError(f"axes: must be {len(shape)} different letters for shape {tuple(shape)}, got {axes!r}")
    fixed = {}
    for axis, value in (select or {}).items():
        if axis not in axes:
            raise ValueError(f"select: there is no axis {axis!r} in {axes!r}")
        place = to_int(f"select[{axis!r}]", value)
        if not 0 <= place < shape[axes.index(axis)]:
            raise ValueError(f"select: {axis!r} must be 0 to {shape[axes.index(axis)] - 1}, got {place}")
        fixed[axis] = place
    spatial = "".join(sorted(axis for axis in axes if axis != "c" and axis not in fixed))
    if spatial not in SPATIAL:
        for axis in axes:  # those that have one index only
            if axis not in "yxc" and axis not in fixed and shape[axes.index(axis)] == 1:
                fixed[axis] = 0
        spatial = "".join(sorted(axis for axis in axes if axis != "c" and axis not in fixed))
    if spatial not in SPATIAL:
        raise ValueError(
            f"select: axes {axes!r} of shape {tuple(int(x) for x in shape)} leave {spatial!r} as spatial axes, "
            f"expected those of {', '.join(map(repr, SPATIAL.values()))}: name indices of the others, as in "
            "select={'t': 0}"
        )
    return Layout(SPATIAL[spatial], axes, fixed, tuple(int(size) for size in shape))


def native(array: Array) -> Array:
    """The same numbers in this machine's byte order."""
    return np.asarray(array, array.dtype.newbyteorder("="))
