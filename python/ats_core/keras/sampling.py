"""The layers that sample patches and estimate the mean of their features.

Source: Katharopoulos and Fleuret, "Processing Megapixel Images with Deep Attention-Sampling Models", ICML 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsIndex

import keras
import numpy as np
from keras import KerasTensor

import ats_core

from . import ops
from ._arguments import (
    Sizes,
    to_axes,
    to_bool,
    to_channel_axis,
    to_choice,
    to_count,
    to_data_format,
    to_extraction,
    to_field,
    to_option,
)
from ._random import RandomLayer
from .layers import at_least_float32
from .sources import are_handles, mask_padding, with_handles

INFERENCE = ("sample", "topk")


def check_images(x_low: Any, x_high: Any, channel_axis: int, names: tuple[str, str] = ("x_low", "x_high")) -> None:
    """Refuse images whose shapes, as far as they are known, are not those of one region in two resolutions."""
    low, high = ops.known_shape(x_low), ops.known_shape(x_high)
    if not 3 <= len(low) <= 5:
        raise ValueError(f"{names[0]}: must have a batch axis, channels and 1 to 3 spatial axes, got {low}")
    if len(high) != len(low):
        raise ValueError(f"{names[1]}: must have as many axes as {names[0]}, {len(low)}, got {high}")
    spatial = [[size for axis, size in enumerate(s) if axis not in (0, channel_axis % len(s))] for s in (low, high)]
    if all(a is not None and b is not None and b < a for a, b in zip(*spatial, strict=True)):
        raise ValueError(
            f"{names[1]}: is smaller than {names[0]} on every axis, {tuple(spatial[1])} and {tuple(spatial[0])}: are the "
            "two in the right order?"
        )


def check_inputs(x_low: Any, x_high: Any, low_shapes: Any, channel_axis: int) -> bool:
    """`check_images`, or the same of sources; whether x_high are handles of sources."""
    if are_handles(x_high):
        low, shapes = ops.known_shape(x_low), None if low_shapes is None else ops.known_shape(low_shapes)
        if not 3 <= len(low) <= 5:
            raise ValueError(f"x_low: must have a batch axis, channels and 1 to 3 spatial axes, got {low}")
        if shapes is not None and (len(shapes) != 2 or shapes[1] not in (None, len(low) - 2)):
            raise ValueError(f"low_shapes: must be (B, {len(low) - 2}), got {shapes}")
        return True
    check_images(x_low, x_high, channel_axis)
    if low_shapes is not None:
        raise ValueError("low_shapes: is for sources in place of x_high; the images of a tensor have one size")
    return False


def has_channels(attention: Any, x_low: Any, channel_axis: int) -> bool:
    """Whether the attention on x_low has a channel axis; an error where it is no map of one channel."""
    shape, axes = ops.known_shape(attention), len(x_low.shape) - 2
    channels = len(shape) == axes + 2 and shape[channel_axis] in (1, None)
    if len(shape) != axes + 1 and not channels:
        raise ValueError(
            f"attention: must be (B, *grid) with {axes} axes in grid, or have one channel more, got {shape}"
        )
    return channels


def to_estimator(estimator: str) -> str:
    """An estimator that the core knows."""
    one = np.ones((1, 1), np.float32)  # what the core says of a name, before there are features
    ats_core.estimator_arrays(one, estimator, threshold=one[0] if estimator == "horvitz_thompson" else None)
    return estimator


def to_unbiased(estimator: str) -> str:
    """An estimator to train with."""
    if to_estimator(estimator) == "normalized":
        raise ValueError(
            "estimator: 'normalized' is biased, and is what inference='topk' takes when not training; choose another to "
            "train with"
        )
    return estimator


@keras.saving.register_keras_serializable(package="ats")
class SamplePatches(RandomLayer):
    """Draw cells of an attention map and cut their patches out of the full-resolution image.

    It draws at random when not training too, so `predict` answers a little differently every time, and every call moves
    the layer's random state on (a validation changes what the next epoch draws). For one answer: inference="topk", or an
    `rng` in the call.

    Args:
        n_patches: cells to draw from each image.
        patch_size: one size for every spatial axis, or one each; in pixels of the full resolution. Patches are centred on
            their cells: they reach outside of the image near its edges and where they are larger than it, and `padding`
            says what is seen there.
        receptive_field: of the attention network, in pixels of the image that it saw; 0 if it pads.
        replace: draw with replacement.
        use_logits: the attention is given as logarithms.
        scales, padding, fill, mean, std: as for `ats_core.extract_patches`.
        inference: what is done when not training: "sample" as in training, or "topk": the n_patches most attended
            cells (deterministic).
        data_format: keras.config.image_data_format() by default.
        seed: of the random numbers, see `RandomLayer`. Call c of the layer draws with rng=(seed, c * 2**32).
        details: return the indices, the origins and the threshold too.
        validate: as for `sample` of the backend: wait for a GPU to say whether the attention is bad. The CPU always says so.

    Call:
        [x_low, x_high, attention]: (B, *low, C), (B, *high, C) of any dtype of `ats_core.extract_patches`, and
        (B, *grid) floating, which may have a channel axis of size 1; a distribution or any other weights. With
        channels_first C stands behind B. In place of x_high sources may be given, of which only the patches are read:
        handles (`SourceInput`) or, eagerly, a `SourceBatch`. Then low_shapes, integers (B, D), may follow: the sizes of
        thumbnails without their padding, whose cells are not drawn (`SourceBatch.low_mask`).
        rng: overrides the layer's own random numbers: a seed, (seed, offset), or an int64 tensor of these two. Row b
        draws from stream (seed, offset + b): the same cells as any other framework.

    Returns:
        [patches, sampled_attention]: (B, n, [S,] *patch, C) or (B, n, [S,] C, *patch) in the layer's compute dtype, and
        (B, n) float32, or float64 for a float64 map, normalised. With `details` also indices (B, n) int64, flat cells
        in the order drawn; origins (B, n, D) int64; threshold (B,), as the attention (`ats_core.Samples`).
    """

    def __init__(
        self,
        n_patches: SupportsIndex,
        patch_size: Sizes,
        receptive_field: Sizes = 0,
        replace: bool = False,
        use_logits: bool = False,
        *,
        scales: Sequence[SupportsIndex] | None = None,
        padding: str = "constant",
        fill: float = 0.0,
        mean: Any = None,
        std: Any = None,
        inference: str = "sample",
        data_format: str | None = None,
        seed: SupportsIndex | None = None,
        details: bool = False,
        validate: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, **kwargs)
        self.n_patches = to_count("n_patches", n_patches)
        self.patch_size = to_option("patch_size", patch_size, 1)
        self.receptive_field = to_field(receptive_field)
        if isinstance(self.patch_size, tuple):
            to_axes("receptive_field", self.receptive_field, len(self.patch_size))
        self.replace = to_bool("replace", replace)
        self.use_logits = to_bool("use_logits", use_logits)
        self.extraction = to_extraction(self.patch_size, scales, padding, fill, mean, std)
        self.inference = to_choice("inference", inference, INFERENCE)
        self.data_format = to_data_format(data_format)
        self.details = to_bool("details", details)
        self.validate = to_bool("validate", validate)
        self.supports_jit = False

    @property
    def _channel_axis(self) -> int:
        return to_channel_axis(self.data_format)

    def __call__(self, inputs: Any, rng: Any = None, training: bool | None = None) -> list[Any]:
        told = {} if training is None else {"training": training}  # None would hide what the outer model is told
        outputs: list[Any] = super().__call__(with_handles(inputs), rng=rng, **told)
        return outputs

    def call(self, inputs: Any, rng: Any = None, training: bool | None = None) -> list[Any]:
        x_low, x_high, attention, low_shapes = self._unpack(inputs)
        from_sources = check_inputs(x_low, x_high, low_shapes, self._channel_axis)
        if has_channels(attention, x_low, self._channel_axis):
            attention = keras.ops.squeeze(attention, self._channel_axis)
        if low_shapes is not None:
            attention, _ = mask_padding(
                attention, x_low, x_high, low_shapes, self.receptive_field, self._channel_axis,
                least=1 if self.replace else self.n_patches, nothing=-math.inf if self.use_logits else 0.0,
            )  # fmt: skip
        if self.inference == "topk" and not training:
            draws = ops.topk(attention, self.n_patches, logits=self.use_logits, validate=self.validate)
        else:
            draws = ops.sample(
                attention,
                self.n_patches,
                replace=self.replace,
                logits=self.use_logits,
                rng=self.next_rng(keras.ops.shape(attention)[0]) if rng is None else rng,
                validate=self.validate,
            )
        axes = len(x_low.shape) - 2
        patch_size = to_axes("patch_size", self.patch_size, axes)
        field = to_axes("receptive_field", self.receptive_field, axes)
        grid, low_shape = ops.spatial_shape(attention, None), ops.spatial_shape(x_low, self._channel_axis)
        options = {"dtype": self.compute_dtype, "data_format": self.data_format, **self.extraction}
        if from_sources:
            origins = ops.locate_cells(draws.indices, x_high, grid, patch_size, low_shape, low_shapes, field)
            channels = ops.known_shape(x_low)[self._channel_axis]
            patches = ops.read_patches(x_high, origins, patch_size, channels, **options)
        else:
            image_shape = ops.spatial_shape(x_high, self._channel_axis)
            origins = ops.patch_origins(
                draws.indices, grid, image_shape, patch_size, low_shape=low_shape, receptive_field=field
            )
            patches = ops.extract_patches(x_high, origins, patch_size, **options)
        more = [draws.indices, origins, draws.threshold] if self.details else []
        return [patches, draws.attention, *more]

    @staticmethod
    def _unpack(inputs: Any) -> Any:
        if not isinstance(inputs, (list, tuple)) or len(inputs) not in (3, 4):
            raise ValueError(
                f"inputs: must be [x_low, x_high, attention], or low_shapes too after sources, got {inputs!r}"
            )
        return [*inputs, None][:4]

    def compute_output_spec(self, inputs: Any, rng: Any = None, training: bool | None = None) -> list[Any]:
        x_low, x_high, attention, low_shapes = self._unpack(inputs)
        from_sources = check_inputs(x_low, x_high, low_shapes, self._channel_axis)
        has_channels(attention, x_low, self._channel_axis)
        batch, axes = x_high.shape[0], len(x_low.shape) - 2
        patch = list(to_axes("patch_size", self.patch_size, axes))
        channels = (x_low if from_sources else x_high).shape[self._channel_axis]
        patch.insert(0 if self.data_format == "channels_first" else axes, channels)
        scales = self.extraction["scales"]
        shape = (batch, self.n_patches, *(() if scales is None else (len(scales),)), *patch)
        real = "float64" if attention.dtype == "float64" else "float32"
        specs = [KerasTensor(shape, dtype=self.compute_dtype), KerasTensor((batch, self.n_patches), dtype=real)]
        if self.details:
            specs += [
                KerasTensor((batch, self.n_patches), dtype="int64"),
                KerasTensor((batch, self.n_patches, axes), dtype="int64"),
                KerasTensor((batch,), dtype=real),
            ]
        return specs

    def compute_output_shape(self, input_shape: Any) -> list[Any]:
        return [spec.shape for spec in self.compute_output_spec([KerasTensor(shape) for shape in input_shape])]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "n_patches": self.n_patches,
            "patch_size": self.patch_size,
            "receptive_field": self.receptive_field,
            "replace": self.replace,
            "use_logits": self.use_logits,
            **self.extraction,
            "inference": self.inference,
            "data_format": self.data_format,
            "details": self.details,
            "validate": self.validate,
        }


@keras.saving.register_keras_serializable(package="ats")
class Expectation(keras.layers.Layer):
    """Estimate the mean of the features over all cells from those that were sampled, with an unbiased gradient.

    Args:
        estimator: as for `ats_core.expectation`: "murthy", "des_raj" (the paper's), "horvitz_thompson" (needs the
            threshold), "iid" (for sampling with replacement), "normalized" (biased; for the most attended cells).
        inference: "topk" takes "normalized" when not training, which is what `SamplePatches` needs there.
        validate: as for `expectation` of the backend: wait for a GPU to say whether the attention is bad.

    Call:
        [features, sampled_attention] or [features, sampled_attention, threshold]: (B, n, ...), (B, n), (B,).

    Returns:
        (B, ...) with the dtype of features.
    """

    def __init__(
        self, estimator: str = "murthy", *, inference: str = "sample", validate: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.estimator = to_estimator(estimator)
        self.inference = to_choice("inference", inference, INFERENCE)
        self.validate = to_bool("validate", validate)
        self.supports_jit = False

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        features, attention, *threshold = self._unpack(inputs)
        estimator = "normalized" if self.inference == "topk" and not training else self.estimator
        return ops.expectation(
            features,
            at_least_float32(attention),
            estimator=estimator,
            threshold=at_least_float32(threshold[0]) if threshold and estimator == "horvitz_thompson" else None,
            validate=self.validate,
        )

    def _unpack(self, inputs: Any) -> Any:
        counts = (3,) if self.estimator == "horvitz_thompson" else (2, 3)
        if not isinstance(inputs, (list, tuple)) or len(inputs) not in counts:
            threshold = "threshold" if counts == (3,) else "(threshold)"
            raise ValueError(
                f"inputs: must be [features, attention, {threshold}] for {self.estimator!r}, got {inputs!r}"
            )
        features, attention = (ops.known_shape(x) for x in inputs[:2])
        if len(attention) != 2:
            raise ValueError(f"attention: must be (B, n), the second of the inputs, got {attention}")
        n = features[1:2]
        if not n or (None not in (*n, attention[1]) and n[0] != attention[1]):
            raise ValueError(
                f"features: must be (B, n, ...), the first of the inputs, with n as in attention {attention}, got {features}"
            )
        return inputs

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        features = self._unpack(inputs)[0]
        return KerasTensor((features.shape[0], *features.shape[2:]), dtype=features.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "inference": self.inference,
            "validate": self.validate,
        }
