"""Principal components of images or patches: the best linear autoencoder, in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SIDE = 64
"""Larger images are downsampled to this side by averaging, and reconstructions are upsampled."""
RANK_TOLERANCE = 1e-4
"""Components with singular values below this fraction of the largest are rounding errors."""
MIN_VALUE = 1e-6
"""Lower bound of standard deviations and errors, for data that are constant."""


class PCA(NamedTuple):
    """Principal components of N vectors of D values.

    Attributes:
        mean: (D,).
        centred: the vectors minus their mean, (N, D).
        basis: one column per component, (D, K).
        singular: singular values of `centred`, in decreasing order, (K,). Their squares divided by
            N are the variances along the components.
    """

    mean: Tensor
    centred: Tensor
    basis: Tensor
    singular: Tensor


def randomised_pca(data: Tensor, components: int) -> PCA:
    """Compute the first K principal components of `data` by randomised PCA (arXiv 0909.4061).

    The result is deterministic: the same data give the same basis.

    Args:
        data: float (N, D).
        components: K; at most min(N, D) are returned.
    """
    mean = data.mean(0)
    centred = data - mean
    count = min(components, *data.shape)
    with torch.random.fork_rng(devices=[data.device] if data.is_cuda else []):
        torch.manual_seed(0)
        _, singular, basis = torch.svd_lowrank(centred, q=min(count + 32, *data.shape), niter=2)
    return PCA(mean, centred, basis[:, :count], singular[:count])


class Components(nn.Module):
    """Buffers for the first D principal components of vectors.

    Args:
        values: length of the vectors.
        components: D.

    Raises:
        ValueError: if there are more components than values.
    """

    mean: Tensor
    basis: Tensor
    std: Tensor
    residual: Tensor

    def __init__(self, values: int, components: int):
        super().__init__()
        if components > values:
            raise ValueError(f"{components} principal components of {values} values: choose a smaller latent_dim")
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.zeros(values, components))
        self.register_buffer("std", torch.ones(components))
        self.register_buffer("residual", torch.tensor(1.0))  # mean squared error of the reconstruction


class PrincipalComponents(Components):
    """Maps images to whitened coordinates along their first D principal components, and back.

    These are the eigenfaces of Turk and Pentland (1991). Aligned faces lie close to a linear
    subspace. A network that is added to this map starts from the best linear reconstruction, with
    latents of zero mean and identity covariance, instead of learning them in its first epochs.

    Args:
        size: side of the images.
        components: D.
        channels: channels of the images; not 3 if they are the latents of a codec.
    """

    def __init__(self, size: int, components: int, channels: int = 3):
        side = min(size, MAX_SIDE)
        super().__init__(channels * side**2, components)
        self.size = size
        self.side = side

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Fit to `images` by randomised PCA, given in batches (N, 3, size, size) in [-1, 1].

        Components that the images do not determine, for example because there are too few images,
        stay zero.
        """
        data = torch.cat([self._flat(batch) for batch in images])  # (N, 3 side^2)
        mean, centred, basis, singular = randomised_pca(data, len(self.std))
        rank = int((singular > RANK_TOLERANCE * singular[0]).sum())
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[:, :rank] = basis[:, :rank]
        self.std.fill_(1.0)
        self.std[:rank] = (singular[:rank] / max(1, len(data) - 1) ** 0.5).clamp_min(MIN_VALUE)
        self.residual.copy_((centred - centred @ self.basis @ self.basis.T).square().mean().clamp_min(MIN_VALUE))

    def encode(self, images: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to whitened coordinates (N, D)."""
        return (self._flat(images) - self.mean.float()) @ self.basis.float() / self.std.float()

    def decode(self, white: Tensor) -> Tensor:
        """Map whitened coordinates (N, D) to images (N, 3, size, size)."""
        # Buffers of a model in half precision are used in float32.
        flat = torch.addmm(self.mean.float(), white.float() * self.std.float(), self.basis.float().T)
        images = flat.unflatten(1, (-1, self.side, self.side))
        if self.side == self.size:
            return images
        return F.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)

    def _flat(self, images: Tensor) -> Tensor:
        if self.side != self.size:
            images = F.interpolate(images, size=(self.side, self.side), mode="area")
        return images.flatten(1)  # (N, 3 side^2)


class PatchComponents(Components):
    """Maps each patch of an image to coordinates along D principal components, and back.

    This is the best linear autoencoder whose latents are a spatial map. The patches do not overlap
    and are encoded independently, so the linear reconstruction shows their borders; a network that
    is added to it can remove them.

    Args:
        size: side of the images.
        grid: number of patches along a side.
        components: D.
        white: scale every component to unit variance. Otherwise one scale is used for all
            components, chosen so that their mean variance is 1: distances are then proportional to
            pixel errors, as the choice of the nearest code requires.
    """

    def __init__(self, size: int, grid: int, components: int, white: bool = True):
        side = size // grid
        super().__init__(3 * side**2, components)
        self.side = side
        self.white = white

    @property
    def scale(self) -> Tensor:
        """Length that corresponds to a coordinate of 1, per component (D,) or for all."""
        return self.std if self.white else self.std.square().mean().sqrt()

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Fit to all patches of `images`, given in batches (N, 3, size, size) in [-1, 1].

        Only one batch is held in memory.
        """
        count, total = 0, torch.zeros_like(self.mean, dtype=torch.float64)
        products = total.outer(total)
        for batch in images:
            patches = self._patches(batch).permute(0, 2, 3, 1).flatten(0, 2).double()  # (M, 3 side^2)
            count, total, products = count + len(patches), total + patches.sum(0), products + patches.T @ patches
        mean = total / count
        variance, basis = torch.linalg.eigh(products / count - mean.outer(mean))  # ascending
        chosen = variance.flip(0)[: len(self.std)]
        self.mean.copy_(mean)
        self.basis.copy_(basis.flip(1)[:, : len(self.std)])
        self.std.copy_(chosen.clamp_min(MIN_VALUE**2).sqrt())
        self.residual.copy_(((variance.sum() - chosen.sum()) / len(variance)).clamp_min(MIN_VALUE))

    def encode(self, images: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to coordinates (N, D, grid, grid)."""
        centred = self._patches(images) - self.mean.float().view(-1, 1, 1)
        # Buffers of a model in half precision are used in float32.
        return F.conv2d(centred, (self.basis / self.scale).float().T[:, :, None, None])

    def decode(self, coordinates: Tensor) -> Tensor:
        """Map coordinates (N, D, grid, grid) to images (N, 3, size, size)."""
        patches = F.conv2d(coordinates, (self.basis * self.scale).float()[:, :, None, None])
        patches = patches + self.mean.float().view(-1, 1, 1)
        return F.pixel_shuffle(patches, self.side)

    def _patches(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.side)  # (N, 3 side^2, grid, grid)
