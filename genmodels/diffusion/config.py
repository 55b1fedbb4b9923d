"""What every diffusion model is told when it is made: the process, and what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import EDM, Flow, MeanFlow
from genmodels.saving import Derived
from genmodels.types import ConditionConfig


@dataclass(frozen=True)
class DiffusionConfig:
    """The process, and what the model can be asked for. The network's settings come with the family."""

    size: Derived[int] = 64
    """Side of the images in pixels; the recipe sets it from --size."""
    latents: Derived[tuple[int, ...] | None] = None
    """Shape of the codec's latents, (channels, height, width), or (channels,) of a vector, which is a map of one
    position; None: pixels. Set from --codec."""
    process: Literal["flow", "meanflow", "edm", "ddpm"] = "flow"
    """"flow", "meanflow", "edm" or "ddpm"; each has its settings below."""
    flow: Flow = Flow()
    meanflow: MeanFlow = MeanFlow()
    edm: EDM = EDM()
    ddpm: DDPM = DDPM()
    gaussian: int = 0
    """Principal components of the closed-form denoiser that the network corrects, at most as many as x has numbers;
    0: there is none."""
    condition: ConditionConfig = ConditionConfig()
    """What samples can be conditioned on."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")
        if self.latents is not None and (len(self.latents) not in (1, 3) or min(self.latents) < 1):
            raise ValueError(f"latents must be (channels, height, width) or (channels,), got {self.latents}")
        if self.process not in ("flow", "meanflow", "edm", "ddpm"):
            raise ValueError(f"process must be flow, meanflow, edm or ddpm, got {self.process!r}")
        if self.gaussian < 0:
            raise ValueError(f"gaussian must not be a negative number of components, got {self.gaussian}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x."""
        if self.latents is None:
            return (3, self.size, self.size)
        channels, height, width = (*self.latents, 1, 1)[:3]
        return (channels, height, width)

    @property
    def outputs(self) -> int:
        """Channels that the network gives: those of x, and as many again where it learns the variance."""
        return self.shape[0] * (2 if self.process == "ddpm" and self.ddpm.learned_variance else 1)
