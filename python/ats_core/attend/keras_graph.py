"""Functional models for images in memory, made over into models for sources."""

from __future__ import annotations

from typing import Any

import keras

from ats_core.attend.models import ModelError
from ats_core.keras import ResizeImages, SamplePatches, SourceInput

# What a thumbnail takes the place of.
DOWNSAMPLING = (
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.Resizing,
    ResizeImages,
)


def over_sources(model: Any, sampler: SamplePatches) -> Any:
    """The model with inputs for thumbnails and for handles of sources; itself if it has one for handles, or is subclassed.

    It has to be functional, with `SamplePatches` in its own graph. x_high has to be one of its inputs as it is, and go
    nowhere else but into x_low, if that is no input too, and there into a downsampling first (average pooling, `Resizing`,
    `ResizeImages`): the thumbnail is then what that one returned. The layers, and so the weights, are shared.

    Raises:
        ModelError: another model. The message says what stands against it.
    """
    if not getattr(model, "inputs", None):  # a subclassed one
        return model
    if any(len(tensor.shape) == 1 and tensor.dtype == "int64" for tensor in model.inputs):
        return model
    if sampler not in getattr(model, "operations", ()):
        raise ModelError(
            "model: is for images in memory, and samples within a layer or a model in it; must do so in its own graph, or "
            "take handles of sources (SourceInput)"
        )
    nodes = [node for operation in model.operations for node in operation._inbound_nodes]
    calls = [node for node in sampler._inbound_nodes if any(node is other for other in nodes)]
    if len(calls) != 1:
        raise ModelError(f"model: must sample once, it does {len(calls)} times")
    x_low, x_high = calls[0].input_tensors[:2]
    if not any(x_high is tensor for tensor in model.inputs):
        raise ModelError(
            f"model: x_high must be an input of it as it is, {x_high._keras_history.operation.name!r} comes before: have "
            "patches normalised as they are cut (mean, std)"
        )
    others = [tensor for tensor in model.inputs if tensor is not x_high]
    if len(others) > 1:
        raise ModelError(f"model: must take x_low and x_high, has {len(others) - 1} inputs more")
    takers = [node for node in nodes if node is not calls[0] and any(x_high is x for x in node.input_tensors)]
    if others:
        low, allowed = others[0], 0
    else:
        low = takers[0].output_tensors[0] if takers else None
        allowed = 1
    names = [node.operation.name for node in takers]
    if len(takers) != allowed or (allowed and not isinstance(takers[0].operation, DOWNSAMPLING)):
        raise ModelError(
            f"model: x_high must go into patches {'and an average pooling or resizing, for x_low, ' if allowed else ''}only, "
            f"goes into {', '.join(map(repr, names)) or 'nothing else'}"
        )
    channel_axis = 1 if sampler.data_format == "channels_first" else -1
    if (
        not len(low.shape) == len(x_low.shape) == len(x_high.shape)
        or x_low.shape[channel_axis] != x_high.shape[channel_axis]
    ):
        raise ModelError(f"model: x_low must have the channels of x_high, {x_high.shape}, has {x_low.shape}")
    feeds = [keras.Input(low.shape[1:], dtype=low.dtype), SourceInput()]
    cut = keras.Model([low, x_high], model.output)  # fed with x_low where it was computed
    return keras.models.clone_model(cut, input_tensors=feeds, clone_function=lambda layer: layer)
