"""Recipes: all settings of a training run, as a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import tyro

from genmodels.saving import from_dict
from genmodels.training.ema import MAX_SIGMA_REL
from genmodels.training.optim import OptimConfig

DEFAULT_STEPS = 20_000
MAX_STEPS = 99_999_999
"""Names of checkpoints hold the step in 8 digits."""
Precision = Literal["auto", "no", "bf16", "fp16", "fp8"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]
Stage = dict[str, Any]
"""Settings that differ in one stage of a run."""
NOT_SAVED = ("resume", "dry_run", "startup", "name", "tensor_parallel", "pipeline_stages", "pipeline_schedule")
"""Fields that describe one launch of a run and are not written to config.yaml."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run. A family adds its config, `model`, and its own defaults."""

    size_defaults: ClassVar[Mapping[int, Mapping[str, Any]]] = {}
    """Defaults that differ from a size of the images on, in pixels. Those of the largest size that
    is reached apply, if the model is not over a codec."""
    records_model: ClassVar[bool] = True
    """Whether config.yaml records the config of the model. Recipes that train a saved model further
    record its folder instead."""
    shown: ClassVar[tuple[str, ...]] = ()
    """Flags of the model that --help shows in addition to those of `genmodels.training.flags`."""

    data: str = "toyfaces"
    """Data set: toyfaces (procedural faces, built in), celeba, folder, mnist, fashion-mnist, cifar10,
    cifar100, huggingface, webdataset, or the path of a packed directory."""
    root: Path | None = None
    """Where the files of the data set are, such as the folder of celeba or folder."""
    size: int | None = None
    """Side of the images in pixels. None: that of a packed directory, 28 or 32 for mnist ...
    cifar100, and 64 for other data."""
    crop: str | None = None
    """Crop of the source images, such as 178 or 140 for celeba. None: the default of the data
    set."""
    flip: bool = True
    """Flip half of the training images horizontally, at random."""

    output: Path = Path("runs/model")
    """Run folder. It must be new or empty, or hold a run without a checkpoint, unless --resume is
    given."""
    steps: int | None = None
    """Length of the run in optimiser steps (20,000 if neither --steps nor --minutes is given)."""
    minutes: float | None = None
    """Length of the run in minutes, from the start of the command to the saved model, instead of
    --steps."""
    resume: bool = False
    """Continue the run in --output from its newest complete checkpoint. A run without a checkpoint
    starts from the beginning."""
    dry_run: bool = False
    """Print what the run costs and what its budget buys, measured on a few steps, and write nothing
    to --output."""

    batch_size: int = 128
    """Images per optimiser step, over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches per optimiser step. More of them need less memory and give the same result, up
    to rounding."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and all noise."""
    mixed_precision: Precision = "no"
    """Precision of matrix products and convolutions. Weights, optimiser and EMA are always fp32.
    auto: bf16 on GPUs and on processors that have instructions for it, and no elsewhere, where bf16
    is many times slower. fp8: linear layers of transformer blocks in FP8 (extra fp8), emulated where
    a device has none, and all others in bf16."""
    tensor_parallel: int = 1
    """Processes over which the attention and the MLP of each transformer block are divided."""
    pipeline_stages: int = 1
    """Groups of processes of which each holds some blocks of a transformer and computes them for one
    micro-batch after another (--accumulate)."""
    pipeline_schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """1f1b: alternate between forward and backward passes, which needs less memory. gpipe: all forward
    passes first."""
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
    and the tracker, for a curve and not for a table). None: no evaluation."""
    save_every: int | None = None
    """Steps between checkpoints. None: after 5 % of the run, then every 10 minutes. The end always
    has one."""
    keep: int = 2
    """Number of checkpoints to keep."""
    track: Tracker = "tensorboard"
    """Tracker of curves, settings and sample grids. "tensorboard" writes to the run folder; the
    others need their package (pip install 'genmodels[wandb]'), and wandb a login."""

    stages: Annotated[tuple[Stage, ...], tyro.conf.Suppress] = ()
    """Settings that differ in each stage of a run in several stages, in a file of --config."""
    stage: Annotated[int, tyro.conf.Suppress] = 0
    """Number of the stage that this run is, from 1. 0: it is not a stage."""
    parent: Annotated[Path | None, tyro.conf.Suppress] = None
    """Run folder of the stage before, whose model this stage trains further."""
    parent_minutes: Annotated[float, tyro.conf.Suppress] = 0.0
    """Minutes for which that model was trained. They count as training time."""
    startup: Annotated[float, tyro.conf.Suppress] = 0.0
    """Seconds of --minutes that passed before fit() was called. `run` counts the start of the
    interpreter."""
    name: Annotated[str, tyro.conf.Suppress] = ""
    """Name of the recipe if it differs from the model's family. `run` sets it."""

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """Fields without effect, which are not recorded."""
        staged = ("stages", "stage", "parent", "parent_minutes")
        return tuple(name for name in staged if not getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class PriorRecipe(Recipe):
    """Settings of a family that can be trained on pixels or on the latents of a codec."""

    codec_defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults that differ when --codec is given."""

    codec: Path | None = None
    """Run folder of a trained codec (vqvae, vae, ae, kl or tiny), toyfaces/vqvae, or folder of a
    diffusers AutoencoderKL, AutoencoderTiny or VQModel, whose latents the model is trained on.
    None: the model is trained on pixels."""
    text: Path | None = None
    """Run folder of a trained clip, toyfaces/clip, or folder of a CLIPModel of transformers, whose
    text encoder reads the captions that the model is conditioned on. None: no text."""
    cache: bool = True
    """Encode all images once, before training, and store the latents in the cache. Otherwise every
    step encodes its batch."""
    codec_minutes: Annotated[float, tyro.conf.Suppress] = 0.0
    """Minutes for which the codec was trained. They count as training time of the whole model."""
    text_minutes: Annotated[float, tyro.conf.Suppress] = 0.0
    """Minutes for which the text encoder was trained. They count too."""


R = TypeVar("R", bound=Recipe)


def defaults(recipe: type[R], size: int, over_codec: bool) -> R:
    """Return a recipe with the defaults for images of `size` pixels a side.

    Args:
        recipe: class of the recipe.
        size: side of the images.
        over_codec: whether the model is trained on the latents of a codec.
    """
    if over_codec and issubclass(recipe, PriorRecipe):
        return recipe(size=size, **recipe.codec_defaults)
    reached = [least for least in recipe.size_defaults if least <= size]
    return recipe(size=size, **(recipe.size_defaults[max(reached)] if reached else {}))


def check_recipe(recipe: R) -> R:
    """Return `recipe` with its length filled in.

    Raises:
        ValueError: if a setting cannot work.
    """
    recipe = from_dict(type(recipe), recipe, "settings")
    if recipe.minutes is not None and not recipe.minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {recipe.minutes}")
    if recipe.steps is not None and recipe.minutes is not None:
        raise ValueError(f"give --steps or --minutes, not both (got {recipe.steps} and {recipe.minutes})")
    if recipe.steps is None and recipe.minutes is None:
        recipe = replace(recipe, steps=DEFAULT_STEPS)
    if recipe.steps is not None and recipe.steps > MAX_STEPS:
        raise ValueError(f"--steps must be at most {MAX_STEPS:,}, got {recipe.steps:,}")
    counts = ("steps", "size", "batch_size", "accumulate", "log_every", "sample_every", "evaluate_every", "save_every")
    for name in (*counts, "keep", "tensor_parallel", "pipeline_stages"):
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
    if recipe.mixed_precision not in get_args(Precision):
        raise ValueError(f"--mixed-precision must be auto, no, bf16, fp16 or fp8, got {recipe.mixed_precision!r}")
    recipe.optim.check()
    return recipe
