"""The reference library's builder: a step at a time instead of one call of `attention_sampling`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from . import ops
from ._arguments import Sizes, to_axes, to_bool, to_channel_axis, to_count, to_data_format, to_field, to_option
from .data import FromTensors, MultiResolutionBatch
from .functional import draw, estimate
from .sampling import has_channels, to_unbiased


class ATSOutput(NamedTuple):
    """What `ATSBuilder.get` returns: what has to be fed, the expected features (B, ...), the targets, what the attention
    network returned, and the patches (B, n, *patch, C)."""

    inputs: Any = None
    outputs: Any = None
    targets: Any = None
    attention: Any = None
    patches: Any = None


class ATSBuilder:
    """Collects what attention sampling is made of. Every method but `get` returns the builder.

    ``ATSBuilder().from_tensors([x_low, x_high], y).attention(fn).feature(fn).patch_size((32, 32)).n_patches(10).get()``

    With tensors (also inside tf.function) it computes, drawing from the backend's generator; with keras.Input it adds
    layers to a functional model, with `SampleCells` drawing.
    """

    default_estimator = "murthy"

    def __init__(self) -> None:
        self._batch: MultiResolutionBatch | None = None
        self._attention: Callable[[Any], Any] | None = None
        self._feature: Callable[[Any], Any] | None = None
        self._patch_size: int | tuple[int, ...] | None = None
        self._n_patches: int | None = None
        self._replace = False
        self._receptive_field: int | tuple[int, ...] = 0
        self._estimator: str | None = None

    def from_batch(self, batch: MultiResolutionBatch) -> ATSBuilder:
        """Take data and patches from a `MultiResolutionBatch` (level 0 low, level 1 high)."""
        if not isinstance(batch, MultiResolutionBatch):
            raise TypeError(f"batch: must be a MultiResolutionBatch, got {batch!r}")
        self._batch = batch
        return self

    def from_tensors(self, xs: Sequence[Any], y: Any) -> ATSBuilder:
        """Take data and patches from [x_low, x_high], and targets that are handed on."""
        return self.from_batch(FromTensors(xs, y))

    def attention(self, attention: Callable[[Any], Any]) -> ATSBuilder:
        """The attention network: x_low -> (B, *grid), or with a channel axis of size 1."""
        self._attention = attention
        return self

    def attention_receptive_field(self, receptive_field: Sizes) -> ATSBuilder:
        """Its receptive field, in pixels of x_low; 0 if it pads."""
        self._receptive_field = to_field(receptive_field)
        return self

    def feature(self, feature: Callable[[Any], Any]) -> ATSBuilder:
        """The feature network: (B * n, *patch, C) -> (B * n, ...)."""
        self._feature = feature
        return self

    def patch_size(self, patch_size: Sizes) -> ATSBuilder:
        """One size for every spatial axis, or one each, in pixels of x_high."""
        self._patch_size = to_option("patch_size", patch_size, 1)
        return self

    def n_patches(self, n_patches: int) -> ATSBuilder:
        """How many patches of each image."""
        self._n_patches = to_count("n_patches", n_patches)
        return self

    def sample_with(self, *, replacement: bool) -> ATSBuilder:
        """Sample with replacement or without."""
        self._replace = to_bool("replacement", replacement)
        return self

    def sample_with_replacement(self) -> ATSBuilder:
        return self.sample_with(replacement=True)

    def sample_without_replacement(self) -> ATSBuilder:
        return self.sample_with(replacement=False)

    def estimator(self, estimator: str) -> ATSBuilder:
        """As for `Expectation`, unbiased; "iid" with replacement and `default_estimator` without, unless told."""
        self._estimator = to_unbiased(estimator)
        return self

    def get(self) -> ATSOutput:
        """Sample, cut, look and estimate.

        Raises:
            ValueError: something was not given; "iid" without replacement or another estimator with it; an attention
                that is no map over x_low.
        """
        batch = _given("batch", self._batch, "from_tensors() or from_batch()")
        network, feature = _given("attention", self._attention), _given("feature", self._feature)
        patch_size, n = _given("patch_size", self._patch_size), _given("n_patches", self._n_patches)
        estimator = self._estimator or ("iid" if self._replace else self.default_estimator)
        if (estimator == "iid") != self._replace:
            raise ValueError(f"estimator: 'iid' is for sampling with replacement and only it is, got {estimator!r}")
        x_low = batch.data(0)
        channel_axis = to_channel_axis(to_data_format(batch.data_format))
        attention = network(x_low)
        map_ = keras.ops.squeeze(attention, channel_axis) if has_channels(attention, x_low, channel_axis) else attention
        samples, probabilities, threshold = draw(map_, n, self._replace, logits=False)
        axes = len(map_.shape) - 1
        field = to_axes("receptive_field", self._receptive_field, axes)
        sizes = _sizes(x_low, channel_axis)
        seen = [None if size is None else size - f for size, f in zip(sizes, field, strict=True)]
        offsets = keras.ops.cast(keras.ops.zeros_like(samples), "float32")
        offsets = offsets + keras.ops.convert_to_tensor([f / 2 for f in field], dtype="float32")
        patches, _ = batch.patches(
            samples, offsets, _sizes(map_, None), seen, to_axes("patch_size", patch_size, axes), 0, 1
        )
        features = feature(keras.ops.reshape(patches, (-1, *ops.known_shape(patches)[2:])))
        features = keras.ops.reshape(features, (-1, n, *ops.known_shape(features)[1:]))
        outputs = estimate(features, probabilities, estimator, threshold)
        return ATSOutput(batch.inputs(), outputs, batch.targets(), attention, patches)


def _given(name: str, value: Any, how: str | None = None) -> Any:
    if value is None:
        raise ValueError(f"{name}: is missing; call {how or name + '()'} before get()")
    return value


def _sizes(tensor: Any, channel_axis: int | None) -> list[Any]:
    """Sizes of the spatial axes: integers, tensors where they are not known yet, None in a functional model."""
    sizes = list(keras.ops.shape(tensor))
    if channel_axis is not None:
        sizes.pop(channel_axis)
    return sizes[1:]
