"""Work on many images at once: in threads, in order, in bounded memory."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cpu_count() -> int:
    """Processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


def map_ordered(function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None) -> Iterator[R]:
    """Apply ``function`` in threads; yield results in the order of ``items``.

    Threads are enough: decoding, resizing, hashing and inference all release the interpreter's lock. At most four
    items a worker are under way, so an endless ``items`` is fine. What ``function`` raises is raised here, in its turn;
    leaving the loop early cancels what has not started.

    Args:
        function: called from several threads at once.
        items: consumed only as fast as results are taken.
        workers: number of threads; the number of processors when None.
    """
    workers = workers or cpu_count()
    pending: deque[Future[R]] = deque()
    source = iter(items)
    executor = ThreadPoolExecutor(workers, thread_name_prefix="tellapart")
    try:
        for item in itertools.islice(source, 4 * workers):
            pending.append(executor.submit(function, item))
        while pending:
            result = pending.popleft().result()
            for item in itertools.islice(source, 1):
                pending.append(executor.submit(function, item))
            yield result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut ``items`` into lists of ``size``; the last may be shorter."""
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch
