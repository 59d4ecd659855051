"""The functions of `ats_core.tensorflow` or `ats_core.torch`, whichever Keras's backend is.

Everything that is different between the two backends is in this file. dtypes are names, as in Keras.
"""

from __future__ import annotations

import importlib
from typing import Any

import keras

from ats_core.sources import from_handles
from ats_core.sources import patches as _patches

ON_TORCH = keras.config.backend() == "torch"
_framework: Any = importlib.import_module("torch" if ON_TORCH else "tensorflow")
_functions: Any = importlib.import_module("ats_core.torch" if ON_TORCH else "ats_core.tensorflow")

_sources: Any = importlib.import_module(f"{_functions.__name__}.sources")

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


# With handles of sources in place of images. (On PyTorch's meta device Keras asks for shapes only.)


def mask_cells(attention: Any, handles: Any, low_shape: Any, low_shapes: Any, field: Any, n: int) -> Any:
    """Which cells lie on the thumbnails, bool (B, *grid) as `attention`; at least n are left a row."""
    if not ON_TORCH:
        return _sources.mask_cells(attention, handles, low_shape, low_shapes, field, n)
    if attention.is_meta:
        return _framework.ones_like(attention, dtype=_framework.bool)
    batch, *grid = attention.shape
    sources = _to_sources(handles, batch, len(grid))
    mask = _patches.mask_cells(sources, grid, low_shape, low_shapes.cpu().numpy(), field, n)
    return _framework.from_numpy(mask).to(attention.device)


def locate_cells(
    indices: Any, handles: Any, grid: Any, patch_size: Any, low_shape: Any, low_shapes: Any, field: Any
) -> Any:
    """`SourceBatch.patch_origins`, (B, n, D)."""
    if not ON_TORCH:
        origins = _sources.locate_cells(indices, handles, grid, patch_size, low_shape, low_shapes, field)
        origins.set_shape((*indices.shape, len(patch_size)))
        return origins
    if indices.is_meta:
        return indices.new_empty((*indices.shape, len(patch_size)))
    sources = _to_sources(handles, len(indices), len(patch_size))
    return _sources.locate_cells(indices, sources, grid, patch_size, low_shape, low_shapes, field)


def read_patches(
    handles: Any, origins: Any, patch_size: Any, channels: int | None, *, dtype: str, **options: Any
) -> Any:
    """`extract_patches` from sources with this number of channels."""
    shape = [*patch_size]
    shape.insert(0 if options["data_format"] == "channels_first" else len(shape), channels)
    if options["scales"] is not None:
        shape.insert(0, len(options["scales"]))
    if not ON_TORCH:
        patches = _sources.read_patches(handles, origins, patch_size, channels, dtype=dtype, **options)
        patches.set_shape((*origins.shape[:2], *shape))
        return patches
    dtype = getattr(_framework, dtype)
    if origins.is_meta:
        return _framework.empty((*origins.shape[:2], *shape), dtype=dtype, device="meta")
    sources = _to_sources(handles, *origins.shape[::2])
    _patches.check_channels(sources, channels)
    return _functions.extract_patches(sources, origins, patch_size, dtype=dtype, **options)


def _to_sources(handles: Any, batch: int, axes: int) -> Any:
    sources = from_handles(handles.cpu().numpy())
    _patches.check_sources("x_high", sources, batch, axes)
    return sources


def is_torch_export() -> bool:
    """Whether torch.export is tracing what is being called."""
    return ON_TORCH and bool(_framework.compiler.is_exporting())


def replica() -> Any:
    """Number of this one among those that train together, each with a part of the batch; an integer of the backend."""
    if ON_TORCH:
        distributed = _framework.distributed
        return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    context = _framework.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


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
