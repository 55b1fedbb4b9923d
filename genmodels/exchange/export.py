"""Export of diffusion models, and of codecs, to folders that diffusers loads."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from genmodels.base import Generator, Model
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.unet import UNet
from genmodels.dit import DiT
from genmodels.exchange import stable_diffusion
from genmodels.exchange.autoencoder import WITH_COUNTERPART, autoencoder_for_diffusers
from genmodels.exchange.custom import write_custom_pipeline
from genmodels.exchange.dit import to_diffusers, unsupported
from genmodels.exchange.scheduler import scheduler_for
from genmodels.kl import KL
from genmodels.latent import Latent
from genmodels.pretrained import PretrainedKL, PretrainedVQ
from genmodels.reading import read_json
from genmodels.writing import is_free, replacing_folder, write_json, write_text

NULL_CLASS = 1000
"""Label that DiTPipeline of diffusers uses as the null class. Its models have as many classes."""
CUSTOM = """\
This is a custom pipeline, since {kind} of diffusers does not support the model: {reasons}.

`pipeline.py` samples with programs of `torch.export` (`program.pt2`). They were written by torch
{torch}, need that version or a later one, and compute in float32.

Loading runs the Python files in this folder, and a `program.pt2` that somebody has manipulated can
run code too. Load only folders that you trust.
"""
"""What the README of a custom pipeline says about it."""


def export_to_diffusers(model: Generator, out: Path) -> str:
    """Write `model` into the new or empty folder `out`, as a whole, for `from_pretrained`.

    A codec kl or tiny becomes an AutoencoderKL or AutoencoderTiny. A U-Net or DiT becomes a standard
    pipeline if one fits: a DDPM on pixels, without condition, patches or closed-form denoiser, a
    DDIMPipeline; over the vectors of a VQModel of diffusers, an LDMPipeline; a U-Net with text over a
    codec of diffusers a StableDiffusionPipeline; a vanilla DiT with at most 1,000 classes over a kl
    or AutoencoderKL a DiTPipeline. Every other one becomes a custom pipeline.

    Returns:
        One line on what the folder is, and how to use it.

    Raises:
        ValueError: for a model that has no counterpart. Nothing has been written then.
    """
    if not is_free(out):
        raise ValueError(f"{out} is not an empty folder: choose another")
    if isinstance(model, WITH_COUNTERPART):
        network = autoencoder_for_diffusers(model)
        with replacing_folder(out) as draft:
            network.save_pretrained(draft)
        kind = type(network).__name__
        return f"an {kind}: diffusers.{kind}.from_pretrained('{out}')"
    prior, codec = parts_of(model)
    kind, reasons = standard_pipeline(prior, codec)
    with replacing_folder(out) as draft:
        if not reasons:
            return write_standard_pipeline(kind, model, draft, out)
        if isinstance(model, Latent) and model.safety_checker is not None:
            raise ValueError(
                "a custom pipeline has no safety checker, and this model does: leave it out by --no-safety-checker, "
                "or by load(..., safety_checker=False)"
            )
        write_custom_pipeline(model, prior, draft)
        about = CUSTOM.format(kind=kind, reasons="; ".join(reasons), torch=version("torch"))
        write_readme(model, "DiffusionPipeline", about, draft)
    return (
        f"a custom pipeline, since {kind} does not support this model ({'; '.join(reasons)}): "
        f"diffusers.DiffusionPipeline.from_pretrained('{out}', trust_remote_code=True)"
    )


def export_to_stable_diffusion(model: Generator, out: Path) -> str:
    """Write `model` into the new or empty folder `out` as a StableDiffusionPipeline, and as nothing
    else.

    Returns:
        One line on how to use the folder.

    Raises:
        ValueError: for a model that it does not support, with the reasons. Nothing has been written
            then.
    """
    if not is_free(out):
        raise ValueError(f"{out} is not an empty folder: choose another")
    prior, codec = parts_of(model)
    if reasons := stable_diffusion.unsupported(prior, codec):
        raise ValueError(
            f"{stable_diffusion.PIPELINE} of diffusers does not support this {prior.family}: {'; '.join(reasons)}. "
            "--to diffusers writes a custom pipeline instead"
        )
    with replacing_folder(out) as draft:
        return write_standard_pipeline(stable_diffusion.PIPELINE, model, draft, out)


def standard_pipeline(prior: UNet | DiT, codec: Model | None) -> tuple[str, list[str]]:
    """Return the pipeline of diffusers for a model, and what it does not support of the model."""
    if isinstance(prior, DiT):
        return "DiTPipeline", unsupported_by_dit_pipeline(prior, codec)
    if prior.conditions.text.vocabulary:
        return stable_diffusion.PIPELINE, stable_diffusion.unsupported(prior, codec)
    c = prior.config
    reasons = {
        f"the process {c.process}": not isinstance(prior.process, DDPM),
        "a learned variance": c.outputs > c.shape[0],
        f"patches of {c.patch}": c.patch > 1,
        "the closed-form denoiser": bool(c.gaussian),
        "attributes": bool(c.condition.attributes),
        "classes": c.condition.classes > 0,
        f"a codec {'' if codec is None else codec.family}": codec is not None and not isinstance(codec, PretrainedVQ),
    }
    return "DDIMPipeline" if codec is None else "LDMPipeline", [reason for reason, has in reasons.items() if has]


def unsupported_by_dit_pipeline(prior: DiT, codec: Model | None) -> list[str]:
    """Return what diffusers' DiTPipeline does not support of a model."""
    process, c = prior.process, prior.config
    standard = isinstance(process, DDPM) and process.prediction == "eps" and not process.clip
    reasons = {
        "its latents are not those of a kl or AutoencoderKL": not isinstance(codec, KL | PretrainedKL),
        "its process is not a DDPM that predicts eps and does not clip": not standard,
        f"it has more than {NULL_CLASS:,} classes": c.condition.classes > NULL_CLASS,
    }
    return [*(reason for reason, has in reasons.items() if has), *unsupported(c)]


def write_standard_pipeline(kind: str, model: Generator, draft: Path, out: Path) -> str:
    """Write the pipeline of class `kind`, which supports `model`, into `draft`, which becomes `out`.

    Returns:
        One line on how to use the folder.
    """
    import diffusers

    prior, codec = parts_of(model)
    if kind == stable_diffusion.PIPELINE:
        assert codec is not None
        checker: Any = model.safety_checker
        stable_diffusion.write_stable_diffusion(prior, autoencoder_for_diffusers(codec), checker, draft)
    elif kind == "DDIMPipeline":
        pipeline: Any = diffusers.DDIMPipeline(unet=prior.network, scheduler=scheduler_for(prior.process))
        pipeline.save_pretrained(draft)
    elif kind == "LDMPipeline":
        assert isinstance(model, Latent) and model.vector_scale is not None
        pipeline = diffusers.LDMPipeline(
            vqvae=model.codec.network, unet=prior.network, scheduler=scheduler_for(prior.process)
        )
        pipeline.save_pretrained(draft)
        settings = draft / "vqvae" / "config.json"
        write_json(settings, read_json(settings) | {"scaling_factor": float(model.vector_scale)}, indent=2)
    else:
        assert codec is not None
        write_dit(prior, autoencoder_for_diffusers(codec), draft)
    clipped = "; call it with use_clipped_model_output=True for the same images" if prior.process.clip else ""
    write_readme(model, kind, f"It is a {kind} of diffusers{clipped}.\n", draft)
    return f"a {kind}: diffusers.{kind}.from_pretrained('{out}'){clipped}"


def write_dit(prior: DiT, autoencoder: Any, draft: Path) -> None:
    """Write a DiTPipeline, which supports the model, into `draft`."""
    import diffusers

    pipeline: Any = diffusers.DiTPipeline(
        transformer=to_diffusers(prior, NULL_CLASS), vae=autoencoder, scheduler=scheduler_for(prior.process)
    )
    if names := prior.config.condition.class_names:
        pipeline.register_to_config(id2label={str(i): name for i, name in enumerate(names)})
    pipeline.save_pretrained(draft)


def write_readme(model: Generator, kind: str, about: str, folder: Path) -> None:
    """Write README.md of an exported folder: what it is, and how to load it.

    Args:
        model: the model.
        kind: class of diffusers that loads it.
        about: a paragraph on the pipeline.
        folder: the folder.
    """
    c, custom = model.conditions, kind == "DiffusionPipeline"
    given = ['"a smiling woman"', "guidance_scale=4.0"] if c.text.encoder else []
    if custom and not given:
        given = ["batch_size=8", *(["guidance_scale=2.0"] if c.attributes or c.classes else [])]
        given += [f'attributes={{"{c.attributes[0]}": True}}'] if c.attributes else []
        given += ["label=0"] if c.classes else []
    elif not given:
        given = ["[0, 1]"] if kind == "DiTPipeline" else ["batch_size=8"]
    size, trust = model.config.size, ", trust_remote_code=True" if custom else ""
    code = f"pipeline = diffusers.{kind}.from_pretrained(FOLDER{trust})\nimages = pipeline({', '.join(given)}).images"
    write_text(
        folder / "README.md",
        f"---\nlibrary_name: diffusers\ntags: [genmodels, {model.family}]\n---\n\n# {model.kind}, {size} x {size} "
        f"pixels\n\nA model of genmodels, exported for diffusers {version('diffusers')}. genmodels is not needed:"
        f"\n\n```python\n{code}\n```\n\n{about}",
    )


def parts_of(model: Generator) -> tuple[Any, Model | None]:
    """Return the U-Net or DiT, and the codec of a model over a codec, or None.

    Raises:
        ValueError: for a model of another family.
    """
    prior: Any = model.prior if isinstance(model, Latent) else model
    if not isinstance(prior, UNet | DiT):
        raise ValueError(
            f"diffusers has no counterpart of {prior.family} models here: a unet, dit, kl or tiny can be exported"
        )
    if isinstance(model, Latent):
        return prior, model.codec
    prior.check_complete()
    return prior, None
