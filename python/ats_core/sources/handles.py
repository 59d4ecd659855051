"""What sources hold open: not more than a number of files at a time, and nothing that a parent process opened.

A source that comes from another process again and again, as from a DataLoader's workers, borrows what is open from a
source that stays here (`LENDERS`): its file is opened once, however often it comes.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol

LIMIT = 128


class Holder(Protocol):
    """A source, as seen from here."""

    def _release(self) -> None:
        """Close what is open and not in use."""

    def _abandon(self) -> object:
        """In a forked child: forget locks and handles, and return the handle."""


class _Open:
    """Sources in the order in which they last used what they have open."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.order: OrderedDict[int, weakref.ref[Any]] = OrderedDict()
        self.latest = -1

    def touch(self, token: int, holder: Holder) -> None:
        if token == self.latest:
            return
        idle: list[Any] = []
        with self.lock:
            self.latest = token
            self.order[token] = weakref.ref(holder)
            self.order.move_to_end(token)
            while len(self.order) > LIMIT:
                idle.append(self.order.popitem(last=False)[1]())
        for other in idle:
            if other is not None:
                other._release()

    def forget(self, token: int) -> None:
        with self.lock:
            self.order.pop(token, None)
            self.latest = -1


class _Lenders:
    """The LIMIT sources that were last sent here, by what tells them apart."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.table: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self.lock:
            lender = self.table.get(key)
            if lender is None:
                lender = self.table[key] = make()
            self.table.move_to_end(key)
            oldest = self.table.popitem(last=False) if len(self.table) > LIMIT else None
        del oldest  # closes its file, unless someone is still borrowing
        return lender


OPEN = _Open()
LENDERS = _Lenders()
ALIVE: weakref.WeakSet[Any] = weakref.WeakSet()
_graveyard: list[object] = []


def _after_fork() -> None:
    """A child shares its parent's files, positions included, and has none of its threads: open everything again.

    What the parent had open is neither used nor closed here; a library may wait for its threads when it closes.
    """
    OPEN.__init__()  # type: ignore[misc]
    LENDERS.lock = threading.Lock()
    _graveyard.extend(holder._abandon() for holder in list(ALIVE))


os.register_at_fork(after_in_child=_after_fork)
atexit.register(LENDERS.table.clear)  # while the libraries that close files are still there
