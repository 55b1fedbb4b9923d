"""Adversarial losses of generator and critic, and gradient penalties."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.nn.discriminator import discriminator_hinge, generator_hinge

AdversarialLoss = Literal["relativistic", "non-saturating", "hinge", "wasserstein"]


def critic_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of the critic.

    Args:
        kind: relativistic pairing (arXiv 1807.00734, 2501.05441), non-saturating (arXiv 1406.2661),
            hinge (arXiv 1705.02894) or Wasserstein (arXiv 1701.07875), which needs a gradient
            penalty.
        real: scores of real images, (N,).
        fake: scores of generated images, (N,).
    """
    if kind == "relativistic":
        return F.softplus(fake - real).mean()
    if kind == "non-saturating":
        return (F.softplus(-real) + F.softplus(fake)).mean()
    if kind == "hinge":
        return discriminator_hinge(real, fake)
    return (fake - real).mean()


def generator_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of the generator, with the arguments of `critic_loss`.

    Only the relativistic loss uses `real`.
    """
    if kind == "relativistic":
        return F.softplus(real - fake).mean()
    if kind == "non-saturating":
        return F.softplus(-fake).mean()
    return generator_hinge(fake)


def squared_slope(images: Tensor, scores: Tensor) -> Tensor:
    """Return |d score / d image|^2 of each image, (N,): R1 (arXiv 1801.04406), or R2 if generated.

    Args:
        images: (N, ...), which require gradients.
        scores: (N,); the score of an image must depend on that image only.
    """
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return slope.float().square().flatten(1).sum(1)


def between(real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Return real + share (fake - real), share (N,), for WGAN-GP (arXiv 1704.00028)."""
    return torch.lerp(real, fake, share.view(-1, *[1] * (real.ndim - 1)))


def uncompiled() -> AbstractContextManager[None]:
    """Run compiled modules in eager mode: torch.compile does not support second derivatives."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
