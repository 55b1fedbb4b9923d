"""How the processes of a run divide the model, and tensors of which each of them has a part.

Three ways can be combined: stages of blocks (pipeline parallelism, training/pipeline_parallel.py), shards of
weights with different images (FSDP, training/shard.py) and parts of layers (tensor parallelism,
training/tensor_parallel.py). Checkpoints, averages and exported models are always complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genmodels.distributed import is_sharded, whole
from genmodels.training.recipe import Recipe
from genmodels.training.shard import like, own, sharding_wanted

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DIMENSIONS = ("stage", "copy", "part")
"""Dimensions of the mesh of all processes. The parts of a layer, which communicate most, are
neighbours."""


class Held(NamedTuple):
    """What a stage tells the others about a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str


@dataclass
class Layout:
    """Numbers of stages, copies and parts, whose product is the number of processes."""

    stages: int = 1
    """Stages of the pipeline, each of which holds some of the blocks."""
    copies: int = 1
    """Groups of processes that train on different images."""
    parts: int = 1
    """Processes over which the layers of a block are divided."""
    process: int = 0
    """Index of this process."""
    shards: bool = False
    """Whether each copy holds a shard of the weights only (FSDP)."""
    mesh: DeviceMesh | None = None
    """The processes by `DIMENSIONS`, if they divide the model."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Order of the rows of weights whose layers are divided, by name (`tensor_parallel.row_order`)."""

    @property
    def stage(self) -> int:
        """Index of the stage of this process."""
        return self.process // (self.copies * self.parts)

    @property
    def copy(self) -> int:
        """Index of the copy that this process belongs to."""
        return self.process // self.parts % self.copies

    @property
    def divides(self) -> bool:
        """Whether processes hold parts of the model."""
        return self.shards or self.stages > 1 or self.parts > 1

    @property
    def splits(self) -> bool:
        """Whether they do so in other ways than FSDP alone."""
        return self.stages > 1 or self.parts > 1

    def describe(self) -> str:
        """Describe how the model is divided, for the line that a run begins with."""
        ways = {"sharded": self.shards, f"{self.stages} stages": self.stages > 1, f"{self.parts} parts": self.parts > 1}
        used = [way for way, is_used in ways.items() if is_used]
        return f" ({', '.join(used)})" if used else ""

    def connect(self, device: torch.device) -> None:
        """Build the mesh. Every process must call this, before it divides a model."""
        from torch.distributed.device_mesh import init_device_mesh

        self.mesh = init_device_mesh(device.type, (self.stages, self.copies, self.parts), mesh_dim_names=DIMENSIONS)

    def along(self, dimension: str) -> DeviceMesh:
        """The mesh of the processes that differ from this one in `dimension` only."""
        assert self.mesh is not None
        return self.mesh[dimension]

    # ---- complete tensors from parts, and back ----

    def complete(
        self, tensors: Mapping[str, Tensor], names: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the tensors of all processes by name, each complete. Every process must call
        this and use up the iterator.

        Args:
            tensors: tensors of this process. Those of other stages are on the meta device, or are
                left out.
            names: name of the parameter that a tensor has the rows of, where it is not its own.
        """
        held = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
        if self.stages == 1:
            for name, tensor in held.items():
                yield name, self._in_order(whole(tensor), (names or {}).get(name, name))
            return
        group = self.along("stage").get_group()
        described = {name: Held(tuple(t.shape), t.dtype, t.device.type) for name, t in held.items()}
        by_stage: list[dict[str, Held]] = [{} for _ in range(self.stages)]
        dist.all_gather_object(by_stage, described, group=group)
        device = torch.device(self.along("stage").device_type)
        for name, about in {name: about for stage in by_stage for name, about in stage.items()}.items():
            value = self._in_order(whole(held[name]), (names or {}).get(name, name)) if name in held else None
            owners = [stage for stage, described in enumerate(by_stage) if name in described]
            if value is not None and len(owners) == self.stages:  # frozen weights and buffers, which all stages hold
                yield name, value
                continue
            if value is None:
                value = torch.empty(about.shape, dtype=about.dtype, device=device)
            sent = value.to(device).contiguous()
            dist.broadcast(sent, group=group, group_src=owners[0])
            yield name, sent.to(about.device)

    def _in_order(self, tensor: Tensor, name: str) -> Tensor:
        return tensor[self.rows[name].argsort()] if name in self.rows and tensor.ndim else tensor

    def place(self, parameter: Tensor, value: Tensor, name: str) -> Tensor:
        """Return this process's part of a complete `value` that belongs to the parameter `name`."""
        return like(parameter, value[self.rows[name].to(value.device)] if name in self.rows else value)

    @torch.no_grad()
    def gather_into(self, model: nn.Module, divided: nn.Module) -> None:
        """Copy the weights and buffers of `divided` into `model`, a complete copy of the same model.

        Every process must call this. It does nothing if both are the same object.
        """
        if model is divided:
            return
        targets = named_tensors(model)
        separate = {name: value for name, value in named_tensors(divided).items() if value is not targets[name]}
        for name, value in self.complete(separate):
            targets[name].copy_(value)

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """Scale the gradients of all processes down to a norm of at most `largest`.

        Returns:
            The norm before, over all stages.
        """
        parameters = list(parameters)
        if not self.splits:
            return whole(nn.utils.clip_grad_norm_(parameters, largest))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        kinds: dict[tuple[str, ...], list[Tensor]] = {}
        for gradient in gradients:
            kinds.setdefault(divided_along(gradient), []).append(own(gradient))
        square = torch.zeros((), device=self.along("part").device_type)
        for dimensions in sorted(kinds):  # the same for all processes of a stage
            one = torch.stack([norm.float() for norm in torch._foreach_norm(kinds[dimensions])]).square().sum()
            for dimension in dimensions:
                dist.all_reduce(one, group=self.along(dimension).get_group())
            square += one
        dist.all_reduce(square, group=self.along("stage").get_group())
        norm = square.sqrt()
        torch._foreach_mul_([own(gradient) for gradient in gradients], (largest / (norm + 1e-6)).clamp_max(1.0))
        return norm


def layout_of(recipe: Recipe, processes: int, process: int = 0) -> Layout:
    """Return how `processes` processes divide the model of a recipe.

    Raises:
        ValueError: if the recipe and the launcher do not fit together.
    """
    stages, parts = recipe.pipeline_stages, recipe.tensor_parallel
    flags = " and ".join(
        f"--{name} {n}" for name, n in (("pipeline-stages", stages), ("tensor-parallel", parts)) if n > 1
    )
    if processes % (stages * parts):
        raise ValueError(
            f"{flags} need a multiple of {stages * parts} processes, got {processes}: start them with accelerate "
            "launch --num_processes"
        )
    copies = processes // (stages * parts)
    shards = sharding_wanted(processes) and copies > 1
    if stages * parts > 1 and copies > 1 and not shards:
        raise ValueError(
            f"{flags} with {processes} processes make {copies} copies of the model, which only FSDP trains together: "
            f"launch them with configs/fsdp.yaml, or use {stages * parts} processes"
        )
    return Layout(stages, copies, parts, process, shards)


def divided_along(tensor: Tensor) -> tuple[str, ...]:
    """Dimensions of the mesh along which the processes have different parts of `tensor`."""
    if not is_sharded(tensor):
        return ()
    names = tensor.device_mesh.mesh_dim_names or ()
    return tuple(name for name, placement in zip(names, tensor.placements, strict=True) if not placement.is_replicate())


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())
