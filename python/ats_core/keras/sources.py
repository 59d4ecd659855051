"""Sources in place of images: what the layers do with handles of them."""

from __future__ import annotations

from typing import Any

import keras

from ats_core.sources import SourceBatch, to_handles

from . import ops
from ._arguments import to_axes


def SourceInput(name: str | None = None, batch_size: int | None = None) -> Any:
    """The input of a functional model that is given `ats_core.sources.to_handles` of sources, in place of x_high.

    ``keras.Input((), dtype="int64")``. The layers read patches of the sources, which have the channels of x_low.
    """
    return keras.Input((), batch_size, dtype="int64", name=name)


def with_handles(inputs: Any) -> Any:
    """Inputs of a layer with handles for a `SourceBatch` among them: Keras lets only tensors through."""
    if not isinstance(inputs, (list, tuple)):
        return inputs
    return [to_handles(x) if isinstance(x, SourceBatch) else x for x in inputs]


def are_handles(x_high: Any) -> bool:
    """Whether these are handles, (B,); an error where they were meant to be."""
    if len(x_high.shape) != 1:
        return False
    # Of tensors the registry says it: Keras builds a subclassed model that it loads with floating ones.
    if isinstance(x_high, keras.KerasTensor) and x_high.dtype != "int64":
        raise ValueError(f"x_high: handles of sources must be int64 (SourceInput), got {x_high.dtype}")
    if ops.is_torch_export():
        raise ValueError("x_high: handles of sources mean nothing in an exported program; save the model instead")
    return True


def mask_padding(
    attention: Any,
    x_low: Any,
    handles: Any,
    low_shapes: Any,
    receptive_field: int | tuple[int, ...],
    channel_axis: int,
    *,
    least: int = 1,
    nothing: float = 0.0,
) -> tuple[Any, Any]:
    """Attention (B, *grid) with `nothing` for the cells of thumbnails' padding, and which cells are none of these."""
    mask = ops.mask_cells(
        attention,
        handles,
        ops.spatial_shape(x_low, channel_axis),
        low_shapes,
        to_axes("receptive_field", receptive_field, len(x_low.shape) - 2),
        least,
    )
    # No product: what is not finite out there must not come in, neither forward nor backward.
    return keras.ops.where(mask, attention, keras.ops.zeros_like(attention) + nothing), mask
