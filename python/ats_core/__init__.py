"""Attention sampling: draw cells of an attention map, cut their patches out, estimate with an unbiased gradient.

This package works on NumPy arrays; `ats_core.torch` has the same functions for PyTorch, with gradients, and modules.
Letters in shapes: B batch, n samples, D spatial axes (1 to 3), C channels, S scales.
"""

from pathlib import Path
from typing import Any

from ats_core import _core
from ats_core._arguments import to_int
from ats_core._expectation import estimator_arrays, expectation, expectation_backward
from ats_core._patches import extract_patches, extract_patches_backward, patch_origins
from ats_core._sampling import Samples, sample, sample_backward, topk

__all__ = [
    "Samples",
    "__version__",
    "build_info",
    "estimator_arrays",
    "expectation",
    "expectation_backward",
    "extract_patches",
    "extract_patches_backward",
    "get_include",
    "get_library_dir",
    "get_num_threads",
    "patch_origins",
    "sample",
    "sample_backward",
    "set_num_threads",
    "topk",
]

__version__ = _core.version()


def build_info() -> dict[str, Any]:
    """Return what was built: "version", and "cuda_architectures", the GPUs that there are kernels for ([]: none).

    Architectures are as CMake names them: ["75", "80", "90", "100"].
    """
    return {"version": __version__, "cuda_architectures": _core.cuda_architectures().split()}


def get_include() -> str:
    """Return the folder to pass as -I, for ``#include <ats/ats.h>``."""
    return str(Path(_core.__file__).parent / "include")


def get_library_dir() -> str:
    """Return the folder of libats.so, to pass as -L and as run-time library path (-Wl,-rpath)."""
    return str(Path(_core.__file__).parent / "lib")


def get_num_threads() -> int:
    """Return how many threads the NumPy functions use. PyTorch's use PyTorch's own."""
    return _core.get_num_threads()


def set_num_threads(threads: int) -> None:
    """Set how many threads the NumPy functions use; 0 is one a core. Results do not depend on it."""
    _core.set_num_threads(to_int("threads", threads))
