"""AE and VAE: shapes, the evidence lower bound and its gradients, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from genmodels.ae import AE, AEConfig
from genmodels.nn.interpolation import lerp, slerp
from genmodels.types import Batch, Noise
from genmodels.vae import VAE, VAEConfig

TINY = dict(size=16, channels=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_dim=4, principal=False)


def batch(n: int = 6, size: int = 16, progress: float = 1.0) -> Batch:
    images = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, Noise.for_images(0, range(n)), progress=progress)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("spatial", [False, True])
def test_sizes_and_latent_shapes(size, spatial):
    model = AE(AEConfig(size=size, channels=(8, 16, 16), latent_dim=4, spatial=spatial)).eval()
    grid = size // 16
    assert model.latent_shape == ((4, grid, grid) if spatial else (4,))
    x = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        z = model.encode(x)
        assert z.shape == (2, *model.latent_shape) and model.decode(z).shape == x.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(size=60), "size 60 is not divisible by 8"),
        (
            dict(channels=(12,), encoder_blocks=(1,), decoder_blocks=(1,)),
            r"channels must be multiples of 8 \(the group norm\), got \(12,\)",
        ),
        (dict(encoder_blocks=(1,)), r"encoder_blocks needs one number for each of the 2 channels, got \(1,\)"),
        (
            dict(size=8, patch=4, channels=(16, 8), encoder_blocks=(0, 0), decoder_blocks=(0, 0)),
            "feature map of 1 x 1, so its 8 channels are 8 groups of one value",
        ),
        (dict(latent_dim=0), "latent_dim must be at least 1, got 0"),
        (dict(kl_weight=-1.0), "must not be negative"),
        (dict(mixture=0), "mixture must have at least 1 component"),
        (
            dict(size=12, channels=(8,), encoder_blocks=(1,), decoder_blocks=(1,), variance="frequency"),
            "'frequency' needs a size divisible by 8, got 12",
        ),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VAE(VAEConfig(**{**TINY, **changes}))


def test_kl_and_nll_are_those_of_torch_distributions():
    model = VAE(VAEConfig(**TINY, variance="pixel"))
    b = batch()
    mean, log_variance = model.posterior(b.images)
    z = mean + (0.5 * log_variance).exp() * Noise(b.noise.seeds).normal(4)
    nll = -Normal(model.decoder(z), model.likelihood.variance.sqrt()).log_prob(b.images).flatten(1).sum(1).mean()
    kl = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0, 1)).sum(1).mean()
    loss, metrics = model(b)
    torch.testing.assert_close(metrics["nll"], nll, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(metrics["kl"], kl, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, (nll + kl) / (3 * 16 * 16), rtol=1e-4, atol=1e-5)


def test_kl_warm_up_and_weight_scale_the_kl_alone():
    config = dict(TINY, kl_warmup=0.5, kl_weight=2.0)
    dimensions = 3 * 16 * 16
    torch.manual_seed(0)
    model = VAE(VAEConfig(**config))
    early, late = (model(batch(progress=p)) for p in (0.125, 0.9))
    torch.testing.assert_close(
        (late[0] - early[0]) * dimensions, late[1]["kl"] * 2.0 * (1 - 0.25), rtol=1e-3, atol=1e-3
    )


def test_free_bits_cost_nothing_and_stop_the_gradient():
    """With more free bits than any latent carries, the gradient of the KL vanishes: the encoder
    gets gradients from the likelihood only."""
    grads = []
    for settings in (dict(free_bits=1e6, kl_weight=1.0), dict(free_bits=0.0, kl_weight=0.0)):
        torch.manual_seed(0)
        model = VAE(VAEConfig(**TINY, **settings))
        model(batch())[0].backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.encoder.parameters()]))
    torch.testing.assert_close(*grads)
    assert grads[0].abs().max() > 0


def linear_gaussian_vae() -> tuple[VAE, float]:
    """Build a VAE of known likelihood: its decoder ignores z, so p(x) is Gaussian."""
    model = VAE(VAEConfig(**TINY, variance="pixel")).eval()
    torch.nn.init.zeros_(model.decoder.head[2].weight)
    torch.nn.init.constant_(model.decoder.head[2].bias, 0.25)
    model.likelihood.variance.fill_(0.09)
    return model, 0.3


def test_the_importance_weighted_bound_is_tight_where_the_likelihood_is_known():
    """If the decoder ignores z, the importance-weighted bound equals the Gaussian density."""
    model, sigma = linear_gaussian_vae()
    images = batch().images.mul(127.5).round().div(127.5)
    with torch.no_grad():
        shifted = images + (Noise.for_images(0, range(6)).uniform(3, 16, 16) - 0.5) / 127.5
        exact = -Normal(0.25, sigma).log_prob(shifted).flatten(1).sum(1)
        bits = (exact / 768 + math.log(127.5)) / math.log(2)
        bound = model.bits_per_dim(images, Noise.for_images(0, range(6)), samples=256)
    torch.testing.assert_close(bound, bits, atol=2e-3, rtol=0)


def test_more_importance_samples_tighten_the_bound():
    model = VAE(VAEConfig(**TINY)).eval()
    with torch.no_grad():
        loose, tight = (
            model.bits_per_dim(batch().images, Noise.for_images(0, range(6)), samples=k).mean() for k in (1, 64)
        )
    assert tight < loose


def test_prior_and_mixture_are_different_draws_and_the_mixture_must_be_fitted():
    model = VAE(VAEConfig(**TINY, mixture=2)).eval()
    with pytest.raises(ValueError, match="latent density is not fitted yet"):
        model.generate(1, latents="mixture")
    model.calibrate([batch().images])
    assert not torch.equal(model.generate(1, latents="mixture"), model.generate(1, latents="prior"))
    with pytest.raises(ValueError, match="latents must be 'mixture' or 'prior', got 'posterior'"):
        model.generate(1, latents="posterior")
    with pytest.raises(ValueError, match="temperature must not be negative"):
        model.generate(1, temperature=-1.0)


def test_temperature_zero_of_the_ae_is_its_mean_face():
    model = AE(AEConfig(**TINY)).eval()
    model.calibrate([batch().images])
    cold = model.generate(2, temperature=0.0)
    assert torch.equal(cold[0], cold[1])
    with torch.no_grad():
        torch.testing.assert_close(cold[:1], model.decode(torch.zeros(1, 4)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "options", "path"),
    [(AE, {}, lerp), (VAE, dict(latents="mixture"), lerp), (VAE, dict(latents="prior"), slerp)],
)
def test_the_way_between_two_images_is_that_between_their_latents(kind, options, path):
    torch.manual_seed(0)
    model = kind(kind.Config(**TINY)).eval()
    ends, middle = batch(2).images, torch.tensor([0.5])
    with torch.no_grad():
        way = model.morph(ends[:1], ends[1:], torch.tensor([0.0, 0.5, 1.0]), model.options(**options))
        torch.testing.assert_close(way[[0, 2]], model.reconstruct(ends), rtol=0, atol=1e-5)
        between = path(*model.find_latents(ends).split(1), middle)
        torch.testing.assert_close(way[1:2], model.from_latents(between), rtol=0, atol=1e-5)


def test_slerp_keeps_the_norm_and_lerp_does_not():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    w = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(slerp(a, b, w).norm(dim=1), torch.full((3,), 3.0))
    torch.testing.assert_close(lerp(a, b, w)[1], torch.tensor([1.5, 1.5]))
    torch.testing.assert_close(slerp(a, a, w), a.expand(3, 2))


def test_missing_lpips_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = VAE(VAEConfig(**TINY, lpips=0.1))
    with pytest.raises(ValueError, match="LPIPS needs .*"):
        model(batch())


def test_lpips_joins_the_loss_and_stays_out_of_the_model(monkeypatch):
    """LPIPS is replaced by a stand-in, because its weights are not available offline."""

    def squared(images, decoded):
        return (images - decoded).square().mean((1, 2, 3))

    monkeypatch.setattr("genmodels.nn.perceptual.load_lpips", lambda net, device: squared)
    torch.manual_seed(0)
    model = AE(AEConfig(**TINY, lpips=0.5))
    loss, metrics = model(batch())
    torch.testing.assert_close(loss, metrics["mse"] * 1.5)
    assert not any("perceptual" in name for name in model.state_dict())
