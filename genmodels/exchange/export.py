"""Export of diffusion models, and of codecs, to folders that diffusers loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from genmodels.base import Generator, Model
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.unet import UNet
from genmodels.dit import DiT
from genmodels.exchange.autoencoder import WITH_COUNTERPART, autoencoder_for_diffusers
from genmodels.exchange.dit import to_diffusers
from genmodels.exchange.scheduler import scheduler_for
from genmodels.exchange.stable_diffusion import write_stable_diffusion
from genmodels.kl import KL
from genmodels.latent import Latent
from genmodels.pretrained import PretrainedKL, PretrainedVQ
from genmodels.reading import read_json
from genmodels.writing import is_free, replacing_folder, write_json

SCRIPT = Path(__file__).parent / "sample.py"
NULL_CLASS = 1000
"""Label that DiTPipeline of diffusers uses as the null class. Its models have as many classes."""
SETTINGS, EXTRAS = "genmodels.json", "genmodels.safetensors"


def export_to_diffusers(model: Generator, out: Path) -> str:
    """Write `model` into the new or empty folder `out`, as a whole.

    A DDPM on pixels, without condition, patches or Gaussian denoiser, becomes a DDIMPipeline; over
    the vectors of a VQModel of diffusers an LDMPipeline. Every other U-Net becomes unet/,
    scheduler/, vae/ if it has a codec, and sample.py, which needs diffusers and not this package. A
    vanilla DiT with at most 1,000 classes over a kl or AutoencoderKL becomes a DiTPipeline, and a U-Net
    with text over one a StableDiffusionPipeline. A codec kl or tiny becomes an AutoencoderKL or
    AutoencoderTiny.

    Returns:
        One line on how to use the folder.

    Raises:
        ValueError: for a model that diffusers cannot represent. Nothing has been written then.
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
    with replacing_folder(out) as draft:
        if isinstance(prior, DiT):
            return write_dit(prior, codec, draft, out)
        if prior.conditions.text.encoder:
            if not isinstance(codec, WITH_COUNTERPART):
                raise ValueError("StableDiffusionPipeline needs a codec of diffusers: train over a kl or AutoencoderKL")
            checker: Any = model.safety_checker
            return write_stable_diffusion(prior, autoencoder_for_diffusers(codec), checker, draft, out)
        return write_unet(model, prior, codec, draft, out)


def write_unet(model: Generator, prior: UNet, codec: Model | None, draft: Path, out: Path) -> str:
    """Write a pipeline of a U-Net into `draft`, which becomes the folder `out`.

    Raises:
        ValueError: for a model that diffusers cannot represent.
    """
    import diffusers

    scheduler = scheduler_for(prior.process)
    c = prior.config
    if c.outputs > c.shape[0]:
        raise ValueError("diffusers' pipelines of a U-Net do not support a learned variance, which this unet has")
    if c.condition.text.vocabulary:
        raise ValueError("the exported U-Net takes attributes and labels: this unet has text")
    plain = isinstance(prior.process, DDPM) and c.patch == 1 and not c.gaussian and prior.conditions.is_empty
    if plain and codec is None:
        pipeline: Any = diffusers.DDIMPipeline(unet=prior.network, scheduler=scheduler)
        pipeline.save_pretrained(draft)
        clipped = "; call it with use_clipped_model_output=True for the same images" if prior.process.clip else ""
        return f"a DDIMPipeline: diffusers.DDIMPipeline.from_pretrained('{out}'){clipped}"
    if plain and isinstance(codec, PretrainedVQ):
        assert isinstance(model, Latent) and model.vector_scale is not None
        pipeline = diffusers.LDMPipeline(vqvae=codec.network, unet=prior.network, scheduler=scheduler)
        pipeline.save_pretrained(draft)
        codec_config = draft / "vqvae" / "config.json"
        write_json(codec_config, read_json(codec_config) | {"scaling_factor": float(model.vector_scale)}, indent=2)
        return f"an LDMPipeline: diffusers.LDMPipeline.from_pretrained('{out}')"
    prior.network.save_pretrained(draft / "unet")
    scheduler.save_pretrained(draft / "scheduler")
    weights = extras(model, prior)
    if codec is not None:
        vae: Any = codec.network if isinstance(codec, PretrainedVQ) else autoencoder_for_diffusers(codec)
        vae.save_pretrained(draft / "vae")
        weights.setdefault("latents.std", torch.full((1,), 1 / vae.config.scaling_factor))
        weights["latents.mean"] = torch.zeros(1)
    save_file({name: value.contiguous() for name, value in weights.items()}, draft / EXTRAS)
    settings = {
        "process": c.process,
        "patch": c.patch,
        "channels_height_width": c.shape,
        "attributes": c.condition.attributes,
        "classes": c.condition.classes,
        "class_names": c.condition.class_names,
    }
    write_json(draft / SETTINGS, settings, indent=2)
    shutil.copy(SCRIPT, draft / SCRIPT.name)
    return f"unet/, scheduler/ and a script that samples with them: python {out / SCRIPT.name} --help"


def write_dit(prior: DiT, codec: Model | None, draft: Path, out: Path) -> str:
    """Write a DiTPipeline into `draft`, which becomes the folder `out`.

    Raises:
        ValueError: for a model that DiTPipeline does not support.
    """
    import diffusers

    if not isinstance(codec, KL | PretrainedKL):
        raise ValueError(
            "diffusers' DiTPipeline needs latents of an AutoencoderKL: this dit has another codec, or none"
        )
    process = prior.process
    if not isinstance(process, DDPM) or process.prediction != "eps" or process.clip:
        raise ValueError("diffusers' DiTPipeline needs a DDPM that predicts eps and does not clip: this dit is another")
    transformer = to_diffusers(prior, NULL_CLASS)
    pipeline: Any = diffusers.DiTPipeline(
        transformer=transformer, vae=autoencoder_for_diffusers(codec), scheduler=scheduler_for(process)
    )
    if names := prior.config.condition.class_names:
        pipeline.register_to_config(id2label={str(i): name for i, name in enumerate(names)})
    pipeline.save_pretrained(draft)
    return f"a DiTPipeline: diffusers.DiTPipeline.from_pretrained('{out}')"


def parts_of(model: Generator) -> tuple[UNet | DiT, Model | None]:
    """Return the U-Net or DiT, and the codec of a latent model, or None.

    Raises:
        ValueError: for a model of another family, or with a codec that diffusers lacks.
    """
    prior: Any = model.prior if isinstance(model, Latent) else model
    if not isinstance(prior, UNet | DiT):
        raise ValueError(
            f"diffusers has no counterpart of {prior.family} models here: a unet, dit, kl or tiny can be exported"
        )
    if not isinstance(model, Latent):
        prior.check_complete()
        return prior, None
    if not isinstance(model.codec, (*WITH_COUNTERPART, PretrainedVQ)):
        raise ValueError(
            f"diffusers cannot decode the latents of our {model.codec.family}: export a unet over pixels, or a model "
            "over a kl, a tiny, or an autoencoder of diffusers"
        )
    return prior, model.codec


def extras(model: Generator, prior: UNet) -> dict[str, torch.Tensor]:
    """Weights other than those of the U-Net and the codec, by the names that sample.py reads."""
    weights: dict[str, torch.Tensor] = {}
    if prior.condition is not None:
        weights |= {f"condition.{name}": value for name, value in prior.condition.state_dict().items()}
    if prior.gaussian is not None:
        weights |= {f"gaussian.{name}": value for name, value in prior.gaussian.state_dict().items()}
        weights["gaussian.basis"] = prior.gaussian.directions()
    if isinstance(model, Latent) and model.vector_scale is not None:
        weights["latents.std"] = 1 / model.vector_scale.view(1)
    return weights
