"""What the package prints: plain text, and errors of the command line in one line each."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmodels.reading import in_one_line
from genmodels.writing import explained

if TYPE_CHECKING:  # importing rich takes a tenth of a second
    from rich.console import Console


LONGEST = 800
"""Largest number of characters of a message."""


class UsageError(ValueError):
    """The command line is wrong. The exit status is 2."""


def expand_home(arguments: Sequence[str]) -> list[str]:
    """Return arguments with ~ replaced by the home folder, also in --flag=~/x, where no shell does."""
    expanded = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        is_flag = bool(equals) and flag.startswith("--")
        start, path = (flag + equals, value) if is_flag else ("", argument)
        expanded.append(start + (os.path.expanduser(path) if path == "~" or path.startswith("~/") else path))
    return expanded


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
        if not exit.code or not stderr.getvalue():  # such as that of rich when nobody reads standard output
            raise
        raise UsageError(_unframed(stderr.getvalue()).replace(" --help", f" {help_flag}")) from None


def console(stderr: bool = False, **settings: Any) -> Console:
    """Return a console that prints text as it is: names and paths are never markup or emoji codes.

    It is for what needs rich, such as tables and progress bars, of which a `TextColumn` needs
    markup=False too. Everything else is printed by `say` or `print`.

    Args:
        stderr: print to standard error.
        **settings: further arguments of rich's Console.
    """
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, **settings)


def say(text: str) -> None:
    """Print `text` as it is on one line of standard error."""
    print(in_one_line(text, LONGEST), file=sys.stderr, flush=True)


CHATTY = ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
"""Loggers that warn of nothing that users can change, when torchao is installed."""


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Context of a command, in which printing to standard output cannot fail.

    Characters that a terminal cannot print become escapes, as they always do on standard error. If
    the reader of standard output has left, as `| head` does, the process ends quietly. If standard
    output is a file on a full disk, the error says so.
    """
    for library in CHATTY:
        logging.getLogger(library).setLevel(logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            _flush()
    except BrokenPipeError:
        raise SystemExit(1) from None


def _flush() -> None:
    try:
        with explained(Path("to standard output")):
            sys.stdout.flush()
    except OSError:
        # The interpreter flushes again at exit: let it write to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _unframed(text: str) -> str:
    """Return the text inside tyro's frame, without its title. The frame may be ASCII, and the text
    coloured."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    blocks = re.split(r"^[╭╰].*$|^[ │|]*[─-]{3,}[ │|]*$", plain, flags=re.MULTILINE)
    sentences = [
        " ".join(line.strip("│| ") for line in block.strip().splitlines()) for block in blocks if block.strip()
    ]
    untitled = sentences if plain.startswith("╭") else sentences[1:]
    text = ". ".join(" ".join(sentence.split()).rstrip(".") for sentence in untitled)
    return re.sub(r"^Error parsing [A-Z]\w+: ", "", text)  # the name of a class, which says nothing to users


@contextlib.contextmanager
def without_warnings(library: str = "diffusers") -> Iterator[None]:
    """Context in which a library prints no warnings, which are many lines; faults are raised."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
