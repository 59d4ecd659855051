from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]
_Draw: TypeAlias = tuple[NDArray[np.int64], _Array, _Array, NDArray[np.float64]]

def version() -> str: ...
def cuda_architectures() -> str: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int, /) -> None: ...
def sample(attention: _Array, n: int, replace: bool, logits: bool, rng: _Array, /) -> _Draw: ...
def topk(attention: _Array, n: int, logits: bool, /) -> _Draw: ...
def sample_backward(
    grad: _Array, attention: _Array, indices: _Array, probabilities: _Array, log_mass: _Array, logits: bool, /
) -> _Array: ...
def locate(
    indices: _Array,
    grid: Sequence[int],
    low: Sequence[int],
    image: Sequence[int],
    patch: Sequence[int],
    receptive_field: Sequence[int],
    /,
) -> NDArray[np.int64]: ...
def extract_patches(
    image: _Array,
    origins: _Array,
    patch: Sequence[int],
    scales: Sequence[int],
    padding: str,
    fill: float,
    dtype: np.dtype[Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels_first: bool,
    /,
) -> _Array: ...
def extract_patches_backward(
    grad: _Array,
    origins: _Array,
    image_shape: Sequence[int],
    patch: Sequence[int],
    scales: Sequence[int],
    padding: str,
    dtype: np.dtype[Any],
    std: Sequence[float] | None,
    channels_first: bool,
    /,
) -> _Array: ...
def expectation(
    features: _Array, attention: _Array, estimator: str, threshold: _Array | None, weights: _Array | None, /
) -> _Array: ...
def expectation_backward(
    grad: _Array,
    features: _Array,
    attention: _Array,
    estimator: str,
    threshold: _Array | None,
    weights: _Array | None,
    /,
) -> tuple[_Array, _Array]: ...
def estimator_arrays(
    attention: _Array, estimator: str, threshold: _Array | None, weights: _Array | None, /
) -> tuple[_Array, _Array]: ...
