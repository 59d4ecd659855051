"""Draw cells of an attention map."""

from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ats_core import _core
from ats_core._arguments import Array, Rng, to_array, to_bool, to_int, to_int64, to_rng


class Samples(NamedTuple):
    """Cells drawn from an attention map.

    Attributes
    ----------
    indices : ndarray of int64, shape (B, n)
        Flat cells, in the order drawn.
    attention : ndarray, shape (B, n)
        Their probabilities: weight over the row's total. float64 for a float64 map, otherwise float32.
    threshold : ndarray, shape (B,)
        In the exponential race (a cell rings after an exponential time, at the rate of its probability) the time of
        the first cell that was not drawn; ``inf`` where no cell with weight is left, with ``replace`` and for `topk`.
        The ``"horvitz_thompson"`` estimator wants it. Same dtype as `attention`.
    """

    indices: NDArray[np.int64]
    attention: Array
    threshold: Array


def sample(
    attention: ArrayLike, n: SupportsIndex, *, replace: bool = False, logits: bool = False, rng: Rng = None
) -> Samples:
    """Draw n cells a row, each with probability proportional to its weight among the cells left.

    Parameters
    ----------
    attention : array_like of float, shape (B, *grid)
        Weights: finite, not negative, of any scale (they need not sum to 1). float16, float32 or float64.
    n : int
        Cells to draw. Without `replace` every row needs that many cells of positive weight.
    replace : bool
        Draw among all cells every time, so that a cell may come again.
    logits : bool
        `attention` holds logarithms of weights; ``-inf`` stands for weight 0.
    rng : int, (seed, offset), int64 array of shape (2,), or None
        The same value gives the same cells, with any number of threads and in every framework. An int is a seed with
        offset 0. Row b draws from stream ``(seed, offset + b)``, so row b alone is ``sample(attention[b:b + 1], n,
        rng=(seed, offset + b))``. None takes a seed from the operating system.

    Returns
    -------
    Samples
        Named tuple of `indices`, `attention` and `threshold`.

    Raises
    ------
    ValueError
        For a wrong shape, dtype or value; for a row with a negative, NaN or infinite weight or with too few cells of
        positive weight.
    TypeError
        For an argument of a type that means nothing here.

    Notes
    -----
    The order of ringing in an exponential race is a sample without replacement, which is what makes the threshold a
    by-product [1]_.

    References
    ----------
    .. [1] T. Vieira, "Estimating means in a finite universe", 2017.
    """
    map_ = to_array("attention", attention)
    indices, probabilities, threshold, _ = _core.sample(
        map_, to_int("n", n), to_bool("replace", replace), to_bool("logits", logits), to_rng(rng)
    )
    return Samples(indices, probabilities, threshold)


def topk(attention: ArrayLike, n: SupportsIndex, *, logits: bool = False) -> Samples:
    """Take the n cells of largest weight a row, largest first, ties to the lower index.

    The deterministic choice, for inference; use it with the ``"normalized"`` estimator.

    Parameters
    ----------
    attention : array_like of float, shape (B, *grid)
        As in `sample`. Cells of weight 0 rank last and may be taken.
    n : int
        Cells to take, at most the number of cells.
    logits : bool
        `attention` holds logarithms of weights.

    Returns
    -------
    Samples
        As from `sample`; `threshold` is ``inf``.

    Raises
    ------
    ValueError
        For a wrong shape, dtype or value.
    """
    map_ = to_array("attention", attention)
    indices, probabilities, threshold, _ = _core.topk(map_, to_int("n", n), to_bool("logits", logits))
    return Samples(indices, probabilities, threshold)


def sample_backward(
    grad: ArrayLike, attention: ArrayLike, samples: Samples | tuple[Any, Any, Any], *, logits: bool = False
) -> Array:
    """Gradient with respect to the attention map of the probabilities that `sample` or `topk` returned.

    Parameters
    ----------
    grad : array_like of float, shape (B, n)
        Gradient with respect to ``samples.attention``.
    attention : array_like of float, shape (B, *grid)
        The map that was sampled.
    samples : Samples
        What `sample` or `topk` returned for it.
    logits : bool
        As it was given there.

    Returns
    -------
    ndarray, shape (B, *grid)
        The dtype of `attention`. Which cells were drawn counts as constant; the estimators of `expectation` make up
        for that in the gradient they pass on.

    Raises
    ------
    ValueError
        For a wrong shape, dtype or value.
    """
    map_ = to_array("attention", attention)
    try:
        drawn, attention_drawn, _ = samples
    except (TypeError, ValueError):
        raise TypeError(f"samples: must be what sample or topk returned, got {type(samples).__name__}") from None
    probabilities = to_array("samples", attention_drawn)
    in_logits = to_bool("logits", logits)
    # The rows' total weights are not part of Samples. topk reads the map once for them, as little as any way would.
    log_mass = _core.topk(map_, 1, in_logits)[3]
    return _core.sample_backward(
        to_array("grad", grad, like=probabilities),
        map_,
        to_int64("samples", drawn),
        probabilities,
        log_mass,
        in_logits,
    )
