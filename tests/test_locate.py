"""patch_origins: cells to where their patches begin, against exact fractions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference


def check(backend, indices, grid, image, patch, low=None, receptive_field=None):
    options = {}
    if low is not None:
        options["low_shape"] = tuple(low)
    if receptive_field is not None:
        options["receptive_field"] = tuple(receptive_field)
    found = backend.patch_origins(indices, tuple(grid), tuple(image), tuple(patch), **options)
    assert found.dtype == np.int64 and found.shape == (*indices.shape, len(grid))
    exact = reference.locate_exact(indices, grid, image, patch, low, receptive_field)
    expected = reference.locate(indices, grid, image, patch, low, receptive_field)
    for at in np.argwhere(found != expected):
        # float64 may miss a tie that only exact arithmetic sees
        b, n, axis = at.tolist()
        distance = abs(abs(exact[b][n][axis] - int(found[b, n, axis])) * 2 - 1)
        assert distance < 1e-9 * max(image), f"{found[b, n, axis]}, expected {float(exact[b][n][axis])}"


@given(st.data())
def test_origins(backend, data):
    d = data.draw(st.integers(1, 3))
    grid = data.draw(st.lists(st.integers(1, 12), min_size=d, max_size=d))
    image = data.draw(st.lists(st.integers(1, 5000), min_size=d, max_size=d))
    patch = data.draw(st.lists(st.integers(1, 100), min_size=d, max_size=d))
    low = data.draw(st.none() | st.lists(st.integers(1, 300), min_size=d, max_size=d))
    field = data.draw(
        st.none() | st.tuples(*[st.integers(0, (x if low else g) - 1) for x, g in zip(low or grid, grid, strict=True)])
    )
    b, n = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4))
    cells = int(np.prod(grid))
    indices = data.draw(st.lists(st.integers(0, cells - 1), min_size=b * n, max_size=b * n))
    check(backend, np.array(indices, dtype=np.int64).reshape(b, n), grid, image, patch, low, field)


def test_ties_go_to_even(backend):
    # steps of 8: centres at 4, 12, 20, 28; a patch of 3 begins at 2.5, 10.5, 18.5, 26.5
    indices = np.arange(4)[None]
    assert backend.patch_origins(indices, (4,), (32,), (3,)).ravel().tolist() == [2, 10, 18, 26]
    # steps of 2: -0.5, 1.5, 3.5, 5.5
    assert backend.patch_origins(indices, (4,), (8,), (3,)).ravel().tolist() == [0, 2, 4, 6]
    # -1.5, 0.5, 2.5, 4.5
    assert backend.patch_origins(indices, (4,), (8,), (5,)).ravel().tolist() == [-2, 0, 2, 4]


def test_numbers_by_hand(backend):
    # 100 pixels, attention of 10 cells over a low image of 50 with a field of 10: 4 low pixels a cell, 8 high ones,
    # beginning 5 low pixels = 10 high ones from the border
    found = backend.patch_origins(np.array([[0, 9]]), (10,), (100,), (6,), low_shape=(50,), receptive_field=(10,))
    assert found.ravel().tolist() == [10 + 4 - 3, 10 + 9 * 8 + 4 - 3]
    found = backend.patch_origins(np.array([[7]]), (3, 5), (30, 100), (4, 8))
    assert found.tolist() == [[[10 + 5 - 2, 40 + 10 - 4]]]


def test_ints_stand_for_every_axis(backend):
    indices = np.array([[0, 3, 11]])
    expected = backend.patch_origins(indices, (3, 4), (90, 90), (8, 8), low_shape=(30, 40), receptive_field=(2, 2))
    assert (
        backend.patch_origins(indices, (3, 4), (90, 90), 8, low_shape=(30, 40), receptive_field=2) == expected
    ).all()


def test_a_large_image(backend):
    size, cells = 10**9, 10**6
    indices = np.array([[0, 1, cells // 2, cells - 1]])
    check(backend, indices, [cells], [size], [101])
    check(backend, np.array([[3 * 10**7 - 1]]), [30_000, 1000], [10**6, 10**6], [64, 65])


def test_layouts(backend):
    indices = np.arange(24).reshape(4, 6)
    expected = backend.patch_origins(indices, (4, 6), (100, 90), (9, 9))
    assert (backend.patch_origins(np.asfortranarray(indices), (4, 6), (100, 90), (9, 9)) == expected).all()
    assert (backend.patch_origins(np.repeat(indices, 2, axis=1)[:, ::2], (4, 6), (100, 90), (9, 9)) == expected).all()
    assert (backend.patch_origins(indices[::-1], (4, 6), (100, 90), (9, 9)) == expected[::-1]).all()
    assert backend.patch_origins(indices[:0], (4, 6), (100, 90), (9, 9)).shape == (0, 6, 2)


@pytest.mark.parametrize("bad", [-1, 24, 2**40, -(2**63), 2**63 - 1])
def test_a_cell_outside_the_grid(backend, bad):
    indices = np.zeros((2, 3), dtype=np.int64)
    indices[1, 2] = bad
    with pytest.raises(backend.errors, match="indices"):
        backend.patch_origins(indices, (4, 6), (100, 90), (9, 9))


@pytest.mark.parametrize(
    "name, value",
    [
        ("grid", (0, 6)),
        ("grid", (4, -6)),
        ("grid", (4,)),
        ("grid", (2**40, 2**40)),
        ("image_shape", (100, 0)),
        ("image_shape", (100,)),
        ("patch_size", (0, 9)),
        ("patch_size", (9, 9, 9)),
        ("low_shape", (0, 10)),
        ("low_shape", (10, 10, 10)),
        ("receptive_field", (-1, 0)),
        ("receptive_field", (4, 0)),
        ("receptive_field", 1000),
    ],
)
def test_bad_geometry(backend, name, value):
    arguments = {"grid": (4, 6), "image_shape": (100, 90), "patch_size": (9, 9), name: value}
    with pytest.raises(backend.errors, match=name if value != (4,) else "grid|image_shape|patch_size"):
        backend.patch_origins(np.zeros((1, 1), dtype=np.int64), **arguments)


def test_reference_by_enumeration():
    """Cells tile the image: the centres are evenly spaced and symmetric."""
    found = reference.locate_exact(np.arange(7)[None], [7], [91], [5])[0]
    centres = [float(x[0]) + 2.5 for x in found]
    assert np.allclose(np.diff(centres), 13) and np.isclose(centres[0] + centres[-1], 91)
