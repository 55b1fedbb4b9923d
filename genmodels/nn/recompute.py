"""Recomputation of intermediate results in the backward pass (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.utils.checkpoint import checkpoint

_recomputes = False  # of all threads, because autograd may run the backward pass in another


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` without keeping its intermediate results, which the backward pass computes
    again."""
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), _recomputation()))


def is_recomputation() -> bool:
    """Return whether this is the second call of a function. Modules must not count it again."""
    return _recomputes


@contextmanager
def _recomputation() -> Iterator[None]:
    global _recomputes
    _recomputes = True
    try:
        yield
    finally:
        _recomputes = False
