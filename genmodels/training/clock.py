"""Elapsed time, progress, and what stops a run early. All ranks agree on all three."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import torch
from accelerate.utils import reduce

from genmodels.training.launch import launcher_has_ended, launchers

UNMEASURED_END = 0.05
"""Fraction of a --minutes budget that is reserved for the work after the last step (calibration,
samples, checkpoint) until that work has been timed."""


@dataclass
class Stop:
    """Whether a run should stop early. The loop asks between steps, and while images are sampled."""

    reason: str = ""
    """What stops the run; empty while nothing does."""
    launchers: list[int] = field(default_factory=launchers)

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived, or the launcher of this process has ended."""
        if not self.reason and launcher_has_ended(self.launchers):
            self.reason = "the end of its launcher"
        return bool(self.reason)


@contextmanager
def stop_on_signal(stop: Stop) -> Iterator[None]:
    """Context manager in which SIGTERM and Ctrl-C only set the flag `stop`.

    The loop can then finish its step and save a checkpoint. A Ctrl-C three seconds or more after
    the first signal stops immediately. An earlier one is treated as a repetition of the first
    signal, because a launcher forwards what the terminal has already sent to every process.
    """
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield
        return
    first = float("inf")

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGINT and time.monotonic() - first >= 3:
            raise KeyboardInterrupt
        if number == signal.SIGINT and not stop.reason and os.environ.get("RANK", "0") == "0":
            # Not print(), which a signal handler must not call while it is printing.
            os.write(2, b"\nstopping with a checkpoint; Ctrl-C again ends the run at once, without one\n")
        first = min(first, time.monotonic())
        stop.reason = "a signal"

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def too_short(minutes: float, seconds: float) -> ValueError:
    """Return the error of a --minutes budget of which start-up, which took `seconds`, leaves
    nothing."""
    enough = math.ceil(2 * seconds / 6) / 10
    return ValueError(
        f"--minutes {minutes:g} is too short: start-up alone took {seconds:.0f} seconds, which leaves no time for a "
        f"step; give at least --minutes {enough:g}"
    )


class Clock:
    """Elapsed training time and progress, as measured on rank 0.

    With --steps, progress is the fraction of the steps that are done. With --minutes M, the last
    calibration, sample grid and checkpoint also have to fit into the M minutes. Their cost is
    estimated from how long they took earlier in the run, and progress is the elapsed time divided
    by the time that remains for training after subtracting this estimate. A step that would not end
    in time is not begun.

    Args:
        steps, minutes: the budget. Exactly one of them is given.
        before: seconds spent before the loop, by this process and by the run that is resumed.
        device: device on which collectives need their tensors.
        main: whether this is rank 0.
    """

    def __init__(self, steps: int | None, minutes: float | None, before: float, device: torch.device, main: bool):
        self.steps = steps
        self.budget = None if minutes is None else 60 * minutes
        self.device = device
        self.main = main
        self._origin = time.monotonic() - before
        self._furthest = 0.0
        self._steps: list[float] = []

    def now(self) -> float:
        """Return the seconds of training so far, on the clock of this rank."""
        return time.monotonic() - self._origin

    def took(self, seconds: float) -> None:
        """Record the duration of an optimiser step on this rank."""
        self._steps = [*self._steps[-1:], seconds]

    def read(self, step: int, end: float | None, stop: bool) -> tuple[float, float, bool]:
        """Compute elapsed time and progress, equal on every rank. Every rank must call this.

        Args:
            step: number of optimiser steps done.
            end: estimated seconds of the work after the last step; None before it has been timed.
            stop: whether this rank should stop.

        Returns:
            Elapsed seconds, progress in [0, 1], and whether any rank should stop.
        """
        elapsed = self.now()
        elapsed, by_time, stops = self.agree(elapsed, self._by_time(elapsed, end), any_rank=stop)
        progress = by_time if self.steps is None else min(1.0, step / self.steps)
        return elapsed, progress, stops > 0

    def agree(self, *values: float, any_rank: bool = False) -> list[float]:
        """Return the `values` of rank 0, followed by the number of ranks where `any_rank` is True.

        Every rank must call this.
        """
        ours = [value if self.main else 0.0 for value in values]
        return reduce(torch.tensor([*ours, float(any_rank)], dtype=torch.float32, device=self.device), "sum").tolist()

    def _by_time(self, elapsed: float, end: float | None) -> float:
        if self.budget is None:
            return 0.0
        # With a margin: calibrating on more images than were timed can cost more per image.
        reserve = UNMEASURED_END * self.budget if end is None else min(1.5 * end + 0.005 * self.budget, self.budget / 2)
        # A step that is much slower than its neighbours, such as one that compiles, says little about the next one.
        reserve += min(self._steps, default=0.0)
        # The estimate changes during the run; progress must never decrease.
        self._furthest = max(self._furthest, min(1.0, elapsed / max(1e-9, self.budget - reserve)))
        return self._furthest
