"""The training loop, for every family. Read `fit`, then `train_step`; the rest records."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.data.packed import Packed
from genmodels.training.checkpoint import save_checkpoint, training_tensors
from genmodels.training.clock import stop_on_signal
from genmodels.training.ema import SNAPSHOTS, ema_decay, restore_buffers, save_snapshot, update_ema
from genmodels.training.log import in_words
from genmodels.training.optim import learning_rate
from genmodels.training.recipe import Recipe, check_recipe
from genmodels.training.setup import Run, start
from genmodels.training.shard import gather_into, whole
from genmodels.training.show import AT_THE_END, ON_THE_WAY, account, cost_of_end, measure, show
from genmodels.types import Batch, mix_seed

SHOWN_AT = (0.05, 0.25, 0.5, 0.75)
"""Shares of the run after which the model is shown when --sample-every is not given."""
SAVE_SECONDS = 600.0
"""Between checkpoints when --save-every is not given."""
SKIPS_ALLOWED = 20
"""This many steps in a row that are not finite end the run."""


def fit(model: Model, data: Packed, recipe: Recipe) -> Path:
    """Trains `model` on the train split of `data` as `recipe` says, and returns the run folder.

    Under `accelerate launch` every process makes the same call. The folder gets the EMA model (model.safetensors and
    config.json), README.md, config.yaml, metrics.jsonl, samples/ and checkpoints/. SIGTERM and Ctrl-C finish the step,
    save a checkpoint and raise SystemExit with status 1. Every step seeds torch's global generator.

    Raises:
        ValueError: when recipe, data, model and folder do not fit together.
        FloatingPointError: when 20 steps in a row had a loss or gradient that was not finite.
    """
    recipe = check_recipe(recipe)
    run = start(model, data, recipe)
    state = run.state
    try:
        with stop_on_signal() as stop:
            state.elapsed, progress, stopping = run.clock.read(state.step, cost_of_end(run), stop.requested)
            first = progress
            while progress < 1 and not stopping:
                before = progress if state.step else 0.0
                train_step(run, run.reader.read(state.step, progress), progress)
                state.elapsed, progress, stopping = run.clock.read(state.step, cost_of_end(run), stop.requested)
                due = recipe.evaluate_every is not None and state.step % recipe.evaluate_every == 0
                if due and not stopping:
                    measure(run)
                if due or state.step % recipe.log_every == 0:
                    run.log.write(state, recipe, progress, first)
                if progress < 1 and not stopping:
                    record(run, before, progress)
            run.log.write(state, recipe, progress, first)
            checkpoint = save(run)
            if progress >= 1 and recipe.ema_snapshots:
                snapshot(run)
            if progress < 1:
                run.log.say(f"stopped by a signal at step {state.step:,}; saved {checkpoint}")
                run.log.say(
                    f"continue with the same command and --resume, or --config {recipe.output}/config.yaml --resume"
                )
            show(run, ON_THE_WAY if progress < 1 else AT_THE_END)
    finally:
        run.log.close()
        release(run)
    if progress < 1:
        raise SystemExit(1)
    run.log.say(f"trained {state.step:,} steps in {in_words(run.clock.now())}: {recipe.output}")
    return recipe.output


def train_step(run: Run, batches: list[Batch], progress: float) -> None:
    """One optimiser step of every turn, then after_step and the EMA. A turn that is not finite ends the step early.

    Args:
        run: what is trained.
        batches: this process's micro-batches; every turn sees all of them.
        progress: share of the run that is done; the learning rate follows it.
    """
    recipe, state = run.recipe, run.state
    # Dropout draws from the global generator. Seeded by step, it is the same in a resumed run.
    torch.manual_seed(mix_seed(recipe.seed, state.step, run.accelerator.process_index))
    lr = learning_rate(recipe.optim, state.step, progress)
    buffers = [buffer.clone() for buffer in run.model.buffers()]
    values: dict[str, Tensor] = {}
    for turn in run.model.turns:
        enable_only(run, turn)
        means, norm = gradients(run, turn, batches)
        if not is_finite(means["loss"], norm):
            discard(run, turn, buffers, lr, means["loss"], norm)
            break
        for group in run.optimizers[turn].param_groups:
            group["lr"] = lr
        run.optimizers[turn].step()
        run.optimizers[turn].zero_grad()
        prefix = f"{turn}/" if len(run.model.turns) > 1 else ""
        values |= {prefix + name: value for name, value in (means | {"grad_norm": norm}).items()}
    else:
        run.model.after_step()
        state.skipped_in_a_row = 0
        run.log.add(values | {"lr": torch.tensor(lr, device=norm.device)}, recipe.batch_size)
    state.step += 1
    update_ema(run.average, run.model, ema_decay(state.step, recipe.ema))


def enable_only(run: Run, turn: str) -> None:
    """Lets gradients reach the parameters of `turn` and no others."""
    run.model.requires_grad_(False)
    for parameter in run.parameters[turn]:
        parameter.requires_grad_(True)


def gradients(run: Run, turn: str, batches: list[Batch]) -> tuple[dict[str, Tensor], Tensor]:
    """Fills the gradients of `turn`: means over micro-batches and processes, clipped.

    Returns:
        Loss and metrics, means over this process's micro-batches; and the gradients' norm before clipping.
    """
    accelerator = run.accelerator
    means: dict[str, Tensor] = {}
    for batch in batches:
        # Processes exchange gradients once per turn, with the last micro-batch; those with shards, with each.
        with nullcontext() if batch is batches[-1] else accelerator.no_sync(run.network):
            loss, metrics = run.network(batch, turn)
            accelerator.backward(loss / len(batches))
        for name, value in ({"loss": loss} | metrics).items():
            means[name] = means.get(name, 0) + value.detach().float() / len(batches)
    if accelerator.scaler is not None:  # fp16
        accelerator.scaler.unscale_(run.optimizers[turn])
        accelerator.scaler.update()
    clip = run.recipe.optim.clip
    norm = nn.utils.clip_grad_norm_(run.parameters[turn], float("inf") if clip is None else clip)
    return means, whole(norm)


def is_finite(loss: Tensor, norm: Tensor) -> bool:
    """Whether every rank's loss, and the norm of the gradients they share, are finite."""
    failed = reduce((~loss.isfinite()).float(), "sum")
    return bool((failed == 0) & norm.isfinite())


def discard(run: Run, turn: str, buffers: list[Tensor], lr: float, loss: Tensor, norm: Tensor) -> None:
    """Drops the gradients of a turn that was not finite and what its forward left in `buffers`, and counts the step.

    Raises:
        FloatingPointError: when there were too many in a row.
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
            f"--mixed-precision no; earlier checkpoints are kept in {recipe.output / 'checkpoints'}"
        )


def record(run: Run, before: float, progress: float) -> None:
    """Shows the model and saves a checkpoint when it is time, between two steps."""
    recipe, state = run.recipe, run.state

    def is_due(every: int | None, marks: tuple[float, ...]) -> bool:
        return any(before < mark <= progress for mark in marks) if every is None else state.step % every == 0

    if is_due(recipe.sample_every, SHOWN_AT):
        show(run, ON_THE_WAY)
    if any(before < k / recipe.ema_snapshots <= progress for k in range(1, recipe.ema_snapshots)):
        snapshot(run)
    overdue = recipe.save_every is None and state.elapsed - state.saved > SAVE_SECONDS
    if is_due(recipe.save_every, SHOWN_AT[:1]) or overdue:
        save(run)


def save(run: Run) -> Path:
    """Saves a checkpoint and returns where it is. Every rank takes part; rank 0 writes."""
    state, accelerator = run.state, run.accelerator
    began = time.monotonic()
    state.saved = state.elapsed
    if accelerator.scaler is not None:
        state.scaler = accelerator.scaler.state_dict()
    path = run.recipe.output / "checkpoints" / f"step_{state.step:08d}"
    tensors = training_tensors(run.model, run.average, run.optimizers, accelerator.is_main_process)
    if accelerator.is_main_process:
        now = replace(state, elapsed=run.clock.now())
        save_checkpoint(path, now, run.identity, tensors, run.recipe.keep)
    account(run, "save", began)
    return path


def snapshot(run: Run) -> None:
    """Keeps the average of now, for averages of other widths after training. Every rank takes part."""
    gather_into(run.ema, run.average)
    if run.accelerator.is_main_process:
        save_snapshot(run.recipe.output / SNAPSHOTS, run.ema, run.model, run.state.step, run.recipe.ema)


def release(run: Run) -> None:
    """Gives the model back as an ordinary module: in eval mode, trainable as before, neither wrapped nor compiled.

    One in shards stays so: `run.ema` and the run folder hold it whole."""
    run.model.eval()
    for parameters in run.parameters.values():
        for parameter in parameters:
            parameter.requires_grad_(True)
    for module in run.model.modules():
        module._compiled_call_impl = None
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(run.model).pop(name, None)
