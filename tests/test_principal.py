"""Principal components, against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA

from genmodels.ae import AE, AEConfig
from genmodels.diffusion.gaussian import GaussianDenoiser
from genmodels.nn.principal import PatchComponents, PrincipalComponents, randomised_pca
from genmodels.types import Batch, Noise
from genmodels.vae import VAE, VAEConfig
from genmodels.vqvae import VQVAE, VQVAEConfig

MAP = dict(size=16, channels=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_dim=4, spatial=True)


def low_rank(n: int = 200, size: int = 8, rank: int = 6) -> torch.Tensor:
    """Make images in a subspace of `rank` dimensions, plus a little noise."""
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


def test_autoencoders_and_denoisers_share_one_randomised_pca():
    images = low_rank()
    mean, centred, basis, singular = randomised_pca(images.flatten(1), 4)
    ours, denoiser = PrincipalComponents(8, 4), GaussianDenoiser((3, 8, 8), 4)
    ours.fit([images])
    denoiser.fit([images])
    assert torch.equal(ours.mean, mean) and torch.equal(denoiser.mean, mean)
    assert torch.equal(ours.basis, basis) and torch.equal(denoiser.basis, basis)
    assert torch.equal(ours.std, singular / (len(images) - 1) ** 0.5)
    assert torch.equal(denoiser.variance, singular.square() / len(images))
    torch.testing.assert_close(centred.mean(0), torch.zeros(192), rtol=0, atol=1e-6)
    torch.testing.assert_close(centred + mean, images.flatten(1))


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
    """A new model reconstructs like PCA, and its bound is better than that of random weights."""
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


def test_components_of_squares_are_those_of_the_squares():
    images = torch.randn(300, 3, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3) / 20
    pc = PatchComponents(8, 2, 5)
    pc.fit([images[:100], images[100:]])
    squares = torch.nn.functional.pixel_unshuffle(images, 4).permute(0, 2, 3, 1).reshape(-1, 48)
    reference = PCA(5, svd_solver="full").fit(squares.double().numpy())
    overlap = pc.basis.double().numpy().T @ reference.components_.T
    np.testing.assert_allclose(np.abs(overlap), np.eye(5), atol=1e-3)
    white = pc.encode(images)
    assert white.shape == (300, 5, 2, 2)
    torch.testing.assert_close(torch.cov(white.transpose(0, 1).flatten(1)), torch.eye(5), atol=1e-2, rtol=0)
    torch.testing.assert_close((pc.decode(white) - images).square().mean(), pc.residual, rtol=1e-3, atol=0)
    whole = PatchComponents(8, 2, 48)
    whole.fit([images])
    torch.testing.assert_close(whole.decode(whole.encode(images)), images, rtol=1e-3, atol=1e-3)


def test_codecs_of_a_map_start_from_the_components_of_squares():
    images = low_rank(64, size=16)
    for family in (AE(AEConfig(**MAP)), VAE(VAEConfig(**MAP))):
        family.initialise([images])
        pc = PatchComponents(16, 2, 4)
        pc.fit([images])
        torch.testing.assert_close(
            family.reconstruct(images), pc.decode(pc.encode(images)).clamp(-1, 1), atol=1e-4, rtol=0
        )
        family.calibrate([images])
        latents = family.encode(images)
        assert latents.shape == (64, 4, 2, 2)
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), rtol=0.05, atol=0)
        assert family.eval().generate(2).shape == (2, 3, 16, 16)


def test_a_codebook_of_a_grid_starts_among_the_components_of_squares():
    images = low_rank(64, size=16)
    networks = {name: value for name, value in MAP.items() if name not in ("latent_dim", "spatial")}
    model = VQVAE(VQVAEConfig(**networks, patch=4, code_dim=4, codebook_size=32, principal=True)).eval()
    model.initialise([images])
    pc = PatchComponents(16, 2, 4, white=False)
    pc.fit([images])
    spread = pc.encode(images).transpose(0, 1).flatten(1).cov()
    torch.testing.assert_close(spread, (pc.std / pc.scale).square().diag(), atol=2e-2, rtol=0)
    torch.testing.assert_close(spread.trace(), torch.tensor(4.0), rtol=1e-2, atol=0)
    torch.testing.assert_close(model.vectors(images), pc.encode(images), atol=1e-4, rtol=1e-4)
    vectors = torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(model.decode(vectors), pc.decode(vectors).clamp(-1, 1), atol=1e-4, rtol=1e-4)
    error = (model.reconstruct(images) - images).square().mean()
    assert pc.residual <= error < images.var()
    assert model.decode_vectors(model.vectors(images)).shape == images.shape
