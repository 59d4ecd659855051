"""What libats has to compute: slow NumPy in float64, one function per operation. This file is the specification; the
library and its adapters are compared with it, never the other way round.

Letters: B batch, N samples, K cells, C channels, D spatial axes, S scales. Everything is channels-last here.
"""

import itertools
import math
from fractions import Fraction

import numpy as np

# ---- the law of sampling ------------------------------------------------------------------------------------------


def log_weights(weights):
    """Logarithms in float64; zero gives -inf. Exact enough for any float64, subnormals included."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(weights, dtype=np.float64))


def log_sum(logits, axis=-1):
    """log(sum(exp(logits))) without overflow; -inf where nothing is left."""
    logits = np.asarray(logits, dtype=np.float64)
    largest = np.max(logits, axis=axis, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return np.squeeze(largest, axis) + np.log(np.sum(np.exp(logits - largest), axis=axis))


def probabilities(weights=None, logits=None):
    """Normalised attention of each row (..., K)."""
    if logits is None:
        weights = np.asarray(weights, dtype=np.float64)
        _, exponent = np.frexp(weights.max(axis=-1, keepdims=True))  # to the middle of the range: no overflow
        weights = np.ldexp(weights, np.maximum(-exponent, -1022))
        weights = np.ldexp(weights, np.minimum(-exponent + 1022, 0))
    else:
        logits = np.asarray(logits, dtype=np.float64)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    total = np.apply_along_axis(math.fsum, -1, weights)
    return weights / total[..., None]


def ordered_draws(cells, n):
    """Every ordered draw of n out of `cells` cells without replacement: (count, n)."""
    return np.array(list(itertools.permutations(range(cells), n)), dtype=np.int64).reshape(-1, n)


def sequences(cells, n):
    """Every sequence of n cells, repeats allowed: (cells**n, n)."""
    return np.array(list(itertools.product(range(cells), repeat=n)), dtype=np.int64).reshape(-1, n)


def log_probability(draws, logits):
    """Log-probability of each ordered draw (count, n) without replacement from softmax(logits), logits (K,)."""
    logits = np.asarray(logits, dtype=np.float64)
    left = np.tile(logits, (len(draws), 1))
    rows = np.arange(len(draws))
    total = np.zeros(len(draws))
    for i in range(draws.shape[1]):
        chosen = logits[draws[:, i]]
        mass = log_sum(left)
        with np.errstate(invalid="ignore"):
            total += np.where(chosen == -np.inf, -np.inf, chosen - mass)
        left[rows, draws[:, i]] = -np.inf
    return np.where(np.isnan(total), -np.inf, total)


def draw_probability(draws, weights=None, logits=None):
    return np.exp(log_probability(draws, log_weights(weights) if logits is None else logits))


def threshold_cdf(times, attention, n):
    """P(the (n+1)-th ringing comes before t) in the race with rates `attention` (K,): at least n+1 cells have rung,
    a sum of independent Bernoulli(1 - exp(-a t)), added up by dynamic programming."""
    times = np.asarray(times, dtype=np.float64)
    count = np.zeros((len(times), len(attention) + 1))
    count[:, 0] = 1.0
    for a in attention:
        rung = -np.expm1(-a * times)
        rung = np.where(np.isinf(times) & (a > 0), 1.0, rung)[:, None]
        moved = count * (1.0 - rung)
        moved[:, 1:] += count[:, :-1] * rung
        count = moved
    return count[:, n + 1 :].sum(axis=1)


def sample_backward(grad, attention, indices, logits=False):
    """Gradient of sum(grad * probabilities[indices]) with respect to the weights or logits of one batch (B, K)."""
    grad, attention = np.asarray(grad, dtype=np.float64), np.asarray(attention, dtype=np.float64)
    result = np.zeros_like(attention)
    for b in range(len(attention)):
        p = probabilities(logits=attention[b]) if logits else probabilities(attention[b])
        mass = attention[b].sum()
        for g, k in zip(grad[b], indices[b], strict=True):
            if logits:
                row = -p[k] * p
                row[k] += p[k]
            else:
                row = np.full(len(p), -p[k] / mass)
                row[k] += 1.0 / mass
            result[b] += g * row
    return result


def topk(attention, n):
    """The n largest of each row, ties to the lower index."""
    return np.argsort(-np.asarray(attention, dtype=np.float64), axis=-1, kind="stable")[:, :n]


# ---- locate -------------------------------------------------------------------------------------------------------


def locate_exact(indices, grid, image, patch, low=None, receptive_field=None):
    """Where patches begin before rounding, as exact fractions: nested lists (B, N, D)."""
    d = len(grid)
    low = list(grid) if low is None else list(low)
    receptive_field = [0] * d if receptive_field is None else list(receptive_field)
    result = []
    for row in np.asarray(indices).tolist():
        result.append([])
        for flat in row:
            cell = []
            for size in reversed(grid):
                cell.insert(0, flat % size)
                flat //= size
            assert flat == 0, "index outside the grid"
            origin = []
            for axis in range(d):
                scale = Fraction(image[axis], low[axis])
                step = (low[axis] - receptive_field[axis]) * scale / grid[axis]
                start = Fraction(receptive_field[axis], 2) * scale
                origin.append(start + cell[axis] * step + step / 2 - Fraction(patch[axis], 2))
            result[-1].append(origin)
    return result


def locate(indices, grid, image, patch, low=None, receptive_field=None):
    exact = locate_exact(indices, grid, image, patch, low, receptive_field)
    # round() of a Fraction is exact, half to even
    rounded = [[[round(x) for x in origin] for origin in row] for row in exact]
    return np.array(rounded, dtype=np.int64).reshape(*np.shape(indices), len(grid))


# ---- extract_patches ----------------------------------------------------------------------------------------------


def source_index(i, size, padding):
    """The pixel that stands for pixel i (a Python int of any size) of an axis, or None for the fill."""
    if 0 <= i < size:
        return i
    if padding == "constant":
        return None
    if padding == "edge":
        return 0 if i < 0 else size - 1
    assert padding == "reflect"
    if size == 1:
        return 0
    period = 2 * (size - 1)
    i %= period
    return i if i < size else period - i


def _pixels(origin, patch, scale, size, padding):
    """Source pixel (or None) of each of the scale * patch pixels that one axis of a patch covers."""
    first = int(origin) - (scale - 1) * int(patch) // 2  # // floors
    return [source_index(first + i, size, padding) for i in range(scale * patch)]


def extract_patches(image, origins, patch, scales=None, padding="constant", fill=0.0, mean=None, std=None):
    """Patches (B, N, [S,] *patch, C) in float64, before the conversion to their dtype (see `convert`)."""
    image = np.asarray(image, dtype=np.float64)
    batch, spatial, channels = image.shape[0], image.shape[1:-1], image.shape[-1]
    n = origins.shape[1]
    result = np.empty((batch, n, len(scales or [1]), *patch, channels))
    for b, i, (s, scale) in itertools.product(range(batch), range(n), enumerate(scales or [1])):
        axes = [_pixels(origins[b, i, axis], patch[axis], scale, spatial[axis], padding) for axis in range(len(patch))]
        window = np.full((*[len(a) for a in axes], channels), float(fill))
        inside = [[at for at, pixel in enumerate(a) if pixel is not None] for a in axes]
        if all(inside):
            pixels = [[pixel for pixel in a if pixel is not None] for a in axes]
            window[np.ix_(*inside)] = image[b][np.ix_(*pixels)]
        blocks = window.reshape(*itertools.chain(*[(p, scale) for p in patch]), channels)
        with np.errstate(invalid="ignore"):
            result[b, i, s] = blocks.mean(axis=tuple(range(1, 2 * len(patch), 2)))
    with np.errstate(invalid="ignore"):
        if mean is not None:
            result = result - np.asarray(mean, dtype=np.float64)
        if std is not None:
            result = result / np.asarray(std, dtype=np.float64)
    return result if scales is not None else result[:, :, 0]


def convert(values, dtype):
    """float64 to `dtype` as extract_patches does: integers are rounded half to even and saturate."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def extract_patches_backward(grad, origins, spatial, patch, scales=None, padding="constant", std=None):
    """Gradient (B, *spatial, C) at the image: every output pixel hands grad / scale**D / std to the s**D pixels it
    averaged."""
    grad = np.asarray(grad, dtype=np.float64)
    if scales is None:
        grad = grad[:, :, None]
    d, channels = len(patch), grad.shape[-1]
    if std is not None:
        grad = grad / np.asarray(std, dtype=np.float64)
    result = np.zeros((grad.shape[0], *spatial, channels))
    for b, i, (s, scale) in itertools.product(range(grad.shape[0]), range(grad.shape[1]), enumerate(scales or [1])):
        axes = [_pixels(origins[b, i, axis], patch[axis], scale, spatial[axis], padding) for axis in range(d)]
        inside = [[at for at, pixel in enumerate(a) if pixel is not None] for a in axes]
        if not all(inside):
            continue
        spread = grad[b, i, s]
        for axis in range(d):
            spread = np.repeat(spread, scale, axis=axis)
        pixels = np.ix_(*[[pixel for pixel in a if pixel is not None] for a in axes])
        np.add.at(result[b], pixels, spread[np.ix_(*inside)] / scale**d)
    return result


# ---- the estimators -----------------------------------------------------------------------------------------------


def rest(attention):
    """1 - sum(attention), exact, then rounded once. Not above 0: nothing is left."""
    return float(1 - sum((Fraction(float(a)) for a in attention), Fraction(0)))


def _all_before_rest(attention, r):
    """g[mask] = P(the cells of `mask` all ring before a cell of rate r) / (product of their rates), for every subset,
    by the first to ring: g(A) = sum_j g(A without j) / (r + a(A)). Only positive terms: no cancellation. With
    r = 1 - a(S) the probability is P(S), that the first |S| draws are the set S, and without i in A it is the same
    where cell i does not exist."""
    n = len(attention)
    g, mass = [1.0] * (1 << n), [0.0] * (1 << n)
    for mask in range(1, 1 << n):
        members = [j for j in range(n) if mask >> j & 1]
        mass[mask] = math.fsum(attention[j] for j in members)
        g[mask] = math.fsum(g[mask & ~(1 << j)] for j in members) / (r + mass[mask])
    return g


def murthy_subsets(attention):
    """c and M of one row by the exact sum over all subsets; N up to 13 or so."""
    a = [float(x) for x in attention]
    n, r = len(a), rest(attention)
    if n == 1:  # c = a / P(S) = 1; a sample alone has no other to be its baseline
        return np.ones(1), np.array([[1.0 / a[0]]])
    c, m = np.array(a), np.zeros((n, n))
    if r <= 0:  # the sample is the whole mass
        return c, np.eye(n) - np.array(a)[None, :]
    g, everything = _all_before_rest(a, r), (1 << n) - 1
    for i in range(n):
        without = everything & ~(1 << i)
        c[i] = g[without] / g[everything]
        for j in range(n):
            second = a[j] if j == i else g[without & ~(1 << j)] / g[without]  # a_j R2_ij
            m[i, j] = c[i] / a[i] * ((1.0 if i == j else 0.0) - second)
    return c, m


def murthy_quadrature(attention, nodes=3000):
    """c and M of one row through P(S) = r int exp(-r t) prod(1 - exp(-a_s t)) dt in y = log(t): any N. The trapezoid
    rule converges geometrically there; 3000 nodes are ten times what 1e-13 takes."""
    a = np.asarray(attention, dtype=np.float64)
    n, r = len(a), rest(attention)
    if r <= 0 or n == 1:
        return murthy_subsets(attention)
    y = np.linspace(math.log(1e-24), math.log(800.0 + 3 * n), nodes) - math.log(r)
    t = np.exp(y)
    factors = np.log(-np.expm1(-a[:, None] * t))  # log P(cell has rung by t)
    base = math.log(r) - r * t + y + factors.sum(axis=0)
    single = log_sum(base - factors)
    ratio = np.exp(single - log_sum(base))
    second = np.empty((n, n))
    if n <= 12:
        for i in range(n):
            second[i] = np.exp(log_sum(base - factors[i] - factors) - single[i])
    else:  # the same as a product of matrices, where logarithms would take minutes
        inverse = np.exp(-factors)
        second = (inverse * np.exp(base - base.max())) @ inverse.T
        second /= np.exp(single - base.max())[:, None]
    np.fill_diagonal(second, 1.0)
    return a * ratio, ratio[:, None] * (np.eye(n) - a * second)


def estimator_arrays(attention, estimator, threshold=None, weights=None):
    """c (B, N) and M (B, N, N) of every row."""
    attention = np.asarray(attention, dtype=np.float64)
    batch, n = attention.shape
    c, m = np.zeros((batch, n)), np.zeros((batch, n, n))
    for b in range(batch):
        a = attention[b]
        if estimator == "iid":
            c[b] = 1.0 / n
            if n > 1:  # every other sample serves as the baseline
                m[b] = -1.0 / (n * (n - 1) * a[:, None])
            np.fill_diagonal(m[b], 1.0 / (n * a))
        elif estimator == "des_raj":
            w = np.full(n, 1.0 / n) if weights is None else np.asarray(weights, dtype=np.float64)
            for i in range(n):
                before = float(1 - sum((Fraction(float(x)) for x in a[:i]), Fraction(0)))
                after = math.fsum(w[i + 1 :])
                c[b, i] = w[i] * before + a[i] * after
                m[b, i, i] = w[i] * before / a[i] + after
        elif estimator == "murthy":
            c[b], m[b] = murthy_subsets(a) if n <= 10 else murthy_quadrature(a)
        elif estimator == "horvitz_thompson":
            t = float(threshold[b])
            inclusion = np.ones(n) if math.isinf(t) else -np.expm1(-a * t)
            c[b] = a / inclusion
            np.fill_diagonal(m[b], 1.0 / inclusion)
        elif estimator == "normalized":
            total = math.fsum(a)
            c[b] = a / total
            m[b] = (np.eye(n) - (a / total)[None, :]) / total
        else:
            raise ValueError(estimator)
    return c, m


def expectation(features, attention, estimator, threshold=None, weights=None):
    """sum_i c_i f_i: (B, N, ...) -> (B, ...)."""
    c, _ = estimator_arrays(attention, estimator, threshold, weights)
    return np.einsum("bn,bn...->b...", c, np.asarray(features, dtype=np.float64))


def expectation_backward(grad, features, attention, estimator, threshold=None, weights=None):
    """df_i = c_i g and da_i = sum_j M_ij <f_j, g>."""
    c, m = estimator_arrays(attention, estimator, threshold, weights)
    grad, features = np.asarray(grad, dtype=np.float64), np.asarray(features, dtype=np.float64)
    batch, n = c.shape
    d_features = c.reshape(batch, n, *[1] * (grad.ndim - 1)) * grad[:, None]
    h = np.sum((features * grad[:, None]).reshape(batch, n, -1), axis=2) if features.size else np.zeros((batch, n))
    return d_features, np.einsum("bij,bj->bi", m, h)


# ---- inputs that tests share ----


def weights_of(shape, dtype="float32"):
    """Weights that depend on the number of cells alone."""
    return np.random.default_rng(math.prod(shape)).exponential(size=shape).astype(dtype)
