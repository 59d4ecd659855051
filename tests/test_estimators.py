"""Unbiasedness by enumeration of every draw, and the estimators' arrays against exact formulas."""

import itertools
import math

import numpy as np
import pytest

import reference
from tolerances import assert_close

ARRAYS = 1e-10  # relative: murthy's quadrature was measured at 1e-11, and a coarser grid shows here
EXACT = 1e-10  # of float64 sums over up to 5040 draws


def relative(found, expected, scale=None):
    scale = np.abs(expected).max() if scale is None else scale
    return np.abs(found - expected).max() / scale


class Problem:
    """A softmax over K cells with C features each: the truth that estimates must average to."""

    def __init__(self, cells, concentration, seed):
        generator = np.random.default_rng(seed)
        self.attention = generator.dirichlet(np.full(cells, concentration))
        self.features = generator.normal(size=(cells, 3)) + 1.0
        self.grad = generator.normal(size=3)
        self.value = self.attention @ self.features
        h = self.features @ self.grad
        self.d_features = self.attention[:, None] * self.grad
        self.d_logits = self.attention * (h - self.attention @ h)

    def averages(self, backend, draws, chances, estimator, **more):
        """Averages of value, feature gradient and gradient at the logits over draws (count, n)."""
        cells, count = len(self.attention), len(draws)
        attention, features = self.attention[draws], self.features[draws]
        value = chances @ backend.expectation(features, attention, estimator, **more)
        grad = np.tile(self.grad, (count, 1))
        d_features, d_attention = backend.expectation_backward(grad, features, attention, estimator, **more)
        spread_f, spread_a = np.zeros((cells, 3)), np.zeros(cells)
        np.add.at(spread_f, draws, chances[:, None, None] * d_features)
        np.add.at(spread_a, draws, chances[:, None] * d_attention)
        # the gradient of sampled probabilities goes back through the softmax
        return value, spread_f, self.attention * (spread_a - self.attention @ spread_a)

    def check(self, averages, tolerance=EXACT):
        for found, expected in zip(averages, (self.value, self.d_features, self.d_logits), strict=True):
            assert relative(found, expected) < tolerance


class Reference:
    """The reference in a backend's place, so that it is held to the same."""

    expectation = staticmethod(reference.expectation)
    expectation_backward = staticmethod(reference.expectation_backward)
    estimator_arrays = staticmethod(reference.estimator_arrays)


PROBLEMS = [
    (4, 1, 1.0),
    (4, 2, 1.0),
    (5, 2, 1.0),
    (5, 5, 0.5),
    (6, 3, 1.0),
    (6, 4, 0.5),
    (6, 6, 1.0),
    (7, 2, 0.2),
    (7, 4, 0.3),
    (7, 7, 1.0),
]
CUSTOM = [None, "first", "last", "rising", "signed"]


def weights_named(name, n):
    if name is None:
        return {}
    w = {
        "first": np.eye(n)[0],
        "last": np.eye(n)[-1],
        "rising": np.arange(1.0, n + 1),
        "signed": np.where(np.arange(n) % 2 == 0, 1.0, -0.4),
    }[name]
    return {"weights": w / w.sum()}


@pytest.mark.parametrize("cells, n, concentration", PROBLEMS)
@pytest.mark.parametrize("weights", CUSTOM)
def test_des_raj_is_unbiased(backend, cells, n, concentration, weights):
    problem, draws = Problem(cells, concentration, cells + n), reference.ordered_draws(cells, n)
    chances = reference.draw_probability(draws, problem.attention)
    assert abs(chances.sum() - 1) < 1e-12
    problem.check(problem.averages(backend, draws, chances, "des_raj", **weights_named(weights, n)))


@pytest.mark.parametrize("cells, n, concentration", PROBLEMS)
def test_murthy_is_unbiased(backend, cells, n, concentration):
    problem, draws = Problem(cells, concentration, cells + n), reference.ordered_draws(cells, n)
    chances = reference.draw_probability(draws, problem.attention)
    problem.check(problem.averages(backend, draws, chances, "murthy"))


@pytest.mark.parametrize("cells, n", [(4, 1), (5, 2), (5, 3), (4, 5)])
def test_iid_is_unbiased(backend, cells, n):
    problem, draws = Problem(cells, 1.0, n), reference.sequences(cells, n)
    chances = problem.attention[draws].prod(axis=1)
    problem.check(problem.averages(backend, draws, chances, "iid"))


@pytest.mark.parametrize("cells, n", [(3, 1), (4, 2), (5, 2), (4, 3)])
def test_horvitz_thompson_is_unbiased(backend, cells, n):
    """Every set drawn and every cell that rings next, the time of its ringing integrated by the trapezoid rule."""
    problem = Problem(cells, 1.0, cells)
    a = problem.attention
    times = np.exp(np.linspace(math.log(1e-17), math.log(200 / a.min()), 700))
    step = math.log(times[1] / times[0])
    draws, chances, thresholds = [], [], []
    for drawn in itertools.combinations(range(cells), n):
        others = [k for k in range(cells) if k not in drawn]
        rung = np.prod(-np.expm1(-a[list(drawn)][:, None] * times), axis=0)
        density = a[others].sum() * np.exp(-a[others].sum() * times) * rung
        draws.append(np.tile(drawn, (len(times), 1)))
        chances.append(density * times * step)
        thresholds.append(times)
    chances = np.concatenate(chances)
    assert abs(chances.sum() - 1) < 1e-11
    found = problem.averages(
        backend, np.concatenate(draws), chances, "horvitz_thompson", threshold=np.concatenate(thresholds)
    )
    problem.check(found)


@pytest.mark.parametrize("estimator", ["des_raj", "murthy", "horvitz_thompson", "iid"])
def test_the_sampler_and_the_estimator_together(backend, estimator):
    """By Monte Carlo, through `sample` itself, on more cells than can be enumerated. Each of some 30 averages within 5
    standard errors: a false alarm has a chance of 2e-5 (the seed is fixed)."""
    cells, n, count = 40, 6, 40_000
    problem = Problem(cells, 1.0, 3)
    logits = np.tile(np.log(problem.attention) + 3.0, (count, 1))
    draws, attention, threshold = backend.sample(logits, n, logits=True, replace=estimator == "iid", rng=(31, 0))
    more = {"threshold": threshold} if estimator == "horvitz_thompson" else {}
    features = problem.features[draws]
    values = backend.expectation(features, attention, estimator, **more)
    grad = np.tile(problem.grad, (count, 1))
    _, d_attention = backend.expectation_backward(grad, features, attention, estimator, **more)
    spread = np.zeros((count, cells))
    np.add.at(spread, (np.arange(count)[:, None], draws), d_attention)
    d_logits = problem.attention * (spread - (spread @ problem.attention)[:, None])
    often = problem.attention > 0.005  # where the average is near normal
    for sampled, truth in [(values, problem.value), (d_logits[:, often], problem.d_logits[often])]:
        z = (sampled.mean(axis=0) - truth) / (sampled.std(axis=0) / math.sqrt(count))
        assert np.abs(z).max() < 5, z


def test_murthy_varies_less(backend):
    """Variance of the gradient at the logits over its squared norm, exactly; docs/estimators.md has such figures."""
    ratios = {}
    problem, draws = Problem(6, 1.0, 0), reference.ordered_draws(6, 3)
    chances = reference.draw_probability(draws, problem.attention)
    for estimator in ("des_raj", "murthy"):
        total = 0.0
        features, attention = problem.features[draws], problem.attention[draws]
        grad = np.tile(problem.grad, (len(draws), 1))
        _, d = backend.expectation_backward(grad, features, attention, estimator)
        spread = np.zeros((len(draws), 6))
        np.put_along_axis(spread, draws, d, axis=1)
        at_logits = problem.attention * (spread - (spread @ problem.attention)[:, None])
        total = chances @ ((at_logits - problem.d_logits) ** 2).sum(axis=1)
        ratios[estimator] = total / (problem.d_logits**2).sum()
    assert ratios["murthy"] < 0.8 * ratios["des_raj"]


@pytest.mark.parametrize("cells, n, concentration", PROBLEMS[:7])
def test_the_reference_is_unbiased(cells, n, concentration):
    problem, draws = Problem(cells, concentration, cells + n), reference.ordered_draws(cells, n)
    chances = reference.draw_probability(draws, problem.attention)
    for estimator, weights in [("murthy", None), *(("des_raj", name) for name in CUSTOM)]:
        problem.check(problem.averages(Reference, draws, chances, estimator, **weights_named(weights, n)), 1e-12)
    if cells**n < 1000:
        draws = reference.sequences(cells, n)
        problem.check(problem.averages(Reference, draws, problem.attention[draws].prod(axis=1), "iid"), 1e-12)


# ---- murthy's arrays ------------------------------------------------------------------------------------------------


def scaled(n, mass, seed, concentration=1.0):
    """n probabilities that sum to `mass`."""
    return np.random.default_rng(seed).dirichlet(np.full(n, concentration)) * mass


ROWS = {
    "one": [0.3],
    "one tiny": [1e-12],
    "one, tiniest": [1e-300],
    "one, nearly all": [1 - 1e-12],
    "two": [0.5, 0.25],
    "two equal": [0.4, 0.4],
    "six equal": [1 / 7] * 6,
    "twelve equal of many": [1e-6] * 12,
    "twelve equal": [1 / 13] * 12,
    "tiny": [1e-30, 2e-30, 1e-32],
    "tiniest": [1e-300, 3e-300, 1e-305, 2e-300],
    "tiny and large": [0.5, 1e-20, 0.3, 1e-9, 1e-15],
    "many orders": [0.9, 0.09, 9e-3, 9e-4, 9e-5, 9e-6, 9e-7, 9e-8],
    "nearly all": scaled(8, 1 - 1e-12, 1),
    "nearly all, twelve": scaled(12, 1 - 1e-12, 2),
    "nearly all, uneven": scaled(12, 1 - 1e-12, 3, 0.1) + 0.0,
    "all but 1e-15": scaled(5, 1 - 1e-15, 4),
    "all but 1e-9, two": [0.5, 0.5 - 1e-9],
    "one takes all but 1e-12": [1 - 2e-12, 4e-13, 6e-13],
    "half": scaled(10, 0.5, 5),
    "a trillionth": scaled(12, 1e-12, 6),
    "uneven": scaled(11, 0.8, 7, 0.15),
    "a dozen": scaled(12, 0.9, 8),
}


@pytest.mark.parametrize("name", ROWS)
def test_murthy_agrees_with_the_exact_subset_sum(backend, name):
    row = np.asarray(ROWS[name], dtype=np.float64)
    c, m = backend.estimator_arrays(row[None], "murthy")
    expected_c, expected_m = reference.murthy_subsets(row)
    assert c.shape == (1, len(row)) and m.shape == (1, len(row), len(row))
    assert (np.abs(c[0] - expected_c) <= ARRAYS * expected_c).all(), np.abs(c[0] / expected_c - 1).max()
    assert (np.abs(m[0] - expected_m) <= ARRAYS * np.abs(expected_m)).all()


@pytest.mark.parametrize("n, mass", [(50_000, 0.28), (100_000, 0.72), (300_000, 0.3)])
def test_murthy_weighs_very_many_like_cells_alike(backend, n, mass):
    """The c sum to 1, whatever the sample, so that like cells have 1 / n each."""
    features = np.random.default_rng(n).normal(size=(1, n, 2))
    expected = backend.expectation(features, np.full((1, n), mass / n), "murthy")
    np.testing.assert_allclose(expected, features.mean(1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", range(1, 13))
def test_murthy_agrees_for_random_rows(backend, n):
    generator = np.random.default_rng(n)
    rows = np.stack(
        [
            generator.dirichlet(np.full(n, generator.choice([0.1, 1.0, 10.0])))
            * generator.choice([1e-3, 0.3, 0.99, 1 - 1e-6])
            + 1e-18
            for _ in range(12 if n < 11 else 4)
        ]
    )
    c, m = backend.estimator_arrays(rows, "murthy")
    for b, row in enumerate(rows):
        expected_c, expected_m = reference.murthy_subsets(row)
        assert (np.abs(c[b] - expected_c) <= ARRAYS * expected_c).all()
        assert (np.abs(m[b] - expected_m) <= ARRAYS * np.abs(expected_m)).all()


@pytest.mark.parametrize("mass", [1e-9, 0.2, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("n, concentration", [(25, 1.0), (64, 0.2), (256, 1.0), (1000, 3.0)])
def test_murthy_of_many_samples(backend, n, concentration, mass):
    row = scaled(n, mass * (1 - 1e-13), n, concentration) + 1e-14 * mass / n
    c, m = backend.estimator_arrays(row[None], "murthy")
    expected_c, expected_m = reference.murthy_quadrature(row)
    assert (np.abs(c[0] - expected_c) <= ARRAYS * expected_c).all(), np.abs(c[0] / expected_c - 1).max()
    assert (np.abs(m[0] - expected_m) <= ARRAYS * np.abs(expected_m)).all()


@pytest.mark.parametrize("n", [15, 60, 300])
@pytest.mark.parametrize("left", [1e-2, 1e-3, 1e-5])
def test_murthy_of_nearly_all_in_like_parts(backend, n, left):
    """The integrand falls off a cliff left of its wide peak, which a step made for the peak alone steps over."""
    row = scaled(n, 1 - left, n, 100.0)
    c, m = backend.estimator_arrays(row[None], "murthy")
    expected_c, expected_m = reference.murthy_quadrature(row)
    assert (np.abs(c[0] - expected_c) <= ARRAYS * expected_c).all(), np.abs(c[0] / expected_c - 1).max()
    assert (np.abs(m[0] - expected_m) <= ARRAYS * np.abs(expected_m)).all()


@pytest.mark.parametrize("n", [1, 2, 5, 12, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_whole_mass_is_exact(backend, n, dtype):
    """Nothing is left: the estimate is the sum itself, up to the rounding of the attention."""
    row = np.random.default_rng(n).dirichlet(np.ones(n)).astype(dtype)
    c, m = backend.estimator_arrays(row[None], "murthy")
    tolerance = 1e-13 * n if dtype == "float64" else 1e-5 * n
    assert (np.abs(c[0] - row) <= tolerance * row).all()
    if n > 1:
        assert (np.abs(m[0] - (np.eye(n) - row[None, :].astype(np.float64))) <= tolerance).all()
    exact = np.full((1, 4), 0.25, dtype=dtype)
    c, m = backend.estimator_arrays(exact, "murthy")
    assert (c == 0.25).all() and (m[0] == np.eye(4) - 0.25).all()


def test_murthy_in_float32_is_the_float64_one_rounded(backend):
    for row in (scaled(10, 0.7, 1), scaled(40, 0.3, 2), scaled(6, 1 - 1e-4, 3)):
        single = row.astype(np.float32)
        c, m = backend.estimator_arrays(single[None], "murthy")
        assert c.dtype == m.dtype == np.float32
        expected_c, expected_m = reference.murthy_quadrature(single)
        assert (np.abs(c[0] - expected_c) <= 3e-7 * expected_c).all()
        assert (np.abs(m[0] - expected_m) <= 3e-7 * np.abs(expected_m)).all()


def test_murthy_does_not_look_at_the_order_or_the_neighbours(backend):
    rows = np.stack([scaled(9, 0.8, 1), scaled(9, 1 - 1e-10, 2), scaled(9, 1e-5, 3), np.full(9, 1 / 9)])
    c, m = backend.estimator_arrays(rows, "murthy")
    order = np.random.default_rng(0).permutation(9)
    permuted_c, permuted_m = backend.estimator_arrays(rows[:, order], "murthy")
    assert np.allclose(permuted_c, c[:, order], rtol=1e-12, atol=0)
    assert np.allclose(permuted_m, m[:, order][:, :, order], rtol=1e-12, atol=0)
    for b in range(4):
        alone_c, alone_m = backend.estimator_arrays(rows[b : b + 1], "murthy")
        assert alone_c.tobytes() == c[b].tobytes() and alone_m.tobytes() == m[b].tobytes()


@pytest.mark.parametrize("n", [2, 5, 9, 12, 14])
@pytest.mark.parametrize("mass", [1e-6, 0.6, 1 - 1e-9])
def test_the_two_references_agree(n, mass):
    row = scaled(n, mass, n)
    for one, other in zip(reference.murthy_subsets(row), reference.murthy_quadrature(row), strict=True):
        assert (np.abs(one - other) <= 1e-11 * np.abs(one)).all()


def test_the_subset_sum_by_enumeration():
    """P(S) as the sum over the orders of S, its ratios by leaving a cell out of the world."""
    a = np.array([0.3, 0.15, 0.05, 0.2])

    def chance(members, world):
        total = 0.0
        for order in itertools.permutations(members):
            left, p = world, 1.0
            for k in order:
                p, left = p * a[k] / left, left - a[k]
            total += p
        return total

    c, m = reference.murthy_subsets(a)
    everything = range(4)
    for i in everything:
        single = [k for k in everything if k != i]
        ratio = chance(single, 1 - a[i]) / chance(everything, 1.0)
        assert np.isclose(c[i], a[i] * ratio, rtol=1e-13)
        for j in single:
            second = chance([k for k in single if k != j], 1 - a[i] - a[j]) / chance(single, 1 - a[i])
            assert np.isclose(m[i, j], -ratio * a[j] * second, rtol=1e-13)
        assert np.isclose(m[i, i], ratio * (1 - a[i]), rtol=1e-13)


# ---- the others' arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["iid", "des_raj", "horvitz_thompson", "normalized"])
@pytest.mark.parametrize("n", [1, 2, 7, 200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays(backend, estimator, n, dtype):
    attention = np.stack([scaled(n, mass, n) for mass in (0.9, 1.0, 1e-8)]).astype(dtype)
    cases = [{}]
    if estimator == "horvitz_thompson":
        cases = [{"threshold": np.array(t, dtype=dtype)} for t in ([1.0, np.inf, 2.0], [1e-9, 1e-3, 1e9])]
    if estimator == "des_raj":
        cases += [{k: v.astype(dtype) for k, v in weights_named(name, n).items()} for name in ("first", "rising")]
    for more in cases:
        c, m = backend.estimator_arrays(attention, estimator, **more)
        assert c.dtype == m.dtype == dtype
        expected_c, expected_m = reference.estimator_arrays(attention, estimator, **more)
        # a difference 1 - sum of attention is judged by the 1
        scale = attention.astype(np.float64) if estimator == "des_raj" else None
        assert_close(c, expected_c, dtype, scale=None if scale is None else np.maximum(scale, 1e-3))
        assert_close(m, expected_m, dtype, scale=None if scale is None else 1.0 / attention.min())


def test_horvitz_thompson_of_rare_cells(backend):
    """1 - exp(-a t) without cancellation."""
    attention, threshold = np.array([[1e-18, 1e-12, 1e-300]]), np.array([3.0])
    c, m = backend.estimator_arrays(attention, "horvitz_thompson", threshold=threshold)
    assert np.allclose(c, [[1 / 3, 1 / 3, 1 / 3]], rtol=1e-11)
    assert np.allclose(np.diag(m[0])[:2], [1 / 3e-18, 1 / 3e-12], rtol=1e-11)


@pytest.mark.parametrize("estimator", ["iid", "des_raj", "murthy", "horvitz_thompson", "normalized"])
def test_backward_is_the_arrays(backend, estimator):
    attention = np.stack([scaled(8, mass, 1) for mass in (0.3, 0.99)])
    more = {"threshold": np.array([2.0, 5.0])} if estimator == "horvitz_thompson" else {}
    c, m = backend.estimator_arrays(attention, estimator, **more)
    features, grad = np.random.default_rng(2).normal(size=(2, 8, 4)), np.random.default_rng(3).normal(size=(2, 4))
    d_features, d_attention = backend.expectation_backward(grad, features, attention, estimator, **more)
    h = np.einsum("bnc,bc->bn", features, grad)
    assert np.allclose(d_attention, np.einsum("bij,bj->bi", m, h), rtol=1e-10, atol=1e-10 * np.abs(m).max())
    assert np.allclose(d_features, c[:, :, None] * grad[:, None], rtol=1e-12, atol=0)
    value = backend.expectation(features, attention, estimator, **more)
    assert np.allclose(value, np.einsum("bn,bnc->bc", c, features), rtol=1e-10, atol=1e-12)


def test_an_empty_batch(backend):
    for estimator in ("iid", "des_raj", "murthy", "normalized"):
        c, m = backend.estimator_arrays(np.zeros((0, 3)), estimator)
        assert c.shape == (0, 3) and m.shape == (0, 3, 3)
