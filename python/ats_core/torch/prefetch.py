"""Inference over batches, the next of which are worked on meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import SupportsIndex, TypeVar

from ._arguments import to_int

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Batch], Result], batches: Iterable[Batch], *, ahead: SupportsIndex = 1
) -> Iterator[tuple[Batch, Result]]:
    """Yield every batch with ``function(batch)``, in order; the calls for the next batches run meanwhile, in threads.

    For models in eval mode that read patches from sources: while a GPU computes the features of one batch, the patches of
    the next are read. With an rng that is made from the batch's number, results are those of a plain loop. (In training
    the next patches hang on weights that are not there yet.)

    Args:
        function: called with a batch in another thread. What PyTorch keeps for each thread it has to set itself:
            inference_mode, autocast, the current device.
        batches: for example ``enumerate(loader)``; the next one is taken in the caller's thread.
        ahead: calls beside the one whose result comes next, at least 1; as many batches more are in memory.

    Raises:
        ValueError, TypeError: ahead is no such number. What the function raises, when the result's turn has come.

    Example:
        @torch.inference_mode()
        def predict(numbered):
            number, batch = numbered
            return model(batch.x_low.cuda(), batch.sources, low_shapes=batch.low_shapes, rng=(seed, number * batch_size))

        for (number, batch), output in prefetch(predict, enumerate(loader)):
            ...
    """
    number = to_int("ahead", ahead)
    if number < 1:
        raise ValueError(f"ahead: must be at least 1, got {number}")
    return _run(function, batches, number)


def _run(function: Callable[[Batch], Result], batches: Iterable[Batch], ahead: int) -> Iterator[tuple[Batch, Result]]:
    calls: deque[tuple[Batch, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(ahead + 1, thread_name_prefix="ats-prefetch")
    try:
        for batch in batches:
            calls.append((batch, pool.submit(function, batch)))
            if len(calls) > ahead:
                first, call = calls.popleft()
                yield first, call.result()
        while calls:
            first, call = calls.popleft()
            yield first, call.result()
    finally:
        pool.shutdown(cancel_futures=True)
