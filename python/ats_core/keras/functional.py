"""The functions of the reference library (Katharopoulos and Fleuret, ICML 2019) on tensors and on Keras's symbolic ones."""

from __future__ import annotations

from typing import Any

import keras
from keras import KerasTensor

from . import ops
from ._arguments import to_bool, to_count
from ._random import RandomLayer
from .layers import at_least_float32
from .sampling import Expectation


def is_symbolic(*values: Any) -> bool:
    """Whether one of them is a node of a model that is being put together."""
    return any(isinstance(value, KerasTensor) for value in values)


@keras.saving.register_keras_serializable(package="ats")
class SampleCells(RandomLayer):
    """Draw cells of an attention map: what `sample` is in a functional model.

    Args:
        n, replace, logits: as for `ats_core.sample`.
        seed: see `RandomLayer`.

    Call:
        attention (B, *grid) -> [samples (B, n, D) int64, sampled attention (B, n), threshold (B,)].
    """

    def __init__(self, n: int, replace: bool = False, logits: bool = False, *, seed: int | None = None, **kwargs: Any):
        super().__init__(seed, **kwargs)
        self.n = to_count("n", n)
        self.replace = to_bool("replace", replace)
        self.logits = to_bool("logits", logits)
        self.supports_jit = False

    def call(self, attention: Any) -> list[Any]:
        return draw(attention, self.n, self.replace, self.logits, self.next_rng(keras.ops.shape(attention)[0]))

    def compute_output_spec(self, attention: Any) -> list[Any]:
        batch, *grid = attention.shape
        real = "float64" if attention.dtype == "float64" else "float32"
        return [
            KerasTensor((batch, self.n, len(grid)), dtype="int64"),
            KerasTensor((batch, self.n), dtype=real),
            KerasTensor((batch,), dtype=real),
        ]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "n": self.n, "replace": self.replace, "logits": self.logits}


def draw(attention: Any, n: int, replace: bool, logits: bool, rng: Any = None) -> list[Any]:
    """Samples as coordinates (B, n, D), their attention (B, n) and the threshold (B,)."""
    if is_symbolic(attention):
        outputs: list[Any] = SampleCells(n, replace, logits)(attention)
        return outputs
    draws = ops.sample(attention, n, replace=replace, logits=logits, rng=rng)
    return [ops.unravel(draws.indices, ops.spatial_shape(attention, None)), draws.attention, draws.threshold]


def sample(
    n_samples: int, attention: Any, sample_space: Any = None, replace: bool = False, use_logits: bool = False
) -> tuple[Any, Any]:
    """Draw cells of an attention map, with random numbers from the backend's generator.

    Args:
        n_samples: cells a row.
        attention: (B, *grid) weights, or logarithms of them with use_logits.
        sample_space: the grid. It is read off the attention; one that differs is an error where both are known.
        replace: draw with replacement.

    Returns:
        samples (B, n, D) int64, coordinates in the order drawn; sampled attention (B, n), normalised.
    """
    attention = attention if is_symbolic(attention) else keras.ops.convert_to_tensor(attention)
    grid = ops.known_shape(attention)[1:]
    known = isinstance(sample_space, (tuple, list)) and all(isinstance(size, int) for size in (*sample_space, *grid))
    if known and tuple(sample_space) != grid:
        raise ValueError(f"sample_space: must be the attention's grid, {grid}, got {tuple(sample_space)}")
    samples, probabilities, _ = draw(attention, n_samples, replace, use_logits)
    return samples, probabilities


def expected(attention: Any, features: Any, replace: bool = False, weights: Any = None) -> Any:
    """Estimate the mean of the features over all cells from samples, as the paper does ("des_raj", or "iid").

    Args:
        attention: (B, n), in the order drawn.
        features: (B, n, ...); n must be known with weights and without replacement.
        replace: the cells were drawn with replacement.
        weights: (B, n) or (n,), of each sample's own estimate; 1/n each by default. Constants to gradients.

    Returns:
        (B, ...)
    """
    if weights is None:
        return estimate(features, attention, "iid" if replace else "des_raj")
    if is_symbolic(attention, features, weights):
        raise ValueError("weights: are taken with tensors, not in a functional model; leave them out, or use a layer")
    features, attention = keras.ops.convert_to_tensor(features), keras.ops.convert_to_tensor(attention)
    n = ops.known_shape(features)[1]
    if n is None:
        raise ValueError(f"features: the number of samples must be known with weights, got {tuple(features.shape)}")
    weights = keras.ops.stop_gradient(keras.ops.cast(keras.ops.convert_to_tensor(weights), features.dtype))
    if ops.known_shape(weights)[-1:] != (n,) or len(weights.shape) > 2:
        raise ValueError(f"weights: must be (B, n) or (n,) with n = {n}, got {tuple(weights.shape)}")
    weights = keras.ops.reshape(weights, (-1, n, *(1,) * (len(features.shape) - 2)))
    if replace:  # the mean of n * weight * feature
        return estimate(n * weights * features, attention, "iid")
    # One estimate a sample (all the weight on it), which the weights average: right in its gradients too, as all of it
    # is linear in the weights.
    one = [keras.ops.cast(keras.ops.arange(n) == i, "float32") for i in range(n)]
    estimates = [estimate(features, attention, "des_raj", weights=weight) for weight in one]
    return keras.ops.sum(weights * keras.ops.stack(estimates, axis=1), axis=1)


def estimate(features: Any, attention: Any, estimator: str, threshold: Any = None, weights: Any = None) -> Any:
    """`ats_core.expectation`, or its layer in a functional model."""
    more = [threshold] if estimator == "horvitz_thompson" else []
    if is_symbolic(features, attention):
        return Expectation(estimator)([features, attention, *more])
    features, attention = keras.ops.convert_to_tensor(features), keras.ops.convert_to_tensor(attention)
    return ops.expectation(
        features, at_least_float32(attention), estimator=estimator, threshold=more[0] if more else None, weights=weights
    )
