"""Layers that models are made of."""

from ats_core.keras import (
    ActivityRegularizer,
    ImageLinearTransform,
    ImagePan,
    L2Normalize,
    ResizeImages,
    SampleSoftmax,
    TotalReshape,
)

__all__ = [
    "ActivityRegularizer",
    "ImageLinearTransform",
    "ImagePan",
    "L2Normalize",
    "ResizeImages",
    "SampleSoftmax",
    "TotalReshape",
]
