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
        name: of the source; what is no character in it is escaped.
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

    @property
    def ranks(self) -> Array:
        """int64 (n,), 1 for the likeliest patch."""
        ranks = np.empty(len(self.probabilities), np.int64)
        ranks[np.argsort(-self.probabilities, kind="stable")] = np.arange(1, len(ranks) + 1)
        return ranks

    @property
    def predicted(self) -> int | None:
        """The class with the largest output; None where the output is not one number a class, or is NaN."""
        outputs = np.asarray(self.prediction)
        if outputs.ndim != 1 or len(outputs) < 2 or np.isnan(outputs).any():
            return None
        return int(outputs.argmax())

    def boxes(self, scale: float) -> Array:
        """float64 (n, 2, D), the first and the last corner of what the patches show at a scale.

        All scales of a patch have the centre that it has at scale 1, rounded as by `extract_patches`.
        """
        patch = np.array(self.patch_size, np.float64)
        first = self.origins - np.floor((scale - 1) * patch / 2)
        return np.stack([first, first + scale * patch], 1)

    def class_names(self, classes: Sequence[str] | None) -> list[str]:
        """A name for each of the outputs, their numbers where there are no classes.

        Raises:
            ValueError: not as many classes as outputs.
        """
        size = np.asarray(self.prediction).size
        if classes is None:
            return [str(number) for number in range(size)]
        if len(classes) != size:
            raise ValueError(f"classes: the model has {size} outputs, got {len(classes)} names")
        return list(classes)

    def require_image(self) -> None:
        """Raises a ValueError where the source is not an image."""
        if self.axes != "yx":
            raise ValueError(f"axes: only images, with axes yx, can be drawn so; {self.name} has {self.axes}")


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
        name=source.name.encode(errors="backslashreplace").decode(),
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
