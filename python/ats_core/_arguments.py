"""What callers may write, turned into what the core takes. Every error names the argument."""

import operator
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]
Ints: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
Rng: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | NDArray[np.int64] | None

INT64 = np.iinfo(np.int64)


def to_array(name: str, value: ArrayLike, like: Array | None = None) -> Array:
    """Return value as an array of numbers; numbers that are no array yet take the dtype of `like`."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{name}: cannot be made an array: {error}") from None
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: must hold real numbers, got dtype {array.dtype}")
    if like is not None and like.dtype.kind == "f" and not hasattr(value, "dtype"):
        with np.errstate(over="ignore"):  # the core says what is wrong with inf
            array = array.astype(like.dtype)
    return array


def to_int64(name: str, value: ArrayLike) -> NDArray[np.int64]:
    """Return value as int64 when no value can change by that."""
    array = to_array(name, value)
    if array.size == 0 and not hasattr(value, "dtype"):
        return array.astype(np.int64)  # [] says nothing about its type
    if not np.can_cast(array.dtype, np.int64, "safe"):
        raise TypeError(f"{name}: must hold int64 integers, got dtype {array.dtype}")
    return array.astype(np.int64, copy=False)


def to_int(name: str, value: SupportsIndex) -> int:
    """Return value as an int that fits into 64 bits."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: must be an integer, got {value!r}") from None
    if not INT64.min <= number <= INT64.max:
        raise ValueError(f"{name}: {number} does not fit into 64 bits")
    return number


def to_bool(name: str, value: bool) -> bool:
    """Return value as a bool."""
    if isinstance(value, bool | np.bool_ | int) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name}: must be True or False, got {value!r}")


def is_single(value: object) -> TypeGuard[SupportsIndex]:
    """Whether value is one integer, and no sequence of them (an array has an __index__ too)."""
    return isinstance(value, SupportsIndex) and getattr(value, "ndim", 0) == 0


def to_ints(name: str, value: Ints, axes: int | None = None) -> list[int]:
    """Return a tuple of sizes as ints; a single int stands for every one of `axes` axes."""
    if is_single(value):
        if axes is None:
            raise TypeError(f"{name}: must be a sequence of integers, got {value!r}")
        return [to_int(name, value)] * axes
    if isinstance(value, str | bytes):
        raise TypeError(f"{name}: must be integers, got {value!r}")
    try:
        numbers = [to_int(name, item) for item in value]  # type: ignore[union-attr]
    except TypeError:
        raise TypeError(f"{name}: must be integers, got {value!r}") from None
    if axes is not None and len(numbers) != axes:
        raise ValueError(f"{name}: must have {axes} values, one a spatial axis, got {len(numbers)}")
    return numbers


def to_rng(rng: Rng) -> NDArray[np.int64]:
    """Return rng as (seed, offset); None takes a seed from the operating system."""
    if rng is None:
        return np.array([secrets.randbits(63), 0], np.int64)
    if getattr(rng, "ndim", 0) > 0:  # an array or a tensor
        return to_int64("rng", np.asarray(rng))
    if isinstance(rng, SupportsIndex):
        return np.array([to_int("rng", rng), 0], np.int64)
    if isinstance(rng, Sequence) and not isinstance(rng, str | bytes) and len(rng) == 2:
        return np.array([to_int("rng", item) for item in rng], np.int64)
    raise TypeError(f"rng: must be None, an int seed, (seed, offset) or an int64 array of those two, got {rng!r}")


def to_dtype(name: str, value: DTypeLike) -> np.dtype[Any]:
    """Return value as a dtype."""
    try:
        return np.dtype(value)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def to_float(name: str, value: float) -> float:
    """Return value as a float."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: must be a real number, got {value!r}") from None


def to_name(value: object) -> str:
    """Return a name for the core to look up; what cannot be one is refused there in the same words."""
    return value if isinstance(value, str) and value.isidentifier() and value.isascii() else repr(value)


def choose(name: str, value: str, choices: Mapping[str, int]) -> int:
    """Return the core's number for a name."""
    if isinstance(value, str) and value in choices:
        return choices[value]
    raise ValueError(f"{name}: must be one of {', '.join(map(repr, choices))}, got {value!r}")
