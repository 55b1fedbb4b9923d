"""Threads of this process: how many, pools of them, and results that are computed ahead."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def shared_pool(name: str, threads: int) -> ThreadPoolExecutor:
    """Return the pool of this process with this name, which is started when it is first needed."""
    return _pool(name, threads, os.getpid())


@cache
def _pool(name: str, threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, name)  # `process`: a forked process has none of its parent's threads


def ahead(function: Callable[[int], T], depth: int) -> Callable[[int], T]:
    """Return a function of a step that gives what `function` gives, and has a thread compute the
    results of the next steps.

    Args:
        function: called with the number of a step. Its result may depend on nothing else.
        depth: number of steps that are computed ahead.
    """
    known: dict[int, Future[T]] = {}

    def get(step: int) -> T:
        wanted = range(step, step + depth + 1)
        for other in known.keys() - set(wanted):
            known.pop(other).cancel()
        for number in wanted:
            if number not in known:
                known[number] = shared_pool("ahead", 1).submit(function, number)
        return known.pop(step).result()

    return get
