"""Agreement between processes. Every function does nothing when there is only one."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def all_reduce_sum(*tensors: Tensor) -> None:
    """Sums each tensor in place over all ranks. Sum and count together give a mean: reduce both, then divide.

    Call it on every rank, in the same order; `Generator.after_step` is the place for a model.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
