"""Estimate the attention-weighted mean of the features from the cells that were sampled."""

from numpy.typing import ArrayLike

from ats_core import _core
from ats_core._arguments import Array, to_array, to_name


def _optional(name: str, value: ArrayLike | None, like: Array) -> Array | None:
    return None if value is None else to_array(name, value, like=like)


def expectation(
    features: ArrayLike,
    attention: ArrayLike,
    *,
    estimator: str = "murthy",
    threshold: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    """Estimate ``sum_k a_k f_k`` over all cells from the n that were sampled.

    Parameters
    ----------
    features : array_like of float, shape (B, n, ...)
        One feature a sampled cell. float16, float32 or float64.
    attention : array_like of float32 or float64, shape (B, n)
        The cells' probabilities in the order drawn: ``Samples.attention``.
    estimator : str
        ``"murthy"`` (default), Murthy's 1957 estimator [2]_ with the baseline of Kool et al. [3]_, whatever the order
        drawn; ``"des_raj"``, ordered, by Des Raj [1]_, the one of the attention sampling paper [5]_;
        ``"horvitz_thompson"`` through the race's threshold [4]_; ``"iid"`` for samples with replacement;
        ``"normalized"``, attention over its sum, for `topk`. All but the last are unbiased.
    threshold : array_like, shape (B,), optional
        ``Samples.threshold``; ``"horvitz_thompson"`` needs it, the others do not read it.
    weights : array_like, shape (n,), optional
        Weights of ``"des_raj"``, summing to 1. 1/n each by default.

    Returns
    -------
    ndarray, shape (B, ...)
        The dtype of `features`.

    Raises
    ------
    ValueError
        For a wrong shape, dtype, estimator or value.
    TypeError
        For an argument that does not hold real numbers.

    Notes
    -----
    Every estimator is ``sum_i c_i f_i``; `estimator_arrays` returns ``c``.

    References
    ----------
    .. [1] Des Raj, "Some estimators in sampling with varying probabilities without replacement", JASA 51, 1956.
    .. [2] M. N. Murthy, "Ordered and unordered estimators in sampling without replacement", Sankhya 18, 1957.
    .. [3] W. Kool, H. van Hoof, M. Welling, "Estimating gradients for discrete random variables by sampling without
       replacement", ICLR 2020.
    .. [4] T. Vieira, "Estimating means in a finite universe", 2017.
    .. [5] A. Katharopoulos, F. Fleuret, "Processing megapixel images with deep attention-sampling models", ICML 2019.
    """
    attention = to_array("attention", attention)
    return _core.expectation(
        to_array("features", features),
        attention,
        to_name(estimator),
        _optional("threshold", threshold, attention),
        _optional("weights", weights, attention),
    )


def expectation_backward(
    grad: ArrayLike,
    features: ArrayLike,
    attention: ArrayLike,
    *,
    estimator: str = "murthy",
    threshold: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Gradients of `expectation` with respect to features and attention.

    Parameters
    ----------
    grad : array_like of float, shape (B, ...)
        Gradient with respect to what `expectation` returned.
    features, attention, estimator, threshold, weights
        As in `expectation`.

    Returns
    -------
    d_features : ndarray, shape (B, n, ...)
        ``c_i grad``, in the dtype of `features`.
    d_attention : ndarray, shape (B, n)
        ``sum_j M_ij <f_j, grad>``, in the dtype of `attention`: an unbiased estimate of the gradient of
        ``sum_k a_k f_k``, that the choice of the cells depends on the attention included. It is meant for attention
        out of a softmax: a baseline may shift all of it by a constant, which the softmax's gradient cancels.

    Raises
    ------
    ValueError
        For a wrong shape, dtype, estimator or value.
    TypeError
        For an argument that does not hold real numbers.
    """
    features = to_array("features", features)
    attention = to_array("attention", attention)
    return _core.expectation_backward(
        to_array("grad", grad, like=features),
        features,
        attention,
        to_name(estimator),
        _optional("threshold", threshold, attention),
        _optional("weights", weights, attention),
    )


def estimator_arrays(
    attention: ArrayLike,
    estimator: str = "murthy",
    *,
    threshold: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Return the two arrays that an estimator is.

    Parameters
    ----------
    attention, estimator, threshold, weights
        As in `expectation`.

    Returns
    -------
    c : ndarray, shape (B, n)
        The estimate is ``sum_i c_i f_i``.
    M : ndarray, shape (B, n, n)
        The gradient to the attention is ``sum_j M_ij <f_j, grad>``. Both in the dtype of `attention`.

    Raises
    ------
    ValueError
        For a wrong shape, dtype, estimator or value.
    TypeError
        For an argument that does not hold real numbers.
    """
    attention = to_array("attention", attention)
    return _core.estimator_arrays(
        attention,
        to_name(estimator),
        _optional("threshold", threshold, attention),
        _optional("weights", weights, attention),
    )
