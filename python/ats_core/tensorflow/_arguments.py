"""What callers may write, turned into what the operations take. Every error names the argument.

The operations check the rest. Shapes may be unknown while a graph is made: they are passed on as tensors then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeAlias

import tensorflow as tf
from numpy.typing import ArrayLike

from ats_core import _arguments

Tensor: TypeAlias = Any  # tf.Tensor: TensorFlow has no types to check against
Sizes: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
Shape: TypeAlias = Any  # Sizes, a tf.TensorShape, a tensor, or a sequence with tensors in it
Rng: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | Tensor | None
Channels: TypeAlias = float | ArrayLike | Tensor | None

_NARROWER = (tf.int32, tf.int16, tf.int8, tf.uint8, tf.uint16, tf.uint32)  # all fit into int64


def on_host() -> Any:
    """A scope for what kernels read on the host: made on a GPU it would have to be waited for."""
    if tf.executing_eagerly() and not tf.config.list_logical_devices("GPU"):
        return contextlib.nullcontext()  # the same, sooner
    return tf.device("CPU:0")


def to_tensor(name: str, value: Any, dtype: Any = None) -> Tensor:
    """A tensor; Python numbers take `dtype`."""
    try:  # TensorFlow would cast an array to what is but a hint
        return tf.convert_to_tensor(value, dtype_hint=None if hasattr(value, "dtype") else dtype)
    except (TypeError, ValueError, SystemError, tf.errors.OpError) as error:  # of all kinds for lists that mix things
        raise TypeError(f"{name}: cannot be made a tensor: {error}") from None


def to_integers(name: str, value: Any) -> Tensor:
    """A tensor with narrower integers as int64."""
    tensor = to_tensor(name, value, tf.int64)
    return tf.cast(tensor, tf.int64) if tensor.dtype in _NARROWER else tensor


def to_rng(rng: Rng) -> Tensor:
    """An int64 tensor (seed, offset), from TensorFlow's global generator for None."""
    if rng is None:
        with on_host():  # where the bounds are read, and numbers do not depend on the device
            return tf.random.uniform((2,), 0, 2**63 - 1, tf.int64)
    if tf.is_tensor(rng):
        pair = to_integers("rng", rng)  # the operation checks shape and dtype
        return tf.stack([pair, tf.zeros_like(pair)]) if pair.shape.rank == 0 else pair
    if isinstance(rng, (tuple, list)) and len(rng) == 2 and any(map(tf.is_tensor, rng)):
        pair = [to_integers("rng", number) for number in rng]
        if any(number.dtype != tf.int64 or number.shape.rank not in (None, 0) for number in pair):
            raise TypeError(f"rng: must be two integers, got {rng!r}")
        return tf.stack(pair)
    return tf.constant(_arguments.to_rng(rng))


def to_int(name: str, value: SupportsIndex) -> int:
    """An int of 64 bits."""
    try:
        return _arguments.to_int(name, value)
    except AttributeError:  # as in to_sizes
        raise TypeError(f"{name}: must be an integer, got {value!r}") from None


def is_single(value: Any) -> bool:
    """An integer, and no sequence of them (an array has an __index__ too)."""
    return isinstance(value, SupportsIndex) and getattr(value, "ndim", 0) == 0


def to_sizes(name: str, sizes: Sizes, axes: int | None = None) -> list[int]:
    """Sizes as Python ints, one a spatial axis; a single one stands for each of `axes`."""
    if isinstance(sizes, tf.TensorShape):
        if not sizes.is_fully_defined():
            raise ValueError(f"{name}: must be known, got {sizes} (where it may be a tensor: tf.shape of the tensor)")
        sizes = sizes.as_list()
    try:
        return _arguments.to_ints(name, sizes, axes)
    except AttributeError:  # from TensorFlow's tensors that hold no integer
        raise TypeError(f"{name}: must be integers, got {sizes!r}") from None


def to_shape(name: str, shape: Shape, axes: int) -> Tensor:
    """Sizes as an int64 vector, which may be known only when the graph runs. A single one stands for each axis."""
    with on_host():
        if not tf.is_tensor(shape) and not (isinstance(shape, (tuple, list)) and any(map(tf.is_tensor, shape))):
            return tf.constant(to_sizes(name, shape, axes), tf.int64)
        sizes = to_integers(name, shape)
        if sizes.dtype != tf.int64:
            raise TypeError(f"{name}: must be integers, got a tensor of {sizes.dtype.name}")
        if sizes.shape.rank == 0:
            sizes = tf.fill((axes,), sizes)
    if not sizes.shape.is_compatible_with((axes,)):
        raise ValueError(f"{name}: must have {axes} values, one a spatial axis, got a tensor of shape {sizes.shape}")
    return sizes


def count_axes(name: str, shape: Shape) -> int:
    """How many axes a shape has."""
    if isinstance(shape, (tuple, list)):
        return len(shape)
    if tf.is_tensor(shape):
        if shape.shape.rank == 0:
            return 1
        if shape.shape.rank != 1 or shape.shape[0] is None:
            raise ValueError(f"{name}: must be a vector of known length, got a tensor of shape {shape.shape}")
        return int(shape.shape[0])
    return 1 if is_single(shape) else len(to_sizes(name, shape))


def to_scales(scales: Sequence[SupportsIndex] | None) -> list[int]:
    if scales is None:
        return []
    numbers = to_sizes("scales", scales)
    if len(numbers) == 0:
        raise ValueError("scales: must not be empty")
    return numbers


def to_channels(name: str, values: Channels, image: Tensor, axis: int) -> Tensor:
    """One float64 number a channel, a single one for each; empty for None."""
    if values is None:
        with on_host():
            return tf.zeros((0,), tf.float64)
    channels = image.shape[axis]
    what = f"a number or one a channel ({'unknown yet' if channels is None else channels})"
    with on_host():
        numbers = to_tensor(name, values, tf.float64)
        if not (numbers.dtype.is_floating or numbers.dtype.is_integer):
            raise TypeError(f"{name}: must be {what}, got {values!r}")
        numbers = tf.cast(numbers, tf.float64)
    count = numbers.shape.num_elements()
    if count == 1:
        repeats = tf.shape(image)[axis] if channels is None else channels  # where the image is, which stays there
        with on_host():
            return tf.fill((repeats,), tf.reshape(numbers, ()))
    if numbers.shape.rank not in (None, 1) or (None not in (count, channels) and count != channels):
        raise ValueError(f"{name}: must be {what}, got shape {tuple(numbers.shape)}")
    return numbers


def to_dtype(dtype: Any) -> Any:
    try:
        return None if dtype is None else tf.as_dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype: must be a tf.DType, got {dtype!r}") from None


def is_channels_first(data_format: str) -> bool:
    if not isinstance(data_format, str) or data_format not in ("channels_last", "channels_first"):
        raise ValueError(f"data_format: must be one of 'channels_last', 'channels_first', got {data_format!r}")
    return data_format == "channels_first"


def check_rank(name: str, image: Tensor, axes: int, channels_first: bool) -> None:
    if image.shape.rank not in (None, axes + 2):
        layout = "(B, C, *spatial)" if channels_first else "(B, *spatial, C)"
        raise ValueError(f"{name}: must be {layout} with {axes} spatial axes, got {tuple(image.shape)}")
