"""Settings that all diffusion models share: the process, the shape of x_t and the condition."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from genmodels.conditions import ConditionConfig
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import EDM, Flow, MeanFlow, Process
from genmodels.saving import Derived

PROCESSES: dict[str, type[Process]] = {"flow": Flow, "meanflow": MeanFlow, "edm": EDM, "ddpm": DDPM}


@dataclass(frozen=True)
class DiffusionConfig:
    """Process, shapes and conditioning. A family adds the settings of its network.

    Of `flow`, `meanflow`, `edm` and `ddpm`, only the one that `process` selects may differ from its
    default. The others are unused and are not recorded (see `unused_fields`).
    """

    size: Derived[int] = 64
    """Side of the images in pixels; the recipe sets it from --size."""
    latents: Derived[tuple[int, ...] | None] = None
    """Shape of the codec's latents: (channels, height, width), or (channels,) of a vector, which is
    treated as a map of one position. None: pixels. Set from --codec."""
    process: Literal["flow", "meanflow", "edm", "ddpm"] = "flow"
    """Diffusion process: flow matching, mean flow, EDM or DDPM."""
    flow: Flow = Flow()
    """Settings of --model.process flow."""
    meanflow: MeanFlow = MeanFlow()
    """Settings of --model.process meanflow."""
    edm: EDM = EDM()
    """Settings of --model.process edm."""
    ddpm: DDPM = DDPM()
    """Settings of --model.process ddpm."""
    gaussian: int = 0
    """Principal components of the closed-form Gaussian denoiser that the network corrects, at most
    the number of values in x; 0: no such denoiser."""
    conditional_mean: bool = False
    """Let the mean of the closed-form denoiser be a learned linear function of the condition. It has
    no effect without the one or the other."""
    condition: ConditionConfig = ConditionConfig()
    """What samples can be conditioned on."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")
        if self.latents is not None and (len(self.latents) not in (1, 3) or min(self.latents) < 1):
            raise ValueError(f"latents must be (channels, height, width) or (channels,), got {self.latents}")
        if self.process not in PROCESSES:
            raise ValueError(f"process must be flow, meanflow, edm or ddpm, got {self.process!r}")
        self._refuse_unused_settings()
        if self.gaussian < 0:
            raise ValueError(f"gaussian must not be a negative number of components, got {self.gaussian}")

    def _refuse_unused_settings(self) -> None:
        """Raise ValueError when a setting of a process that is not selected has been changed."""
        for group in self.unused_fields:
            settings, default = getattr(self, group), PROCESSES[group]()
            for field in fields(settings):
                value = getattr(settings, field.name)
                if value != getattr(default, field.name):
                    raise ValueError(
                        f"{group}.{field.name} applies to process {group} only, and the process is {self.process}: "
                        f"got {value!r}; leave it out, or choose --model.process {group}"
                    )

    @property
    def selected(self) -> Process:
        """Settings of the selected process, which are the process itself."""
        process: Process = getattr(self, self.process)
        return process

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """Fields without effect, left out where the config is recorded: the other processes."""
        return tuple(name for name in PROCESSES if name != self.process)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x_t."""
        if self.latents is None:
            return (3, self.size, self.size)
        channels, height, width = (*self.latents, 1, 1)[:3]
        return (channels, height, width)

    @property
    def outputs(self) -> int:
        """Output channels of the network: those of x_t, twice as many with a learned variance."""
        return self.shape[0] * (2 if self.process == "ddpm" and self.ddpm.learned_variance else 1)
