"""Statistics fitted to latents after training: their scale, and a density to sample from."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from genmodels.distributed import all_reduce_sum

MAX_COVARIANCE_VALUES = 2**24
"""Covariances with more values than this (64 MB of weights) are diagonal."""

EM_ROUNDS = 20
"""Iterations of expectation maximisation. On latents of faces, 50 gave no better samples."""


class Whitening(nn.Module):
    """Normalises the channels of a codec's latents to zero mean and unit variance for a prior.

    Args:
        channels: size of axis 1 of the latents, (N, channels) or (N, channels, h, w).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Fit to `latents` (N, C, ...). Standard deviations are at least 1e-6."""
        flat = latents.float().transpose(0, 1).flatten(1)  # (C, N...)
        self.mean.copy_(flat.mean(1))
        self.std.copy_(flat.std(1, correction=min(1, flat.shape[1] - 1)).clamp_min(1e-6))

    def whiten(self, latents: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (latents.ndim - 2)
        return (latents - self.mean.view(shape)) / self.std.view(shape)

    def unwhiten(self, latents: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (latents.ndim - 2)
        return latents * self.std.view(shape) + self.mean.view(shape)


class RunningWhitening(Whitening):
    """Whitening by moving averages of the moments of latents over the steps of training.

    `observe` accumulates sums, and `commit` adds them to the averages, once per step for all
    micro-batches and processes.

    Args:
        channels: size of axis 1 of the latents.
        momentum: weight of one step in the averages.
    """

    sums: Tensor

    def __init__(self, channels: int, momentum: float = 0.1):
        super().__init__(channels)
        self.momentum = momentum
        # A buffer, so that the training loop can undo a step whose loss was not finite.
        self.register_buffer("sums", torch.zeros(2 * channels + 1), persistent=False)

    @torch.no_grad()
    def observe(self, latents: Tensor) -> None:
        """Accumulate the statistics of `latents` (N, C, ...)."""
        flat = latents.float().transpose(0, 1).flatten(1)  # (C, N...)
        count = flat.new_tensor([flat.shape[1]])
        self.sums += torch.cat([flat.sum(1), flat.square().sum(1), count])

    @torch.no_grad()
    def commit(self) -> None:
        """Update the averages by the accumulated statistics, if there are any."""
        total = self.sums.clone()
        self.sums.zero_()
        all_reduce_sum(total)
        if total[-1] == 0:
            return
        mean, square = (total[:-1] / total[-1]).chunk(2)
        second = (self.std.square() + self.mean.square()).lerp(square, self.momentum)
        self.mean.lerp_(mean, self.momentum)
        self.std.copy_((second - self.mean.square()).clamp_min(1e-12).sqrt())


class GaussianMixture(nn.Module):
    """Mixture of K Gaussians over flattened latents, fitted by scikit-learn.

    RAE (arXiv 1903.12436) shows that such a density, fitted after training, describes the latents
    better than the prior used in training.

    Args:
        components: K.
        dim: D, the size of a flattened latent.
    """

    weights: Tensor
    means: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, components: int, dim: int):
        super().__init__()
        self.full = components * dim**2 <= MAX_COVARIANCE_VALUES
        scale = torch.zeros(components, dim, dim) if self.full else torch.ones(components, dim)
        if self.full:  # not torch.eye, which imports torch._dynamo on the meta device: it takes seconds
            scale.diagonal(dim1=1, dim2=2).fill_(1)
        self.register_buffer("weights", torch.full((components,), 1.0 / components))
        self.register_buffer("means", torch.zeros(components, dim))
        self.register_buffer("scale", scale)  # Cholesky factors (K, D, D), or standard deviations (K, D)
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Fit to `latents` (N, D) by expectation maximisation. The result is deterministic.

        If fewer than K latents are distinct, as many Gaussians as there are distinct latents are
        fitted, and the others get the weight 0.
        """
        # Slow to import, and needed in training only.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as SklearnMixture

        if not latents.isfinite().all():
            raise ValueError(
                "the latents of the model are not finite: its weights, or those of the checkpoint, are damaged"
            )
        data = latents.double().cpu().numpy()
        components = min(len(self.means), len(np.unique(data, axis=0)))
        data = data.repeat(2, 0) if len(data) == 1 else data  # scikit-learn needs two
        # A fraction of the variance is added, so that few images or constant dimensions do not make
        # it singular.
        floor = 1e-4 * float(data.var(0).mean()) + 1e-12
        model = SklearnMixture(
            components,
            covariance_type="full" if self.full else "diag",
            reg_covar=floor,
            max_iter=EM_ROUNDS,
            random_state=0,
            init_params="kmeans" if components > 1 else "random_from_data",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the remaining change is invisible in samples
            model.fit(data)
        covariance = torch.from_numpy(model.covariances_)
        scale = torch.linalg.cholesky(covariance) if self.full else covariance.sqrt()
        self.weights.zero_()
        self.weights[:components] = torch.from_numpy(model.weights_)
        # The rest repeats the last one, so that a choice rounded up to it draws from a fitted Gaussian.
        rows = torch.arange(len(self.means)).clamp_max(components - 1)
        self.means.copy_(torch.from_numpy(model.means_)[rows])
        self.scale.copy_(scale[rows])
        self.fitted.fill_(True)

    def sample(self, choice: Tensor, eps: Tensor) -> Tensor:
        """Return latents (N, D).

        Args:
            choice: uniform numbers (N,), which select the component.
            eps: standard normal numbers (N, D).
        """
        # As searchsorted, which ONNX lacks: the number of cumulative weights below the choice.
        below = self.weights.cumsum(0) < choice.unsqueeze(1)  # (N, K)
        component = below.sum(1).clamp_max(len(self.weights) - 1)  # (N,)
        scale = self.scale[component]
        spread = torch.einsum("nij,nj->ni", scale, eps) if self.full else scale * eps
        return self.means[component] + spread
