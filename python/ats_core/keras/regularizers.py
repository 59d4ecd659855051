"""Regularisers of the attention distribution."""

from __future__ import annotations

from typing import Any

import keras

from ._arguments import to_float
from .layers import at_least_float32


@keras.saving.register_keras_serializable(package="ats")
class MultinomialEntropy(keras.regularizers.Regularizer):
    """strength * sum(a * log(a + eps)) / B: minus the mean entropy of the rows, in float32 at least.

    Args:
        strength: a positive one makes the attention spread, a negative one makes it narrow.
        eps: keeps the logarithm finite where the attention is 0.

    Call:
        attention (B, ...), each row a distribution -> scalar; 0 for an empty batch.
    """

    def __init__(self, strength: float = 1.0, eps: float = 1e-6) -> None:
        self.strength = to_float("strength", strength)
        self.eps = to_float("eps", eps)

    def __call__(self, x: Any) -> Any:
        x = at_least_float32(x)
        batch = keras.ops.cast(keras.ops.maximum(keras.ops.shape(x)[0], 1), x.dtype)
        return self.strength * keras.ops.sum(x * keras.ops.log(x + self.eps)) / batch

    def get_config(self) -> dict[str, float]:
        return {"strength": self.strength, "eps": self.eps}


def multinomial_entropy(strength: float = 1.0, eps: float = 1e-6) -> MultinomialEntropy:
    """`MultinomialEntropy`, by the name that the reference library's examples use."""
    return MultinomialEntropy(strength, eps)
