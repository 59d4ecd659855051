"""Numbers that stand for sources where only tensors go: in TensorFlow's graphs and in Keras's models.

The registry holds sources weakly: a handle is good for as long as someone else, a `SourceBatch` or a dataset, holds its
source, and nothing has to be given back. Handles mean nothing in other processes, into which sources themselves are sent;
only a forked child knows those that its parent had made. Two processes never give out the same number, so that a handle
from elsewhere is an error and no other source.
"""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ats_core._arguments import to_int64
from ats_core.sources.batch import SourceBatch
from ats_core.sources.source import Source


class _Registry:
    """Handles of this process: 31 random bits, which are others in every process, and a count."""

    def __init__(self) -> None:
        self.sources: weakref.WeakValueDictionary[int, Source] = weakref.WeakValueDictionary()
        self.handles: weakref.WeakKeyDictionary[Source, int] = weakref.WeakKeyDictionary()
        self.start()

    def start(self) -> None:
        self.lock = threading.Lock()
        self.next = secrets.randbits(31) << 32

    def add(self, source: Source) -> int:
        with self.lock:
            handle = self.handles.get(source)
            if handle is None:
                handle = self.handles[source] = self.next
                self.sources[handle] = source
                self.next += 1
            return handle


_REGISTRY = _Registry()
os.register_at_fork(after_in_child=_REGISTRY.start)


def to_handles(sources: Iterable[Source]) -> NDArray[np.int64]:
    """Numbers for sources, to be given to a model in their place: int64 (B,), the same for a source every time.

    Hold on to the sources: the numbers do not. See `from_handles`.

    Raises:
        TypeError: something is no source (a path's source would be gone again at once).
    """
    members = list(sources)
    for source in members:
        if not isinstance(source, Source):
            raise TypeError(f"sources: must be open sources (`open_source`, `SourceBatch`), got {source!r}")
    return np.array([_REGISTRY.add(source) for source in members], np.int64)


def from_handles(handles: ArrayLike) -> SourceBatch:
    """The sources that numbers stand for.

    Args:
        handles: int64 (B,), from `to_handles`.

    Raises:
        ValueError: a number stands for no source that this process has; the sources do not go together.
    """
    numbers = to_int64("handles", handles)
    if numbers.ndim != 1:
        raise ValueError(f"handles: must have the shape (B,), got {numbers.shape}")
    found = [(number, _REGISTRY.sources.get(number)) for number in numbers.tolist()]
    for number, source in found:
        if source is None:
            raise ValueError(
                f"handles: {number} stands for no source that is there: nothing holds its source any more (keep the "
                "SourceBatch or the dataset), or it comes from another process"
            )
    return SourceBatch(source for _, source in found if source is not None)
