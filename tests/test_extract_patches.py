"""extract_patches and its backward against the reference: dtypes, padding, scales, ranks, layouts, wild origins."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tolerances import assert_close, assert_integer_close

PADDINGS = ["constant", "edge", "reflect"]
FLOATING = ["float16", "bfloat16", "float32", "float64"]
INTEGER = ["uint8", "int16", "uint16"]
HIGHEST, LOWEST = 2**63 - 1, -(2**63)


def pixels(shape, dtype, seed=0):
    generator = np.random.default_rng(seed)
    if dtype in INTEGER:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max + 1, size=shape).astype(dtype)
    return generator.normal(size=shape)


def dtypes_of(backend):
    return [x for x in FLOATING if x in backend.floating] + [x for x in INTEGER if x in backend.integer]


def channels_first(array, d):
    """View a (..., *patch, C) array as (..., C, *patch)."""
    return np.moveaxis(array, -1, -1 - d)


def check_forward(backend, image, origins, patch, *, dtype=None, first=False, native=None, **options):
    """`image` (B, *spatial, C) is NumPy, or already `native`'s. Compares values and dtype with the reference."""
    native = backend.array(image if native is None else native)
    hidden = backend.numpy(native).astype(np.float64)
    d = len(patch)
    given = native
    if first:
        given = backend.transpose(native, (0, d + 1, *range(1, d + 1)))
    source = backend.dtype(native)
    wanted = dtype or source
    found = backend.extract_patches(
        given,
        origins,
        tuple(patch),
        data_format="channels_first" if first else "channels_last",
        **({"dtype": dtype} if dtype else {}),
        **options,
    )
    expected = reference.extract_patches(hidden, origins, patch, **options)
    if first:
        expected = channels_first(expected, d)
    assert found.shape == expected.shape
    if wanted in INTEGER:
        assert found.dtype == wanted
        assert_integer_close(found, expected, wanted)
    else:
        assert found.dtype == ("float32" if wanted == "bfloat16" else wanted)
        finite = hidden[np.isfinite(hidden)]
        scale = np.abs(finite).max(initial=1.0) + np.abs(np.asarray(options.get("mean", 0.0))).max()
        scale = scale / np.abs(np.asarray(options.get("std", 1.0))).min()
        assert_close(found, expected, wanted, scale=scale)
    return found


@st.composite
def geometries(draw, reach=12):
    d = draw(st.integers(1, 3))
    spatial = draw(st.lists(st.integers(1, 9), min_size=d, max_size=d))
    patch = draw(st.lists(st.integers(1, 5), min_size=d, max_size=d))
    batch, n = draw(st.integers(0, 2)), draw(st.integers(0, 3))
    channels = draw(st.integers(1, 4))
    near = st.integers(-reach, reach + 9)
    wild = st.sampled_from([HIGHEST, LOWEST, HIGHEST - 1, LOWEST + 3, 2**62, -(2**62), 2**31, -(2**31) - 1, 2**53 + 1])
    count = batch * n * d
    origins = draw(st.lists(near | near | near | wild, min_size=count, max_size=count))
    scales = draw(st.none() | st.lists(st.integers(1, 5), min_size=1, max_size=3))
    return spatial, patch, np.array(origins, dtype=np.int64).reshape(batch, n, d), channels, scales


@settings(max_examples=400)
@given(geometries(), st.data())
def test_forward(backend, geometry, data):
    spatial, patch, origins, channels, scales = geometry
    dtype = data.draw(st.sampled_from(dtypes_of(backend)))
    image = pixels((origins.shape[0], *spatial, channels), dtype, data.draw(st.integers(0, 99)))
    wanted = data.draw(st.sampled_from([None, *backend.floating]))
    if dtype == "uint16" and wanted == "float16":
        image = image // 2  # within the range
    options = {"padding": data.draw(st.sampled_from(PADDINGS)), "fill": data.draw(st.sampled_from([0.0, 1.0, -2.5]))}
    if scales is not None:
        options["scales"] = tuple(scales)
    if wanted is not None or dtype in FLOATING:
        if data.draw(st.booleans()):
            options["mean"] = data.draw(
                st.lists(st.sampled_from([0.0, 0.5, 120.0]), min_size=channels, max_size=channels)
            )
        if data.draw(st.booleans()):
            options["std"] = data.draw(
                st.lists(st.sampled_from([1.0, 0.25, 60.0]), min_size=channels, max_size=channels)
            )
    if "std" in options and wanted == "float16" and dtype in INTEGER:
        image = image // 8
    first = data.draw(st.booleans())
    check_forward(
        backend, None, origins, patch, dtype=wanted, first=first, native=backend.array(image, dtype), **options
    )


@pytest.mark.parametrize("dtype", FLOATING + INTEGER)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("scales", [None, (1,), (1, 2, 4)])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_combination(backend, dtype, padding, scales, d):
    if dtype not in backend.floating + backend.integer:
        pytest.skip(f"{backend.name} has no {dtype}")
    spatial, patch = (13, 9, 7)[:d], (4, 3, 2)[:d]
    image = backend.array(pixels((2, *spatial, 3), dtype), dtype)
    origins = np.random.default_rng(1).integers(-9, 16, size=(2, 5, d))
    origins[0, 0] = 2  # one inside
    options = {"padding": padding, "fill": 3.0} | ({"scales": scales} if scales else {})
    for first in (False, True):
        check_forward(backend, None, origins, patch, first=first, native=image, **options)
    check_forward(
        backend,
        None,
        origins,
        patch,
        dtype="float32",
        native=image,
        mean=[1.0, 0.0, -2.0],
        std=[2.0, 30.0, 100.0],
        **options,
    )


@pytest.mark.parametrize("padding", ["edge", "reflect"])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_reference_pads_as_numpy_does(padding, size):
    image = np.random.default_rng(0).normal(size=(1, size, 1))
    around = np.pad(image[0, :, 0], 40, mode=padding)
    for origin in range(-40, 40):
        found = reference.extract_patches(image, np.array([[[origin]]]), (size,), padding=padding)
        assert (found[0, 0, :, 0] == around[40 + origin : 40 + origin + size]).all()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("channels", [1, 3, 70])
def test_a_larger_image(backend, padding, channels):
    """Where loops are split, blocked or vectorised."""
    image = pixels((2, 200, 173, channels), "float32").astype("float32")
    corners = [[-31, 160], [199, -40], [600, 900], [-777, 80], [0, 0], [150, 120], [168, 141]]
    origins = np.array([corners, corners[::-1]])
    for patch, scales in [((32, 33), (1,)), ((17, 8), (1, 2, 5))]:
        check_forward(backend, image, origins, patch, padding=padding, scales=scales, fill=1.0)
        grad = pixels((2, 7, len(scales), *patch, channels), "float32")
        check_backward(backend, grad, origins, image, patch, dtype="float32", padding=padding, scales=scales)


# ---- origins anywhere -----------------------------------------------------------------------------------------------

WILD = [HIGHEST, HIGHEST - 1, HIGHEST - 7, LOWEST, LOWEST + 1, LOWEST + 5, 2**62 + 3, -(2**62) - 3, 2**53 + 1, -(2**32)]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("scales", [None, (1, 3), (16,)])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 11])
def test_origins_near_the_limits_of_int64(backend, padding, scales, size):
    image = pixels((1, size, 2), "float64")
    origins = np.array(WILD, dtype=np.int64).reshape(1, -1, 1)
    options = {"padding": padding, "fill": -7.0} | ({"scales": scales} if scales else {})
    found = check_forward(backend, image, origins, (6,), **options)
    if padding == "constant":
        assert (found == -7.0).all()
    if padding == "edge":
        border = np.where(np.array(WILD)[:, None] > 0, image[0, -1], image[0, 0])
        border = border[:, None] if scales is None else border[:, None, None]
        assert_close(found[0], np.broadcast_to(border, found[0].shape), "float64")
    image = pixels((1, 4, size, 2), "float32").astype("float32")
    pairs = np.array(list(itertools.product(WILD[::3], [0, *WILD[1::3]])), dtype=np.int64)[None]
    check_forward(backend, image, pairs, (2, 5), **options)
    grad = pixels((1, pairs.shape[1], *([len(scales)] if scales else []), 2, 5, 2), "float64")
    check_backward(backend, grad, pairs, image.astype("float64"), (2, 5), **options)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 1e300])
def test_special_fills(backend, fill):
    image = pixels((1, 6, 6, 2), "float64")
    origins = np.array([[[-2, 3], [1, 1], [50, 50]]])
    for dtype in ("float16", "float32", "float64"):
        options = {"fill": fill, "mean": [0.5, 0.0], "std": [2.0, 0.5]}
        check_forward(backend, None, origins, (4, 4), native=backend.array(image, dtype), **options)
        check_forward(backend, None, origins, (2, 2), native=backend.array(image, dtype), scales=(1, 2), **options)
    # the fill is not read for other paddings, nor inside
    assert np.isfinite(backend.extract_patches(image, origins, (4, 4), fill=fill, padding="reflect")).all()
    assert np.isfinite(backend.extract_patches(image, origins[:, 1:2], (4, 4), fill=fill)).all()


def test_special_pixels(backend):
    image = pixels((1, 8, 1), "float32").astype("float32")
    image[0, 2], image[0, 5] = np.nan, np.inf
    check_forward(backend, image, np.arange(-3, 9).reshape(1, -1, 1), (3,), scales=(1, 2), padding="reflect")


# ---- integers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGER)
def test_integers_round_half_to_even_and_saturate(backend, dtype):
    limits = np.iinfo(dtype)
    # pairs whose means end in .5, .0, and a block of four for .25 and .75
    image = np.array([0, 1, 1, 2, 2, 3, 3, 4, limits.max, limits.max, limits.max - 1, limits.max], dtype=dtype)
    found = backend.extract_patches(image.reshape(1, -1, 1), np.array([[[3]]]), (6,), scales=(2,))
    assert found.dtype == dtype
    expected = np.rint(image.astype(np.float64).reshape(-1, 2).mean(axis=1))
    assert found.ravel().tolist() == expected.tolist()
    assert found.ravel()[:4].tolist() == [0, 2, 2, 4]
    four = np.array([0, 0, 1, 1, 1, 1, 1, 2, 1, 2, 2, 2], dtype=dtype)  # 0.5, 1.25, 1.75
    # origin - floor(3 * 3 / 2) = 0
    found = backend.extract_patches(four.reshape(1, -1, 1), np.array([[[4]]]), (3,), scales=(4,))
    assert found.ravel().tolist() == [0, 1, 2]
    for fill, expected in [(1e30, limits.max), (-1e30, limits.min), (2.5, 2), (3.5, 4), (limits.max + 0.4, limits.max)]:
        found = backend.extract_patches(image.reshape(1, -1, 1), np.array([[[1000]]]), (2,), fill=fill)
        assert found.ravel().tolist() == [expected] * 2, fill
    one = np.array([10, 20], dtype=dtype).reshape(1, 2, 1)
    found = backend.extract_patches(one, np.array([[[0]]]), (2,), mean=[15.0], std=[0.001], dtype=dtype)
    assert found.ravel().tolist() == [max(limits.min, -5000), min(limits.max, 5000)]
    found = backend.extract_patches(one, np.array([[[0]]]), (2,), mean=[7.5], dtype=dtype)
    assert found.ravel().tolist() == [2, 12]


@pytest.mark.parametrize("dtype", INTEGER)
def test_a_copy_of_integers_is_exact(backend, dtype):
    limits = np.iinfo(dtype)
    image = np.arange(limits.min, limits.max + 1).astype(dtype).reshape(1, 16, -1, 1)
    found = backend.extract_patches(image, np.zeros((1, 1, 2), np.int64), image.shape[1:3])
    assert (found[0] == image).all()


# ---- layouts --------------------------------------------------------------------------------------------------------


def views(array):
    """The same values in many layouts."""
    yield "contiguous", array
    yield "fortran", np.asfortranarray(array)
    yield "reversed", array[:, ::-1].copy()[:, ::-1]
    yield (
        "backwards",
        np.ascontiguousarray(array[tuple(slice(None, None, -1) for _ in array.shape)])[
            tuple(slice(None, None, -1) for _ in array.shape)
        ],
    )
    yield "every other", np.repeat(np.repeat(array, 2, axis=1), 3, axis=-1)[:, ::2, ..., ::3]
    yield "channels first", np.ascontiguousarray(np.moveaxis(array, -1, 1)).transpose(0, *range(2, array.ndim), 1)
    inner = np.zeros([size + 3 for size in array.shape], dtype=array.dtype)
    inner[tuple(slice(1, size + 1) for size in array.shape)] = array
    yield "inner", inner[tuple(slice(1, size + 1) for size in array.shape)]
    frozen = array.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("spatial, patch", [((17,), (5,)), ((9, 11), (4, 3)), ((5, 6, 7), (2, 3, 4))])
def test_layouts(backend, dtype, spatial, patch):
    image = pixels((2, *spatial, 3), dtype).astype(dtype)
    origins = np.random.default_rng(2).integers(-3, 9, size=(2, 4, len(patch)))
    expected = backend.extract_patches(image, origins, patch, padding="reflect", scales=(1, 2))
    for name, view in views(image):
        found = backend.extract_patches(view, origins, patch, padding="reflect", scales=(1, 2))
        assert (found == expected).all(), name
        first = np.moveaxis(view, -1, 1)
        found = backend.extract_patches(
            first, origins, patch, padding="reflect", scales=(1, 2), data_format="channels_first"
        )
        assert (found == channels_first(expected, len(patch))).all(), name
    for name, view in views(origins):
        found = backend.extract_patches(image, view, patch, padding="reflect", scales=(1, 2))
        assert (found == expected).all(), name


def test_one_image_for_a_whole_batch(backend):
    image = np.broadcast_to(pixels((1, 7, 8, 2), "float64"), (5, 7, 8, 2))
    grey = np.broadcast_to(pixels((5, 7, 8, 1), "float64"), (5, 7, 8, 2))
    origins = np.random.default_rng(3).integers(-3, 7, size=(5, 3, 2))
    for array in (image, grey):
        assert 0 in array.strides
        assert (
            backend.extract_patches(array, origins, (3, 3)) == backend.extract_patches(array.copy(), origins, (3, 3))
        ).all()
    same = np.broadcast_to(origins[:1, :1], (5, 4, 2))
    assert (backend.extract_patches(image, same, (3, 3)) == backend.extract_patches(image, same.copy(), (3, 3))).all()


@pytest.mark.parametrize("batch, n, channels", [(0, 3, 2), (2, 0, 2), (2, 3, 0), (0, 0, 0)])
def test_empty(backend, batch, n, channels):
    image = np.zeros((batch, 6, 7, channels), dtype=np.float32)
    origins = np.zeros((batch, n, 2), dtype=np.int64)
    assert backend.extract_patches(image, origins, (3, 4)).shape == (batch, n, 3, 4, channels)
    assert backend.extract_patches(image, origins, (3, 4), scales=(1, 2)).shape == (batch, n, 2, 3, 4, channels)
    grad = np.zeros((batch, n, 3, 4, channels), dtype=np.float32)
    found = backend.extract_patches_backward(grad, origins, image, (3, 4))
    assert found.shape == image.shape and not found.any()


@pytest.mark.parametrize("padding", PADDINGS)
def test_an_axis_without_pixels(backend, padding):
    image = np.zeros((1, 0, 5, 1), dtype=np.float32)
    origins = np.zeros((1, 1, 2), dtype=np.int64)
    try:
        found = backend.extract_patches(image, origins, (2, 2), padding=padding, fill=4.0)
    except backend.errors as error:
        assert "image" in str(error)
    else:
        assert padding == "constant" and (found == 4.0).all()  # nothing else has an answer


def test_ints_stand_for_every_axis(backend):
    image = pixels((1, 9, 9, 1), "float32").astype("float32")
    origins = np.array([[[1, 2]]])
    assert (backend.extract_patches(image, origins, 4) == backend.extract_patches(image, origins, (4, 4))).all()


# ---- pyramids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
def test_a_pyramid_stands_for_scales(backend, first):
    """Where pixels line up (even patches, even origins), the levels of a pyramid of means are the scales."""
    image = pixels((2, 32, 48, 3), "float64")
    half = image.reshape(2, 16, 2, 24, 2, 3).mean(axis=(2, 4))
    origins = 2 * np.random.default_rng(4).integers(4, 8, size=(2, 5, 2))
    levels, data_format = [image, half], "channels_last"
    expected = reference.extract_patches(image, origins, (4, 8), scales=(1, 2))
    if first:
        levels, data_format = [np.moveaxis(x, -1, 1) for x in levels], "channels_first"
        expected = channels_first(expected, 2)
    found = backend.extract_patches(levels, origins, (4, 8), data_format=data_format)
    assert_close(found, expected, "float64")


# ---- backward -------------------------------------------------------------------------------------------------------


def check_backward(backend, grad, origins, image, patch, first=False, dtype="float64", **options):
    """`grad` (B, N, [S,] *patch, C), channels last."""
    d = len(patch)
    values = backend.array(grad, dtype)
    hidden = backend.numpy(values).astype(np.float64)
    image = backend.array(image, dtype)
    if first:
        axes = (*range(hidden.ndim - d - 1), hidden.ndim - 1, *range(hidden.ndim - d - 1, hidden.ndim - 1))
        values = backend.transpose(values, axes)
        axes = (0, d + 1, *range(1, d + 1))
        image = backend.transpose(image, axes)
    found = backend.extract_patches_backward(
        values, origins, image, tuple(patch), data_format="channels_first" if first else "channels_last", **options
    )
    if first:
        found = np.moveaxis(found, 1, -1)
    spatial = found.shape[1:-1]
    keep = {key: options[key] for key in ("scales", "padding", "std") if key in options}
    expected = reference.extract_patches_backward(hidden, origins, spatial, patch, **keep)
    scale = reference.extract_patches_backward(np.abs(hidden), origins, spatial, patch, **keep)
    assert_close(found, expected, dtype, scale=np.abs(scale))
    return found


@settings(max_examples=300)
@given(geometries(), st.data())
def test_backward(backend, geometry, data):
    spatial, patch, origins, channels, scales = geometry
    dtype = data.draw(st.sampled_from(backend.floating))
    options = {"padding": data.draw(st.sampled_from(PADDINGS))}
    if scales is not None:
        options["scales"] = tuple(scales)
    if data.draw(st.booleans()):
        options["std"] = data.draw(st.lists(st.sampled_from([1.0, 0.25, 60.0]), min_size=channels, max_size=channels))
    batch, n = origins.shape[:2]
    shape = (batch, n, *([len(scales)] if scales else []), *patch, channels)
    grad = pixels(shape, dtype, data.draw(st.integers(0, 99)))
    image = np.zeros((batch, *spatial, channels))
    check_backward(backend, grad, origins, image, patch, first=data.draw(st.booleans()), dtype=dtype, **options)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_backward_is_the_transpose(padding, d):
    """<forward(x), g> == <x, backward(g)>: the reference with itself."""
    generator = np.random.default_rng(d)
    spatial, patch = (7, 5, 4)[:d], (3, 4, 2)[:d]
    image, origins = generator.normal(size=(2, *spatial, 2)), generator.integers(-6, 9, size=(2, 4, d))
    options = {"padding": padding, "scales": (1, 3), "std": [2.0, 0.3]}
    patches = reference.extract_patches(image, origins, patch, **options)
    grad = generator.normal(size=patches.shape)
    back = reference.extract_patches_backward(grad, origins, spatial, patch, **options)
    assert abs((patches * grad).sum() - (image * back).sum()) < 1e-10


def test_many_patches_on_one_pixel(backend):
    """Sums are made in float32 or wider: 3000 ones in float16 do not stop at 2048."""
    origins = np.zeros((1, 3000, 2), dtype=np.int64)
    for dtype in backend.floating:
        check_backward(backend, np.ones((1, 3000, 2, 2, 1)), origins, np.zeros((1, 3, 3, 1)), (2, 2), dtype=dtype)


def test_backward_layouts(backend):
    origins = np.random.default_rng(5).integers(-3, 7, size=(2, 6, 2))
    image, grad = np.zeros((2, 7, 8, 3)), pixels((2, 6, 3, 4, 3), "float64")
    expected = check_backward(backend, grad, origins, image, (3, 4), padding="edge")
    for name, view in views(grad):
        found = backend.extract_patches_backward(view, origins, image, (3, 4), padding="edge")
        assert found.tobytes() == expected.tobytes(), name


# ---- errors ---------------------------------------------------------------------------------------------------------

BAD = [
    ("origins", {"origins": np.zeros((2, 3), np.int64)}),
    ("origins|patch_size", {"origins": np.zeros((2, 3, 3), np.int64)}),
    ("origins", {"origins": np.zeros((1, 3, 2), np.int64)}),
    ("origins", {"origins": np.zeros((2, 3, 2), np.float32)}),
    ("patch_size", {"patch_size": (0, 2)}),
    ("patch_size", {"patch_size": (2, -1)}),
    ("patch_size|image|origins", {"patch_size": (2, 2, 2)}),
    ("patch_size|image|origins", {"patch_size": (2,)}),
    ("scales", {"scales": (0,)}),
    ("scales", {"scales": (1, -2)}),
    ("scales", {"scales": tuple([1] * 17)}),
    ("scales", {"scales": (2**62,)}),
    ("scales", {"scales": ()}),
    ("padding", {"padding": "circular"}),
    ("padding", {"padding": None}),
    ("mean", {"mean": [0.0, 0.0]}),
    ("std", {"std": [1.0, 1.0]}),
    ("std", {"std": [1.0, 0.0, 1.0]}),
    ("std", {"std": [1.0, float("nan"), 1.0]}),
    ("dtype", {"dtype": "int64"}),
    ("dtype", {"dtype": "uint16"}),
    ("dtype", {"dtype": "nonsense"}),
    ("data_format", {"data_format": "channels"}),
    ("image", {"image": np.zeros((2, 8, 8, 3), np.int64)}),
    ("image", {"image": np.zeros((2, 8, 8, 3), np.complex64)}),
    ("image|origins|patch_size", {"image": np.zeros((2, 8, 3), np.float32)}),
    ("image|origins|patch_size", {"image": np.zeros((2, 8, 8, 8, 8, 3), np.float32)}),
]


@pytest.mark.parametrize("name, change", BAD)
def test_bad_arguments_are_named(numpy_backend, name, change):
    arguments = {
        "image": np.zeros((2, 8, 8, 3), np.float32),
        "origins": np.zeros((2, 3, 2), np.int64),
        "patch_size": (2, 2),
        "data_format": "channels_last",
    } | change
    with pytest.raises((ValueError, TypeError), match=name):
        numpy_backend.ats.extract_patches(**arguments)
