"""Thumbnails of sources, and handles of these, for fit, evaluate and predict."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, SupportsIndex

import keras
import numpy as np
from numpy.typing import ArrayLike

from ats_core._arguments import is_single, to_ints
from ats_core.sources import Source, SourceBatch, open_source, to_handles
from ats_core.sources.padding import to_pixel
from ats_core.sources.thumbnails import check_one, thumbnail_shape

from ._arguments import Sizes, to_bool, to_channel_axis, to_count, to_data_format, to_seed


class SourceDataset(keras.utils.PyDataset):
    """Batches of ((x_low, handles, low_shapes), targets) of sources, for a model with these three inputs.

    x_low (B, *low, C) are thumbnails of the sources' dtype, padded at their ends to one size for all batches (one of
    Keras's rules on TensorFlow), handles (B,) int64, low_shapes (B, D) int64. Thumbnails are read where batches are asked
    for, with `workers` ahead of the network in as many threads; patches where they are sampled. The dataset holds its
    sources, and so the handles.

    Args:
        sources: sources, or what `open_source` takes. They are opened when a batch with them is first asked for.
        size, downsample: of the thumbnails, one of them, as for `Source.thumbnail`. They are padded to `size`, a single
            one on every axis; with `downsample` to the largest of all, for which every source is opened at the first batch.
        targets: one for each source: an array, or a sequence of what NumPy stacks; None: batches are (inputs,).
        batch_size: sources a batch; the last one may be smaller.
        shuffle: take the sources in another order in every epoch, from (seed, epoch) alone.
        seed: of the orders, between 0 and 2**31 - 1; None takes one from NumPy's global generator, so that
            keras.utils.set_random_seed holds.
        fill: value of the padding.
        data_format: of the thumbnails; keras.config.image_data_format() by default.
        kwargs: of keras.utils.PyDataset: workers, max_queue_size.

    Raises:
        ValueError: not as many targets as sources; use_multiprocessing, as handles mean nothing in other processes.
        TypeError: both or neither of size and downsample.
    """

    def __init__(
        self,
        sources: Sequence[Source | str | os.PathLike[str] | ArrayLike],
        size: Sizes | None = None,
        targets: Any = None,
        batch_size: SupportsIndex = 1,
        *,
        downsample: float | Sequence[float] | None = None,
        shuffle: bool = False,
        seed: SupportsIndex | None = None,
        fill: float = 0.0,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("use_multiprocessing"):
            raise ValueError(
                "use_multiprocessing: handles of sources mean nothing in other processes; take workers alone"
            )
        check_one(size, downsample)
        super().__init__(**kwargs)
        if targets is not None and len(targets) != len(sources):
            raise ValueError(f"targets: must be one for each of {len(sources)} sources, got {len(targets)}")
        self.sources, self.targets = sources, targets
        self.size = size if size is None or is_single(size) else tuple(to_ints("size", size))
        self.downsample = downsample
        self._batch_size = to_count("batch_size", batch_size)
        self._shuffle = to_bool("shuffle", shuffle)
        seed = to_seed(seed)
        self._seed = int(np.random.randint(2**31)) if seed is None else seed
        self._fill = fill
        self._data_format = to_data_format(data_format)
        self._opened: dict[int, Source] = {}
        self._largest: tuple[int, ...] | None = None
        self._epoch = -1
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self.sources) / self._batch_size)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} of {len(self)}")
        chosen = self._order[i * self._batch_size : (i + 1) * self._batch_size].tolist()
        batch = SourceBatch(self._open(number) for number in chosen)
        low, shapes, _ = batch.thumbnails(self.size, downsample=self.downsample, fill=self._fill)
        whole = self._low_shape(len(batch.axes))
        x_low = np.full(
            (len(batch), *whole, batch.channels), to_pixel(batch.dtype, "constant", self._fill), batch.dtype
        )
        x_low[(slice(None), *map(slice, low.shape[1:-1]))] = low
        inputs = np.moveaxis(x_low, -1, to_channel_axis(self._data_format)), to_handles(batch), shapes
        if self.targets is None:
            return (inputs,)
        return inputs, np.stack([np.asarray(self.targets[number]) for number in chosen])

    def _low_shape(self, axes: int) -> tuple[int, ...]:
        """What thumbnails are padded to."""
        if self.size is not None:
            return tuple(to_ints("size", self.size, axes))
        if self._largest is None:
            shapes = [thumbnail_shape(self._open(i), None, self.downsample) for i in range(len(self.sources))]
            self._largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        return self._largest

    def _open(self, number: int) -> Source:
        source = self._opened.get(number)
        if source is None:  # where two threads come here at once, the first one's is everyone's
            source = self._opened.setdefault(number, open_source(self.sources[number]))
        return source

    def on_epoch_end(self) -> None:
        self._epoch += 1
        count = len(self.sources)
        order = (
            np.random.default_rng((self._seed, self._epoch)).permutation(count) if self._shuffle else np.arange(count)
        )
        self._order = order  # a new array: workers may be reading the old one
