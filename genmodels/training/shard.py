"""FSDP (arXiv 2304.11277): weights, gradients, EMA and optimiser state sharded over processes.

It uses `fully_shard` of torch and is enabled by an accelerate config such as configs/fsdp.yaml.
Models are gathered before they are displayed, saved or sampled from, so a checkpoint does not
depend on the number of processes that wrote it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from accelerate.utils.other import is_repeated_blocks
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.distributed import is_sharded, whole


def sharding_wanted(processes: int) -> bool:
    """Return whether the accelerate launcher enabled FSDP and there is more than one process."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and processes > 1


def check_shardable(model: Model) -> None:
    """Check that `model` and the FSDP settings of the launcher are supported.

    Raises:
        ValueError: for FSDP version 1, settings without effect, or a model with several optimisers.
    """
    if FullyShardedDataParallelPlugin().fsdp_version != 2:
        raise ValueError("FSDP version 1 is not supported: set fsdp_version to 2, as in configs/fsdp.yaml")
    for name in ("fsdp_offload_params", "fsdp_activation_checkpointing"):
        if parse_flag_from_env(name.upper()):
            raise ValueError(f"{name} has no effect here: remove it (--model.transformer.recompute saves memory)")
    if len(model.turns) > 1:
        # fully_shard fixes which weights have gradients, but turns change that within a step.
        raise ValueError(
            f"FSDP trains models with one optimiser, but this {model.family} has {len(model.turns)} "
            f"({', '.join(model.turns)}): launch it without the FSDP config"
        )


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the repeated blocks of `model`: modules in a ModuleList of one class.

    An outer block comes before the blocks that it contains.
    """
    for layers in model.modules():
        if is_repeated_blocks(layers):
            yield from layers.children()


def shard(model: nn.Module, ema: nn.Module, device: torch.device) -> nn.Module:
    """Shard the trained parameters of `model` in place, and return a sharded copy of `ema`.

    The weights of a block are gathered when it runs. Frozen weights, such as those of a codec, are
    not sharded, because they are also used outside of forward().

    Args:
        model: the model, with the same weights on every process.
        ema: a complete copy of it.
        device: device of this process.

    Returns:
        A copy of `ema` with the same shards as `model`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    reshard = FullyShardedDataParallelPlugin().reshard_after_forward
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def shard_one(module: nn.Module) -> None:
        to_shard = [parameter for name, parameter in module.named_parameters() if name in trained]
        for parameter in to_shard:
            parameter.data = parameter.data.contiguous()  # channels_last cannot be sharded
        frozen = {*module.parameters()} - {*to_shard}
        blocks = [block for block in repeated_blocks(module) if not frozen.issuperset(block.parameters())]
        for block in reversed(blocks):  # inner blocks first
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard, ignored_params=frozen)
        fully_shard(module, mesh=mesh, ignored_params=frozen)

    shard_one(model)  # before the copy is made, to save memory
    average = copy.deepcopy(ema)
    shard_one(average)
    return average


def own(tensor: Tensor) -> Tensor:
    """Return the rows of `tensor` that this process holds: all, unless it is sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a copy of `value` with the memory layout and the sharding of `tensor`.

    `value` must be complete and equal on all processes.
    """
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        # src_data_rank=None: every process has the complete value, so nothing has to be sent.
        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    return torch.empty_like(tensor).copy_(value)


@torch.no_grad()
def gather_into(model: nn.Module, sharded: nn.Module) -> None:
    """Copy the weights and buffers of `sharded` into `model`, a complete copy of the same model.

    Every process must call this. It does nothing if both are the same object.
    """
    if model is sharded:
        return
    for target, value in zip(_tensors(model), _tensors(sharded), strict=True):
        if target is not value:  # both share a frozen codec
            target.copy_(whole(value))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
