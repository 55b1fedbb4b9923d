"""The denoiser of Gaussian data, known in closed form: what is left to a network is what is not Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmodels.nn.principal import randomised_pca

MIN_VARIANCE = 1e-8


class GaussianDenoiser(nn.Module):
    """E[x_0 | x_t] if the data were normal, with the mean and the first K principal components of the real data.

    This is the Wiener filter. EDM's skip connection is the same for data of one variance in every direction
    (arXiv 2206.00364, equation 7); faces vary a thousand times as much in some directions as in others, and a network
    that corrects this filter need not learn which. At high noise the exact denoiser of any data is close to it
    (arXiv 2311.10892).

    Args:
        shape: of x, (C, H, W).
        components: K.
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor
    rest: Tensor

    def __init__(self, shape: tuple[int, int, int], components: int):
        super().__init__()
        values = shape[0] * shape[1] * shape[2]
        if not 1 <= components <= values:
            raise ValueError(f"components must be 1 to {values}, the numbers in x, got {components}")
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.zeros(values, components))
        self.register_buffer("variance", torch.ones(components))
        self.register_buffer("rest", torch.tensor(1.0))  # variance in every other direction

    @torch.no_grad()
    def fit(self, data: Tensor) -> None:
        """Measure `data` (N, C, H, W), by randomised PCA (arXiv 0909.4061). The same data give the same basis."""
        mean, centred, basis, singular = randomised_pca(data.float().flatten(1), len(self.variance))
        count, total = len(singular), centred.square().sum() / len(centred)
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[:, :count] = basis
        self.variance.fill_(MIN_VARIANCE)
        self.variance[:count] = (singular.square() / len(centred)).clamp_min(MIN_VARIANCE)
        others = len(mean) - count
        self.rest.copy_(((total - self.variance.sum()) / max(1, others)).clamp_min(MIN_VARIANCE))

    def forward(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x_t (N, C, H, W), alpha and sigma (N, 1, 1, 1) or of one element -> x_0, float32."""
        alpha, sigma = alpha.float().view(-1, 1), sigma.float().view(-1, 1)
        away = x_t.float().flatten(1) - alpha * self.mean  # (N, D)
        rest = self._gain(self.rest, alpha, sigma)  # (N, 1)
        each = self._gain(self.variance, alpha, sigma) - rest  # (N, K)
        found = self.mean + rest * away + (each * (away @ self.basis)) @ self.basis.T
        return found.view(x_t.shape)

    def mean_velocity(self, x_t: Tensor, t: Tensor, to: Tensor) -> Tensor:
        """(x_t - x_to) / (t - to), float32, if the data were normal, on the straight path of flow matching: the ODE
        moves every direction by itself and keeps its share of standard deviations. At t = to it is the velocity.

        Args:
            x_t: (N, C, H, W).
            t, to: (N, 1, 1, 1), 0 <= to <= t.
        """
        t, to = t.float().view(-1, 1), to.float().view(-1, 1)
        away = x_t.float().flatten(1) - (1 - t) * self.mean  # (N, D)
        rest = self._slope(self.rest, t, to)  # (N, 1)
        each = self._slope(self.variance, t, to) - rest  # (N, K)
        found = rest * away + (each * (away @ self.basis)) @ self.basis.T - self.mean
        return found.view(x_t.shape)

    @staticmethod
    def _slope(variance: Tensor, t: Tensor, to: Tensor) -> Tensor:
        """(s_t - s_to) / (t - to) / s_t, s^2 = (1 - t)^2 variance + t^2, without the division of 0 by 0."""
        here, there = (((1 - at).square() * variance + at.square()).sqrt() for at in (t, to))
        return (variance * (t + to - 2) + t + to) / (here + there) / here

    @staticmethod
    def _gain(variance: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * variance / (alpha.square() * variance + sigma.square())
