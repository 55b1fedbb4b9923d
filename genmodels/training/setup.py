"""Set up a run: check that model, data, recipe and run folder fit together, and build its parts."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, patch_environment
from torch import Tensor, nn
from torch.optim import Optimizer

from genmodels.base import Model
from genmodels.data.batches import BatchReader
from genmodels.data.packed import Packed
from genmodels.modes import computes_bf16
from genmodels.nn.low_precision import use_fp8
from genmodels.sampling import processes
from genmodels.training import tensor_parallel
from genmodels.training.checkpoint import State, load_checkpoint, load_optimizers, newest_checkpoint
from genmodels.training.checks import check_fit
from genmodels.training.clock import Clock, Stop
from genmodels.training.ema import SNAPSHOTS, drop_snapshots
from genmodels.training.folder import CHECKPOINTS
from genmodels.training.layout import Layout, layout_of
from genmodels.training.limits import most_images, timed_batches
from genmodels.training.log import RunLog
from genmodels.training.optim import build_optimizer
from genmodels.training.pipeline_parallel import Pipeline, Stage, keep_stage
from genmodels.training.recipe import Recipe
from genmodels.training.record import as_trained, identity_of, summary, write_config
from genmodels.training.shard import repeated_blocks, shard
from genmodels.training.steps import list_checkpoints
from genmodels.training.tracking import start_tracker
from genmodels.usage import say

if TYPE_CHECKING:
    from genmodels.evaluation.monitor import Monitor

INITIALISATION = 8_192
"""Largest number of training images passed to `Model.initialise`."""
INITIALISATION_PIXELS = 2**27
"""Largest number of their pixels: 8,192 images of 128 px, 2,048 of 256 px."""
INITIALISATION_SHARE = 0.05
"""Largest fraction of a --minutes budget for reading and encoding them."""
COMPILATIONS = 64
"""Largest number of compilations of one kind of block by --compile."""


@dataclass
class Run:
    """Everything that the training loop uses."""

    recipe: Recipe
    """Settings of the run."""
    data: Packed
    """The train split."""
    held_out: Packed | None
    """The valid split, or None if there is none."""
    accelerator: Accelerator
    model: Model
    """Model with the raw weights, which the optimisers update."""
    network: nn.Module
    """The same model, wrapped by accelerate for several processes and mixed precision."""
    ema: Model
    """Model with the averaged weights. It is displayed, exported and sampled from."""
    average: nn.Module
    """Module that every step updates. It is `ema` itself or, if processes divide the model, a copy
    that is divided like it, which is gathered into `ema` when needed."""
    parameters: dict[str, list[nn.Parameter]]
    """Parameters that each turn updates."""
    optimizers: dict[str, Optimizer]
    """Optimiser of each turn."""
    reader: BatchReader
    clock: Clock
    state: State
    log: RunLog
    layout: Layout
    """How processes divide the model."""
    pipeline: Pipeline | None
    """Computes the gradients if the model is divided into stages."""
    identity: dict[str, Any]
    """Settings that a resumed run must share with the run that it continues."""
    monitor: Monitor | None
    """Scores samples during training. None without --evaluate-every."""
    stop: Stop = field(default_factory=Stop)
    """Whether a signal has asked to stop."""


def start(model: Model, data: Packed, recipe: Recipe) -> Run:
    """Build a run that is ready for its first step or, with --resume, for the step to continue at.

    Args:
        model: model to train.
        data: packed images with all splits.
        recipe: settings of the run.

    Raises:
        ValueError: if the arguments or the run folder do not fit together. The run folder is not
            changed in that case.
    """
    check_fit(model, data, recipe)
    if model.conditions.classes:
        model.name_classes(data.class_names)
    recipe = as_trained(recipe, model, data)
    checkpoints = recipe.output / CHECKPOINTS
    restarts = recipe.resume and not list_checkpoints(checkpoints)
    recipe = replace(recipe, resume=recipe.resume and not restarts)
    train = data.split("train")
    accelerator = build_accelerator(model, recipe)
    device = accelerator.device
    layout = layout_of(recipe, accelerator.num_processes, accelerator.process_index)
    monitor = build_monitor(data, recipe, device)
    reader = build_reader(model, train, recipe, layout, device)
    model.to(device).train()
    began = time.monotonic()
    if not recipe.resume:
        with torch.no_grad():
            weights = copy.deepcopy(model.trained.state_dict()) if recipe.parent is not None else None
            model.initialise(initial_images(train, recipe, device))
            if weights is not None:  # of the stage before: only the other parts are initialised
                model.trained.load_state_dict(weights)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    identity = identity_of(model, train, recipe)
    state = State()
    if recipe.resume:
        checkpoint = newest_checkpoint(checkpoints, say if accelerator.is_main_process else lambda _: None)
        state = load_checkpoint(checkpoint, identity, model, ema)
    if layout.divides:
        broadcast(list(model.parameters()))
    low_precision = use_fp8(model, device) if recipe.mixed_precision == "fp8" else ""
    stage = Stage(model, layout, accelerator.autocast) if layout.stages > 1 else None
    average: Model = ema
    if layout.divides:  # before building the optimisers, which use the parts
        layout.connect(device)
        average = divide(model, ema, layout, stage)
    parameters = {turn: [p for p in model.parameters_for(turn) if p.requires_grad] for turn in model.turns}
    optimizers = {turn: build_optimizer(group, recipe.optim, model) for turn, group in parameters.items()}
    if recipe.resume:
        load_optimizers(checkpoint, optimizers, model, layout)
    if recipe.compile:
        compile_blocks(model)

    accelerator.wait_for_everyone()  # all ranks have read the folder before rank 0 writes to it
    if accelerator.is_main_process:
        write_config(model, recipe, data)
        drop_snapshots(recipe.output / SNAPSHOTS, state.step)
    broadcast(list(model.buffers()))  # from rank 0, as DistributedDataParallel does for parameters
    network = model if stage is not None else prepare(accelerator, model, layout.divides)
    if accelerator.scaler is not None and state.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    start_tracker(accelerator, recipe, state)
    spent = state.elapsed + recipe.startup + time.monotonic() - began
    clock = Clock(recipe.steps, recipe.minutes, spent, device, accelerator.is_main_process)
    log = RunLog(accelerator, recipe.output, state, quiet=recipe.dry_run)
    if restarts:
        log.say(f"{recipe.output} has no finished checkpoint: starting from the beginning")
    log.say(summary(model, train, recipe, accelerator, state, layout))
    if low_precision:
        log.say(low_precision)
    if recipe.evaluate_every is not None and monitor is None:
        log.say(f"no evaluation during training: {data.source} has too few images for it")
    if monitor is not None and model.can("sample"):
        log.say(monitor.describe())
    return Run(
        recipe=recipe,
        data=train,
        held_out=data.split("valid") if data.counts().get("valid") else None,
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
        layout=layout,
        pipeline=None if stage is None else Pipeline(stage, layout, recipe, device),
        identity=identity,
        monitor=monitor,
    )


def initial_images(train: Packed, recipe: Recipe, device: torch.device) -> Iterator[Tensor]:
    """Yield the batches of training images that the model is initialised on."""
    count = most_images(INITIALISATION, INITIALISATION_PIXELS, train.size)
    seconds = None if recipe.minutes is None else INITIALISATION_SHARE * 60 * recipe.minutes
    return timed_batches(train, count, seconds, device)


def compile_blocks(model: nn.Module, **settings: Any) -> None:
    """Compile every repeated block of `model` in place with torch.compile.

    Equal blocks share one compilation, and code outside of the blocks is not compiled.

    Args:
        model: model whose blocks are compiled.
        **settings: arguments of torch.compile.

    Raises:
        ValueError: if the model has no repeated blocks.
    """
    # Blocks that are a single layer do not benefit.
    blocks = [block for block in repeated_blocks(model) if any(True for _ in block.children())]
    if not blocks:
        raise ValueError("--compile compiles the repeated blocks of a network, but this model has none: leave it out")
    # One compilation for each size of block, with and without gradients.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)
    for block in blocks:
        block.compile(**settings)


def divide(model: Model, ema: Model, layout: Layout, stage: Stage | None) -> Model:
    """Divide `model` over the processes in place, and return a copy of `ema` that is divided alike.

    Args:
        model: the model, with the same weights on every process.
        ema: a complete copy of it.
        layout: how to divide it. It records the order of the rows of weights.
        stage: the module that computes this process's stage of `model`, if there are stages.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def divide_one(part: Model, root: nn.Module) -> None:
        if layout.stages > 1:
            keep_stage(part, layout)
        held = [name for name, parameter in part.named_parameters() if name in trained and not parameter.is_meta]
        if layout.parts > 1:
            layout.rows = tensor_parallel.divide(part, held, layout.along("part"))
        if layout.shards:
            parameters = dict(part.named_parameters())
            shard(root, [parameters[name] for name in held], layout.along("copy"))

    divide_one(model, stage or model)  # before the copy is made, to save memory
    average = copy.deepcopy(ema)
    divide_one(average, average)
    return average


def prepare(accelerator: Accelerator, model: Model, sharded: bool) -> nn.Module:
    """Wrap `model` with accelerate: mixed precision and, unless `sharded`, data parallelism."""
    with warnings.catch_warnings():  # torch 2.14 renames broadcast_buffers; accelerate does not know the new name yet
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return accelerator.prepare_model(model, evaluation_mode=sharded)


def choose_precision(recipe: Recipe) -> Recipe:
    """Replace the precision auto by the one that is fast on this device."""
    if recipe.mixed_precision != "auto":
        return recipe
    return replace(recipe, mixed_precision="bf16" if computes_bf16(processes().device) else "no")


def build_accelerator(model: Model, recipe: Recipe) -> Accelerator:
    """Build the accelerator, which sets processes, device and precision."""
    AcceleratorState._reset_state()  # lets one process train twice with different precisions
    # training/shard.py shards. The implementation of accelerate needs a GPU, and the optimiser
    # together with the model.
    with patch_environment(ACCELERATE_USE_FSDP="false"):
        return Accelerator(
            mixed_precision="bf16" if recipe.mixed_precision == "fp8" else recipe.mixed_precision,
            log_with=None if recipe.track == "none" else recipe.track,
            project_dir=recipe.output,
            kwargs_handlers=[
                # A turn leaves the parameters of other turns without gradients. Models reduce their
                # buffers over processes in after_step.
                DistributedDataParallelKwargs(find_unused_parameters=len(model.turns) > 1, broadcast_buffers=False)
            ],
        )


def build_reader(model: Model, train: Packed, recipe: Recipe, layout: Layout, device: torch.device) -> BatchReader:
    """Build the reader of this process's share of the batches.

    It returns only the attributes and the labels that `model` is conditioned on, and captions or
    conversations if it can read them.
    """
    conditions = model.conditions
    tokenize: Any = model.tokenize if model.can("tokenize") else None
    converse: Any = model.read_conversations if model.can("converse") else None
    return BatchReader(
        train if conditions.classes else replace(train, labels=None, class_names=()),
        recipe.batch_size,
        recipe.seed,
        rank=layout.copy,
        world_size=layout.copies,
        accumulate=recipe.accumulate,
        flip=recipe.flip,
        device=device,
        tokenize=tokenize,
        converse=converse,
        draws=model.can("sample"),
        attributes=conditions.attributes,
    )


def build_monitor(data: Packed, recipe: Recipe, device: torch.device) -> Monitor | None:
    """Build the monitor of --evaluate-every, or return None without importing the evaluation.

    None is also returned if there are too few images and the setting is the default of the recipe.
    """
    if recipe.evaluate_every is None:
        return None
    from genmodels.evaluation.monitor import Monitor, has_enough

    default = next(field.default for field in fields(recipe) if field.name == "evaluate_every")
    if recipe.evaluate_every == default and not has_enough(data):
        return None
    return Monitor(data, device)
