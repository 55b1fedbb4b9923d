"""What a run says while it trains: metrics.jsonl, TensorBoard, and a progress line. Only the main process writes."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from genmodels.training.checkpoint import State
from genmodels.training.recipe import Recipe

METRICS = "metrics.jsonl"
QUIET_SECONDS = 30.0
"""Where there is no terminal to draw a bar on, one plain line at most this often."""


class RunLog:
    """Averages scalars over the steps between two lines, over micro-batches and over ranks, and writes them.

    Args:
        accelerator: of the run; its trackers get every line.
        output: the run folder.
        step: the step the run starts from; lines of later steps, left by an interrupted run, are dropped.
    """

    def __init__(self, accelerator: Accelerator, output: Path, step: int):
        self.accelerator = accelerator
        self.path = output / METRICS
        self.last: dict[str, float | None] = {}
        self.console = Console(stderr=True, quiet=not accelerator.is_main_process)
        self._sums: dict[str, Tensor] = {}
        self._notes: dict[str, float | None] = {}
        self._steps = 0
        self._images = 0
        self._step = step
        self._began = self._since = time.monotonic()
        self._said = 0.0
        if accelerator.is_main_process:
            self._drop_lines_after(step)
        bar = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        # Drawn when there is news, not by a thread that takes time from training.
        self._bar = Progress(*bar, TextColumn("{task.fields[news]}"), console=self.console, auto_refresh=False)
        self._task = self._bar.add_task("training", total=1.0, news="")
        if self.console.is_terminal:
            self._bar.start()

    def say(self, line: str) -> None:
        """One line for the person who started the run."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def add(self, values: Mapping[str, Tensor], images: int) -> None:
        """Takes in the scalars of one optimiser step, without waiting for the device; `images` were seen in it."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        self._images += images

    def note(self, name: str, value: float | None) -> None:
        """Takes in a number of the present step that is no average; None where there should be one."""
        self._notes[name] = value

    def largest(self, name: str) -> float:
        """The largest value that `name` has had in the lines so far; 0 where it has had none."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return max((json.loads(line).get(name) or 0.0 for line in lines), default=0.0)

    def pause(self, seconds: float) -> None:
        """Leaves time not spent on steps out of images/s."""
        self._since += seconds

    def write(self, state: State, recipe: Recipe, progress: float, first: float) -> None:
        """One line of metrics: averages since the last one. Every rank must call it; without new steps it does nothing.

        Args:
            state: where the run stands.
            recipe: for the batch size and the length of the run.
            progress: share of the run that is done.
            first: the share that was done when this process started training.
        """
        if state.step == self._step:
            return
        means: dict[str, float | None] = {}
        if self._sums:
            names = sorted(self._sums)
            mean = torch.stack([self._sums[name].float() for name in names]) / self._steps
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
        with self.path.open("a") as file:
            file.write(json.dumps(self.last) + "\n")
        curves = {name: value for name, value in self.last.items() if value is not None and name != "step"}
        self.accelerator.log(curves, step=state.step)
        left = (time.monotonic() - self._began) * (1 - progress) / max(1e-9, progress - first)
        total = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.minutes:g} minutes"
        self._show(f"step {state.step:,} of {total}", progress, speed, left)

    def close(self) -> None:
        """Ends the progress bar and the trackers."""
        if self.console.is_terminal:
            self._bar.stop()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _show(self, where: str, progress: float, speed: float, left: float) -> None:
        losses = ", ".join(f"{n} {v:.4g}" for n, v in self.last.items() if n.endswith("loss") and v is not None)
        news = f"{where}, {losses}, {speed:,.0f} images/s, {in_words(left)} left"
        if self.console.is_terminal:
            self._bar.update(self._task, completed=progress, news=news, refresh=True)
        elif time.monotonic() - self._said >= QUIET_SECONDS:
            self._said = time.monotonic()
            self.say(f"{progress:4.0%} {news}")

    def _drop_lines_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept: list[str] = []
        for line in self.path.read_text().splitlines():
            try:
                values = json.loads(line)
                if values["step"] <= step:
                    kept.append(line + "\n")
                    self.last = values
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was killed while it wrote
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(kept))
        os.replace(partial, self.path)


def in_words(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
