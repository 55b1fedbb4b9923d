"""Floating-point operations, of a multiply-add two: what torch's counter counts, and recurrences.

torch's counter knows matrix products and convolutions. A recurrence consists of elementwise
operations, of which it does not know how many belong to it: the code of a recurrence reports them,
by `count` or `counted`. Other elementwise operations (norms, activations, softmax) are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


class OperationCounter(FlopCounterMode):
    """torch's counter, with what the code of recurrences reports."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=FUSED_ATTENTION)
        self.reported = 0

    def get_total_flops(self) -> int:
        """Return the number of operations."""
        return super().get_total_flops() + self.reported


def attention_operations(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Count two products of (N, H, T, d) and (N, H, d, S), also where a mask hides a part of them."""
    n, heads, queries, d = query
    return 2 * n * heads * queries * key[2] * (d + value[3])


def attention_gradient_operations(_: tuple[int, ...], *shapes: tuple[int, ...], **__: Any) -> int:
    """Count the products of the gradients, twice those of the output. Scores that a kernel computes
    again are not counted, since other devices store them."""
    return 2 * attention_operations(*shapes[:3])


FUSED_ATTENTION: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention_operations,
    aten._scaled_dot_product_flash_attention: attention_operations,
    aten._scaled_dot_product_efficient_attention: attention_operations,
    aten._scaled_dot_product_cudnn_attention: attention_operations,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_gradient_operations,
    aten._scaled_dot_product_flash_attention_backward: attention_gradient_operations,
    aten._scaled_dot_product_efficient_attention_backward: attention_gradient_operations,
    aten._scaled_dot_product_cudnn_attention_backward: attention_gradient_operations,
}
"""The kernels of SDPA, which then count equally on every device."""

active: list[OperationCounter] = []
"""The counters that count now. A list of the module and no context variable, because the backward
pass on a GPU runs in threads of its own."""


@contextmanager
def counting() -> Iterator[OperationCounter]:
    """Context manager that counts floating-point operations, equally on every device."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that the counter does not know
    counter = OperationCounter()
    active.append(counter)
    try:
        with counter:
            yield counter
    finally:
        active.remove(counter)
        torch.backends.mha.set_fastpath_enabled(fast)


def count(operations: int) -> None:
    """Report operations that are being computed to the counters that are active."""
    for counter in active:
        counter.reported += operations


def counted(x: Tensor, operations: int) -> Tensor:
    """Return x, and report the operations that computed it, and twice as many when its gradient is
    computed: a multiply-add a b + c has two gradients, of a and of b.

    Args:
        x: result of elementwise operations.
        operations: their number.
    """
    if active:
        count(operations)
        if x.requires_grad:
            x.register_hook(lambda gradient: count(2 * operations))
    return x
