"""Contrastive losses of matching pairs: softmax (InfoNCE) and sigmoid.

Both take the rows of this process and the columns of all processes, so that each process computes
its own part of one loss over the global batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_loss(per_image: Tensor, per_text: Tensor, own: Tensor, ignored: Tensor | None = None) -> Tensor:
    """The loss of CLIP (arXiv 2103.00020): the mean cross-entropy of choosing the text of an image
    among all texts, and the image of a text among all images.

    Args:
        per_image: scores (n, N) of n images with all N texts.
        per_text: scores (n, N) of the n texts of these images with all N images.
        own: index (n,) of the matching column of each row.
        ignored: bool (2, n, N), True where a pair is not a negative, for both kinds of rows. None:
            every pair that does not match is a negative.

    Returns:
        The mean over the n pairs, a scalar.
    """
    losses = []
    for kind, scores in enumerate((per_image, per_text)):
        if ignored is not None:
            scores = scores.masked_fill(_without(ignored[kind], own), -torch.inf)
        losses.append(F.cross_entropy(scores, own))
    return (losses[0] + losses[1]) / 2


def sigmoid_loss(per_image: Tensor, own: Tensor, ignored: Tensor | None = None) -> Tensor:
    """The loss of SigLIP (arXiv 2303.15343): the logistic loss of every pair, which either matches
    or does not.

    Args:
        per_image: scores (n, N), including the bias, of n images with all N texts.
        own: index (n,) of the matching column of each row.
        ignored: bool (n, N), True where a pair is not a negative.

    Returns:
        The sum over the N texts, averaged over the n images.
    """
    signs = torch.full_like(per_image, -1.0).scatter_(1, own.unsqueeze(1), 1.0)  # (n, N)
    losses = F.softplus(-signs * per_image)
    if ignored is not None:
        losses = losses.masked_fill(_without(ignored, own), 0.0)
    return losses.sum(1).mean()


def fitting(attributes: Tensor, facts: Tensor) -> Tensor:
    """Return which captions fit which images: bool (N, M), True if all facts of caption j are
    known to be true of image i. A caption without facts fits no image.

    Args:
        attributes: of the images, (N, K) in {-1, 0, +1}: no, unknown, yes.
        facts: of the captions, (M, K) in the same form; 0 is not mentioned.
    """
    stated = facts.abs().sum(1)  # (M,)
    return (attributes @ facts.T == stated) & (stated > 0)


def _without(ignored: Tensor, own: Tensor) -> Tensor:
    """`ignored` without the matching pairs, which always count."""
    return ignored.scatter(1, own.unsqueeze(1), False)
