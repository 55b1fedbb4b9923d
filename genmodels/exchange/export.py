"""Write a trained diffusion model as a folder that plain diffusers loads."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from genmodels.base import Generator
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.unet import UNet
from genmodels.dit import DiT
from genmodels.exchange.dit import to_diffusers
from genmodels.exchange.scheduler import scheduler_for
from genmodels.latent import Latent
from genmodels.pretrained import PretrainedCodec, PretrainedKL, PretrainedVQ

SCRIPT = Path(__file__).parent / "sample.py"
NULL_CLASS = 1000
"""What diffusers' DiTPipeline asks for where nothing is asked for."""
SETTINGS, EXTRAS = "genmodels.json", "genmodels.safetensors"


def export_to_diffusers(model: Generator, out: Path) -> str:
    """Writes `model` into the new or empty folder `out`, and says what it is there.

    A DDPM in pixels, without condition, patches or closed-form part, is a DDIMPipeline; over the vectors of a diffusers
    VQModel an LDMPipeline. Every other U-Net is unet/, scheduler/, the codec where there is one, and sample.py, which
    needs diffusers and not this package. A vanilla DiT of 1,000 classes over an AutoencoderKL is a DiTPipeline.

    Raises:
        ValueError: for a model that cannot be represented; the message says why. Nothing has been written.
    """
    prior, codec = parts_of(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another")
    if isinstance(prior, DiT):
        return export_dit(prior, codec, out)
    import diffusers

    scheduler = scheduler_for(prior.process)
    c = prior.config
    if c.outputs > c.shape[0]:
        raise ValueError("diffusers' pipelines of a U-Net know no learned variance: this unet has one")
    if c.condition.text.vocabulary:
        raise ValueError("the exported U-Net takes attributes and labels: this unet has text")
    plain = isinstance(prior.process, DDPM) and c.patch == 1 and not c.gaussian and not prior.is_conditional
    if plain and codec is None:
        pipeline: Any = diffusers.DDIMPipeline(unet=prior.network, scheduler=scheduler)
        pipeline.save_pretrained(out)
        clipped = "; call it with use_clipped_model_output=True for the same images" if prior.process.clip else ""
        return f"a DDIMPipeline: diffusers.DDIMPipeline.from_pretrained('{out}'){clipped}"
    if plain and isinstance(codec, PretrainedVQ):
        assert isinstance(model, Latent) and model.vector_scale is not None
        pipeline = diffusers.LDMPipeline(vqvae=codec.network, unet=prior.network, scheduler=scheduler)
        pipeline.save_pretrained(out)
        codec_config = out / "vqvae" / "config.json"
        settings = json.loads(codec_config.read_text()) | {"scaling_factor": float(model.vector_scale)}
        codec_config.write_text(json.dumps(settings, indent=2) + "\n")
        return f"an LDMPipeline: diffusers.LDMPipeline.from_pretrained('{out}')"
    prior.network.save_pretrained(out / "unet")
    scheduler.save_pretrained(out / "scheduler")
    if codec is not None:
        codec.network.save_pretrained(out / "vae")
    save_file({name: value.contiguous() for name, value in extras(model, prior, codec).items()}, out / EXTRAS)
    settings = {
        "process": c.process,
        "patch": c.patch,
        "channels_height_width": c.shape,
        "attributes": c.condition.attributes,
        "classes": c.condition.classes,
    }
    (out / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    shutil.copy(SCRIPT, out / SCRIPT.name)
    return f"unet/, scheduler/ and a script that samples with them: python {out / SCRIPT.name} --help"


def export_dit(prior: DiT, codec: PretrainedCodec | None, out: Path) -> str:
    """Writes a DiTPipeline.

    Raises:
        ValueError: for what such a pipeline cannot be.
    """
    import diffusers

    if not isinstance(codec, PretrainedKL):
        raise ValueError(
            "diffusers' DiTPipeline samples latents of an AutoencoderKL: this dit has another codec, or none"
        )
    if prior.config.condition.classes != NULL_CLASS:
        raise ValueError(
            f"diffusers' DiTPipeline takes class {NULL_CLASS} for no class, so that a model must have {NULL_CLASS:,} "
            f"classes: this one has {prior.config.condition.classes:,}"
        )
    process = prior.process
    if not isinstance(process, DDPM) or process.prediction != "eps" or process.clip:
        raise ValueError("diffusers' DiTPipeline guides the noise: this dit is not a DDPM that predicts it, unclipped")
    transformer = to_diffusers(prior)
    pipeline: Any = diffusers.DiTPipeline(transformer=transformer, vae=centred(codec), scheduler=scheduler_for(process))
    pipeline.save_pretrained(out)
    return f"a DiTPipeline: diffusers.DiTPipeline.from_pretrained('{out}')"


@torch.no_grad()
def centred(codec: PretrainedKL) -> Any:
    """The AutoencoderKL whose own latents are those of `codec`: centred and scaled inside its 1 x 1 convolutions."""
    network = copy.deepcopy(codec.network)
    mean, std = codec.whitening.mean, codec.whitening.std
    before, after = network.post_quant_conv, network.quant_conv
    if before is None or after is None:
        raise ValueError("this AutoencoderKL has no 1 x 1 convolutions beside its latents, to scale them in")
    before.bias += before.weight.flatten(1) @ mean
    before.weight *= std.view(1, -1, 1, 1)
    channels = len(mean)  # the encoder's outputs are means, then log variances
    after.bias[:channels] = (after.bias[:channels] - mean) / std
    after.weight[:channels] /= std.view(-1, 1, 1, 1)
    after.bias[channels:] -= 2 * std.log()
    network.register_to_config(scaling_factor=1.0)
    return network


def parts_of(model: Generator) -> tuple[UNet | DiT, PretrainedCodec | None]:
    """The U-Net or DiT, and the codec of diffusers that it is a prior over.

    Raises:
        ValueError: for anything else.
    """
    prior: Any = model.prior if isinstance(model, Latent) else model
    if not isinstance(prior, UNet | DiT):
        raise ValueError(f"diffusers has no counterpart of {prior.family} models here: a unet or dit can be exported")
    if not isinstance(model, Latent):
        prior.check_complete()
        return prior, None
    if not isinstance(model.codec, PretrainedCodec):
        raise ValueError(
            f"diffusers cannot decode the latents of our {model.codec.family}: export a unet over pixels, or a model "
            "over an AutoencoderKL or VQModel"
        )
    return prior, model.codec


def extras(model: Generator, prior: UNet, codec: PretrainedCodec | None) -> dict[str, torch.Tensor]:
    """Weights that are not the U-Net's nor the codec's, by the names that sample.py knows."""
    found: dict[str, torch.Tensor] = {}
    if prior.condition is not None:
        found |= {f"condition.{name}": value for name, value in prior.condition.state_dict().items()}
    if prior.gaussian is not None:
        found |= {f"gaussian.{name}": value for name, value in prior.gaussian.state_dict().items()}
    if isinstance(codec, PretrainedKL):
        found |= {f"latents.{name}": value for name, value in codec.whitening.state_dict().items()}
    if isinstance(model, Latent) and model.vector_scale is not None:
        found |= {"latents.mean": torch.zeros(1), "latents.std": 1 / model.vector_scale.view(1)}
    return found
