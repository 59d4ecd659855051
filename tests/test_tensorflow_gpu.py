"""What TensorFlow needs to run the operations on a GPU, as far as a machine without one can show it: registered kernels,
what the host reads made on the host, and validate=True with operations that answer as a GPU's do."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tensorflow.python.framework.kernels import get_registered_kernels_for_op

import ats_core.tensorflow as ats
from ats_core.tensorflow import _ops, functional

HOST = {
    "Ats>Sample": [],
    "Ats>TopK": [],
    "Ats>SampleGrad": [],
    "Ats>Locate": ["grid", "low_shape", "image_shape"],
    "Ats>ExtractPatches": ["fill", "mean", "std"],
    "Ats>ExtractPatchesGrad": ["image_shape", "std"],
    "Ats>Expectation": [],
    "Ats>ExpectationGrad": [],
    "Ats>EstimatorArrays": [],
}
NAN = float("nan")
MAP = tf.constant([[0.1, 0.2, 0.3, 0.4], [2.0, 1.0, 0.0, 1.0]])
BAD = tf.constant([[0.1, 0.2, 0.3, 0.4], [2.0, -1.0, 0.0, 1.0]])


def test_every_operation_has_a_kernel_for_gpus():
    names = [name for name in dir(_ops._library) if name.startswith("ats_") and not name.endswith("eager_fallback")]
    assert len(names) == len(HOST), names
    for name, host in HOST.items():
        kernels = {kernel.device_type: kernel for kernel in get_registered_kernels_for_op(name).kernel}
        assert kernels.keys() == {"CPU", "GPU"}
        assert list(kernels["GPU"].host_memory_arg) == host
        assert not kernels["GPU"].constraint  # on dtypes: the core refuses them


# ---- inputs that the host reads ----


def step(attention, image, mean, rng):
    """Every operation that has inputs in the host's memory, with sizes that are known only when the graph runs."""
    with tf.GradientTape() as tape:
        tape.watch(image)
        draws = ats.sample(attention, 3, rng=rng)
        origins = ats.patch_origins(draws.indices, tf.shape(attention)[1:], tf.shape(image)[1:-1], 4, low_shape=[9, 9])
        patches = ats.extract_patches(image, origins, 4, mean=mean, std=2.0, fill=0.5)
        pyramid = ats.extract_patches([image, image[:, ::2, ::2]], origins, 4)
        loss = tf.reduce_sum(patches) + tf.reduce_sum(pyramid)
    return tape.gradient(loss, image)


@pytest.mark.parametrize("channels", [None, 3])
def test_what_the_host_reads_is_made_on_the_host(channels):
    specs = [
        tf.TensorSpec((None, None, None)),
        tf.TensorSpec((None, None, None, channels)),
        tf.TensorSpec(()),
        tf.TensorSpec((2,), tf.int64),
    ]
    graph = tf.function(step).get_concrete_function(*specs).graph
    seen = set()
    for op in graph.get_operations():
        names = [arg.name for arg in op.op_def.input_arg] if op.type in HOST else []
        for name in HOST.get(op.type, ()):
            made = op.inputs[names.index(name)].op
            # A shape is in the host's memory whatever it is the shape of, and does not take that along.
            assert made.type == "Shape" or made.device.endswith("CPU:0"), (op.type, name, made.type, made.device)
            seen.add((op.type, name))
    assert seen == {(op, name) for op, names in HOST.items() for name in names}
    for op in graph.get_operations():  # and no image is taken to the host for it
        if op.device:
            assert all(x.shape.rank is not None and x.shape.rank <= 2 for x in op.inputs), (op.type, op.inputs)


# ---- a pretended GPU ----


@pytest.mark.skipif(tf.test.is_built_with_cuda(), reason="has GPUs that are none")
@pytest.mark.skipif(not tf.__version__.startswith("2.21."), reason="a stream is another class in every TensorFlow")
def test_kernels_run_on_a_pretended_gpu(tmp_path):
    here, home = Path(__file__).parent / "tensorflow_gpu", Path(tf.__file__).parent
    gpu = tmp_path / "pretended_gpu.so"
    flags = [*tf.sysconfig.get_compile_flags(), "-std=c++17", "-O0", "-fPIC", "-shared", "-w"]
    libraries = [*tf.sysconfig.get_link_flags(), "-l:libtensorflow_cc.so.2", f"-Wl,-rpath,{home}"]
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    subprocess.run([*compiler, *flags, here / "pretended_gpu.cc", "-o", gpu, *libraries], check=True)
    result = subprocess.run(
        [sys.executable, here / "on_pretended_gpu.py", gpu], check=True, stdout=subprocess.PIPE, text=True
    )
    told = json.loads(result.stdout.splitlines()[-1])
    assert len(told) == 40
    for name, (error, copies, streams) in told.items():
        if "without kernels" in name:  # on the CPU then
            assert error is None, (name, error)
            continue
        assert re.search(r"UnimplementedError: .* is on a GPU, and this build of libats has no CUDA kernels", error), (
            name
        )
        assert copies == 0, (name, copies)  # for each of which a GPU is waited for
        assert streams <= 1


# ---- validate ----


def alike(found, expected):
    for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.numpy().tobytes() == b.numpy().tobytes()


VALID = {
    "sample": lambda x, **v: ats.sample(x, 2, rng=(3, 4), **v),
    "topk": lambda x, **v: ats.topk(x, 2, **v),
    "patch_origins": lambda x, **v: ats.patch_origins(tf.cast(x, tf.int64), (4,), (40,), 5, **v),
    "expectation": lambda x, **v: ats.expectation(
        x[:, :2, None] + 1, ats.topk(x, 2).attention, estimator="murthy", **v
    ),
}


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", VALID)
def test_validate_changes_no_good_result(name, graph):
    def run(x, **options):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = VALID[name](x, **options)
            floats = [tf.reduce_sum(y) for y in tf.nest.flatten(outputs) if y.dtype.is_floating]
            total = tf.add_n(floats) if floats else tf.reduce_sum(x)
        return outputs, tape.gradient(total, x)

    wrap = (lambda f: tf.function(f, input_signature=[tf.TensorSpec((None, None))])) if graph else (lambda f: f)
    alike(wrap(lambda x: run(x, validate=True))(MAP), wrap(lambda x: run(x))(MAP))


class AsOnAGpu:
    """An operation that answers bad values as ats.h says a GPU does, but in the scope of the CPU, where it is itself."""

    def __init__(self, operation, answer):
        self.operation, self.answer, self.asked = operation, answer, 0

    def __call__(self, *inputs, **options):
        self.asked += 1
        return self.answer if self.asked == 1 else self.operation(*inputs, **options)


DRAWN = (  # probabilities, indices, threshold, log_mass of BAD
    tf.constant([[0.4, 0.2], [0.0, 0.0]]),
    tf.constant([[3, 1], [-1, -1]], tf.int64),
    tf.constant([1.0, NAN]),
    tf.constant([0.0, NAN], tf.float64),
)
AWAY = tf.constant([[[0], [-(2**63)]]], tf.int64)
SPOILT = {  # operation, its answer, the call, words
    "sample": (DRAWN, lambda **v: ats.sample(BAD, 2, rng=1, **v), "sample: attention .* row 1 has -1 at cell 1"),
    "topk": (DRAWN, lambda **v: ats.topk(BAD, 2, **v), "topk: attention .* row 1 has -1 at cell 1"),
    "locate": (AWAY, lambda **v: ats.patch_origins([[0, 9]], (4,), (40,), 10, **v), "locate: indices .* got 9"),
    "expectation": (
        tf.constant([[0.0], [NAN]]),
        lambda **v: ats.expectation(tf.ones((2, 2, 1)), [[0.1, 0.2], [0.1, NAN]], **v),
        "expectation: attention .* got nan in row 1",
    ),
}


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", SPOILT)
def test_validate_says_what_the_cpu_says(name, graph, monkeypatch):
    answer, call, words = SPOILT[name]

    def run(**options):
        monkeypatch.setattr(_ops, name, AsOnAGpu(operation, answer))
        first = lambda: tf.nest.flatten(call(**options))[0]
        return tf.function(first)() if graph else first()

    operation = getattr(_ops, name)
    assert functional._ops is _ops
    alike(run(), tf.nest.flatten(answer)[1 if name in ("sample", "topk") else 0])  # without it nobody is told
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        run(validate=True)


@pytest.mark.parametrize("name", VALID)
def test_validate_is_a_truth_value(name):
    with pytest.raises(TypeError, match="validate"):
        VALID[name](MAP, validate="yes")


@pytest.mark.keras
def test_keras_layers_hand_validate_on(monkeypatch):
    keras = pytest.importorskip("keras")
    import ats_core.keras as layers
    from ats_core.keras import ops

    told = []
    for name in ("sample", "topk", "expectation"):
        real = getattr(ops, name)
        record = lambda *args, real=real, **options: (told.append(options["validate"]), real(*args, **options))[1]
        monkeypatch.setattr(ops, name, record)
    feature = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    attention = keras.Sequential([keras.Input((8, 8, 1)), layers.SampleSoftmax(squeeze_channels=True)])
    images = [np.random.default_rng(0).random((2, s, s, 1), np.float32) for s in (8, 32)]
    for validate in (False, True):
        layer = layers.attention_sampling(attention, feature, 4, 3, inference="topk", validate=validate)
        again = type(layer).from_config(layer.get_config())
        for each in (layer, again):
            told.clear()
            each(images, training=True)
            each(images, training=False)
            assert told == [validate] * 4
        for part in (layer.sampler, layer.expectation):
            assert type(part).from_config(part.get_config()).validate is validate
            assert "validate" in part.get_config()
