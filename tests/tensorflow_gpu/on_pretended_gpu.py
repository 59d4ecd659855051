"""Calls every operation on a pretended GPU (the argument is its library), eagerly and in a graph, as a build with CUDA
kernels would and as one without, and prints as JSON what comes of each: the error, how often data was copied to the host,
how often the stream was asked for."""

import ctypes
import json
import sys

import tensorflow as tf

gpu = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
import ats_core.tensorflow as ats
from ats_core.tensorflow import _ops

(DEVICE,) = tf.config.list_logical_devices("GPU")
with tf.device(DEVICE.name):
    attention = tf.ones((2, 3, 4))
    image, patches = tf.ones((2, 30, 40, 3)), tf.ones((2, 3, 5, 5, 3))
    origins, indices = tf.zeros((2, 3, 2), tf.int64), tf.zeros((2, 3), tf.int64)
    features, shares, grad = tf.ones((2, 3, 5)), tf.fill((2, 3), 0.1), tf.ones((2, 5))
    pair = tf.constant([3, 4], tf.int64)
    std = [1.0, 2.0, 3.0]

CALLS = {  # with what varies, so that TensorFlow does not compute it while it makes a graph
    "sample": (lambda x: ats.sample(x, 2, rng=3), attention),
    "sample, a tensor": (lambda x: ats.sample(attention, 2, rng=x), pair),
    "sample, None": (lambda x: ats.sample(x, 2), attention),
    "topk": (lambda x: ats.topk(x, 2), attention),
    "patch_origins": (lambda x: ats.patch_origins(x, tf.shape(attention)[1:], tf.shape(image)[1:3], 5), indices),
    "extract_patches": (lambda x: ats.extract_patches(x, origins, 5, mean=0.5, std=std, fill=1.0), image),
    "extract_patches_backward": (
        lambda x: ats.extract_patches_backward(x, origins, tf.shape(image), 5, std=2),
        patches,
    ),
    "expectation": (lambda x: ats.expectation(x, shares), features),
    "expectation_backward": (lambda x: ats.expectation_backward(grad, x, shares), features),
    "estimator_arrays": (lambda x: ats.estimator_arrays(x), shares),
}

told = {}
for name, (call, x) in CALLS.items():
    for how in ("eager", "graph", "eager without kernels", "graph without kernels"):
        _ops._has_kernels = "without" not in how
        gpu.take_copies_to_host(), gpu.take_streams_asked()
        try:
            unknown = tf.TensorSpec([None] * x.shape.rank, x.dtype)
            (call if how.startswith("eager") else tf.function(call, input_signature=[unknown]))(x)
            error = None
        except tf.errors.OpError as raised:
            error = f"{type(raised).__name__}: {raised}"
        told[f"{name}, {how}"] = [error, gpu.take_copies_to_host(), gpu.take_streams_asked()]
print(json.dumps(told))
