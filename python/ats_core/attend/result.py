"""What a model made of one source."""

from __future__ import annotations

from dataclasses import dataclass

from ats_core._arguments import Array


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
