"""The training loop of every family. Read `fit`, then `train_step`.

The other functions compute gradients, handle steps that are not finite, and save checkpoints.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import reduce
from torch import Tensor

from genmodels.base import Model
from genmodels.data.packed import Packed
from genmodels.nn.low_precision import without_fp8
from genmodels.training.checkpoint import save_checkpoint, training_tensors
from genmodels.training.clock import stop_on_signal, too_short
from genmodels.training.ema import SNAPSHOTS, ema_decay, restore_buffers, save_snapshot, update_ema
from genmodels.training.folder import CHECKPOINTS, check_output, claimed
from genmodels.training.limits import AT_THE_END, ON_THE_WAY, STOPPED
from genmodels.training.log import in_words, reporting_full_disk
from genmodels.training.optim import learning_rate
from genmodels.training.recipe import Recipe, check_recipe
from genmodels.training.setup import Run, choose_precision, start
from genmodels.training.show import account, cost_of_end, measure, show
from genmodels.training.steps import step_name
from genmodels.types import Batch, mix_seed

SHOWN_AT = (0.05, 0.25, 0.5, 0.75)
"""Fractions of the run at which the model is displayed if --sample-every is not given."""
SAVE_SECONDS = 600.0
"""Longest time between two checkpoints if --save-every is not given."""
SKIPS_ALLOWED = 20
"""Number of consecutive non-finite steps after which training fails."""


def fit(model: Model, data: Packed, recipe: Recipe) -> Path:
    """Train `model` on the train split of `data` and return the run folder.

    `start` checks the arguments, initialises the model from data (or restores the newest
    checkpoint with --resume), and builds the optimisers, the batch reader and the EMA model. The
    loop then repeats until the steps or minutes of the recipe are used up:

    1. `train_step` updates the weights and the EMA on one batch.
    2. The clock computes `progress`, the fraction of the run that is done. Learning rate schedules
       and losses depend on time only through the step and `progress`.
    3. When they are due, `measure` scores samples (--evaluate-every), `run.log` writes a line of
       metrics, and `record` displays the model and saves a checkpoint.

    At the end, a last checkpoint is saved, and `show` calibrates the EMA model, saves it and
    displays samples.

    The run folder contains the EMA model (model.safetensors and config.json), README.md,
    config.yaml, metrics.jsonl, samples/ and checkpoints/. Under `accelerate launch`, every process
    makes the same call. On SIGTERM or Ctrl-C, or if the launcher ends, the current step is
    finished and a checkpoint is saved. Every step reseeds torch's global random number generator.

    One process at a time can train into a run folder. A run that was stopped before its first
    checkpoint can be started again in the same folder.

    Args:
        model: model to train, in place. It is returned to eval mode at the end, with its raw
            weights; load the run folder to get the EMA weights.
        data: packed images with all splits.
        recipe: settings of the run.

    Returns:
        The run folder, `recipe.output`.

    Raises:
        ValueError: if the recipe, the data, the model and the run folder do not fit together, or
            start-up leaves no time for a step.
        FloatingPointError: if the loss or a gradient was not finite in 20 consecutive steps.
        SystemExit: with status 1, if a signal stopped the run before its end.
    """
    recipe = choose_precision(check_recipe(recipe))
    if recipe.dry_run:
        from genmodels.training.dry_run import dry_run  # it uses this module

        return dry_run(model, data, recipe)
    check_output(recipe)
    with claimed(recipe.output), reporting_full_disk(recipe.output):
        return loop(start(model, data, recipe))


def loop(run: Run) -> Path:
    """Train until the end of the run or a signal, and return the run folder. See `fit`."""
    recipe, state = run.recipe, run.state
    try:
        with stop_on_signal(run.stop):
            state.elapsed, progress, stopping = run.clock.read(state.step, cost_of_end(run), run.stop.requested)
            first = progress
            if recipe.minutes is not None and progress >= 1 and state.step == 0:
                raise too_short(recipe.minutes, state.elapsed)
            while progress < 1 and not stopping:
                before = progress if state.step else 0.0
                began = time.monotonic()
                train_step(run, run.reader.read(state.step, progress), progress)
                run.clock.took(time.monotonic() - began)
                state.elapsed, progress, stopping = run.clock.read(state.step, cost_of_end(run), run.stop.requested)
                due = recipe.evaluate_every is not None and state.step % recipe.evaluate_every == 0
                if due and not stopping:
                    measure(run)
                if due or state.step % recipe.log_every == 0:
                    run.log.write(state, recipe, progress, first)
                if progress < 1 and not stopping and record(run, before, progress):
                    state.elapsed, progress, stopping = run.clock.read(state.step, cost_of_end(run), run.stop.requested)
            checkpoint = save(run)
            run.log.write(state, recipe, progress, first)
            if progress >= 1 and recipe.ema_snapshots:
                snapshot(run)
            if progress < 1:
                run.log.say(f"stopped by {run.stop.reason or 'a signal'} at step {state.step:,}; saved {checkpoint}")
                other = "" if recipe.stage else f", or --config {recipe.output}/config.yaml --resume"
                run.log.say(f"continue with the same command and --resume{other}")
            show(run, STOPPED if progress < 1 else AT_THE_END)
    finally:
        run.log.close()
        release(run)
    if progress < 1:
        raise SystemExit(1)
    run.log.say(f"trained {state.step:,} steps in {in_words(run.clock.now())}: {recipe.output}")
    return recipe.output


def train_step(run: Run, batches: list[Batch], progress: float) -> None:
    """Take one optimiser step per turn, then call `after_step` and update the EMA.

    If the loss or a gradient of a turn is not finite, this turn and those after it are skipped.

    Args:
        run: the run to advance by one step.
        batches: micro-batches of this process. Every turn uses all of them.
        progress: fraction of the run that is done. The learning rate depends on it.
    """
    recipe, state = run.recipe, run.state
    # Dropout draws from the global generator. Seeding it per step makes resumed runs identical.
    torch.manual_seed(mix_seed(recipe.seed, state.step, run.layout.copy))
    lr = learning_rate(recipe.optim, state.step, progress)
    buffers = [buffer.clone() for buffer in run.model.buffers()]
    values: dict[str, Tensor] = {}
    for turn, optimizer in run.optimizers.items():
        enable_only(run, turn)
        means, norm = gradients(run, turn, batches)
        if not is_finite(means["loss"], norm):
            discard(run, turn, buffers, lr, means["loss"], norm)
            break
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        prefix = f"{turn}/" if len(run.optimizers) > 1 else ""
        values |= {prefix + name: value for name, value in (means | {"grad_norm": norm}).items()}
    else:
        run.model.after_step()
        state.skipped_in_a_row = 0
        run.log.add(values | {"lr": torch.tensor(lr, device=norm.device)}, recipe.batch_size)
    state.step += 1
    update_ema(run.average, run.model, ema_decay(state.step, recipe.ema))


def enable_only(run: Run, turn: str) -> None:
    """Require gradients for the parameters of `turn` and for no others."""
    run.model.requires_grad_(False)
    for parameter in run.parameters[turn]:
        parameter.requires_grad_(True)


def gradients(run: Run, turn: str, batches: list[Batch]) -> tuple[dict[str, Tensor], Tensor]:
    """Compute the gradients of `turn`, averaged over micro-batches and processes, and clip them.

    Returns:
        The loss and metrics, averaged over the micro-batches of this process, and the norm of the
        gradients before clipping.
    """
    accelerator = run.accelerator
    means: dict[str, Tensor] = {}
    if run.pipeline is not None:
        means, batches = run.pipeline.gradients(batches, run.state.step), []
    for batch in batches:
        # Gradients are all-reduced only at the last micro-batch (under FSDP, at every one).
        with nullcontext() if batch is batches[-1] else accelerator.no_sync(run.network):
            loss, metrics = run.network(batch, turn)
            accelerator.backward(loss / len(batches))
        for name, value in ({"loss": loss} | metrics).items():
            means[name] = means.get(name, 0) + value.detach().float() / len(batches)
    if accelerator.scaler is not None:  # fp16
        accelerator.scaler.unscale_(run.optimizers[turn])
        accelerator.scaler.update()
    clip = run.recipe.optim.clip
    return means, run.layout.clip(run.parameters[turn], float("inf") if clip is None else clip)


def is_finite(loss: Tensor, norm: Tensor) -> bool:
    """Return whether the loss of every rank and the norm of the shared gradients are finite."""
    failed = reduce((~loss.isfinite()).float(), "sum")
    return bool((failed == 0) & norm.isfinite())


def discard(run: Run, turn: str, buffers: list[Tensor], lr: float, loss: Tensor, norm: Tensor) -> None:
    """Discard the gradients of a non-finite turn, restore the buffers and count the skipped step.

    Args:
        run: the run.
        turn: the turn whose loss or gradient is not finite.
        buffers: values of the model's buffers before the step.
        lr: learning rate of the step, for the error message.
        loss, norm: loss of the turn and norm of its gradients, for the messages.

    Raises:
        FloatingPointError: if there were `SKIPS_ALLOWED` such steps in a row.
    """
    state, recipe = run.state, run.recipe
    run.optimizers[turn].zero_grad()
    restore_buffers(run.model, buffers)
    state.skipped += 1
    state.skipped_in_a_row += 1
    what = f"step {state.step}, turn {turn!r}: loss {loss.item():.4g}, gradient norm {norm.item():.4g}"
    if state.skipped_in_a_row == 1:
        run.log.say(f"skipped {what}: not finite")
    if state.skipped_in_a_row >= SKIPS_ALLOWED:
        raise FloatingPointError(
            f"{what}: not finite for {SKIPS_ALLOWED} steps in a row (learning rate {lr:.3g}, precision "
            f"{recipe.mixed_precision}). Try a lower --optim.lr, a longer --optim.warmup, --optim.clip 1 or "
            f"--mixed-precision no. Earlier checkpoints are in {recipe.output / 'checkpoints'}"
        )


def record(run: Run, before: float, progress: float) -> bool:
    """Display the model, save an EMA snapshot and save a checkpoint, each only if it is due.

    Args:
        run: the run, between two steps.
        before: fraction of the run that was done before the last step.
        progress: fraction that is done now.

    Returns:
        Whether the model was displayed.
    """
    recipe, state = run.recipe, run.state

    def is_due(every: int | None, marks: tuple[float, ...]) -> bool:
        return any(before < mark <= progress for mark in marks) if every is None else state.step % every == 0

    shown = is_due(recipe.sample_every, SHOWN_AT)
    kept = any(before < k / recipe.ema_snapshots <= progress for k in range(1, recipe.ema_snapshots))
    if (shown or kept) and not state.saved:  # a folder with weights also has a checkpoint, so that it can be resumed
        save(run)
    if shown:
        show(run, ON_THE_WAY)
    if kept:
        snapshot(run)
    overdue = recipe.save_every is None and state.elapsed - state.saved > SAVE_SECONDS
    if is_due(recipe.save_every, SHOWN_AT[:1]) or overdue:
        save(run)
    return shown


def save(run: Run) -> Path:
    """Save a checkpoint and return its path. Every rank must call this; rank 0 writes."""
    state, accelerator = run.state, run.accelerator
    began = time.monotonic()
    run.log.save(state)
    state.saved = state.elapsed
    if accelerator.scaler is not None:
        state.scaler = accelerator.scaler.state_dict()
    path = run.recipe.output / CHECKPOINTS / step_name(state.step)
    tensors = training_tensors(run.model, run.average, run.optimizers, accelerator.is_main_process, run.layout)
    if accelerator.is_main_process:
        now = replace(state, elapsed=run.clock.now())
        save_checkpoint(path, now, run.identity, tensors, run.recipe.keep)
    account(run, "save", began)
    return path


def snapshot(run: Run) -> None:
    """Save the current EMA weights as a snapshot. Every rank must call this.

    Averages of other widths can be computed from the snapshots after training (`average_of`).
    """
    run.layout.gather_into(run.ema, run.average)
    if run.accelerator.is_main_process:
        save_snapshot(run.recipe.output / SNAPSHOTS, run.ema, run.model, run.state.step, run.recipe.ema)


def release(run: Run) -> None:
    """Turn the model back into an ordinary module: in eval mode, trainable, unwrapped, uncompiled.

    A sharded model stays sharded. `run.ema` and the run folder hold its complete weights.
    """
    run.model.eval()
    run.model._card = None  # the card of a model that was loaded describes other weights
    for parameters in run.parameters.values():
        for parameter in parameters:
            parameter.requires_grad_(True)
    without_fp8(run.model)
    for module in run.model.modules():
        module._compiled_call_impl = None
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(run.model).pop(name, None)
