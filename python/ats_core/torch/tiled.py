# mypy: allow-subclassing-any, no-warn-return-any
"""Attention maps of levels that are too large for the attention network to see at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, SupportsIndex

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from ._arguments import Channels, check_dtype, check_tensor, to_int
from .functional import extract_patches

if TYPE_CHECKING:
    from ats_core.sources import Source


def tiled_attention(
    network: Callable[[Tensor], Tensor],
    image: Tensor | Source,
    *,
    strip: SupportsIndex,
    receptive_field: SupportsIndex,
    stride: SupportsIndex = 1,
    padding: SupportsIndex = 0,
    level: SupportsIndex = 0,
    dtype: torch.dtype | None = None,
    mean: Channels = None,
    std: Channels = None,
    device: torch.device | str | None = None,
    checkpoint: bool = True,
) -> Tensor:
    """``network(image)``, some rows of the map at a time: the same map, in memory for a strip and the map itself.

    The network sees a strip with as many pixels around it as its cells depend on, and what the strip's own borders
    changed is dropped. Rows run along the first spatial axis, along which the network is described as one convolution:
    row r of the map depends on the pixels ``[r * stride - padding, r * stride - padding + receptive_field)``. Layers
    one after the other, with kernels k_i (dilated: ``dilation * (k - 1) + 1``), strides s_i and padding p_i on both
    sides, make ``stride = s_1 s_2 ...``, ``receptive_field = 1 + sum_i (k_i - 1) s_1 .. s_{i-1}`` and ``padding =
    sum_i p_i s_1 .. s_{i-1}``. Two convolutions of 3 with padding 1: ``receptive_field=5, padding=2``. A larger
    receptive_field and padding, both on both sides (``+ 2 m`` and ``+ m``), are the same to a map, and only slower.

    The network has to be local: no normalisation by statistics of its input, no softmax. It returns logits, or weights
    of any scale, and `sample` or `SampleSoftmax` see the whole map. Batch normalisation is local in eval mode.

    Args:
        network: (B, C, *spatial) -> (B, *grid) or (B, 1, *grid).
        image: (B, C, *spatial), or a `Source`, of which a strip is in memory at a time; then B = 1. It is read in its
            own dtype: give mean, std or dtype to a network that takes floats.
        strip: rows of the map that are computed at once, at least 1. Of a tiled source best those of some rows of tiles.
        receptive_field, stride, padding: of the network along the first spatial axis, as above.
        level: which level of a source.
        dtype, mean, std: what the network is given, as for `extract_patches`.
        device: where a source's pixels go; by default where the parameters of the network are.
        checkpoint: where gradients are recorded, keep nothing of a strip but its rows: `backward` computes, and reads,
            it a second time (torch.utils.checkpoint). The gradient is that of the whole map either way.

    Returns:
        What ``network(image)`` returns, (B, *grid) or (B, 1, *grid).

    Raises:
        ValueError: a number that means nothing; a network with other rows than such a convolution has.
        TypeError: an argument of another type. SourceError: the file is broken, gone or closed.
    """
    rows_at_once = _at_least("strip", strip, 1)
    field, step = _at_least("receptive_field", receptive_field, 1), _at_least("stride", stride, 1)
    border = _at_least("padding", padding, 0)
    check_dtype(dtype)
    if isinstance(image, Tensor):
        if to_int("level", level) != 0:
            raise ValueError(f"level: a tensor has level 0 only, got {level}")
        if not 3 <= image.dim() <= 5:
            raise ValueError(f"image: must be (B, C, *spatial) with 1 to 3 spatial axes, got {tuple(image.shape)}")
        pixels, axes = image.shape[2], image.dim() - 2
    else:
        _check_source(image)
        number = image._to_level(level)
        pixels, axes = image.levels[number].shape[0], len(image.axes)
        if device is None:
            device = _device_of(network)
    rows = (pixels + 2 * border - field) // step + 1
    if rows < 1:
        raise ValueError(f"image: {pixels} pixels and {border} of padding are less than a receptive field of {field}")

    def read(start: int, stop: int) -> Tensor:
        if isinstance(image, Tensor):
            part = image[:, :, start:stop]
        else:
            origin, size = (start, *(0,) * (axes - 1)), (stop - start, *image.levels[number].shape[1:])
            part = torch.from_numpy(image.read(number, origin, size)).to(device).movedim(-1, 0).unsqueeze(0)
        if isinstance(image, Tensor) and dtype is None and mean is None and std is None:
            return part
        origins = torch.zeros((part.shape[0], 1, axes), dtype=torch.int64, device=part.device)
        return extract_patches(part, origins, part.shape[2:], dtype=dtype, mean=mean, std=std)[:, 0]

    def compute(first: int, last: int) -> Tensor:
        """Rows [first, last) of the map."""
        # From a pixel that the strides of all layers divide. A border that is none of the image spoils only rows
        # whose receptive field sticks out.
        start = max(0, first * step - border) // step * step
        stop = min(pixels, (last - 1) * step - border + field)
        found = network(read(start, stop))
        check_tensor("network: its result", found)
        expected = (stop - start + 2 * border - field) // step + 1
        if found.dim() <= axes or found.shape[-axes] != expected:
            raise ValueError(
                f"network: {stop - start} pixels must give {expected} rows with receptive_field={field}, "
                f"stride={step} and padding={border}, got the shape {tuple(found.shape)}"
            )
        return found.narrow(-axes, first - start // step, last - first)

    strips = [(first, min(first + rows_at_once, rows)) for first in range(0, rows, rows_at_once)]
    if checkpoint and torch.is_grad_enabled():
        parts = [recomputed(compute, first, last, use_reentrant=False) for first, last in strips]
    else:
        parts = [compute(first, last) for first, last in strips]
    return torch.cat(parts, -axes)


class TiledAttention(nn.Module):
    """An attention network that goes over its input in strips: `tiled_attention` with fixed options.

    In front of a `SampleSoftmax` it takes the place of the network's other layers in `AttentionSampling`.

    Args:
        network: module: (B, C, *spatial) -> logits (B, *grid) or (B, 1, *grid).
        strip, receptive_field, stride, padding, dtype, mean, std, checkpoint: as for `tiled_attention`.
    """

    def __init__(
        self,
        network: nn.Module,
        strip: SupportsIndex,
        receptive_field: SupportsIndex,
        *,
        stride: SupportsIndex = 1,
        padding: SupportsIndex = 0,
        dtype: torch.dtype | None = None,
        mean: Channels = None,
        std: Channels = None,
        checkpoint: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.strip = _at_least("strip", strip, 1)
        self.receptive_field = _at_least("receptive_field", receptive_field, 1)
        self.stride = _at_least("stride", stride, 1)
        self.padding = _at_least("padding", padding, 0)
        check_dtype(dtype)
        self.dtype, self.mean, self.std, self.checkpoint = dtype, mean, std, checkpoint

    def forward(self, image: Tensor | Source, level: SupportsIndex = 0) -> Tensor:
        return tiled_attention(
            self.network,
            image,
            strip=self.strip,
            receptive_field=self.receptive_field,
            stride=self.stride,
            padding=self.padding,
            level=level,
            dtype=self.dtype,
            mean=self.mean,
            std=self.std,
            checkpoint=self.checkpoint,
        )

    def extra_repr(self) -> str:
        return (
            f"strip={self.strip}, receptive_field={self.receptive_field}, stride={self.stride}, padding={self.padding}"
        )


def _at_least(name: str, value: SupportsIndex, least: int) -> int:
    number = to_int(name, value)
    if number < least:
        raise ValueError(f"{name}: must be at least {least}, got {number}")
    return number


def _check_source(image: object) -> None:
    from ats_core.sources import Source

    if not isinstance(image, Source):
        raise TypeError(f"image: must be a torch.Tensor or a Source, got {type(image).__name__}")


def _device_of(network: object) -> torch.device | None:
    if not isinstance(network, nn.Module):
        return None
    parameter = next(network.parameters(), None)
    return None if parameter is None else parameter.device
