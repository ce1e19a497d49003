"""Preparing what comes next while the network computes, and putting it into batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Return function(item) in the order of the items, computed by `workers` threads before it is needed.

    At most two results a worker wait. 0 workers: each is computed when it is asked for. An exception of `function` is
    raised where its result would have come. Decoders, OpenCV and NumPy release Python's lock while they work.
    """
    if not workers:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="detseg-prefetch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(items: Iterable[Item], size: int, key: Callable[[Item], Hashable]) -> Iterator[list[Item]]:
    """Yield neighbours of one key together, at most `size`."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) == size or key(batch[0]) != key(item)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
