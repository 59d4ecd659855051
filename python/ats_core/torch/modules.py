# mypy: allow-subclassing-any, no-warn-return-any
"""Modules for attention sampling. Images are channels-first, with 1 to 3 spatial axes.

Source: Katharopoulos and Fleuret, "Processing Megapixel Images with Deep Attention-Sampling Models", ICML 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from ats_core.sources import SourceBatch

from ._arguments import Channels, Rng, Sizes, check_images, check_tensor, is_single, to_int, to_sizes
from .functional import estimator_arrays, expectation, extract_patches, patch_origins, sample, topk
from .sources import check_sources, is_sources, locate_cells, mask_cells
from .streams import RngStream

Image: TypeAlias = Tensor | Sequence[Tensor] | SourceBatch


class SampledPatches(NamedTuple):
    """What `SamplePatches` returns: patches (B, n, [S,] C, *patch), their attention (B, n) and indices (B, n), their
    origins (B, n, D) in the image, and the threshold (B,) of `Samples`."""

    patches: Tensor
    attention: Tensor
    indices: Tensor
    origins: Tensor
    threshold: Tensor


class AttentionSamplingOutput(NamedTuple):
    """What `AttentionSampling` returns: the expected features (B, ...), the whole attention map (B, *grid), and the
    patches (B, n, [S,] C, *patch) that were looked at."""

    features: Tensor
    attention: Tensor
    patches: Tensor


for _output in (SampledPatches, AttentionSamplingOutput):  # so that an exported program that returns it can be saved
    _register_namedtuple(_output, serialized_type_name=f"ats_core.torch.{_output.__name__}")


@contextmanager
def _as_value_error() -> Iterator[None]:
    """What an operation says of an option, as the error of a constructor."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(str(error).partition("\nPosition:")[0]) from None


def _to_option(name: str, sizes: Sizes, least: int) -> int | tuple[int, ...]:
    """A size for every axis or one each, whose number is not known yet."""
    single = is_single(sizes)
    values = tuple(to_sizes(name, sizes, 1 if single else None))
    if not 1 <= len(values) <= 3 or min(values) < least:
        raise ValueError(f"{name}: must be at least {least}, one for every axis or one each of 1 to 3, got {sizes!r}")
    return values[0] if single else values


class SamplePatches(nn.Module):
    """Draw cells of an attention map and cut their patches out of the full-resolution image.

    Args:
        patch_size: one size for every spatial axis, or one each.
        n_patches: cells to draw from each image.
        replace: draw with replacement.
        receptive_field: of the attention network, in pixels of the image that it saw; 0 if it pads (`patch_origins`).
        scales, padding, fill, dtype, mean, std: as for `extract_patches`.
        seed: of random numbers that are saved with the model, see `RngStream`; None takes PyTorch's generator.
        validate: as for `sample`: wait for a CUDA device to say whether values are bad.

    Raises:
        ValueError, TypeError: one of those that no image would suit.
    """

    def __init__(
        self,
        patch_size: Sizes,
        n_patches: SupportsIndex = 10,
        *,
        replace: bool = False,
        receptive_field: Sizes = 0,
        scales: Sequence[SupportsIndex] | None = None,
        padding: str = "constant",
        fill: float = 0.0,
        dtype: torch.dtype | None = None,
        mean: Channels = None,
        std: Channels = None,
        seed: SupportsIndex | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = _to_option("patch_size", patch_size, 1)
        self.n_patches = to_int("n_patches", n_patches)
        self.replace = replace
        self.rng_stream = None if seed is None else RngStream(seed)
        self.validate = validate
        self.receptive_field = _to_option("receptive_field", receptive_field, 0)
        if self.n_patches < 1:
            raise ValueError(f"n_patches: must be at least 1, got {n_patches}")
        axes = len(self.patch_size) if isinstance(self.patch_size, tuple) else 1
        if isinstance(self.patch_size, tuple):
            to_sizes("receptive_field", self.receptive_field, axes)
        image, origins = torch.empty((0, 1, *(1,) * axes), device="cpu"), torch.empty((0, 0, axes), device="cpu").long()
        with _as_value_error():  # no image is known yet, but an empty one tells whether there is any that these suit
            extract_patches(image, origins, self.patch_size, scales=scales, padding=padding, fill=fill)
        self.extraction: dict[str, Any] = {
            "scales": scales,
            "padding": padding,
            "fill": fill,
            "dtype": dtype,
            "mean": mean,
            "std": std,
        }

    def forward(
        self,
        attention: Tensor,
        x_high: Image,
        *,
        low_shape: Sizes | None = None,
        low_shapes: Tensor | None = None,
        rng: Rng = None,
        deterministic: bool = False,
    ) -> SampledPatches:
        """Sample `attention` (B, *grid), weights, and cut patches out of `x_high` (B, C, *spatial), or of a pyramid.

        Of a `SourceBatch` only the patches are read, to the device of `attention`.

        Args:
            low_shape: spatial shape of the image that the attention network saw; the grid by default.
            low_shapes: int (B, D), only with a SourceBatch: the part of that image, from the first pixel on, that shows
                the source; the rest is padding, whose cells are not drawn (`SourceBatch.low_mask`). low_shape by default.
            rng: as for `sample`. By default the next one of the module's `RngStream`, if it has a seed.
            deterministic: take the n_patches most attended cells instead of sampling.
        """
        check_tensor("attention", attention)
        axes = attention.dim() - 1
        if isinstance(x_high, Tensor) and x_high.dim() == axes + 1 > 2 and attention.shape[1] == 1:
            raise ValueError(
                f"attention: must be (B, *grid), without a channel axis: {x_high.dim() - 2} axes in grid as x_high has "
                f"spatial ones, got {tuple(attention.shape)}"
            )
        if not isinstance(x_high, Tensor) and is_sources(x_high):
            check_sources("x_high", x_high, attention.shape[0], axes)
            attention = self.mask(attention, x_high, low_shape, low_shapes)
        else:
            check_images("x_high", x_high, axes)
            _check_no_low_shapes(low_shapes)
        if rng is None and self.rng_stream is not None and not deterministic:
            rng = self.rng_stream(attention.shape[0])
        draws = (
            topk(attention, self.n_patches, validate=self.validate)
            if deterministic
            else sample(attention, self.n_patches, replace=self.replace, rng=rng, validate=self.validate)
        )
        patches, origins = self.cut(draws.indices, attention.shape[1:], x_high, low_shape, low_shapes)
        return SampledPatches(patches, draws.attention, draws.indices, origins, draws.threshold)

    def mask(
        self, attention: Tensor, sources: SourceBatch, low_shape: Sizes | None, low_shapes: Tensor | None
    ) -> Tensor:
        """The weights, with zeros for cells of padding; see `forward`."""
        least = 1 if self.replace else self.n_patches
        return mask_cells(attention, sources, low_shape, low_shapes, self.receptive_field, least)

    def cut(
        self,
        indices: Tensor,
        grid: Sequence[int],
        x_high: Image,
        low_shape: Sizes | None = None,
        low_shapes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Patches and origins of given cells (B, m) of a grid."""
        if not isinstance(x_high, Tensor) and is_sources(x_high):
            origins = locate_cells(indices, x_high, grid, self.patch_size, low_shape, low_shapes, self.receptive_field)
            return extract_patches(x_high, origins, self.patch_size, **self.extraction), origins
        finest = x_high if isinstance(x_high, Tensor) else x_high[0]
        origins = patch_origins(
            indices,
            tuple(grid),
            finest.shape[2:],
            self.patch_size,
            low_shape=low_shape,
            receptive_field=self.receptive_field,
            validate=self.validate,
        )
        return extract_patches(x_high, origins, self.patch_size, **self.extraction), origins

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}, n_patches={self.n_patches}, replace={self.replace}"


class Expectation(nn.Module):
    """`expectation` with a fixed estimator: features (B, n, ...), attention (B, n) -> (B, ...)."""

    def __init__(self, estimator: str = "murthy", *, validate: bool = False) -> None:
        super().__init__()
        nothing = torch.empty((0, 1), device="cpu")
        with _as_value_error():  # the operation knows the names
            estimator_arrays(nothing, estimator, threshold=nothing[:, 0])
        self.estimator = estimator
        self.validate = validate

    def forward(self, features: Tensor, attention: Tensor, threshold: Tensor | None = None) -> Tensor:
        return expectation(features, attention, estimator=self.estimator, threshold=threshold, validate=self.validate)

    def extra_repr(self) -> str:
        return repr(self.estimator)


class SampleSoftmax(nn.Module):
    """Softmax over all cells of a map: logits (B, *grid) or (B, 1, *grid) -> probabilities (B, *grid), float32 or wider.

    An axis of size 1 after the batch, if others follow, is taken for the channel axis of a convolution and dropped.

    Args:
        smooth: share of a uniform distribution that is mixed in, between 0 and 1: no cell's probability is below
            smooth / K then, which keeps exploration and the variance of the gradient within bounds.
    """

    def __init__(self, smooth: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= smooth <= 1.0:
            raise ValueError(f"smooth: must be between 0 and 1, got {smooth!r}")
        self.smooth = smooth

    def forward(self, logits: Tensor) -> Tensor:
        if logits.dim() > 2 and logits.shape[1] == 1:
            logits = logits.squeeze(1)
        cells = logits.flatten(1)
        probabilities = torch.softmax(cells, 1, dtype=torch.promote_types(cells.dtype, torch.float32))
        if self.smooth > 0.0:
            probabilities = (1.0 - self.smooth) * probabilities + self.smooth / cells.shape[1]
        return probabilities.reshape(logits.shape)

    def extra_repr(self) -> str:
        return f"smooth={self.smooth}"


class MultinomialEntropy(nn.Module):
    """``strength * sum(a * log(a + eps)) / B``: the negative entropy of attention (B, *grid), averaged over the batch.

    Added to a loss it keeps attention from collapsing onto few cells before it has learned which matter.
    """

    def __init__(self, strength: float = 1.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.strength = strength
        self.eps = eps

    def forward(self, attention: Tensor) -> Tensor:
        return self.strength * torch.sum(attention * torch.log(attention + self.eps)) / max(attention.shape[0], 1)

    def extra_repr(self) -> str:
        return f"strength={self.strength}, eps={self.eps}"


def _check_no_low_shapes(low_shapes: Tensor | None) -> None:
    if low_shapes is not None:
        raise ValueError("low_shapes: is for a SourceBatch; the images of a tensor have one size")


def _normalised(attention: Tensor) -> Tensor:
    """Each row over its sum, float32 or wider."""
    weights = attention.flatten(1).to(torch.promote_types(attention.dtype, torch.float32))
    return (weights / weights.sum(1, keepdim=True)).reshape(attention.shape)


class AttentionSampling(nn.Module):
    """Look at a large image through a few patches, chosen by attention that was computed on a small one.

    ``attention(x_low)`` gives a map; n_patches cells are drawn from it, their patches are cut out of ``x_high`` and
    put through ``feature``, and the attention-weighted mean of the features over *all* cells is estimated from those.
    The gradient reaches both networks.

    Args:
        attention: module: x_low (B, C, *low) -> weights (B, *grid) or (B, 1, *grid), at least 0; usually it ends in
            `SampleSoftmax`.
        feature: module: (B * n, C, *patch) -> (B * n, ...). With `scales`, or with a pyramid for x_high, the scales are
            stacked on the channel axis, the finest first: (B * n, S * C, *patch).
        patch_size, n_patches, replace, receptive_field, scales, padding, fill, dtype, mean, std, seed, validate: as for
            `SamplePatches`.
        estimator: as for `expectation`, unbiased (not "normalized"); "iid" exactly with replace=True.
        attention_regularizer: attention map (B, *grid) -> scalar, for example `MultinomialEntropy`. It is given the
            distribution that the map stands for, each row over its sum. After a call in training mode `regularization`
            holds what it returned, to be added to the loss; otherwise a 0.
        inference: what is done in eval mode: "sample" as in training; "topk" the n_patches most attended cells, with
            attention over its sum (deterministic, biased); "full" the exact mean over all cells, in chunks that bound
            memory (deterministic; as slow as the feature network on the whole image), where the patches returned are
            the most attended ones.

    Raises:
        ValueError: an unknown or biased estimator, an unknown inference; "iid" without replace=True or the other way
            round; options that suit no image. TypeError: an option of a type that means nothing here.
    """

    # Patches that go through the feature network at once with inference="full", unless n_patches asks for more.
    full_chunk = 256

    regularization: Tensor

    def __init__(
        self,
        attention: nn.Module,
        feature: nn.Module,
        patch_size: Sizes,
        n_patches: SupportsIndex = 10,
        *,
        estimator: str = "murthy",
        replace: bool = False,
        receptive_field: Sizes = 0,
        scales: Sequence[SupportsIndex] | None = None,
        attention_regularizer: Callable[[Tensor], Tensor] | None = None,
        inference: str = "sample",
        padding: str = "constant",
        fill: float = 0.0,
        dtype: torch.dtype | None = None,
        mean: Channels = None,
        std: Channels = None,
        seed: SupportsIndex | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__()
        self.expectation = Expectation(estimator, validate=validate)
        if estimator == "normalized":
            raise ValueError(
                "estimator: 'normalized' is biased, and is what inference='topk' takes in eval mode; choose another to "
                "train with"
            )
        if (estimator == "iid") != replace:
            raise ValueError(
                f"estimator: 'iid' is for replace=True and the others are for replace=False, got {estimator!r} with "
                f"replace={replace}"
            )
        if inference not in ("sample", "topk", "full"):
            raise ValueError(f"inference: must be one of 'sample', 'topk', 'full', got {inference!r}")
        self.attention = attention
        self.feature = feature
        self.sampler = SamplePatches(
            patch_size,
            n_patches,
            replace=replace,
            receptive_field=receptive_field,
            scales=scales,
            padding=padding,
            fill=fill,
            dtype=dtype,
            mean=mean,
            std=std,
            seed=seed,
            validate=validate,
        )
        self.attention_regularizer = attention_regularizer
        self.inference = inference
        self.regularization = torch.zeros(())

    def forward(
        self, x_low: Tensor, x_high: Image, rng: Rng = None, low_shapes: Tensor | None = None
    ) -> AttentionSamplingOutput:
        """x_low (B, C, *low), x_high (B, C, *high) or a pyramid of such -> (features, attention, patches).

        x_high may be a `SourceBatch` of sources of different sizes, and x_low their thumbnails, padded at the end to one
        size. low_shapes (B, D) are the sizes without padding. Cells of the padding get weight 0, and the others are
        divided by their sum: what is estimated is the mean over the cells of each source. Only sampled patches are read,
        onto the device of the attention. In a compiled module what reads breaks the graph.
        """
        check_tensor("x_low", x_low)
        low_shape = x_low.shape[2:]
        sources = not isinstance(x_high, Tensor) and is_sources(x_high)
        if sources:
            check_sources("x_high", x_high, x_low.shape[0], len(low_shape))
        else:
            check_images("x_high", x_high, len(low_shape))
            _check_no_low_shapes(low_shapes)
        if not sources and not torch.compiler.is_compiling():  # sizes may be symbolic there
            finest = (x_high if isinstance(x_high, Tensor) else x_high[0]).shape[2:]
            if all(high < low for high, low in zip(finest, low_shape, strict=True)):
                raise ValueError(
                    f"x_high: is smaller than x_low on every axis, {tuple(finest)} and {tuple(low_shape)}: are the two "
                    "in the right order?"
                )
        attention = self.attention(x_low)
        if attention.dim() == x_low.dim() and attention.shape[1] == 1:
            attention = attention.squeeze(1)
        if attention.dim() != x_low.dim() - 1:
            raise ValueError(
                f"attention: the network must return (B, *grid) or (B, 1, *grid) with {x_low.dim() - 2} axes in grid, "
                f"got {tuple(attention.shape)}"
            )
        if is_sources(x_high) and low_shapes is not None:
            masked = self.sampler.mask(attention, x_high, low_shape, low_shapes)
            attention = attention if masked is attention else _normalised(masked)
        # Assigned in training only: a module that is exported in eval mode must not change its attributes.
        if self.training and self.attention_regularizer is not None:
            self.regularization = self.attention_regularizer(_normalised(attention))
        inference = "sample" if self.training else self.inference
        draws = self.sampler(
            attention, x_high, low_shape=low_shape, low_shapes=low_shapes, rng=rng, deterministic=inference != "sample"
        )
        if inference == "full":
            features = self._expect_all(attention, x_high, low_shape, low_shapes)
        elif inference == "topk":
            features = self._look_at(draws.patches, len(low_shape))
            features = expectation(
                features, draws.attention, estimator="normalized", validate=self.expectation.validate
            )
        else:
            features = self._look_at(draws.patches, len(low_shape))
            features = self.expectation(features, draws.attention, draws.threshold)
        return AttentionSamplingOutput(features, attention, draws.patches)

    def _look_at(self, patches: Tensor, axes: int) -> Tensor:
        """Features (B, n, ...) of patches (B, n, [S,] C, *patch) with that many spatial axes."""
        flat = patches.flatten(0, 1)
        features: Tensor = self.feature(flat.flatten(1, flat.dim() - 1 - axes))
        return features.unflatten(0, patches.shape[:2])

    def _expect_all(
        self, attention: Tensor, x_high: Image, low_shape: Sequence[int], low_shapes: Tensor | None
    ) -> Tensor:
        """The exact mean of the features over all cells, some cells at a time."""
        weights = _normalised(attention).flatten(1)
        batch, cells = weights.shape
        step = max(self.sampler.n_patches, self.full_chunk // max(batch, 1))
        total: Any = 0.0
        for start in range(0, cells, step):
            stop = min(start + step, cells)
            indices = torch.arange(start, stop, device=attention.device).expand(batch, -1)
            if low_shapes is not None:  # nothing is to be seen in cells of padding, and 0 times NaN is no 0
                indices = torch.where(weights[:, start:stop] > 0, indices, 0)
            patches, _ = self.sampler.cut(indices, attention.shape[1:], x_high, low_shape, low_shapes)
            features = self._look_at(patches, len(low_shape))
            # A product and a sum, not einsum: under autocast that would add up in half precision.
            chunk = weights[:, start:stop].reshape(batch, stop - start, *(1,) * (features.dim() - 2))
            total = total + torch.sum(chunk * features, 1)
        autocast = torch.is_autocast_enabled(attention.device.type)  # then float32, as `expectation` gives
        return total if autocast else total.to(features.dtype)

    def train(self, mode: bool = True) -> AttentionSampling:
        if not mode:
            self.regularization = torch.zeros(())
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # The regularization of the last call hangs on its graph, which neither copies nor pickles.
        return {**self.__dict__, "regularization": torch.zeros(())}
