"""Sampling options of diffusion models: solver, schedule and guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from genmodels.diffusion import solvers
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import Process
from genmodels.diffusion.solvers import Schedule, Solver
from genmodels.prior import check_negative

SolverName = Literal["unipc", "dpm", "heun", "euler", "ddim", "ddpm", "dpm-sde", "jump"]
SOLVERS: dict[str, Solver] = {
    "unipc": solvers.unipc,
    "dpm": solvers.dpm,
    "heun": solvers.heun,
    "euler": solvers.euler,
    "ddim": solvers.ddim,
    "ddpm": solvers.ddpm,
    "dpm-sde": solvers.dpm_sde,
    "jump": solvers.jump,
}
STOCHASTIC = ("ddpm", "dpm-sde")
_kept_schedule = lru_cache(maxsize=64)(solvers.schedule)
"""`solvers.schedule`, computed once: a trace (torch.export) after a first run then sees numbers."""


@dataclass(frozen=True)
class DiffusionOptions:
    """The solver, its steps, and guidance."""

    solver: SolverName = "unipc"
    """unipc: UniPC-2. dpm: DPM-Solver++(2M). heun: two evaluations of the network per step; the
    others use one. ddim: takes --eta. ddpm: ancestral sampling of a DDPM. dpm-sde: stochastic
    DPM-Solver++(2M). jump: the steps of any length of a mean flow."""
    steps: int = 20
    """Number of solver steps."""
    schedule: Literal["uniform", "karras", "log-snr", "quadratic"] | None = None
    """Spacing of the times; None: uniform for a DDPM or mean flow, else karras. "quadratic" uses
    fewer steps than given where rounding makes timesteps of a DDPM equal."""
    shift: float = 1.0
    """Shift of a flow's times towards noise, on top of that of training; above 1: more steps at
    high noise levels."""
    eta: float = 0.0
    """Noise added by ddim, from 0 (deterministic) to 1 (as much as ddpm)."""
    guidance: float = 1.0
    """Guidance scale: classifier-free (arXiv 2207.12598), or with --guide autoguidance; 1: off."""
    negative: str = ""
    """Prompt that guidance leads away from, in place of the null condition."""
    guidance_low: float = 0.0
    """Apply guidance only where sigma / alpha is at least this (arXiv 2404.07724)."""
    guidance_high: float | None = None
    """Apply guidance only where sigma / alpha is at most this; None: no upper limit."""
    guidance_rescale: float = 0.0
    """Rescale guided x_0 towards the standard deviation of unguided x_0, from 0 (off) to 1
    (arXiv 2305.08891)."""
    guide: Path | None = None
    """Run folder of a weaker model to guide with, in place of the unconditional model
    (autoguidance, arXiv 2406.02507); needs no condition."""
    temperature: float = 1.0
    """Factor applied to the initial noise; below 1: fewer outliers and less variety."""
    resample: int = 3
    """Inpainting: how often each step is repeated, to fit the completion to the known pixels."""

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if self.steps < 1 or self.resample < 1:
            raise ValueError(f"steps and resample must be at least 1, got {self.steps} and {self.resample}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta:g}")
        if self.eta > 0 and self.solver != "ddim":
            raise ValueError(f"eta is an option of solver 'ddim', and this is {self.solver!r}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")
        if self.guidance_low < 0 or (self.guidance_high is not None and self.guidance_high < self.guidance_low):
            raise ValueError(
                f"guidance_low must be from 0 to guidance_high, got {self.guidance_low:g} and {self.guidance_high}"
            )
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale must be in [0, 1], got {self.guidance_rescale}")
        check_negative(self.negative, self.guidance)
        if self.negative and self.guide is not None:
            raise ValueError("a negative prompt and a guide both say what guidance leads away from: give one of them")
        if self.guide is not None and self.guidance == 1:
            raise ValueError(f"guide {self.guide} has no effect at guidance 1: set guidance, for example 2")

    @property
    def is_stochastic(self) -> bool:
        """Whether the solver adds noise, so that it cannot be inverted."""
        return self.solver in STOCHASTIC or self.eta > 0

    def solver_for(self, process: Process, fraction: Callable[[], Tensor] | None = None) -> Solver:
        """The function of `solver`.

        Args:
            process: the diffusion process.
            fraction: the learned variance at the last evaluation, for a DDPM that learns it; see
                `solvers.ddpm`.

        Raises:
            ValueError: for a solver that does not support the process.
        """
        if self.solver == "ddpm" and not isinstance(process, DDPM):
            raise ValueError(
                f"solver 'ddpm' needs a DDPM, and this process is {type(process).__name__}: 'ddim' with eta 1 is the "
                "same for any process"
            )
        if self.solver == "jump" and not process.jumps:
            raise ValueError(
                "solver 'jump' needs a mean flow (--model.process meanflow), and this process is "
                f"{type(process).__name__}"
            )
        if self.solver == "ddpm" and isinstance(process, DDPM) and process.learned_variance:
            return partial(solvers.ddpm, fraction=fraction)
        return partial(solvers.ddim, eta=self.eta) if self.solver == "ddim" else SOLVERS[self.solver]

    def schedule_for(self, process: Process) -> Schedule:
        """Times from noise to data.

        Raises:
            ValueError: for too many steps, or a shift that the process does not have.
        """
        return _kept_schedule(process, self.steps, self.schedule, self.shift)

    def check_reversible(self, task: str) -> None:
        """Raise ValueError when the solver is stochastic; `task` names what needs another one."""
        if self.is_stochastic:
            raise ValueError(
                f"{task} needs a deterministic solver, and this is {self.solver!r} with eta {self.eta:g}: use dpm, "
                "unipc, heun or euler"
            )


@dataclass(frozen=True)
class JumpOptions(DiffusionOptions):
    """Options with the defaults of a mean flow, which needs few steps."""

    solver: SolverName = "jump"
    steps: int = 2
    """Number of solver steps; "jump" needs 1 or 2."""
