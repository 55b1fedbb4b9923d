"""The `genmodels` command: parses a command line, runs it, and reports errors in one line."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from tyro.extras import SubcommandApp

from genmodels import __version__
from genmodels.cli import (
    app,
    ask,
    data,
    directions,
    editing,
    evaluation,
    exchange,
    info,
    models,
    prefer,
    prune,
    retrieval,
    sample,
    scaling,
    train,
)
from genmodels.usage import UsageError, expand_home, one_line_refusals, printing, say

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "sample": sample.sample,
    "reconstruct": editing.reconstruct,
    "inpaint": editing.inpaint,
    "interpolate": editing.interpolate,
    "edit": editing.edit,
    "variations": editing.variations,
    "traverse": directions.traverse,
    "trajectory": sample.trajectory,
    "ask": ask.ask,
    "describe": ask.describe,
    "retrieve": retrieval.retrieve,
    "embed": retrieval.embed,
    "evaluate": evaluation.evaluate,
    "compare": evaluation.compare,
    "sweep": scaling.sweep,
    "scaling": scaling.scaling,
    "prefer": prefer.prefer,
    "average": train.average,
    "prune": prune.prune,
    "export": exchange.export,
    "import": exchange.import_,
    "info": info.info,
    "models": models.models,
    "app": app.app,
    "demo": train.demo,
}
DATA_COMMANDS: dict[str, Callable[..., None]] = {
    "pack": data.pack,
    "join": data.join,
    "show": data.show,
    "export": data.export,
    "download": data.download,
}
DATA_HELP = "Pack, join, show, export and download data sets."
DESCRIPTION = (
    "Train, sample and evaluate generative models of faces. Start with: genmodels demo. "
    "After an error, add --debug to the same command to see the traceback."
)


def overview() -> str:
    """Return the short help: what the command does and its subcommands, one line each."""
    lines = {name: inspect.getdoc(command) or "" for name, command in COMMANDS.items()} | {"data": DATA_HELP}
    first = {name: text.partition("\n")[0].partition(". ")[0].rstrip(".") for name, text in lines.items()}
    commands = [f"  {name:12}  {text}" for name, text in first.items()]
    return "\n".join(
        [
            f"genmodels {__version__}: train, sample and evaluate generative models of faces.",
            "",
            *commands,
            "",
            "  genmodels demo                  shows what it does, in 4 minutes",
            "  genmodels train                 lists the families of models",
            "  genmodels COMMAND --help        lists the arguments of a command",
        ]
    )


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """Parse a command line and return the call that it describes.

    Raises:
        UsageError: if the command line is wrong.
        SystemExit: 0 after --help.
    """
    app, data_app = SubcommandApp(), SubcommandApp()
    for name, command in DATA_COMMANDS.items():
        data_app.command(name=name)(_deferred(command))
    for name, command in COMMANDS.items():
        app.command(name=name)(_deferred(command))
    app.command(data_app, name="data", help=DATA_HELP)
    with one_line_refusals():
        return app.cli(
            prog="genmodels",
            description=DESCRIPTION,
            args=fold_options(arguments),
            config=(tyro.conf.PositionalMetavarFromFieldName, tyro.conf.FlagCreatePairsOff),
        )


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Return `command` with the same signature, except that it returns a call to make later.

    Errors of parsing and of running have different exit statuses.
    """

    @functools.wraps(command)
    def prepare(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(command, *positional, **named)

    return prepare


def fold_options(arguments: Sequence[str]) -> list[str]:
    """Rewrite flags that a command does not have itself: --top-k 9 becomes --options top_k=9.

    They are options of the family, whose class is not imported in order to parse a command line.
    """
    command = COMMANDS.get(arguments[0]) if arguments else None
    own: set[str] = set()
    for name, parameter in inspect.signature(command).parameters.items() if command else ():
        grouped = dataclasses.is_dataclass(parameter.default)  # its fields are flags of the command
        own |= {field.name for field in dataclasses.fields(parameter.default)} if grouped else {name}
    if "options" not in own:
        return list(arguments)
    kept, folded = [], []
    tokens = iter(arguments)
    for token in tokens:
        flag, equals, value = token.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag == "--options" and equals:  # as two words, because of two --options only the last one counts
            kept += [flag, value]
            continue
        if not flag.startswith("--") or name.removeprefix("no_") in own | {"help"}:
            kept.append(token)
            continue
        value = value if equals else next(tokens, "--")
        if value.startswith("--"):
            raise UsageError(f"{flag} needs a value: {flag} VALUE")
        folded.append(f"{name}={value}")
    if "--options" in kept:  # both forms together
        place = kept.index("--options") + 1
        return [*kept[:place], *folded, *kept[place:]]
    return [*kept, "--options", *folded] if folded else kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `genmodels ARGUMENTS` and return its exit status: 0 success, 1 failure, 2 wrong usage.

    Args:
        arguments: by default those of this process.
    """
    given = expand_home(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    while given[:1] == ["--debug"]:
        given = [*given[1:], "--debug"]
    try:
        with printing():
            _dispatch(given)
    except SystemExit as exit:
        if isinstance(exit.code, str):
            say(exit.code)
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except KeyboardInterrupt:
        return _report("interrupted", debug, 1)
    except UsageError as error:
        return _report(str(error), debug, 2)
    except (ValueError, OSError) as error:
        return _report(str(error), debug, 1)
    except Exception as error:
        hint = "" if debug else " (--debug shows where)"
        return _report(f"{type(error).__name__}: {error}{hint}", debug, 1)
    return 0


def _dispatch(given: list[str]) -> None:
    """Run one command line."""
    plain = [argument for argument in given if argument != "--debug"]
    if not plain:
        print(overview())
    elif plain[0] == "--version":
        print(f"genmodels {__version__}")
    elif plain[0] == "train":
        # The recipe parses its own arguments, --help and --debug among them. Without a family, they are listed.
        rest = [argument for argument in given[1:] if argument != "--debug"]
        lists = not rest or rest[0] in ("--help", "-h", "--help-all")
        train.train("" if lists else given[1], () if lists else tuple(given[2:]))
    else:
        parse(plain)()


def _report(message: str, debug: bool, status: int) -> int:
    if debug:
        traceback.print_exc()
    say(f"genmodels: error: {message}")
    return status
