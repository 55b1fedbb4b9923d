"""Progress of a model that samples, and stopping it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from tqdm import tqdm

QUIET = 10.0
"""Seconds between two lines of progress if standard error is not a terminal."""


class StoppedError(Exception):
    """Sampling was stopped before its end."""


def image_progress(total: int, title: str, shown: bool = True) -> tqdm[Any]:
    """Return a progress bar of `total` images, which prints lines if standard error is no terminal."""
    interval = 0.0 if sys.stderr.isatty() else QUIET
    return tqdm(
        total=total, desc=title, unit=" images", disable=not shown, delay=interval, mininterval=max(0.1, interval)
    )


@contextmanager
def stoppable(model: nn.Module, bar: tqdm[Any], until: Callable[[], bool] | None = None) -> Iterator[None]:
    """Context in which every evaluation of a network keeps the time in a progress bar up to date,
    and raises StoppedError if `until()` is True."""
    if bar.disable and until is None:
        yield
        return
    drawn = time.monotonic()

    def check(*_: Any) -> None:
        nonlocal drawn
        if until is not None and until():
            raise StoppedError
        if not bar.disable and time.monotonic() - drawn > max(1.0, bar.mininterval):
            drawn = time.monotonic()
            bar.refresh()

    # Blocks, but not the layers in them: a check takes time.
    parts = [part for name, part in model.named_modules() if "." not in name or next(part.children(), None)]
    hooks = [part.register_forward_pre_hook(check) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
