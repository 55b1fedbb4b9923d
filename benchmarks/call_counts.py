"""Count the files and functions of genmodels that one training step, one sample and one evaluation pass through.

    python benchmarks/call_counts.py

The counts measure how much a reader has to know to follow each of them. They are made on a latent
model: a DiT over a VAE.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

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
