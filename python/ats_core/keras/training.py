"""Sequences of data for fit, evaluate and predict, put together from small ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex

import keras
import numpy as np

from ._arguments import to_bool, to_count, to_seed


class _Wrapper(keras.utils.PyDataset):
    """A sequence around another one, which may be a list; it hears of the end of an epoch if it wants to."""

    def __init__(self, sequence: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sequence = sequence

    def __len__(self) -> int:
        return len(self._sequence)

    def on_epoch_end(self) -> None:
        if hasattr(self._sequence, "on_epoch_end"):
            self._sequence.on_epoch_end()


class Batcher(_Wrapper):
    """Batches of a sequence of (inputs, targets), or of (inputs, targets, weights). Every epoch after the first is in
    another random order.

    Keras ends an epoch in `evaluate` and `predict` too: the rows that the second `predict` returns are in another order
    than those of the first, unless shuffle=False.

    Args:
        sequence: anything with a length and integer indices. Inputs, targets and weights are arrays or numbers,
            structures of them (lists, tuples, dicts), or None. Lists become tuples, which all of Keras's backends take.
        batch_size: elements a batch; the last one may be smaller.
        seed: of the orders, between 0 and 2**31 - 1; None takes one from NumPy's global generator, so that
            keras.utils.set_random_seed holds.
        shuffle: False keeps the order of the sequence.
        kwargs: of keras.utils.PyDataset: workers, use_multiprocessing, max_queue_size.
    """

    def __init__(
        self,
        sequence: Any,
        batch_size: SupportsIndex = 16,
        *,
        seed: SupportsIndex | None = None,
        shuffle: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(sequence, **kwargs)
        self._batch_size = to_count("batch_size", batch_size)
        self._shuffle = to_bool("shuffle", shuffle)
        seed = to_seed(seed)
        self._rng = np.random.default_rng(np.random.randint(2**31) if seed is None else seed)
        self._order = np.arange(len(sequence))

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._batch_size)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} of {len(self)}")
        chosen = self._order[i * self._batch_size : (i + 1) * self._batch_size]
        elements = [_tuples(self._sequence[int(j)]) for j in chosen]
        return tuple(_stack(part) for part in zip(*elements, strict=True))

    def on_epoch_end(self) -> None:
        if self._shuffle:
            self._order = self._rng.permutation(len(self._order))  # a new array: workers may be reading the old one
        super().on_epoch_end()


def _tuples(structure: Any) -> Any:
    """Tuples for lists, on every level: on TensorFlow Keras takes no list of inputs or targets from a sequence."""
    return keras.tree.lists_to_tuples(structure)


def _stack(parts: Sequence[Any]) -> Any:
    """One structure of arrays (B, ...) from B structures of arrays."""
    return keras.tree.map_structure(lambda *leaves: None if leaves[0] is None else np.stack(leaves), *parts)


class DataTransform(_Wrapper):
    """A sequence whose inputs are changed by `_transform`, which a subclass defines. It returns lists as tuples.

    Args:
        sequence: of (inputs, ...), single elements or batches.
        kwargs: of keras.utils.PyDataset.
    """

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        x, *others = self._sequence[i]
        batch: tuple[Any, ...] = _tuples((self._transform(x), *others))
        return batch

    def _transform(self, x: Any) -> Any:
        raise NotImplementedError


class LambdaTransform(DataTransform):
    """A sequence whose inputs are changed by a function.

    Args:
        transform_function: inputs -> inputs.
        kwargs: of keras.utils.PyDataset.
    """

    def __init__(self, sequence: Any, transform_function: Callable[[Any], Any], **kwargs: Any) -> None:
        super().__init__(sequence, **kwargs)
        self._transform_function = transform_function

    def _transform(self, x: Any) -> Any:
        return self._transform_function(x)


def compose_sequences(sequence: Any, sequences: Iterable[tuple[Any, ...]]) -> Any:
    """Put sequences around a sequence, each given as (class, *arguments), the innermost first.

    ``compose_sequences(data, [(Batcher, 32), (LambdaTransform, lambda x: x / 255)])``
    """
    for make, *arguments in sequences:
        sequence = make(sequence, *arguments)
    return sequence
