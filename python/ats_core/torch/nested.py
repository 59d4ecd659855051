# mypy: no-warn-return-any
"""Sampling on two levels: coarse cells, and cells within those. The estimator is derived in docs/estimators.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from ._arguments import Rng, Sizes, check_tensor, to_indices, to_int, to_origins, to_rng
from .functional import Samples, expectation, patch_origins, sample

_SEED_STEP = 0xD1342543DE82EF95  # odd, so that the seeds of all n differ


class NestedSamples(NamedTuple):
    """What `nested_sample` returns.

    Attributes:
        coarse: `Samples` of the coarse map: indices and attention p (B, n), threshold (B,).
        fine: `Samples` within each of those cells: indices and attention q given the coarse cell (B, n, m), threshold
            (B, n). The probability of a fine cell among all is ``coarse.attention[..., None] * fine.attention``.
    """

    coarse: Samples
    fine: Samples


# So that an exported program that returns it can be saved.
_register_namedtuple(NestedSamples, serialized_type_name="ats_core.torch.NestedSamples")


def nested_sample(
    coarse: Tensor,
    fine: Callable[[Samples], Tensor],
    n: int,
    m: int,
    *,
    logits: bool = False,
    rng: Rng = None,
    validate: bool = False,
) -> NestedSamples:
    """Draw n cells a row of a coarse map, then m cells within each of those, both without replacement.

    Args:
        coarse: (B, *grid) weights of the coarse cells, or their logarithms, as for `sample`.
        fine: given the `Samples` of the coarse map, returns the weights within those cells, (B, n, *fine_grid). It is
            called once: the finer level has to be looked at in these cells only.
        n, m: coarse cells a row, and fine cells in each.
        logits: both maps hold logarithms of weights.
        rng: as for `sample`. Row b draws coarse cells from the stream (seed, offset + b), and fine cells within the i-th
            of them from (seed + n * 0xD1342543DE82EF95, n * (offset + b) + i), modulo 2**64: from the same ones however
            the batch is split.
        validate: as for `sample`.

    Returns:
        NestedSamples, differentiable with respect to both maps as `sample` is; `nested_origins` says where the fine cells
        lie, `nested_expectation` estimates from their features.

    Raises:
        RuntimeError: as `sample`, for either map. ValueError: a fine map of another shape. TypeError: as `sample`.
    """
    check_tensor("coarse", coarse)
    pair = to_rng(rng, coarse)
    outer = sample(coarse, n, logits=logits, rng=pair, validate=validate)
    inner = _inner_rng(pair, to_int("n", n))  # before `fine`, which may draw too: `pair` can be memory used again
    within = fine(outer)
    check_tensor("fine: its result", within)
    if within.dim() < 3 or within.shape[:2] != outer.indices.shape:
        raise ValueError(
            f"fine: must return (B, n, *fine_grid), beginning with {tuple(outer.indices.shape)}, got "
            f"{tuple(within.shape)}"
        )
    drawn = sample(within.flatten(0, 1), m, logits=logits, rng=inner, validate=validate)
    return NestedSamples(outer, Samples(*(part.unflatten(0, within.shape[:2]) for part in drawn)))


def nested_expectation(
    features: Tensor, samples: NestedSamples, *, estimator: str = "murthy", validate: bool = False
) -> Tensor:
    """Estimate ``sum_c p_c sum_k q(k|c) f_ck`` from the cells that `nested_sample` drew.

    `expectation` over the fine cells of each coarse one, and `expectation` over those. Unbiased, and so are the
    gradients to the features and, at the logits of softmaxes, to both maps (docs/estimators.md).

    Args:
        features: (B, n, m, ...) floating, of the fine cells.
        samples: what `nested_sample` returned.
        estimator, validate: as for `expectation`, for both levels.

    Returns:
        (B, ...) with the dtype of features.

    Raises:
        As `expectation`; ValueError for features that do not begin with the shape of the fine indices.
    """
    check_tensor("features", features)
    coarse, fine = samples
    if features.shape[:3] != fine.indices.shape:
        raise ValueError(
            f"features: must be (B, n, m, ...), beginning with {tuple(fine.indices.shape)}, got {tuple(features.shape)}"
        )
    within = expectation(
        features.flatten(0, 1),
        fine.attention.flatten(0, 1),
        estimator=estimator,
        threshold=fine.threshold.flatten(),
        validate=validate,
    )
    return expectation(
        within.unflatten(0, features.shape[:2]),
        coarse.attention,
        estimator=estimator,
        threshold=coarse.threshold,
        validate=validate,
    )


def nested_origins(
    indices: Tensor,
    grid: Sizes,
    regions: Tensor,
    region_size: Sizes,
    patch_size: Sizes,
    *,
    low_shape: Sizes | None = None,
    receptive_field: Sizes = 0,
    validate: bool = False,
) -> Tensor:
    """Where the patches of fine cells begin in the full-resolution image: `patch_origins` within regions of it.

    Args:
        indices: (B, n, m) int64 (or narrower integers), flat cells of the fine grid: ``NestedSamples.fine.indices``.
        grid: D = 1..3 sizes of the fine map of one region.
        regions: (B, n, D) int64, first pixel of what each fine map is of: `patch_origins` of the coarse cells with
            ``patch_size=region_size``.
        region_size: of a region, in pixels of the full-resolution image; one size for every axis, or D.
        patch_size: one size for every axis, or D.
        low_shape: D sizes of a region in the pixels that the fine attention network saw; the grid's by default.
        receptive_field: of that network without padding, in those pixels; 0 with padding.
        validate: as for `patch_origins`.

    Returns:
        (B, n, m, D) int64. ``.flatten(1, 2)`` is what `extract_patches` takes.

    Raises:
        As `patch_origins`; ValueError for regions that do not go with the indices.
    """
    indices, regions = to_indices(indices), to_origins(regions)
    if indices.dim() != 3 or regions.shape[:2] != indices.shape[:2]:
        raise ValueError(
            f"indices: must be (B, n, m) for regions (B, n, D), got {tuple(indices.shape)} and {tuple(regions.shape)}"
        )
    within = patch_origins(
        indices.flatten(0, 1),
        grid,
        region_size,
        patch_size,
        low_shape=low_shape,
        receptive_field=receptive_field,
        validate=validate,
    )
    if within.shape[2] != regions.shape[2]:
        raise ValueError(f"regions: must have as many axes as the grid, {within.shape[2]}, got {regions.shape[2]}")
    # No cell of the grid lies at -2**63. Twice that would be 0.
    return regions.unsqueeze(2) + within.clamp_min(-(2**62)).unflatten(0, indices.shape[:2])


def _inner_rng(pair: Tensor, n: int) -> Tensor:
    """(seed, offset) for a batch of B * n rows, such that row b * n + i depends on the outer offset + b and i alone."""
    step = (n * _SEED_STEP + 2**63) % 2**64 - 2**63
    return torch.stack((pair[0] + step, pair[1] * n))
