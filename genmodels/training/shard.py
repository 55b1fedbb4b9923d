"""FSDP (arXiv 2304.11277): weights, gradients, EMA and optimiser state sharded over processes.

It uses `fully_shard` of torch and is enabled by an accelerate config such as configs/fsdp.yaml.
Models are gathered before they are displayed, saved or sampled from, so a checkpoint does not
depend on the number of processes that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from accelerate.utils.other import is_repeated_blocks
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.distributed import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


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
            f"FSDP trains models with one optimiser, but this {model.kind} has {len(model.turns)} "
            f"({', '.join(model.turns)}): launch it without the FSDP config"
        )


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the repeated blocks of `model`: modules in a ModuleList of one class.

    An outer block comes before the blocks that it contains.
    """
    for layers in model.modules():
        if is_repeated_blocks(layers):
            yield from layers.children()


def shard(root: nn.Module, trained: Iterable[nn.Parameter], mesh: DeviceMesh) -> None:
    """Shard the `trained` parameters of `root` in place over the processes of `mesh`.

    The weights of a block are gathered when it runs. Other parameters, such as those of a frozen
    codec, are not sharded, because they are also used outside of forward().

    Args:
        root: the model, with the same weights on every process, or a module that calls it.
        trained: parameters to shard.
        mesh: of one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    reshard = FullyShardedDataParallelPlugin().reshard_after_forward
    trained = list(trained)
    for parameter in trained:
        if not is_sharded(parameter):
            parameter.data = parameter.data.contiguous()  # channels_last cannot be sharded
    others = {*root.parameters()} - {*trained}
    blocks = [block for block in repeated_blocks(root) if not others.issuperset(block.parameters())]
    for block in reversed(blocks):  # inner blocks first
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard, ignored_params=others)
    fully_shard(root, mesh=mesh, ignored_params=others)


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
