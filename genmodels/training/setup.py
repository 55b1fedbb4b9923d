"""Before the first step: check that model, data, recipe and folder fit together, and build what the loop works on."""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, patch_environment
from torch import nn
from torch.optim import Optimizer

from genmodels.base import Model
from genmodels.data.batches import BatchReader, image_batches
from genmodels.data.packed import Packed
from genmodels.sampling import processes
from genmodels.training.checkpoint import State, load_checkpoint, load_optimizers, newest_checkpoint
from genmodels.training.clock import Clock
from genmodels.training.ema import SNAPSHOTS, drop_snapshots
from genmodels.training.log import RunLog
from genmodels.training.optim import build_optimizer
from genmodels.training.recipe import Recipe, check_output, to_yaml
from genmodels.training.shard import check_shardable, repeated_blocks, shard, sharding_wanted

if TYPE_CHECKING:
    from genmodels.evaluation.monitor import Monitor

INITIALISATION = 8_192
"""Most training images that initialise() sees."""
COMPILATIONS = 64
"""Most that --compile makes of one kind of block."""


@dataclass
class Run:
    """What the loop works on."""

    recipe: Recipe
    data: Packed
    """The train split."""
    accelerator: Accelerator
    model: Model
    """Holds the weights that the optimisers update."""
    network: nn.Module
    """The same model as accelerate wraps it, for several processes and mixed precision."""
    ema: Model
    """The average of the weights: what is shown, exported and sampled from."""
    average: nn.Module
    """What each step averages into: `ema` itself, or, with FSDP, its shards, which `ema` is filled from when needed."""
    parameters: dict[str, list[nn.Parameter]]
    """What each turn updates."""
    optimizers: dict[str, Optimizer]
    reader: BatchReader
    clock: Clock
    state: State
    log: RunLog
    identity: dict[str, Any]
    """What a continued run must have in common with the one it continues."""
    monitor: Monitor | None
    """What measures samples on the way, with --evaluate-every."""


def start(model: Model, data: Packed, recipe: Recipe) -> Run:
    """A run ready for its first step, or, with --resume, for the step after its newest checkpoint.

    Args:
        model: to train.
        data: all splits.
        recipe: how.

    Raises:
        ValueError: when something does not fit together; the run folder has not been touched.
    """
    check_fit(model, data, recipe)
    train = data.split("train")
    accelerator = build_accelerator(model, recipe)
    device = accelerator.device
    monitor = build_monitor(data, recipe, device)
    reader = build_reader(model, train, recipe, accelerator)
    model.to(device).train()
    began = time.monotonic()
    if not recipe.resume:
        with torch.no_grad():
            model.initialise(image_batches(train, limit=INITIALISATION, device=device, spread=True))
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    identity = identity_of(model, train, recipe)
    state = State()
    if recipe.resume:
        checkpoint = newest_checkpoint(recipe.output / "checkpoints", lambda line: print(line, file=sys.stderr))
        state = load_checkpoint(checkpoint, identity, model, ema)
    sharded = sharding_wanted(accelerator.num_processes)
    if sharded:
        broadcast(list(model.parameters()))
    average = shard(model, ema, device) if sharded else ema  # before the optimisers, which work on shards
    parameters = {turn: [p for p in model.parameters_for(turn) if p.requires_grad] for turn in model.turns}
    hidden = list(model.hidden_matrices())
    optimizers = {turn: build_optimizer(own, recipe.optim, hidden) for turn, own in parameters.items()}
    if recipe.resume:
        load_optimizers(checkpoint, optimizers)
    if recipe.compile:
        compile_blocks(model)

    accelerator.wait_for_everyone()  # all have looked at the folder before one writes to it
    if accelerator.is_main_process:
        write_config(model, recipe)
        drop_snapshots(recipe.output / SNAPSHOTS, state.step)
    broadcast(list(model.buffers()))  # from rank 0; DistributedDataParallel sees to the parameters
    network = prepare(accelerator, model, sharded)
    if accelerator.scaler is not None and state.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    if recipe.tensorboard:
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": state.step + 1}})
    spent = state.elapsed + recipe.startup + time.monotonic() - began
    clock = Clock(recipe.steps, recipe.minutes, spent, device, accelerator.is_main_process)
    log = RunLog(accelerator, recipe.output, state.step)
    log.say(summary(model, train, recipe, accelerator, state, sharded))
    if monitor is not None:
        log.say(monitor.describe())
    return Run(
        recipe=recipe,
        data=train,
        accelerator=accelerator,
        model=model,
        network=network,
        ema=ema,
        average=average,
        parameters=parameters,
        optimizers=optimizers,
        reader=reader,
        clock=clock,
        state=state,
        log=log,
        identity=identity,
        monitor=monitor,
    )


def check_fit(model: Model, data: Packed, recipe: Recipe) -> None:
    """Raises ValueError when model, data, recipe and run folder do not fit together."""
    model.check_complete()
    check_output(recipe)
    if model.whole_batch and recipe.accumulate > 1:
        raise ValueError(
            f"the loss of this {model.family} compares the images of a batch with each other, so that a batch cannot "
            f"be split: leave out --accumulate {recipe.accumulate}"
        )
    if sharding_wanted(processes().num_processes):
        check_shardable(model)
    if data.size != model.config.size:
        raise ValueError(
            f"the images have {data.size} px a side and the model {model.config.size}: set --size to agree"
        )
    if model.conditions.classes:
        raise ValueError(
            f"{data.source} has no labels to train {model.conditions.classes} classes on: leave out --model.classes"
        )
    if recipe.minutes is not None and not recipe.resume and recipe.startup > 0.9 * 60 * recipe.minutes:
        raise ValueError(f"--minutes {recipe.minutes:g}: start-up alone took {recipe.startup:.0f} seconds; give more")


def write_config(model: Model, recipe: Recipe) -> None:
    """Puts config.yaml into the run folder, in one go, and makes the folder if need be."""
    recipe.output.mkdir(parents=True, exist_ok=True)
    partial = recipe.output / ".config.partial"
    partial.write_text(to_yaml(recipe, recipe.name or model.family))
    partial.replace(recipe.output / "config.yaml")


def compile_blocks(model: nn.Module, **settings: Any) -> None:
    """torch.compile, in place and with `settings`, for every repeated block of `model`: one compilation serves them
    all, and nothing outside them has to be compilable.

    Raises:
        ValueError: when there is none.
    """
    # A single layer gains nothing.
    blocks = [block for block in repeated_blocks(model) if any(True for _ in block.children())]
    if not blocks:
        raise ValueError("--compile compiles the repeated blocks of a network, and this model has none: leave it out")
    # One for each size of block, with gradients and without.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)
    for block in blocks:
        block.compile(**settings)


def prepare(accelerator: Accelerator, model: Model, sharded: bool) -> nn.Module:
    """`model` as accelerate wraps it: for mixed precision and, when it is not `sharded`, for several processes."""
    with warnings.catch_warnings():  # torch 2.14 renames broadcast_buffers; accelerate does not know the new name yet
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return accelerator.prepare_model(model, evaluation_mode=sharded)


def build_accelerator(model: Model, recipe: Recipe) -> Accelerator:
    """Processes, device and precision."""
    AcceleratorState._reset_state()  # else a process could not train twice with different precisions
    # Sharding is training/shard.py's. accelerate's own needs the optimiser together with the model, and a GPU.
    with patch_environment(ACCELERATE_USE_FSDP="false"):
        return Accelerator(
            mixed_precision=recipe.mixed_precision,
            log_with="tensorboard" if recipe.tensorboard else None,
            project_dir=recipe.output,
            kwargs_handlers=[
                # A turn leaves the other turns' parameters without gradients. Models share buffers in after_step.
                DistributedDataParallelKwargs(find_unused_parameters=len(model.turns) > 1, broadcast_buffers=False)
            ],
        )


def build_reader(model: Model, train: Packed, recipe: Recipe, accelerator: Accelerator) -> BatchReader:
    """This process's share of the batches, with the attributes that `model` can be asked for and no others."""
    return BatchReader(
        train.with_attributes(model.conditions.attributes),
        recipe.batch_size,
        recipe.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accumulate=recipe.accumulate,
        flip=recipe.flip,
        device=accelerator.device,
    )


def build_monitor(data: Packed, recipe: Recipe, device: torch.device) -> Monitor | None:
    """What --evaluate-every asks for; the evaluation is not even imported without it."""
    if recipe.evaluate_every is None:
        return None
    from genmodels.evaluation.monitor import Monitor

    return Monitor(data, device)


def identity_of(model: Model, data: Packed, recipe: Recipe) -> dict[str, Any]:
    """What must be the same to continue a run: the model, the data, and what decides the order of the batches."""
    return {
        "family": model.family,
        "model": dataclasses.asdict(model.config),
        "data": data.fingerprint,
        "seed": recipe.seed,
        "batch_size": recipe.batch_size,
        "flip": recipe.flip,
    }


def summary(model: Model, data: Packed, recipe: Recipe, accelerator: Accelerator, state: State, sharded: bool) -> str:
    """One line on what begins."""
    begin = f"continuing at step {state.step:,}" if recipe.resume else "training"
    count = sum(p.numel() for p in model.parameters())
    length = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.minutes:g} minutes"
    shards = " in shards" if sharded else ""
    where = f"{accelerator.num_processes} x {accelerator.device.type}{shards}, precision {recipe.mixed_precision}"
    images = f"{len(data):,} images of {data.source}"
    return f"{begin}: {model.family}, {count:,} parameters, {images}, {length}, {where}, into {recipe.output}"
