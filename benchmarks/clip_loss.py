"""Compare the loss of CLIP and its gradients with open_clip's ClipLoss, on one process and on two.

    pip install open_clip_torch
    python benchmarks/clip_loss.py

It prints the largest difference of losses and of gradients. On several processes, ClipLoss is used
with local_loss and gather_with_grad, and gradients are averaged as DistributedDataParallel does.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from genmodels.distributed import first_row, gather_with_gradients
from genmodels.nn.contrastive import softmax_loss

N, WIDTH, SCALE = 64, 128, 14.3
"""Pairs of the global batch, size of the embeddings and factor on their similarities."""


def ours(image: Tensor, text: Tensor) -> Tensor:
    """The loss of this process's rows, as `CLIP.loss` computes it."""
    every_image, every_text = gather_with_gradients(image), gather_with_gradients(text)
    own = torch.arange(len(image)) + first_row(len(image))
    return softmax_loss(SCALE * image @ every_text.T, SCALE * text @ every_image.T, own)


def compare(rank: int, processes: int) -> None:
    """Compute both losses and their gradients on this process's part of one batch."""
    from open_clip.loss import ClipLoss

    if processes > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
        dist.init_process_group("gloo", rank=rank, world_size=processes)
    generator = torch.Generator().manual_seed(0)
    rows = slice(rank * N // processes, (rank + 1) * N // processes)
    batch = [torch.randn(N, WIDTH, generator=generator)[rows] for _ in range(2)]
    theirs = ClipLoss(local_loss=processes > 1, gather_with_grad=processes > 1, rank=rank, world_size=processes)
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    for loss_of in (ours, lambda image, text: theirs(image, text, torch.tensor(SCALE))):
        leaves = [part.clone().requires_grad_() for part in batch]
        loss: Any = loss_of(*(F.normalize(leaf, dim=1) for leaf in leaves))
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None]) / processes)
    loss_error = float((losses[0] - losses[1]).abs())
    error, largest = float((gradients[0] - gradients[1]).abs().max()), float(gradients[1].abs().max())
    print(
        f"{processes} process(es), rank {rank}: loss {losses[0]:.6f}, differs by {loss_error:.1e}; gradients of at "
        f"most {largest:.1e} differ by {error:.1e}"
    )
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    compare(0, 1)
    torch.multiprocessing.spawn(compare, (2,), nprocs=2)
