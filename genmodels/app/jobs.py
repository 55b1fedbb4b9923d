"""Jobs of visitors: one at a time, with progress, until they are done or cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Event, Lock
from typing import Any

from genmodels.stopping import image_progress, stoppable

_ONE = Lock()
"""Held by the job that computes. Its hooks and the mode of its models are its own."""
_RUNNING: dict[str, Event] = {}
"""What stops the job of a session, by the name of the session."""


@contextmanager
def job(session: str, models: Sequence[Any], report: Callable[[int], None]) -> Iterator[None]:
    """Context of a job, in which `models` report progress and can be stopped.

    Args:
        session: name of the visitor's session, which has one job at a time.
        models: the models that compute.
        report: takes the number of blocks of networks that were evaluated, five times per second.

    Raises:
        StoppedError: from an evaluation of a network after `cancel(session)`.
    """
    stop = _RUNNING[session] = Event()
    try:
        with _ONE, ExitStack() as hooks:
            blocks, reported = 0, 0.0

            def until() -> bool:
                nonlocal blocks, reported
                blocks += 1
                if time.monotonic() - reported > 0.2:
                    reported = time.monotonic()
                    report(blocks)
                return stop.is_set()

            for model in models:
                hooks.enter_context(stoppable(model, image_progress(0, "", shown=False), until))
            yield
    finally:
        if _RUNNING.get(session) is stop:
            del _RUNNING[session]


def cancel(session: str) -> bool:
    """Stop the job of a session, if it has one: return whether it has."""
    stop = _RUNNING.get(session)
    if stop is not None:
        stop.set()
    return stop is not None
