"""Collective operations that do nothing if there is only one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def all_reduce_sum(*tensors: Tensor) -> None:
    """Sum each tensor over all ranks, in place.

    To average, reduce the sum and the count, then divide. Every rank must call this in the same
    order; models call it in `after_step`.
    """
    if _several():
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)


def all_gather_rows(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all ranks' tensors (n, ...): a copy (world_size * n, ...).

    The tensors must have the same shape on all ranks.
    """
    if not _several():
        return tensor.clone()
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def gather_with_gradients(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all ranks' tensors (n, ...), of which gradients flow back to each
    rank.

    The gradient of a rank's rows is the sum of the gradients of all ranks' losses. The mean that
    DistributedDataParallel then takes over ranks makes it that of the mean of these losses.
    """
    gathered: Tensor = _GatherRows.apply(tensor) if _several() else tensor  # type: ignore[no-untyped-call]
    return gathered


class _GatherRows(torch.autograd.Function):
    """`all_gather_rows`, whose backward pass sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = slice(first_row(len(tensor)), first_row(len(tensor)) + len(tensor))
        return all_gather_rows(tensor.contiguous())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        all_reduce_sum(total)
        return total[ctx.rows]


def with_summed_gradient(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return `tensor`, whose gradient is summed over the processes of `group`.

    It is for a weight that all of them hold and apply to different parts of an input.
    """
    summed: Tensor = _SumGradient.apply(tensor, group)  # type: ignore[no-untyped-call]
    return summed


class _SumGradient(torch.autograd.Function):
    """The identity, whose backward pass sums the gradients of a group of processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def first_row(rows: int) -> int:
    """Return the index of this rank's first row among the gathered rows, of `rows` per rank."""
    return dist.get_rank() * rows if _several() else 0


def broadcast_first(*tensors: Tensor) -> None:
    """Overwrite each tensor with that of rank 0, in place."""
    if _several():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether each process holds a part of `tensor` only."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return `tensor`, gathered if it is sharded. Every process must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
