"""The layers, with the estimator of the paper by default."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import keras

import ats_core.keras as _keras
from ats_core.keras import SamplePatches

__all__ = ["Expectation", "SamplePatches", "attention_sampling"]

Layer = TypeVar("Layer", bound=type[keras.layers.Layer])


def _saved_as_its_base(layer: Layer) -> Layer:
    """Save a layer as the one that it derives from, which a program without `ats` can load: the options say it all."""
    base = layer.__mro__[1]
    for each in (layer, base):  # the last one is what is made of the name
        keras.saving.register_keras_serializable(package="ats", name=base.__name__)(each)
    return layer


@_saved_as_its_base
class Expectation(_keras.Expectation):
    """`ats_core.keras.Expectation` with "iid" for replace=True, and "des_raj" otherwise unless told."""

    def __init__(
        self, replace: bool = False, *, estimator: str | None = None, inference: str = "sample", **kwargs: Any
    ) -> None:
        super().__init__(estimator or ("iid" if replace else "des_raj"), inference=inference, **kwargs)


@_saved_as_its_base
class AttentionSampling(_keras.AttentionSampling):
    __doc__ = _keras.AttentionSampling.__doc__
    __signature__ = inspect.signature(_keras.AttentionSampling)  # Python 3.11.2 would show that of Keras's __new__

    default_estimator = "des_raj"


attention_sampling = AttentionSampling
