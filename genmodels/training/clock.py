"""When a run ends: its clock, the share of it that is done, and signals to stop. All ranks agree on all three."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from accelerate.utils import reduce

UNMEASURED_END = 0.05
"""Share of a --minutes budget kept for the end of the run before its parts have been timed."""


@dataclass
class Stop:
    """Set by the first SIGTERM or Ctrl-C; the loop looks at it between steps."""

    requested: bool = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Inside, SIGTERM and Ctrl-C only set the yielded flag, so that a step is finished and a checkpoint written.

    A Ctrl-C three seconds or more after the first signal stops at once. (Sooner ones are taken for the first:
    a launcher passes on the signal that the terminal has already sent to every process.)
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return
    first = float("inf")

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGINT and time.monotonic() - first >= 3:
            raise KeyboardInterrupt
        first = min(first, time.monotonic())
        stop.requested = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Clock:
    """Elapsed training time and progress, decided by rank 0.

    A run of --steps is done when its steps are. A run of --minutes M is done early enough for its end (the last
    calibration, grid and checkpoint) to fit into the M minutes: the end's cost is estimated from how long the same
    things took earlier in the run, and progress is elapsed time over what remains for training.

    Args:
        steps, minutes: the budget; exactly one is given.
        before: seconds already spent, by this process before the loop and by the run that is continued.
        device: where collectives need their tensors.
        main: whether this is rank 0.
    """

    def __init__(self, steps: int | None, minutes: float | None, before: float, device: torch.device, main: bool):
        self.steps = steps
        self.budget = None if minutes is None else 60 * minutes
        self.device = device
        self.main = main
        self._origin = time.monotonic() - before
        self._furthest = 0.0

    def now(self) -> float:
        """Seconds of training so far, on this rank's own clock."""
        return time.monotonic() - self._origin

    def read(self, step: int, end: float | None, stop: bool) -> tuple[float, float, bool]:
        """(elapsed seconds, progress in [0, 1], whether any rank was told to stop), the same on every rank.

        Args:
            step: optimiser steps done.
            end: estimated seconds for the end of the run; None when nothing has been timed yet.
            stop: whether this rank was told to stop.
        """
        elapsed = self.now()
        elapsed, by_time, stops = self.agree(elapsed, self._by_time(elapsed, end), any_rank=stop)
        progress = by_time if self.steps is None else min(1.0, step / self.steps)
        return elapsed, progress, stops > 0

    def agree(self, *values: float, any_rank: bool = False) -> list[float]:
        """Rank 0's `values`, and after them the number of ranks where `any_rank` is set. Every rank must call it."""
        ours = [value if self.main else 0.0 for value in values]
        return reduce(torch.tensor([*ours, float(any_rank)], dtype=torch.float32, device=self.device), "sum").tolist()

    def _by_time(self, elapsed: float, end: float | None) -> float:
        if self.budget is None:
            return 0.0
        # Generous: a fit to more images than were timed takes more than its share.
        reserve = UNMEASURED_END * self.budget if end is None else min(1.5 * end + 0.005 * self.budget, self.budget / 2)
        # Estimates of the end change; progress must not run backwards with them.
        self._furthest = max(self._furthest, min(1.0, elapsed / (self.budget - reserve)))
        return self._furthest
