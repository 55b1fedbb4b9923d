"""The `genmodels` command: reads the command line, runs a function of this folder, says in one line what fails."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from tyro.extras import SubcommandApp

from genmodels.cli import commands, data, directions, evaluation, exchange
from genmodels.usage import UsageError, one_line_refusals

COMMANDS: dict[str, Callable[..., None]] = {
    "train": commands.train,
    "sample": commands.sample,
    "reconstruct": commands.reconstruct,
    "inpaint": commands.inpaint,
    "interpolate": commands.interpolate,
    "edit": commands.edit,
    "traverse": directions.traverse,
    "trajectory": commands.trajectory,
    "evaluate": evaluation.evaluate,
    "compare": evaluation.compare,
    "average": commands.average,
    "export": exchange.export,
    "import": exchange.import_,
    "info": commands.info,
    "demo": commands.demo,
}
DATA_COMMANDS: dict[str, Callable[..., None]] = {
    "pack": data.pack,
    "show": data.show,
    "export": data.export,
    "download": data.download,
}
DESCRIPTION = (
    "Train, sample and score generative models of faces. Start with: genmodels demo. "
    "After an error, --debug on the same command shows the traceback."
)


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """The call that `arguments` ask for, checked by tyro and ready to be made.

    Raises:
        UsageError: for anything tyro refuses.
        SystemExit: 0 after --help.
    """
    app, data_app = SubcommandApp(), SubcommandApp()
    for name, command in DATA_COMMANDS.items():
        data_app.command(name=name)(_deferred(command))
    for name, command in COMMANDS.items():
        app.command(name=name)(_deferred(command))
    app.command(data_app, name="data", help="Pack data sets, look at them, obtain them.")
    with one_line_refusals():
        return app.cli(
            prog="genmodels",
            description=DESCRIPTION,
            args=fold_options(arguments),
            config=(tyro.conf.PositionalMetavarFromFieldName, tyro.conf.FlagCreatePairsOff),
        )


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """`command` as tyro shall see it, returning a call to make later: parsing and running fail in different ways."""

    @functools.wraps(command)
    def prepare(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(command, *positional, **named)

    return prepare


def fold_options(arguments: Sequence[str]) -> list[str]:
    """Rewrite the flags that a sampling command does not have itself: --top-k 9 becomes --options top_k=9.

    Which options exist is the family's business, and its class is not imported just to read a command line.
    """
    command = COMMANDS.get(arguments[0]) if arguments else None
    own: set[str] = set()
    for name, parameter in inspect.signature(command).parameters.items() if command else ():
        grouped = dataclasses.is_dataclass(parameter.default)  # its fields are the command's flags
        own |= {field.name for field in dataclasses.fields(parameter.default)} if grouped else {name}
    if "options" not in own:
        return list(arguments)
    kept, folded = [], []
    tokens = iter(arguments)
    for token in tokens:
        flag, equals, value = token.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name in own | {"help"}:
            kept.append(token)
            continue
        value = value if equals else next(tokens, "--")
        if value.startswith("--"):
            raise UsageError(f"{flag} needs a value: {flag} VALUE")
        folded.append(f"{name}={value}")
    if "--options" in kept:  # the long form and the short one together
        place = kept.index("--options") + 1
        return [*kept[:place], *folded, *kept[place:]]
    return [*kept, "--options", *folded] if folded else kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `genmodels ARGUMENTS`, by default this process's own; the exit status: 0, 1 failed, 2 bad usage."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    while arguments[:1] == ["--debug"]:
        arguments = [*arguments[1:], "--debug"]
    try:
        if arguments[:1] == ["train"] and arguments[1:] not in (["--help"], ["-h"]):
            # The recipe parses its own arguments, --help and --debug among them.
            commands.train(arguments[1] if len(arguments) > 1 else "", tuple(arguments[2:]))
        else:
            parse([a for a in arguments if a != "--debug"])()
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BrokenPipeError:  # the reader of our output left, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
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


def _report(message: str, debug: bool, status: int) -> int:
    if debug:
        traceback.print_exc()
    print(f"genmodels: error: {' '.join(message.split())}", file=sys.stderr)
    return status
