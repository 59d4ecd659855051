"""Attention sampling for TensorFlow: differentiable operations.

They work eagerly, in ``tf.function`` with unknown dimensions, in ``tf.data`` and in a SavedModel, on TensorFlow's own
threads or on its GPU (`validate` says what then becomes of bad values). They are registered as ``Ats>Sample``, ``Ats>TopK``, ``Ats>Locate``, ``Ats>ExtractPatches``, ``Ats>Expectation``,
``Ats>EstimatorArrays`` and their gradients: a program that loads a SavedModel needs ``import ats_core.tensorflow`` before
it does, else TensorFlow says "Op type not registered 'Ats>...'". There are no XLA kernels: a function that is compiled
with ``jit_compile=True`` cannot contain them. For layers see `ats_core.keras`.
"""

_NEEDED = "ats_core.tensorflow needs TensorFlow 2.18 or newer: python -m pip install 'tensorflow>=2.18'"

try:
    import tensorflow as _tf
except ImportError as _error:
    raise ImportError(_NEEDED) from _error
if tuple(map(int, _tf.__version__.split(".")[:2])) < (2, 18):
    raise ImportError(f"{_NEEDED} (found {_tf.__version__})")

from .functional import (
    Samples,
    estimator_arrays,
    expectation,
    expectation_backward,
    extract_patches,
    extract_patches_backward,
    patch_origins,
    sample,
    topk,
)

__all__ = [
    "Samples",
    "estimator_arrays",
    "expectation",
    "expectation_backward",
    "extract_patches",
    "extract_patches_backward",
    "patch_origins",
    "sample",
    "topk",
]
