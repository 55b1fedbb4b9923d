"""Conversion between processes and the configs of diffusers schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import EDM, Flow, Process

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SCHEDULES = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
"""Supported values of variance_type, which ancestral sampling uses. Ours is "fixed_small"."""
UNSUPPORTED = {
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "clip_sample_range": 1.0,
}
"""Settings of a DDPM scheduler without a counterpart, and their neutral values."""


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
    """Return the process that the config of a DDPMScheduler or DDIMScheduler describes.

    Args:
        config: the scheduler's config.
        where: its file, for messages.

    Raises:
        ValueError: for another scheduler, or a setting without a counterpart.
    """
    kind = config.get("_class_name")
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise ValueError(f"{where}: a {kind} is not supported; DDPMScheduler and DDIMScheduler are")
    for name, neutral in UNSUPPORTED.items():
        if config.get(name, neutral) != neutral:
            raise ValueError(f"{where}: {name} {config[name]!r} is not supported")
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    schedules = {theirs: ours for ours, theirs in SCHEDULES.items()}
    values = {
        "prediction_type": (config.get("prediction_type", "epsilon"), predictions),
        "beta_schedule": (config.get("beta_schedule", "linear"), schedules),
        "variance_type": (config.get("variance_type", "fixed_small"), VARIANCES),
        "timestep_spacing": (config.get("timestep_spacing", "leading"), {"leading": "leading", "trailing": "trailing"}),
    }
    for name, (value, supported) in values.items():
        if value not in supported:
            raise ValueError(f"{where}: {name} {value!r} is not supported; known: {', '.join(supported)}")
    return DDPM(
        prediction=predictions[values["prediction_type"][0]],  # type: ignore[arg-type]
        schedule=schedules[values["beta_schedule"][0]],  # type: ignore[arg-type]
        beta_start=config.get("beta_start", 1e-4),
        beta_end=config.get("beta_end", 0.02),
        timesteps=config.get("num_train_timesteps", 1000),
        min_snr=None,
        spacing=values["timestep_spacing"][0],  # type: ignore[arg-type]
        offset=config.get("steps_offset", 0),
        # A DDPMScheduler always ends at the data; for a DDIMScheduler it is a setting.
        final="data" if kind == "DDPMScheduler" or config.get("set_alpha_to_one", True) else "first",
        clip=config.get("clip_sample", True),
    )
