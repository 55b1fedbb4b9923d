"""A recipe: everything that decides a run, as a typed dataclass, a command line and a YAML file."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import psutil
import torch
import tyro
import yaml

from genmodels.saving import from_dict, to_dict
from genmodels.training.ema import MAX_SIGMA_REL
from genmodels.training.launch import spread_over_cpu, use_every_core
from genmodels.training.optim import OptimConfig
from genmodels.usage import one_line_refusals

DEFAULT_STEPS = 20_000
Precision = Literal["no", "bf16", "fp16"]
NOT_SAVED = ("resume", "startup", "name")
"""Fields that belong to one launch of a run and not to its config.yaml."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the training loop is told. A family's recipe adds `model`, its config, and its own defaults."""

    data: str = "toyfaces"
    """toyfaces (built in), celeba, folder, or the path of a packed directory."""
    root: Path | None = None
    """Where the images of celeba or folder are."""
    size: int = 64
    """Side of the images, in pixels."""
    crop: str | None = None
    """Named crop of the source images; None: the data's usual one."""
    flip: bool = True
    """Mirror half of the images, at random."""

    output: Path = Path("runs/model")
    """The run folder. It must be new or empty, unless --resume."""
    steps: int | None = None
    """Length of the run in optimiser steps (20,000 when neither this nor --minutes is given)."""
    minutes: float | None = None
    """Length of the run in minutes of wall clock, from start-up to the saved model, instead of --steps."""
    resume: bool = False
    """Continue the run in --output from its newest complete checkpoint."""

    batch_size: int = 128
    """Images per optimiser step, over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches per optimiser step: less memory, the same result."""
    seed: int = 0
    """Decides the initial weights, the order of the data, and all noise."""
    mixed_precision: Precision = "no"
    """Precision of matrix products and convolutions. Weights, optimiser and EMA are fp32 always."""
    compile: bool = False
    """torch.compile the network's repeated blocks: for GPUs, where the first steps then take a minute."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: float = 0.05
    """Width of the average of the weights, relative to the length of the run (sigma_rel of EDM2); 0: no averaging."""

    ema_snapshots: int = 0
    """Snapshots of that average, evenly over the run, of which `genmodels average` makes others of other widths."""

    log_every: int = 50
    """Steps between lines of metrics.jsonl, each an average over them."""
    sample_every: int | None = None
    """Steps between sample grids and saved models; None: at 5, 25, 50 and 75 % of the run. One more at the end."""
    evaluate_every: int | None = None
    """Steps between distances of 512 samples to real images (fd_faces_n512 in metrics.jsonl and TensorBoard: for a
    curve, not to be quoted); None: never."""
    save_every: int | None = None
    """Steps between checkpoints; None: at 5 % of the run, then every 10 minutes. One more at the end."""
    keep: int = 2
    """How many checkpoints are kept."""
    tensorboard: bool = True
    """Write curves for TensorBoard into the run folder, when it is installed."""

    startup: Annotated[float, tyro.conf.Suppress] = 0.0
    """Seconds of the --minutes spent before fit() was called; `run` counts the start of the interpreter."""
    name: Annotated[str, tyro.conf.Suppress] = ""
    """Which recipe this is, when it is not called after the model's family; `run` sets it."""


R = TypeVar("R", bound=Recipe)


def check_recipe(recipe: R) -> R:
    """`recipe` with its length settled, or ValueError in one line when it cannot work."""
    if recipe.steps is not None and recipe.minutes is not None:
        raise ValueError(f"give --steps or --minutes, not both (got {recipe.steps} and {recipe.minutes})")
    if recipe.steps is None and recipe.minutes is None:
        recipe = replace(recipe, steps=DEFAULT_STEPS)
    if recipe.minutes is not None and not recipe.minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {recipe.minutes}")
    everies = ("log_every", "sample_every", "evaluate_every", "save_every")
    for name in ("steps", "size", "batch_size", "accumulate", *everies, "keep"):
        value = getattr(recipe, name)
        if value is not None and (value != int(value) or value < 1):
            raise ValueError(f"--{name.replace('_', '-')} must be a whole number from 1, got {value}")
    if recipe.batch_size % recipe.accumulate:
        raise ValueError(f"--batch-size {recipe.batch_size} does not divide by --accumulate {recipe.accumulate}")
    if not 0 <= recipe.ema <= MAX_SIGMA_REL:
        raise ValueError(f"--ema must be in [0, {MAX_SIGMA_REL:.4f}], got {recipe.ema}")
    if recipe.ema_snapshots < 0 or (recipe.ema_snapshots and not recipe.ema):
        raise ValueError(
            f"--ema-snapshots must not be negative, and needs an average (--ema above 0): got {recipe.ema_snapshots} "
            f"and --ema {recipe.ema:g}"
        )
    if recipe.mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(f"--mixed-precision must be no, bf16 or fp16, got {recipe.mixed_precision!r}")
    recipe.optim.check()
    return recipe


def check_output(recipe: Recipe) -> None:
    """Refuses a run folder that cannot be used, before any work: it holds something already, or cannot be written.

    Raises:
        ValueError, OSError: in one line; nothing has been touched.
    """
    output = recipe.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; --output must be a folder")
    filled = output.is_dir() and any(output.iterdir())
    resumable = (output / "checkpoints").is_dir()
    if recipe.resume and not resumable:
        raise ValueError(
            f"nothing to resume: there is no {output}/checkpoints; check --output, or start without --resume"
        )
    if filled and not recipe.resume:
        choice = "or --resume to continue the run in it" if resumable else "or empty it; it holds no run to resume"
        raise ValueError(f"{output} is not empty: give another --output, {choice}")
    place = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not os.access(place, os.W_OK):
        raise PermissionError(f"cannot write to {place}: give another --output, or change its permissions")


def to_yaml(recipe: Recipe, family: str, without: tuple[str, ...] = ()) -> str:
    """config.yaml: the family, then every setting but `without`; what `parse` reads back through --config."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    settings = {k: v for k, v in to_dict(recipe).items() if k not in NOT_SAVED + without}
    return yaml.safe_dump({"family": family} | plain(settings), sort_keys=False)


def from_yaml(recipe: type[R], family: str, path: Path) -> R:
    """The recipe in `path`, as `to_yaml` wrote it; a setting that is not there has its default.

    Raises:
        ValueError: when it is absent, no YAML, of another family, or has an unknown setting.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"--config {path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict) or "family" not in settings:
        raise ValueError(f"--config {path} is not a genmodels recipe: it does not begin with `family: {family}`")
    found = settings.pop("family")
    if found != family:
        raise ValueError(f"--config {path} is a recipe of family {found!r}, not {family!r}: use the {found} recipe")
    return from_dict(recipe, settings, where=str(path))


def parse(recipe: type[R], family: str, args: list[str] | None = None) -> R:
    """The recipe that a command line asks for: defaults, then the file of --config, then the flags.

    With --resume and no --config, the file is the config.yaml of the run that goes on.

    Raises:
        ValueError: for a file, a flag or a combination of flags that cannot work.
    """
    args = sys.argv[1:] if args is None else args
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    known, rest = first.parse_known_args(args)
    if known.config is None and "--resume" in rest:
        # A run goes on as it began, whatever the defaults are by now.
        first.add_argument("--output", type=Path, default=Path("runs") / family)
        saved = first.parse_known_args(args)[0].output / "config.yaml"
        known.config = saved if saved.is_file() else None
    if known.config is None:
        base = replace(recipe(), output=Path("runs") / family)
    else:
        base = from_yaml(recipe, family, known.config)
    # A length given as a flag replaces the other kind of length in the file or the defaults.
    given = {arg.split("=")[0] for arg in rest}
    if "--minutes" in given and "--steps" not in given:
        base = replace(base, steps=None)
    elif "--steps" in given and "--minutes" not in given:
        base = replace(base, minutes=None)
    text = f"Train a {family} model. --config FILE takes settings from a run's config.yaml; flags come on top."
    with one_line_refusals():
        chosen = tyro.cli(recipe, args=rest, default=base, prog=f"genmodels train {family}", description=text)
    return check_recipe(chosen)


def run(main: Callable[[R], object], recipe: type[R], family: str) -> None:
    """Runs a recipe from the command line. Exit status 1: it failed; 2: bad usage. Errors are one line.

    --debug shows the traceback as well.
    """
    args = [arg for arg in sys.argv[1:] if arg != "--debug"]
    debug = len(args) < len(sys.argv) - 1
    status = 2
    try:
        chosen = parse(recipe, family, args)
        status = 1
        check_output(chosen)
        spread_over_cpu()
        use_every_core()
        torch.manual_seed(chosen.seed)  # the initial weights, the same on every process
        main(replace(chosen, startup=time.time() - psutil.Process().create_time(), name=family))
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" (process {rank})"
        print(f"genmodels: error{where}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(status) from None
    except KeyboardInterrupt:
        raise SystemExit("genmodels: stopped") from None
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(f"genmodels: error: {what} (--debug shows where)", file=sys.stderr)
        raise SystemExit(1) from None
