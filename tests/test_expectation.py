"""expectation and its backward: the estimators' arrays applied to features of every dtype, shape and layout."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from tolerances import RELATIVE, assert_close

ESTIMATORS = ["iid", "des_raj", "murthy", "horvitz_thompson", "normalized"]
FLOATING = ["float16", "bfloat16", "float32", "float64"]


def attention_of(batch, n, dtype, seed=0, cells=20):
    """Probabilities of n of `cells` cells."""
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.ones(cells), size=batch)[:, :n] if batch else np.zeros((0, n))
    return np.ascontiguousarray(weights + 1e-3 / cells).astype(dtype) / (1 + 1e-3)


def arguments_of(estimator, attention, weighted=True):
    batch, n = attention.shape
    if estimator == "horvitz_thompson":
        return {"threshold": np.random.default_rng(9).exponential(size=batch).astype(attention.dtype) * n + 0.1}
    if estimator == "des_raj" and weighted:
        return {"weights": np.random.default_rng(8).dirichlet(np.ones(n)).astype(attention.dtype)}
    return {}


def check(backend, features, attention, estimator, **more):
    """Forward and backward of native features against the reference; returns the three results."""
    features = backend.array(features)
    hidden = backend.numpy(features).astype(np.float64)
    dtype = backend.dtype(features)
    weakest = max(dtype, attention.dtype.name, key=RELATIVE.get)  # what the sums are made in
    found = backend.expectation(features, attention, estimator, **more)
    expected = reference.expectation(hidden, attention, estimator, **more)
    size = reference.expectation(np.abs(hidden), attention, estimator, **more)
    assert found.dtype == backend.numpy(features).dtype
    assert_close(found, expected, weakest, scale=size)

    grad = backend.array(np.random.default_rng(3).normal(size=expected.shape), dtype)
    slope = backend.numpy(grad).astype(np.float64)
    d_features, d_attention = backend.expectation_backward(grad, features, attention, estimator, **more)
    expected_f, expected_a = reference.expectation_backward(slope, hidden, attention, estimator, **more)
    _, m = reference.estimator_arrays(attention, estimator, **more)
    h = np.abs(hidden * slope[:, None]).reshape(*attention.shape, -1).sum(axis=2) if hidden.size else 0 * attention
    assert d_features.dtype == found.dtype and d_attention.dtype == attention.dtype
    assert_close(d_features, expected_f, weakest)
    accumulated = attention.dtype.name if dtype == "float64" else "float32"  # half features are summed wider
    assert_close(d_attention, expected_a, accumulated, scale=np.einsum("bij,bj->bi", np.abs(m), h))
    return found, d_features, d_attention


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("attention_dtype", ["float32", "float64"])
@pytest.mark.parametrize("trailing", [(), (1,), (7,), (3, 4), (2, 1, 3, 2, 2), (300,)])
def test_against_the_reference(backend, estimator, dtype, attention_dtype, trailing):
    if dtype not in backend.floating:
        pytest.skip(f"{backend.name} has no {dtype}")
    attention = attention_of(3, 5, attention_dtype)
    features = backend.array(np.random.default_rng(1).normal(size=(3, 5, *trailing)), dtype)
    for weighted in (False, True):
        check(backend, features, attention, estimator, **arguments_of(estimator, attention, weighted))


@given(st.data())
def test_shapes(backend, data):
    batch, n = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 9))
    trailing = data.draw(st.lists(st.integers(0, 5), max_size=4))
    estimator, dtype = data.draw(st.sampled_from(ESTIMATORS)), data.draw(st.sampled_from(backend.floating))
    attention = attention_of(batch, n, data.draw(st.sampled_from(["float32", "float64"])), data.draw(st.integers(0, 9)))
    features = backend.array(np.random.default_rng(n).normal(size=(batch, n, *trailing)), dtype)
    check(backend, features, attention, estimator, **arguments_of(estimator, attention, data.draw(st.booleans())))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [1, 2, 20, 100])
def test_many_samples(backend, estimator, n):
    for dtype in ("float32", "float64"):
        attention = attention_of(2, n, dtype, cells=max(n, 2))  # n = cells: the whole mass
        features = backend.array(np.random.default_rng(n).normal(size=(2, n, 6)), dtype)
        check(backend, features, attention, estimator, **arguments_of(estimator, attention))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_layouts(backend, estimator):
    attention = attention_of(3, 5, "float64")
    features, grad = np.random.default_rng(2).normal(size=(3, 5, 4, 6)), np.random.default_rng(4).normal(size=(3, 4, 6))
    more = arguments_of(estimator, attention)
    expected = [backend.expectation(features, attention, estimator, **more)]
    expected += backend.expectation_backward(grad, features, attention, estimator, **more)

    def layouts(x):
        yield x
        yield np.asfortranarray(x)
        yield np.repeat(x, 2, axis=-1)[..., ::2]
        yield x[..., ::-1].copy()[..., ::-1]
        frozen = x.copy()
        frozen.flags.writeable = False
        yield frozen

    for f, g, a in zip(layouts(features), layouts(grad), layouts(attention), strict=True):
        options = {key: list(layouts(value))[2] for key, value in more.items()}
        found = [backend.expectation(f, a, estimator, **options)]
        found += backend.expectation_backward(g, f, a, estimator, **options)
        for x, y in zip(found, expected, strict=True):
            assert x.tobytes() == y.tobytes()
    one = np.broadcast_to(features[:, :1, :1], features.shape)
    found = backend.expectation(one, attention, estimator, **more)
    assert found.tobytes() == backend.expectation(one.copy(), attention, estimator, **more).tobytes()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_samples(backend, estimator):
    """A sum of nothing is 0, if it is not refused."""
    attention, features = np.zeros((2, 0)), np.zeros((2, 0, 3))
    more = {"threshold": np.ones(2)} if estimator == "horvitz_thompson" else {}
    try:
        found = backend.expectation(features, attention, estimator, **more)
    except backend.errors as error:
        assert "features" in str(error) or "attention" in str(error)
    else:
        assert found.shape == (2, 3) and (found == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "row",
    [
        [1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [0.5, 0.5, 0.0],
        [0.0, 0.3, 1e-40],
        [1e-320, 0.1, 0.2],
        [1.0, 1e-30, 1e-38],
        [1 - 1e-7, 1e-7, 1e-45],
    ],
)
def test_zeros_and_tiny_attention_stay_finite(backend, estimator, dtype, row):
    attention = np.array([row], dtype=dtype)
    features = np.array([[[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]]], dtype=dtype)
    if estimator == "normalized" and not attention.any():
        with pytest.raises(backend.errors, match="attention"):  # 0 / 0
            backend.expectation(features, attention, estimator)
        return
    thresholds = [0.5, 1e30, np.inf] if estimator == "horvitz_thompson" else [None]
    for t in thresholds:
        more = {} if t is None else {"threshold": np.array([t], dtype=dtype)}
        assert np.isfinite(backend.expectation(features, attention, estimator, **more)).all()
        grad = np.array([[1.0, -1.0]], dtype=dtype)
        for x in backend.expectation_backward(grad, features, attention, estimator, **more):
            assert np.isfinite(x).all()
        for x in backend.estimator_arrays(attention, estimator, **more):
            assert np.isfinite(x).all()


def test_gradients_beyond_the_range_are_clamped(backend):
    attention = np.array([[1e-30, 0.5]], dtype=np.float32)
    features, grad = np.array([[[1e10], [0.0]]], np.float32), np.full((1, 1), 1e10, np.float32)
    for estimator in ("iid", "des_raj", "murthy"):
        _, d_attention = backend.expectation_backward(grad, features, attention, estimator)
        assert d_attention[0, 0] == np.finfo(np.float32).max and np.isfinite(d_attention).all()
    features, grad = np.full((1, 2, 1), 6e4, np.float16), np.full((1, 1), 6e4, np.float16)
    for found in backend.expectation_backward(grad, features, np.array([[1e-38, 1e-38]], np.float32), "des_raj"):
        assert np.isfinite(found).all()


def test_normalized_is_differentiated_truly(backend):
    """By central differences of the library's own forward."""
    attention, features = attention_of(2, 4, "float64"), np.random.default_rng(5).normal(size=(2, 4, 3))
    grad = np.random.default_rng(6).normal(size=(2, 3))
    _, found = backend.expectation_backward(grad, features, attention, "normalized")
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-5
        plus = backend.expectation(features, attention + step, "normalized")
        minus = backend.expectation(features, attention - step, "normalized")
        slope = ((plus - minus) * grad).sum(axis=1) / 2e-5
        assert np.allclose(found[:, i], slope, rtol=1e-7, atol=1e-8)


def test_a_constant_feature_of_a_topk_is_itself(backend):
    indices, attention, _ = backend.topk(np.random.default_rng(0).exponential(size=(2, 30)), 7)
    assert indices.shape == (2, 7)
    assert np.allclose(backend.expectation(np.full((2, 7, 2), 3.0), attention, "normalized"), 3.0, rtol=1e-12)


BAD = [
    ("features", {"features": np.ones(2)}),
    ("features|attention", {"features": np.ones((3, 3, 4))}),
    ("features|attention", {"features": np.ones((2, 4, 4))}),
    ("features", {"features": np.ones((2, 3, 4), np.int64)}),
    ("attention", {"attention": np.ones(3)}),
    ("attention", {"attention": np.ones((2, 3, 1))}),
    ("attention", {"attention": np.full((2, 3), 0.1, np.float16)}),
    ("attention", {"attention": np.full((2, 3), np.nan)}),
    ("attention", {"attention": np.full((2, 3), np.inf)}),
    ("attention", {"attention": np.full((2, 3), -0.1)}),
    ("estimator", {"estimator": "horvitz"}),
    ("estimator", {"estimator": None}),
    ("threshold", {"estimator": "horvitz_thompson"}),
    ("threshold", {"estimator": "horvitz_thompson", "threshold": np.ones(3)}),
    ("threshold", {"estimator": "horvitz_thompson", "threshold": np.ones((2, 1))}),
    ("threshold", {"estimator": "horvitz_thompson", "threshold": np.ones(2, np.float32)}),
    ("threshold", {"estimator": "horvitz_thompson", "threshold": np.array([1.0, np.nan])}),
    ("threshold", {"estimator": "horvitz_thompson", "threshold": np.array([1.0, -1.0])}),
    ("weights", {"estimator": "des_raj", "weights": np.ones(2) / 2}),
    ("weights", {"estimator": "des_raj", "weights": np.ones((2, 3)) / 3}),
    ("weights", {"estimator": "des_raj", "weights": np.ones(3)}),
    ("weights", {"estimator": "des_raj", "weights": np.array([np.nan, 0.5, 0.5])}),
    ("weights", {"estimator": "murthy", "weights": np.ones(3) / 3}),
]


@pytest.mark.parametrize("name, change", BAD)
def test_bad_arguments_are_named(numpy_backend, name, change):
    arguments = {"features": np.ones((2, 3, 4)), "attention": np.full((2, 3), 0.1), "estimator": "murthy"} | change
    with pytest.raises((ValueError, TypeError), match=name):
        numpy_backend.ats.expectation(**arguments)
    if name != "features" and "features" not in change:
        del arguments["features"]
        with pytest.raises((ValueError, TypeError), match=name):
            numpy_backend.ats.estimator_arrays(**arguments)
