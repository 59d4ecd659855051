"""The layers, with the estimator of the paper by default."""

from __future__ import annotations

from typing import Any

import keras

import ats_core.keras as _keras
from ats_core.keras import SamplePatches

__all__ = ["Expectation", "SamplePatches", "attention_sampling"]


@keras.saving.register_keras_serializable(package="ats.core")
class Expectation(_keras.Expectation):
    """`ats_core.keras.Expectation` with "iid" for replace=True, and "des_raj" otherwise unless told."""

    def __init__(self, replace: bool = False, *, estimator: str | None = None, **kwargs: Any) -> None:
        super().__init__(estimator or ("iid" if replace else "des_raj"), **kwargs)


def attention_sampling(
    attention: Any,
    feature: Any,
    patch_size: Any = None,
    n_patches: int = 10,
    replace: bool = False,
    attention_regularizer: Any = None,
    receptive_field: Any = 0,
    *,
    estimator: str | None = None,
    **more: Any,
) -> _keras.AttentionSampling:
    """`ats_core.keras.attention_sampling` with "iid" for replace=True, and "des_raj" otherwise unless told."""
    more["estimator"] = estimator or ("iid" if replace else "des_raj")
    return _keras.attention_sampling(
        attention, feature, patch_size, n_patches, replace, attention_regularizer, receptive_field, **more
    )
