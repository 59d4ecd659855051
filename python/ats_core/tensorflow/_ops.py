"""The operations of bindings/tensorflow as Python functions, and their gradients, which are operations of the core too."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ats_core import _core
from ats_core._build import adapter_path

try:
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext as _compiles_with_xla
except ImportError:  # private: without it the message is TensorFlow's own

    def _compiles_with_xla(graph: Any) -> bool:
        return False


_has_kernels = bool(_core.cuda_architectures())


def _device() -> Any:
    """A scope for an operation: the CPU, where there is a GPU that this build of libats has no kernels for."""
    if _has_kernels or not tf.config.list_logical_devices("GPU"):
        return contextlib.nullcontext()
    return tf.device("CPU:0")


def _operation(name: str) -> Callable[..., Any]:
    """The operation; where XLA would compile it that is refused while the graph is made, not by TensorFlow's compiler."""
    operation = getattr(_library, name)

    @functools.wraps(operation)
    def call(*args: Any, **options: Any) -> Any:
        if not tf.executing_eagerly() and _compiles_with_xla(tf.compat.v1.get_default_graph()):
            raise NotImplementedError(
                "jit_compile: ats_core has no XLA kernels, so that a function or model that uses it runs with "
                "jit_compile=False only (the default of tf.function)"
            )
        with _device():
            return operation(*args, **options)

    return call


_library = tf.load_op_library(adapter_path("tensorflow"))
sample, sample_grad = _operation("ats_sample"), _operation("ats_sample_grad")
topk = _operation("ats_top_k")
locate = _operation("ats_locate")
extract_patches, extract_patches_grad = _operation("ats_extract_patches"), _operation("ats_extract_patches_grad")
expectation, expectation_grad = _operation("ats_expectation"), _operation("ats_expectation_grad")
estimator_arrays = _operation("ats_estimator_arrays")


def _draws_gradient(op: Any, grad: Any) -> Any:
    probabilities, indices, _, log_mass = op.outputs
    return sample_grad(grad, op.inputs[0], indices, probabilities, log_mass, logits=op.get_attr("logits"))


@tf.RegisterGradient("Ats>Sample")
def _(op: Any, grad: Any, *_: Any) -> Any:
    return _draws_gradient(op, grad), None


@tf.RegisterGradient("Ats>TopK")
def _(op: Any, grad: Any, *_: Any) -> Any:
    return _draws_gradient(op, grad)


@tf.RegisterGradient("Ats>ExtractPatches")
def _(op: Any, grad: Any) -> Any:
    image, origins, _, _, std = op.inputs
    options = {name: op.get_attr(name) for name in ("patch_size", "scales", "padding", "channels_first")}
    shape = tf.shape(image, tf.int64)
    return extract_patches_grad(grad, origins, shape, std, dtype=image.dtype, **options), None, None, None, None


@tf.RegisterGradient("Ats>Expectation")
def _(op: Any, grad: Any) -> Any:
    features, attention, *rest = op.inputs
    count = op.get_attr("n_threshold")
    d_features, d_attention = expectation_grad(
        grad, features, attention, rest[:count], rest[count:], estimator=op.get_attr("estimator")
    )
    return (d_features, d_attention, *(None for _ in rest))


tf.no_gradient("Ats>Locate")
tf.no_gradient("Ats>EstimatorArrays")


def _no_second_derivative(name: str) -> None:
    @tf.RegisterGradient(name)
    def _(op: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"{name.removesuffix('Grad')}: its gradient cannot be differentiated again")


for _name in ("Ats>SampleGrad", "Ats>ExtractPatchesGrad", "Ats>ExpectationGrad"):
    _no_second_derivative(_name)
