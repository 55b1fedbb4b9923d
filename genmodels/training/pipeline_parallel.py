"""Pipeline parallelism (arXiv 1811.06965): each stage of processes holds and computes some blocks.

The micro-batches of a step go through the stages one after another, in the order that a schedule of
torch.distributed.pipelining says. The first stage also holds the embeddings, and the last one the
head, which computes the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.nn.stages import Stages
from genmodels.training.layout import Layout
from genmodels.training.recipe import Recipe
from genmodels.types import Batch, mix_seed


def check_stages_fit(model: Model, recipe: Recipe) -> None:
    """Check that `model` can be divided into the stages of the recipe, and a step into enough
    micro-batches.

    Raises:
        ValueError: if not.
    """
    count = recipe.pipeline_stages
    if not model.can("stages"):
        raise ValueError(f"--pipeline-stages divides transformers, and this {model.kind} is none: leave it out")
    depth = len(stages_of(model).blocks)
    if count > depth:
        raise ValueError(f"--pipeline-stages {count} is more than the {depth} blocks of the transformer")
    if recipe.accumulate < count:
        raise ValueError(
            f"--pipeline-stages {count} needs at least as many micro-batches: use --accumulate {count} or more, got "
            f"{recipe.accumulate}"
        )


def stages_of(model: Any) -> Stages:
    """The parts of the loss of a model that can be divided."""
    stages: Stages = model.stages()
    return stages


def first_block(depth: int, stages: int, stage: int) -> int:
    """Index of the first block of a stage. All stages have the same number of blocks, or one more."""
    return -(-depth * stage // stages)


def keep_stage(model: Model, layout: Layout) -> None:
    """Move the trained weights of other stages to the meta device, where they use no memory."""
    parts = stages_of(model)
    starts = [first_block(len(parts.blocks), layout.stages, stage) for stage in range(layout.stages + 1)]
    owners = {id(p): layout.stages - 1 for module in parts.last for p in module.parameters()}
    for stage in range(layout.stages):
        modules = [module for block in parts.blocks[starts[stage] : starts[stage + 1]] for module in block]
        owners |= {id(p): stage for module in modules for p in module.parameters()}
    trained = {id(p) for turn in model.turns for p in model.parameters_for(turn)}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in trained and owners.get(id(parameter), 0) != layout.stage:
                empty = torch.empty_like(parameter, device="meta")
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))


class Stage(nn.Module):
    """The part of the loss of a model that one stage computes.

    Args:
        model: the model, which holds the weights of this stage.
        layout: which stage this is.
        autocast: returns the context of the precision of the run.
    """

    def __init__(self, model: Model, layout: Layout, autocast: Callable[[], AbstractContextManager[Any]]):
        super().__init__()
        self.model = model
        self.parts = stages_of(model)
        self.autocast = autocast
        self.is_first, self.is_last = layout.stage == 0, layout.stage == layout.stages - 1
        first, last = (first_block(len(self.parts.blocks), layout.stages, layout.stage + i) for i in (0, 1))
        self.first, self.last = first, last
        self.seeds: list[int] = []
        self.drawn: list[Any] = []
        self.metrics: dict[int, dict[str, Tensor]] = {}

    def begin(self, batches: list[Batch], seed: int) -> None:
        """Draw the random numbers of a step. Those of dropout are seeded per micro-batch, because
        schedules differ in their order."""
        self.metrics = {}
        self.seeds = [mix_seed(seed, number) for number in range(len(batches))]
        self.drawn = [self.parts.prepare(batch) if self.is_first or self.is_last else None for batch in batches]

    def forward(self, *carried: Tensor, number: Tensor) -> Any:
        """Compute one micro-batch.

        Args:
            *carried: outputs of the stage before. The first stage ignores them.
            number: index of the micro-batch, (1,).

        Returns:
            What the next stage needs; of the last stage the loss, (1,).
        """
        i = int(number)
        torch.manual_seed(self.seeds[i])
        with self.autocast():
            inputs = self.parts.embed(self.drawn[i]) if self.is_first else carried
            outputs = self.parts.through(inputs, self.first, self.last)
            if not self.is_last:
                return outputs
            loss, metrics = self.parts.loss(outputs, self.drawn[i])
        self.metrics[i] = {"loss": loss.detach()} | metrics
        return torch.stack([loss.float()])  # FSDP does not like views


class Pipeline:
    """Computes gradients by a schedule.

    Args:
        stage: the stage of this process, which may be sharded.
        layout: how processes divide the model.
        recipe: gives the schedule and the number of micro-batches.
        device: device of this process.
    """

    def __init__(self, stage: Stage, layout: Layout, recipe: Recipe, device: torch.device):
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

        self.stage, self.layout, self.seed = stage, layout, recipe.seed
        self.group = layout.along("stage").get_group()
        self.names: list[str] = []
        kind = ScheduleGPipe if recipe.pipeline_schedule == "gpipe" else Schedule1F1B
        self.schedule = kind(
            PipelineStage(stage, layout.stage, layout.stages, device, group=self.group),
            recipe.accumulate,
            # The gradient of a step is that of the mean over its micro-batches, so it is not scaled once more.
            loss_fn=lambda loss, _: loss.sum() / recipe.accumulate,
            scale_grads=False,
        )

    def gradients(self, batches: list[Batch], step: int) -> dict[str, Tensor]:
        """Compute the gradients of this stage for one step.

        Args:
            batches: micro-batches, the same on all stages.
            step: index of the step.

        Returns:
            The loss and metrics, averaged over the micro-batches, on every stage.
        """
        self.stage.begin(batches, mix_seed(self.seed, step, self.layout.copy, self.layout.stage))
        numbers = torch.arange(len(batches))
        inputs = (numbers,) if self.stage.is_first else ()
        target = numbers if self.stage.is_last else None
        self.schedule.step(*inputs, number=numbers, target=target, return_outputs=False)
        return self._means(len(batches))

    def _means(self, count: int) -> dict[str, Tensor]:
        metrics, last = self.stage.metrics, self.layout.stages - 1
        if not self.names:
            names = [sorted(metrics[0]) if self.stage.is_last else []]
            dist.broadcast_object_list(names, group=self.group, group_src=last)
            self.names = names[0]
        means = torch.zeros(len(self.names), device=self.layout.along("stage").device_type)
        if self.stage.is_last:
            rows = [torch.stack([metrics[i][name].detach().float() for name in self.names]) for i in range(count)]
            means = torch.stack(rows).mean(0)
        dist.broadcast(means, group=self.group, group_src=last)
        return dict(zip(self.names, means.unbind(), strict=True))
