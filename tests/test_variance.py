"""Learned variance of a DDPM: its loss, its gradients, and sampling with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_diffusion import NETWORK
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from genmodels.conditions import Condition
from genmodels.diffusion import solvers
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.solvers import schedule
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.diffusion.variance import variance_bound
from genmodels.dit import DiT, DiTConfig, vanilla
from genmodels.exchange.export import standard_pipeline
from genmodels.nn.transformer import TransformerConfig
from genmodels.types import Batch, Noise

CHAIN = DDPM(prediction="eps", schedule="linear", min_snr=None, learned_variance=True)
BLOCKS = TransformerConfig(width=32, depth=2, heads=4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_bound_is_the_divergence_of_the_two_steps():
    """Against both normal distributions as the DDPM paper writes them, with betas."""
    x0, eps, found = draw(5, 3, 2, 2), draw(5, 3, 2, 2, seed=1), draw(5, 3, 2, 2, seed=2)
    fraction = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = torch.tensor([1, 7, 300, 900, 999])
    betas, bars = CHAIN.betas, (1 - CHAIN.betas).cumprod(0)
    beta, bar, before = (values[at].view(-1, 1, 1, 1) for values, at in ((betas, t), (bars, t), (bars, t - 1)))
    x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * eps

    def mean(data: Tensor) -> Tensor:
        return (before.sqrt() * beta * data + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - bar)

    low = beta * (1 - before) / (1 - bar)
    learnt = (fraction * beta.log() + (1 - fraction) * low.log()).exp()
    wanted = kl_divergence(Normal(mean(x0), low.sqrt()), Normal(mean(found), learnt.sqrt())).mean((1, 2, 3))
    got = variance_bound(CHAIN, fraction, found, x0, t.double().view(-1, 1, 1, 1))
    torch.testing.assert_close(got, wanted / torch.log(torch.tensor(2.0)), rtol=1e-4, atol=1e-6)


def test_the_walk_is_that_of_diffusers():
    """Over the whole chain: for a shorter walk theirs takes the upper bound of a single step."""
    from diffusers import DDPMScheduler

    steps, chain = 40, replace(CHAIN, timesteps=40)
    theirs = DDPMScheduler(steps, clip_sample=False, timestep_spacing="trailing", variance_type="learned_range")
    s, start = schedule(chain, steps), draw(2, 3, 4, 4)
    said: list[Tensor] = []

    def network(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x), torch.sin(3 * x)

    def denoise(x: Tensor, t: float) -> Tensor:
        eps, variance = network(x)
        said.append((variance + 1) / 2)
        at = torch.tensor(t, dtype=torch.float64)
        return chain.x0(eps, x, at)

    generator = torch.Generator().manual_seed(5)
    ours = solvers.ddpm(
        denoise, start, s, lambda: torch.randn(start.shape, generator=generator, dtype=start.dtype), said.pop
    )
    theirs.set_timesteps(steps)
    generator, x = torch.Generator().manual_seed(5), start
    for t in theirs.timesteps:
        x = theirs.step(torch.cat(network(x), dim=1), t, x, generator=generator).prev_sample
    assert (ours - x).abs().max() < 1e-4 * x.abs().max()


def test_the_bound_teaches_the_variance_and_nothing_else():
    torch.manual_seed(0)
    model = DiT(vanilla(size=8, patch=2, transformer=BLOCKS))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    batch = Batch(torch.randn(16, 3, 8, 8), Noise.for_images(0, range(16)))
    loss, metrics = model.loss(batch, "model")
    torch.testing.assert_close(loss.detach(), metrics["mse"] + metrics["bound"])
    loss.backward()
    both = model.head.weight.grad.clone()  # (6 p^2, D): the noise, then the variance
    model.zero_grad()
    frozen = DiT(
        vanilla(size=8, patch=2, transformer=BLOCKS, ddpm=DDPM(prediction="eps", schedule="linear", min_snr=None))
    )
    state = model.state_dict()
    half = len(state["head.weight"]) // 2
    frozen.load_state_dict(state | {f"head.{kind}": state[f"head.{kind}"][:half] for kind in ("weight", "bias")})
    frozen.loss(Batch(batch.images, Noise.for_images(0, range(16))), "model")[0].backward()
    torch.testing.assert_close(both[:half], frozen.head.weight.grad)
    assert both[half:].abs().max() > 0


def test_training_finds_the_variance_of_normal_data():
    """With the exact mean, the bound is smallest at the true variance of a step."""
    x0, t = 0.5 * draw(4096, 1, 1, 1), torch.full((4096, 1, 1, 1), 600.0, dtype=torch.float64)
    alpha, sigma = CHAIN.alpha(t), CHAIN.sigma(t)
    x_t = alpha * x0 + sigma * draw(4096, 1, 1, 1, seed=1)
    found = 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * x_t
    values = torch.linspace(-1, 2, 61, dtype=torch.float64)
    bounds = torch.stack([variance_bound(CHAIN, torch.full_like(x0, v), found, x0, t).mean() for v in values])
    best = values[bounds.argmin()]
    assert 0 <= best <= 1
    before = t - 1
    share = CHAIN.sigma(before) * alpha / (sigma * CHAIN.alpha(before))
    low = CHAIN.sigma(before) ** 2 * (1 - share**2)
    slope = CHAIN.alpha(before) - (CHAIN.sigma(before) ** 2 - low).sqrt() * alpha / sigma
    true = low[0] + slope[0] ** 2 * 0.25 * sigma[0] ** 2 / (0.25 * alpha[0] ** 2 + sigma[0] ** 2)
    high = 1 - (alpha / CHAIN.alpha(before)) ** 2
    exact = ((true / low[0]).log() / (high[0] / low[0]).log()).item()
    assert best.item() == pytest.approx(exact, abs=0.1)


def test_sampling_uses_it_and_a_u_net_can_have_it():
    torch.manual_seed(0)
    model = UNet(UNetConfig(**NETWORK, process="ddpm", ddpm=DDPM(learned_variance=True))).eval()
    calm = model.generate(4, solver="ddpm", steps=20)
    model.network.conv_out.bias.data[3:] += 4  # far above the upper bound: much more fresh noise
    wild = model.generate(4, solver="ddpm", steps=20)
    assert calm.shape == (4, 3, 16, 16) and wild.std() > calm.std() + 0.03
    options, noise = model.options(solver="ddpm", steps=6), [Noise.for_images(0, range(2)) for _ in range(2)]
    seen, _ = model.trajectory(noise[0], Condition(), options)
    torch.testing.assert_close(seen[-1].clamp(-1, 1), model.sample(noise[1], Condition(), options), atol=1e-5, rtol=0)
    assert "a learned variance" in standard_pipeline(model, None)[1]
    assert DiT(DiTConfig(size=8, transformer=BLOCKS)).config.outputs == 3
