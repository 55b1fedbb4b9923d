"""How to walk from noise to data: what can be chosen at sampling time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from genmodels.diffusion import solvers
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import Process
from genmodels.diffusion.solvers import Solver

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


@dataclass(frozen=True)
class DiffusionOptions:
    """The solver, its steps, and guidance."""

    solver: SolverName = "unipc"
    """unipc: UniPC-2. dpm: DPM-Solver++(2M). heun evaluates the network twice a step, the others once. ddim takes
    --eta; ddpm walks the chain that a DDPM was trained on; dpm-sde adds noise on the way; jump
    takes the steps that a mean flow has learnt, however long."""
    steps: int = 20
    """Steps of the walk."""
    schedule: Literal["uniform", "karras", "log-snr", "quadratic"] | None = None
    """How the times of the steps are spaced; None: uniform for a DDPM, else karras. "quadratic" takes fewer steps than
    asked where a chain has not so many different ones."""
    shift: float = 1.0
    """Above 1: more of a flow's steps where there is much noise."""
    eta: float = 0.0
    """Fresh noise of ddim, from 0 (none) to 1 (as much as ddpm)."""
    guidance: float = 1.0
    """How much to exaggerate the condition (arXiv 2207.12598), or what --guide lacks; 1: not at all."""
    guidance_low: float = 0.0
    """Guide only where sigma / alpha is at least this (arXiv 2404.07724)."""
    guidance_high: float | None = None
    """Guide only where sigma / alpha is at most this; None: also where there is most noise."""
    guidance_rescale: float = 0.0
    """Share in which guided data get back the spread of unguided data (arXiv 2305.08891)."""
    guide: Path | None = None
    """Run folder of a weaker model: guidance leads away from it instead of from no condition (autoguidance,
    arXiv 2406.02507), and needs no condition."""
    temperature: float = 1.0
    """Scale of the noise that the walk begins with; less than 1 for calmer samples, fewer outliers and less variety."""
    resample: int = 3
    """Inpainting: how often each step is taken, so that what is made up fits what is known."""

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
        if self.guide is not None and self.guidance == 1:
            raise ValueError(f"guide {self.guide} changes nothing at guidance 1: give a guidance, such as 2")

    @property
    def is_stochastic(self) -> bool:
        """Whether the walk adds noise, so that it cannot be walked back."""
        return self.solver in STOCHASTIC or self.eta > 0

    def solver_for(self, process: Process) -> Solver:
        """The solver.

        Raises:
            ValueError: when it does not fit the process.
        """
        if self.solver == "ddpm" and not isinstance(process, DDPM):
            raise ValueError(
                f"solver 'ddpm' walks the chain of a DDPM, and this process is {type(process).__name__}: 'ddim' with "
                "eta 1 is the same for any process"
            )
        if self.solver == "jump" and not process.jumps:
            raise ValueError(
                "solver 'jump' needs a mean flow (--model.process meanflow), and this process is "
                f"{type(process).__name__}"
            )
        return partial(solvers.ddim, eta=self.eta) if self.solver == "ddim" else SOLVERS[self.solver]

    def check_reversible(self, what: str) -> None:
        """Raises ValueError when the walk cannot be walked back, or cannot be repeated from its start."""
        if self.is_stochastic:
            raise ValueError(
                f"{what} needs a solver without fresh noise, and this is {self.solver!r} with eta {self.eta:g}: use "
                "dpm, unipc, heun or euler"
            )


@dataclass(frozen=True)
class JumpOptions(DiffusionOptions):
    """The same for a mean flow, which needs few steps."""

    solver: SolverName = "jump"
    steps: int = 2
    """Steps of the walk; "jump" needs 1 or 2."""
