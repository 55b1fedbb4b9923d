"""Principal components, against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA

from genmodels.nn.principal import PrincipalComponents
from genmodels.types import Batch, Noise
from genmodels.vae import VAE, VAEConfig


def low_rank(n: int = 200, size: int = 8, rank: int = 6) -> torch.Tensor:
    """Images that lie in a subspace of `rank` dimensions, plus a little noise."""
    g = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.5, 0.1, rank)
    basis = torch.linalg.qr(torch.randn(3 * size**2, rank, generator=g)).Q
    images = (torch.randn(n, rank, generator=g) * scales) @ basis.T + 0.01 * torch.randn(n, 3 * size**2, generator=g)
    return images.view(n, 3, size, size)


def test_against_scikit_learn():
    images = low_rank()
    ours = PrincipalComponents(8, 4)
    ours.fit([images])
    reference = PCA(4, svd_solver="full").fit(images.flatten(1).double().numpy())
    overlap = ours.basis.double().numpy().T @ reference.components_.T
    np.testing.assert_allclose(np.abs(overlap), np.eye(4), atol=1e-3)
    np.testing.assert_allclose(ours.std.numpy() ** 2, reference.explained_variance_, rtol=1e-3)


def test_coordinates_are_white_and_lead_back():
    images = low_rank()
    pc = PrincipalComponents(8, 6)
    pc.fit([images])
    white = pc.encode(images)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6), atol=1e-2, rtol=0)
    error = (pc.decode(white) - images).square().mean()
    assert error < 1.2e-4  # the noise, 0.01^2
    torch.testing.assert_close(error, pc.residual, rtol=1e-3, atol=0)


def test_repeatable_and_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    first, second = PrincipalComponents(8, 4), PrincipalComponents(8, 4)
    first.fit([low_rank()])
    torch.rand(5)
    state = torch.get_rng_state()
    second.fit([low_rank()])
    assert torch.equal(first.basis, second.basis) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(before, state)


def test_fewer_images_than_components_and_large_images():
    pc = PrincipalComponents(8, 20)
    pc.fit([low_rank(5)])
    assert pc.decode(pc.encode(low_rank(5))).isfinite().all()
    mirrored = pc.encode(low_rank(5).flip(3))
    assert mirrored.abs().max() < 100, "rounding noise was taken for a component"
    large = PrincipalComponents(128, 4)
    assert large.basis.shape == (3 * 64**2, 4)
    images = torch.nn.functional.interpolate(low_rank(30), size=128)
    large.fit([images])
    assert large.decode(large.encode(images)).shape == images.shape


def test_a_vae_starts_as_probabilistic_pca():
    """Before the first step its reconstruction is the linear one, and its bound beats that of a random start by far."""
    images = low_rank(64, size=16)
    config = dict(size=16, channels=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_dim=6)
    vae = VAE(VAEConfig(**config))
    vae.initialise([images[:40], images[40:]])
    pc = PrincipalComponents(16, 6)
    pc.fit([images])
    linear = pc.decode(pc.encode(images)).clamp(-1, 1)
    torch.testing.assert_close(vae.reconstruct(images), linear, atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.likelihood.variance, pc.residual[None])
    _, log_variance = vae.posterior(images)
    torch.testing.assert_close(log_variance[0].exp(), pc.residual / (pc.std**2 + pc.residual))
    plain = VAE(VAEConfig(**config, principal=False))
    batch = Batch(images, Noise.for_images(0, range(64)), progress=1.0)
    again = Batch(images, Noise.for_images(0, range(64)), progress=1.0)
    assert vae(batch)[1]["bits_per_dim"] < plain(again)[1]["bits_per_dim"] - 1
