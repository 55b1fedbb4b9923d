"""A wrong command line, said in one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator


class UsageError(ValueError):
    """The command line itself is wrong: exit status 2."""


@contextlib.contextmanager
def one_line_refusals() -> Iterator[None]:
    """Inside, tyro's framed messages become a UsageError on one line, without frame and title."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            yield
    except SystemExit as exit:
        if not exit.code:
            raise
        raise UsageError(_unframed(stderr.getvalue())) from None


def _unframed(text: str) -> str:
    """What stands in tyro's frame, drawn in lines or in ASCII, with or without colour; its title says nothing new."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    blocks = re.split(r"^[╭╰].*$|^[ │|]*[─-]{3,}[ │|]*$", plain, flags=re.MULTILINE)
    sentences = [
        " ".join(line.strip("│| ") for line in block.strip().splitlines()) for block in blocks if block.strip()
    ]
    untitled = sentences if plain.startswith("╭") else sentences[1:]
    return ". ".join(" ".join(sentence.split()).rstrip(".") for sentence in untitled)
