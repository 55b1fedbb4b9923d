"""Solvers against closed forms (Gaussian data) and against the schedulers of diffusers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from genmodels.diffusion import solvers
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import EDM, Flow, Process
from genmodels.diffusion.solvers import Schedule, schedule, through

MEAN = torch.tensor([0.3, -0.7], dtype=torch.float64).view(1, 2, 1, 1)
VARIANCE = torch.tensor([0.5, 0.05], dtype=torch.float64).view(1, 2, 1, 1)
PROCESSES: dict[str, Process] = {"flow": Flow(), "edm": EDM(), "ddpm": DDPM(schedule="linear")}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def never() -> Tensor:
    raise AssertionError("a deterministic solver drew noise")


def exact_denoiser(process: Process):
    """E[x_0 | x_t] of normal data."""

    def denoise(x_t: Tensor, t: float) -> Tensor:
        at = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = process.alpha(at), process.sigma(at)
        return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x_t - alpha * MEAN)

    return denoise


def exact_flow(process: Process, x: Tensor, s: Schedule) -> Tensor:
    """Solve the probability-flow ODE exactly: standardised coordinates are constant."""
    deviation = [(s.alpha[i] ** 2 * VARIANCE + s.sigma[i] ** 2).sqrt() for i in (0, -1)]
    return s.alpha[-1] * MEAN + deviation[1] / deviation[0] * (x - s.alpha[0] * MEAN)


def smooth(process: Process, steps: int) -> Schedule:
    """Make a schedule that ends with some noise, so that no step has to be of first order."""
    share = torch.arange(steps + 1, dtype=torch.float64) / steps
    if isinstance(process, EDM):
        times = (80 ** (1 / 7) + share * (0.02 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    else:
        high, low = (1.0, 0.05) if isinstance(process, Flow) else (999.0, 50.0)
        times = high + share * (low - high)
    return through(process, times.tolist())


@pytest.mark.parametrize("name", list(PROCESSES))
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (solvers.euler, 1),
        (solvers.ddim, 1),
        (solvers.heun, 2),
        (solvers.dpm, 2),
        (partial(solvers.unipc, order=1), 2),
        (partial(solvers.unipc, order=2), 3),
        (partial(solvers.unipc, order=3), 4),
    ],
    ids=["euler", "ddim", "heun", "dpm", "unipc-1", "unipc-2", "unipc-3"],
)
def test_solvers_converge_at_their_order(name, solver, order):
    """UniPC-p is of order p + 1 (arXiv 2302.04867, theorem 3.1)."""
    process = PROCESSES[name]
    errors = []
    for steps in (80, 160, 320):
        s = smooth(process, steps)
        x = s.sigma[0] * draw(1, 2, 1, 1, seed=1)
        found = solver(exact_denoiser(process), x, s, never)
        errors.append((found - exact_flow(process, x, s)).abs().max().item())
    slope = math.log2(errors[0] / errors[2]) / 2
    assert order - 0.3 < slope < order + 0.65, (slope, errors)
    assert errors[2] < 0.02


@pytest.mark.parametrize("name", list(PROCESSES))
@pytest.mark.parametrize("solver", [solvers.euler, solvers.heun, solvers.dpm, solvers.unipc])
def test_the_reversed_walk_gives_back_the_data(name, solver):
    """Data to noise to data."""
    process = PROCESSES[name]
    s = schedule(process, 400, "log-snr")
    data = MEAN + VARIANCE.sqrt() * draw(1, 2, 3, 3)
    up = solvers.encoding(process, s)
    noise = solver(exact_denoiser(process), up.alpha[0] * data, up, never)
    torch.testing.assert_close(
        noise, exact_flow(process, up.alpha[0] * data, up), rtol=0.02, atol=0.02 * process.noise_scale
    )
    back = solver(exact_denoiser(process), noise, s, never)
    tolerance = 0.03 if solver is solvers.euler else 3e-3
    torch.testing.assert_close(back, data, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", list(PROCESSES))
@pytest.mark.parametrize("solver", [solvers.ddpm, solvers.dpm_sde, partial(solvers.ddim, eta=0.5)])
def test_stochastic_solvers_reach_the_distribution(name, solver):
    process = PROCESSES[name]
    s = schedule(process, 1000)
    generator = torch.Generator().manual_seed(2)
    x = process.noise_scale * draw(20_000, 2, 1, 1)
    found = solver(exact_denoiser(process), x, s, lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype))
    torch.testing.assert_close(found.mean(0, keepdim=True), MEAN, rtol=0, atol=0.02)
    torch.testing.assert_close(found.var(0, keepdim=True), VARIANCE, rtol=0.05, atol=0)


def test_eta_zero_draws_nothing_and_is_euler():
    process = PROCESSES["ddpm"]
    s, x = schedule(process, 7), draw(2, 2, 1, 1)
    assert torch.equal(
        solvers.ddim(exact_denoiser(process), x, s, never), solvers.euler(exact_denoiser(process), x, s, never)
    )


def by_output(process: Process, denoise):
    """`denoise` by way of what a network would put out."""

    def through(x_t: Tensor, t: float) -> Tensor:
        at = torch.full((1, 1, 1, 1), t, dtype=torch.float64)
        return process.x0(process.output(denoise(x_t, t), x_t, at), x_t, at)

    return through


def test_all_parameterisations_of_one_denoiser_give_the_same_samples():
    """One denoiser as eps, v, x0 and velocity gives equal samples on the same path. So do a DDPM, a
    flow and an EDM process with the same sigma / alpha."""
    chain = DDPM(schedule="linear")
    denoise = exact_denoiser(chain)
    x = draw(4, 2, 1, 1)
    s = schedule(chain, 20)
    found = {}
    for prediction in ("eps", "v", "x0"):
        process = DDPM(schedule="linear", prediction=prediction)
        for solver in (solvers.euler, solvers.dpm, solvers.heun, solvers.unipc):
            found[prediction, solver.__name__] = solver(by_output(process, denoise), x, s, never)
    for (prediction, name), value in found.items():
        torch.testing.assert_close(value, found["eps", name], rtol=0, atol=1e-5, msg=f"{prediction} {name}")
    ratios = torch.tensor([sigma / alpha for alpha, sigma in zip(s.alpha, s.sigma, strict=True)], dtype=torch.float64)
    for process in (Flow(), EDM()):
        other = through(process, process.time_of(ratios).tolist())
        size = (s.alpha[0] ** 2 + s.sigma[0] ** 2) ** 0.5 / s.alpha[0] * other.alpha[0]  # the same point of the path
        for solver in (solvers.euler, solvers.dpm, solvers.unipc):
            same = solver(by_output(process, exact_denoiser(process)), size * x, other, never)
            torch.testing.assert_close(same, found["eps", solver.__name__], rtol=0, atol=1e-5)


# ---- against diffusers ----


def network(x: Tensor, t: float) -> Tensor:
    """Something that is no denoiser, but smooth, and the same for both sides."""
    return torch.tanh(0.7 * x.roll(1, 2) + 0.2 * x.flip(1)) * (0.5 + t / 2000) + 0.3 * x


def our_denoiser(process: Process, told: dict[float, float] | None = None):
    """`told`: what the network is told at each time, where it is not the process's own signal."""

    def denoise(x_t: Tensor, t: float) -> Tensor:
        at = torch.full((1, 1, 1, 1), t, dtype=torch.float64)
        signal = float(process.time_input(at).flatten()[0]) if told is None else told[t]
        return process.x0(network(x_t, signal), x_t, at)

    return denoise


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """Compare to 1e-4 of the largest value. diffusers computes most coefficients in float32."""
    torch.testing.assert_close(ours, theirs.to(ours), rtol=0, atol=tolerance * float(theirs.abs().max().clamp_min(1)))


def their_walk(scheduler, x: Tensor, steps: int, generator: torch.Generator | None = None, **step) -> Tensor:
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    if isinstance(getattr(scheduler, "sigmas", None), Tensor):
        scheduler.sigmas = scheduler.sigmas.double()  # where it will: 1 - 0.999 has four digits in float32
    if generator is not None:
        step["generator"] = generator
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(given, float(t)), t, x, **step).prev_sample
    return x


LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
CHAIN = DDPM(prediction="eps", schedule="linear")


@pytest.mark.parametrize(("steps", "spacing"), [(1, "trailing"), (20, "trailing"), (6, "leading"), (20, "leading")])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_ddim_against_diffusers(steps, spacing, prediction):
    """Trailing spacing is tested only for steps that divide the chain. For others, the DDIM of
    diffusers steps back by 1000 // steps from timesteps that are further apart."""
    from diffusers import DDIMScheduler

    names = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    theirs = DDIMScheduler(
        beta_schedule="linear", prediction_type=names[prediction], clip_sample=False, timestep_spacing=spacing
    )
    process = DDPM(prediction=prediction, schedule="linear", spacing=spacing)
    x = draw(2, 3, 4, 4)
    ours = solvers.ddim(our_denoiser(process), x, schedule(process, steps), never)
    assert_same(ours, their_walk(theirs, x, steps))


def test_ddim_with_noise_and_ddpm_against_diffusers():
    from diffusers import DDIMScheduler, DDPMScheduler

    x, s = draw(2, 3, 4, 4), schedule(CHAIN, 20)

    def noises(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return generator, lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype)

    theirs = DDIMScheduler(**LINEAR, clip_sample=False, timestep_spacing="trailing")
    ours = solvers.ddim(our_denoiser(CHAIN), x, s, noises(3)[1], eta=0.6)
    assert_same(ours, their_walk(theirs, x, 20, noises(3)[0], eta=0.6))
    theirs = DDPMScheduler(**LINEAR, clip_sample=False, timestep_spacing="trailing")
    ours = solvers.ddpm(our_denoiser(CHAIN), x, s, noises(4)[1])
    assert_same(ours, their_walk(theirs, x, 20, noises(4)[0]))


@pytest.mark.parametrize("steps", [5, 10, 25])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpm_and_unipc_against_diffusers(steps, prediction):
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    kind = {"eps": "epsilon", "v": "v_prediction"}[prediction]
    common = {"beta_schedule": "linear", "prediction_type": kind, "timestep_spacing": "trailing"}
    process = DDPM(prediction=prediction, schedule="linear")
    x, s = draw(2, 3, 4, 4), schedule(process, steps)
    theirs = DPMSolverMultistepScheduler(**common, solver_order=2, final_sigmas_type="zero")
    ours = solvers.dpm(our_denoiser(process), x, s, never)
    assert_same(ours, their_walk(theirs, x, steps))
    for order in (1, 2, 3):
        theirs = UniPCMultistepScheduler(**common, solver_order=order, final_sigmas_type="zero")
        ours = solvers.unipc(our_denoiser(process), x, s, never, order=order)
        assert_same(ours, their_walk(theirs, x, steps))


def test_the_sde_variant_against_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        **LINEAR, timestep_spacing="trailing", algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"
    )
    x, seed = draw(2, 3, 4, 4).float(), 5
    generator = torch.Generator().manual_seed(seed)
    ours = solvers.dpm_sde(
        our_denoiser(CHAIN), x.double(), schedule(CHAIN, 20), lambda: torch.randn(x.shape, generator=generator).double()
    )
    expected = their_walk(theirs, x, 20, torch.Generator().manual_seed(seed))
    assert_same(ours, expected)


def test_euler_and_heun_against_diffusers():
    """Theirs walk in x / alpha, along sigma / alpha."""
    from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

    x, s = draw(2, 3, 4, 4), schedule(CHAIN, 12)
    for theirs, solver in (
        (EulerDiscreteScheduler(**LINEAR, timestep_spacing="trailing"), solvers.euler),
        (HeunDiscreteScheduler(**LINEAR, timestep_spacing="trailing"), solvers.heun),
    ):
        theirs.set_timesteps(12)
        # Their walk begins with sigma / alpha times unit noise, so ours with sigma times it.
        start = float(theirs.init_noise_sigma) * s.alpha[0]
        ours = solver(our_denoiser(CHAIN), start * x, s, never)
        assert_same(ours, their_walk(theirs, x, 12))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_against_diffusers(shift):
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    flow, x, steps = Flow(), draw(2, 3, 4, 4), 9
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    for theirs, solver in (
        (FlowMatchEulerDiscreteScheduler(shift=shift), solvers.euler),
        (FlowMatchHeunDiscreteScheduler(shift=shift), solvers.heun),
        (DPMSolverMultistepScheduler(**settings, final_sigmas_type="zero"), solvers.dpm),
        (UniPCMultistepScheduler(**settings, final_sigmas_type="zero"), solvers.unipc),
    ):
        expected = their_walk(theirs, x, steps)
        sigmas = theirs.sigmas.double().unique_consecutive().tolist()
        # Of the times of two of them diffusers cuts off the fraction.
        told = dict(zip(sigmas, theirs.timesteps.double().unique_consecutive().tolist(), strict=False))
        ours = solver(our_denoiser(flow, told), x, through(flow, sigmas), never)
        assert_same(ours, expected)


def test_flow_schedules_against_diffusers():
    """Ours begins at t = 1; given the same sigmas, diffusers' walk is ours."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    x = draw(2, 3, 4, 4)
    s = schedule(Flow(), 8, "uniform", shift=2.0)
    theirs = FlowMatchEulerDiscreteScheduler(shift=2.0)
    theirs.set_timesteps(sigmas=[1 - i / 8 for i in range(8)])
    torch.testing.assert_close(theirs.sigmas.double(), torch.tensor(s.times, dtype=torch.float64), rtol=0, atol=1e-6)
    expected = x
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, float(t)), t, expected).prev_sample
    assert_same(solvers.euler(our_denoiser(Flow()), x, s, never), expected)


# ---- schedules ----


@pytest.mark.parametrize("name", list(PROCESSES))
@pytest.mark.parametrize("spacing", ["uniform", "karras", "log-snr", "quadratic", None])
def test_schedules_go_down_from_noise_to_data(name, spacing):
    process = PROCESSES[name]
    s = schedule(process, 10, spacing)
    assert len(s) == 10 and s.times[0] == process.start and s.times[-1] == process.end
    assert all(a > b for a, b in zip(s.times, s.times[1:], strict=False))
    assert s.sigma[-1] == 0 and s.alpha[-1] == 1


def test_karras_and_log_snr_are_what_they_are_called():
    ratios = schedule(EDM(), 5, "karras").sigma[:-1]
    steps = torch.tensor(ratios, dtype=torch.float64).pow(1 / 7).diff()
    torch.testing.assert_close(steps, steps[:1].expand(4))
    s = schedule(EDM(), 5, "log-snr")
    lams = torch.tensor([s.lam(i) for i in range(5)])
    torch.testing.assert_close(lams.diff(), lams.diff()[:1].expand(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedule(Flow(), 0), "steps must be at least 1, got 0"),
        (lambda: schedule(DDPM(), 1001), "steps must be at most 1000, the timesteps of this DDPM, got 1001"),
        (lambda: schedule(DDPM(), 10, shift=2.0), "shift 2 applies to a flow only, and this process is DDPM"),
        (lambda: schedule(Flow(), 10, shift=0.0), "shift must be above 0"),
        (lambda: schedule(Flow(), 10, "cosine"), "unknown schedule 'cosine'; known: uniform"),
        (
            lambda: solvers.ddim(network, draw(1, 1, 1, 1), schedule(Flow(), 2), never, eta=1.5),
            r"eta must be in \[0, 1\]",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_quadratic_does_not_repeat_timesteps():
    s = schedule(DDPM(), 1000, "quadratic")
    assert len(set(s.times)) == len(s.times)


# ---- completing ----


def test_repaint_keeps_what_is_known_and_draws_the_rest_from_the_conditional():
    """Two correlated normal values, one known. The other has its conditional distribution."""
    rho, known_value = 0.8, 1.5
    cov = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    process = PROCESSES["ddpm"]

    def denoise(x_t: Tensor, t: float) -> Tensor:
        at = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = process.alpha(at), process.sigma(at)
        gain = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(2, dtype=torch.float64))
        return (x_t.flatten(1) @ gain.T).view(x_t.shape)

    n = 4000
    image = torch.full((n, 2, 1, 1), known_value, dtype=torch.float64)
    mask = torch.tensor([True, False]).view(1, 2, 1, 1)
    wrong = {}
    for rounds in (1, 10):
        generator = torch.Generator().manual_seed(0)
        x = draw(n, 2, 1, 1)
        normal = partial(torch.randn, x.shape, generator=generator, dtype=x.dtype)
        found = solvers.repaint(denoise, x, schedule(process, 50), normal, image, mask, rounds)
        assert torch.equal(found[:, 0], image[:, 0])
        other = found[:, 1].flatten()
        wrong[rounds] = max(abs(other.mean() - rho * known_value), abs(other.std() - (1 - rho**2) ** 0.5)).item()
    assert wrong[10] < 0.1 and wrong[10] < wrong[1] / 2, wrong
