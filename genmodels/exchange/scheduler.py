"""Conversion between processes and the configs of diffusers schedulers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import EDM, Flow, Process
from genmodels.saving import Range, from_settings

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SCHEDULES = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
"""Supported values of variance_type, which ancestral sampling uses. Ours is "fixed_small"."""
SCHEDULERS = (
    *("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"),
    *("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"),
)
"""Schedulers whose settings describe a DDPM. Solvers are chosen by our sampling options."""
UNSUPPORTED = {
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "clip_sample_range": 1.0,
}
"""Settings of a DDPM scheduler without a counterpart, and their neutral values."""


@dataclass(frozen=True)
class SchedulerSettings:
    """Settings of a DDPMScheduler or DDIMScheduler that are used here."""

    prediction_type: str = "epsilon"
    beta_schedule: str = "linear"
    variance_type: str = "fixed_small"
    timestep_spacing: str = "leading"
    beta_start: Annotated[float, Range(0, 1)] = 1e-4
    beta_end: Annotated[float, Range(0, 1)] = 0.02
    num_train_timesteps: Annotated[int, Range(1, 1_000_000)] = 1000
    steps_offset: Annotated[int, Range(0, 1_000_000)] = 0
    set_alpha_to_one: bool = True
    clip_sample: bool = True


def scheduler_for(process: Process) -> Any:
    """Return the scheduler of diffusers that samples as our solver "euler" (DDIM) does.

    Raises:
        ValueError: for a mean flow, which no scheduler supports.
    """
    import diffusers

    if process.jumps:
        raise ValueError("diffusers has no counterpart of a mean flow, whose network takes the end of a step")
    if isinstance(process, Flow):
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=process.shift)
    if isinstance(process, EDM):
        return diffusers.EDMEulerScheduler(sigma_min=process.min_time, sigma_max=process.start, sigma_data=process.data)
    assert isinstance(process, DDPM)
    return diffusers.DDIMScheduler(
        num_train_timesteps=process.timesteps,
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        beta_schedule=SCHEDULES[process.schedule],
        prediction_type=PREDICTIONS[process.prediction],
        clip_sample=process.clip,
        set_alpha_to_one=process.final == "data",
        steps_offset=process.offset,
        timestep_spacing=process.spacing,
    )


def process_of(config: dict[str, Any], where: Path) -> DDPM:
    """Return the process that the config of one of SCHEDULERS describes.

    Args:
        config: the scheduler's config.
        where: its file, for messages.

    Raises:
        ValueError: for another scheduler, or a setting without a counterpart.
    """
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in SCHEDULERS:
        raise ValueError(f"{where}: a {str(kind)[:40]} is not supported; {', '.join(SCHEDULERS)} are")
    for name, neutral in UNSUPPORTED.items():
        if config.get(name, neutral) != neutral:
            raise ValueError(f"{where}: {name} {repr(config[name])[:40]} is not supported")
    used = from_settings(SchedulerSettings, config, str(where))
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    schedules = {theirs: ours for ours, theirs in SCHEDULES.items()}
    values: dict[str, tuple[str, Collection[str]]] = {
        "prediction_type": (used.prediction_type, predictions),
        "beta_schedule": (used.beta_schedule, schedules),
        "variance_type": (used.variance_type, VARIANCES),
        "timestep_spacing": (used.timestep_spacing, ("leading", "trailing")),
    }
    for name, (value, supported) in values.items():
        if value not in supported:
            raise ValueError(f"{where}: {name} {value[:40]!r} is not supported; known: {', '.join(supported)}")
    return DDPM(
        prediction=predictions[used.prediction_type],  # type: ignore[arg-type]
        schedule=schedules[used.beta_schedule],  # type: ignore[arg-type]
        beta_start=used.beta_start,
        beta_end=used.beta_end,
        timesteps=used.num_train_timesteps,
        min_snr=None,
        spacing=used.timestep_spacing,  # type: ignore[arg-type]
        offset=used.steps_offset,
        # A DDPMScheduler always ends at the data; for a DDIMScheduler it is a setting.
        final="data" if kind == "DDPMScheduler" or used.set_alpha_to_one else "first",
        clip=used.clip_sample,
    )
