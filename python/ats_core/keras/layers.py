"""Small layers that attention and feature networks are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import keras
from keras import KerasTensor

from ._arguments import to_axes, to_bool, to_channel_axis, to_choice, to_data_format, to_ints, to_option, to_probability
from .ops import known_shape


def at_least_float32(x: Any) -> Any:
    """float64 as it is, everything else as float32."""
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else keras.ops.cast(x, "float32")


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


@keras.saving.register_keras_serializable(package="ats")
class SampleSoftmax(keras.layers.Layer):
    """Softmax over everything but the batch: an attention distribution.

    Computed and returned in float32 (float64 for float64 inputs), also under mixed precision: attention is a
    distribution over many cells, and half precision has too few digits for one.

    Args:
        squeeze_channels: drop the channel axis, which must have size 1.
        smooth: share of the uniform distribution that is mixed in, so that no cell is ever impossible; 0 to 1.
        data_format: where the channel axis is; keras.config.image_data_format() by default.

    Call:
        (B, *grid, C) or (B, C, *grid) -> the same shape, or (B, *grid) with squeeze_channels.
    """

    def __init__(
        self, squeeze_channels: bool = False, smooth: float = 0.0, *, data_format: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.squeeze_channels = to_bool("squeeze_channels", squeeze_channels)
        self.smooth = to_probability("smooth", smooth)
        self.data_format = to_data_format(data_format)

    def call(self, x: Any) -> Any:
        shape = self.compute_output_shape(x.shape)  # checks the channels
        x = at_least_float32(x)
        sizes = keras.ops.shape(x)
        cells = math.prod(sizes[1:])
        weights = keras.ops.softmax(keras.ops.reshape(x, (-1, cells)), axis=-1)
        if self.smooth > 0:
            weights = (1 - self.smooth) * weights + self.smooth / keras.ops.cast(cells, weights.dtype)
        if len(shape) < len(sizes):
            sizes = list(sizes)
            sizes.pop(self._channel_axis)
        return keras.ops.reshape(weights, sizes)

    @property
    def _channel_axis(self) -> int:
        return to_channel_axis(self.data_format)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        shape = list(input_shape)
        if self.squeeze_channels:
            channels = shape.pop(self._channel_axis)
            if channels not in (1, None):
                raise ValueError(
                    f"squeeze_channels: the channel axis must have size 1 ({self.data_format}), got shape "
                    f"{tuple(input_shape)}"
                )
        return tuple(shape)

    def compute_output_spec(self, x: Any) -> Any:
        return KerasTensor(self.compute_output_shape(x.shape), dtype=_wide(x.dtype))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "squeeze_channels": self.squeeze_channels,
            "smooth": self.smooth,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable(package="ats")
class L2Normalize(keras.layers.Layer):
    """Divide by the Euclidean norm over an axis or several, computed in float32 at least. Zeros stay zeros.

    The estimate has the least variance when the features have one norm (Katharopoulos and Fleuret, ICML 2019).

    Args:
        axis: an axis, or a sequence of them.
    """

    def __init__(self, axis: SupportsIndex | Sequence[SupportsIndex] = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = tuple(to_ints("axis", axis, None if isinstance(axis, (tuple, list)) else 1))
        if not self.axis:
            raise ValueError(f"axis: must be an axis or several, got {axis!r}")

    def call(self, x: Any) -> Any:
        wide = at_least_float32(x)
        squares = keras.ops.sum(keras.ops.square(wide), axis=self.axis, keepdims=True)
        return keras.ops.cast(wide * keras.ops.rsqrt(keras.ops.maximum(squares, 1e-12)), self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}


@keras.saving.register_keras_serializable(package="ats")
class ResizeImages(keras.layers.Layer):
    """Resize images, for the low-resolution view that the attention network sees.

    Args:
        size: (height, width), or one for both.
        mode: "bilinear" or "bicubic".
        antialias: average over what one pixel of a smaller image covers, instead of the pixels around its centre only.
        data_format: keras.config.image_data_format() by default.

    Call:
        (B, H, W, C) or (B, C, H, W), any dtype -> the same with the new size, in the layer's compute dtype.
    """

    def __init__(
        self,
        size: SupportsIndex | Sequence[SupportsIndex],
        mode: str = "bilinear",
        *,
        antialias: bool = False,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = to_axes("size", to_option("size", size, 1), 2)
        self.mode = to_choice("mode", mode, ("bilinear", "bicubic"))
        self.antialias = to_bool("antialias", antialias)
        self.data_format = to_data_format(data_format)

    def call(self, x: Any) -> Any:
        self.compute_output_shape(x.shape)  # checks the rank
        return keras.ops.image.resize(
            keras.ops.cast(x, self.compute_dtype),
            self.size,
            interpolation=self.mode,
            antialias=self.antialias,
            data_format=self.data_format,
        )

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        if len(input_shape) != 4:
            raise ValueError(f"x: must be images with 4 axes, batch and channels among them, got {tuple(input_shape)}")
        if self.data_format == "channels_first":
            return (*input_shape[:2], *self.size)
        return (input_shape[0], *self.size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "size": self.size,
            "mode": self.mode,
            "antialias": self.antialias,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable(package="ats")
class TotalReshape(keras.layers.Layer):
    """Reshape with the batch axis: patches (B, n, ...) to (B * n, ...) for a feature network, and back.

    Args:
        shape: of the output, the first axis too; one of the sizes may be -1, which is worked out.
    """

    def __init__(self, shape: Sequence[SupportsIndex], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.shape = tuple(to_ints("shape", shape))
        if any(size < -1 for size in self.shape) or self.shape.count(-1) > 1:
            raise ValueError(f"shape: must be sizes, with -1 for one of them at most, got {shape!r}")

    def call(self, x: Any) -> Any:
        return keras.ops.reshape(x, self.shape)

    def compute_output_spec(self, x: Any) -> Any:
        shape = tuple(None if size == -1 else size for size in self.shape)
        known = known_shape(x)
        if None not in known and None in shape:
            rest = math.prod(size for size in shape if size is not None)
            shape = tuple(math.prod(known) // max(rest, 1) if size is None else size for size in shape)  # type: ignore[arg-type]
        return KerasTensor(shape, dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shape": self.shape}


@keras.saving.register_keras_serializable(package="ats")
class ActivityRegularizer(keras.layers.Layer):
    """The identity, which adds what a regulariser says of its input to the model's losses, as it says it.

    (Keras's own `activity_regularizer` divides by the batch size; regularisers of an attention distribution do
    that themselves.)

    Args:
        regularizer: a keras.regularizers.Regularizer, its name or config, or a callable: tensor -> scalar.
    """

    def __init__(self, regularizer: Callable[[Any], Any] | str | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.regularizer = keras.regularizers.get(regularizer)
        if self.regularizer is None:
            raise ValueError("regularizer: must be a regulariser or a callable, got None")

    def call(self, x: Any) -> Any:
        self.add_loss(self.regularizer(x))
        return x

    def compute_output_spec(self, x: Any) -> Any:
        return KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "regularizer": keras.saving.serialize_keras_object(self.regularizer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ActivityRegularizer:
        return cls(**{**config, "regularizer": keras.saving.deserialize_keras_object(config["regularizer"])})
