"""Count the files and functions that a training step, a sample and an evaluation pass through.

    python benchmarks/call_counts.py

Only files and functions of genmodels are counted. The counts measure how much code a reader has to
know to follow each operation. The model is a DiT over a VAE.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import genmodels

PACKAGE = str(Path(genmodels.__file__).parent)


def passed_through(call: Callable[[], Any]) -> tuple[int, int]:
    """Return the number of files and of functions of genmodels that `call` passes through."""
    functions: set[tuple[str, str, int]] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            functions.add((code.co_filename, code.co_name, code.co_firstlineno))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len({file for file, _, _ in functions}), len(functions)
