"""A process as the config of a scheduler of diffusers, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import EDM, Flow, Process

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SCHEDULES = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
"""Of ancestral sampling. Ours is the posterior's, "fixed_small"; the deterministic solvers need none."""
UNSUPPORTED = {
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "clip_sample_range": 1.0,
}
"""Settings of a DDPM's scheduler that have no counterpart here, with the value that says nothing."""


def scheduler_for(process: Process) -> Any:
    """The scheduler of diffusers that walks `process` as our Euler (DDIM) does.

    Raises:
        ValueError: when there is none.
    """
    import diffusers

    if process.jumps:
        raise ValueError("diffusers has no counterpart of a mean flow: its networks are not told where a step ends")
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
    """The process that a DDPM's or DDIM's scheduler config describes.

    Raises:
        ValueError: for another scheduler, or a setting that has no counterpart.
    """
    kind = config.get("_class_name")
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise ValueError(f"{where}: a {kind} is not supported; DDPMScheduler and DDIMScheduler are")
    for name, harmless in UNSUPPORTED.items():
        if config.get(name, harmless) != harmless:
            raise ValueError(f"{where}: {name} {config[name]!r} is not supported")
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    schedules = {theirs: ours for ours, theirs in SCHEDULES.items()}
    values = {
        "prediction_type": (config.get("prediction_type", "epsilon"), predictions),
        "beta_schedule": (config.get("beta_schedule", "linear"), schedules),
        "variance_type": (config.get("variance_type", "fixed_small"), VARIANCES),
        "timestep_spacing": (config.get("timestep_spacing", "leading"), {"leading": "leading", "trailing": "trailing"}),
    }
    for name, (value, known) in values.items():
        if value not in known:
            raise ValueError(f"{where}: {name} {value!r} is not supported; known: {', '.join(known)}")
    return DDPM(
        prediction=predictions[values["prediction_type"][0]],  # type: ignore[arg-type]
        schedule=schedules[values["beta_schedule"][0]],  # type: ignore[arg-type]
        beta_start=config.get("beta_start", 1e-4),
        beta_end=config.get("beta_end", 0.02),
        timesteps=config.get("num_train_timesteps", 1000),
        min_snr=None,
        spacing=values["timestep_spacing"][0],  # type: ignore[arg-type]
        offset=config.get("steps_offset", 0),
        # DDPM's own chain ends at the data; of DDIM's that is a setting.
        final="data" if kind == "DDPMScheduler" or config.get("set_alpha_to_one", True) else "first",
        clip=config.get("clip_sample", True),
    )
