# mypy: allow-subclassing-any, no-warn-return-any
"""Raw pixels to what networks are trained on, as a part of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._arguments import Channels, check_tensor, to_channels


class Normalize(nn.Module):
    """``(x - mean) / std``: images (B, C, *spatial) of any real dtype -> the same shape in the module's dtype.

    As the first layer of an attention network it takes thumbnails as they come out of files, and the model is saved with
    its preprocessing: mean and std are buffers. The module's dtype is float32, which autocast casts where it is used,
    until ``.to(dtype)`` says otherwise; the arithmetic is done in float32 or wider.

    Args:
        mean, std: a number for all channels, or one a channel, as for `extract_patches`; std is positive.

    Raises:
        ValueError, TypeError: a mean or std that is none; in a call: x has another number of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Channels, std: Channels) -> None:
        super().__init__()
        means, stds = _to_numbers("mean", mean), _to_numbers("std", std)
        if min(stds) <= 0.0:
            raise ValueError(f"std: must be positive, got {std!r}")
        if 1 < len(means) != len(stds) > 1:
            raise ValueError(f"std: must have as many values as mean, {len(means)}, or one, got {len(stds)}")
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(stds, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x)
        channels = max(len(self.mean), len(self.std))
        if x.dim() < 3 or x.is_complex() or (channels > 1 and x.shape[1] != channels):
            what = f"(B, {channels if channels > 1 else 'C'}, *spatial)"
            raise ValueError(f"x: must be real numbers {what}, got {x.dtype} {tuple(x.shape)}")
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        column = (-1, *(1,) * (x.dim() - 2))
        mean, std = (values.to(wide).reshape(column) for values in (self.mean, self.std))
        return ((x.to(wide) - mean) / std).to(self.mean.dtype)

    def extra_repr(self) -> str:
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


def _to_numbers(name: str, values: Channels) -> list[float]:
    shape = getattr(values, "shape", None)
    count = math.prod(shape) if shape is not None else len(values) if isinstance(values, Sequence) else 1
    numbers = to_channels(name, values, count)
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: must be a finite number, or one a channel, got {values!r}")
    return numbers
