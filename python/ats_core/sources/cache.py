"""Decoded tiles of all sources, kept up to a number of bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from ats_core._arguments import Array

DEFAULT_BYTES = 128 << 20


class _Flight:
    """A tile that a thread is decoding: `landed` is locked until it is done."""

    __slots__ = ("error", "landed", "tile")

    def __init__(self) -> None:
        self.landed = threading.Lock()
        self.landed.acquire()
        self.tile: Array | None = None
        self.error: BaseException | None = None

    def wait(self) -> Array:
        with self.landed:
            pass
        if self.tile is None:
            assert self.error is not None
            raise self.error
        return self.tile


class TileCache:
    """Least recently used tiles leave first. Threads that want the same tile wait for the one that decodes it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.forget()

    def forget(self) -> None:
        """Start anew, also after a fork, when another thread may have held the lock."""
        self._lock = threading.Lock()
        self._tiles: OrderedDict[tuple[int, Hashable], Array] = OrderedDict()
        self._flights: dict[tuple[int, Hashable], _Flight] = {}
        self._bytes = 0

    def get(self, owner: int, key: Hashable, decode: Callable[[], Array]) -> Array:
        """Return the owner's tile `key`; `decode` is called if it is not there and no other thread is at it."""
        name = (owner, key)
        with self._lock:
            tile = self._tiles.get(name)
            if tile is not None:
                self._tiles.move_to_end(name)
                return tile
            flight = self._flights.get(name)
            mine = flight is None
            if flight is None:
                flight = self._flights[name] = _Flight()
        if not mine:
            return flight.wait()
        try:
            tile = decode()
        except BaseException as error:
            with self._lock:
                self._flights.pop(name, None)
            flight.error = error
            flight.landed.release()
            raise
        with self._lock:
            self._flights.pop(name, None)
            if tile.nbytes <= self.limit:
                self._tiles[name] = tile
                self._bytes += tile.nbytes
            self._shrink()
        flight.tile = tile
        flight.landed.release()
        return tile

    def discard(self, owner: int) -> None:
        """Drop the tiles of a source that was closed."""
        with self._lock:
            for name in [name for name in self._tiles if name[0] == owner]:
                self._bytes -= self._tiles.pop(name).nbytes

    def resize(self, limit: int) -> None:
        with self._lock:
            self.limit = limit
            self._shrink()

    def _shrink(self) -> None:
        while self._bytes > self.limit:
            self._bytes -= self._tiles.popitem(last=False)[1].nbytes

    @property
    def nbytes(self) -> int:
        return self._bytes


TILES = TileCache(DEFAULT_BYTES)
os.register_at_fork(after_in_child=TILES.forget)


def get_cache_size() -> int:
    """Return how many bytes of decoded tiles this process keeps at most, of all sources together."""
    return TILES.limit


def set_cache_size(size: int) -> None:
    """Set how many bytes of decoded tiles this process keeps at most, of all sources together; 0 keeps none."""
    if size < 0:
        raise ValueError(f"size: must not be negative, got {size}")
    TILES.resize(size)
