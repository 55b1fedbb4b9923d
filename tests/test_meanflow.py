"""Mean flow: the closed form, the training target, and sampling in one and two steps."""

from __future__ import annotations

import pytest
import torch
from test_diffusion import NETWORK
from torch import Tensor

from genmodels.conditions import Condition, ConditionConfig
from genmodels.diffusion.gaussian import GaussianDenoiser
from genmodels.diffusion.meanflow import mean_velocity_error
from genmodels.diffusion.options import DiffusionOptions
from genmodels.diffusion.process import Flow, MeanFlow
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.dit import DiT, DiTConfig
from genmodels.exchange.scheduler import scheduler_for
from genmodels.nn.transformer import TransformerConfig
from genmodels.types import Batch, Noise

BLOCKS = TransformerConfig(width=32, depth=2, heads=4)
ALL_JUMP = MeanFlow(share=1.0, power=0.0)


def normal_data(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Rows of a normal distribution with many different variances and a mean."""
    generator = torch.Generator().manual_seed(seed)
    size = shape[0] * shape[1] * shape[2]
    mixing = torch.randn(size, size, generator=generator) / size**0.5
    return (0.3 + torch.randn(n, size, generator=generator) @ mixing).view(n, *shape)


def fitted(shape: tuple[int, int, int], components: int) -> GaussianDenoiser:
    gaussian = GaussianDenoiser(shape, components)
    gaussian.fit([normal_data(4000, shape)])
    return gaussian


def at(value: float, n: int = 2) -> Tensor:
    return torch.full((n, 1, 1, 1), value)


@pytest.mark.parametrize("components", [4, 12])
def test_the_closed_form_is_where_the_ode_of_the_velocity_leads(components):
    gaussian, flow = fitted((3, 2, 2), components), Flow()
    x = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    t, to, steps = 0.9, 0.2, 2000
    far = x - (t - to) * gaussian.mean_velocity(x, at(t), at(to))
    walked = x.double()

    def velocity(where: Tensor, now: float) -> Tensor:
        x0 = gaussian(where.float(), 1 - at(now), at(now))
        return flow.output(x0, where.float(), at(now)).double()

    step = (t - to) / steps
    for i in range(steps):  # the midpoint rule
        half = walked - step / 2 * velocity(walked, t - i * step)
        walked = walked - step * velocity(half, t - (i + 0.5) * step)
    torch.testing.assert_close(far, walked.float(), rtol=1e-3, atol=1e-3)


def test_a_step_of_no_length_is_the_velocity():
    gaussian, flow = fitted((3, 2, 2), 12), Flow()
    x = torch.randn(2, 3, 2, 2)
    for t in (0.05, 0.5, 1.0):
        velocity = flow.output(gaussian(x, 1 - at(t), at(t)), x, at(t))
        torch.testing.assert_close(gaussian.mean_velocity(x, at(t), at(t)), velocity, rtol=1e-4, atol=1e-4)


def model_of_nothing(**settings) -> DiT:
    """A new model, whose network says 0 everywhere: the closed form alone."""
    shape = dict(size=4, patch=2, transformer=BLOCKS, gaussian=48, process="meanflow")
    model = DiT(DiTConfig(**(shape | settings)))
    model.initialise([normal_data(4000, (3, 4, 4))])
    return model.eval()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_normal_data_are_sampled_in_any_number_of_steps(steps):
    """The mean and every variance, from one evaluation as from seven."""
    model, data = model_of_nothing(), normal_data(4000, (3, 4, 4))
    noise = torch.randn(4000, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        drawn = model.generate_from(noise, Condition(), model.options(steps=steps))
    drawn, data = drawn.flatten(1), data.flatten(1).clamp(-1, 1)
    torch.testing.assert_close(drawn.mean(0), data.mean(0), rtol=0.1, atol=0.05)
    torch.testing.assert_close(drawn.T.cov(), data.T.cov(), rtol=0.2, atol=0.06)


def test_the_true_mean_velocity_has_no_error():
    """For data at one point c, x_t moves on a line, and u = (x_t - c) / t for all earlier times."""
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(1, 3, 2, 2, generator=generator)
    x0, eps = point.expand(16, -1, -1, -1), torch.randn(16, 3, 2, 2, generator=generator)
    t = torch.rand(16, 1, 1, 1, generator=generator) * 0.9 + 0.05
    noise = Noise.for_images(0, range(16))
    error, weight = mean_velocity_error(ALL_JUMP, lambda x, at, to, rows: (x - point) / at, x0, eps, t, noise)
    assert error.max() < 1e-6
    assert torch.equal(weight, torch.ones(16))


def test_the_closed_form_has_the_least_error_on_normal_data():
    """A network that outputs 0 has a lower loss than one that outputs a constant of either sign."""
    model = model_of_nothing(meanflow=ALL_JUMP)
    data = normal_data(512, (3, 4, 4))
    batch = Batch(data, Noise.for_images(0, range(512)))
    losses = []
    for push in (-0.3, 0.0, 0.3):
        with torch.no_grad():
            model.head.bias.fill_(push)
        losses.append(model.loss(batch, "model")[0].item())
    assert losses[1] < min(losses[0], losses[2]) - 0.05


def test_the_derivative_is_that_of_finite_differences():
    """The target of a random network, against a central difference along the path."""
    torch.manual_seed(0)
    model = DiT(DiTConfig(size=4, patch=2, transformer=BLOCKS, process="meanflow", meanflow=ALL_JUMP)).double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x0, eps = torch.randn(2, 4, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = at(0.8, 4).double()
    noise = Noise.for_images(0, range(4))
    r = torch.minimum(t, ALL_JUMP.draw(Noise.for_images(0, range(4)).uniform()).view(-1, 1, 1, 1).double())
    t = torch.maximum(t, ALL_JUMP.draw(Noise.for_images(0, range(4)).uniform()).view(-1, 1, 1, 1).double())

    def velocity(x: Tensor, now: Tensor, to: Tensor | None, rows: slice) -> Tensor:
        return model.output(x, now, None, to)[0]

    error, _ = mean_velocity_error(ALL_JUMP, velocity, x0, eps, at(0.8, 4).double(), noise)
    h = 1e-4

    def mean_velocity(time: Tensor) -> Tensor:
        return model.output((1 - time) * x0 + time * eps, time, None, to=r)[0]

    with torch.no_grad():
        change = (mean_velocity(t + h) - mean_velocity(t - h)) / (2 * h)
        target = eps - x0 - (t - r) * change
        torch.testing.assert_close(error, (mean_velocity(t) - target).square(), rtol=1e-2, atol=1e-2)


def test_a_mean_flow_is_also_a_flow_and_jumps_only_where_it_can():
    model = model_of_nothing()
    one, walked = model.generate(4, steps=1), model.generate(4, solver="heun", steps=40)
    torch.testing.assert_close(one, walked, rtol=0.05, atol=0.05)
    assert type(model.options()).__name__ == "JumpOptions" and model.options().steps == 2
    with pytest.raises(ValueError, match="solver 'jump' needs a mean flow"):
        UNet(UNetConfig(**NETWORK)).eval().generate(1, solver="jump")
    with pytest.raises(ValueError, match="to jump towards data, not back"):
        model.invert(one, Condition(), model.options())
    with pytest.raises(ValueError, match="share must be in"):
        MeanFlow(share=0.0)
    with pytest.raises(ValueError, match="no counterpart of a mean flow"):
        scheduler_for(MeanFlow())
    assert DiffusionOptions().solver == "unipc"


def test_a_u_net_learns_mean_velocities_too():
    torch.manual_seed(0)
    model = UNet(UNetConfig(**NETWORK, process="meanflow", condition=ConditionConfig(("Smiling",))))
    batch = Batch(torch.randn(8, 3, 16, 16), Noise.for_images(0, range(8)))
    loss, metrics = model.loss(batch, "model")
    loss.backward()
    assert all(p.grad is not None for p in model.step.parameters()) and metrics["mse"] > 0
    assert model.eval().generate(2, steps=1).shape == (2, 3, 16, 16)
