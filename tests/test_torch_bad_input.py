"""Malformed calls at the PyTorch edge: a table of single mistakes whose argument is beyond doubt, and calls that
Hypothesis spoils.

Every call returns, or raises ValueError, TypeError or RuntimeError (PyTorch's word for what an operation refuses) or
MemoryError with a message that names an argument. A crash or an access out of bounds ends the run; a hang does after
five minutes.
"""

import faulthandler
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import ats_core.torch as ats

EXAMPLES = 300  # for each of five functions
ABSURD = [2**50, 2**62, 2**63 - 1, 2**63, 2**64 + 3, 10**30, -(2**63), -(2**63) - 1]
REFUSED = (ValueError, TypeError, RuntimeError, MemoryError)

ATTENTION = torch.tensor([[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [[3.0, 2.0, 1.0], [1.0, 1.0, 1.0]]])
ORIGINS = torch.tensor([[[0, 1], [-2, 3]], [[9, 9], [2, 2]]])
IMAGE = torch.arange(2 * 3 * 6 * 5.0).reshape(2, 3, 6, 5)
GOOD = {
    "sample": {"attention": ATTENTION, "n": 2, "replace": False, "logits": False, "rng": (1, 2)},
    "topk": {"attention": ATTENTION, "n": 2, "logits": False},
    "patch_origins": {
        "indices": torch.tensor([[0, 5], [2, 3]]),
        "grid": (2, 3),
        "image_shape": (20, 30),
        "patch_size": (3, 4),
        "low_shape": (4, 6),
        "receptive_field": 1,
    },
    "extract_patches": {
        "image": IMAGE,
        "origins": ORIGINS,
        "patch_size": (3, 3),
        "scales": (1, 2),
        "padding": "edge",
        "fill": 0.5,
        "dtype": torch.float32,
        "mean": (0.1, 0.2, 0.3),
        "std": 2.0,
        "data_format": "channels_first",
    },
    "extract_patches_backward": {
        "grad": torch.ones(2, 2, 2, 3, 3, 3),
        "origins": ORIGINS,
        "image_shape": (2, 3, 6, 5),
        "patch_size": 3,
        "scales": (1, 2),
        "padding": "edge",
        "dtype": torch.float32,
        "std": 2.0,
        "data_format": "channels_first",
    },
    "expectation": {
        "features": torch.arange(24.0).reshape(2, 3, 4),
        "attention": torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.25, 0.125]]),
        "estimator": "horvitz_thompson",
        "threshold": torch.tensor([1.0, 2.0]),
        "weights": None,
    },
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
SINGLE = [  # function, argument, exception, values
    ("sample", "attention", TypeError, [None, ATTENTION.numpy(), 3]),
    ("sample", "attention", RuntimeError, [ATTENTION.int(), -ATTENTION, ATTENTION[0, 0]]),
    ("sample", "n", RuntimeError, [None, "2", 1.5, 0, -1, 7, *ABSURD]),
    ("sample", "rng", TypeError, ["ab", b"ab", 1.5, (1.5, 2.7), np.array([3.7, 0]), np.float64(3), np.array(1.0), {},
                                  {1: 2, 3: 4}, (1,), (1, 2, 3), (1, None), torch.Generator(), object()]),
    ("sample", "rng", ValueError, [2**63, (0, 2**63), -(2**63) - 1, np.uint64(2**63)]),
    ("sample", "rng", RuntimeError, [torch.tensor(3.0), torch.zeros(2), torch.zeros(3, dtype=torch.int64)]),
    ("topk", "n", RuntimeError, [None, 0, -3, 9, 2**63]),
    ("patch_origins", "indices", TypeError, [None, 3, [[1]]]),
    ("patch_origins", "indices", RuntimeError, [torch.zeros(2, 2), torch.tensor([[6]]), torch.tensor([[-1]])]),
    ("patch_origins", "grid", TypeError, [None, "ab", (2.0, 3.0), 2.0, {2, 3}]),
    ("patch_origins", "grid", ValueError, [(), (1, 1, 1, 1)]),
    ("patch_origins", "grid", RuntimeError, [(2, -3), (0, 3)]),
    ("patch_origins", "image_shape", EDGE, [None, (20,), (20, 1.5), "20", (20, 2**63)]),
    ("patch_origins", "image_shape", RuntimeError, [(20, 0), (20, -1)]),
    ("patch_origins", "patch_size", EDGE, [None, 8.0, "8", (1, 2, 3), np.array([8.0, 8.0]), 2**63]),
    ("patch_origins", "low_shape", EDGE, [(4,), 4.0, "46"]),
    ("patch_origins", "receptive_field", EDGE, [None, 1.5, (2,), "1"]),
    ("patch_origins", "receptive_field", RuntimeError, [-1, 99, (10, 3)]),
    ("extract_patches", "image", TypeError, [None, IMAGE.numpy(), "a", 3]),
    ("extract_patches", "image", EDGE, [[], IMAGE[0], IMAGE[None], torch.tensor(1.0)]),
    ("extract_patches", "image", RuntimeError, [IMAGE.long(), IMAGE > 0, IMAGE[:1]]),
    ("extract_patches", "origins", TypeError, [None, ORIGINS.numpy(), [[[0, 1]]]]),
    ("extract_patches", "origins", ValueError, [torch.tensor(3), ORIGINS[0], ORIGINS[..., None], ORIGINS[..., :0]]),
    ("extract_patches", "origins", RuntimeError, [ORIGINS.double(), ORIGINS[:1], ORIGINS > 0]),
    ("extract_patches", "patch_size", EDGE, [None, "ab", 8.0, (2, 3, 4), (2, 3.0), (), {2, 3}, 2**63]),
    ("extract_patches", "patch_size", RuntimeError, [0, -2, (2, 0), 2**50]),
    ("extract_patches", "scales", EDGE, [2, (), "a", (1.5,), 1.5, (2**63,), torch.tensor(2)]),
    ("extract_patches", "scales", RuntimeError, [(0,), (-1, 1), (1,) * 17, (2**62,)]),
    ("extract_patches", "padding", RuntimeError, [None, "wrap", "", 3, b"wrap"]),
    ("extract_patches", "fill", RuntimeError, [None, "a", 1j, [1, 2]]),
    ("extract_patches", "dtype", TypeError, ["float32", np.float32, 6]),
    ("extract_patches", "dtype", RuntimeError, [torch.int64, torch.uint8]),
    ("extract_patches", "mean", EDGE, ["123", b"123", ["1", "2", "3"], [1, None, 2], (1.0, 2.0), torch.ones(2),
                                       torch.ones(3, 3), {}, 1j, [10**400] * 3, object()]),
    ("extract_patches", "std", EDGE, ["abc", [1.0] * 4, [[1.0] * 3], np.ones((3, 2))]),
    ("extract_patches", "std", RuntimeError, [0, (1, 0, 1), (1, np.nan, 1)]),
    ("extract_patches", "data_format", ValueError, [None, "NCHW", 1, np.array(["channels_last"] * 2)]),
    ("extract_patches_backward", "image_shape", EDGE, [None, 5, (2, 6, 5), (2, 3, 6, 5.0), "2365"]),
    ("extract_patches_backward", "dtype", EDGE, [torch.uint8, torch.complex64, "float32"]),
    ("extract_patches_backward", "grad", TypeError, [None, 3]),
    ("extract_patches_backward", "grad", RuntimeError, [torch.ones(2), torch.ones(2, 2, 2, 3, 3, 3).int()]),
    ("expectation", "features", TypeError, [None, np.ones((2, 3, 4))]),
    ("expectation", "features", RuntimeError, [torch.ones(2, 3, 4).int(), torch.ones(2)]),
    ("expectation", "attention", TypeError, [None, np.ones((2, 3))]),
    ("expectation", "attention", RuntimeError, [torch.ones(3), -torch.ones(2, 3), torch.ones(2, 3).half()]),
    ("expectation", "estimator", RuntimeError, [None, "", "Murthy", 2]),
    ("expectation", "threshold", RuntimeError, [None, torch.ones(3), "a", torch.ones(2).double()]),
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
    with pytest.raises(ValueError, match=r"^image: must be \(B, C, \*spatial\) with 2 spatial axes, got \(3, 6, 5\)$"):
        ats.extract_patches(IMAGE[0], ORIGINS, 3)
    with pytest.raises(ValueError, match=r"^image: must be \(B, \*spatial, C\) with 2 spatial axes, got \(6, 5\)$"):
        ats.extract_patches(IMAGE[0, 0], ORIGINS, 3, data_format="channels_last")
    with pytest.raises(ValueError, match=r"^mean: must be a number or one a channel \(3\), got shape \(2, 1, 1\)$"):
        ats.extract_patches(IMAGE, ORIGINS, 3, mean=torch.ones(2, 1, 1))
    with pytest.raises(TypeError, match=r"^image: must be a torch.Tensor or a list of them, got ndarray$"):
        ats.extract_patches(IMAGE.numpy(), ORIGINS, 3)


@pytest.mark.parametrize(
    "level",
    [IMAGE[:1], IMAGE[:, :1], IMAGE[0], IMAGE.numpy(), None],
    ids=["batch", "channels", "rank", "array", "None"],
)
def test_the_level_of_a_pyramid_is_named(level):
    with pytest.raises(EDGE, match=r"^image\[1\]: "):
        ats.extract_patches([IMAGE, level], ORIGINS, 3)


# ---- spoiled calls ----

numbers = st.sampled_from([0, 1, -1, 2, 3, 7, 1.5, -0.0, np.nan, np.inf, -np.inf, 1e308, *ABSURD]) | st.integers(-9, 9)
things = st.sampled_from([None, True, False, "", "abc", "murthy", "edge", b"x", 1j, {}, {"a": 1}, set(), print, type])
scalars = st.sampled_from([np.int64(3), np.float32(2), np.array(1), np.array(1.5), torch.tensor(2), torch.tensor(1.5)])
dtypes = st.sampled_from(
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int16, torch.uint16, torch.int32,
     torch.int64, torch.bool, torch.complex64]
)  # fmt: skip


@st.composite
def tensors(draw):
    """Any dtype, rank 0 to 9, few elements, some of them special; strided at times."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4) | st.lists(st.integers(0, 2), max_size=9))
    special = draw(st.lists(st.sampled_from([0, 1, 2, 3, -1, 0.5, np.nan, np.inf, 1e30]), min_size=1, max_size=5))
    values = torch.from_numpy(np.resize(np.array(special, np.float64), shape))
    dtype = draw(dtypes)
    values = (values.nan_to_num(0, 0, 0).clamp(-1, 3) if not dtype.is_floating_point else values).to(dtype)
    return values.transpose(0, -1) if values.dim() and draw(st.booleans()) else values


@st.composite
def altered(draw, good):
    """A tensor of the good call, changed a little."""
    choice = draw(st.integers(0, 5))
    if choice == 0:
        return good.to(draw(dtypes))
    if choice == 1:
        return good[: draw(st.integers(0, 1))]
    if choice == 2:
        return good[..., : draw(st.integers(0, 1))]
    if choice == 3:
        return good[0] if draw(st.booleans()) else good[None]
    return -good if choice == 4 else good.numpy()


def spoiled(good):
    anything = numbers | things | scalars | tensors() | st.lists(numbers, max_size=4)
    if isinstance(good, torch.Tensor):
        return altered(good) | anything
    return anything | dtypes


@st.composite
def calls(draw, function):
    """The good call with one to three of its arguments spoiled."""
    arguments = dict(GOOD[function])
    for name in draw(st.lists(st.sampled_from(list(arguments)), min_size=1, max_size=3, unique=True)):
        arguments[name] = draw(spoiled(GOOD[function][name]))
    return arguments


def throw(function, arguments):
    try:
        return getattr(ats, function)(**arguments)
    except REFUSED as error:
        message = str(error)
        assert isinstance(error, MemoryError) or "allocate" in message or names("|".join(arguments), message), message
        return None


@pytest.mark.parametrize("function", GOOD)
def test_the_good_calls_are_good(function):
    """Else the tests around would test one complaint only."""
    assert throw(function, GOOD[function]) is not None


@pytest.mark.parametrize("function", GOOD)
def test_spoiled_calls_name_an_argument(function):
    @settings(max_examples=EXAMPLES)
    @given(calls(function))
    def test(arguments):
        throw(function, arguments)

    test()


@settings(max_examples=EXAMPLES)
@given(st.lists(spoiled(IMAGE) | st.just(IMAGE), min_size=1, max_size=3), calls("extract_patches"))
def test_spoiled_pyramids_name_an_argument(levels, arguments):
    throw("extract_patches", arguments | {"image": levels, "scales": None})
