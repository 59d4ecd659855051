"""What a model made of one source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ats_core._arguments import Array, Ints, to_ints
from ats_core.sources import Source, SourceBatch


@dataclass(frozen=True)
class Attended:
    """What a model made of one source: its answer, where it looked, and what it saw there.

    D axes, n patches, S scales, C channels. Places are in pixels of the source's level 0.

    Attributes:
        name: of the source.
        axes: its axes, "yx" for an image.
        shape: D sizes of its level 0.
        mpp: micrometres a pixel of level 0, per axis; None where that is not known.
        prediction: the model's output, without the batch axis.
        thumbnail: (*low, C), what the attention network was given, of the source's dtype.
        attention: float64 (*grid), the share of each cell; the sum is 1.
        margin: D widths at the source's borders that no cell covers (from the attention network's receptive field).
        indices: int64 (n,), flat cells of `attention`, in the order drawn.
        origins: int64 (n, D), where the patches begin; they may reach outside.
        patch_size: D sizes of a patch at the first scale.
        scales: S downsamples: how many pixels of level 0 a pixel of a patch spans.
        patches: (n, S, *patch_size, C), of the source's dtype, as they are in it.
        probabilities: float64 (n,), the attention of the drawn cells.
        weights: float64 (n,), what the features of each patch were multiplied by; the estimate is their sum.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    mpp: tuple[float, ...] | None
    prediction: Array
    thumbnail: Array
    attention: Array
    margin: tuple[float, ...]
    indices: Array
    origins: Array
    patch_size: tuple[int, ...]
    scales: tuple[float, ...]
    patches: Array
    probabilities: Array
    weights: Array


def read_attended(
    source: Source,
    *,
    prediction: Array,
    thumbnail: Array,
    attention: Array,
    indices: Array,
    origins: Array,
    probabilities: Array,
    weights: Array,
    patch_size: Ints,
    scales: Sequence[float],
    receptive_field: Ints,
    padding: str,
    fill: float,
) -> Attended:
    """Put together what a model did with a source, and read the patches again as they are in it.

    Args:
        attention: (*grid), weights of any scale.
        patch_size, scales, receptive_field, padding, fill: those of `SamplePatches`.
        The others are as in `Attended`.
    """
    axes = len(source.axes)
    heat = np.asarray(attention, np.float64)
    patches = SourceBatch([source]).read_patches(origins[None], patch_size, scales=scales, padding=padding, fill=fill)[
        0
    ]
    field = to_ints("receptive_field", receptive_field, axes)
    return Attended(
        name=source.name,
        axes=source.axes,
        shape=source.shape,
        mpp=source.mpp,
        prediction=np.asarray(prediction),
        thumbnail=thumbnail,
        attention=heat / heat.sum(),
        margin=tuple(
            size / 2 * length / low for size, length, low in zip(field, source.shape, thumbnail.shape, strict=False)
        ),
        indices=np.asarray(indices, np.int64),
        origins=np.asarray(origins, np.int64),
        patch_size=patches.shape[2:-1],
        scales=tuple(float(scale) for scale in scales),
        patches=patches,
        probabilities=np.asarray(probabilities, np.float64),
        weights=np.asarray(weights, np.float64),
    )
