"""Diffusion processes: conversions, targets and weights, against diffusers and the papers."""

from __future__ import annotations

import pytest
import torch

from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import EDM, Flow, Process

PROCESSES: dict[str, Process] = {
    "flow": Flow(),
    "flow shifted": Flow(shift=3.0),
    "edm": EDM(),
    "ddpm eps": DDPM(prediction="eps", schedule="linear"),
    "ddpm v": DDPM(prediction="v"),
    "ddpm x0": DDPM(prediction="x0", schedule="scaled-linear", beta_start=0.0015, beta_end=0.0195),
}


@pytest.fixture(params=list(PROCESSES))
def process(request) -> Process:
    return PROCESSES[request.param]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(process: Process, n: int = 64) -> torch.Tensor:
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return process.draw(uniform).view(-1, 1, 1, 1)


def test_a_perfect_network_gives_back_data_and_noise(process):
    """x0(target) = x0, eps and score follow, and `output` is the inverse of `x0`."""
    x0, eps, t = normal(64, 3, 4, 4), normal(64, 3, 4, 4, seed=1), times(process)
    x_t = process.noisy(x0, eps, t)
    target = process.target(x0, eps, t)
    found = process.x0(target, x_t, t)
    torch.testing.assert_close(found, x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(process.output(x0, x_t, t), target, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(process.eps(x0, x_t, t), eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(process.score(x0, x_t, t), -eps / process.sigma(t), rtol=1e-6, atol=1e-6)
    v = process.alpha(t) * eps - process.sigma(t) * x0
    torch.testing.assert_close(process.v(x0, x_t, t), v, rtol=1e-6, atol=1e-6)


def test_time_of_is_the_inverse_of_the_ratio(process):
    t = times(process)
    ratio = process.sigma(t) / process.alpha(t)
    torch.testing.assert_close(process.time_of(ratio), t, rtol=1e-6, atol=1e-6)


def test_the_ratio_grows_with_time(process):
    t = times(process).flatten().sort().values
    ratio = process.sigma(t) / process.alpha(t)
    assert (ratio.diff() >= 0).all()
    end = torch.tensor([process.end], dtype=torch.float64)
    assert process.sigma(end) == 0 and process.alpha(end) == 1


def test_edm_inputs_and_targets_have_unit_variance():
    process = EDM(data=0.7)
    for level in (0.01, 0.5, 20.0):
        t = torch.full((1, 1, 1, 1), level, dtype=torch.float64)
        x0, eps = 0.7 * normal(20, 3, 64, 64), normal(20, 3, 64, 64, seed=1)
        x_t = process.noisy(x0, eps, t)
        assert abs((process.scale(t) * x_t).std() - 1) < 0.01
        assert abs(process.target(x0, eps, t).std() - 1) < 0.01


def test_flow_times_are_logit_normal_and_shifted():
    uniform = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    t = Flow(mean=0.5, std=2.0).draw(uniform)
    logit = (t / (1 - t)).log()
    assert abs(logit.mean() - 0.5) < 1e-6 and abs(logit.std() - 2) < 0.02
    torch.testing.assert_close(Flow(std=0.0, shift=3.0).draw(torch.tensor([0.5])), torch.tensor([0.75]))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DDPM(schedule="linear"), {"beta_schedule": "linear"}),
        (DDPM(schedule="cosine"), {"beta_schedule": "squaredcos_cap_v2"}),
        (
            DDPM(schedule="scaled-linear", beta_start=0.0015, beta_end=0.0195),
            {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
        ),
    ],
    ids=["linear", "cosine", "scaled-linear"],
)
def test_against_diffusers_schedules(ours, theirs):
    from diffusers import DDPMScheduler

    bar = DDPMScheduler(**theirs).alphas_cumprod.double()
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(ours.alpha(t).square(), bar, rtol=2e-4, atol=1e-7)
    x0, eps = normal(5, 1, 1, 1), normal(5, 1, 1, 1, seed=1)
    at = torch.tensor([0, 10, 500, 900, 998])
    noisy = DDPMScheduler(**theirs).add_noise(x0, eps, at)
    torch.testing.assert_close(ours.noisy(x0, eps, at.double().view(-1, 1, 1, 1)), noisy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_min_snr_weighs_the_error_of_the_data_alike(prediction):
    """Weighted errors of eps, v and x0 all equal min(SNR, 5) times the squared error of x0."""
    process = DDPM(prediction=prediction)
    t = torch.tensor([3.0, 300.0, 700.0], dtype=torch.float64).view(-1, 1, 1, 1)
    x0, eps, wrong = normal(3, 1, 8, 8), normal(3, 1, 8, 8, seed=1), normal(3, 1, 8, 8, seed=2)
    x_t = process.noisy(x0, eps, t)
    error = (process.output(wrong, x_t, t) - process.target(x0, eps, t)).square().mean((1, 2, 3))
    snr = (process.alpha(t) / process.sigma(t)).square().flatten()
    expected = snr.clamp_max(5.0) * (wrong - x0).square().mean((1, 2, 3))
    torch.testing.assert_close(process.weight(t).flatten() * error, expected, rtol=1e-6, atol=1e-9)


def test_without_min_snr_the_weight_is_one():
    plain = DDPM(min_snr=None)
    assert (plain.weight(torch.tensor([0.0, 999.0])) == 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flow(shift=0.0), "shift above 0"),
        (lambda: EDM(data=0.0), "data and std must be above 0"),
        (lambda: DDPM(prediction="noise"), "prediction must be eps, v, x0, got 'noise'"),
        (lambda: DDPM(schedule="sigmoid"), "schedule must be linear"),
        (lambda: DDPM(beta_start=0.5, beta_end=0.1), "0 < beta_start <= beta_end < 1"),
        (lambda: DDPM(min_snr=0.0), "min_snr must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
