"""Stopping a model while it samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from tqdm import tqdm


class StoppedError(Exception):
    """Sampling was stopped before its end."""


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
        if time.monotonic() - drawn > 1:
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
