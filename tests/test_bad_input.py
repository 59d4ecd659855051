"""Malformed calls at the NumPy edge: Hypothesis takes a good call of each function and spoils one to three arguments.

Every call returns, or raises ValueError, TypeError or MemoryError with a message that names an argument. (Which
argument must be named by which mistake is told by the tables in the other files: between two shapes that disagree
either may be.) A crash or an access out of bounds ends the run; a hang does after five minutes.
"""

import faulthandler
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = 600  # for each of six functions
ABSURD = [2**50, 2**62, 2**63 - 1, 2**63, 2**64 + 3, 10**30, -(2**63), -(2**63) - 1]
DTYPES = [
    "float16",
    "float32",
    "float64",
    ">f8",
    ">f4",
    "longdouble",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "int64",
    ">i8",
    "uint64",
    "bool",
    "complex64",
    "complex128",
    "object",
    "U3",
    "S2",
    "M8[s]",
    "m8[s]",
    "V4",
    [("x", "f4"), ("y", "i8")],
]


@pytest.fixture(scope="module", autouse=True)
def watch():
    """Ends the run, with a traceback, when a call does not come back."""
    faulthandler.dump_traceback_later(300, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def ats(numpy_backend):
    return numpy_backend.ats


class Odd:
    """Says it is an array, or an int, and is not."""

    def __array__(self, dtype=None, copy=None):
        raise ValueError("no array")

    def __index__(self):
        raise TypeError("no index")


numbers = st.sampled_from([0, 1, -1, 2, 3, 7, 1.5, -0.0, np.nan, np.inf, -np.inf, 1e308, *ABSURD]) | st.integers(-9, 9)
things = st.sampled_from(
    [None, True, False, "", "abc", "murthy", "constant", b"x", 1j, {}, {"a": 1}, set(), print, type]
)
odd = st.builds(Odd) | st.builds(object)


@st.composite
def arrays(draw):
    """Any dtype, rank 0 to 9, few elements, some of them special."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4) | st.lists(st.integers(0, 2), max_size=9)))
    dtype = draw(st.sampled_from(DTYPES))
    array = np.random.default_rng(draw(st.integers(0, 5))).integers(0, 5, size=shape)
    try:
        array = array.astype(dtype)
    except (TypeError, ValueError):
        array = np.zeros(shape, dtype)
    if array.size and array.dtype.kind == "f" and draw(st.booleans()):
        special = draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 6e4, 1e-7]))
        array.reshape(-1)[draw(st.integers(0, array.size - 1))] = special
    return array


@st.composite
def spoiled(draw, value):
    """An array argument, changed a little."""
    value = np.asarray(value)
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return value[..., None]
    if kind == 1:
        return value[0] if value.ndim and len(value) else value[None]
    if kind == 2 and value.ndim:  # another length along one axis
        axis, length = draw(st.integers(0, value.ndim - 1)), draw(st.integers(0, 5))
        return np.take(value, np.arange(length) % max(value.shape[axis], 1), axis=axis) if value.size else value
    if kind == 3:
        return value.T
    if kind == 4:
        dtype = draw(st.sampled_from(DTYPES[:18]))
        with np.errstate(all="ignore"):
            return value.astype(dtype) if value.dtype.kind != "c" and dtype not in ("U3", "S2") else value
    if kind == 5 and value.size:
        changed = value.copy()
        special = (
            [0, -1, 2**62, -(2**63), 2**63 - 1] if value.dtype.kind in "iu" else [np.nan, np.inf, -np.inf, -1, 0, 6e4]
        )
        with np.errstate(all="ignore"):
            try:
                changed.flat[draw(st.integers(0, value.size - 1))] = draw(st.sampled_from(special))
            except OverflowError:
                return value
        return changed
    if kind == 6:
        return value.tolist()
    if kind == 7:
        return np.broadcast_to(value, (2, *value.shape)) if value.ndim < 9 else value
    if kind == 8:
        return [value.tolist(), 1]  # ragged
    return np.ma.masked_array(value) if draw(st.booleans()) else memoryview(np.ascontiguousarray(value))


sizes = st.lists(st.integers(-2, 5) | st.sampled_from(ABSURD) | things, max_size=5).map(tuple) | st.lists(
    numbers, max_size=4
)


def poison(value):
    anything = numbers | things | odd | arrays() | sizes | st.lists(numbers | things, max_size=3)
    if isinstance(value, np.ndarray):
        return spoiled(value) | spoiled(value) | spoiled(value) | anything
    return anything


@st.composite
def calls(draw, good):
    """The arguments of a good call, one to three of them spoiled."""
    arguments = dict(good)
    names = draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=3, unique=True))
    for name in names:
        arguments[name] = draw(poison(arguments[name]))
    return arguments


def flat(value):
    if isinstance(value, np.ndarray):
        return [value]
    return list(value) if isinstance(value, tuple) else [value]


def throw(function, arguments, more=()):
    """The outcome must be a result or a decent error, one that names an argument or one of `more`."""
    try:
        result = function(**arguments)
    except (ValueError, TypeError, MemoryError) as error:
        message = str(error)
        assert "incompatible function arguments" not in message, f"pybind11's words: {message}"
        if not isinstance(error, MemoryError):
            named = [
                name
                for name in (*arguments, *more)
                if re.search(rf"(?<![A-Za-z_]){re.escape(name)}(?![A-Za-z_])", message)
            ]
            assert named, f"no argument is named: {message!r}"
        return None
    for array in flat(result):
        assert isinstance(array, np.ndarray), type(array)
    return result


ATTENTION = np.array([[0.1, 0.2, 0.3, 0.4], [4.0, 3.0, 0.0, 1.0]])
SAMPLE = {"attention": ATTENTION.reshape(2, 2, 2), "n": 2, "replace": False, "logits": False, "rng": (1, 2)}


@settings(max_examples=EXAMPLES)
@given(calls(SAMPLE))
def test_sample(ats, arguments):
    result = throw(ats.sample, arguments)
    if result is not None:
        indices, probabilities, threshold = result
        cells = np.asarray(arguments["attention"])[0:1].size
        assert indices.dtype == np.int64 and indices.shape == probabilities.shape
        assert indices.size == 0 or (indices.min() >= 0 and indices.max() < cells)
        assert not np.isnan(probabilities).any() and not np.isnan(threshold).any()


TOPK = {key: SAMPLE[key] for key in ("attention", "n", "logits")}


@settings(max_examples=EXAMPLES // 2)
@given(calls(TOPK))
def test_topk(ats, arguments):
    result = throw(ats.topk, arguments)
    if result is not None and result[0].size:
        assert 0 <= result[0].min() and result[0].max() < np.asarray(arguments["attention"])[0:1].size


LOCATE = {
    "indices": np.array([[0, 3, 5], [1, 2, 4]]),
    "grid": (2, 3),
    "image_shape": (20, 30),
    "patch_size": (4, 5),
    "low_shape": (10, 12),
    "receptive_field": (2, 3),
}


@settings(max_examples=EXAMPLES)
@given(calls(LOCATE))
def test_patch_origins(ats, arguments):
    throw(ats.patch_origins, arguments)


IMAGE = np.arange(2 * 6 * 5 * 3, dtype=np.float32).reshape(2, 6, 5, 3)
ORIGINS = np.array([[[0, 1], [-3, 9]], [[2, 2], [5, 5]]])
PATCHES = {
    "image": IMAGE,
    "origins": ORIGINS,
    "patch_size": (2, 3),
    "scales": (1, 2),
    "padding": "reflect",
    "fill": 0.5,
    "dtype": "float32",
    "mean": [0.0, 1.0, 2.0],
    "std": [1.0, 2.0, 3.0],
    "data_format": "channels_last",
}


@settings(max_examples=EXAMPLES)
@given(calls(PATCHES), st.booleans())
def test_extract_patches(ats, arguments, pyramid):
    if pyramid and isinstance(arguments["image"], np.ndarray):
        half = IMAGE[:, ::2, ::2]
        arguments = arguments | {"image": [arguments["image"], half], "scales": None}
    throw(ats.extract_patches, arguments)


GRAD = {
    "grad": np.ones((2, 2, 2, 2, 3, 3), np.float32),
    "image_shape": (2, 6, 5, 3),
    **{key: PATCHES[key] for key in ("origins", "patch_size", "scales", "padding", "std", "dtype", "data_format")},
}


@settings(max_examples=EXAMPLES)
@given(calls(GRAD))
def test_extract_patches_backward(ats, arguments):
    throw(ats.extract_patches_backward, arguments)


EXPECTATION = {
    "features": np.arange(24.0).reshape(2, 3, 4),
    "attention": np.array([[0.1, 0.2, 0.3], [0.5, 0.25, 0.125]]),
    "threshold": np.array([1.0, 2.0]),
    "weights": np.array([0.5, 0.25, 0.25]),
}
ESTIMATORS = st.sampled_from(["iid", "des_raj", "murthy", "horvitz_thompson", "normalized"])


def fitting(arguments, estimator):
    """Only the arguments that the estimator takes: a good call, but for what is spoiled."""
    if estimator != "horvitz_thompson" and arguments["threshold"] is EXPECTATION["threshold"]:
        arguments = arguments | {"threshold": None}
    if estimator != "des_raj" and arguments["weights"] is EXPECTATION["weights"]:
        arguments = arguments | {"weights": None}
    return {"estimator": estimator} | arguments


@settings(max_examples=EXAMPLES)
@given(calls(EXPECTATION), ESTIMATORS | things)
def test_expectation(ats, arguments, estimator):
    throw(ats.expectation, fitting(arguments, estimator))


@settings(max_examples=EXAMPLES)
@given(calls(EXPECTATION | {"grad": np.ones((2, 4))}), ESTIMATORS | numbers)
def test_expectation_backward(ats, arguments, estimator):
    throw(ats.expectation_backward, fitting(arguments, estimator))


@settings(max_examples=EXAMPLES // 2)
@given(calls({key: value for key, value in EXPECTATION.items() if key != "features"}), ESTIMATORS | odd)
def test_estimator_arrays(ats, arguments, estimator):
    throw(ats.estimator_arrays, fitting(arguments, estimator))


SAMPLES = (np.array([[0, 3], [1, 3]]), np.array([[0.1, 0.4], [0.375, 0.125]]), np.array([1.0, 2.0]))


@settings(max_examples=EXAMPLES // 2)
@given(
    calls({"grad": np.ones((2, 2)), "attention": ATTENTION, "logits": False}),
    calls(dict(zip("ipt", SAMPLES, strict=True))),
    st.booleans(),
    things | numbers | st.none(),
)
def test_sample_backward(ats, arguments, samples, spoil, whole):
    arguments["samples"] = tuple(samples[key] for key in "ipt") if spoil else SAMPLES
    if whole is not None and spoil:
        arguments["samples"] = whole
    throw(ats.sample_backward, arguments, more=("indices", "probabilities"))  # fields of samples


@pytest.mark.parametrize(
    "function, good",
    [
        ("sample", SAMPLE),
        ("topk", TOPK),
        ("patch_origins", LOCATE),
        ("extract_patches", PATCHES),
        ("extract_patches_backward", GRAD),
        ("expectation", fitting(EXPECTATION, "des_raj")),
        ("expectation", fitting(EXPECTATION, "horvitz_thompson")),
        ("sample_backward", {"grad": np.ones((2, 2)), "attention": ATTENTION, "samples": SAMPLES}),
    ],
)
def test_the_good_calls_are_good(ats, function, good):
    """Else the tests above would test one complaint only."""
    assert throw(getattr(ats, function), good) is not None


# ---- mistakes whose argument is beyond doubt ------------------------------------------------------------------------

WRONG = [
    ("sample", SAMPLE, "n", [None, "2", 1.5, 0, -1, 5, *ABSURD]),
    (
        "sample",
        SAMPLE,
        "attention",
        [None, "abc", object(), ATTENTION.astype(int), ATTENTION * 1j, ATTENTION[0], -ATTENTION],
    ),
    ("sample", SAMPLE, "attention", [ATTENTION.astype(object), ATTENTION > 0, ATTENTION * np.nan, np.ones((1,) * 9)]),
    (
        "sample",
        SAMPLE,
        "rng",
        ["a", 1.5, (1,), (1, 2, 3), np.zeros(3, np.int64), np.zeros(2), 2**64, (0, 2**63), object()],
    ),
    ("topk", TOPK, "n", [None, 0, -3, 9, 2**63]),
    ("patch_origins", LOCATE, "indices", [None, np.ones((2, 2)), np.zeros(3, int), np.array([[6]]), np.array([[-1]])]),
    ("patch_origins", LOCATE, "grid", [None, 3, (), (2, -3), (2, 0), "ab", (2.0, 3.0), (2**62, 2**62)]),
    ("patch_origins", LOCATE, "image_shape", [None, (20,), (20, 0), (20, -1), (20, 2**63), (20, 1.5)]),
    ("patch_origins", LOCATE, "receptive_field", [None, -1, (2,), 99, (10, 3), 1.5]),
    ("extract_patches", PATCHES, "origins", [None, ORIGINS * 1.0, ORIGINS[0], ORIGINS[:1], ORIGINS.astype(np.uint64)]),
    ("extract_patches", PATCHES, "patch_size", [None, 0, -2, (2, 0), (2, 3, 4), "ab", 1.5, *ABSURD[2:]]),
    (
        "extract_patches",
        PATCHES,
        "scales",
        [0, (0,), (-1, 1), (), "a", (1.5,), (1,) * 17, (2**62,), (2**63,), (10**30,)],
    ),
    ("extract_patches", PATCHES, "padding", [None, "wrap", 0, 3, b"edge", ""]),
    ("extract_patches", PATCHES, "fill", [None, "a", 1j, [1, 2]]),
    ("extract_patches", PATCHES, "dtype", ["int64", "uint8", "complex64", "nonsense", object, 3.5]),
    ("extract_patches", PATCHES, "mean", [[1.0], [1.0] * 4, "abc", [[1.0] * 3], [None] * 3, 1j]),
    ("extract_patches", PATCHES, "std", [0, [1.0], [1, 0, 1], [1, np.nan, 1], "abc", [[1.0] * 3]]),
    ("extract_patches", PATCHES, "data_format", [None, "NCHW", 1, "channels"]),
    ("extract_patches", PATCHES, "image", [None, IMAGE[0], IMAGE.astype(np.int64), IMAGE * 1j, IMAGE > 0, [], "a"]),
    ("extract_patches_backward", GRAD, "image_shape", [None, 5, (2, 6, 5), (3, 6, 5, 3), (2, 6, 5, 4), (2, -6, 5, 3)]),
    ("extract_patches_backward", GRAD, "grad", [None, GRAD["grad"][0], GRAD["grad"][:1], GRAD["grad"].astype(int)]),
    (
        "expectation",
        fitting(EXPECTATION, "iid"),
        "attention",
        [None, np.ones(3), np.ones((2, 3)) * 1j, -np.ones((2, 3))],
    ),
    ("expectation", fitting(EXPECTATION, "iid"), "estimator", [None, "", "Murthy", 2, object()]),
    (
        "expectation",
        fitting(EXPECTATION, "horvitz_thompson"),
        "threshold",
        [None, np.ones(3), "a", np.array([1.0, np.nan])],
    ),
    (
        "expectation",
        fitting(EXPECTATION, "des_raj"),
        "weights",
        [np.ones(2) / 2, "abc", np.array([1.0, np.inf, 0.0]), np.ones(3)],
    ),
]


@pytest.mark.parametrize(
    "function, good, name, value",
    [
        pytest.param(function, good, name, value, id=f"{function}-{name}-{at}")
        for function, good, name, values in WRONG
        for at, value in enumerate(values)
    ],
)
def test_the_argument_is_named(ats, function, good, name, value):
    # two arguments that disagree: either may be to blame
    related = {"image_shape": "image_shape|grad|origins|std", "grad": "grad|image_shape", "origins": "origins|image"}
    related |= {"attention": "attention|features", "image": "image|origins|scales|mean|std"}
    expected = related.get(name, name)
    errors = (ValueError, TypeError, MemoryError) if name == "patch_size" else (ValueError, TypeError)
    with pytest.raises(errors) as caught:
        getattr(ats, function)(**(good | {name: value}))
    if not isinstance(caught.value, MemoryError):
        assert re.search(rf"(?<![A-Za-z_])({expected})(?![A-Za-z_])", str(caught.value)), str(caught.value)
