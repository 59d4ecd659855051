"""sample: the right law at every edge. (The same picks everywhere: test_sample_picks.py.)

Chi-square and Kolmogorov-Smirnov tests fail below p = 1e-4. The seeds are fixed, so that a run is repeatable; for a
right sampler with other seeds, a false alarm somewhere in this file's some 250 tests of a law has a chance of 2.5%.
"""

import math

import numpy as np
import pytest

import reference
from tolerances import PROBABILITY, assert_close

ALPHA = 1e-4
TINY32, TINY64 = 1e-45, 5e-324  # the smallest subnormals


def check_frequencies(counts, expected):
    """Chi-square with cells pooled to an expectation of at least 5; what cannot happen must not have happened."""
    counts, expected = np.asarray(counts, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    expected = expected * (counts.sum() / expected.sum())
    assert counts[expected < 1e-12 * counts.sum()].sum() == 0, "an outcome of probability 0"
    order = np.argsort(-expected)
    counts, expected = counts[order], expected[order]
    kept = int((expected >= 5).sum())
    if kept < len(expected):
        counts = np.append(counts[:kept], counts[kept:].sum())
        expected = np.append(expected[:kept], expected[kept:].sum())
        if expected[-1] < 5 and kept:
            counts[-2], expected[-2] = counts[-2:].sum(), expected[-2:].sum()
            counts, expected = counts[:-1], expected[:-1]
    if len(counts) > 1:
        p = stats().chisquare(counts, expected).pvalue
        assert p > ALPHA, f"chi-square p = {p:.3g}"


def stats():
    """SciPy's, which machines with a GPU may lack: the tests without statistics run all the same."""
    return pytest.importorskip("scipy.stats")


def check_ordered_draws(indices, logits):
    """Frequencies of all ordered draws (rows, n) against softmax(logits) without replacement."""
    cells, n = len(logits), indices.shape[1]
    draws = reference.ordered_draws(cells, n)
    radix = cells ** np.arange(n)
    assert indices.min() >= 0 and indices.max() < cells
    counts = np.bincount(indices @ radix, minlength=cells**n)
    assert counts.sum() == counts[draws @ radix].sum(), "a cell was drawn twice"
    check_frequencies(counts[draws @ radix], reference.draw_probability(draws, logits=logits))


def rows(backend, values, count, dtype):
    """`count` equal rows."""
    row = backend.numpy(backend.array(np.asarray(values, dtype=np.float64), dtype)).astype(np.float64)
    return backend.array(np.tile(row, (count, 1)), dtype), row


RNG = np.random.default_rng(20)
LAWS = {
    "k4n1": ([0.4, 0.3, 0.2, 0.1], 1),
    "k4n2": ([0.1, 0.2, 0.3, 0.4], 2),
    "k4n4": ([0.4, 0.3, 0.2, 0.1], 4),
    "k5n2": (RNG.dirichlet(np.full(5, 0.5)), 2),
    "k5n3": (RNG.dirichlet(np.full(5, 2.0)), 3),
    "k6n3": (RNG.dirichlet(np.full(6, 1.0)), 3),
    "k6n5": (RNG.dirichlet(np.full(6, 1.0)), 5),
    "k7n4": (RNG.dirichlet(np.full(7, 0.7)), 4),
    "k7n7": (RNG.dirichlet(np.full(7, 3.0)), 7),
    "zeros": ([0, 0.5, 0, 0.3, 0.2, 0], 3),
    "unnormalised": ([1000, 2500, 100, 4000, 1], 3),
    "equal": ([1, 1, 1, 1, 1], 4),
    "one dominates": ([1e6, 1, 2, 3], 3),
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ordered_draws_have_the_right_law(backend, name, dtype):
    weights, n = LAWS[name]
    attention, hidden = rows(backend, weights, 200_000, dtype)
    indices, _, _ = backend.sample(attention, n, rng=(11, 0))
    check_ordered_draws(indices, reference.log_weights(hidden))


@pytest.mark.parametrize("name", ["k5n2", "k6n3", "zeros"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_draws_by_the_rounded_weights(backend, name, dtype):
    if dtype not in backend.floating:
        pytest.skip(f"{backend.name} has no {dtype}")
    weights, n = LAWS[name]
    attention, hidden = rows(backend, weights, 100_000, dtype)
    indices, _, _ = backend.sample(attention, n, rng=(12, 0))
    check_ordered_draws(indices, reference.log_weights(hidden))


EXTREMES = {
    "what is left is tiny": ("float32", [1, 1e-30, 1e-30, 1e-30], 3),
    "tiny and unequal": ("float32", [1e-30, 1, 3e-30, 2e-30], 4),
    "30 orders": ("float32", [1e15, 2e-15, 1, 1e-15, 3], 5),
    "all tiny": ("float32", [1e-38, 2e-38, 3e-38, 4e-38], 3),
    "subnormal": ("float32", [1 * TINY32, 2 * TINY32, 3 * TINY32, 4 * TINY32], 3),
    "subnormal left": ("float32", [3e38, 2 * TINY32, TINY32, TINY32], 4),
    "all huge": ("float32", [3.4e38, 3e38, 2e38, 1e38, 3.4e38], 3),
    "600 orders": ("float64", [1e300, 1e-300, 2e-300, 1e-300], 4),
    "tiny left": ("float64", [1e-30, 1, 1e-30, 1e-30], 3),
    "levels": ("float64", [1e300, 1e100, 2e100, 1e-100, 1e-300, 3e-300, 1e-100], 7),
    "tiny subnormal": ("float64", [1 * TINY64, 2 * TINY64, 3 * TINY64, 4 * TINY64], 4),
    "huge and subnormal": ("float64", [1.7e308, TINY64, 2 * TINY64, TINY64], 4),
    "sum overflows": ("float64", [1.7e308, 1.7e308, 0.85e308, 1.7e308, 0.5e308], 3),
    "half precision": ("float16", [6e4, 6e-8, 1.2e-7, 6e-8], 4),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_weights_have_the_right_law(backend, name):
    dtype, weights, n = EXTREMES[name]
    attention, hidden = rows(backend, weights, 100_000, dtype)
    assert (hidden > 0).all()
    indices, probabilities, threshold = backend.sample(attention, n, rng=(13, 0))
    check_ordered_draws(indices, reference.log_weights(hidden))
    expected = reference.probabilities(hidden)
    smallest = np.finfo(probabilities.dtype).smallest_subnormal
    error = np.abs(probabilities - expected[indices])
    assert (error <= PROBABILITY[dtype] * expected[indices] + 2 * smallest).all()
    assert not np.isnan(threshold).any() and (threshold > 0).all()
    assert n < len(weights) or np.isinf(threshold).all()


LOGITS = {
    "plain": ("float64", [0.3, -1.0, 2.0, 0.0, 0.5], 3),
    "shifted": ("float32", [1e4 + 0.5, 1e4 - 1.0, 1e4 + 2.0, 1e4], 3),
    "far down": ("float64", [-1e4 + 0.5, -1e4 - 1.0, -1e4 + 2.0, -1e4], 3),
    "minus infinity": ("float64", [-math.inf, 0.3, -math.inf, 1.0, 0.1], 3),
    "minus infinity, float32": ("float32", [0.0, -math.inf, 0.3, -math.inf, 1.0, 0.1], 4),
    "a span of 2e4": ("float64", [1e4, 0.0, 0.5, -1e4], 4),
    "a span of 2e4, float32": ("float32", [0.0, 1e4, -1e4, 0.5, -1e4 + 1.0], 5),
    "a span of 2e4, float16": ("float16", [0.0, 1e4, 0.5, -1e4], 4),
    "exp underflows in float32": ("float32", [0.0, -120.0, -119.0, -120.5], 4),
    "exp underflows in float64": ("float64", [0.0, -800.0, -801.0, -800.5], 4),
    "half": ("float16", [0.3, -1.0, 2.0, 0.0, 0.5], 3),
    "bfloat16": ("bfloat16", [0.3, -1.0, 2.0, 0.0, 0.5], 3),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_have_the_right_law(backend, name):
    dtype, values, n = LOGITS[name]
    if dtype not in backend.floating:
        pytest.skip(f"{backend.name} has no {dtype}")
    attention, hidden = rows(backend, values, 100_000, dtype)
    indices, probabilities, _ = backend.sample(attention, n, logits=True, rng=(14, 0))
    check_ordered_draws(indices, hidden)
    expected = reference.probabilities(logits=hidden)[indices]
    tolerance = 1e-13 if dtype == "float64" else 4e-6
    assert (np.abs(probabilities - expected) <= tolerance * expected + 1e-45).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_with_replacement_is_multinomial(backend, dtype):
    weights = [0.4, 0.0, 3.0, 0.2, 0.1, 1e-3]
    attention, hidden = rows(backend, weights, 50_000, dtype)
    indices, probabilities, threshold = backend.sample(attention, 3, replace=True, rng=(15, 0))
    p = reference.probabilities(hidden)
    joint = p[:, None, None] * p[None, :, None] * p[None, None, :]
    counts = np.bincount(indices @ [36, 6, 1], minlength=216)
    check_frequencies(counts, joint.ravel())  # also: the three are independent
    assert np.isinf(threshold).all()
    assert (np.abs(probabilities - p[indices]) <= PROBABILITY[dtype] * p[indices]).all()


def test_more_draws_than_cells_with_replacement(backend):
    indices, _, _ = backend.sample(np.array([[0.0, 2.0, 1.0]]), 100_000, replace=True, rng=16)
    check_frequencies(np.bincount(indices[0], minlength=3), [0, 2, 1])


@pytest.mark.parametrize("cells", [31, 32, 33, 64, 1000, 1023, 1024, 1025, 4097, 32768, 32769, 100_003])
def test_frequencies_in_a_long_row(backend, cells):
    weights = np.random.default_rng(cells).exponential(size=cells)
    indices, _, _ = backend.sample(weights[None].astype(np.float32), 200_000, replace=True, rng=(17, cells))
    counts = np.bincount(indices[0], minlength=cells)
    groups = -(-cells // 1000)
    starts = np.arange(0, cells, groups)
    check_frequencies(np.add.reduceat(counts, starts), np.add.reduceat(weights, starts))


@pytest.mark.parametrize("cells", [1, 2, 31, 32, 33, 1023, 1024, 1025, 1056, 1057, 32767, 32768, 32769, 33_000, 70_001])
def test_all_cells_are_drawn_exactly_once(backend, cells):
    weights = np.random.default_rng(cells).exponential(size=(2, cells)) + 1e-3
    indices, _, threshold = backend.sample(weights, cells, rng=(18, 0))
    assert (np.sort(indices, axis=1) == np.arange(cells)).all()
    assert np.isinf(threshold).all()
    # the heavy ones tend to come first
    if cells > 1000:
        ranks = np.empty(cells)
        ranks[indices[0]] = np.arange(cells)
        assert stats().spearmanr(ranks, weights[0]).statistic < -0.5


@pytest.mark.parametrize("cells", [31, 32, 33, 97, 1023, 1024, 1025, 1057])
def test_every_cell_can_be_the_only_one(backend, cells):
    indices, probabilities, threshold = backend.sample(np.eye(cells, dtype=np.float32) * 1e-20, 1, rng=(19, 0))
    assert (indices[:, 0] == np.arange(cells)).all()
    assert (probabilities == 1).all() and np.isinf(threshold).all()


@pytest.mark.parametrize("cells", [32_767, 32_768, 32_769, 65_537, 1_048_577])
def test_lone_cells_at_the_borders_of_a_long_row(backend, cells):
    at = np.array([0, 31, 32, 1023, 1024, 1055, 1056, cells // 2, cells - 33, cells - 32, cells - 2, cells - 1])
    attention = np.zeros((1, cells), dtype=np.float32)
    attention[0, at] = 10.0 ** np.linspace(-15, 15, len(at))
    for seed in range(20):
        indices, _, _ = backend.sample(attention, len(at), rng=(seed, 0))
        assert (np.sort(indices[0]) == at).all()
        alone = np.zeros_like(attention)
        alone[0, at[seed % len(at)]] = 1.0
        assert backend.sample(alone, 1, rng=(seed, 0))[0][0, 0] == at[seed % len(at)]


def test_zero_weights_are_never_drawn_and_nothing_twice(backend):
    generator = np.random.default_rng(21)
    for dtype in ("float32", "float64"):
        weights = 10.0 ** generator.uniform(-30, 30, size=(3000, 130)) * (generator.random((3000, 130)) < 0.4)
        weights = weights.astype(dtype)
        n = int((weights > 0).sum(axis=1).min())
        assert n > 20
        indices, probabilities, _ = backend.sample(weights, n, rng=(22, 5))
        assert (np.take_along_axis(weights, indices, axis=1) > 0).all()
        assert (np.diff(np.sort(indices, axis=1), axis=1) > 0).all()
        assert (probabilities >= 0).all()


@pytest.mark.parametrize("dominant", [0, 31, 20_000, 39_999])
def test_one_cell_dominates_a_long_row(backend, dominant):
    cells, n = 40_000, 8001
    weights = np.full((1, cells), 1e-8, dtype=np.float32)
    weights[0, dominant] = 1e30
    indices, _, _ = backend.sample(weights, n, rng=(23, dominant))
    assert indices[0, 0] == dominant
    assert len(set(indices[0].tolist())) == n
    check_frequencies(np.bincount(indices[0, 1:] // 625, minlength=64), np.full(64, 1.0))


def test_thirty_million_cells(backend):
    cells = 30_000_000
    weights = np.ones((1, cells), dtype=np.float32)
    weights[0, ::2] = 3.0  # the sum is far beyond 2**24, where adding ones in float32 stops
    n = 20_000
    indices, probabilities, threshold = backend.sample(weights, n, rng=(24, 0))
    assert len(set(indices[0].tolist())) == n
    check_frequencies(np.bincount(indices[0] * 64 // cells, minlength=64), np.full(64, 1.0))
    check_frequencies(np.bincount(indices[0] % 2, minlength=2), [3, 1])
    check_frequencies(np.bincount(indices[0] % 32, minlength=32), np.tile([3.0, 1.0], 16))
    expected = np.where(indices % 2, 1.0, 3.0) / (2.0 * cells)
    assert (np.abs(probabilities - expected) <= PROBABILITY["float32"] * expected).all()
    assert abs(threshold[0] - n) < 6 * math.sqrt(n)  # hardly any mass has gone: one ringing per unit of time


# ---- the threshold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-5, 300.0])
@pytest.mark.parametrize(
    "weights, n",
    [([0.7, 0.3], 1), ([0.5, 0.3, 0.15, 0.05], 3), ([0.4, 0.3, 0.2, 0.1], 1), ([0.6, 0.2, 0.1, 0.05, 0.05], 2)],
)
def test_threshold_is_the_time_of_the_next_ringing(backend, weights, n, scale):
    attention = np.tile(np.array(weights) * scale, (50_000, 1))
    _, _, threshold = backend.sample(attention, n, rng=(25, 0))
    p = stats().kstest(threshold, lambda t: reference.threshold_cdf(t, weights, n)).pvalue
    assert p > ALPHA, f"Kolmogorov-Smirnov p = {p:.3g}"


def test_threshold_depends_on_the_cells_drawn_as_in_the_race(backend):
    """Given the ordered draw, the waits are independent, exponential with the mass left as their rate."""
    weights, n = np.array([0.6, 0.2, 0.1, 0.1]), 2
    indices, _, threshold = backend.sample(np.tile(weights, (200_000, 1)), n, logits=False, rng=(26, 0))
    generator = np.random.default_rng(0)
    for draw in ([0, 1], [1, 0], [2, 3], [3, 0]):
        found = threshold[(indices == draw).all(axis=1)]
        assert len(found) > 1000
        rates = 1.0 - np.concatenate([[0.0], np.cumsum(weights[draw])])
        simulated = (generator.exponential(size=(200_000, n + 1)) / rates).sum(axis=1)
        p = stats().ks_2samp(found, simulated).pvalue
        assert p > ALPHA, f"{draw}: p = {p:.3g}"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_horvitz_thompson_with_the_threshold_is_unbiased(backend, n):
    """E[1[k drawn] / P(k rings before the threshold)] = 1 for every cell."""
    weights, count = np.array([0.5, 0.2, 0.15, 0.1, 0.05]), 200_000
    indices, attention, threshold = backend.sample(np.tile(weights, (count, 1)), n, rng=(27, 0))
    inverse = 1.0 / -np.expm1(-attention * threshold[:, None])
    for cell in range(len(weights)):
        found = np.where(indices == cell, inverse, 0.0).sum(axis=1)
        z = (found.mean() - 1.0) / (found.std() / math.sqrt(count))
        assert abs(z) < 5, f"cell {cell}: z = {z:.2f}"  # 6e-7 each for a normal; the tails are heavier


def test_threshold_of_extreme_weights(backend):
    _, _, threshold = backend.sample(np.tile([1.0, 1e-30, 1e-30], (20_000, 1)), 1, rng=(28, 0))
    p = stats().kstest(threshold, lambda t: -np.expm1(-2e-30 * t)).pvalue
    assert p > ALPHA


@pytest.mark.parametrize("replace", [False, True])
def test_streams_are_unrelated(backend, replace):
    """The picks of different seeds, rows and draws are independent: chi-square of their pairs."""
    weights = np.full((40_000, 4), 0.25)
    streams = {rng: backend.sample(weights, 3, replace=replace, rng=rng)[0] for rng in [(1, 0), (2, 0), (1 << 32, 0)]}
    streams |= {rng: backend.sample(weights, 3, replace=replace, rng=rng)[0] for rng in [(1, 1), (1, 2), (1, 1 << 32)]}
    first = streams.pop((1, 0))
    for other in streams.values():
        for i in range(3):
            for j in range(3):
                pairs = (4 * first[:, i] + other[:, j])[::4]  # every fourth: pairs of neighbouring rows would overlap
                check_frequencies(np.bincount(pairs, minlength=16), np.full(16, 1.0))


# ---- probabilities, dtypes, gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("cells", [5, 33, 1025, 50_000])
def test_probabilities_and_dtypes(backend, dtype, replace, cells):
    if dtype not in backend.floating:
        pytest.skip(f"{backend.name} has no {dtype}")
    attention = backend.array(reference.weights_of((3, cells), "float64"), dtype)
    indices, probabilities, threshold = backend.sample(attention, 4, replace=replace, rng=(1, 1))
    assert indices.dtype == np.int64 and indices.shape == (3, 4)
    assert probabilities.dtype == threshold.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert threshold.shape == (3,)
    hidden = backend.numpy(attention).astype(np.float64)
    expected = np.take_along_axis(hidden, indices, axis=1) / [[math.fsum(row)] for row in hidden]
    assert (np.abs(probabilities - expected) <= PROBABILITY[dtype] * expected).all()


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("mode", ["plain", "replace", "top"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_of_the_probabilities(backend, logits, mode, dtype):
    generator = np.random.default_rng(3)
    attention = generator.normal(size=(3, 4, 11)) if logits else generator.exponential(size=(3, 4, 11)) * 100
    if logits:
        attention[0, 1, 2:5] = -np.inf
    attention, grad = attention.astype(dtype), generator.normal(size=(3, 6)).astype(dtype)
    options = {"top": True} if mode == "top" else {"replace": mode == "replace", "rng": (4, 4)}
    indices, found = backend.sample_backward(grad, attention, 6, logits=logits, **options)
    expected = reference.sample_backward(grad, attention.reshape(3, -1), indices, logits).reshape(3, 4, 11)
    assert_close(found, expected, dtype, scale=np.abs(expected).max())
    assert np.isfinite(found).all()


def test_gradient_of_any_layout(backend):
    attention, grad = reference.weights_of((3, 6, 7), "float64"), np.random.default_rng(6).normal(size=(3, 5))
    _, expected = backend.sample_backward(grad, attention, 5, rng=(4, 4))
    for a in (np.asfortranarray(attention), np.repeat(attention, 2, axis=2)[..., ::2]):
        for g in (grad, np.asfortranarray(grad), np.repeat(grad, 2, axis=0)[::2]):
            _, found = backend.sample_backward(g, a, 5, rng=(4, 4))
            assert found.tobytes() == expected.tobytes()


def test_gradient_of_a_huge_and_a_tiny_mass(backend):
    for scale in (1e-250, 1e250):
        attention = np.random.default_rng(5).exponential(size=(2, 40)) * scale
        grad = np.random.default_rng(6).normal(size=(2, 5))
        indices, found = backend.sample_backward(grad, attention, 5, rng=(4, 4))
        expected = reference.sample_backward(grad, attention / scale, indices)
        assert_close(found * scale, expected, "float64", scale=np.abs(expected).max())


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1.0, -1e-30, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cells", [5, 33, 5000])
def test_a_bad_weight_is_named(backend, bad, dtype, cells):
    for cell in {0, 3, cells - 1}:
        attention = np.ones((4, cells), dtype=dtype)
        attention[2, cell] = bad
        for replace in (False, True):
            with pytest.raises(backend.errors, match=rf"attention.*\b2\b.*\b{cell}\b"):
                backend.sample(attention, 2, replace=replace, rng=0)
        with pytest.raises(backend.errors, match="attention"):
            backend.topk(attention, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_logit_is_named(backend, bad):
    attention = np.zeros((3, 40), dtype=np.float32)
    attention[1, 35] = bad
    with pytest.raises(backend.errors, match=r"attention.*\b1\b.*\b35\b"):
        backend.sample(attention, 2, logits=True, rng=0)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_a_row_without_mass_is_named(backend, logits, replace):
    attention = np.ones((7, 60))
    attention[6] = -np.inf if logits else 0.0
    with pytest.raises(backend.errors, match=r"attention.*\b6\b"):
        backend.sample(attention, 1, logits=logits, replace=replace, rng=0)


def test_too_few_positive_cells_are_counted(backend):
    attention = np.ones((5, 100))
    attention[3, 17:] = 0
    backend.sample(attention, 17, rng=0)
    with pytest.raises(backend.errors, match=r"(?s)\b3\b.*\b17\b|\b17\b.*\b3\b"):
        backend.sample(attention, 18, rng=0)
    with pytest.raises(backend.errors, match=r"\b18\b"):
        backend.sample(attention, 18, rng=0)
    backend.sample(attention, 18, replace=True, rng=0)


@pytest.mark.parametrize("n", [0, -1, 101, 2**40, -(2**63)])
def test_n_out_of_range(backend, n):
    with pytest.raises(backend.errors, match=r"\bn\b"):
        backend.sample(np.ones((2, 100)), n, rng=0)
    with pytest.raises(backend.errors, match=r"\bn\b"):
        backend.topk(np.ones((2, 100)), n)


def test_an_empty_batch_gives_empty_outputs(backend):
    for replace in (False, True):
        indices, probabilities, threshold = backend.sample(np.ones((0, 5, 6), np.float32), 4, replace=replace, rng=0)
        assert indices.shape == (0, 4) and indices.dtype == np.int64
        assert probabilities.shape == (0, 4) and probabilities.dtype == np.float32
        assert threshold.shape == (0,)
    with pytest.raises(backend.errors, match=r"attention|\bn\b"):
        backend.sample(np.ones((2, 0), np.float32), 1, rng=0)


def test_a_batch_axis_is_needed(backend):
    for attention in (np.ones(5), np.float64(1.0), np.ones((1,) * 9)):
        with pytest.raises(backend.errors, match="attention"):
            backend.sample(attention, 1, rng=0)


def test_inputs_are_left_alone(backend):
    weights = reference.weights_of((3, 77))
    before = weights.copy()
    backend.sample(weights, 10, rng=0)
    assert (weights == before).all()
