"""What a layer's options may be, turned into what a config can hold. Every error names the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsIndex

import keras
import numpy as np

import ats_core
from ats_core._arguments import to_bool, to_float, to_int, to_ints

Sizes = SupportsIndex | Sequence[SupportsIndex]


def to_option(name: str, sizes: Sizes, least: int) -> int | tuple[int, ...]:
    """A size for every spatial axis, or one each of 1 to 3."""
    single = hasattr(sizes, "__index__") and getattr(sizes, "ndim", 0) == 0
    values = to_ints(name, sizes, 1 if single else None)
    if not 1 <= len(values) <= 3 or min(values) < least:
        raise ValueError(f"{name}: must be at least {least}, one for every axis or one each of 1 to 3, got {sizes!r}")
    return values[0] if single else tuple(values)


def to_axes(name: str, sizes: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """One size for each of a number of spatial axes."""
    return tuple(to_ints(name, sizes, axes))


def to_count(name: str, value: SupportsIndex) -> int:
    number = to_int(name, value)
    if number < 1:
        raise ValueError(f"{name}: must be at least 1, got {value!r}")
    return number


def to_choice(name: str, value: str, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def to_probability(name: str, value: float) -> float:
    number = to_float(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: must be between 0 and 1, got {value!r}")
    return number


def to_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """(low, high), in this order."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: must be a pair (low, high), got {value!r}")
    low, high = (to_float(name, number) for number in value)
    if not (low <= high and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: must be finite and in the order (low, high), got {value!r}")
    return low, high


def to_field(receptive_field: Sizes) -> int | tuple[int, ...]:
    """The receptive field of an attention network."""
    if receptive_field is None:
        raise TypeError(
            "receptive_field: must be that of the attention network's convolutions without padding, in pixels of x_low, or 0 "
            "if they pad, got None"
        )
    return to_option("receptive_field", receptive_field, 0)


def to_seed(seed: SupportsIndex | None) -> int | None:
    """A seed that both backends' generators hold."""
    if isinstance(seed, (bool, np.bool_)):
        raise TypeError(f"seed: must be an integer, got {seed!r}")
    number = None if seed is None else to_int("seed", seed)
    if number is not None and not 0 <= number < 2**31:
        raise ValueError(f"seed: must be between 0 and 2**31 - 1, got {seed!r}")
    return number


def to_data_format(data_format: str | None) -> str:
    if data_format is None:
        return str(keras.config.image_data_format())
    return to_choice("data_format", data_format, ("channels_last", "channels_first"))


def to_channel_axis(data_format: str) -> int:
    return 1 if data_format == "channels_first" else -1


def to_extraction(
    patch_size: int | tuple[int, ...],
    scales: Sequence[SupportsIndex] | None,
    padding: str,
    fill: float,
    mean: Any,
    std: Any,
) -> dict[str, Any]:
    """Options of `extract_patches`, refused when there is no image that they suit."""
    axes = len(patch_size) if isinstance(patch_size, tuple) else 1
    options = {
        "scales": None if scales is None else tuple(to_ints("scales", scales)),
        "padding": padding,
        "fill": to_float("fill", fill),
    }
    empty, nowhere = np.empty((0, *(1,) * axes, 1), np.float32), np.empty((0, 0, axes), np.int64)
    ats_core.extract_patches(empty, nowhere, patch_size, **options)  # type: ignore[arg-type]
    return {**options, "mean": _to_channels("mean", mean), "std": _to_channels("std", std)}


def _to_channels(name: str, values: Any) -> float | tuple[float, ...] | None:
    """A number, or one a channel."""
    if values is None:
        return None
    if hasattr(values, "shape"):
        values = keras.ops.convert_to_numpy(values)
    if np.ndim(values) > 1:
        raise ValueError(f"{name}: must be a number or one a channel, got shape {np.shape(values)}")
    if np.ndim(values) == 0:
        return to_float(name, values)
    return tuple(to_float(name, value) for value in values)


__all__ = [
    "Sizes",
    "to_axes",
    "to_bool",
    "to_channel_axis",
    "to_choice",
    "to_count",
    "to_data_format",
    "to_extraction",
    "to_field",
    "to_float",
    "to_int",
    "to_ints",
    "to_option",
    "to_probability",
    "to_range",
    "to_seed",
]
