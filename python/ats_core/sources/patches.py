"""What the adapters of frameworks make of sources: arrays, which they turn into tensors of theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ats_core._arguments import Array, Ints
from ats_core.sources.batch import SourceBatch, to_level
from ats_core.sources.padding import to_pixel


def check_sources(name: str, sources: SourceBatch, batch: int, axes: int) -> None:
    if len(sources) != batch or len(sources.axes) != axes:
        raise ValueError(
            f"{name}: must be {batch} sources with {axes} axes, as attention has rows and axes, got {len(sources)} with "
            f"{len(sources.axes)} ({sources.axes})"
        )


def check_channels(sources: SourceBatch, channels: int | None) -> None:
    if channels not in (None, sources.channels):
        raise ValueError(
            f"x_high: must have the {channels} channels of x_low, got sources with {sources.channels}, {sources[0].name} "
            "among them"
        )


def mask_cells(
    sources: SourceBatch, grid: Ints, low_shape: Ints | None, low_shapes: ArrayLike | None, field: Ints, n: int
) -> NDArray[np.bool_]:
    """`SourceBatch.low_mask`, with at least n cells a row."""
    mask = sources.low_mask(grid, low_shape=low_shape, low_shapes=low_shapes, receptive_field=field)
    cells = mask.reshape(len(mask), -1).sum(1)
    if cells.min() < n:
        row = int(cells.argmin())
        raise ValueError(f"n_patches: {n} cells cannot be drawn from the {cells[row]} of {sources[row].name}")
    return mask


def read_pixels(
    sources: SourceBatch, origins: Array, patch: Sequence[int], scales: Sequence[int], padding: str, fill: float
) -> tuple[Array, NDArray[np.bool_] | None]:
    """Patches as they are in the sources, (B, n, S, *patch, C), of level 0 without scales.

    And, where `fill` is no value of the sources' dtype, which of their pixels lie outside, (B, n, S, *patch).
    """
    scales = scales or [1]
    levels = sources.levels_of(scales)
    pixels = sources.read_patches(origins, patch, scales=scales, padding=padding, fill=fill)
    if padding != "constant" or float(to_pixel(sources.dtype, padding, fill)) == fill:
        return pixels, None
    return pixels, _outside(sources, origins, patch, levels)


def _outside(sources: SourceBatch, origins: Array, patch: Sequence[int], levels: Array) -> NDArray[np.bool_]:
    out = np.zeros((*origins.shape[:2], levels.shape[1], *patch), np.bool_)
    for row, source in enumerate(sources):
        for column, level in enumerate(levels[row].tolist()):
            places = to_level(origins[row : row + 1], patch, source, level)[0]
            for axis, (size, length) in enumerate(zip(patch, source.levels[level].shape, strict=True)):
                index = places[:, axis, None] + np.arange(size)
                shape = [len(index), *(1,) * len(patch)]
                shape[axis + 1] = size
                out[row, :, column] |= ((index < 0) | (index >= length)).reshape(shape)
    return out
