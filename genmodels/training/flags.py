"""The short help of a training command: the flags that most people use, in groups."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from contextlib import suppress
from dataclasses import field, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

COMMON = {
    "data": ("data", "root", "size", "crop"),
    "run": ("output", "resume", "dry_run", "seed", "mixed_precision"),
    "length": ("steps", "minutes"),
    "optimisation": ("batch_size", "optim.lr", "ema"),
    "model": (),
    "logging": ("sample_every", "evaluate_every"),
}
"""Flags that --help shows, by group. Those of `Recipe.shown` are added under "model"."""
CONFIG = (
    "File to read settings from, such as config.yaml of an earlier run, or the name of a preset, such as "
    "cifar10-32. Flags take precedence."
)


def show_common_flags(recipe: Any, prog: str, description: str) -> None:
    """Print the help of a training command with its common flags only.

    Args:
        recipe: instance whose values are the defaults.
        prog: the command.
        description: text above the flags.
    """
    groups = []
    for title, names in COMMON.items():
        names = (*names, *(recipe.shown if title == "model" else ()))
        fields = [_flag(recipe, name) for name in names]
        if title == "run":
            fields.insert(0, ("config", Annotated[Path | None, tyro.conf.arg(help=CONFIG)], field(default=None)))
        group: Any = make_dataclass(title, fields, frozen=True)
        group.__doc__ = ""
        omit: Any = tyro.conf.OmitArgPrefixes
        groups.append((title, omit[group], field(default=group())))
    everything: Any = make_dataclass("Flags", groups, frozen=True)
    text = f"{description} This lists the common flags; --help-all lists all of them."
    with suppress(SystemExit):
        tyro.cli(everything, args=["--help"], prog=prog, description=text)


def _flag(recipe: Any, path: str) -> tuple[str, Any, Any]:
    """Return the setting at a dotted path as a field of a dataclass: name, type, default."""
    *outer, name = path.split(".")
    owner = recipe
    for part in outer:
        owner = getattr(owner, part)
    hint = typing.get_type_hints(type(owner), include_extras=True)[name]
    flag = tyro.conf.arg(name=path.replace("_", "-"), help=field_help(type(owner), name))
    return path.replace(".", "_"), Annotated[hint, flag], field(default=getattr(owner, name))


def field_help(kind: type, name: str) -> str:
    """Return the docstring of a field: the string below it in the source of the dataclass."""
    for owner in kind.__mro__:
        if not dataclasses.is_dataclass(owner) or name not in inspect.get_annotations(owner):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        except OSError:  # made at run time
            continue
        statements = getattr(body, "body", [])
        for here, after in pairwise(statements):
            named = isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name) and here.target.id == name
            if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return " ".join(str(after.value.value).split())
    return ""
