"""Pixels outside an image, by the rules of `extract_patches`, for reads that should touch no more than they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ats_core._arguments import Array
from ats_core._patches import extract_patches

PADDINGS = ("constant", "edge", "reflect")
CORE = tuple(np.dtype(name) for name in ("u1", "i2", "u2", "f2", "f4", "f8"))


class Span(NamedTuple):
    """What one axis of a patch needs: pixels [start, stop) of the image. Where `picks` is None they are the patch's
    pixels [begin, begin + stop - start); otherwise the patch's pixel i is pixel start + picks[i]."""

    start: int
    stop: int
    begin: int
    picks: NDArray[np.int64] | None


def span(first: int, size: int, length: int, padding: str) -> Span:
    """Where the pixels [first, first + size) of an axis come from."""
    if 0 <= first <= length - size:
        return Span(first, first + size, 0, None)
    if padding == "constant":
        start = min(max(first, 0), length)
        return Span(start, max(start, min(first + size, length)), max(0, min(-first, size)), None)
    steps = np.arange(size)
    if padding == "edge":
        index = (max(-size, min(first, length)) + steps).clip(0, length - 1)
    elif length == 1:
        index = np.zeros(size, np.int64)
    else:
        period = 2 * (length - 1)
        index = (first % period + steps) % period
        index = np.minimum(index, period - index)
    start = int(index.min())
    return Span(start, int(index.max()) + 1, 0, index - start)


def gather(region: Array, spans: Sequence[Span]) -> Array:
    """The patch whose pixels lie in `region`, the part of the image from every span's start to its stop."""
    indices = [
        np.arange(part.stop - part.start, dtype=np.int64) if part.picks is None else part.picks for part in spans
    ]
    picked: Array = region[np.ix_(*indices)]
    return picked


def to_pixel(dtype: np.dtype[Any], padding: str, fill: float) -> Any:
    """The pixel that stands for `fill` in an image of this dtype, and the checks of `padding` and `fill`."""
    core = dtype in CORE
    filled = extract_patches(np.zeros((1, 1, 1), dtype if core else "f8"), [[[2]]], 1, padding=padding, fill=fill)
    value = filled.ravel()[0]
    if core:
        return value
    if dtype.kind in "iu":  # as the core does it: half to even, held to the dtype's range
        limits = np.iinfo(dtype)
        value = 0 if np.isnan(value) else round(min(max(float(value), limits.min), limits.max))
    return dtype.type(value)
