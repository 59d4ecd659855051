"""The functions of `ats_core.tensorflow` or `ats_core.torch`, whichever Keras's backend is.

Everything that is different between the two backends is in this file. dtypes are names, as in Keras.
"""

from __future__ import annotations

import importlib
from typing import Any

import keras

ON_TORCH = keras.config.backend() == "torch"
_framework: Any = importlib.import_module("torch" if ON_TORCH else "tensorflow")
_functions: Any = importlib.import_module("ats_core.torch" if ON_TORCH else "ats_core.tensorflow")

patch_origins = _functions.patch_origins
expectation = _functions.expectation


def sample(
    attention: Any, n: int, *, replace: bool = False, logits: bool = False, rng: Any = None, validate: bool = False
) -> Any:
    """`ats_core.sample` on tensors of the backend."""
    if ON_TORCH and attention.is_meta:
        rng = 0  # Keras asks for shapes only, and its seeds have no values there
    return _functions.sample(attention, n, replace=replace, logits=logits, rng=rng, validate=validate)


def topk(attention: Any, n: int, *, logits: bool = False, validate: bool = False) -> Any:
    """`ats_core.topk` on tensors of the backend."""
    return _functions.topk(attention, n, logits=logits, validate=validate)


def extract_patches(image: Any, origins: Any, patch_size: Any, *, dtype: str | None = None, **options: Any) -> Any:
    """`ats_core.extract_patches` on tensors of the backend; channels last unless told."""
    options = {"data_format": "channels_last", **options}
    dtype = None if dtype is None else getattr(_framework, dtype)
    return _functions.extract_patches(image, origins, patch_size, dtype=dtype, **options)


def is_torch_export() -> bool:
    """Whether torch.export is tracing what is being called."""
    return ON_TORCH and bool(_framework.compiler.is_exporting())


def known_shape(tensor: Any) -> tuple[int | None, ...]:
    """Sizes that are known without running anything; None for the others."""
    return tuple(size if isinstance(size, int) else None for size in tensor.shape)


def spatial_shape(tensor: Any, channel_axis: int | None) -> Any:
    """Sizes of all axes but the first and the channels': integers, or an int64 vector where some are not known yet."""
    sizes = list(keras.ops.shape(tensor))
    if channel_axis is not None:
        sizes.pop(channel_axis)
    if any(keras.ops.is_tensor(size) for size in sizes[1:]):
        return keras.ops.stack([keras.ops.cast(size, "int64") for size in sizes[1:]])
    return tuple(sizes[1:])


def unravel(indices: Any, grid: Any) -> Any:
    """Flat cells (B, n) as (B, n, D) coordinates of a grid; int64."""
    axes = int(grid.shape[0]) if keras.ops.is_tensor(grid) else len(grid)
    coordinates = []
    for axis in reversed(range(axes)):
        coordinates.append(indices % grid[axis])
        indices = indices // grid[axis]
    return keras.ops.stack(coordinates[::-1], axis=-1)
