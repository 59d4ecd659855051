"""Numbers that tell how attention sampling is doing, from NumPy arrays.

What attention looks like (`attention_statistics`), whether it has collapsed (`collapsed`, `CollapseDetector`), and how
much noise sampling adds (`effective_sample_size`, `estimator_variance`). docs/diagnostics.md says what to do about them.

Letters in shapes: B batch, n samples, R repetitions.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ats_core._arguments import Array, to_array, to_float, to_int

Doubles = NDArray[np.float64]

# A map counts as collapsed from these on: shares of the way from "as uniform attention" (0) to "all of it" (1).
CELL, EDGE = 0.9, 0.8
# Images that a `CollapseDetector` judges by.
WINDOW = 16


class AttentionCollapseWarning(UserWarning):
    """Attention has collapsed onto single cells or onto the edge of its map."""


@dataclass(frozen=True)
class AttentionStatistics:
    """What `attention_statistics` returns: float64 arrays (B,), one value an image.

    Attributes:
        entropy: in nats, between 0 (all attention on one cell) and log K (uniform) for K cells.
        relative_entropy: entropy / log K, between 0 and 1; 1 for a map of one cell.
        perplexity: exp(entropy), a number of cells between 1 and K.
        effective_cells: 1 / sum_k a_k^2, a number of cells between 1 and K that looks at the large shares only.
        largest_share: attention of the most attended cell.
        border_share: attention on the border: cells first or last along an axis. Axes of one or two cells have no
            inside and do not count; without any other axis there is no border, and this is 0.
        uniform_border_share: what border_share is for uniform attention; the same for every image of a batch.
        cell_excess: (largest_share - 1/K) / (1 - 1/K): 0 for uniform attention, 1 for all of it on one cell; 0 for K=1.
        edge_excess: the same for border_share and uniform_border_share: below 0 where the border is avoided, 0 for
            uniform attention, 1 for all of it on the border; 0 without a border. Attention that moves to a random cell
            for every image has a mean of 0.
    """

    entropy: Doubles
    relative_entropy: Doubles
    perplexity: Doubles
    effective_cells: Doubles
    largest_share: Doubles
    border_share: Doubles
    uniform_border_share: Doubles
    cell_excess: Doubles
    edge_excess: Doubles

    def means(self) -> dict[str, float]:
        """The mean over the images of each, by name; NaN for an empty batch."""
        return {field.name: mean_of(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class EstimatorVariance:
    """What `estimator_variance` returns: float64 arrays (B,), one value an image.

    Attributes:
        variance: unbiased estimate of E |F^ - E F^|^2, the variances of all components of the estimate F^ added up.
        squared_mean: unbiased estimate of |E F^|^2; it can be negative where noise hides the mean.
        relative_variance: variance / squared_mean; 0 where the variance is 0, inf where squared_mean is not positive.
    """

    variance: Doubles
    squared_mean: Doubles
    relative_variance: Doubles

    def means(self) -> dict[str, float]:
        """The means over the images of variance and relative_variance, NaN for an empty batch.

        That of relative_variance is the ratio of the two means, not the mean of ratios, which one image with a mean
        near 0 would decide alone.
        """
        variance, squared_mean = mean_of(self.variance), mean_of(self.squared_mean)
        return {"variance": variance, "relative_variance": float(_ratio(variance, squared_mean))}


def attention_statistics(attention: ArrayLike) -> AttentionStatistics:
    """Describe attention maps.

    Args:
        attention: (B, *grid) with 1 to 3 axes in grid; weights of any scale, at least 0, each row taken over its sum.

    Raises:
        ValueError: a wrong shape; a negative, NaN or infinite weight; a row without any positive one.
        TypeError: no real numbers.
    """
    maps = to_array("attention", attention)
    if not 2 <= maps.ndim <= 4 or 0 in maps.shape[1:]:
        raise ValueError(f"attention: must be (B, *grid) with 1 to 3 axes in grid, none empty, got {maps.shape}")
    cells = math.prod(maps.shape[1:])
    border = _border(maps.shape[1:])
    uniform = border.mean()
    # One row at a time: a batch of large maps is never there in float64 as a whole.
    rows = np.array([_describe(i, row, border) for i, row in enumerate(maps)]).reshape(-1, 4)
    entropy, squares, largest, on_border = rows.T
    return AttentionStatistics(
        entropy=entropy,
        relative_entropy=entropy / math.log(cells) if cells > 1 else np.ones_like(entropy),
        perplexity=np.exp(entropy),
        effective_cells=1.0 / squares,
        largest_share=largest,
        border_share=on_border,
        uniform_border_share=np.full_like(entropy, uniform),
        cell_excess=(largest - 1.0 / cells) / (1.0 - 1.0 / cells) if cells > 1 else np.zeros_like(entropy),
        edge_excess=(on_border - uniform) / (1.0 - uniform),
    )


def collapsed(
    statistics: AttentionStatistics, *, cell: float = CELL, edge: float = EDGE
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images' attention lies on one cell, and which on the border: two arrays (B,).

    Args:
        cell, edge: the least cell_excess and edge_excess that count, above 0 and at most 1.

    One image alone may be right to look at one cell, or at the border: a small object may be there. `CollapseDetector`
    looks at many.

    Raises:
        ValueError, TypeError: a threshold out of range.
    """
    return (
        statistics.cell_excess >= _threshold("cell", cell),
        statistics.edge_excess >= _threshold("edge", edge),
    )


class CollapseDetector:
    """Watches the attention of image after image for a collapse.

    Attention has collapsed onto single cells when cell_excess, and onto the edge when edge_excess, averaged over the
    last `window` images, has reached its threshold. Before that many were seen there is no verdict. Attention that
    rightly lies on one random cell an image is taken for an edge only by chance: with the defaults less than once in
    500 verdicts on different images where at most 0.578 of the cells are at the border (6 x 6, 8 x 8 x 8 and larger).

    Args:
        cell, edge: thresholds, as for `collapsed`.
        window: images, at least 1.

    Raises:
        ValueError, TypeError: an argument out of range.
    """

    def __init__(self, *, cell: float = CELL, edge: float = EDGE, window: int = WINDOW) -> None:
        self.cell = _threshold("cell", cell)
        self.edge = _threshold("edge", edge)
        window = to_int("window", window)
        if window < 1:
            raise ValueError(f"window: must be at least 1, got {window}")
        self._last: deque[tuple[float, float]] = deque(maxlen=window)

    def update(self, statistics: AttentionStatistics) -> tuple[str, ...]:
        """Add images, and say what is collapsed now: "cell", "edge", both or nothing."""
        self._last.extend(zip(statistics.cell_excess.tolist(), statistics.edge_excess.tolist(), strict=True))
        if len(self._last) < (self._last.maxlen or 0):
            return ()
        cell, edge = np.mean(self._last, 0)
        return tuple(kind for kind, found in (("cell", cell >= self.cell), ("edge", edge >= self.edge)) if found)


def effective_sample_size(coefficients: ArrayLike) -> Doubles:
    """(sum_i c_i)^2 / sum_i c_i^2 for the coefficients c (B, n) of `estimator_arrays`: how many of the n samples count.

    n where all count alike, 1 where one sample decides the estimate; 0 where all coefficients are 0.

    Returns:
        (B,) float64.

    Raises:
        ValueError: a wrong shape, NaN or infinite values. TypeError: no real numbers.
    """
    c = to_array("coefficients", coefficients).astype(np.float64)
    if c.ndim != 2:
        raise ValueError(f"coefficients: must be (B, n), got {c.shape}")
    if not np.isfinite(c).all():
        raise ValueError("coefficients: must be finite")
    largest = np.abs(c).max(1, initial=0.0, keepdims=True)
    c = c / np.where(largest > 0.0, largest, 1.0)  # so that no square underflows
    squares = (c * c).sum(1)
    return np.asarray(c.sum(1) ** 2 / np.where(squares > 0.0, squares, 1.0))


def estimator_variance(estimates: ArrayLike) -> EstimatorVariance:
    """Variance of an estimator, from independent repetitions of it.

    The squared norm of the sample mean is on average |E F^|^2 plus variance / R, which would make a noisy estimator
    look better than it is. So variance / R is taken off: what is left is the mean of <F^_r, F^_s> over all r != s,
    unbiased. (The ratio of two unbiased numbers is consistent, not unbiased.)

    Args:
        estimates: (B, R, ...) with R at least 2 independent estimates an image: other draws from the same attention.
            An image with any that is not finite gets NaN: in half precision that is no reason to end a training.

    Raises:
        ValueError: a wrong shape. TypeError: no real numbers.
    """
    array = to_array("estimates", estimates)
    if array.ndim < 2 or array.shape[1] < 2:
        raise ValueError(f"estimates: must be (B, R, ...) with at least 2 repetitions R, got {array.shape}")
    batch, repetitions = array.shape[:2]
    values = array.reshape(batch, repetitions, math.prod(array.shape[2:])).astype(np.float64)
    values[~np.isfinite(values).all((1, 2))] = np.nan
    mean = values.mean(1, keepdims=True)
    variance = ((values - mean) ** 2).sum((1, 2)) / (repetitions - 1)
    squared_mean = (mean**2).sum((1, 2)) - variance / repetitions
    return EstimatorVariance(variance, squared_mean, _ratio(variance, squared_mean))


def _describe(i: int, row: Array, border: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Entropy, sum of squares, largest share and border's share of one map."""
    weights = row.astype(np.float64)
    largest = weights.max()
    if not (np.isfinite(largest) and weights.min() >= 0.0 and largest > 0.0):  # NaN goes through max
        raise ValueError(f"attention: row {i} must hold finite weights, at least 0 and not all 0")
    shares = weights / largest  # first, so that no sum overflows
    shares /= shares.sum()
    positive = shares[shares > 0.0]
    entropy = -(positive * np.log(positive)).sum()
    return abs(float(entropy)), float((positive**2).sum()), float(shares.max()), float(shares[border].sum())


def _border(grid: tuple[int, ...]) -> NDArray[np.bool_]:
    """Cells first or last along an axis of three cells or more."""
    inside = np.zeros(grid, np.bool_)
    inside[tuple(slice(1, -1) if size > 2 else slice(None) for size in grid)] = True
    return ~inside


def _ratio(variance: Doubles | float, squared_mean: Doubles | float) -> Doubles:
    positive = np.asarray(squared_mean) > 0.0
    ratio = variance / np.where(positive, squared_mean, 1.0)
    return np.where(positive, ratio, np.where(np.asarray(variance) > 0.0, np.inf, variance))  # else 0, or NaN


def mean_of(values: Doubles) -> float:
    return float(values.mean()) if values.size else math.nan


def _threshold(name: str, value: float) -> float:
    number = to_float(name, value)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"{name}: must be above 0 and at most 1, got {value!r}")
    return number
