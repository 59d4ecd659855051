"""Random changes of the images, in training only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, SupportsIndex

import keras
from keras import KerasTensor, ops

from ._arguments import to_bool, to_choice, to_data_format, to_int, to_probability, to_range
from ._random import RandomLayer
from .layers import at_least_float32
from .ops import extract_patches, known_shape


@keras.saving.register_keras_serializable(package="ats")
class ImageLinearTransform(RandomLayer):
    """Change brightness and contrast: a * image + b, with one a and one b an image. Only in training.

    Args:
        a, b: (low, high), between which they are drawn uniformly.
        p: probability that an image is changed at all.
        seed: see `RandomLayer`.

    Call:
        (B, ...) of any dtype -> the same shape in the layer's compute dtype.
    """

    def __init__(
        self,
        a: Sequence[float] = (0.8, 1.2),
        b: Sequence[float] = (-0.1, 0.1),
        p: float = 0.8,
        *,
        seed: SupportsIndex | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, **kwargs)
        self.a = to_range("a", a)
        self.b = to_range("b", b)
        self.p = to_probability("p", p)

    def call(self, x: Any, training: bool | None = None) -> Any:
        if not training:
            return ops.cast(x, self.compute_dtype)
        x = at_least_float32(x)
        shape = (ops.shape(x)[0], *(1,) * (len(x.shape) - 1))
        a, b, chance = (
            keras.random.uniform(shape, low, high, dtype="float32", seed=self.seed_generator)
            for low, high in (self.a, self.b, (0.0, 1.0))
        )
        changed = ops.cast(a, x.dtype) * x + ops.cast(b, x.dtype)
        return ops.cast(ops.where(chance < self.p, changed, x), self.compute_dtype)

    def compute_output_spec(self, x: Any, training: bool | None = None) -> Any:
        return KerasTensor(x.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "a": self.a, "b": self.b, "p": self.p}


@keras.saving.register_keras_serializable(package="ats")
class ImagePan(RandomLayer):
    """Shift images, each by its own random distance, with zeros where nothing is left. Only in training.

    Args:
        pixels: the shift along an axis is drawn uniformly from [-pixels, pixels].
        p: probability that an image is shifted at all.
        horizontally, vertically: whether to shift along the last and the first spatial axis.
        mode: "NEAREST" shifts by whole pixels and keeps the dtype, whatever it is; "BILINEAR" by any distance,
            interpolated linearly.
        data_format: keras.config.image_data_format() by default.
        seed: see `RandomLayer`.

    Call:
        (B, H, W, C) or (B, C, H, W) -> the same shape and dtype; with "BILINEAR" integers become the layer's compute
        dtype. H and W must be known when a graph is made of it.
    """

    def __init__(
        self,
        pixels: SupportsIndex = 100,
        p: float = 0.8,
        horizontally: bool = True,
        vertically: bool = False,
        mode: str = "NEAREST",
        *,
        data_format: str | None = None,
        seed: SupportsIndex | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, **kwargs)
        self.pixels = to_int("pixels", pixels)
        if self.pixels < 0:
            raise ValueError(f"pixels: must be at least 0, got {pixels!r}")
        self.p = to_probability("p", p)
        self.horizontally = to_bool("horizontally", horizontally)
        self.vertically = to_bool("vertically", vertically)
        self.mode = to_choice("mode", mode, ("NEAREST", "BILINEAR"))
        self.data_format = to_data_format(data_format)
        self.supports_jit = False  # its shift is an operation of ours

    def call(self, x: Any, training: bool | None = None) -> Any:
        spec = self.compute_output_spec(x)
        x = ops.cast(x, spec.dtype)
        if not training:
            return x
        batch = ops.shape(x)[0]
        moved = ops.cast(
            keras.random.uniform((batch, 1), seed=self.seed_generator, dtype="float32") < self.p, "float32"
        )
        moved = moved * ops.convert_to_tensor([float(self.vertically), float(self.horizontally)], dtype="float32")
        if self.mode == "NEAREST":
            shifts = keras.random.randint((batch, 2), -self.pixels, self.pixels + 1, seed=self.seed_generator)
            return self._shift(x, ops.cast(moved, "int64") * ops.cast(shifts, "int64"))
        shifts = keras.random.uniform(
            (batch, 2), -float(self.pixels), float(self.pixels), seed=self.seed_generator, dtype="float32"
        )
        return self._shift_between(x, moved * shifts)

    def _shift(self, x: Any, shifts: Any) -> Any:
        """x moved down and right by whole pixels (B, 2): a patch as large as the image, which begins before it."""
        first = 2 if self.data_format == "channels_first" else 1
        size = known_shape(x)[first : first + 2]
        if None in size:
            raise ValueError(f"x: its height and width must be known to shift it, got shape {tuple(x.shape)}")
        return extract_patches(x, -ops.expand_dims(shifts, 1), size, data_format=self.data_format)[:, 0]

    def _shift_between(self, x: Any, shifts: Any) -> Any:
        """x moved by any distances (B, 2): the mean of the whole shifts around, with the weights of the distances."""
        whole = ops.floor(shifts)
        share = shifts - whole
        result: Any = 0.0
        for corner in itertools.product(*((0, 1) if moves else (0,) for moves in (self.vertically, self.horizontally))):
            step = ops.convert_to_tensor(corner, dtype="float32")
            weight = ops.prod(step * share + (1 - step) * (1 - share), axis=1)
            weight = ops.cast(ops.reshape(weight, (-1, 1, 1, 1)), x.dtype)
            result = result + weight * self._shift(x, ops.cast(whole + step, "int64"))
        return result

    def compute_output_spec(self, x: Any, training: bool | None = None) -> Any:
        if len(x.shape) != 4:
            raise ValueError(f"x: must be images with 4 axes, batch and channels among them, got {tuple(x.shape)}")
        dtype = keras.backend.standardize_dtype(x.dtype)
        if self.mode == "BILINEAR" and "float" not in dtype:
            dtype = self.compute_dtype
        return KerasTensor(tuple(x.shape), dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "pixels": self.pixels,
            "p": self.p,
            "horizontally": self.horizontally,
            "vertically": self.vertically,
            "mode": self.mode,
            "data_format": self.data_format,
        }
