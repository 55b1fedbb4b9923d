"""The games that a generator and a critic play, and the penalties on the critic's gradients."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.nn.discriminator import discriminator_hinge, generator_hinge

Game = Literal["relativistic", "non-saturating", "hinge", "wasserstein"]


def critic_loss(game: Game, real: Tensor, fake: Tensor) -> Tensor:
    """What the critic lowers.

    Args:
        game: relativistic pairing (arXiv 1807.00734, 2501.05441), the game of the first GAN (arXiv 1406.2661),
            hinge (arXiv 1705.02894) or Wasserstein (arXiv 1701.07875), which needs a penalty.
        real: scores of real images, (N,).
        fake: scores of generated ones, (N,).
    """
    if game == "relativistic":
        return F.softplus(fake - real).mean()
    if game == "non-saturating":
        return (F.softplus(-real) + F.softplus(fake)).mean()
    if game == "hinge":
        return discriminator_hinge(real, fake)
    return (fake - real).mean()


def generator_loss(game: Game, real: Tensor, fake: Tensor) -> Tensor:
    """What the generator lowers; the arguments of `critic_loss`. Only the relativistic game looks at real images."""
    if game == "relativistic":
        return F.softplus(real - fake).mean()
    if game == "non-saturating":
        return F.softplus(-fake).mean()
    return generator_hinge(fake)


def squared_slope(images: Tensor, scores: Tensor) -> Tensor:
    """|d score / d image|^2 of each image, (N,): R1 (arXiv 1801.04406) on real images, R2 on generated ones.

    Args:
        images: (N, ...), which require gradients.
        scores: (N,), each of its own image.
    """
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return slope.float().square().flatten(1).sum(1)


def between(real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Where WGAN-GP (arXiv 1704.00028) wants the critic to have slope 1: real + share (fake - real), share (N,)."""
    return torch.lerp(real, fake, share.view(-1, *[1] * (real.ndim - 1)))


def uncompiled() -> AbstractContextManager[None]:
    """Inside, compiled modules run as they are written: torch.compile knows no second derivatives."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import would take seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
