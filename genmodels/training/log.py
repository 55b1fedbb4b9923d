"""Logging of a run: metrics.jsonl, the tracker and a progress bar. Only the main process writes."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from genmodels.reading import read_json_lines
from genmodels.training.checkpoint import State
from genmodels.training.folder import METRICS
from genmodels.training.recipe import Recipe
from genmodels.training.tracking import Tracking
from genmodels.usage import console
from genmodels.writing import explained, is_full, write_parts

STATUS = "{task.fields[status]}"
QUIET_SECONDS = 30.0
"""Shortest time between two progress lines if the output is not a terminal."""


class RunLog:
    """Log that averages scalars over steps and ranks and writes one line of metrics at a time.

    Args:
        accelerator: accelerator of the run. Its tracker receives every line.
        output: the run folder.
        state: progress of the run. Lines after `state.last_line`, which an interrupted run has written,
            are removed from metrics.jsonl: the next line averages their steps too.
        quiet: print nothing.
    """

    def __init__(self, accelerator: Accelerator, output: Path, state: State, quiet: bool = False):
        self.accelerator = accelerator
        self.path = output / METRICS
        self.tracking = Tracking(accelerator, self.say)
        self.last: dict[str, float | None] = {}
        self.console = console(stderr=True, quiet=quiet or not accelerator.is_main_process)
        device = accelerator.device
        self._sums = {n: torch.tensor(math.nan if x is None else x, device=device) for n, x in state.sums.items()}
        self._notes: dict[str, float | None] = {}
        self._steps = state.summed
        self._images = 0
        self._step = state.last_line
        self._began = self._since = time.monotonic()
        self._printed = 0.0
        if accelerator.is_main_process:
            self._drop_lines_after(self._step)
        first, *others = (TextColumn(text, markup=False) for text in ("training", "{task.percentage:>3.0f}%", STATUS))
        # Drawn only when there is a new line: a refresh thread would take time from training.
        self._bar = Progress(first, BarColumn(), *others, console=self.console, auto_refresh=False)
        self._task = self._bar.add_task("training", total=1.0, status="")
        if self.console.is_terminal:
            self._bar.start()

    def say(self, line: str) -> None:
        """Print one line to standard error, on the main process only."""
        self.console.print(line, soft_wrap=True)

    def add(self, values: Mapping[str, Tensor], images: int) -> None:
        """Add the scalars of one optimiser step to the averages, without synchronising the device.

        Args:
            values: scalar tensors by name.
            images: number of images in the step, over all ranks.
        """
        for name, value in values.items():
            value = value.float()  # as they are restored from a checkpoint
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        self._images += images

    def note(self, name: str, value: float | None) -> None:
        """Add a number to the next line that is not averaged. None marks a failed measurement."""
        self._notes[name] = value

    def largest(self, name: str) -> float:
        """Return the largest value of `name` in metrics.jsonl so far, or 0 if it has no values."""
        values = (line.get(name) for line in read_json_lines(self.path))
        return max((value for value in values if isinstance(value, (int, float))), default=0.0)

    def pause(self, seconds: float) -> None:
        """Exclude `seconds`, which were not spent on training steps, from images/s."""
        self._since += seconds

    def write(self, state: State, recipe: Recipe, progress: float, first: float) -> None:
        """Write a line of metrics with the averages since the last line. Every rank must call this.

        It does nothing if there was no step since the last line.

        Args:
            state: progress of the run.
            recipe: settings of the run, for the batch size and the length.
            progress: fraction of the run that is done.
            first: fraction that was done when this process started training.
        """
        if state.step == self._step:
            return
        means: dict[str, float | None] = {}
        if self._sums:
            names = sorted(self._sums)
            mean = torch.stack([self._sums[name] for name in names]) / self._steps
            numbers = reduce(mean, "mean").tolist()
            means = {n: x if math.isfinite(x) else None for n, x in zip(names, numbers, strict=True)}
        speed = self._images / max(1e-9, time.monotonic() - self._since)
        counts: dict[str, float | None] = {
            "step": state.step,
            "elapsed": round(state.elapsed, 3),
            "images": state.step * recipe.batch_size,
            "images_per_second": round(speed, 1),
            "skipped": state.skipped,
        }
        self.last = counts | means | self._notes
        self._notes = {}
        self._sums, self._steps, self._images, self._since = {}, 0, 0, time.monotonic()
        self._step = state.step
        if not self.accelerator.is_main_process:
            return
        with explained(self.path), self.path.open("a") as file:
            file.write(json.dumps(self.last) + "\n")
        curves = {name: value for name, value in self.last.items() if value is not None and name != "step"}
        self.tracking.numbers(curves, state.step)
        left = (time.monotonic() - self._began) * (1 - progress) / max(1e-9, progress - first)
        total = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.minutes:g} minutes"
        self._show(f"step {state.step:,} of {total}", progress, speed, left)

    def save(self, state: State) -> None:
        """Store the sums for the next line in `state`, averaged over ranks. Every rank must call this."""
        names = sorted(self._sums)
        sums = reduce(torch.stack([self._sums[name] for name in names]), "mean").tolist() if names else []
        state.logged, state.summed = self._step, self._steps
        state.sums = {n: x if math.isfinite(x) else None for n, x in zip(names, sums, strict=True)}

    def close(self) -> None:
        """Stop the progress bar and close the tracker."""
        if self.console.is_terminal:
            self._bar.stop()
        self.tracking.finish()

    def _show(self, where: str, progress: float, speed: float, left: float) -> None:
        losses = ", ".join(f"{n} {v:.4g}" for n, v in self.last.items() if n.endswith("loss") and v is not None)
        status = f"{where}, {losses}, {speed:,.0f} images/s, {in_words(left)} left"
        if self.console.is_terminal:
            self._bar.update(self._task, completed=progress, status=status, refresh=True)
        elif time.monotonic() - self._printed >= QUIET_SECONDS:
            self._printed = time.monotonic()
            self.say(f"{progress:4.0%} {status}")

    def _drop_lines_after(self, step: int) -> None:
        def kept() -> Iterator[str]:
            for line in read_json_lines(self.path, self.say):
                if _step_in(line) <= step:
                    self.last = line
                    yield json.dumps(line) + "\n"

        if self.path.exists():
            write_parts(self.path, (line.encode() for line in kept()))


def _step_in(line: dict[str, Any]) -> float:
    """Return the step of a line of metrics; infinity if it has none."""
    step = line.get("step")
    return step if isinstance(step, (int, float)) else math.inf


@contextmanager
def reporting_full_disk(output: Path) -> Iterator[None]:
    """Context in which a full disk ends training with one line about the run folder `output`.

    TensorBoard writes in a thread. When this fails, the error is raised again in the main thread,
    so that the traceback of the thread adds nothing.
    """
    report = threading.excepthook

    def report_others(failure: threading.ExceptHookArgs) -> None:
        if failure.exc_value is None or not is_full(failure.exc_value):
            report(failure)

    threading.excepthook = report_others
    try:
        with explained(output):
            yield
    finally:
        threading.excepthook = report


def in_words(seconds: float) -> str:
    """Format a duration as minutes or hours: 3725 -> "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
