"""FSDP (arXiv 2304.11277): weights, gradients, their average and the optimiser's state in shards, one on each process.

torch's `fully_shard`, switched on by an accelerate config such as configs/fsdp.yaml. What is shown, saved and sampled
from is whole: the weights of a checkpoint are the same however many processes wrote it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from accelerate.utils.other import is_repeated_blocks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from genmodels.base import Model


def sharding_wanted(processes: int) -> bool:
    """Whether accelerate's launcher was given a config with FSDP, and there is more than one process to share."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and processes > 1


def check_shardable(model: Model) -> None:
    """Raises ValueError when `model` or what the launcher was asked for cannot be sharded."""
    if FullyShardedDataParallelPlugin().fsdp_version != 2:
        raise ValueError("FSDP of version 1 was asked for: set fsdp_version to 2, as in configs/fsdp.yaml")
    for name in ("fsdp_offload_params", "fsdp_activation_checkpointing"):
        if parse_flag_from_env(name.upper()):
            raise ValueError(f"{name} has no effect here: leave it out (--model.transformer.recompute saves memory)")
    if len(model.turns) > 1:
        # fully_shard decides once which weights have gradients; turns change that within a step.
        raise ValueError(
            f"FSDP trains models of one optimiser, and this {model.family} has {len(model.turns)} "
            f"({', '.join(model.turns)}): launch it without that config"
        )


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Every module of `model` that stands in a list of its kind, outer ones before what they contain."""
    for layers in model.modules():
        if is_repeated_blocks(layers):
            yield from layers.children()


def shard(model: nn.Module, ema: nn.Module, device: torch.device) -> nn.Module:
    """Leaves on this process its shard of what is trained in `model`, in place. A block's weights are gathered when it
    runs. What is frozen, a codec's weights, stays whole: it is used outside of forward() too.

    Args:
        model: the same on every process.
        ema: a whole copy of it.
        device: of this process.

    Returns:
        A copy of `ema` in the same shards.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    reshard = FullyShardedDataParallelPlugin().reshard_after_forward
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def shard_one(module: nn.Module) -> None:
        own = [parameter for name, parameter in module.named_parameters() if name in trained]
        for parameter in own:
            parameter.data = parameter.data.contiguous()  # kernels in channels_last cannot be sharded
        rest = {*module.parameters()} - {*own}
        blocks = [block for block in repeated_blocks(module) if not rest.issuperset(block.parameters())]
        for block in reversed(blocks):  # inner ones first
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard, ignored_params=rest)
        fully_shard(module, mesh=mesh, ignored_params=rest)

    shard_one(model)  # before there is another whole copy
    average = copy.deepcopy(ema)
    shard_one(average)
    return average


def whole(tensor: Tensor) -> Tensor:
    """`tensor`, gathered if it is in shards; every process takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """A copy of `value`, the same on all processes, with the layout and the shards of `tensor`."""
    if isinstance(tensor, DTensor):
        # Every process has the whole value: none has to be sent.
        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
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
