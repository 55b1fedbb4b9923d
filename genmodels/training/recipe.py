"""Recipes: all settings of a training run, as a dataclass, a command line and a YAML file."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import psutil
import torch
import tyro
import yaml

from genmodels.saving import from_dict, reset_derived, to_dict
from genmodels.training.ema import MAX_SIGMA_REL
from genmodels.training.flags import show_common_flags
from genmodels.training.launch import spread_over_cpu, use_every_core
from genmodels.training.optim import OptimConfig
from genmodels.usage import UsageError, one_line_refusals, quiet_when_nobody_reads

DEFAULT_STEPS = 20_000
Precision = Literal["no", "bf16", "fp16"]
NOT_SAVED = ("resume", "startup", "name")
"""Fields that describe one launch of a run and are not written to config.yaml."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run. A family adds its config, `model`, and its own defaults."""

    shown: ClassVar[tuple[str, ...]] = ()
    """Flags of the model that --help shows in addition to those of `genmodels.training.flags`."""

    data: str = "toyfaces"
    """Data set: toyfaces (procedural faces, built in), celeba, folder, or the path of a packed
    directory."""
    root: Path | None = None
    """Folder that holds the images of celeba or folder."""
    size: int = 64
    """Side of the images in pixels."""
    crop: str | None = None
    """Crop of the source images, such as 178 or 140 for celeba. None: the default of the data
    set."""
    flip: bool = True
    """Flip half of the training images horizontally, at random."""

    output: Path = Path("runs/model")
    """Run folder. It must be new or empty, unless --resume is given."""
    steps: int | None = None
    """Length of the run in optimiser steps (20,000 if neither --steps nor --minutes is given)."""
    minutes: float | None = None
    """Length of the run in minutes, from the start of the command to the saved model, instead of
    --steps."""
    resume: bool = False
    """Continue the run in --output from its newest complete checkpoint."""

    batch_size: int = 128
    """Images per optimiser step, over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches per optimiser step. More of them need less memory and give the same result."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and all noise."""
    mixed_precision: Precision = "no"
    """Precision of matrix products and convolutions. Weights, optimiser and EMA are always fp32.
    "no" is the fastest on processors without bf16."""
    compile: bool = False
    """Compile the repeated blocks of the network with torch.compile. This pays off on GPUs only,
    where the first steps then take about a minute."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning-rate schedule."""
    ema: float = 0.05
    """Width of the average of the weights, relative to the length of the run (sigma_rel of EDM2). 0
    disables it."""

    ema_snapshots: int = 0
    """Number of snapshots of that average, evenly spaced over the run. `genmodels average` computes
    averages of other widths from them."""

    log_every: int = 50
    """Steps between lines of metrics.jsonl. Each line is an average over these steps."""
    sample_every: int | None = None
    """Steps between sample grids and saved models. None: after 5, 25, 50 and 75 % of the run. The
    end always has one."""
    evaluate_every: int | None = None
    """Steps between evaluations of 512 samples against real images (fd_faces_n512 in metrics.jsonl
    and TensorBoard, for a curve and not for a table). None: no evaluation."""
    save_every: int | None = None
    """Steps between checkpoints. None: after 5 % of the run, then every 10 minutes. The end always
    has one."""
    keep: int = 2
    """Number of checkpoints to keep."""
    tensorboard: bool = True
    """Write curves for TensorBoard to the run folder."""

    startup: Annotated[float, tyro.conf.Suppress] = 0.0
    """Seconds of --minutes that passed before fit() was called. `run` counts the start of the
    interpreter."""
    name: Annotated[str, tyro.conf.Suppress] = ""
    """Name of the recipe if it differs from the model's family. `run` sets it."""


@dataclass(frozen=True, kw_only=True)
class PriorRecipe(Recipe):
    """Settings of a family that can be trained on pixels or on the latents of a codec."""

    codec_defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults that differ when --codec is given."""

    codec: Path | None = None
    """Run folder of a trained VQ-VAE or VAE, or folder of a diffusers AutoencoderKL or VQModel,
    whose latents the model is trained on. None: the model is trained on pixels."""
    cache: bool = True
    """Encode all images once, before training, and store the latents in the cache. Otherwise every
    step encodes its batch."""
    codec_minutes: Annotated[float, tyro.conf.Suppress] = 0.0
    """Minutes for which the codec was trained. They count as training time of the whole model."""


R = TypeVar("R", bound=Recipe)


def check_recipe(recipe: R) -> R:
    """Return `recipe` with its length filled in.

    Raises:
        ValueError: if a setting cannot work.
    """
    if recipe.steps is not None and recipe.minutes is not None:
        raise ValueError(f"give --steps or --minutes, not both (got {recipe.steps} and {recipe.minutes})")
    if recipe.steps is None and recipe.minutes is None:
        recipe = replace(recipe, steps=DEFAULT_STEPS)
    if recipe.minutes is not None and not recipe.minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {recipe.minutes}")
    counts = ("steps", "size", "batch_size", "accumulate", "log_every", "sample_every", "evaluate_every", "save_every")
    for name in (*counts, "keep"):
        value = getattr(recipe, name)
        if value is None:
            continue
        if value != int(value) or value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be a whole number of at least 1, got {value}")
        settled: dict[str, Any] = {name: int(value)}
        recipe = replace(recipe, **settled)
    if recipe.batch_size % recipe.accumulate:
        raise ValueError(f"--batch-size {recipe.batch_size} is not divisible by --accumulate {recipe.accumulate}")
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
    """Refuse a run folder that is in use or cannot be written, before any work.

    Raises:
        ValueError, OSError: with a message of one line. No file has been changed.
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
    return yaml.safe_dump({"family": family} | plain(settings | actual), sort_keys=False)


def from_yaml(recipe: type[R], family: str, path: Path) -> R:
    """Read a recipe that `to_yaml` wrote. A setting that is absent has its default.

    Raises:
        ValueError: if the file is absent, is not YAML, is of another family, or has an unknown
            setting.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"--config {path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict) or "family" not in settings:
        raise ValueError(f"--config {path} is not a genmodels recipe: it does not begin with `family: {family}`")
    recorded = settings.pop("family")
    settings.pop("fingerprint", None)  # of the data of that run
    if recorded != family:
        raise ValueError(
            f"--config {path} is a recipe of family {recorded!r}, not {family!r}: use the {recorded} recipe"
        )
    return from_dict(recipe, settings, where=str(path))


def parse(recipe: type[R], family: str, args: list[str] | None = None) -> R:
    """Return the recipe of a command line: defaults, then the file of --config, then flags.

    With --resume and without --config, the file is config.yaml of the run to continue.

    Raises:
        ValueError: for a file, a flag or a combination of flags that cannot work.
        SystemExit: 0 after --help and --help-all.
    """
    args = sys.argv[1:] if args is None else args
    prog = f"genmodels train {family}"
    config, rest = _pop_flag("--config", args)
    file = None if config is None else Path(config)
    if file is None and "--resume" in rest:
        # A run continues with the settings it started with, even if the defaults have changed.
        saved = Path(_pop_flag("--output", rest)[0] or Path("runs") / family) / "config.yaml"
        file = saved if saved.is_file() else None
    if file is None:
        codec, _ = _pop_flag("--codec", rest)
        over_codec = issubclass(recipe, PriorRecipe) and codec not in (None, "None")
        changes = recipe.codec_defaults if over_codec else {}  # type: ignore[attr-defined]
        base = replace(recipe(), output=Path("runs") / family, **changes)
    else:
        base = from_yaml(recipe, family, file)
    base = _for_size(base, _pop_flag("--size", rest)[0])
    # A length given as a flag replaces the other kind of length in the file or the defaults.
    given = {arg.split("=")[0] for arg in rest}
    if "--minutes" in given and "--steps" not in given:
        base = replace(base, steps=None)
    elif "--steps" in given and "--minutes" not in given:
        base = replace(base, minutes=None)
    text = f"Train a {family} model. --config FILE reads settings from config.yaml of a run; flags take precedence."
    if given & {"--help", "-h"}:
        show_common_flags(base, prog, text)
        raise SystemExit(0)
    if "--help-all" in given:
        rest = ["--help"]
    with one_line_refusals():
        chosen = tyro.cli(recipe, args=rest, default=base, prog=prog, description=text)
    return check_recipe(chosen)


def _for_size(recipe: R, size: str | None) -> R:
    """Return `recipe` with the derived fields of its model reset, and its size that of --size.

    The flags of the model are then checked against the size of this run.
    """
    model = getattr(recipe, "model", None)
    if model is None:
        return recipe
    pixels = int(size) if size is not None and size.isdecimal() else recipe.size
    return replace(recipe, **{"model": reset_derived(model, size=pixels)})


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
    with quiet_when_nobody_reads():
        try:
            chosen = parse(recipe, family, rest)
            status = 1
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
