"""Jobs on a bounded number of threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import SupportsIndex

from ats_core._arguments import to_int

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_after_fork)


def to_threads(threads: SupportsIndex | None) -> int:
    """Number of threads; None is one for every core that this process may use."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = to_int("threads", threads)
    if number < 1:
        raise ValueError(f"threads: must be at least 1, got {number}")
    return number


def run(jobs: Iterable[Callable[[], object]], threads: int) -> None:
    """Run jobs in about the order given, this thread included. After an error no more are begun, and it is raised."""
    if threads == 1:
        for job in jobs:
            job()
        return
    queue = iter(list(jobs))  # of a list, which threads share without a lock
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            job = next(queue, None)
            if job is None:
                return
            try:
                job()
            except BaseException as error:  # noqa: BLE001 (raised below, in the caller's thread)
                errors.append(error)

    with _lock:
        pool = _pools.get(threads)
        if pool is None:
            pool = _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="ats-sources")
    helpers = [pool.submit(work) for _ in range(threads - 1)]
    try:
        work()
    except BaseException as error:  # noqa: BLE001 (an interrupt: the helpers have to stop too)
        errors.append(error)
    for helper in helpers:
        if not helper.cancel():  # one that has not begun finds nothing to do
            helper.result()
    if errors:
        raise errors[0]
