"""Attention sampling around two networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import keras

from . import ops
from ._arguments import Sizes, to_channel_axis, to_data_format
from .functional import is_symbolic
from .layers import ActivityRegularizer, TotalReshape
from .masking import MaskAttention
from .sampling import Expectation, SamplePatches, check_inputs, to_unbiased
from .sources import with_handles

Network = Callable[[Any], Any]


@keras.saving.register_keras_serializable(package="ats")
class AttentionSampling(keras.layers.Layer):
    """Classify a large image by a few patches of it, which a cheap network's attention chooses.

    ``features, attention, patches = attention_sampling(attention, feature, 32)([x_low, x_high])``

    Called with Keras's symbolic inputs it is a function: the model consists of the two networks and of the layers
    `SamplePatches`, `Expectation` and `ActivityRegularizer`. Called with tensors it is a layer that has these as its
    own, so that a subclassed model to which it is assigned finds their weights, losses and random numbers.

    It draws at random when not training too, so `predict` and `evaluate` answer a little differently every time, and
    move the random state on (a validation changes what the next epoch draws). For one answer: inference="topk", or an
    `rng` in the call.

    Args:
        attention: a Keras layer, model or callable, x_low (B, *low, C) -> attention (B, *grid), or with a channel axis
            of size 1; weights of any scale (`SampleSoftmax` makes a distribution). D = 1 to 3 spatial axes.
        feature: a Keras layer, model or callable, patches (B * n, *patch, C) -> (B * n, ...). With `scales` these are
            stacked on the channel axis, the finest first: (B * n, *patch, S * C).
        patch_size: one size for every spatial axis, or one each; by default that of the feature layer's input.
        n_patches, replace, receptive_field, scales, padding, fill, mean, std, inference, seed, validate: as for
            `SamplePatches`.
        attention_regularizer: as for `ActivityRegularizer`, of the attention layer's output; `multinomial_entropy`.
        estimator: as for `Expectation`, unbiased; "iid" with replace=True (and only then), otherwise
            `default_estimator`, which is "murthy", in `ats` "des_raj".
        data_format: keras.config.image_data_format() by default. With channels_first C stands behind the batch axis.
        name: what the names of the layers for sampling, regularising and estimating begin with.
        dtype: of the layers: a dtype or a policy, which decides what the patches are; Keras's own by default.

    Call:
        [x_low, x_high]: (B, *low, C), (B, *high, C). rng: as for `SamplePatches`.
        Or [x_low, handles], [x_low, handles, low_shapes]: sources of different sizes in place of x_high, of which only
        the sampled patches are read: (B,) int64 (`SourceInput`, `to_handles`), or, eagerly, a `SourceBatch`. x_low are
        their thumbnails, padded at the end to one size, and low_shapes (B, D) the sizes without padding. Cells of the
        padding get weight 0, and the others are divided by their sum: what is estimated is the mean over the cells of
        each source. Patches get no gradient, and have the channels of x_low.

    Returns:
        [features, attention, patches]: the expected features (B, ...), the attention layer's output (with low_shapes
        (B, *grid), without the cells of padding), and the patches that were looked at, as `SamplePatches` returns them.

    Raises:
        ValueError: an unknown or biased estimator; "iid" without replace=True or the other way round; options that
            suit no image; a patch size that cannot be inferred; patches or images that do not suit the networks.
        TypeError: an option of a type that means nothing here.
    """

    default_estimator = "murthy"

    def __init__(
        self,
        attention: Network,
        feature: Network,
        patch_size: Sizes | None = None,
        n_patches: SupportsIndex = 10,
        replace: bool = False,
        attention_regularizer: Any = None,
        receptive_field: Sizes = 0,
        *,
        estimator: str | None = None,
        scales: Sequence[SupportsIndex] | None = None,
        padding: str = "constant",
        fill: float = 0.0,
        mean: Any = None,
        std: Any = None,
        inference: str = "sample",
        data_format: str | None = None,
        seed: SupportsIndex | None = None,
        validate: bool = False,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype, autocast=False, **kwargs)
        for role, network in (("attention", attention), ("feature", feature)):
            if not callable(network):
                raise TypeError(f"{role}: must be a Keras layer or a callable, got {network!r}")
        estimator = ("iid" if replace else self.default_estimator) if estimator is None else to_unbiased(estimator)
        if (estimator == "iid") != bool(replace):
            raise ValueError(
                f"estimator: 'iid' is for replace=True and the others are for replace=False, got {estimator!r} with "
                f"replace={replace}"
            )
        self.data_format = to_data_format(data_format)

        def part(suffix: str) -> str | None:
            return None if name is None else f"{name}_{suffix}"

        self.expectation = Expectation(
            estimator, inference=inference, validate=validate, dtype=self.dtype_policy, name=part("expectation")
        )
        self.attention = attention
        self.feature = feature
        self.sampler = SamplePatches(
            n_patches,
            _infer_patch_size(feature, self.data_format) if patch_size is None else patch_size,
            receptive_field,
            replace,
            scales=scales,
            padding=padding,
            fill=fill,
            mean=mean,
            std=std,
            inference=inference,
            data_format=self.data_format,
            seed=seed,
            details=estimator == "horvitz_thompson",
            validate=validate,
            dtype=self.dtype_policy,
            name=part("sample_patches"),
        )
        self.masking = MaskAttention(receptive_field, data_format=self.data_format, name=part("mask_attention"))
        self.regularizer = (
            None
            if attention_regularizer is None
            else ActivityRegularizer(attention_regularizer, name=part("activity_regularizer"))
        )
        self.supports_jit = False

    def __call__(self, inputs: Any, rng: Any = None, training: bool | None = None) -> list[Any]:
        inputs = with_handles(inputs)
        if not is_symbolic(*keras.tree.flatten(inputs)):
            told = {} if training is None else {"training": training}  # None would hide what the outer model is told
            outputs: list[Any] = super().__call__(inputs, rng=rng, **told)
            return outputs
        if training is not None:
            raise ValueError(f"training: is what the model is called with, got {training} while it is put together")
        return self.call(inputs, rng)

    def build(self, input_shape: Any) -> None:
        # The networks build themselves when they are called: only then is the shape of the patches settled.
        self.built = True

    def call(self, inputs: Any, rng: Any = None, training: bool | None = None) -> list[Any]:  # Keras passes training on
        if not isinstance(inputs, (list, tuple)) or len(inputs) not in (2, 3):
            raise ValueError(f"inputs: must be [x_low, x_high], or low_shapes too after sources, got {inputs!r}")
        x_low, x_high, *low_shapes = inputs
        check_inputs(x_low, x_high, low_shapes[0] if low_shapes else None, to_channel_axis(self.data_format))
        attention = self.attention(x_low)
        if low_shapes:
            attention = self.masking([x_low, x_high, attention, *low_shapes])
        if self.regularizer is not None:
            attention = self.regularizer(attention)
        patches, probabilities, *more = self.sampler([x_low, x_high, attention, *low_shapes], rng=rng)
        features = self._look_at(patches, len(x_low.shape) - 2)
        threshold = more[2:]  # after the indices and the origins
        return [self.expectation([features, probabilities, *threshold]), attention, patches]

    def _look_at(self, patches: Any, axes: int) -> Any:
        """Features (B, n, ...) of patches (B, n, [S,] *patch, C): the scales are stacked on the channel axis."""
        n, sizes = self.sampler.n_patches, ops.known_shape(patches)[2:]
        shape = [size for size in sizes if size is not None]
        if len(shape) < len(sizes):
            raise ValueError(f"x_high: the number of channels must be known, got patches {tuple(patches.shape)}")
        if len(shape) > axes + 1:
            scales, *shape = shape
            if self.data_format == "channels_first":
                shape[0] *= scales
            else:
                order = (1, *range(3, 3 + axes), 2, 3 + axes)
                patches = _apply(keras.layers.Permute(order, dtype=self.dtype_policy), patches)
                shape[-1] *= scales
        _check_feature(self.feature, tuple(shape))
        features = self.feature(_apply(TotalReshape((-1, *shape)), patches))
        returned = ops.known_shape(features)[1:]
        rest = [size for size in returned if size is not None]
        if len(rest) < len(returned):
            raise ValueError(
                f"feature: the network must return a shape that is known but for the batch, got {returned}"
            )
        return _apply(TotalReshape((-1, n, *rest)), features)

    def get_config(self) -> dict[str, Any]:
        sampler = self.sampler.get_config()
        names = ("patch_size", "n_patches", "replace", "receptive_field", "scales", "padding", "fill", "mean", "std",
                 "inference", "data_format", "seed", "validate")  # fmt: skip
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{key: sampler[key] for key in names},
            "attention": serialize(self.attention),
            "feature": serialize(self.feature),
            "attention_regularizer": None if self.regularizer is None else serialize(self.regularizer.regularizer),
            "estimator": self.expectation.estimator,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AttentionSampling:
        parts = ("attention", "feature", "attention_regularizer")
        return cls(**{**config, **{key: keras.saving.deserialize_keras_object(config[key]) for key in parts}})


attention_sampling = AttentionSampling
"""The reference library's name for it."""


def _apply(layer: Any, x: Any) -> Any:
    """A layer without state, which a functional model keeps; a plain operation of it would not survive an .h5 file."""
    return layer(x) if is_symbolic(x) else layer.call(x)


def _check_feature(feature: Any, patch: tuple[int, ...]) -> None:
    """Refuse patches of other sizes than a model was made for, which Keras does in words that name no argument."""
    shape = getattr(feature, "input_shape", None)
    if not isinstance(feature, keras.Model) or not isinstance(shape, tuple) or len(shape) != len(patch) + 1:
        return
    if any(takes not in (None, size) for takes, size in zip(shape[1:], patch, strict=True)):
        raise ValueError(
            f"feature: takes {shape[1:]}, but the patches are {patch}: leave its input_shape out or give it the patch's"
        )


def _infer_patch_size(feature: Any, data_format: str) -> tuple[int, ...]:
    """The spatial sizes of what a feature layer takes."""
    how = "give patch_size, or a feature layer that knows its input's shape (keras.Input as its first layer)"
    layer = isinstance(feature, keras.layers.Layer)
    shape = getattr(feature, "input_shape", None) or ((layer and feature.get_build_config()) or {}).get("input_shape")
    if not layer or not isinstance(shape, (tuple, list)) or len(shape) < 3:
        what = f"{feature.name!r}, which has input shape {shape}" if layer else "a callable that is no Keras layer"
        raise ValueError(f"patch_size: cannot be inferred from {what}; {how}")
    sizes = list(shape[1:])
    sizes.pop(0 if data_format == "channels_first" else -1)
    if None in sizes:
        raise ValueError(
            f"patch_size: cannot be inferred from input shape {tuple(shape)}, which has unknown sizes; {how}"
        )
    return tuple(sizes)
