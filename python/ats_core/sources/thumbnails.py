"""A signal averaged down to a few pixels, block by block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ats_core._arguments import Array, Ints, is_single, to_float, to_int
from ats_core.sources.plan import Shape

if TYPE_CHECKING:
    from ats_core.sources.source import Source

BLOCK_BYTES = 16 << 20


# How far a level's downsample may be from what is asked for: scanners cut odd rows and columns off.
TOLERANCE = 0.02


def level_of(source: Source, downsample: Sequence[float]) -> int | None:
    """The level with these downsamples, within 2% on every axis; None: there is none."""
    errors = [
        max(abs(factor / wanted - 1) for factor, wanted in zip(level.downsample, downsample, strict=True))
        for level in source.levels
    ]
    best = min(range(len(errors)), key=errors.__getitem__)
    return best if errors[best] <= TOLERANCE else None


def _by_size(source: Source, size: Ints) -> Shape:
    """Shape of the thumbnail: the longest axis, or every axis, is `size`, and no axis longer than it is."""
    shape = source.shape
    if is_single(size):
        longest = to_int("size", size)
        if longest < 1:
            raise ValueError(f"size: must be at least 1, got {longest}")
        ratio = min(1.0, longest / max(shape))
        return tuple(max(1, round(length * ratio)) for length in shape)
    return tuple(min(*pair) for pair in zip(source._to_size("size", size), shape, strict=True))


def check_one(size: object, downsample: object) -> None:
    if (size is None) == (downsample is None):
        raise TypeError(f"size: exactly one of size and downsample must be given, got {size!r} and {downsample!r}")


def _to_factors(downsample: float | Sequence[float], axes: int) -> list[float]:
    """A factor an axis."""
    several = isinstance(downsample, Sequence | np.ndarray) and not isinstance(downsample, str)
    given: list[Any] = [*downsample] if several else [downsample] * axes  # type: ignore[misc]
    factors = [to_float("downsample", factor) for factor in given]
    if len(factors) != axes:
        raise ValueError(f"downsample: must have {axes} values, one a spatial axis, got {len(factors)}")
    if not all(1.0 <= factor < math.inf for factor in factors):
        raise ValueError(f"downsample: must be at least 1, got {downsample!r}")
    return factors


def thumbnail_shape(source: Source, size: Ints | None, downsample: float | Sequence[float] | None) -> Shape:
    """Spatial shape of the thumbnail, which is not read."""
    return _shape(source, size, downsample)[0]


def _shape(source: Source, size: Ints | None, downsample: float | Sequence[float] | None) -> tuple[Shape, int | None]:
    """And the level that is returned as it is, or None."""
    check_one(size, downsample)
    if size is not None:
        return _by_size(source, size), None
    assert downsample is not None
    factors = _to_factors(downsample, len(source.axes))
    level = level_of(source, factors)
    if level is not None:
        return source.levels[level].shape, level
    return tuple(max(1, round(length / f)) for length, f in zip(source.shape, factors, strict=True)), None


def thumbnail(
    source: Source, size: Ints | None, downsample: float | Sequence[float] | None
) -> tuple[Array, tuple[float, ...]]:
    """See `Source.thumbnail`."""
    shape, level = _shape(source, size, downsample)
    if level is None:
        large = [
            number
            for number, one in enumerate(source.levels)
            if all(length >= least for length, least in zip(one.shape, shape, strict=True))
        ]
        level = min(large, key=lambda number: (math.prod(source.levels[number].shape), -number))
    out = np.empty((*shape, source.channels), source.dtype)
    whole = source.levels[level].shape
    ratios = [length / pixels for length, pixels in zip(whole, shape, strict=True)]
    limits = None if source.dtype.kind == "f" else np.iinfo(source.dtype)
    for block in _blocks(source, level, shape, ratios):
        ends = [
            (part.start * length // pixels, -(-part.stop * length // pixels))
            for part, length, pixels in zip(block, whole, shape, strict=True)
        ]
        pixels = source.read(level, [low for low, _ in ends], [high - low for low, high in ends])
        if pixels.shape[:-1] != tuple(part.stop - part.start for part in block):
            means: Array = pixels
            for axis, (part, (low, _)) in enumerate(zip(block, ends, strict=True)):
                means = _average(means, axis, range(part.start, part.stop), whole[axis], shape[axis], low)
            pixels = means if limits is None else np.rint(means).clip(limits.min, limits.max)
        out[tuple(slice(part.start, part.stop) for part in block)] = pixels
    return out, tuple(length / pixels for length, pixels in zip(source.shape, shape, strict=True))


def _blocks(source: Source, level: int, shape: Shape, ratios: Sequence[float]) -> itertools.product[tuple[range, ...]]:
    """Parts of the thumbnail whose pixels fit into BLOCK_BYTES: whole strips, as long as they do."""
    tile = source.levels[level].tile or (1,) * len(shape)
    budget = BLOCK_BYTES // (source.channels * source.dtype.itemsize)
    lengths = list(shape)
    for axis, ratio in enumerate(ratios):
        others = math.prod(
            math.ceil(length * r) for length, r in zip(lengths[axis + 1 :], ratios[axis + 1 :], strict=True)
        )
        fitting = int(max(budget // max(1, others), tile[axis]) / ratio)
        lengths[axis] = max(1, min(lengths[axis], fitting))
        budget //= max(1, math.ceil(lengths[axis] * ratio))
    return itertools.product(
        *(
            [range(first, min(first + length, size)) for first in range(0, size, length)]
            for length, size in zip(lengths, shape, strict=True)
        )
    )


def _average(pixels: Array, axis: int, cells: range, length: int, size: int, first: int) -> NDArray[np.float64]:
    """Means along an axis of `length` pixels that becomes `size`, of its cells `cells`; `pixels` begin at `first`.

    Cell i covers [i, i + 1) * length / size; pixels that it covers in part count in part. In units of 1 / size of a
    pixel the borders are whole numbers.
    """
    borders = np.arange(cells.start, cells.stop + 1, dtype=np.int64) * length - first * size
    low, high = borders[:-1], borders[1:]
    start, stop = low // size, -(-high // size)  # pixels that are touched
    moved = np.moveaxis(pixels, axis, 0)
    ends = np.minimum(stop, len(moved))
    # reduceat sums from every even index to the odd one after it.
    indices = np.stack([start, ends], 1).ravel()
    trimmed = indices[:-1] if indices[-1] == len(moved) else indices
    sums = np.add.reduceat(moved, trimmed, axis=0, dtype=np.float64)[::2]
    column = (-1, *(1,) * (moved.ndim - 1))
    before = ((low - start * size) / size).reshape(column)
    after = ((stop * size - high) / size).reshape(column)
    means = (sums - before * moved[start] - after * moved[stop - 1]) * (size / length)
    return np.moveaxis(means, 0, axis)
