"""Attention on thumbnails that were padded to one size."""

from __future__ import annotations

from typing import Any

import keras
from keras import KerasTensor

from ._arguments import Sizes, to_channel_axis, to_data_format, to_field
from .layers import at_least_float32
from .sampling import has_channels
from .sources import mask_padding


@keras.saving.register_keras_serializable(package="ats")
class MaskAttention(keras.layers.Layer):
    """Give the cells of thumbnails' padding weight 0, and divide the others by their sum if there are any.

    Args:
        receptive_field, data_format: as for `SamplePatches`.

    Call:
        [x_low, handles, attention, low_shapes], as for `SamplePatches` -> (B, *grid), float32 or float64.
    """

    def __init__(self, receptive_field: Sizes = 0, *, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.receptive_field = to_field(receptive_field)
        self.data_format = to_data_format(data_format)
        self.supports_jit = False
        self.built = True  # so that a model that does without it is built without it

    def call(self, inputs: Any) -> Any:
        x_low, handles, attention, low_shapes = inputs
        channel_axis = to_channel_axis(self.data_format)
        if has_channels(attention, x_low, channel_axis):
            attention = keras.ops.squeeze(attention, channel_axis)
        weights, mask = mask_padding(
            at_least_float32(attention), x_low, handles, low_shapes, self.receptive_field, channel_axis
        )
        total = keras.ops.sum(weights, axis=tuple(range(1, len(weights.shape))), keepdims=True)
        return keras.ops.where(keras.ops.all(mask), weights, weights / total)

    def compute_output_spec(self, inputs: Any) -> Any:
        x_low, _, attention, _ = inputs
        shape = list(attention.shape)
        if has_channels(attention, x_low, to_channel_axis(self.data_format)):
            shape.pop(to_channel_axis(self.data_format))
        return KerasTensor(shape, dtype="float64" if attention.dtype == "float64" else "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "receptive_field": self.receptive_field, "data_format": self.data_format}
