"""Functions on tensors. The same as in `ats_core`, with gradients; see docs/estimators.md for the mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import tensorflow as tf

from ats_core._arguments import to_bool, to_float, to_name

from . import _ops, _validate
from ._arguments import (
    Channels,
    Rng,
    Shape,
    Sizes,
    Tensor,
    check_rank,
    count_axes,
    is_channels_first,
    is_single,
    on_host,
    to_channels,
    to_dtype,
    to_int,
    to_integers,
    to_rng,
    to_scales,
    to_shape,
    to_sizes,
    to_tensor,
)

# Conditions here are about Python's values. AutoGraph would make tensors of some, and fail to read the operations' code.
plain_python = tf.autograph.experimental.do_not_convert


class Samples(NamedTuple):
    """What `sample` and `topk` return.

    Attributes:
        indices: (B, n) int64, flat cells in the order drawn.
        attention: (B, n), their weights over the row's total: float64 for a float64 map, float32 otherwise.
            Differentiable with respect to the map.
        threshold: (B,), as attention: the time at which the first cell not drawn would ring in the exponential race
            with a total rate of 1; inf where no cell is left, with `replace`, and from `topk`. Not differentiable.
    """

    indices: Tensor
    attention: Tensor
    threshold: Tensor


@plain_python
def sample(
    attention: Tensor,
    n: SupportsIndex,
    *,
    replace: bool = False,
    logits: bool = False,
    rng: Rng = None,
    validate: bool = False,
) -> Samples:
    """Draw n cells a row, one after the other, each with probability proportional to its weight among those left.

    Args:
        attention: (B, *grid) float16, bfloat16, float32 or float64. Weights: finite, at least 0, of any scale. With
            `logits` log-weights: finite or -inf.
        n: cells to draw, a Python int; without `replace` at most the cells of positive weight.
        replace: draw among all cells every time.
        logits: `attention` holds logarithms of weights.
        rng: seed, (seed, offset), or an integer tensor of one or both. Row b draws from stream (seed, offset + b): the same
            rng gives the same cells from NumPy and PyTorch, with any number of threads and for any split of the batch
            (row b alone: offset + b). None draws both from TensorFlow's generator, so that tf.random.set_seed holds.
            Negative ones are seeds and offsets like any other; offset + b wraps around at 2**64.
        validate: for a GPU, where values cannot be checked without waiting for it: wait, and raise what is raised on the
            CPU. Without it a row that cannot be drawn from has indices -1, attention 0 and threshold NaN. On the CPU
            values are always checked.

    Returns:
        Samples. The gradient of `Samples.attention` is exact, as that of a softmax at the indices for logits. The
        indices are constants to the tape: how they depend on the map is what the estimators of `expectation` add.

    Raises:
        tf.errors.InvalidArgumentError: a wrong shape, dtype or n; a negative, NaN or infinite weight; fewer than n cells
            of positive weight. (ValueError where a graph is made and the shapes say it already.)
        TypeError: no tensor; an rng that is none of the above. ValueError: one that does not fit into 64 bits.
    """
    attention = to_tensor("attention", attention)
    return _draw(
        _ops.sample,
        attention,
        to_rng(rng),
        n=to_int("n", n),
        replace=to_bool("replace", replace),
        logits=to_bool("logits", logits),
        validate=to_bool("validate", validate),
    )


@plain_python
def topk(attention: Tensor, n: SupportsIndex, *, logits: bool = False, validate: bool = False) -> Samples:
    """The n largest cells a row, largest first, ties to the lower index: deterministic inference.

    Args and errors as for `sample`; cells of weight 0 may be taken. Use it with estimator="normalized".
    """
    attention = to_tensor("attention", attention)
    return _draw(
        _ops.topk,
        attention,
        n=to_int("n", n),
        logits=to_bool("logits", logits),
        validate=to_bool("validate", validate),
    )


@plain_python
def patch_origins(
    indices: Tensor,
    grid: Shape,
    image_shape: Shape,
    patch_size: Sizes,
    *,
    low_shape: Shape | None = None,
    receptive_field: Sizes = 0,
    validate: bool = False,
) -> Tensor:
    """Where the patches of cells begin in the full-resolution image.

    Per axis ``scale = image / low``, ``step = (low - receptive_field) * scale / grid`` and ``origin =
    round_half_even(receptive_field / 2 * scale + index * step + step / 2 - patch / 2)``: the patch has the centre of
    what the cell saw.

    Args:
        indices: (B, n) int64 (or narrower integers), flat cells of the grid.
        grid: D = 1..3 sizes of the attention map, or a tensor of them (``tf.shape(attention)[1:]``).
        image_shape: D sizes of the image that patches are cut from, or a tensor of them.
        patch_size: one size for every axis, or D.
        low_shape: D sizes of the image that the attention network saw, or a tensor of them; the grid's by default.
        receptive_field: of the attention network without padding, in pixels of that image; 0 with padding.
        validate: as for `sample`. Without it, on a GPU, what is no cell of the grid lies at -2**63 on every axis, where
            patches hold padding alone.

    Returns:
        (B, n, D) int64. Patches may begin outside the image.

    Raises:
        tf.errors.InvalidArgumentError: a wrong dtype, shape or size, an index outside the grid.
        ValueError: as many values as there are axes were expected. TypeError: no tensor; sizes that are no
            integers.
    """
    axes = count_axes("grid", grid)
    if not 1 <= axes <= 3:
        raise ValueError(f"grid: must have 1 to 3 axes, got {axes}")
    cells = to_shape("grid", grid, axes)
    arguments = (
        to_integers("indices", indices),
        cells,
        cells if low_shape is None else to_shape("low_shape", low_shape, axes),
        to_shape("image_shape", image_shape, axes),
    )
    options = {
        "patch_size": to_sizes("patch_size", patch_size, axes),
        "receptive_field": to_sizes("receptive_field", receptive_field, axes),
    }
    validate = to_bool("validate", validate)
    origins = _ops.locate(*arguments, **options)
    if validate:
        bad = tf.equal(origins, tf.int64.min)
        origins = _validate.unless(bad, origins, lambda: _validate.on_cpu(_ops.locate, *arguments, **options))
    return origins


@plain_python
def extract_patches(
    image: Tensor | Sequence[Tensor],
    origins: Tensor,
    patch_size: Sizes,
    *,
    scales: Sequence[SupportsIndex] | None = None,
    padding: str = "constant",
    fill: float = 0.0,
    dtype: Any = None,
    mean: Channels = None,
    std: Channels = None,
    data_format: str = "channels_last",
) -> Tensor:
    """Cut patches at a different place for each image of a batch, converted and normalised in the same pass.

    Args:
        image: (B, *spatial, C), or (B, C, *spatial) with data_format="channels_first"; never copied. uint8, int16,
            uint16, float16, bfloat16, float32 or float64. Or a list of them, a pyramid with the finest first: the patch
            has patch_size pixels of each level, around the same centre.
        origins: (B, n, D) int64 (or narrower integers), in pixels of the (finest) image; any value.
        patch_size: one size for every axis, or D.
        scales: scale s covers s * patch_size pixels around the same centre and averages s**D pixels into one.
        padding: outside the image: "constant" (`fill`), "edge" (the nearest pixel) or "reflect" (mirrored, the border
            not repeated).
        fill: in units of the image; normalised as a pixel would be.
        dtype: of the patches: the image's, or a floating one. By default the image's, but float32 for an integer image
            with mean or std.
        mean, std: a number or one a channel, in a sequence or a tensor: (x - mean) / std.
        data_format: "channels_first" or "channels_last", of image and patches.

    Returns:
        (B, n, [S,] *patch, C) or (B, n, [S,] C, *patch). The axis S is there with `scales` or a pyramid.
        Differentiable with respect to a floating image.

    Raises:
        tf.errors.InvalidArgumentError: a wrong dtype, shape or value.
        ValueError: as many values or axes as there are axes or channels were expected; an unknown data_format; scales
            and a pyramid at once; levels of a pyramid that do not have the same batch and channels.
        TypeError: an argument of a type that means nothing here.
    """
    channels_first = is_channels_first(data_format)
    origins = to_integers("origins", origins)
    pyramid = isinstance(image, (list, tuple)) and all(map(_is_array, image))
    levels = [to_tensor(f"image[{i}]", x) for i, x in enumerate(image)] if pyramid else [to_tensor("image", image)]
    if len(levels) == 0:
        raise ValueError("image: a pyramid needs at least one level")
    axes = _spatial_axes(origins, levels[0], patch_size)
    patch = to_sizes("patch_size", patch_size, axes)
    options = {
        "padding": to_name(padding),
        "fill": to_float("fill", fill),
        "dtype": to_dtype(dtype) or _patches_dtype(levels[0], mean, std),
        "mean": mean,
        "std": std,
        "channels_first": channels_first,
    }
    if not pyramid:
        check_rank("image", levels[0], axes, channels_first)
        return _extract(levels[0], origins, patch, scales=to_scales(scales), **options)
    if scales is not None:
        raise ValueError("scales: a pyramid has one scale a level already; leave scales out")
    _check_pyramid(levels, axes, channels_first)
    first = 2 if channels_first else 1
    patches: list[Tensor] = []
    for level in levels:
        there = origins
        if patches:
            there = _origins_in_level(origins, patch, *(tf.shape(x)[first : first + axes] for x in (levels[0], level)))
        patches.append(_extract(level, there, patch, scales=[], **options))
    return tf.stack(patches, 2)


@plain_python
def extract_patches_backward(
    grad: Tensor,
    origins: Tensor,
    image_shape: Shape,
    patch_size: Sizes,
    *,
    scales: Sequence[SupportsIndex] | None = None,
    padding: str = "constant",
    dtype: Any = None,
    std: Channels = None,
    data_format: str = "channels_last",
) -> Tensor:
    """The gradient of `extract_patches` at the image, which the tape uses.

    Args:
        grad: gradient at the patches, floating, of their shape.
        image_shape: the whole shape of the image, in the order of data_format, or a tensor of it.
        dtype: of the result, the image's; grad's by default.
        Others as for `extract_patches` (mean and fill do not matter here).

    Returns:
        image_shape, dtype.

    Raises:
        tf.errors.InvalidArgumentError, ValueError, TypeError: as `extract_patches`.
    """
    channels_first = is_channels_first(data_format)
    origins, grad = to_integers("origins", origins), to_tensor("grad", grad)
    result = to_dtype(dtype) or grad.dtype
    if not result.is_floating:
        raise ValueError(f"dtype: must be floating, got {result}")
    rank = count_axes("image_shape", image_shape)
    axes = _axes_of_origins(origins) or rank - 2
    if rank != axes + 2 or axes not in (1, 2, 3):
        raise ValueError(f"image_shape: must have {axes + 2} sizes: batch, channels and {axes} spatial, got {rank}")
    if grad.shape.rank not in (None, rank + 1 + (scales is not None)):
        layout = f"(B, n, {'S, ' * (scales is not None)}{'C, *patch' if channels_first else '*patch, C'})"
        raise ValueError(f"grad: must be {layout} with {axes} spatial axes, got {tuple(grad.shape)}")
    channels = 2 + (scales is not None) if channels_first else -1
    return _ops.extract_patches_grad(
        grad,
        origins,
        to_shape("image_shape", image_shape, rank),
        to_channels("std", std, grad, channels),
        patch_size=to_sizes("patch_size", patch_size, axes),
        scales=to_scales(scales),
        padding=to_name(padding),
        channels_first=channels_first,
        dtype=result,
    )


@plain_python
def expectation(
    features: Tensor,
    attention: Tensor,
    *,
    estimator: str = "murthy",
    threshold: Tensor | None = None,
    weights: Tensor | None = None,
    validate: bool = False,
) -> Tensor:
    """Estimate sum_k a_k f_k over all cells from the n that were sampled.

    Args:
        features: (B, n, ...) floating.
        attention: (B, n) float32 or float64, in the order drawn: `Samples.attention`.
        estimator: "murthy" (Murthy 1957, with the baseline of Kool et al., ICLR 2020), "des_raj" (Des Raj 1956, the
            attention sampling paper's), "horvitz_thompson" (needs threshold; Vieira 2017), "iid" (for replace=True), or
            "normalized" (attention over its sum, for `topk`). All but the last are unbiased.
        threshold: (B,), `Samples.threshold`; only "horvitz_thompson" reads it.
        weights: (n,) with sum 1, only for "des_raj"; 1/n each by default.
        validate: as for `sample`. Without it, on a GPU, what is estimated from an attention or a threshold that the
            estimator does not take is NaN.

    Returns:
        (B, ...) with the dtype of features. The gradient with respect to attention is the unbiased score-function one:
        right at the logits of a softmax, where a shift of all of it, such as a baseline makes, vanishes.

    Raises:
        tf.errors.InvalidArgumentError: a wrong shape, dtype or estimator, a missing threshold. TypeError: no tensor.
    """
    features, attention = to_tensor("features", features), to_tensor("attention", attention)
    optional = _optional(attention, threshold, weights)
    options = {"estimator": to_name(estimator)}
    validate = to_bool("validate", validate)
    expected = _ops.expectation(features, attention, *optional, **options)
    if validate:  # the features are not what can be bad (and a graph does not compute what is empty)
        zeros = tf.zeros_like(attention, features.dtype)[..., None]
        expected = _validate.after(_validate.on_cpu(_ops.expectation, zeros, attention, *optional, **options), expected)
    return expected


@plain_python
def expectation_backward(
    grad: Tensor,
    features: Tensor,
    attention: Tensor,
    *,
    estimator: str = "murthy",
    threshold: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of `expectation` at features and attention, which the tape uses, for grad (B, ...) at its result."""
    grad, features = to_tensor("grad", grad), to_tensor("features", features)
    attention = to_tensor("attention", attention)
    d_features, d_attention = _ops.expectation_grad(
        grad, features, attention, *_optional(attention, threshold, weights), estimator=to_name(estimator)
    )
    return d_features, d_attention


@plain_python
def estimator_arrays(
    attention: Tensor, estimator: str = "murthy", *, threshold: Tensor | None = None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What an estimator is made of: c (B, n) and M (B, n, n), as attention. Not differentiable.

    ``expectation = sum_i c_i f_i`` and ``d_attention_i = sum_j M_ij <f_j, grad>``. Args and errors as for `expectation`.
    """
    attention = to_tensor("attention", attention)
    c, m = _ops.estimator_arrays(attention, *_optional(attention, threshold, weights), estimator=to_name(estimator))
    return c, m


def _draw(operation: Any, attention: Tensor, *rng: Tensor, validate: bool, **options: Any) -> Samples:
    arguments, options = (attention, *rng), {**options, "R": _real(attention)}
    probabilities, indices, threshold, log_mass = operation(*arguments, **options)
    draws = Samples(indices, probabilities, threshold)
    if validate:
        bad = tf.math.is_nan(log_mass)
        check = _validate.unless(bad, log_mass, lambda: _validate.on_cpu(operation, *arguments, **options)[3])
        draws = _validate.after(check, draws)
    return draws


def _real(attention: Tensor) -> Any:
    """The dtype of probabilities and threshold."""
    return tf.float64 if attention.dtype == tf.float64 else tf.float32


def _optional(attention: Tensor, threshold: Tensor | None, weights: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs that may be left out, as the lists of one or none that the operations take."""
    given = {"threshold": threshold, "weights": weights}
    lists = [[] if x is None else [to_tensor(name, x, attention.dtype)] for name, x in given.items()]
    return lists[0], lists[1]


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _spatial_axes(origins: Tensor, image: Tensor, patch_size: Sizes) -> int:
    """How many spatial axes there are, from whatever is known while a graph is made."""
    axes = _axes_of_origins(origins)
    if axes is not None:
        return axes
    if image.shape.rank is not None:
        if image.shape.rank not in (3, 4, 5):
            raise ValueError(f"image: must have 1, 2 or 3 spatial axes, got {tuple(image.shape)}")
        return int(image.shape.rank) - 2
    axes = 0 if is_single(patch_size) else len(to_sizes("patch_size", patch_size))
    if axes not in (1, 2, 3):
        raise ValueError(
            f"patch_size: must have 1, 2 or 3 values, one a spatial axis (which neither image nor origins tells here), "
            f"got {patch_size!r}"
        )
    return axes


def _axes_of_origins(origins: Tensor) -> int | None:
    if origins.shape.rank is None:
        return None
    if origins.shape.rank != 3 or origins.shape[2] not in (None, 1, 2, 3):
        shape = tuple(origins.shape)
        raise ValueError(f"origins: must be (B, n, D) with D = 1, 2 or 3 spatial axes, got {shape}")
    return None if origins.shape[2] is None else int(origins.shape[2])


def _check_pyramid(levels: Sequence[Tensor], axes: int, channels_first: bool) -> None:
    """One batch, one number of channels, that many spatial axes."""
    for i, level in enumerate(levels):
        check_rank(f"image[{i}]", level, axes, channels_first)
        ends = [
            [x.shape[0], x.shape[1 if channels_first else -1]] if x.shape.rank else [None, None]
            for x in (level, levels[0])
        ]
        if not tf.TensorShape(ends[0]).is_compatible_with(ends[1]):
            raise ValueError(
                f"image[{i}]: batch and channels must be those of image[0], got {tuple(level.shape)} and "
                f"{tuple(levels[0].shape)}"
            )


def _extract(
    image: Tensor,
    origins: Tensor,
    patch: list[int],
    *,
    scales: list[int],
    padding: str,
    fill: float,
    dtype: Any,
    mean: Channels,
    std: Channels,
    channels_first: bool,
) -> Tensor:
    channels = 1 if channels_first else -1
    with on_host():
        outside = tf.constant([fill], tf.float64)
    return _ops.extract_patches(
        image,
        origins,
        outside,
        to_channels("mean", mean, image, channels),
        to_channels("std", std, image, channels),
        patch_size=patch,
        scales=scales,
        padding=padding,
        channels_first=channels_first,
        dtype=dtype,
    )


def _patches_dtype(image: Tensor, mean: Channels, std: Channels) -> Any:
    """That of the image, but for an integer image that is normalised."""
    normalised = mean is not None or std is not None
    return tf.float32 if normalised and not image.dtype.is_floating else image.dtype


def _origins_in_level(origins: Tensor, patch: Sequence[int], finest: Tensor, level: Tensor) -> Tensor:
    """Where patches around the same centres begin in a coarser level of a pyramid, rounded half to even."""
    with on_host():
        sizes = tf.cast(tf.stack([finest, level]), tf.float64)
        tf.debugging.assert_positive(sizes, "image: the levels of a pyramid must not be empty")
    half = tf.constant(patch, tf.float64) / 2
    mapped = tf.round((tf.cast(origins, tf.float64) + half) / (sizes[0] / sizes[1]) - half)
    return tf.cast(tf.clip_by_value(mapped, -(2.0**62), 2.0**62), tf.int64)  # far outside stays far outside
