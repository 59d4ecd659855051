"""The whole way from an attention map to the expected features, and back: the same in NumPy, PyTorch, TensorFlow and
through Keras's layers, and as the float64 reference says.

Keras runs on one backend a process: on the one that KERAS_BACKEND names (`make test` runs these tests on both).
"""

import importlib
import os

import numpy as np
import pytest

import reference
from tolerances import PROBABILITY, assert_close

N = 5
CASES = {  # spatial shape of x_high, of x_low, grid, patch, and options
    "signal": ((500,), (50,), (44,), (16,), {"receptive_field": 6}),
    "image": ((60, 80), (12, 16), (12, 16), (7, 8), {}),
    "edge": ((61, 83), (12, 16), (10, 14), (9, 6), {"receptive_field": 2, "padding": "edge"}),
    "scales": ((60, 80), (12, 16), (6, 8), (6, 6), {"scales": (1, 2), "padding": "reflect"}),
    "normalised": ((40, 40), (10, 10), (10, 10), (5, 5), {"mean": (9.0, 3.0), "std": (2.0, 0.5)}),
    "volume": ((20, 24, 16), (5, 6, 4), (5, 6, 4), (4, 3, 6), {}),
}
ESTIMATORS = ["murthy", "des_raj", "horvitz_thompson", "iid"]


class Case:
    """Made data of a case, channels last, and what the reference makes of given indices."""

    def __init__(self, name, dtype, estimator, channels_first):
        self.high, self.low, self.grid, self.patch, options = CASES[name]
        self.locate = {"receptive_field": options.get("receptive_field", 0)}
        self.extract = {key: value for key, value in options.items() if key != "receptive_field"}
        self.estimator, self.replace = estimator, estimator == "iid"
        self.data_format = "channels_first" if channels_first else "channels_last"
        self.rng = (11, 2**40 + 3)
        random = np.random.default_rng(len(name))
        self.weights = random.dirichlet(np.full(np.prod(self.grid), 0.5), 3).astype(np.float32) + np.float32(1e-4)
        self.weights = (self.weights / self.weights.sum(1, keepdims=True)).reshape(3, *self.grid)
        self.image = random.integers(0, 255, (3, *self.high, 2)).astype(dtype)
        self.scales = len(self.extract.get("scales", ())) or 1
        self.matrix = random.normal(size=(self.scales * 2 * int(np.prod(self.patch)), 4)).astype(np.float32) / 100
        self.slope = random.normal(size=(3, 4)).astype(np.float32)

    def given(self, image):
        """The image in the layout of the case."""
        return np.ascontiguousarray(np.moveaxis(image, -1, 1)) if self.data_format == "channels_first" else image

    def flat(self, patches, reshape, move):
        """(B, n, everything) with channels last, whatever the layout."""
        if self.data_format == "channels_first":
            patches = move(patches, -1 - len(self.patch), -1)
        return reshape(patches, (3, N, -1))

    def check(self, found):
        """`found` has indices, origins, patches (flat), attention, expected, d_map."""
        low = [size for size in self.low]
        field = [self.locate["receptive_field"]] * len(self.high)
        indices = found["indices"]
        assert indices.dtype == np.int64 and found["origins"].dtype == np.int64
        origins = reference.locate(indices, self.grid, self.high, self.patch, low, field)
        assert (found["origins"] == origins).all()
        patches = reference.extract_patches(self.image.astype(np.float64), origins, self.patch, **self.extract)
        patches = patches.reshape(3, N, -1)
        assert_close(found["patches"], patches, "float32")

        rows = self.weights.reshape(3, -1).astype(np.float64)
        attention = np.take_along_axis(rows / rows.sum(1, keepdims=True), indices, 1)
        np.testing.assert_allclose(found["attention"], attention, rtol=PROBABILITY["float32"])
        sampled = found["attention"].astype(np.float64)  # as it was given to the estimator
        more = {"threshold": found["threshold"].astype(np.float64)} if self.estimator == "horvitz_thompson" else {}
        features = patches @ self.matrix
        expected = reference.expectation(features, sampled, self.estimator, **more)
        # Features are sums of products made by each framework in its own order, of this size.
        size = np.abs(patches) @ np.abs(self.matrix)
        c, m = reference.estimator_arrays(sampled, self.estimator, **more)
        assert_close(found["expected"], expected, "float32", scale=np.einsum("bi,bif->bf", np.abs(c), size))
        _, d_sampled = reference.expectation_backward(self.slope, features, sampled, self.estimator, **more)
        d_map = reference.sample_backward(d_sampled, rows, indices).reshape(self.weights.shape)
        largest = np.einsum("bij,bjf,bf->bi", np.abs(m), size, np.abs(self.slope)).sum(1)
        assert_close(found["d_map"], d_map, "float32", scale=largest.reshape(3, *(1 for _ in self.grid)))


# ---- the same way in every framework ----


def in_numpy(case):
    ats = importlib.import_module("ats_core")
    samples = ats.sample(case.weights, N, replace=case.replace, rng=case.rng)
    origins = ats.patch_origins(samples.indices, case.grid, case.high, case.patch, low_shape=case.low, **case.locate)
    options = {**case.extract, "dtype": np.float32, "data_format": case.data_format}
    patches = case.flat(
        ats.extract_patches(case.given(case.image), origins, case.patch, **options), np.reshape, np.moveaxis
    )
    features = patches @ case.matrix
    more = {"estimator": case.estimator, "threshold": samples.threshold}
    expected = ats.expectation(features, samples.attention, **more)
    _, d_sampled = ats.expectation_backward(case.slope, features, samples.attention, **more)
    d_map = ats.sample_backward(d_sampled, case.weights, samples)
    return dict(samples._asdict(), origins=origins, patches=patches, expected=expected, d_map=d_map)


def in_torch(case, device="cpu"):
    torch = pytest.importorskip("torch")
    ats = importlib.import_module("ats_core.torch")
    weights = torch.tensor(case.weights, requires_grad=True, device=device)
    samples = ats.sample(weights, N, replace=case.replace, rng=case.rng)
    origins = ats.patch_origins(samples.indices, case.grid, case.high, case.patch, low_shape=case.low, **case.locate)
    options = {**case.extract, "dtype": torch.float32, "data_format": case.data_format}
    image, matrix, slope = (torch.from_numpy(x).to(device) for x in (case.given(case.image), case.matrix, case.slope))
    patches = case.flat(ats.extract_patches(image, origins, case.patch, **options), torch.reshape, torch.movedim)
    more = {"estimator": case.estimator, "threshold": samples.threshold}
    expected = ats.expectation(patches @ matrix, samples.attention, **more)
    expected.backward(slope)
    found = dict(samples._asdict(), origins=origins, patches=patches, expected=expected, d_map=weights.grad)
    return {name: value.detach().cpu().numpy() for name, value in found.items()}


def in_torch_cuda(case):
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("torch-cuda: torch.cuda.is_available() is false")
    return in_torch(case, "cuda")


def in_tensorflow(case):
    tf = pytest.importorskip("tensorflow")
    ats = importlib.import_module("ats_core.tensorflow")
    weights = tf.constant(case.weights)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        samples = ats.sample(weights, N, replace=case.replace, rng=case.rng)
        origins = ats.patch_origins(
            samples.indices, case.grid, case.high, case.patch, low_shape=case.low, **case.locate
        )
        options = {**case.extract, "dtype": tf.float32, "data_format": case.data_format}
        patches = ats.extract_patches(case.given(case.image), origins, case.patch, **options)
        patches = case.flat(patches, tf.reshape, tf.experimental.numpy.moveaxis)
        more = {"estimator": case.estimator, "threshold": samples.threshold}
        expected = ats.expectation(patches @ case.matrix, samples.attention, **more)
    d_map = tape.gradient(expected, weights, tf.constant(case.slope))
    found = dict(samples._asdict(), origins=origins, patches=patches, expected=expected, d_map=d_map)
    return {name: value.numpy() for name, value in found.items()}


def in_keras(case):
    keras = pytest.importorskip("keras", exc_type=ImportError)
    ats = importlib.import_module("ats_core.keras")
    ops = keras.ops
    layer = ats.SamplePatches(
        N, case.patch, replace=case.replace, details=True, data_format=case.data_format, **case.locate, **case.extract
    )
    x_low = np.zeros((3, 2, *case.low) if case.data_format == "channels_first" else (3, *case.low, 2), np.float32)
    last = ats.Expectation(case.estimator)

    def look(weights):
        inputs = [ops.convert_to_tensor(x) for x in (x_low, case.given(case.image))]
        patches, attention, indices, origins, threshold = layer([*inputs, weights], rng=case.rng)
        patches = case.flat(patches, ops.reshape, ops.moveaxis)
        expected = last([patches @ ops.convert_to_tensor(case.matrix), attention, threshold])
        return {
            "indices": indices,
            "attention": attention,
            "threshold": threshold,
            "origins": origins,
            "patches": patches,
            "expected": expected,
        }

    weights = ops.convert_to_tensor(case.weights)
    if keras.config.backend() == "torch":
        weights = weights.clone().requires_grad_()
        found = look(weights)
        found["expected"].backward(ops.convert_to_tensor(case.slope))
        found["d_map"] = weights.grad
    else:
        tf = importlib.import_module("tensorflow")
        with tf.GradientTape() as tape:
            tape.watch(weights)
            found = look(weights)
        found["d_map"] = tape.gradient(found["expected"], weights, tf.constant(case.slope))
    return {name: ops.convert_to_numpy(value) for name, value in found.items()}


PLACES = [
    pytest.param(in_numpy, id="numpy"),
    pytest.param(in_torch, id="torch"),
    pytest.param(in_torch_cuda, id="torch-cuda"),
    pytest.param(in_tensorflow, id="tensorflow"),
    pytest.param(in_keras, id=f"keras-{os.environ.get('KERAS_BACKEND', 'tensorflow')}", marks=pytest.mark.keras),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("channels_first", [False, True], ids=["channels_last", "channels_first"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_the_whole_way(place, channels_first, estimator, dtype, name):
    case = Case(name, dtype, estimator, channels_first)
    found = place(case)
    case.check(found)
    same = found if place is in_numpy else in_numpy(case)
    for what in ("indices", "origins", "attention", "threshold", "patches"):  # bit for bit
        assert found[what].tobytes() == same[what].tobytes(), what
