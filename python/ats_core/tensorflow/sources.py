"""What `ats_core.keras` does with handles of sources (`ats_core.sources.to_handles`), eagerly and in graphs.

Sources are asked by Python, through tf.numpy_function: in graphs that run in this process, and without a gradient. Sizes
may be vectors that are known when the graph runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from ats_core._arguments import Array
from ats_core.sources import from_handles
from ats_core.sources import patches as of_sources

from ._arguments import Sizes, Tensor, on_host, to_dtype
from .functional import extract_patches, plain_python


@plain_python
def mask_cells(attention: Tensor, handles: Tensor, low_shape: Any, low_shapes: Tensor, field: Sizes, n: int) -> Tensor:
    """Which cells lie on the thumbnails, bool (B, *grid) as `attention`; at least n are left a row."""

    def ask(shape: Array, numbers: Array, low: Array, valid: Array) -> Array:
        sources = from_handles(numbers)
        of_sources.check_sources("x_high", sources, shape[0], len(shape) - 1)
        return of_sources.mask_cells(sources, shape[1:], low, valid, field, n)

    shape = tf.shape(attention, tf.int64)
    mask = _ask(ask, [shape, handles, low_shape, tf.cast(low_shapes, tf.int64)], tf.bool)
    mask.set_shape(attention.shape)
    return mask


@plain_python
def locate_cells(
    indices: Tensor,
    handles: Tensor,
    grid: Any,
    patch_size: Sizes,
    low_shape: Any,
    low_shapes: Tensor | None,
    field: Sizes,
) -> Tensor:
    """`SourceBatch.patch_origins`, (B, n, D)."""

    def ask(cells: Array, numbers: Array, sizes: Array, low: Array, *valid: Array) -> Array:
        sources = from_handles(numbers)
        of_sources.check_sources("x_high", sources, len(cells), len(sizes))
        return sources.patch_origins(
            cells, sizes, patch_size, low_shape=low, low_shapes=valid[0] if valid else None, receptive_field=field
        )

    more = [] if low_shapes is None else [tf.cast(low_shapes, tf.int64)]
    return _ask(ask, [indices, handles, grid, low_shape, *more], tf.int64)


@plain_python
def read_patches(
    handles: Tensor,
    origins: Tensor,
    patch_size: Sequence[int],
    channels: int | None,
    *,
    scales: Sequence[int] | None,
    padding: str,
    fill: float,
    dtype: Any,
    mean: Any,
    std: Any,
    data_format: str,
) -> Tensor:
    """`extract_patches` from sources that have this number of channels, if one is told."""
    dtype = to_dtype(dtype)

    def ask(numbers: Array, places: Array) -> Array:
        sources = from_handles(numbers)
        of_sources.check_sources("x_high", sources, places.shape[0], places.shape[2])
        of_sources.check_channels(sources, channels)
        pixels, outside = of_sources.read_pixels(sources, places, patch_size, scales or [], padding, fill)
        options = {"padding": padding, "fill": fill, "dtype": dtype, "mean": mean, "std": std}
        with tf.device("CPU:0"):
            # Every patch is an image, from which one patch is cut: itself, converted.
            images = tf.constant(pixels.reshape(-1, *pixels.shape[3:]))
            corner = tf.zeros((len(images), 1, len(patch_size)), tf.int64)
            patches = extract_patches(images, corner, patch_size, **options)
            patches = tf.reshape(patches, pixels.shape)
            if outside is not None:
                beyond = extract_patches(images[:1], corner[:1] + max(patch_size), patch_size, **options)[0, 0]
                patches = tf.where(outside[..., None], beyond, patches)
            if data_format == "channels_first":
                patches = tf.experimental.numpy.moveaxis(patches, -1, 3)
            return (patches if scales is not None else patches[:, :, 0]).numpy()

    return _ask(ask, [handles, origins], dtype)


def _ask(function: Callable[..., Array], arguments: Sequence[Any], dtype: Any) -> Tensor:
    with on_host():
        tensors = [x if tf.is_tensor(x) else tf.constant(x, tf.int64) for x in arguments]
        return tf.numpy_function(function, tensors, dtype)
