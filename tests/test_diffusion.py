"""Diffusion models: loss, sampling and other abilities, and input refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch
import yaml
from torch import Tensor

from genmodels.cli import main
from genmodels.conditions import Condition, ConditionConfig
from genmodels.diffusion import gaussian, likelihood, solvers
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.gaussian import GaussianDenoiser, lowest_frequencies
from genmodels.diffusion.options import DiffusionOptions
from genmodels.diffusion.process import EDM, Flow
from genmodels.diffusion.sampler import Denoiser, Guidance, make_denoiser
from genmodels.diffusion.unet import UNet, UNetConfig, network_settings
from genmodels.nn.likelihood import LikelihoodKind
from genmodels.saving import from_dict
from genmodels.training.command_line import parse, to_yaml
from genmodels.training.recipe import Recipe
from genmodels.types import Batch, Noise
from genmodels.usage import UsageError

NETWORK = dict(size=16, channels=(16, 32), blocks=1, attention=(False, True), head=8, groups=8)
PROCESSES = {"flow": Flow(), "edm": EDM(), "ddpm": DDPM()}


@dataclass(frozen=True)
class UNetRecipe(Recipe):
    model: UNetConfig = UNetConfig(**NETWORK)


def unet(**settings) -> UNet:
    """A small model with random weights, the output's too."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(**(NETWORK | settings)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def data(n: int, shape=(3, 16, 16), seed: int = 0) -> Tensor:
    """Correlated normal data."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, shape[0], 4, 4, generator=generator)
    fine = torch.randn(n, *shape, generator=generator)
    return 0.1 + 0.3 * torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic") + 0.05 * fine


def noises(n: int, seed: int = 0) -> Noise:
    return Noise.for_images(seed, range(n))


# ---- the closed-form denoiser ----


@pytest.mark.parametrize("process", ["flow", "edm", "ddpm"])
def test_with_the_closed_form_alone_normal_data_are_sampled_exactly(process):
    """If the network outputs 0, the model is the Gaussian of the data, for any process."""
    shape = (1, 4, 4)
    torch.manual_seed(0)
    model = UNet(
        UNetConfig(**(NETWORK | dict(latents=shape, process=process, gaussian=16, channels=(8,), attention=(False,))))
    )
    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(2)) / 4
    drawn = 0.5 + torch.randn(2000, 16, generator=torch.Generator().manual_seed(3)) @ mix
    model.initialise([drawn.view(-1, *shape)])
    with torch.no_grad():
        found = model.sample(noises(1000), Condition(), model.options(steps=30, schedule="log-snr")).flatten(1)
    torch.testing.assert_close(found.mean(0), drawn.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(found.T.cov(), drawn.T.cov(), rtol=0, atol=0.2)


@pytest.mark.parametrize("process", ["flow", "edm", "ddpm"])
def test_temperature_scales_the_spread_of_normal_data_and_keeps_the_mean(process):
    """The exact denoiser of normal data is affine, and so is the walk, for any solver."""
    model = UNet(UNetConfig(**(NETWORK | dict(process=process, gaussian=64))))
    model.initialise([data(200)])
    with torch.no_grad():
        mean, warm, cool = (
            model.sample(noises(2), Condition(), model.options(temperature=t, steps=5)) for t in (0.0, 0.2, 0.1)
        )
    assert (warm - mean).abs().amax() > 0.01 and warm.abs().amax() < 1  # nothing clipped
    torch.testing.assert_close(cool - mean, 0.5 * (warm - mean), rtol=1e-3, atol=1e-4)


def test_the_gaussian_denoiser_is_the_wiener_filter():
    """All components: mean + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha mean)."""
    x = data(500, (1, 4, 4)).double()
    denoiser = GaussianDenoiser((1, 4, 4), 16)
    denoiser.fit([x])
    flat = x.flatten(1)
    cov = (flat - flat.mean(0)).T @ (flat - flat.mean(0)) / len(flat)
    alpha, sigma = 0.6, 0.4
    x_t = data(5, (1, 4, 4), seed=1).double()
    gain = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(16, dtype=torch.float64))
    expected = flat.mean(0) + (x_t.flatten(1) - alpha * flat.mean(0)) @ gain.T
    found = denoiser(x_t, torch.tensor(alpha), torch.tensor(sigma)).flatten(1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def test_a_condition_moves_the_mean_of_the_closed_form():
    """The filter, and the jump of a mean flow, are those of normal data with the moved mean."""
    x = data(500, (1, 4, 4))
    denoiser, moved = GaussianDenoiser((1, 4, 4), 16, condition_width=3), GaussianDenoiser((1, 4, 4), 16)
    for filter_ in (denoiser, moved):
        filter_.fit([x])
    torch.nn.init.normal_(denoiser.shift.weight)
    condition = torch.randn(1, 3)
    with torch.no_grad():
        along = denoiser.variance.sqrt() * denoiser.shift(condition)[0]
    moved.mean += moved.basis @ along
    x_t, rows = data(5, (1, 4, 4), seed=1), condition.expand(5, 3)
    t, to = torch.tensor([0.7, 0.2]).view(2, 1, 1, 1, 1).expand(2, 5, 1, 1, 1)
    with torch.no_grad():
        found = denoiser(x_t, 1 - t, t, rows), denoiser.mean_velocity(x_t, t, to, rows)
        unmoved = denoiser(x_t, 1 - t, t)
    expected = moved(x_t, 1 - t, t), moved.mean_velocity(x_t, t, to)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found[0] - unmoved).abs().amax() > 0.1


def test_a_condition_is_followed_before_the_network_has_learned_anything():
    """The gradient reaches the mean of the condition although the network's last layer is 0."""
    torch.manual_seed(0)
    condition = ConditionConfig(attributes=("Smiling",))
    small = dict(latents=(1, 4, 4), channels=(16,), attention=(False,), gaussian=16, conditional_mean=True)
    model = UNet(UNetConfig(**(NETWORK | small | dict(condition=condition))))
    signs = torch.tensor([1.0, -1.0]).repeat(8).view(-1, 1, 1, 1)
    images = data(16, (1, 4, 4)) + 0.3 * signs
    model.initialise([images])
    optimizer = torch.optim.Adam([*model.gaussian.parameters(), *model.condition.parameters()], 0.05)
    for step in range(30):
        condition = Condition(attributes=signs.view(-1, 1).to(torch.int8))
        loss, _ = model.loss(Batch(images, noises(16, step), condition), "main")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        asked = (Condition(attributes=sign * torch.ones(8, 1, dtype=torch.int8)) for sign in (1, -1))
        more, less = (model.sample(noises(8), condition, model.options(steps=4)).mean() for condition in asked)
    assert more - less > 0.2  # 0.6 in the data


def test_fewer_components_keep_the_total_variance():
    x = data(500, (3, 8, 8))
    denoiser = GaussianDenoiser((3, 8, 8), 20)
    denoiser.fit([x])
    total = (x - x.mean(0)).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(denoiser.variance.sum() + (192 - 20) * denoiser.rest, total, rtol=1e-3, atol=0)
    again = GaussianDenoiser((3, 8, 8), 20)
    again.fit([x])
    assert torch.equal(again.basis, denoiser.basis)


def test_components_of_large_maps_are_made_of_low_frequencies(monkeypatch):
    """The filter of data without high frequencies is that of all their values."""
    shape, low = (2, 12, 10), lowest_frequencies(4, 12)
    assert torch.allclose(low @ low.T, torch.eye(4), atol=1e-6)
    torch.testing.assert_close(low[0], torch.full((12,), 12**-0.5))
    smooth = low.T @ data(400, (2, 4, 4)) @ lowest_frequencies(4, 10)
    x = smooth + 0.1 * torch.randn(400, *shape, generator=torch.Generator().manual_seed(2))
    whole = GaussianDenoiser(shape, 32)
    whole.fit([x])
    monkeypatch.setattr(gaussian, "MAX_SIDE", 4)
    reduced = GaussianDenoiser(shape, 99)
    assert reduced.basis.shape == (32, 32)
    assert set(reduced.state_dict()) == {"mean", "basis", "variance", "rest"}
    reduced.fit([x[:150], x[150:]])
    torch.testing.assert_close(reduced.mean, whole.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(reduced.rest, whole.rest, rtol=0.1, atol=0)
    total = (x - x.mean(0)).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(reduced.variance.sum() + (240 - 32) * reduced.rest, total, rtol=1e-4, atol=0)
    basis = reduced.directions()
    assert torch.allclose(basis.T @ basis, torch.eye(32), atol=1e-5)
    x_t = x[:8] * 0.7 + 0.5
    ours, others = (d(x_t, torch.tensor(0.7), torch.tensor(0.5)) for d in (reduced, whole))
    assert (ours - others).square().mean() < 1e-3 < 0.01 < ours.square().mean()
    gain = reduced._gain(reduced.variance, torch.tensor(0.7).view(1, 1), torch.tensor(0.5).view(1, 1))
    rest = reduced._gain(reduced.rest, torch.tensor(0.7), torch.tensor(0.5))
    centred = (x_t.flatten(1) - 0.7 * reduced.mean).double()
    full = reduced.mean + rest * centred + ((gain - rest) * (centred @ basis.double())) @ basis.double().T
    torch.testing.assert_close(
        reduced(x_t, torch.tensor(0.7), torch.tensor(0.5)).flatten(1).double(), full, rtol=0, atol=1e-4
    )


# ---- the loss ----


@pytest.mark.parametrize("process", list(PROCESSES))
def test_the_loss_is_the_weighted_error_of_the_target(process):
    """Written out with the numbers of the batch's own noise."""
    model = unet(process=process)
    x = data(4)
    loss, metrics = model(Batch(x, noises(4)))
    same = noises(4)
    t = model.process.draw(same.uniform()).view(-1, 1, 1, 1)
    eps = same.normal(3, 16, 16)
    x_t = model.process.alpha(t) * x + model.process.sigma(t) * eps
    with torch.no_grad():
        output = model.network(model.process.scale(t) * x_t, model.process.time_input(t).flatten()).sample
    error = (output - model.process.target(x, eps, t)).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, (model.process.weight(t).flatten() * error).mean())
    torch.testing.assert_close(metrics["mse"], error.mean())


def test_patches_are_a_coarser_grid_of_more_channels():
    settings = network_settings(UNetConfig(**(NETWORK | {"patch": 2})))
    assert settings["in_channels"] == settings["out_channels"] == 12 and settings["sample_size"] == 8
    x = data(2)
    model = unet(patch=2)
    with torch.no_grad():
        found = model.predict(x, torch.tensor([3.0, 700.0]), None)
    assert found.shape == x.shape


def test_a_new_network_starts_at_nothing():
    """So that the model starts as its closed-form part."""
    model = UNet(UNetConfig(**NETWORK))
    assert not model.predict(data(2), torch.tensor([1.0, 500.0]), None).any()


# ---- guidance ----


class Constant:
    """A model that predicts the same x_0 everywhere."""

    process = Flow()

    def __init__(self, x_0):
        self.x_0 = x_0

    def denoise(self, x_t: Tensor, t: Tensor, condition: None, to: Tensor | None = None) -> tuple[Tensor, None]:
        return self.x_0.expand_as(x_t), None


ONE, HALF = Constant(torch.tensor(1.0)), Constant(torch.tensor(0.5))


def test_guidance_moves_every_channel_away_from_the_reference_within_its_interval():
    x = torch.zeros(2, 4, 3, 3)
    denoise = Denoiser(ONE, None, Guidance(HALF, None, 3.0, low=0.5, high=2.0))
    for t, expected in ((0.3, 1.0), (0.5, 2.0), (0.6, 2.0), (0.9, 1.0), (1.0, 1.0)):
        assert torch.equal(denoise(x, t), torch.full_like(x, expected)), t
    unlimited = Denoiser(ONE, None, Guidance(HALF, None, 3.0))
    assert torch.equal(unlimited(x, 1.0), torch.full_like(x, 2.0))
    clipped = Denoiser(ONE, None, Guidance(HALF, None, 3.0), clip=True)
    assert torch.equal(clipped(x, 1.0), torch.full_like(x, 1.0))  # after guidance, not before


def test_rescaled_guidance_has_the_standard_deviation_of_the_unguided_prediction():
    better, worse = data(3), data(3, seed=1)
    denoise = Denoiser(Constant(better), None, Guidance(Constant(worse), None, 4.0, rescale=1.0))
    full = denoise(torch.zeros_like(better), 0.5)
    torch.testing.assert_close(full.std((1, 2, 3)), better.std((1, 2, 3)))


def unguided(model: UNet, condition: Condition) -> Denoiser:
    return Denoiser(model, model.embed(condition, 2, torch.device("cpu")))


def test_guided_sampling_is_the_formula_on_the_denoisers():
    model = unet(condition=ConditionConfig(("Smiling", "Male")))
    asked = Condition(torch.tensor([[1.0, -1.0]]).repeat(2, 1))
    options = model.options(guidance=2.5, solver="euler", steps=4)
    x, device = noises(2).normal(3, 16, 16), torch.device("cpu")
    with torch.no_grad():
        guiding = make_denoiser(model, asked, options, 2, device)(x, 0.7)
        plain, free = (unguided(model, c)(x, 0.7) for c in (asked, Condition()))
        torch.testing.assert_close(guiding, free + 2.5 * (plain - free))
        assert (plain - free).abs().max() > 1e-3


def test_a_weaker_model_guides_without_any_condition(tmp_path):
    model, weaker = unet(), unet(channels=(8, 16))
    weaker.save_pretrained(tmp_path / "weak")
    x, device = noises(2).normal(3, 16, 16), torch.device("cpu")
    options = model.options(guidance=2.0, guide=tmp_path / "weak")
    with torch.no_grad():
        found = make_denoiser(model, Condition(), options, 2, device)(x, 0.5)
        a, b = (unguided(m, Condition())(x, 0.5) for m in (model, weaker))
    torch.testing.assert_close(found, b + 2 * (a - b))
    unet(process="ddpm").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="cannot guide this model: process, shape"):
        model.generate(1, guidance=2.0, guide=tmp_path / "other")
    with pytest.raises(ValueError, match="needs a condition.*trained without.*--guide RUN"):
        model.generate(1, guidance=2.0)


# ---- what it can do ----


@pytest.mark.parametrize("process", list(PROCESSES))
def test_noise_to_image_and_back(process):
    """Solving the ODE backwards and then forwards returns the image. The denoiser is a smooth
    closed form, since a random network is no denoiser."""
    torch.manual_seed(0)
    # The network returns 0, so it is as small as can be.
    model = UNet(UNetConfig(**(NETWORK | dict(process=process, gaussian=40, channels=(8,), attention=(False,)))))
    model.initialise([data(200)])
    images = data(3, seed=5).clamp(-1, 1)
    options = model.options(solver="unipc", steps=50, schedule="log-snr")
    with torch.no_grad():
        eps = model.invert(images, Condition(), options)
        back = model.generate_from(eps, Condition(), options)
    torch.testing.assert_close(back, images, rtol=0, atol=0.02)
    assert 0.7 < eps.std() < 1.4


def test_it_keeps_every_promise_of_the_protocols():
    model = unet()
    for promise in ("bits_per_dim", "inpaint", "interpolate", "morph", "edit", "trajectory"):
        assert model.can(promise)


def test_a_little_editing_changes_little():
    model = UNet(UNetConfig(**(NETWORK | dict(gaussian=40))))
    model.initialise([data(200)])
    images = data(2, seed=5).clamp(-1, 1)
    with torch.no_grad():
        changes = [
            (model.edit(images, s, noises(2), Condition(), model.options(steps=20)) - images).square().mean().item()
            for s in (0.1, 0.5, 1.0)
        ]
        everything = model.edit(images, 1.0, noises(2), Condition(), model.options(steps=20))
        assert torch.equal(everything, model.sample(noises(2), Condition(), model.options(steps=20)))
    assert changes[0] < changes[1] < changes[2] and changes[0] < 0.01
    for strength in (0.0, 1.2):
        with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
            model.edit(images, strength, noises(2), Condition(), model.options())


def test_any_region_is_completed_and_the_rest_left():
    model = unet()
    images = data(2).clamp(-1, 1)
    known = torch.ones(16, 16, dtype=torch.bool)
    known[4:9, 6:12] = False
    with torch.no_grad():
        found = model.inpaint(images, known, noises(2), Condition(), model.options(steps=4))
    assert torch.equal(found[..., known], images[..., known])
    assert (found[..., ~known] - images[..., ~known]).abs().max() > 0.01
    with torch.no_grad():
        hidden = torch.where(known, images, 0.7)
        assert torch.equal(found, model.inpaint(hidden, known, noises(2), Condition(), model.options(steps=4)))
    with pytest.raises(ValueError, match=r"must be bool \(16, 16\), got bool \(8, 16\)"):
        model.inpaint(images, known[:8], noises(2), Condition(), model.options())
    with pytest.raises(ValueError, match="a solver of its own: leave out the solver and eta"):
        model.inpaint(images, known, noises(2), Condition(), model.options(solver="heun"))


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm", "unipc"])
def test_the_trajectory_ends_with_the_sample(solver):
    model = unet()
    options = model.options(solver=solver, steps=5)
    with torch.no_grad():
        seen, expected = model.trajectory(noises(2), Condition(), options)
        sample = model.sample(noises(2), Condition(), options)
    evaluations = 9 if solver == "heun" else 5
    assert seen.shape == expected.shape == (evaluations + 1, 2, 3, 16, 16)
    assert torch.equal(seen[-1].clamp(-1, 1), sample) and torch.equal(expected[-1].clamp(-1, 1), sample)
    assert 0.9 < seen[0].std() < 1.1


def test_morphing_leads_from_the_first_image_to_the_second():
    model = UNet(UNetConfig(**(NETWORK | dict(gaussian=40))))
    model.initialise([data(200)])
    ends = data(2, seed=5).clamp(-1, 1)
    options = model.options(solver="unipc", steps=50, schedule="log-snr")
    with torch.no_grad():
        way = model.morph(ends[:1], ends[1:], torch.linspace(0, 1, 3), options)
    torch.testing.assert_close(way[[0, 2]], ends, rtol=0, atol=0.05)
    assert (way[1] - ends[0]).abs().max() > 0.1 and (way[1] - ends[1]).abs().max() > 0.1


def test_guidance_where_nothing_is_asked_changes_nothing():
    model = unet(condition=ConditionConfig(("Smiling",)))
    assert torch.equal(model.generate(2, steps=3, guidance=3.0), model.generate(2, steps=3))


@pytest.mark.parametrize("options", [dict(solver="ddim", eta=0.5), dict(solver="dpm-sde")])
def test_walks_with_fresh_noise_cannot_be_walked_back(options):
    model = unet()
    with pytest.raises(ValueError, match="interpolation needs a deterministic solver"):
        model.interpolate(noises(1), noises(1, 1), torch.tensor([0.5]), model.options(**options))
    with pytest.raises(ValueError, match="encoding an image as noise needs a deterministic solver"):
        model.morph(data(1), data(1), torch.tensor([0.5]), model.options(**options))


# ---- likelihood ----


def normal_denoiser(process, mean: float, deviation: float):
    def denoise(x: Tensor, t) -> Tensor:
        at = t if isinstance(t, Tensor) else torch.tensor(float(t))
        alpha, sigma = process.alpha(at), process.sigma(at)
        return mean + alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * (x - alpha * mean)

    return denoise


@pytest.mark.parametrize("process", [Flow(), EDM(), DDPM(schedule="linear")], ids=["flow", "edm", "ddpm"])
def test_the_ode_gives_the_density_of_normal_data(process):
    mean, deviation = 0.2, 0.3
    x = mean + deviation * torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    way = solvers.encoding(process, solvers.schedule(process, 60, "log-snr"))
    direction = torch.ones_like(x)  # the Jacobian is a multiple of the identity: every direction gives its trace
    found = likelihood.ode_log_density(normal_denoiser(process, mean, deviation), process, x, direction, way)
    exact = torch.distributions.Normal(mean, deviation).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(found / 48, exact / 48, rtol=0, atol=0.01)


def test_the_bound_of_a_ddpm_is_what_its_formula_gives_for_normal_data():
    """With the exact denoiser every term is known. Their sum exceeds the entropy slightly."""
    process, mean, deviation = DDPM(schedule="linear"), 0.1, 0.3
    generator = torch.Generator().manual_seed(0)
    x = (mean + deviation * torch.randn(64, 3, 8, 8, generator=generator)).clamp(-1, 1)
    x = ((x + 1) * 127.5).round() / 127.5 - 1
    denoise = normal_denoiser(process, mean, deviation)
    bits = likelihood.bound_bits_per_dim(denoise, process, x, noises(64), 200).mean().item()
    t = torch.arange(1000, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    snr, variance = (alpha / sigma).square(), deviation**2
    error = variance * sigma**2 / (alpha**2 * variance + sigma**2)  # of the best estimate
    chain = 0.5 * ((snr[:-1] - snr[1:]) * error[1:]).sum()
    end = (alpha[-1] ** 2 * (mean**2 + variance) + sigma[-1] ** 2 - 1) / 2 - sigma[-1].log()
    spread = sigma[0] ** 2 * (1 - snr[1] / snr[0])
    first = 0.5 * (2 * math.pi * spread).log() + error[0] / (2 * spread) + math.log(127.5)
    assert abs(bits - float(chain + end + first) / math.log(2)) < 0.03
    entropy = (0.5 * math.log(2 * math.pi * math.e * variance) + math.log(127.5)) / math.log(2)
    assert entropy < bits < entropy + 1


def test_bits_per_dim_of_the_model_in_inference_mode():
    """As evaluate calls it; of the Gaussian of the data, whose density is known."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(**(NETWORK | dict(gaussian=768)))).eval()
    drawn = (0.1 + 0.3 * torch.randn(2000, 3, 16, 16, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    model.gaussian.fit([drawn])
    images = ((drawn[:8] + 1) * 127.5).round() / 127.5 - 1
    with torch.inference_mode():
        bits = model.bits_per_dim(images, noises(8))
    flat = images.flatten(1) - model.gaussian.mean
    along = flat @ model.gaussian.basis
    nats = 0.5 * (along.square() / model.gaussian.variance + model.gaussian.variance.log() + math.log(2 * math.pi)).sum(
        1
    )
    exact = (nats / 768 + math.log(127.5)) / math.log(2)
    assert bits.shape == (8,) and abs(bits.mean() - exact.mean()) < 0.06, (bits.mean(), exact.mean())
    assert model.likelihood_kind.name == "bits-per-dim-by-ode" and "no bound" in model.likelihood_kind.estimator
    assert unet(process="ddpm").likelihood_kind == LikelihoodKind(levels=256, exact=False, name="bits-per-dim")


def test_a_prior_over_latents_has_no_likelihood_of_images():
    model = unet(latents=(4, 8, 8))
    assert not model.can("bits_per_dim")
    with pytest.raises(ValueError, match="no bits per dimension of an image"):
        model.bits_per_dim(torch.zeros(1, 3, 16, 16), noises(1))


# ---- bad input ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(patch=3), "patch must divide the side of the input, got 3 for 16"),
        (dict(latents=(4, 1, 8)), "works on a square map, and these latents are 1 x 8"),
        (dict(channels=(16, 32, 32, 32, 32, 32), attention=(False,) * 6), "does not divide by 32"),
        (dict(channels=(16, 20)), "multiples of groups 8"),
        (dict(head=12), "multiples of head 12"),
        (dict(channels=(0, 16)), "multiples of groups 8"),
        (dict(channels=(8, 8, 8, 8, 8), attention=(False,) * 5, head=8), "feature map of 1 x 1, so its 8 channels"),
        (dict(dropout=2.0), r"dropout must be in \[0, 1\), got 2.0"),
        (dict(head=0), "head must be at least 1, got 0"),
        (dict(attention=(False, False), head=64), "those of the last level, which the middle block has too, must be"),
        (dict(attention=(True, False), head=16, channels=(16, 24)), "multiples of head 16"),
        (dict(attention=(True,)), "one entry per level"),
        (dict(latents=(4, 8)), r"latents must be \(channels, height, width\) or \(channels,\), got \(4, 8\)"),
        (dict(process="ode"), "process must be flow, meanflow, edm or ddpm, got 'ode'"),
        (dict(gaussian=-1), "gaussian must not be a negative number of components"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**(NETWORK | settings))


def test_an_imported_middle_block_that_cannot_be_divided_into_heads_is_refused():
    settings = network_settings(UNetConfig(**NETWORK)) | {"attention_head_dim": 64}
    with pytest.raises(ValueError, match="attention_head_dim is larger than the number of channels"):
        UNet(UNetConfig(size=16, diffusers=settings))
    without = dict(attention=(False, False), head=64, diffusers={"add_attention": False})
    model = UNet(UNetConfig(**(NETWORK | without)))
    assert model.generate(1, steps=1).isfinite().all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.edm.mean", "-1"], "edm.mean applies to process edm only, and the process is flow: got -1.0"),
        (["--model.process", "edm", "--model.flow.shift", "3"], "choose --model.process flow"),
        (["--model.process", "ddpm", "--model.meanflow.mean", "0"], "meanflow.mean applies to process meanflow only"),
    ],
)
def test_settings_of_a_process_that_is_not_selected_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        parse(UNetRecipe, "unet", flags)


@pytest.mark.parametrize("process", ["flow", "meanflow", "edm", "ddpm"])
def test_only_the_selected_process_is_recorded(process, tmp_path):
    """In config.yaml and config.json, from which the same config is read again."""
    setting = {"ddpm": ["--model.ddpm.prediction", "eps"]}.get(process, [f"--model.{process}.std", "0.7"])
    recipe = parse(UNetRecipe, "unet", ["--model.process", process, *setting])
    others = {"flow", "meanflow", "edm", "ddpm"} - {process}
    (tmp_path / "config.yaml").write_text(text := to_yaml(recipe, "unet"))
    model = yaml.safe_load(text)["model"]
    assert process in model and not others & model.keys()
    assert parse(UNetRecipe, "unet", ["--config", str(tmp_path / "config.yaml")]).model == recipe.model
    unet(process=process).save_pretrained(tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert process in saved and not others & saved.keys()
    assert from_dict(UNetConfig, saved) == unet(process=process).config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(solver="rk4"), "solver must be one of unipc, dpm"),
        (dict(steps=0), "steps and resample must be at least 1, got 0"),
        (dict(solver="ddim", eta=1.5), r"eta must be in \[0, 1\], got 1.5"),
        (dict(eta=0.5), "eta is an option of solver 'ddim', and this is 'unipc'"),
        (dict(temperature=-1.0), "temperature must not be negative, got -1.0"),
        (dict(guidance=-1.0), "guidance must not be negative"),
        (dict(guidance_low=2.0, guidance_high=1.0), "guidance_low must be from 0 to guidance_high"),
        (dict(guide="runs/weak"), "guide runs/weak has no effect at guidance 1"),
        (dict(guidance_rescale=2.0), r"guidance_rescale must be in \[0, 1\]"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionOptions(**options)


def test_a_solver_that_does_not_fit_and_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="'ddpm' needs a DDPM, and this process is Flow: 'ddim' with eta 1"):
        unet().generate(1, solver="ddpm")
    with pytest.raises(ValueError, match="steps must be at most 1000"):
        unet(process="ddpm").generate(1, steps=1001)
    with pytest.raises(ValueError, match="shift 3 applies to a flow only"):
        unet(process="edm").generate(1, shift=3.0)


def test_bad_options_on_the_command_line_are_one_line(tmp_path, capsys):
    unet().save_pretrained(tmp_path / "run")
    for given in (["--solver", "ddpm"], ["--guidance", "2"], ["--steps", "0"], ["--eta", "2", "--solver", "ddim"]):
        assert main(["sample", str(tmp_path / "run"), "--n", "1", "--out", str(tmp_path / "x.png"), *given]) in (1, 2)
        error = capsys.readouterr().err.strip()
        assert error.startswith("genmodels: error:") and len(error.splitlines()) == 1
