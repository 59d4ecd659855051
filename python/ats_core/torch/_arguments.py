# mypy: no-warn-return-any
"""What callers may write, turned into what the operations take. Every error names the argument, in the caller's layout.

The operations check the rest. Sizes may be symbolic: they are passed on without a comparison.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeAlias, cast

import torch
from torch import _C, Tensor
from torch.compiler import is_dynamo_compiling

Sizes: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
Rng: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | Tensor | None
Channels: TypeAlias = float | Sequence[float] | Tensor | None

_CPU = torch.device("cpu")
_NARROWER = (torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)  # all fit into int64


def is_single(value: Any) -> bool:
    """An integer, and no sequence of them (an array has an __index__ too)."""
    return isinstance(value, (int, torch.SymInt)) or (hasattr(value, "__index__") and not getattr(value, "shape", ()))


def to_int(name: str, value: SupportsIndex) -> int:
    """An int of 64 bits, or a symbolic one."""
    if isinstance(value, torch.SymInt) or (is_dynamo_compiling() and isinstance(value, int)):
        return value
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # PyTorch's tensors raise all of them
        raise TypeError(f"{name}: must be an integer, got {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}: {number} does not fit into 64 bits")
    return number


def to_sizes(name: str, sizes: Sizes, axes: int | None = None) -> Sequence[int]:
    """Sizes, one a spatial axis; a single one stands for each of `axes`."""
    if not isinstance(sizes, (tuple, list)):
        if axes is not None and is_single(sizes):
            return (to_int(name, cast("SupportsIndex", sizes)),) * axes
        sizes = _to_list(name, sizes, "an integer or a sequence of integers")
    if axes is not None and len(sizes) != axes:
        raise ValueError(f"{name}: must have {axes} values, one a spatial axis, got {len(sizes)}")
    return sizes if isinstance(sizes, torch.Size) else [to_int(name, size) for size in sizes]


def to_scales(scales: Sequence[SupportsIndex] | None) -> Sequence[int]:
    if scales is None:
        return ()
    numbers = to_sizes("scales", scales)
    if len(numbers) == 0:
        raise ValueError("scales: must not be empty")
    return numbers


class _Memory(threading.local):
    """What a thread draws its pairs into."""

    def __init__(self) -> None:
        with torch.inference_mode(False):  # tensors made within cannot be written outside
            self.pair = torch.empty(2, dtype=torch.int64, device=_CPU)


_memory = _Memory()


def _draw_pair(attention: Tensor) -> Tensor:
    """(seed, offset) of PyTorch's generator. On the CPU the operation reads them at once, so in plain eager mode they can
    be drawn into the same memory again: the numbers are those of torch.randint, at a third of its price (docs/speed.md).
    """
    if attention.is_cuda:
        return torch.randint(2**63 - 1, (2,), dtype=torch.int64, device=attention.device)
    if is_dynamo_compiling() or _C._len_torch_dispatch_stack() or _C._are_functorch_transforms_active():
        return torch.randint(2**63 - 1, (2,), dtype=torch.int64, device=_CPU)
    return _memory.pair.random_(2**63 - 1)


def to_rng(rng: Rng, attention: Tensor) -> Tensor:
    """An int64 tensor (seed, offset), from PyTorch's generator for None.

    For attention on the CPU it is there too. On CUDA nothing may wait for anything: numbers stay on the CPU, from where
    the operation takes them by value; tensors stay where they are; and None asks the device's generator, so that a CUDA
    graph draws anew in every replay.
    """
    if rng is None:
        return _draw_pair(attention)
    if isinstance(rng, Tensor):
        pair = rng if attention.is_cuda else rng.cpu()
        pair = pair.long() if pair.dtype in _NARROWER else pair
        # the operation checks shape and dtype
        return pair if pair.dim() else torch.stack((pair, torch.zeros_like(pair)))
    try:
        numbers: Any = (rng, 0) if is_single(rng) else _to_list("rng", rng, "")
        if len(numbers) != 2:
            raise TypeError
        seed, offset = to_int("rng", numbers[0]), to_int("rng", numbers[1])
    except TypeError:
        raise TypeError(
            f"rng: must be None, an int seed, (seed, offset) or an int64 tensor of those two, got {rng!r}"
        ) from None
    return torch.tensor([seed, offset], dtype=torch.int64, device=_CPU)


def to_channels(name: str, values: Channels, channels: int) -> list[float] | None:
    """One number a channel; a single one stands for each. Of an array only one axis may be longer than 1."""
    if values is None:
        return None
    if isinstance(values, (int, float)):
        return [float(values)] * channels
    what = f"a number or one a channel ({channels})"
    shape = getattr(values, "shape", None)
    if shape is not None:  # a tensor or an array
        numbers = values.reshape(-1).tolist()  # type: ignore[union-attr]
        if max(shape, default=1) != len(numbers):
            raise ValueError(f"{name}: must be {what}, got shape {tuple(shape)}")
    else:
        numbers = _to_list(name, values, what)
        shape = (len(numbers),)
    if any(isinstance(number, (str, bytes)) for number in numbers):
        raise TypeError(f"{name}: must be {what}, got {values!r}")
    try:
        numbers = [float(number) for number in numbers]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{name}: must be {what}, got {values!r}") from None
    if len(numbers) == 1:
        return numbers * channels
    if len(numbers) != channels:
        raise ValueError(f"{name}: must be {what}, got shape {tuple(shape)}")
    return numbers


def to_indices(indices: Tensor) -> Tensor:
    """Narrower integers as int64."""
    check_tensor("indices", indices)
    return indices.long() if indices.dtype in _NARROWER else indices


def to_origins(origins: Tensor) -> Tensor:
    """(B, n, D) with narrower integers as int64."""
    check_tensor("origins", origins)
    if origins.dim() != 3 or not 1 <= origins.shape[2] <= 3:
        raise ValueError(f"origins: must be (B, n, D) with D = 1, 2 or 3 spatial axes, got {tuple(origins.shape)}")
    return origins.long() if origins.dtype in _NARROWER else origins


def is_channels_first(data_format: str) -> bool:
    if not isinstance(data_format, str) or data_format not in ("channels_last", "channels_first"):
        raise ValueError(f"data_format: must be one of 'channels_last', 'channels_first', got {data_format!r}")
    return data_format == "channels_first"


def check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: must be a torch.dtype, got {dtype!r}")


def check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: must be a torch.Tensor, got {type(tensor).__name__}")


def check_images(name: str, image: Tensor | Sequence[Tensor], axes: int, channels_first: bool = True) -> None:
    """A tensor, or a pyramid with one batch and one number of channels, with that many spatial axes."""
    if isinstance(image, Tensor):
        _check_rank(name, image, axes, channels_first)
        return
    if not isinstance(image, (list, tuple)):
        raise TypeError(f"{name}: must be a torch.Tensor or a list of them, got {type(image).__name__}")
    if len(image) == 0:
        raise ValueError(f"{name}: a pyramid needs at least one level")
    channel = 1 if channels_first else -1
    for i, level in enumerate(image):
        check_tensor(f"{name}[{i}]", level)
        _check_rank(f"{name}[{i}]", level, axes, channels_first)
        if i and (level.shape[0] != image[0].shape[0] or level.shape[channel] != image[0].shape[channel]):
            raise ValueError(
                f"{name}[{i}]: batch and channels must be those of {name}[0], got {tuple(level.shape)} and "
                f"{tuple(image[0].shape)}"
            )


def _check_rank(name: str, image: Tensor, axes: int, channels_first: bool) -> None:
    if image.dim() != axes + 2:
        layout = "(B, C, *spatial)" if channels_first else "(B, *spatial, C)"
        raise ValueError(f"{name}: must be {layout} with {axes} spatial axes, got {tuple(image.shape)}")


def _to_list(name: str, values: Any, what: str) -> list[Any]:
    if isinstance(values, (tuple, list)):
        return list(values)
    if isinstance(values, (str, bytes, dict, set)) or not hasattr(values, "__len__") or not getattr(values, "shape", 1):
        raise TypeError(f"{name}: must be {what}, got {values!r}")
    try:
        return list(values)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: must be {what}, got {values!r}") from None
