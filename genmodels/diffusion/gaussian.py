"""The closed-form denoiser of Gaussian data, which a network can correct."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from genmodels.nn.principal import randomised_pca

MIN_VARIANCE = 1e-8
MAX_SIDE = 64
"""Number of lowest frequencies along a side that components are made of, if the side is longer."""


class GaussianDenoiser(nn.Module):
    """E[x_0 | x_t] of normal data with the mean and K principal components of the real data.

    This is the Wiener filter. EDM's skip connection (arXiv 2206.00364, equation 7) is its special
    case for data with the same variance in every direction. The variance of faces differs by a
    factor of a thousand between directions, and a network that corrects the filter does not have to
    learn that. At high noise levels it is close to the exact denoiser of any data
    (arXiv 2311.10892).

    The components of a map of more than 64 positions a side are those of its 64 lowest frequencies
    along each side, in an orthonormal DCT. All other directions have one variance. This keeps size
    and cost of the filter the same for large images.

    With a condition, the mean along each component is a linear function of the condition's vector.
    It is learned together with the network, from 0. The covariance is that of all data.

    Args:
        shape: shape of x, (C, H, W).
        components: K.
        condition_width: D, size of the vector of a condition; 0: without conditions.
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor
    rest: Tensor
    rows: Tensor | None
    columns: Tensor | None

    def __init__(self, shape: tuple[int, int, int], components: int, condition_width: int = 0):
        super().__init__()
        values = shape[0] * shape[1] * shape[2]
        if not 1 <= components <= values:
            raise ValueError(f"components must be 1 to {values}, the number of values in x, got {components}")
        self.register_buffer("mean", torch.zeros(values))
        self.shape = shape
        sides = [min(side, MAX_SIDE) for side in shape[1:]]
        components = min(components, shape[0] * math.prod(sides))
        reduced = sides != list(shape[1:])
        for name, kept, side in zip(("rows", "columns"), sides, shape[1:], strict=True):
            self.register_buffer(name, lowest_frequencies(kept, side) if reduced else None, persistent=False)
        self.register_buffer("basis", torch.zeros(shape[0] * math.prod(sides), components))
        self.register_buffer("variance", torch.ones(components))
        self.register_buffer("rest", torch.tensor(1.0))  # variance in all other directions
        self.shift = nn.Linear(condition_width, components, bias=False) if condition_width else None
        if self.shift is not None:
            nn.init.zeros_(self.shift.weight)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit mean and components to batches (n, C, H, W) by randomised PCA (arXiv 0909.4061).

        The result is deterministic. With few images there are fewer components than K.
        """
        low, sums = [], torch.zeros_like(self.mean, dtype=torch.float64)
        squares = torch.zeros((), dtype=torch.float64, device=self.mean.device)
        for batch in batches:
            flat = batch.float().flatten(1)  # (n, D)
            low.append(self._lower(flat))
            if self.rows is not None:  # images are not kept
                sums += flat.sum(0, dtype=torch.float64)
                squares += flat.square().sum()
        mean, centred, basis, singular = randomised_pca(torch.cat(low), len(self.variance))
        count, total = len(singular), centred.square().sum() / len(centred)
        if self.rows is not None:
            mean = sums / len(centred)
            total = squares / len(centred) - mean.square().sum()
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[:, :count] = basis
        self.variance.fill_(MIN_VARIANCE)
        self.variance[:count] = (singular.square() / len(centred)).clamp_min(MIN_VARIANCE)
        others = len(mean) - count
        self.rest.copy_(((total - self.variance.sum()) / max(1, others)).clamp_min(MIN_VARIANCE))

    def forward(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Denoise.

        Args:
            x_t: noisy data (N, C, H, W).
            alpha: scale of the data in x_t, (N, 1, 1, 1) or one value.
            sigma: scale of the noise in x_t, as `alpha`.
            condition: vectors (N, D); None: the mean of all data.

        Returns:
            x_0 (N, C, H, W), float32.
        """
        alpha, sigma = alpha.float().view(-1, 1), sigma.float().view(-1, 1)
        centred = x_t.float().flatten(1) - alpha * self.mean  # (N, D)
        rest = self._gain(self.rest, alpha, sigma)  # (N, 1)
        gain = self._gain(self.variance, alpha, sigma)  # (N, K)
        basis = self.basis.float()  # also of a model in half precision
        along = (gain - rest) * (self._lower(centred) @ basis)  # (N, K)
        if condition is not None:
            along = along + (1 - alpha * gain) * self._shift(condition)
        x_0 = self.mean + rest * centred + self._raise(along @ basis.T)
        return x_0.view(x_t.shape)

    def mean_velocity(self, x_t: Tensor, t: Tensor, to: Tensor, condition: Tensor | None = None) -> Tensor:
        """Mean velocity (x_t - x_to) / (t - to) of normal data under flow matching, float32.

        The ODE scales each principal direction independently, by the ratio of its standard
        deviations at both times. At t = to the result is the velocity.

        Args:
            x_t: noisy data (N, C, H, W).
            t: times (N, 1, 1, 1).
            to: times (N, 1, 1, 1), 0 <= to <= t.
            condition: vectors (N, D); None: the mean of all data.
        """
        t, to = t.float().view(-1, 1), to.float().view(-1, 1)
        centred = x_t.float().flatten(1) - (1 - t) * self.mean  # (N, D)
        rest = self._slope(self.rest, t, to)  # (N, 1)
        slope = self._slope(self.variance, t, to)  # (N, K)
        basis = self.basis.float()  # also of a model in half precision
        along = (slope - rest) * (self._lower(centred) @ basis)  # (N, K)
        if condition is not None:
            along = along - (slope * (1 - t) + 1) * self._shift(condition)
        velocity = rest * centred + self._raise(along @ basis.T) - self.mean
        return velocity.view(x_t.shape)

    def _shift(self, condition: Tensor) -> Tensor:
        """Return how far the mean under a condition (N, D) lies from that of all data, along each
        component, (N, K)."""
        if self.shift is None:
            raise ValueError("this closed-form denoiser was built without conditions")
        return self.variance.sqrt() * self.shift(condition).float()

    def directions(self) -> Tensor:
        """Return the components as maps of full size, one per column: (D, K)."""
        return self._raise(self.basis.float().T).T

    def _lower(self, flat: Tensor) -> Tensor:
        """Return the lowest frequencies of maps (N, D), as values (N, d)."""
        if self.rows is None or self.columns is None:
            return flat
        return (self.rows.float() @ flat.unflatten(1, self.shape) @ self.columns.float().T).flatten(1)

    def _raise(self, low: Tensor) -> Tensor:
        """Return the maps (N, D) of lowest frequencies (N, d): the transpose of `_lower`."""
        if self.rows is None or self.columns is None:
            return low
        maps = low.unflatten(1, (self.shape[0], len(self.rows), len(self.columns)))
        return (self.rows.float().T @ maps @ self.columns.float()).flatten(1)

    @staticmethod
    def _slope(variance: Tensor, t: Tensor, to: Tensor) -> Tensor:
        """(s_t - s_to) / (t - to) / s_t with s_t^2 = (1 - t)^2 variance + t^2, also at t = to."""
        s_t, s_to = (((1 - time).square() * variance + time.square()).sqrt() for time in (t, to))
        return (variance * (t + to - 2) + t + to) / (s_t + s_to) / s_t

    @staticmethod
    def _gain(variance: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The Wiener filter in one principal direction."""
        return alpha * variance / (alpha.square() * variance + sigma.square())


def lowest_frequencies(count: int, side: int) -> Tensor:
    """Return the first `count` rows of the orthonormal DCT-II of `side` values, (count, side)."""
    positions, frequencies = torch.arange(side) + 0.5, torch.arange(count)
    rows = torch.cos(math.pi / side * frequencies[:, None] * positions) * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows
