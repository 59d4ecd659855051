"""Malformed calls at the TensorFlow edge: a table of single mistakes whose argument is beyond doubt, and calls that
Hypothesis spoils, eagerly and in a graph that knows nothing of its tensors.

Every call returns, or raises ValueError, TypeError, InvalidArgumentError (TensorFlow's word for what an operation
refuses) or that memory is out, with a message that names an argument. A failed CHECK of TensorFlow, a crash or an access
out of bounds ends the run; a hang does after five minutes.
"""

import faulthandler
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tf = pytest.importorskip("tensorflow")

import ats_core
import ats_core.tensorflow as ats

EXAMPLES = 200  # for each of seven functions
ABSURD = [2**50, 2**62, 2**63 - 1, 2**63, 2**64 + 3, 10**30, -(2**63), -(2**63) - 1]
INVALID = tf.errors.InvalidArgumentError
NO_MEMORY = (MemoryError, tf.errors.ResourceExhaustedError)
REFUSED = (ValueError, TypeError, INVALID, *NO_MEMORY)

ATTENTION = tf.constant([[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [[3.0, 2.0, 1.0], [1.0, 1.0, 1.0]]])
ORIGINS = tf.constant([[[0, 1], [-2, 3]], [[9, 9], [2, 2]]], tf.int64)
IMAGE = tf.reshape(tf.range(2 * 6 * 5 * 3.0), (2, 6, 5, 3))
SHARES = tf.constant([[0.1, 0.2, 0.3], [0.5, 0.25, 0.125]])
ESTIMATE = {"attention": SHARES, "estimator": "horvitz_thompson", "threshold": tf.constant([1.0, 2.0]), "weights": None}
GOOD = {
    "sample": {"attention": ATTENTION, "n": 2, "replace": False, "logits": False, "rng": (1, 2)},
    "topk": {"attention": ATTENTION, "n": 2, "logits": False},
    "patch_origins": {
        "indices": tf.constant([[0, 5], [2, 3]], tf.int64),
        "grid": (2, 3),
        "image_shape": (20, 30),
        "patch_size": (3, 4),
        "low_shape": tf.constant([4, 6]),
        "receptive_field": 1,
    },
    "extract_patches": {
        "image": IMAGE,
        "origins": ORIGINS,
        "patch_size": (3, 3),
        "scales": (1, 2),
        "padding": "edge",
        "fill": 0.5,
        "dtype": tf.float32,
        "mean": (0.1, 0.2, 0.3),
        "std": 2.0,
        "data_format": "channels_last",
    },
    "extract_patches_backward": {
        "grad": tf.ones((2, 2, 2, 3, 3, 3)),
        "origins": ORIGINS,
        "image_shape": (2, 6, 5, 3),
        "patch_size": 3,
        "scales": (1, 2),
        "padding": "edge",
        "dtype": tf.float32,
        "std": 2.0,
        "data_format": "channels_last",
    },
    "expectation": {"features": tf.reshape(tf.range(24.0), (2, 3, 4)), **ESTIMATE},
    "expectation_backward": {
        "grad": tf.ones((2, 4)),
        "features": tf.reshape(tf.range(24.0), (2, 3, 4)),
        **ESTIMATE,
    },
    "estimator_arrays": ESTIMATE,
}


@pytest.fixture(scope="module", autouse=True)
def watch():
    """Ends the run, with a traceback, when a call does not come back."""
    faulthandler.dump_traceback_later(300, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


def names(argument, message):
    return re.search(rf"(?<![A-Za-z_])({argument})(?![A-Za-z_])", message)


# ---- mistakes whose argument is beyond doubt ----

EDGE = (TypeError, ValueError)  # what Python's edge finds; the rest is for the operation to find
RAGGED, SPARSE = tf.ragged.constant([[1.0, 2.0], [3.0]]), tf.sparse.from_dense([[1, 2]])
FLOATS, STRINGS = tf.constant([1.0, 2.0]), tf.constant(["a", "b"])
SINGLE = [  # function, argument, exception, values
    ("sample", "attention", TypeError, [None, {}, object(), RAGGED, SPARSE, [[1.0], "a"]]),
    ("sample", "attention", INVALID, [3, "a", [[1, 2, 3]], tf.cast(ATTENTION, tf.int32), -ATTENTION, ATTENTION[0, 0],
                                      STRINGS, ATTENTION[..., :0], tf.ones([1] * 9)]),
    ("sample", "n", EDGE, [None, "2", 1.5, 2**63, -(2**63) - 1, tf.constant(1.5), FLOATS]),
    ("sample", "n", INVALID, [0, -1, 7, 2**50, 2**62, 2**63 - 1, -(2**63)]),
    ("sample", "replace", TypeError, [None, 2, "yes", ATTENTION]),
    ("sample", "logits", TypeError, [None, 2, "yes"]),
    ("sample", "rng", TypeError, ["ab", b"ab", 1.5, (1.5, 2.7), np.array([3.7, 0]), np.float64(3), np.array(1.0), {},
                                  {1: 2, 3: 4}, (1,), (1, 2, 3), (1, None), object(), SPARSE, RAGGED,
                                  (tf.constant(1), None), (tf.constant(1), "a")]),
    ("sample", "rng", ValueError, [2**63, (0, 2**63), -(2**63) - 1, np.uint64(2**63)]),
    ("sample", "rng", TypeError, [(FLOATS, 2), (tf.constant(1.5), tf.constant(2.5)), (tf.constant([1, 2]), 3)]),
    ("sample", "rng", INVALID, [FLOATS, tf.zeros(3, tf.int64), STRINGS]),
    ("topk", "attention", TypeError, [None, RAGGED]),
    ("topk", "n", INVALID, [0, -3, 9]),
    ("patch_origins", "indices", TypeError, [None, {}, SPARSE]),
    ("patch_origins", "indices", INVALID, [3, [[1.0]], np.array([[1.0]]), FLOATS, [[6]], [[-1]], [1, 2], tf.zeros([1] * 9, tf.int64)]),
    ("patch_origins", "grid", EDGE, [None, "ab", (2.0, 3.0), 2.0, (), (1, 1, 1, 1), ATTENTION, RAGGED, SPARSE,
                                     tf.TensorShape(None), tf.TensorShape((None, 3)), (tf.constant(2), None)]),
    ("patch_origins", "grid", INVALID, [(2, -3), (0, 3), (2**53, 1), tf.constant([0, 3])]),
    ("patch_origins", "image_shape", EDGE, [None, (20,), (20, 1.5), "20", (20, 2**63), tf.constant([20]), STRINGS,
                                            tf.TensorShape(None)]),
    ("patch_origins", "image_shape", INVALID, [(20, 0), (20, -1), tf.constant([20, -1])]),
    ("patch_origins", "patch_size", EDGE, [None, 8.0, "8", (1, 2, 3), np.array([8.0, 8.0]), 2**63, FLOATS]),
    ("patch_origins", "patch_size", INVALID, [0, (3, -1), 2**62]),
    ("patch_origins", "low_shape", EDGE, [(4,), 4.0, "46"]),
    ("patch_origins", "receptive_field", EDGE, [None, 1.5, (2,), "1"]),
    ("patch_origins", "receptive_field", INVALID, [-1, 99, (10, 3), 2**63 - 1]),
    ("extract_patches", "image", EDGE, [None, {}, [], (), "a", 3, IMAGE[0], IMAGE[None], tf.constant(1.0), RAGGED]),
    ("extract_patches", "image", INVALID, [tf.cast(IMAGE, tf.int64), IMAGE > 0, IMAGE[:1], tf.strings.as_string(IMAGE)]),
    ("extract_patches", "origins", TypeError, [None, {}, SPARSE]),
    ("extract_patches", "origins", ValueError, [3, ORIGINS[0], ORIGINS[..., None], ORIGINS[..., :0], STRINGS]),
    ("extract_patches", "origins", INVALID, [tf.cast(ORIGINS, tf.float64), ORIGINS.numpy() * 1.0, ORIGINS[:1], ORIGINS > 0]),
    ("extract_patches", "patch_size", EDGE, [None, "ab", 8.0, (2, 3, 4), (2, 3.0), (), 2**63, FLOATS]),
    ("extract_patches", "patch_size", INVALID, [0, -2, (2, 0), 2**50]),
    ("extract_patches", "scales", EDGE, [2, (), "a", (1.5,), 1.5, (2**63,), tf.constant(2)]),
    ("extract_patches", "scales", INVALID, [(0,), (-1, 1), (1,) * 17, (2**62,)]),
    ("extract_patches", "padding", INVALID, [None, 3, b"wrap", ("edge",), "wrap", "", "Edge", "x" * 1000, "édge", "edge\0"]),
    ("extract_patches", "fill", TypeError, [None, "a", 1j, [1, 2], FLOATS, 10**400]),
    ("extract_patches", "dtype", TypeError, ["float99", object(), 10**6, ATTENTION]),
    ("extract_patches", "dtype", INVALID, [tf.int64, tf.uint8, tf.string, tf.variant, tf.bool]),
    ("extract_patches", "mean", EDGE, ["123", b"123", ["1", "2", "3"], [1, None, 2], (1.0, 2.0), tf.ones(2), {}, 1j,
                                       tf.ones((3, 3)), [10**400] * 3, object(), STRINGS, RAGGED, SPARSE,
                                       tf.complex(1.0, 2.0)]),
    ("extract_patches", "std", EDGE, ["abc", [1.0] * 4, [[1.0] * 3], np.ones((3, 2))]),
    ("extract_patches", "std", INVALID, [0, (1, 0, 1), (1, np.nan, 1)]),
    ("extract_patches", "data_format", ValueError, [None, "NCHW", 1, np.array(["channels_last"] * 2)]),
    ("extract_patches_backward", "image_shape", EDGE, [None, 5, (2, 6, 5), (2, 6, 5.0, 3), "2653", tf.TensorShape(None)]),
    ("extract_patches_backward", "image_shape", INVALID, [(2, -6, 5, 3), (2, 2**62, 5, 3), (2**63 - 1,) * 4]),
    ("extract_patches_backward", "origins", ValueError, [3, ORIGINS[0], ORIGINS[..., :0]]),
    ("extract_patches_backward", "dtype", EDGE, [tf.uint8, tf.complex64, "float99"]),
    ("extract_patches_backward", "grad", EDGE, [None, {}, 3, tf.ones(2), tf.ones((2, 2, 3, 3, 3))]),
    ("extract_patches_backward", "grad", INVALID, [tf.ones((2, 2, 2, 3, 3, 3), tf.complex64), tf.ones((2, 2, 2, 3, 4, 3))]),
    ("extract_patches_backward", "std", EDGE, ["a", (1.0, 2.0), {}]),
    ("expectation", "features", TypeError, [None, {}, RAGGED]),
    ("expectation", "features", INVALID, [tf.ones((2, 3, 4), tf.int32), tf.ones(2), 3.0, STRINGS, tf.ones([1] * 9)]),
    ("expectation", "attention", TypeError, [None, {}, RAGGED]),
    ("expectation", "attention", INVALID, [tf.ones(3), -tf.ones((2, 3)), tf.ones((2, 3), tf.float16), STRINGS, 1]),
    ("expectation", "estimator", INVALID, [None, 2, b"murthy", ["murthy"], "", "Murthy", "x" * 1000, "\udc80"]),
    ("expectation", "threshold", TypeError, [{}, SPARSE]),
    ("expectation", "threshold", INVALID, [None, tf.ones(3), "a", tf.ones(2, tf.float64), np.ones(2), [1, 2, 3], tf.ones([1] * 9)]),
    ("expectation", "weights", INVALID, [tf.ones(3), tf.ones(2), "a"]),
    ("expectation_backward", "grad", INVALID, [tf.ones((2, 5)), tf.ones((2, 4), tf.int32), 3.0, "a"]),
    ("estimator_arrays", "attention", INVALID, [tf.ones(3), STRINGS]),
    ("estimator_arrays", "estimator", INVALID, ["best"]),
]  # fmt: skip


@pytest.mark.parametrize(
    "function, name, error, value",
    [
        pytest.param(function, name, error, value, id=f"{function}-{name}-{at}")
        for function, name, error, values in SINGLE
        for at, value in enumerate(values)
    ],
)
def test_the_argument_is_named(function, name, error, value):
    with pytest.raises(error) as caught:
        getattr(ats, function)(**(GOOD[function] | {name: value}))
    assert names(name, str(caught.value)), str(caught.value)


def test_shapes_are_the_callers():
    """Not those of the core, whose images are channels-last."""
    with pytest.raises(ValueError, match=r"^image: must be \(B, \*spatial, C\) with 2 spatial axes, got \(6, 5, 3\)$"):
        ats.extract_patches(IMAGE[0], ORIGINS, 3)
    with pytest.raises(ValueError, match=r"^image: must be \(B, C, \*spatial\) with 2 spatial axes, got \(6, 5\)$"):
        ats.extract_patches(IMAGE[0, ..., 0], ORIGINS, 3, data_format="channels_first")
    with pytest.raises(ValueError, match=r"^mean: must be a number or one a channel \(3\), got shape \(2, 1\)$"):
        ats.extract_patches(IMAGE, ORIGINS, 3, mean=tf.ones((2, 1)))
    with pytest.raises(ValueError, match=r"^grad: must be \(B, n, S, C, \*patch\) with 2 spatial axes, got \(2, 3\)$"):
        ats.extract_patches_backward(
            tf.ones((2, 3)), ORIGINS, (2, 3, 6, 5), 3, scales=(1, 2), data_format="channels_first"
        )


@pytest.mark.parametrize(
    "level", [IMAGE[:1], IMAGE[..., :1], IMAGE[0], RAGGED], ids=["batch", "channels", "rank", "ragged"]
)
def test_the_level_of_a_pyramid_is_named(level):
    with pytest.raises(EDGE, match=r"^image\[1\]: "):
        ats.extract_patches([IMAGE, level], ORIGINS, 3)


NUMPY = [  # function, positional arguments, options: the core finds it, in the same words
    ("sample", (np.ones((2, 4), np.float32), 5), {}),
    ("sample", (np.ones((2, 4), np.float32), -1), {}),
    ("sample", (np.array([[1, 2], [3, -1]], np.float32), 1), {}),
    ("sample", (np.array([[1, 2], [np.nan, 1]], np.float64), 1), {}),
    ("sample", (np.array([[0, 1]], np.float64), 2), {}),
    ("sample", (np.array([[np.inf, 1]], np.float64), 2), {"logits": True}),
    ("topk", (np.ones((2, 4), np.float32), 5), {}),
    ("patch_origins", (np.array([[20]]), (4, 5), (40, 50), 3), {}),
    ("patch_origins", (np.array([[1]]), (4, 5), (40, 50), 3), {"receptive_field": 4}),
    ("extract_patches", (IMAGE.numpy(), ORIGINS.numpy()[:1], 4), {}),
    ("extract_patches", (IMAGE.numpy(), ORIGINS.numpy(), 4), {"scales": (0,)}),
    ("extract_patches", (IMAGE.numpy(), ORIGINS.numpy(), 4), {"std": [1.0, 0.0, 1.0]}),
    ("extract_patches", (IMAGE.numpy(), ORIGINS.numpy(), 4), {"padding": "zeros"}),
    ("expectation", (np.ones((2, 3, 4)), SHARES.numpy()[:1]), {}),
    ("expectation", (np.ones((2, 3, 4)), SHARES.numpy()), {"estimator": "best"}),
    ("expectation", (np.ones((2, 3, 4)), SHARES.numpy()), {"estimator": "horvitz_thompson"}),
    ("estimator_arrays", (SHARES.numpy()[0], "murthy"), {}),
]


@pytest.mark.parametrize("at", range(len(NUMPY)))
def test_errors_have_numpys_words(at):
    name, arguments, options = NUMPY[at]
    with pytest.raises((ValueError, TypeError)) as theirs:
        getattr(ats_core, name)(*arguments, **options)
    with pytest.raises(INVALID) as ours:
        getattr(ats, name)(*arguments, **options)
    assert str(theirs.value) in str(ours.value)


# ---- spoiled calls ----

odd_numbers = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, within tf.convert_to_tensor

numbers = st.sampled_from([0, 1, -1, 2, 3, 7, 1.5, -0.0, np.nan, np.inf, -np.inf, 1e308, *ABSURD]) | st.integers(-9, 9)
things = st.sampled_from(
    [None, True, False, "", "abc", "murthy", "edge", b"x", "\udc80", 1j, {}, {"a": 1}, set(), print, type, RAGGED, SPARSE,
     STRINGS, tf.TensorShape(None), tf.TensorShape((None, 2)), tf.TensorSpec(()), tf.IndexedSlices(FLOATS, [0, 1])]
)  # fmt: skip
scalars = st.sampled_from([np.int64(3), np.float32(2), np.array(1), np.array(1.5), tf.constant(2), tf.constant(1.5)])
dtypes = st.sampled_from(
    [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.uint8, tf.int16, tf.uint16, tf.int32, tf.int64, tf.uint64, tf.bool,
     tf.complex64]
)  # fmt: skip


@st.composite
def tensors(draw):
    """Any dtype, rank 0 to 9, few elements, some of them special; a variable or an array at times."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4) | st.lists(st.integers(0, 2), max_size=9))
    special = draw(st.lists(st.sampled_from([0, 1, 2, 3, -1, 0.5, np.nan, np.inf, 1e30]), min_size=1, max_size=5))
    values, dtype = np.resize(np.array(special, np.float64), shape), draw(dtypes)
    if not dtype.is_floating:
        values = np.clip(np.nan_to_num(values, posinf=0), 0, 3)
    with np.errstate(over="ignore"):
        tensor = tf.constant(values.astype(dtype.as_numpy_dtype))
    how = draw(st.sampled_from(["tensor", "tensor", "array", "variable"]))
    return {"tensor": tensor, "array": tensor.numpy(), "variable": tf.Variable(tensor)}[how]


@st.composite
def altered(draw, good):
    """A tensor of the good call, changed a little."""
    choice = draw(st.integers(0, 6))
    if choice == 0:
        return tf.cast(good, draw(dtypes))
    if choice == 1:
        return good[: draw(st.integers(0, 1))]
    if choice == 2:
        return good[..., : draw(st.integers(0, 1))]
    if choice == 3:
        return good[0] if draw(st.booleans()) else good[None]
    return [-good, good.numpy(), good.numpy().tolist()][choice - 4]


def spoiled(good):
    anything = numbers | things | scalars | tensors() | st.lists(numbers | scalars, max_size=4)
    return altered(good) | anything if tf.is_tensor(good) else anything | dtypes


@st.composite
def calls(draw, function):
    """The good call with one to three of its arguments spoiled."""
    arguments = dict(GOOD[function])
    for name in draw(st.lists(st.sampled_from(list(arguments)), min_size=1, max_size=3, unique=True)):
        arguments[name] = draw(spoiled(GOOD[function][name]))
    return arguments


def is_dense(value):
    return isinstance(value, (tf.Tensor, tf.Variable))


def in_a_graph(function, arguments):
    """The call in a tf.function that knows the dtypes of its tensors alone."""
    given = {name: tf.convert_to_tensor(value) for name, value in arguments.items() if is_dense(value)}
    rest = {name: value for name, value in arguments.items() if name not in given}
    specs = [tf.TensorSpec(None, value.dtype) for value in given.values()]

    @tf.function(input_signature=specs)
    def call(*tensors):
        return getattr(ats, function)(**dict(zip(given, tensors, strict=True)), **rest)

    return call(*given.values())


def throw(function, arguments, graph=False):
    try:
        return in_a_graph(function, arguments) if graph else getattr(ats, function)(**arguments)
    except NO_MEMORY:
        return None
    except REFUSED as error:
        message = str(error)
        assert names("|".join(arguments), message), message
        return None


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("function", GOOD)
def test_the_good_calls_are_good(function, graph):
    """Else the tests around would test one complaint only."""
    arguments = GOOD[function]
    if graph and function == "patch_origins":  # in a graph a tensor of sizes must tell how many there are
        arguments = arguments | {"low_shape": (4, 6)}
    assert throw(function, arguments, graph) is not None


@odd_numbers
@pytest.mark.parametrize("function", GOOD)
def test_spoiled_calls_name_an_argument(function):
    @settings(max_examples=EXAMPLES)
    @given(calls(function))
    def test(arguments):
        throw(function, arguments)

    test()


@odd_numbers
@pytest.mark.parametrize("function", GOOD)
def test_spoiled_calls_in_a_graph_name_an_argument(function):
    @settings(max_examples=EXAMPLES // 5)
    @given(calls(function))
    def test(arguments):
        throw(function, arguments, graph=True)

    test()


@odd_numbers
@settings(max_examples=EXAMPLES)
@given(st.lists(spoiled(IMAGE) | st.just(IMAGE), min_size=1, max_size=3), calls("extract_patches"))
def test_spoiled_pyramids_name_an_argument(levels, arguments):
    throw("extract_patches", arguments | {"image": levels, "scales": None})
