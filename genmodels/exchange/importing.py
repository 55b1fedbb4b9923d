"""Import of diffusers pipelines as genmodels models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genmodels.base import Generator
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.exchange.dit import from_diffusers
from genmodels.exchange.scheduler import process_of
from genmodels.latent import Latent
from genmodels.pretrained import PretrainedKL, PretrainedVQ, load_pretrained, read_network
from genmodels.reading import read_json

IN_PIXELS = ("DDPMPipeline", "DDIMPipeline")
IN_LATENTS = ("LDMPipeline", "LatentDiffusionUncondPipeline")
TRANSFORMER = "DiTPipeline"
NEEDED = ("sample_size", "in_channels", "block_out_channels", "down_block_types", "layers_per_block")
NEEDED_BY_DIT = (
    "sample_size",
    "in_channels",
    "patch_size",
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "num_embeds_ada_norm",
)


def is_pipeline(folder: Path) -> bool:
    """Whether `folder` is a pipeline of diffusers."""
    return (folder / "model_index.json").is_file()


def import_pipeline(folder: Path) -> Generator:
    """Import a folder with the layout of google/ddpm-celebahq-256 (DDPMPipeline, DDIMPipeline),
    CompVis/ldm-celebahq-256 (LDMPipeline) or facebook/DiT-XL-2-256 (DiTPipeline).

    Weights are read from safetensors files only.

    Raises:
        ValueError: for another pipeline, or components that have no counterpart.
    """
    kind = read_json(folder / "model_index.json").get("_class_name")
    if kind not in (*IN_PIXELS, *IN_LATENTS, TRANSFORMER):
        known = (*IN_PIXELS, IN_LATENTS[0], TRANSFORMER)
        raise ValueError(f"{folder} is a {kind} of diffusers, which is not supported; {', '.join(known)} are")
    scheduler = (folder / "scheduler" if (folder / "scheduler").is_dir() else folder) / "scheduler_config.json"
    if not scheduler.is_file():
        raise ValueError(f"{folder} has no scheduler_config.json, which describes how its model was trained")
    process = process_of(read_json(scheduler), scheduler)
    if kind == TRANSFORMER:
        return _dit(folder, process)
    # The oldest pipelines have no subfolders.
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    settings = _settings(unet, *NEEDED)
    if settings.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{unet} holds a {settings.get('_class_name')}, not a UNet2DModel: that is not supported")
    channels, side = settings["in_channels"], settings["sample_size"]
    if not isinstance(side, int):
        raise ValueError(f"{unet}: sample_size in its config must be one number, got {side}")
    if kind in IN_PIXELS:
        return _unet(unet, settings, process, side, None)
    size = side * 2 ** (len(_settings(folder / "vqvae", "block_out_channels")["block_out_channels"]) - 1)
    codec = load_pretrained(folder / "vqvae", size)
    if not isinstance(codec, PretrainedVQ):
        raise ValueError(f"{folder / 'vqvae'} holds a {codec.family}, not a VQModel: that is not supported")
    model = Latent.over(codec, _unet(unet, settings, process, size, (channels, side, side)))
    assert model.vector_scale is not None
    model.vector_scale.fill_(codec.network.config.scaling_factor)
    return model.eval()


def _settings(folder: Path, *needed: str) -> dict[str, Any]:
    """Read config.json of a network, which must have the settings `needed`.

    Raises:
        ValueError: when the file or a setting is missing.
    """
    try:
        settings = read_json(folder / "config.json")
    except FileNotFoundError:
        raise ValueError(f"{folder} has no config.json: the pipeline is incomplete") from None
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"{folder / 'config.json'} has no {missing[0]}")
    return settings


def _unet(
    folder: Path, settings: dict[str, Any], process: DDPM, size: int, latents: tuple[int, int, int] | None
) -> UNet:
    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    if own.get("class_embed_type") or own.get("num_class_embeds"):
        raise ValueError(f"{folder}: a U-Net with class embeddings of its own is not supported")
    channels = latents[0] if latents else 3
    if own["in_channels"] != channels or own.get("out_channels", channels) != channels:
        raise ValueError(
            f"{folder}: {own['in_channels']} channels in and {own.get('out_channels')} out are not supported"
        )
    widths = tuple(own["block_out_channels"])
    config = UNetConfig(
        size=size,
        latents=latents,
        process="ddpm",
        ddpm=process,
        channels=widths,
        attention=tuple("Attn" in kind for kind in own["down_block_types"]),
        blocks=own["layers_per_block"],
        diffusers=own,
    )
    model = UNet(config)
    model.network = read_network(folder, model.network).to(memory_format=torch.channels_last)
    return model.eval()


def _dit(folder: Path, process: DDPM) -> Latent:
    """Import a DiTPipeline, whose latents are scaled by one factor and not centred."""
    from diffusers import DiTTransformer2DModel

    transformer = folder / "transformer"
    settings = _settings(transformer, *NEEDED_BY_DIT)
    if settings.get("_class_name") != "DiTTransformer2DModel":
        raise ValueError(f"{transformer} holds a {settings.get('_class_name')}, not a DiTTransformer2DModel")
    size = settings["sample_size"] * 2 ** (
        len(_settings(folder / "vae", "block_out_channels")["block_out_channels"]) - 1
    )
    codec = load_pretrained(folder / "vae", size)
    if not isinstance(codec, PretrainedKL):
        raise ValueError(f"{folder / 'vae'} holds a {codec.family}, not an AutoencoderKL: that is not supported")
    network = read_network(transformer, DiTTransformer2DModel.from_config(settings))
    codec.set_scale(codec.network.config.scaling_factor)
    return Latent.over(codec, from_diffusers(network.config, network.state_dict(), size, process)).eval()
