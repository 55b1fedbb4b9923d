"""Agreement between processes. Every function does nothing when there is only one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduce_sum(*tensors: Tensor) -> None:
    """Sums each tensor in place over all ranks. Sum and count together give a mean: reduce both, then divide.

    Call it on every rank, in the same order; `Generator.after_step` is the place for a model.
    """
    if _several():
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)


def all_gather_rows(tensor: Tensor) -> Tensor:
    """The rows of every rank's `tensor` (n, ...), of the same shape on all, rank by rank: (ranks n, ...), a copy."""
    if not _several():
        return tensor.clone()
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def broadcast_first(*tensors: Tensor) -> None:
    """Overwrites each tensor in place with that of rank 0."""
    if _several():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
