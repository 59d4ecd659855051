"""One fixture over every backend: a test written with `backend` runs on NumPy, PyTorch and whatever comes next.

A backend takes and returns NumPy arrays (or its own, made by `backend.array`), always with explicit arguments. One that
is not installed is skipped, and the skipped ones are listed at the end of the run; ATS_REQUIRE_BACKENDS (names
separated by commas, "numpy" unless told) makes it an error instead.
"""

import importlib
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before PyTorch is: its idle threads would spin beside other work
sys.path.insert(0, str(Path(__file__).parent))  # for reference.py and tolerances.py, whatever the import mode

settings.register_profile(
    "ci",
    derandomize=True,  # the same examples on every run
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile("explore", parent=settings.get_profile("ci"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _files_that_were_sent_are_closed():
    yield
    handles = sys.modules.get("ats_core.sources.handles")
    if handles is not None:
        handles.LENDERS.table.clear()


class Missing(Exception):
    """Why a backend cannot be tested here."""


class NumPy:
    name = "numpy"
    floating = ("float16", "float32", "float64")
    integer = ("uint8", "int16", "uint16")
    errors = (ValueError, TypeError)  # what a bad argument raises

    def __init__(self):
        self.ats = importlib.import_module("ats_core")

    def array(self, values, dtype=None):
        return np.asarray(values) if dtype is None else np.asarray(values).astype(dtype)

    def numpy(self, values):
        return np.asarray(values)

    def dtype(self, values):
        """Its name."""
        return values.dtype.name

    def transpose(self, values, axes):
        return values.transpose(axes)

    def set_num_threads(self, threads):
        self.ats.set_num_threads(threads)

    def get_num_threads(self):
        return self.ats.get_num_threads()

    def sample(self, attention, n, *, replace=False, logits=False, rng=None):
        return tuple(self.ats.sample(attention, n, replace=replace, logits=logits, rng=rng))

    def topk(self, attention, n, *, logits=False):
        return tuple(self.ats.topk(attention, n, logits=logits))

    def sample_backward(self, grad, attention, n, *, top=False, replace=False, logits=False, rng=None):
        """(indices, gradient at attention) when `grad` (B, N) is the gradient at the sampled attention."""
        if top:
            samples = self.ats.topk(attention, n, logits=logits)
        else:
            samples = self.ats.sample(attention, n, replace=replace, logits=logits, rng=rng)
        return samples.indices, self.ats.sample_backward(grad, attention, samples, logits=logits)

    def patch_origins(self, indices, grid, image_shape, patch_size, **options):
        return self.ats.patch_origins(indices, grid, image_shape, patch_size, **options)

    def extract_patches(self, image, origins, patch_size, *, data_format="channels_last", **options):
        return self.ats.extract_patches(image, origins, patch_size, data_format=data_format, **options)

    def extract_patches_backward(self, grad, origins, image, patch_size, *, data_format="channels_last", **options):
        """`image` gives shape and dtype of the gradient; its pixels do not matter."""
        options.pop("fill", None), options.pop("mean", None), options.pop("dtype", None)  # do not enter
        return self.ats.extract_patches_backward(
            grad, origins, image.shape, patch_size, dtype=image.dtype, data_format=data_format, **options
        )

    def expectation(self, features, attention, estimator, threshold=None, weights=None):
        return self.ats.expectation(features, attention, estimator=estimator, threshold=threshold, weights=weights)

    def expectation_backward(self, grad, features, attention, estimator, threshold=None, weights=None):
        return self.ats.expectation_backward(
            grad, features, attention, estimator=estimator, threshold=threshold, weights=weights
        )

    def estimator_arrays(self, attention, estimator, threshold=None, weights=None):
        return self.ats.estimator_arrays(attention, estimator, threshold=threshold, weights=weights)


class Torch:
    """On `device`. `checked`: what makes it raise for a bad value."""

    floating = ("float16", "bfloat16", "float32", "float64")
    integer = ("uint8", "int16", "uint16")
    errors = (ValueError, TypeError, RuntimeError)

    def __init__(self):
        self.torch = importlib.import_module("torch")
        self.ats = importlib.import_module("ats_core.torch")

    def array(self, values, dtype=None):
        if not isinstance(values, self.torch.Tensor):
            values = np.asarray(values)
            if any(stride < 0 for stride in values.strides):  # PyTorch has no negative strides
                values = values.copy()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                values = self.place(self.torch.from_numpy(values))
        return values if dtype is None else values.to(getattr(self.torch, str(dtype)))

    def place(self, tensor):
        """On the device, with the same strides."""
        return tensor

    def _optional(self, values):
        return None if values is None else self.array(values)

    def numpy(self, values):
        values = values.detach().cpu()
        return (values.float() if values.dtype == self.torch.bfloat16 else values).numpy()

    def dtype(self, values):
        return str(values.dtype).removeprefix("torch.")

    def transpose(self, values, axes):
        return values.permute(axes)

    def sample(self, attention, n, *, replace=False, logits=False, rng=None):
        rng = self.array(rng) if isinstance(rng, np.ndarray) else rng
        samples = self.ats.sample(self.array(attention), n, replace=replace, logits=logits, rng=rng, **self.checked)
        return tuple(self.numpy(x) for x in samples)

    def topk(self, attention, n, *, logits=False):
        return tuple(self.numpy(x) for x in self.ats.topk(self.array(attention), n, logits=logits, **self.checked))

    def sample_backward(self, grad, attention, n, *, top=False, replace=False, logits=False, rng=None):
        """(indices, gradient at attention) when `grad` (B, N) is the gradient at the sampled attention."""
        attention = self.array(attention).requires_grad_()
        if top:
            samples = self.ats.topk(attention, n, logits=logits, **self.checked)
        else:
            samples = self.ats.sample(attention, n, replace=replace, logits=logits, rng=rng, **self.checked)
        samples.attention.backward(self.array(grad).to(samples.attention.dtype))
        return self.numpy(samples.indices), self.numpy(attention.grad)

    def patch_origins(self, indices, grid, image_shape, patch_size, **options):
        options = {**options, **self.checked}
        return self.numpy(self.ats.patch_origins(self.array(indices), grid, image_shape, patch_size, **options))

    def _patches(self, image, origins, patch_size, data_format, options):
        if options.get("dtype") is not None:
            options = {**options, "dtype": getattr(self.torch, str(options["dtype"]))}
        return self.ats.extract_patches(image, self.array(origins), patch_size, data_format=data_format, **options)

    def extract_patches(self, image, origins, patch_size, *, data_format="channels_last", **options):
        image = [self.array(x) for x in image] if isinstance(image, (list, tuple)) else self.array(image)
        return self.numpy(self._patches(image, origins, patch_size, data_format, options))

    def extract_patches_backward(self, grad, origins, image, patch_size, *, data_format="channels_last", **options):
        image = self.array(image).detach().requires_grad_()
        self._patches(image, origins, patch_size, data_format, options).backward(self.array(grad))
        return self.numpy(image.grad)

    def expectation(self, features, attention, estimator, threshold=None, weights=None):
        return self.numpy(
            self.ats.expectation(
                self.array(features),
                self.array(attention),
                estimator=estimator,
                threshold=self._optional(threshold),
                weights=self._optional(weights),
                **self.checked,
            )
        )

    def expectation_backward(self, grad, features, attention, estimator, threshold=None, weights=None):
        features = self.array(features).detach().requires_grad_()
        attention = self.array(attention).detach().requires_grad_()
        self.ats.expectation(
            features,
            attention,
            estimator=estimator,
            threshold=self._optional(threshold),
            weights=self._optional(weights),
            **self.checked,
        ).backward(self.array(grad))
        return self.numpy(features.grad), self.numpy(attention.grad)

    def estimator_arrays(self, attention, estimator, threshold=None, weights=None):
        c, m = self.ats.estimator_arrays(
            self.array(attention),
            estimator,
            threshold=self._optional(threshold),
            weights=self._optional(weights),
            **self.checked,
        )
        return self.numpy(c), self.numpy(m)


class TorchCPU(Torch):
    name = "torch-cpu"
    checked = {}  # noqa: RUF012

    def set_num_threads(self, threads):
        self.torch.set_num_threads(threads or os.cpu_count())

    def get_num_threads(self):
        return self.torch.get_num_threads()


class TorchCUDA(Torch):
    name = "torch-cuda"
    checked = {"validate": True}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        if not self.torch.cuda.is_available():
            raise Missing("torch.cuda.is_available() is false")

    def place(self, tensor):
        if tensor.numel() == 0:
            return tensor.cuda()
        # What lies between the elements comes along.
        size = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return tensor.as_strided((size,), (1,)).cuda().as_strided(tensor.shape, tensor.stride())


class TensorFlow:
    name = "tensorflow"
    floating = ("float16", "bfloat16", "float32", "float64")
    integer = ("uint8", "int16", "uint16")

    def __init__(self):
        self.tf = importlib.import_module("tensorflow")
        self.ats = importlib.import_module("ats_core.tensorflow")
        self.errors = (ValueError, TypeError, self.tf.errors.InvalidArgumentError)

    def array(self, values, dtype=None):
        if dtype is not None:  # not by TensorFlow, whose cast flushes subnormals
            values = np.asarray(values).astype(self.tf.as_dtype(str(dtype)).as_numpy_dtype)
        return self.tf.convert_to_tensor(np.asarray(values) if isinstance(values, (list, float, int)) else values)

    def _optional(self, values):
        return None if values is None else self.array(values)

    def numpy(self, values):
        values = values.numpy()
        return values.astype(np.float32) if values.dtype == "bfloat16" else values

    def dtype(self, values):
        return values.dtype.name

    def transpose(self, values, axes):
        return self.tf.transpose(values, axes)

    def sample(self, attention, n, *, replace=False, logits=False, rng=None):
        samples = self.ats.sample(self.array(attention), n, replace=replace, logits=logits, rng=rng)
        return tuple(self.numpy(x) for x in samples)

    def topk(self, attention, n, *, logits=False):
        return tuple(self.numpy(x) for x in self.ats.topk(self.array(attention), n, logits=logits))

    def sample_backward(self, grad, attention, n, *, top=False, replace=False, logits=False, rng=None):
        """(indices, gradient at attention) when `grad` (B, N) is the gradient at the sampled attention."""
        attention = self.array(attention)
        with self.tf.GradientTape() as tape:
            tape.watch(attention)
            if top:
                samples = self.ats.topk(attention, n, logits=logits)
            else:
                samples = self.ats.sample(attention, n, replace=replace, logits=logits, rng=rng)
        grad = self.tf.cast(self.array(grad), samples.attention.dtype)
        return self.numpy(samples.indices), self.numpy(tape.gradient(samples.attention, attention, grad))

    def patch_origins(self, indices, grid, image_shape, patch_size, **options):
        return self.numpy(self.ats.patch_origins(self.array(indices), grid, image_shape, patch_size, **options))

    def extract_patches(self, image, origins, patch_size, *, data_format="channels_last", **options):
        image = [self.array(x) for x in image] if isinstance(image, (list, tuple)) else self.array(image)
        return self.numpy(
            self.ats.extract_patches(image, self.array(origins), patch_size, data_format=data_format, **options)
        )

    def extract_patches_backward(self, grad, origins, image, patch_size, *, data_format="channels_last", **options):
        image = self.array(image)
        with self.tf.GradientTape() as tape:
            tape.watch(image)
            patches = self.ats.extract_patches(
                image, self.array(origins), patch_size, data_format=data_format, **options
            )
        return self.numpy(tape.gradient(patches, image, self.array(grad)))

    def expectation(self, features, attention, estimator, threshold=None, weights=None):
        return self.numpy(
            self.ats.expectation(
                self.array(features),
                self.array(attention),
                estimator=estimator,
                threshold=self._optional(threshold),
                weights=self._optional(weights),
            )
        )

    def expectation_backward(self, grad, features, attention, estimator, threshold=None, weights=None):
        inputs = self.array(features), self.array(attention)
        with self.tf.GradientTape() as tape:
            tape.watch(inputs)
            expected = self.ats.expectation(
                *inputs, estimator=estimator, threshold=self._optional(threshold), weights=self._optional(weights)
            )
        return tuple(map(self.numpy, tape.gradient(expected, inputs, self.array(grad))))

    def estimator_arrays(self, attention, estimator, threshold=None, weights=None):
        c, m = self.ats.estimator_arrays(
            self.array(attention), estimator, threshold=self._optional(threshold), weights=self._optional(weights)
        )
        return self.numpy(c), self.numpy(m)


BACKENDS = {backend.name: backend for backend in (NumPy, TorchCPU, TorchCUDA, TensorFlow)}
FRAMEWORK = {"numpy": "numpy", "torch-cpu": "torch", "torch-cuda": "torch", "tensorflow": "tensorflow"}
_required = [name for name in os.environ.get("ATS_REQUIRE_BACKENDS", "numpy").split(",") if name]
_made, _missing = {}, {}


def get_backend(name):
    """The backend, or a skip with the reason. A framework that is there with a broken adapter is an error."""
    if name not in _made and name not in _missing:
        try:
            importlib.import_module(FRAMEWORK[name])
        except ImportError as error:
            if name in _required:
                raise
            _missing[name] = str(error)
        else:
            try:
                _made[name] = BACKENDS[name]()
            except Missing as error:
                if name in _required:
                    raise
                _missing[name] = str(error)
    if name in _missing:
        pytest.skip(f"{name}: {_missing[name]}")
    return _made[name]


@pytest.fixture(scope="session", params=list(BACKENDS))
def backend(request):
    return get_backend(request.param)


@pytest.fixture(scope="session")
def numpy_backend():
    return get_backend("numpy")


@pytest.fixture(scope="session")
def torch_backend():
    return get_backend("torch-cpu")


@pytest.fixture(scope="session")
def cuda_backend():
    return get_backend("torch-cuda")


@pytest.fixture(scope="session")
def tensorflow_backend():
    return get_backend("tensorflow")


@pytest.fixture
def threads(backend):
    """Set the number of threads; it is put back after the test."""
    if not hasattr(backend, "set_num_threads"):
        pytest.skip(f"{backend.name} has no number of threads, or takes it once, at the start")
    before = backend.get_num_threads()
    yield backend.set_num_threads
    backend.set_num_threads(before)


# pytest-xdist runs the tests in other processes, which tell this one what they tested.
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["backends"] = [*_made], _missing


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    made, missing = getattr(node, "workeroutput", {}).get("backends", ([], {}))
    _made.update(dict.fromkeys(made))
    _missing.update(missing)


def pytest_terminal_summary(terminalreporter):
    tested = ", ".join(name for name in BACKENDS if name in _made) or "none"
    terminalreporter.section("backends")
    terminalreporter.line(f"tested: {tested}")
    for name, reason in _missing.items():
        terminalreporter.line(f"skipped: {name} ({reason})")
