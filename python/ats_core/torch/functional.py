# mypy: no-warn-return-any
"""Functions on tensors. The same as in `ats_core`, with gradients; see docs/estimators.md for the mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from ats_core.sources import SourceBatch

from . import _ops, _validate
from ._arguments import (
    Channels,
    Rng,
    Sizes,
    check_dtype,
    check_images,
    check_tensor,
    is_channels_first,
    is_single,
    to_channels,
    to_indices,
    to_origins,
    to_rng,
    to_scales,
    to_sizes,
)
from .sources import check_sources, is_sources, read_pixels


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


# So that an exported program that returns it can be saved.
_register_namedtuple(Samples, serialized_type_name="ats_core.torch.Samples")


def sample(
    attention: Tensor,
    n: int,
    *,
    replace: bool = False,
    logits: bool = False,
    rng: Rng = None,
    validate: bool = False,
) -> Samples:
    """Draw n cells a row, one after the other, each with probability proportional to its weight among those left.

    Args:
        attention: (B, *grid) float16, bfloat16, float32 or float64. Weights: finite, at least 0, of any scale. With
            `logits` log-weights: finite or -inf. Under autocast it is taken as float32.
        n: cells to draw; without `replace` at most the cells of positive weight.
        replace: draw among all cells every time.
        logits: `attention` holds logarithms of weights.
        rng: seed, (seed, offset), or an integer tensor of one or both. Row b draws from stream (seed, offset + b): the same
            rng gives the same cells from NumPy, on any device, with any number of threads and for any split of the
            batch (row b alone: offset + b). None draws both from the generator of PyTorch on the device of `attention`, so
            that torch.manual_seed holds. Negative ones are seeds and offsets like any other; offset + b wraps around at
            2**64. For a CUDA graph that draws anew in every replay: None, or a tensor on the device.
        validate: for CUDA, where values cannot be checked without waiting for the device: wait, and raise what is raised
            on the CPU. Without it a row that cannot be drawn from has indices -1, attention 0 and threshold NaN. On the
            CPU values are always checked. It ends a graph of torch.compile, and cannot be recorded in a CUDA graph.

    Returns:
        Samples. The gradient of `Samples.attention` is exact, as that of a softmax at the indices for logits. The
        indices are constants to autograd: how they depend on the map is what the estimators of `expectation` add.

    Raises:
        RuntimeError: a wrong shape, dtype or n; a negative, NaN or infinite weight; fewer than n cells of positive weight.
        TypeError: no tensor; an rng that is none of the above. ValueError: one that does not fit into 64 bits.
    """
    check_tensor("attention", attention)
    pair = to_rng(rng, attention)
    probabilities, indices, threshold, log_mass = _ops.direct(_ops.sample)(attention, pair, n, replace, logits)
    if validate and attention.is_cuda:
        _validate.draws(log_mass, _ops.sample, attention, pair, n, replace, logits)
    return Samples(indices, probabilities, threshold)


def topk(attention: Tensor, n: int, *, logits: bool = False, validate: bool = False) -> Samples:
    """The n largest cells a row, largest first, ties to the lower index: deterministic inference.

    Args and errors as for `sample`; cells of weight 0 may be taken. Use it with estimator="normalized".
    """
    check_tensor("attention", attention)
    probabilities, indices, threshold, log_mass = _ops.direct(_ops.topk)(attention, n, logits)
    if validate and attention.is_cuda:
        _validate.draws(log_mass, _ops.topk, attention, n, logits)
    return Samples(indices, probabilities, threshold)


def patch_origins(
    indices: Tensor,
    grid: Sizes,
    image_shape: Sizes,
    patch_size: Sizes,
    *,
    low_shape: Sizes | None = None,
    receptive_field: Sizes = 0,
    validate: bool = False,
) -> Tensor:
    """Where the patches of cells begin in the full-resolution image.

    Per axis ``scale = image / low``, ``step = (low - receptive_field) * scale / grid`` and ``origin =
    round_half_even(receptive_field / 2 * scale + index * step + step / 2 - patch / 2)``: the patch has the centre of
    what the cell saw.

    Args:
        indices: (B, n) int64 (or narrower integers), flat cells of the grid.
        grid: D = 1..3 sizes of the attention map.
        image_shape: D sizes of the image that patches are cut from.
        patch_size: one size for every axis, or D.
        low_shape: D sizes of the image that the attention network saw; the grid's by default.
        receptive_field: of the attention network without padding, in pixels of that image; 0 with padding.
        validate: as for `sample`. Without it, on CUDA, what is no cell of the grid lies at -2**63 on every axis, where
            patches hold padding alone.

    Returns:
        (B, n, D) int64. Patches may begin outside the image.

    Raises:
        RuntimeError: a wrong dtype, shape or size, an index outside the grid.
        ValueError: as many values as there are axes were expected. TypeError: no tensor; sizes that are no
            integers.
    """
    cells = to_sizes("grid", grid, 1 if is_single(grid) else None)
    axes = len(cells)
    if not 1 <= axes <= 3:
        raise ValueError(f"grid: must have 1 to 3 axes, got {axes}")
    arguments = (
        to_indices(indices),
        cells,
        cells if low_shape is None else to_sizes("low_shape", low_shape, axes),
        to_sizes("image_shape", image_shape, axes),
        to_sizes("patch_size", patch_size, axes),
        to_sizes("receptive_field", receptive_field, axes),
    )
    origins = _ops.direct(_ops.locate)(*arguments)
    if validate and indices.is_cuda:
        _validate.origins(origins, *arguments)
    return origins


def extract_patches(
    image: Tensor | Sequence[Tensor] | SourceBatch,
    origins: Tensor,
    patch_size: Sizes,
    *,
    scales: Sequence[SupportsIndex] | None = None,
    padding: str = "constant",
    fill: float = 0.0,
    dtype: torch.dtype | None = None,
    mean: Channels = None,
    std: Channels = None,
    data_format: str = "channels_first",
) -> Tensor:
    """Cut patches at a different place for each image of a batch, converted and normalised in the same pass.

    Args:
        image: (B, C, *spatial), or (B, *spatial, C) with data_format="channels_last"; any strides, never copied. uint8,
            int16, uint16, float16, bfloat16, float32 or float64. Or a list of them, a pyramid with the finest first: the
            patch has patch_size pixels of each level, around the same centre. Or a `SourceBatch` of sources of
            different sizes, of which only the patches are read, onto the device of origins; no gradient reaches it.
        origins: (B, n, D) int64 (or narrower integers), in pixels of the (finest) image; any value.
        patch_size: one size for every axis, or D.
        scales: scale s covers s * patch_size pixels around the same centre and averages s**D pixels into one. Of a
            SourceBatch it is read from the level with this downsample (`SourceBatch.levels_of`), with the law of a pyramid.
        padding: outside the image: "constant" (`fill`), "edge" (the nearest pixel) or "reflect" (mirrored, the border
            not repeated).
        fill: in units of the image; normalised as a pixel would be.
        dtype: of the patches: the image's, or a floating one. By default the image's, but float32 for an integer image
            with mean or std.
        mean, std: a number or one a channel, in a sequence or a tensor: (x - mean) / std.
        data_format: "channels_first" or "channels_last", of image and patches.

    Returns:
        (B, n, [S,] C, *patch) or (B, n, [S,] *patch, C), contiguous. The axis S is there with `scales` or a pyramid.
        Differentiable with respect to a floating image.

    Raises:
        RuntimeError: a wrong dtype, shape or value.
        ValueError: as many values or axes as there are axes or channels were expected; an unknown data_format; scales
            and a pyramid at once; levels of a pyramid that do not have the same batch and channels.
        TypeError: an argument of a type that means nothing here.
        SourceError: a source is broken or gone.
    """
    channels_first = is_channels_first(data_format)
    origins = to_origins(origins)
    axes = origins.shape[2]
    check_dtype(dtype)
    patch = to_sizes("patch_size", patch_size, axes)
    if not isinstance(image, Tensor) and is_sources(image):
        return _extract_read(image, origins, patch, scales, padding, fill, dtype, mean, std, channels_first)
    check_images("image", image, axes, channels_first)
    if isinstance(image, Tensor):
        return _extract(image, origins, patch, to_scales(scales), padding, fill, dtype, mean, std, channels_first)
    if scales is not None:
        raise ValueError("scales: a pyramid has one scale a level already; leave scales out")
    first = 2 if channels_first else 1
    patches: list[Tensor] = []
    for level in image:
        there = _origins_in_level(origins, patch, image[0].shape[first:], level.shape[first:]) if patches else origins
        patches.append(_extract(level, there, patch, (), padding, fill, dtype, mean, std, channels_first))
    return torch.stack(patches, 2)


def extract_patches_backward(
    grad: Tensor,
    origins: Tensor,
    image_shape: Sequence[SupportsIndex],
    patch_size: Sizes,
    *,
    scales: Sequence[SupportsIndex] | None = None,
    padding: str = "constant",
    dtype: torch.dtype | None = None,
    std: Channels = None,
    data_format: str = "channels_first",
) -> Tensor:
    """The gradient of `extract_patches` at the image, which autograd uses.

    Args:
        grad: gradient at the patches, floating, of their shape.
        image_shape: the whole shape of the image, in the order of data_format.
        dtype: of the result, the image's; grad's by default.
        Others as for `extract_patches` (mean and fill do not matter here).

    Returns:
        image_shape, dtype.

    Raises:
        RuntimeError, ValueError, TypeError: as `extract_patches`.
    """
    channels_first = is_channels_first(data_format)
    origins = to_origins(origins)
    axes = origins.shape[2]
    check_tensor("grad", grad)
    check_dtype(dtype)
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype: must be floating, got {dtype}")
    shape = to_sizes("image_shape", image_shape)
    if len(shape) != axes + 2:
        raise ValueError(
            f"image_shape: must have {axes + 2} sizes: batch, channels and {axes} spatial, got {tuple(shape)}"
        )
    return _ops.extract_patches_backward(
        grad,
        origins,
        shape,
        to_sizes("patch_size", patch_size, axes),
        to_scales(scales),
        padding,
        0.0,
        dtype,
        None,
        to_channels("std", std, shape[1 if channels_first else -1]),
        channels_first,
    )


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
        features: (B, n, ...) floating; under autocast taken as float32.
        attention: (B, n) float32 or float64, in the order drawn: `Samples.attention`.
        estimator: "murthy" (Murthy 1957, with the baseline of Kool et al., ICLR 2020), "des_raj" (Des Raj 1956, the
            attention sampling paper's), "horvitz_thompson" (needs threshold; Vieira 2017), "iid" (for replace=True), or
            "normalized" (attention over its sum, for `topk`). All but the last are unbiased.
        threshold: (B,), `Samples.threshold`; only "horvitz_thompson" reads it.
        weights: (n,) with sum 1, only for "des_raj"; 1/n each by default.
        validate: as for `sample`. Without it, on CUDA, what is estimated from an attention or a threshold that the
            estimator does not take is NaN.

    Returns:
        (B, ...) with the dtype of features. The gradient with respect to attention is the unbiased score-function one:
        right at the logits of a softmax, where a shift of all of it, such as a baseline makes, vanishes.

    Raises:
        RuntimeError: a wrong shape, dtype or estimator, a missing threshold. TypeError: no tensor.
    """
    check_tensor("features", features)
    check_tensor("attention", attention)
    expected = _ops.direct(_ops.expectation)(features, attention, threshold, weights, estimator)
    if validate and attention.is_cuda:
        _validate.expectation(attention, threshold, weights, estimator)
    return expected


def expectation_backward(
    grad: Tensor,
    features: Tensor,
    attention: Tensor,
    *,
    estimator: str = "murthy",
    threshold: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of `expectation` at features and attention, which autograd uses, for grad (B, ...) at its result."""
    for name, tensor in (("grad", grad), ("features", features), ("attention", attention)):
        check_tensor(name, tensor)
    return _ops.expectation_backward(grad, features, attention, threshold, weights, estimator)


def estimator_arrays(
    attention: Tensor,
    estimator: str = "murthy",
    *,
    threshold: Tensor | None = None,
    weights: Tensor | None = None,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """What an estimator is made of: c (B, n) and M (B, n, n), as attention. Not differentiable.

    ``expectation = sum_i c_i f_i`` and ``d_attention_i = sum_j M_ij <f_j, grad>``. Args and errors as for `expectation`.
    """
    check_tensor("attention", attention)
    c, m = _ops.estimator_arrays(attention, threshold, weights, estimator)
    if validate and attention.is_cuda:
        _validate.on_cpu(_ops.estimator_arrays, attention, threshold, weights, estimator)
    return c, m


def _extract(
    image: Tensor,
    origins: Tensor,
    patch: Sequence[int],
    scales: Sequence[int],
    padding: str,
    fill: float,
    dtype: torch.dtype | None,
    mean: Channels,
    std: Channels,
    channels_first: bool,
) -> Tensor:
    channels = image.shape[1 if channels_first else -1]
    if dtype is None and not (mean is None and std is None) and not image.is_floating_point():
        dtype = torch.float32
    return _ops.direct(_ops.extract_patches)(
        image,
        origins,
        patch,
        scales,
        padding,
        fill,
        dtype,
        to_channels("mean", mean, channels),
        to_channels("std", std, channels),
        channels_first,
    )


def _extract_read(
    sources: SourceBatch,
    origins: Tensor,
    patch: Sequence[int],
    scales: Sequence[SupportsIndex] | None,
    padding: str,
    fill: float,
    dtype: torch.dtype | None,
    mean: Channels,
    std: Channels,
    channels_first: bool,
) -> Tensor:
    check_sources("image", sources, origins.shape[0], origins.shape[2])
    pixels, outside = read_pixels(sources, origins, patch, to_scales(scales), padding, fill)
    # Every patch is an image, from which one patch is cut: itself, converted.
    axes = len(patch)
    images = pixels.flatten(0, 2)
    images = images.movedim(-1, 1) if channels_first else images
    options = patch, (), padding, fill, dtype, mean, std, channels_first
    corner = origins.new_zeros((len(images), 1, axes))
    patches = _extract(images, corner, *options).reshape(*pixels.shape[:3], *images.shape[1:])
    if outside is not None:
        beyond = _extract(images[:1], corner[:1] + max(patch), *options).reshape(images.shape[1:])
        patches = torch.where(outside.unsqueeze(-1 - axes if channels_first else -1), beyond, patches)
    return patches if scales is not None else patches.squeeze(2)


def _origins_in_level(origins: Tensor, patch: Sequence[int], finest: Sequence[int], level: Sequence[int]) -> Tensor:
    """Where patches around the same centres begin in a coarser level of a pyramid, rounded half to even."""
    axes = []
    for axis, size in enumerate(patch):
        if finest[axis] == 0 or level[axis] == 0:
            raise ValueError(f"image: the levels of a pyramid must not be empty, got {tuple(finest)}, {tuple(level)}")
        ratio = finest[axis] / level[axis]
        mapped = torch.round((origins[..., axis].double() + size / 2) / ratio - size / 2)
        axes.append(mapped.clamp(-(2.0**62), 2.0**62).long())  # far outside stays far outside
    return torch.stack(axes, -1)
