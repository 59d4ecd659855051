# mypy: allow-subclassing-any, allow-untyped-decorators, no-warn-return-any
"""Sources in place of images: patches that are read when they are sampled, and thumbnails for a DataLoader."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeGuard

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ats_core._arguments import Array
from ats_core.sources import Source, SourceBatch, open_source, patches
from ats_core.sources.padding import to_pixel
from ats_core.sources.thumbnails import check_one

from ._arguments import Sizes


class SourceItems(NamedTuple):
    """What `collate_sources` makes of a batch.

    Attributes:
        x_low: thumbnails (B, C, *low) of the sources' dtype, padded at the end to the largest.
        sources: SourceBatch of B.
        low_shapes: int64 (B, D), the thumbnails' own shapes.
        targets: what the default collation makes of the targets; None without them.
    """

    x_low: Tensor
    sources: SourceBatch
    low_shapes: Tensor
    targets: Any


class SourceDataset(Dataset[Any]):
    """Thumbnails, sources and targets, for a DataLoader with ``collate_fn=collate_sources``.

    Thumbnails are read where items are asked for, so in workers and ahead of the network if the loader has any. Patches
    are read where they are sampled.

    Args:
        sources: sources, or what `open_source` takes. They are opened when an item is first asked for.
        size, downsample: of the thumbnails, one of them, as for `Source.thumbnail`.
        targets: one for each source; None: there are none.

    Raises:
        ValueError: not as many targets as sources. TypeError: both or neither of size and downsample.
    """

    def __init__(
        self,
        sources: Sequence[Source | str | os.PathLike[str] | ArrayLike],
        size: Sizes | None = None,
        targets: Sequence[Any] | Tensor | None = None,
        *,
        downsample: float | Sequence[float] | None = None,
    ) -> None:
        check_one(size, downsample)
        if targets is not None and len(targets) != len(sources):
            raise ValueError(f"targets: must be one for each of {len(sources)} sources, got {len(targets)}")
        self.sources, self.targets, self.size, self.downsample = sources, targets, size, downsample
        self._opened: dict[int, Source] = {}
        self._identity = uuid.uuid4().hex

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: SupportsIndex) -> tuple[Array, Source, Any]:
        """Thumbnail (*size, C), source and target."""
        number = range(len(self))[index]
        source = self._opened.get(number)
        if source is None or source.closed:
            source = self._opened[number] = open_source(self.sources[number])
            if source is not self.sources[number]:
                source._identity = self._identity  # the same from every worker
        thumbnail, _ = source.thumbnail(self.size, downsample=self.downsample)
        return thumbnail, source, None if self.targets is None else self.targets[number]


def collate_sources(items: Sequence[tuple[Array, Source, Any]], fill: float = 0.0) -> SourceItems:
    """A batch of what `SourceDataset` gives. `fill` is the value of the padding of thumbnails."""
    thumbnails, sources, targets = zip(*items, strict=True)
    batch = SourceBatch(sources)
    shapes = np.array([thumbnail.shape[:-1] for thumbnail in thumbnails], np.int64)
    pixel = to_pixel(batch.dtype, "constant", fill)
    x_low = np.full((len(batch), batch.channels, *shapes.max(0)), pixel, batch.dtype)
    for out, thumbnail in zip(x_low, thumbnails, strict=True):
        inside = tuple(slice(size) for size in thumbnail.shape[:-1])
        out[(slice(None), *inside)] = np.moveaxis(thumbnail, -1, 0)
    labels = None if targets[0] is None else default_collate(list(targets))
    return SourceItems(torch.from_numpy(x_low), batch, torch.from_numpy(shapes), labels)


# Functions that ask sources are not traced: within a compiled module they break the graph.


def is_sources(value: object) -> TypeGuard[SourceBatch]:
    return isinstance(value, SourceBatch)


check_sources = torch.compiler.disable(patches.check_sources)


def _to_array(low_shapes: Tensor | ArrayLike | None) -> ArrayLike | None:
    return low_shapes.cpu().numpy() if isinstance(low_shapes, Tensor) else low_shapes


@torch.compiler.disable
def mask_cells(
    attention: Tensor, sources: SourceBatch, low_shape: Sizes | None, low_shapes: Any, field: Sizes, n: int
) -> Tensor:
    """`attention` with zeros where thumbnails were padded; itself where none was. At least n cells are left a row."""
    if low_shapes is None:
        return attention
    mask = patches.mask_cells(sources, tuple(attention.shape[1:]), low_shape, _to_array(low_shapes), field, n)
    if mask.all():
        return attention
    # No product: what is not finite out there must not come in, neither forward nor backward.
    return torch.where(torch.from_numpy(mask).to(attention.device), attention, torch.zeros_like(attention))


@torch.compiler.disable
def locate_cells(
    indices: Tensor,
    sources: SourceBatch,
    grid: Sequence[int],
    patch_size: Sizes,
    low_shape: Sizes | None,
    low_shapes: Any,
    field: Sizes,
) -> Tensor:
    """`SourceBatch.patch_origins`, on the device of `indices`."""
    origins = sources.patch_origins(
        indices.cpu().numpy(),
        tuple(grid),
        patch_size,
        low_shape=low_shape,
        low_shapes=_to_array(low_shapes),
        receptive_field=field,
    )
    return torch.from_numpy(origins).to(indices.device)


@torch.compiler.disable
def read_pixels(
    sources: SourceBatch,
    origins: Tensor,
    patch: Sequence[int],
    scales: Sequence[int],
    padding: str,
    fill: float,
) -> tuple[Tensor, Tensor | None]:
    """`patches.read_pixels`, on the device of `origins`."""
    array, beyond = patches.read_pixels(sources, origins.detach().cpu().numpy(), patch, scales, padding, fill)
    pixels = torch.from_numpy(array)
    outside = None if beyond is None else torch.from_numpy(beyond).to(origins.device)
    if origins.is_cuda:
        return pixels.pin_memory().to(origins.device, non_blocking=True), outside
    return pixels.to(origins.device), outside
