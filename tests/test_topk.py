"""topk: the n largest, ties to the lower index."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from tolerances import PROBABILITY


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    "shape, n", [((3, 50), 7), ((2, 33, 35), 100), ((1, 70_001), 5), ((4, 3, 4, 5), 60), ((2, 1), 1)]
)
@pytest.mark.parametrize("logits", [False, True])
def test_the_largest_in_order(backend, dtype, shape, n, logits):
    if dtype not in backend.floating:
        pytest.skip(f"{backend.name} has no {dtype}")
    generator = np.random.default_rng(n)
    values = generator.normal(size=shape) if logits else generator.exponential(size=shape)
    attention = backend.array(values, dtype)  # half precision: many ties
    hidden = backend.numpy(attention).astype(np.float64).reshape(shape[0], -1)
    indices, probabilities, threshold = backend.topk(attention, n, logits=logits)
    assert indices.dtype == np.int64 and (indices == reference.topk(hidden, n)).all()
    p = reference.probabilities(logits=hidden) if logits else reference.probabilities(hidden)
    expected = np.take_along_axis(p, indices, axis=1)
    assert probabilities.dtype == threshold.dtype == (np.float64 if dtype == "float64" else np.float32)
    tolerance = max(PROBABILITY[dtype], 1e-13)
    assert (np.abs(probabilities - expected) <= 2 * tolerance * expected).all()
    assert threshold.shape == (shape[0],) and np.isinf(threshold).all()


@given(st.data())
def test_ties_go_to_the_lower_index(backend, data):
    cells = data.draw(st.integers(1, 80))
    values = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5]), min_size=cells, max_size=cells))
    n = data.draw(st.integers(1, cells))
    attention = np.array([values, [1.0] * cells], dtype=data.draw(st.sampled_from(["float32", "float64"])))
    attention[0, data.draw(st.integers(0, cells - 1))] = 3.0
    indices, _, _ = backend.topk(attention, n)
    assert (indices == reference.topk(attention, n)).all()


def test_zeros_and_minus_infinity_rank_last(backend):
    indices, probabilities, _ = backend.topk(np.array([[0.0, 0.2, 0.0, 0.3]]), 4)
    assert indices.tolist() == [[3, 1, 0, 2]] and np.allclose(probabilities, [[0.6, 0.4, 0, 0]])
    indices, probabilities, _ = backend.topk(np.array([[-np.inf, 0.2, -np.inf, 0.2, -5e3]]), 5, logits=True)
    assert indices.tolist() == [[1, 3, 4, 0, 2]] and np.allclose(probabilities, [[0.5, 0.5, 0, 0, 0]])


def test_negative_zero_is_zero(backend):
    assert backend.topk(np.array([[-0.0, 1.0, 0.0, -0.0]]), 4)[0].tolist() == [[1, 0, 2, 3]]
    assert backend.topk(np.array([[-0.0, 0.0, 0.0, -0.0]]), 4, logits=True)[0].tolist() == [[0, 1, 2, 3]]
    assert set(backend.sample(np.array([[-0.0, 1.0, 0.0, 2.0]]), 2, rng=0)[0][0].tolist()) == {1, 3}


@pytest.mark.parametrize("logits", [False, True])
def test_a_row_without_mass(backend, logits):
    attention = np.full((2, 9), -np.inf if logits else 0.0)
    attention[0] = 1.0
    with pytest.raises(backend.errors, match=r"attention.*\b1\b"):
        backend.topk(attention, 2, logits=logits)


@pytest.mark.parametrize("shape, n", [((5, 33, 31), 40), ((4, 40_000), 100), ((1, 300_000), 500)])
def test_threads_and_layout_do_not_matter(backend, threads, shape, n):
    attention = np.random.default_rng(1).exponential(size=shape).astype(np.float32)
    expected = reference.topk(attention.reshape(shape[0], -1), n)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(backend.topk(attention, n))
        assert (results[-1][0] == expected).all()
        assert results[-1][1].tobytes() == results[0][1].tobytes()
    assert (backend.topk(np.asfortranarray(attention), n)[0] == expected).all()
    frozen = attention.copy()
    frozen.flags.writeable = False
    assert (backend.topk(frozen, n)[0] == expected).all()


def test_an_empty_batch(backend):
    indices, probabilities, threshold = backend.topk(np.ones((0, 9)), 4)
    assert indices.shape == probabilities.shape == (0, 4) and threshold.shape == (0,)
