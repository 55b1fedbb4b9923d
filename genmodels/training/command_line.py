"""From a command line, or config.yaml, to a recipe that is run."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
import tyro
import yaml

from genmodels.base import Model
from genmodels.data import default_size
from genmodels.data.packed import IN_MEMORY
from genmodels.reading import read_yaml
from genmodels.saving import from_dict, reset_derived, to_dict
from genmodels.training.flags import show_common_flags
from genmodels.training.folder import CHECKPOINTS, METRICS, STAGES, check_output, check_unlocked
from genmodels.training.launch import spread_over_cpu, use_every_core
from genmodels.training.presets import find_config
from genmodels.training.recipe import NOT_SAVED, R, Recipe, check_recipe, defaults
from genmodels.usage import UsageError, expand_home, one_line_refusals, printing, say


def to_yaml(recipe: Recipe, family: str, without: tuple[str, ...] = (), **actual: Any) -> str:
    """Return the text of config.yaml, which --config reads: the family, then all settings.

    Args:
        recipe: the settings.
        family: name of the recipe.
        without: names of settings to leave out.
        **actual: entries that replace those of the recipe or are added to them.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    settings = {k: v for k, v in to_dict(recipe).items() if k not in NOT_SAVED + without}
    return yaml.safe_dump({"family": family} | plain(settings | actual), sort_keys=False, allow_unicode=True)


def changed_paths(recipe: Recipe, change: Callable[[Path], Path]) -> dict[str, Any]:
    """Return the settings that are paths, or several paths, each changed by a function."""
    changed: dict[str, Any] = {}
    for name, value in vars(recipe).items():
        if isinstance(value, Path):
            changed[name] = change(value)
        elif isinstance(value, tuple) and value and all(isinstance(item, Path) for item in value):
            changed[name] = tuple(map(change, value))
    return changed


def actual_settings(model: Model, recipe: Recipe) -> dict[str, Any]:
    """Return entries of config.yaml that fit() cannot take from a recipe: those of the model.

    They are its config and, if it was combined with a codec in Python, a codec called "in-memory".
    Such a file is then refused by --config without --codec, and does not train a model of pixels.
    """
    if not recipe.records_model:
        return {}
    settings: dict[str, Any] = {"model": to_dict(model.trained.config)}
    if model.trained is not model and getattr(recipe, "codec", None) is None:
        settings["codec"] = IN_MEMORY
    return settings


def from_yaml(recipe: type[R], family: str, path: Path) -> R:
    """Read a recipe that `to_yaml` wrote. A setting that is absent has its default.

    Raises:
        ValueError: if the file is absent, is not YAML, is of another family, or has an unknown
            setting.
    """
    try:
        settings = read_yaml(path)
    except FileNotFoundError:
        raise ValueError(f"--config {path}: no such file") from None
    if not isinstance(settings, dict) or "family" not in settings:
        raise ValueError(f"--config {path} is not a genmodels recipe: it does not begin with `family: {family}`")
    recorded = settings.pop("family")
    settings.pop("fingerprint", None)  # of the data of that run
    if recorded != family:
        raise ValueError(
            f"--config {path} is a recipe of family {recorded!r}, not {family!r}: use the {recorded} recipe"
        )
    return from_dict(recipe, migrated(settings, str(path)), where=str(path))


def migrated(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the settings of an earlier version under their present names: tensorboard is track."""
    settings = dict(settings)
    if "tensorboard" in settings:
        wanted = from_dict(bool, settings.pop("tensorboard"), f"{where}: tensorboard")
        settings.setdefault("track", "tensorboard" if wanted else "none")
    return settings


def parse(recipe: type[R], family: str, args: list[str] | None = None) -> R:
    """Return the recipe of a command line: defaults, then the file of --config, then flags.

    With --resume and without --config, the file is config.yaml of the run to continue. A run folder
    may have been moved or copied since: with --resume and without --output, config.yaml in a run
    folder continues the run in this folder, whatever folder it records.

    Raises:
        ValueError: for a file, a flag or a combination of flags that cannot work.
        SystemExit: 0 after --help and --help-all.
    """
    args = expand_home(sys.argv[1:] if args is None else args)
    prog = f"genmodels train {family}"
    config, rest = _pop_flag("--config", args)
    file = None if config is None else find_config(config)
    if file is None and "--resume" in rest:
        # A run continues with the settings it started with, even if the defaults have changed.
        folder = Path(_pop_flag("--output", rest)[0] or Path("runs") / family)
        saved = (folder / STAGES / "config.yaml", folder / "config.yaml")  # the first is that of all stages
        file = next((path for path in saved if path.is_file()), None)
    size, data = _pop_flag("--size", rest)[0], _pop_flag("--data", rest)[0]
    if file is None:
        codec, _ = _pop_flag("--codec", rest)
        pixels = _for_size(recipe(), size, data).size or 0
        base = replace(defaults(recipe, pixels, codec not in (None, "None")), output=Path("runs") / family)
    else:
        base = from_yaml(recipe, family, file)
        in_run = file.name == "config.yaml" and any((file.parent / name).exists() for name in (CHECKPOINTS, METRICS))
        if "--resume" in rest and in_run:
            base = replace(base, output=file.parent)  # unless there is --output
        elif "--resume" in rest and base.stages and file.parent.name == STAGES:
            base = replace(base, output=file.parent.parent)
    base = _for_size(base, size, data)
    # A length given as a flag replaces the other kind of length in the file or the defaults.
    given = {arg.split("=")[0] for arg in rest}
    if "--minutes" in given and "--steps" not in given:
        base = replace(base, steps=None)
    elif "--steps" in given and "--minutes" not in given:
        base = replace(base, minutes=None)
    text = f"Train a model ({family}). --config FILE reads settings from config.yaml of a run or from a preset."
    if given & {"--help", "-h"}:
        show_common_flags(base, prog, text)
        raise SystemExit(0)
    if "--help-all" in given:
        rest = ["--help"]
    with one_line_refusals("--help-all"):
        chosen = tyro.cli(recipe, args=rest, default=base, prog=prog, description=text)
    return check_recipe(chosen)


def _for_size(recipe: R, size: str | None, data: str | None) -> R:
    """Return `recipe` with its size filled in, and the derived fields of its model reset to it.

    The flags of the model are then checked against the size of this run.

    Args:
        recipe: settings without those of the flags.
        size, data: values of --size and --data; None if they are not given.
    """
    if size is not None and size.isdecimal():
        recipe = replace(recipe, size=int(size))
    elif recipe.size is None:
        recipe = replace(recipe, size=default_size(data or recipe.data))
    model = getattr(recipe, "model", None)
    return recipe if model is None else replace(recipe, **{"model": reset_derived(model, size=recipe.size)})


def _pop_flag(flag: str, args: list[str]) -> tuple[str | None, list[str]]:
    """Return the value of `flag`, or None if it is not given, and the other arguments.

    Raises:
        UsageError: if it is given without a value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", nargs="?", const="")
    known, rest = parser.parse_known_args(args)
    if known.value == "":
        raise UsageError(f"{flag} needs a value: {flag} VALUE")
    return known.value, rest


def run(
    main: Callable[[R], object],
    recipe: type[R],
    family: str,
    args: list[str] | None = None,
    command: list[str] | None = None,
) -> None:
    """Run a recipe from the command line.

    Errors are printed as one line; --debug also shows the traceback. The exit status is 1 if the
    run failed, and 2 if the command line was wrong.

    Args:
        main: trains a model as a recipe says, such as `partial(train, VAE)`.
        recipe: the dataclass of the settings.
        family: name of the recipe.
        args: arguments of the command line; by default those of this process.
        command: arguments with which Python runs this again in several processes; by default those
            of this process.
    """
    given = sys.argv[1:] if args is None else args
    rest = [arg for arg in given if arg != "--debug"]
    debug = len(rest) < len(given)
    status = 2
    with printing():
        try:
            chosen = parse(recipe, family, rest)
            status = 1
            if not chosen.dry_run:
                check_unlocked(chosen.output)
                check_output(chosen)
            spread_over_cpu(sys.argv if command is None else command)
            use_every_core()
            torch.manual_seed(chosen.seed)  # the initial weights, the same on every process
            main(replace(chosen, startup=time.time() - psutil.Process().create_time(), name=family))
        except BrokenPipeError:
            raise
        except (ValueError, OSError, FloatingPointError) as error:
            if debug:
                traceback.print_exc()
            rank = os.environ.get("RANK", "0")
            where = "" if rank == "0" else f" (process {rank})"
            say(f"genmodels: error{where}: {error}")
            raise SystemExit(status) from None
        except KeyboardInterrupt:
            raise SystemExit("genmodels: stopped") from None
        except Exception as error:
            if debug:
                raise
            say(f"genmodels: error: {type(error).__name__}: {error} (--debug shows where)")
            raise SystemExit(1) from None
