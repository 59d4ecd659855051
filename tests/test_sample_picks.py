"""sample: the same picks for the same rng, from every backend and however the work is split."""

import numpy as np
import pytest

from reference import weights_of

SHAPES = [((9, 7), 3), ((5, 33, 31), 40), ((4, 40_000), 100), ((3, 12, 11, 13), 1), ((1, 300_000), 500)]


@pytest.mark.parametrize("shape, n", SHAPES)
@pytest.mark.parametrize("replace", [False, True])
def test_rows_are_numbered_through_the_offset(backend, shape, n, replace):
    weights = weights_of(shape)
    whole = backend.sample(weights, n, replace=replace, rng=(5, 100))
    for b in range(shape[0]):
        row = backend.sample(weights[b : b + 1], n, replace=replace, rng=(5, 100 + b))
        for a, c in zip(whole, row, strict=True):
            assert (a[b] == c[0]).all()


@pytest.mark.parametrize("shape, n", SHAPES)
@pytest.mark.parametrize("logits", [False, True])
def test_picks_do_not_depend_on_the_number_of_threads(backend, threads, shape, n, logits):
    weights = weights_of(shape)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(backend.sample(weights, n, logits=logits, rng=(6, 0)))
    for result in results[1:]:
        for a, c in zip(results[0], result, strict=True):
            assert a.tobytes() == c.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("logits", [False, True])
def test_numpy_and_torch_pick_the_same(numpy_backend, torch_backend, dtype, logits):
    for shape, n in SHAPES:
        weights = weights_of(shape, dtype)
        for replace in (False, True):
            one = numpy_backend.sample(weights, n, replace=replace, logits=logits, rng=(7, 3))
            other = torch_backend.sample(weights, n, replace=replace, logits=logits, rng=(7, 3))
            for a, c in zip(one, other, strict=True):
                assert a.dtype == c.dtype and a.shape == c.shape and a.tobytes() == c.tobytes()


def test_picks_do_not_depend_on_the_layout(backend):
    weights = weights_of((6, 33, 35))
    expected = backend.sample(weights, 20, rng=(8, 0))
    padded = np.zeros((6, 40, 70), dtype=np.float32)
    padded[:, 2:35, 0:70:2] = weights
    views = [
        np.asfortranarray(weights),
        padded[:, 2:35, 0:70:2],
        np.repeat(weights, 2, axis=0)[::2],
        weights[::-1].copy()[::-1],
        np.ascontiguousarray(weights.transpose(2, 1, 0)).transpose(2, 1, 0),
    ]
    frozen = weights.copy()
    frozen.flags.writeable = False
    for view in [*views, frozen]:
        assert (np.asarray(view) == weights).all()
        for a, c in zip(expected, backend.sample(view, 20, rng=(8, 0)), strict=True):
            assert a.tobytes() == c.tobytes()
    same = np.broadcast_to(weights[0], weights.shape)
    for a, c in zip(backend.sample(same.copy(), 20, rng=(8, 0)), backend.sample(same, 20, rng=(8, 0)), strict=True):
        assert a.tobytes() == c.tobytes()


def test_picks_do_not_depend_on_the_grid(backend):
    weights = weights_of((3, 24, 35))
    expected = backend.sample(weights, 17, rng=(9, 0))[0]
    assert (backend.sample(weights.reshape(3, -1), 17, rng=(9, 0))[0] == expected).all()
    assert (backend.sample(weights.reshape(3, 5, 7, 24), 17, rng=(9, 0))[0] == expected).all()


def test_what_rng_may_be(backend):
    weights = np.tile(weights_of((1, 500)), (4, 1))

    def picks(rng):
        return backend.sample(weights, 30, rng=rng)[0].tolist()

    assert picks(42) == picks((42, 0)) == picks(np.array([42, 0])) == picks([42, 0])
    assert picks((42, 0)) != picks((43, 0))
    assert picks((42, 0)) != picks((42, 4))
    assert picks((42, 0))[1:] == picks((42, 1))[:-1]
    assert picks(None) != picks(None)
    assert picks((-1, 0)) != picks((1, 0))
    assert picks((0, 0)) != picks((1 << 32, 0)) != picks((1 << 62, 0))  # all 64 bits count
    assert picks((0, 1 << 32)) != picks((0, 0))
    assert picks((0, 1)) != picks((1, 0))


def test_the_offset_wraps_around(backend):
    weights = weights_of((4, 50))
    highest, lowest = 2**63 - 1, -(2**63)
    whole = backend.sample(weights, 10, rng=(3, highest - 1))[0]
    for b, offset in enumerate([highest - 1, highest, lowest, lowest + 1]):
        assert (backend.sample(weights[b : b + 1], 10, rng=(3, offset))[0][0] == whole[b]).all()
    for seed in (highest, lowest, 0, -1):
        assert len(set(backend.sample(weights, 10, rng=(seed, 0))[0][0].tolist())) == 10
