"""FSDP (arXiv 2304.11277): weights, gradients, their average and the optimiser's state in shards, one on each process.

torch's `fully_shard`, switched on by an accelerate config such as configs/fsdp.yaml. What is shown, saved and sampled
from is whole: a checkpoint is the same however many processes wrote it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from accelerate.utils.other import is_repeated_blocks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from genmodels.base import Generator


def sharding_wanted(processes: int) -> bool:
    """Whether accelerate's launcher was given a config with FSDP, and there is more than one process to share."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and processes > 1


def check_shardable(model: Generator) -> None:
    """Raises ValueError when `model` or what the launcher was asked for cannot be sharded."""
    if FullyShardedDataParallelPlugin().fsdp_version != 2:
        raise ValueError("FSDP of version 1 was asked for: set fsdp_version to 2, as in configs/fsdp.yaml")
    if len(model.turns) > 1:
        # fully_shard decides once which weights have gradients; turns change that within a step.
        raise ValueError(
            f"FSDP trains models of one optimiser, and this {model.family} has {len(model.turns)} "
            f"({', '.join(model.turns)}): launch it without that config"
        )


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Every block of `model` that stands in a list of its kind, outer ones before what they contain."""
    for layers in model.modules():
        if is_repeated_blocks(layers):
            # A single layer is no block.
            yield from (block for block in layers.children() if any(True for _ in block.children()))


def shard(model: nn.Module, trained: Collection[str], device: torch.device) -> None:
    """Leaves on this process its shard of each parameter of `model` named in `trained`, and gathers a block's when the
    block runs. In place. The others, a codec's, stay whole: they are used outside of forward() too."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # channels_last kernels cannot be sharded
    rest = {parameter for name, parameter in model.named_parameters() if name not in trained}
    reshard = FullyShardedDataParallelPlugin().reshard_after_forward
    for block in reversed(list(repeated_blocks(model))):  # inner ones first
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard, ignored_params=rest)
    fully_shard(model, mesh=mesh, ignored_params=rest)


def whole(tensor: Tensor) -> Tensor:
    """`tensor`, gathered if it is in shards; every process takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """A copy of `value`, the same on all processes, with the layout and the shards of `tensor`."""
    if isinstance(tensor, DTensor):
        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    return torch.empty_like(tensor).copy_(value)


@torch.no_grad()
def gather_into(model: nn.Module, sharded: nn.Module) -> None:
    """Gives `model` the weights and buffers of `sharded`, the same model in shards. Every process takes part."""
    if model is sharded:
        return
    for target, value in zip(_tensors(model), _tensors(sharded), strict=True):
        if target is not value:  # a codec is shared
            target.copy_(whole(value))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
