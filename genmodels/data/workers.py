"""Work that threads of this process, or other processes, share out among them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from genmodels.data.threads import cores

A = TypeVar("A")
B = TypeVar("B")


def completed(work: Callable[[A], B], items: Sequence[A], workers: int | None = None) -> Iterator[B]:
    """Yield `work(item)` of each item when it is done, in any order.

    Few results exist at a time, however many items there are.

    Args:
        work: the function. Processes need one that can be pickled; it is sent to each of them once.
        items: its arguments.
        workers: number of processes. None: one thread per core of this process.

    Raises:
        OSError: if a process was killed.
    """
    pool: Executor
    call: Callable[[A], B] = work
    if workers is None or workers == 1:
        pool, running = ThreadPoolExecutor(workers or cores()), workers or cores()
    else:
        # A process that has threads, as torch does, cannot be forked.
        context = multiprocessing.get_context("spawn")
        pool, running, call = ProcessPoolExecutor(workers, context, _begin, (work,)), workers, _call
    remaining, waiting = iter(items), set[Future[B]]()
    try:
        waiting.update(pool.submit(call, item) for item in islice(remaining, 2 * running))
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting.update(pool.submit(call, item) for item in islice(remaining, len(done)))
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise OSError("a process that decodes images was killed (out of memory?): run the same command again") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any], Any] | None = None
"""What this process does for another one."""


def _begin(work: Callable[[Any], Any]) -> None:
    """Prepare a process."""
    global _work
    _work = work
    warnings.simplefilter("ignore")  # Pillow's, about images that `decode` refuses
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent ends, also if that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Any) -> Any:
    assert _work is not None
    return _work(item)
