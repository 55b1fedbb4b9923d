"""Errors of the command line, in one line each."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator


class UsageError(ValueError):
    """The command line is wrong. The exit status is 2."""


@contextlib.contextmanager
def one_line_refusals(help_flag: str = "--help") -> Iterator[None]:
    """Context in which the framed error messages of tyro become a UsageError of one line.

    Args:
        help_flag: the flag that the message names for a list of all flags.
    """
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            yield
    except SystemExit as exit:
        if not exit.code:
            raise
        raise UsageError(_unframed(stderr.getvalue()).replace(" --help", f" {help_flag}")) from None


@contextlib.contextmanager
def quiet_when_nobody_reads() -> Iterator[None]:
    """Context that ends the process quietly if the reader of standard output has left, as `| head`
    does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes again at exit: let it write to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _unframed(text: str) -> str:
    """Return the text inside tyro's frame, without its title. The frame may be ASCII, and the text
    coloured."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    blocks = re.split(r"^[╭╰].*$|^[ │|]*[─-]{3,}[ │|]*$", plain, flags=re.MULTILINE)
    sentences = [
        " ".join(line.strip("│| ") for line in block.strip().splitlines()) for block in blocks if block.strip()
    ]
    untitled = sentences if plain.startswith("╭") else sentences[1:]
    return ". ".join(" ".join(sentence.split()).rstrip(".") for sentence in untitled)
