"""Whitening and the ex-post Gaussian mixture, against closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as SklearnMixture

from genmodels.nn.density import EM_ROUNDS, GaussianMixture, Whitening


def correlated(n: int = 4000) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.6, 0.3], [0.0, 0.0, 2.0]])
    return torch.randn(n, 3, generator=g) @ mixing + torch.tensor([1.0, -2.0, 0.5])


@pytest.mark.parametrize("shape", [(500, 4), (50, 4, 3, 3)])
def test_whitening_is_per_channel_and_reversible(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 5
    whitening = Whitening(4)
    whitening.fit(x)
    white = whitening.whiten(x).transpose(0, 1).flatten(1)
    assert white.mean(1).abs().max() < 1e-5 and (white.std(1) - 1).abs().max() < 1e-5
    torch.testing.assert_close(whitening.unwhiten(whitening.whiten(x)), x)


def test_a_constant_channel_does_not_divide_by_zero():
    whitening = Whitening(2)
    whitening.fit(torch.tensor([[1.0, 3.0], [1.0, 4.0]]))
    assert whitening.whiten(torch.tensor([[1.0, 3.5]])).isfinite().all()


def test_one_component_is_the_sample_mean_and_covariance():
    x = correlated()
    density = GaussianMixture(1, 3)
    density.fit(x)
    torch.testing.assert_close(density.means[0], x.mean(0), atol=1e-4, rtol=0)
    covariance = density.scale[0] @ density.scale[0].T
    expected = torch.cov(x.T, correction=0) + 1e-4 * x.var(0).mean() * torch.eye(3)
    torch.testing.assert_close(covariance, expected, atol=1e-3, rtol=1e-3)


def test_samples_have_the_moments_of_the_mixture():
    """Two clusters, 3 to 1, are recovered. Temperature scales their standard deviation only."""
    g = torch.Generator().manual_seed(1)
    x = torch.cat([torch.randn(3000, 2, generator=g) * 0.5 + 4, torch.randn(1000, 2, generator=g) - 4])
    density = GaussianMixture(2, 2)
    density.fit(x)
    choice, eps = torch.rand(20000, generator=g), torch.randn(20000, 2, generator=g)
    right = density.sample(choice, eps)
    first = right[:, 0] > 0
    assert first.float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert right[first].mean(0).tolist() == pytest.approx([4, 4], abs=0.05)
    assert right[first].std(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    cold = density.sample(choice, 0.1 * eps)
    assert cold[first].std(0).tolist() == pytest.approx([0.05, 0.05], abs=0.01)


def test_against_scikit_learn():
    """The log density defined by the buffers equals that of scikit-learn's mixture."""
    x = correlated(1000)
    density = GaussianMixture(3, 3)
    density.fit(x)
    data = x.double().numpy()
    floor = 1e-4 * data.var(0).mean() + 1e-12
    reference = SklearnMixture(3, reg_covar=floor, max_iter=EM_ROUNDS, random_state=0).fit(data)
    ours = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(density.weights),
        torch.distributions.MultivariateNormal(density.means, scale_tril=density.scale),
    ).log_prob(x)
    np.testing.assert_allclose(ours.numpy(), reference.score_samples(data), rtol=1e-3, atol=1e-3)


def test_large_latents_get_diagonal_covariances():
    density = GaussianMixture(1, 5000)
    assert not density.full and density.scale.shape == (1, 5000)
    assert density.sample(torch.rand(2), torch.zeros(2, 5000)).shape == (2, 5000)


@pytest.mark.parametrize("dim", [3, 3000])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_latents_are_fitted_by_fewer_gaussians(count, dim):
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
    density = GaussianMixture(10, dim)
    density.full = density.full and dim < 100
    density.fit(torch.cat([x, x]) if count > 1 else x)
    assert density.weights.tolist() == pytest.approx([1 / count] * count + [0] * (10 - count))
    drawn = density.sample(torch.linspace(0, 1, 50), torch.randn(50, dim, generator=torch.Generator().manual_seed(1)))
    nearest = torch.cdist(drawn, x).min(1)
    assert nearest.values.max() < 0.05 * dim**0.5
    assert set(nearest.indices.tolist()) == set(range(count))


def test_one_latent_is_whitened_to_zero():
    whitening = Whitening(2)
    whitening.fit(torch.tensor([[1.0, 3.0]]))
    assert whitening.whiten(torch.tensor([[1.0, 3.0]])).tolist() == [[0, 0]]
