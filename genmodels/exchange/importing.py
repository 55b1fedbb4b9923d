"""Import of folders of other libraries as genmodels models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from genmodels.base import Generator, Model
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.exchange.dit import from_diffusers
from genmodels.exchange.folders import downsampling, network_settings
from genmodels.exchange.scheduler import process_of
from genmodels.exchange.stable_diffusion import PIPELINE, import_stable_diffusion
from genmodels.exchange.transformers import import_from_transformers
from genmodels.latent import Latent
from genmodels.pretrained import (
    PretrainedKL,
    PretrainedVQ,
    Size,
    class_name,
    load_pretrained,
    read_network,
)
from genmodels.reading import read_json
from genmodels.saving import Range, from_dict, from_settings
from genmodels.usage import without_warnings
from genmodels.weights import build, checked_settings, read_all_shapes

IN_PIXELS = ("DDPMPipeline", "DDIMPipeline")
IN_LATENTS = ("LDMPipeline", "LatentDiffusionUncondPipeline")
TRANSFORMER = "DiTPipeline"


@dataclass(frozen=True)
class UNetSettings:
    """Settings of a UNet2DModel that are used here."""

    sample_size: Size
    in_channels: Size
    block_out_channels: Annotated[tuple[Size, ...], Range(1, 16)]
    down_block_types: tuple[str, ...]
    layers_per_block: Size
    out_channels: Size | None = None


@dataclass(frozen=True)
class DiTSettings:
    """Settings of a DiTTransformer2DModel that are used here."""

    sample_size: Size
    in_channels: Size
    patch_size: Size
    num_layers: Size
    num_attention_heads: Size
    attention_head_dim: Size
    num_embeds_ada_norm: Size
    out_channels: Size | None = None


def import_folder(folder: Path, safety_checker: bool = True) -> Model:
    """Import the folder of another library, for which `saving.is_foreign` is true.

    Args:
        folder: the folder.
        safety_checker: False leaves out the safety checker of a pipeline that has one.

    Raises:
        ValueError: see `import_pipeline` and `import_from_transformers`.
    """
    pipeline = (folder / "model_index.json").is_file()
    return import_pipeline(folder, safety_checker) if pipeline else import_from_transformers(folder)


@without_warnings()
def import_pipeline(folder: Path, safety_checker: bool = True) -> Generator:
    """Import a folder with the layout of google/ddpm-celebahq-256 (DDPMPipeline, DDIMPipeline),
    CompVis/ldm-celebahq-256 (LDMPipeline), facebook/DiT-XL-2-256 (DiTPipeline) or Stable Diffusion 1.x
    and 2.x (StableDiffusionPipeline).

    Weights are read from safetensors files only.

    Raises:
        ValueError: for another pipeline, or components that have no counterpart.
    """
    kind = class_name(folder / "model_index.json")
    if kind is None and (folder / "pipeline.py").is_file():
        raise ValueError(
            f"{folder} is a custom pipeline of diffusers, whose code is not run: load the model it was exported from"
        )
    if kind == PIPELINE:
        return import_stable_diffusion(folder, safety_checker)
    if kind not in (*IN_PIXELS, *IN_LATENTS, TRANSFORMER):
        known = (*IN_PIXELS, IN_LATENTS[0], TRANSFORMER, PIPELINE)
        raise ValueError(f"{folder} is a {kind} of diffusers, which is not supported; {', '.join(known)} are")
    scheduler = (folder / "scheduler" if (folder / "scheduler").is_dir() else folder) / "scheduler_config.json"
    if not scheduler.is_file():
        raise ValueError(f"{folder} has no scheduler_config.json, which describes how its model was trained")
    process = process_of(read_json(scheduler), scheduler)
    if kind == TRANSFORMER:
        return _dit(folder, process)
    # The oldest pipelines have no subfolders.
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    settings = network_settings(unet, "UNet2DModel")
    used = from_settings(UNetSettings, settings, str(unet / "config.json"))
    side = used.sample_size
    if kind in IN_PIXELS:
        return _unet(unet, settings, used, process, side, None)
    size = side * downsampling(folder / "vqvae")
    codec = load_pretrained(folder / "vqvae", size)
    if not isinstance(codec, PretrainedVQ):
        raise ValueError(f"{folder / 'vqvae'} holds a {codec.family}, not a VQModel: that is not supported")
    model = Latent.over(codec, _unet(unet, settings, used, process, size, (used.in_channels, side, side)))
    assert model.vector_scale is not None
    model.vector_scale.fill_(codec.network.config.scaling_factor)
    return model.eval()


def _unet(
    folder: Path,
    settings: dict[str, Any],
    used: UNetSettings,
    process: DDPM,
    size: int,
    latents: tuple[int, int, int] | None,
) -> UNet:
    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    if own.get("class_embed_type") or own.get("num_class_embeds"):
        raise ValueError(f"{folder}: a U-Net with class embeddings of its own is not supported")
    channels = latents[0] if latents else 3
    if used.in_channels != channels or used.out_channels not in (None, channels):
        raise ValueError(f"{folder}: {used.in_channels} channels in and {used.out_channels} out are not supported")
    config = UNetConfig(
        size=size,
        latents=latents,
        process="ddpm",
        ddpm=process,
        channels=used.block_out_channels,
        attention=tuple("Attn" in kind for kind in used.down_block_types),
        blocks=used.layers_per_block,
        diffusers=own,
    )
    model = build(lambda: UNet(config), str(folder / "config.json"), read_all_shapes(folder, "UNet2DModel"))
    model.network = read_network(folder, model.network).to(memory_format=torch.channels_last)
    return model.eval()


def _dit(folder: Path, process: DDPM) -> Latent:
    """Import a DiTPipeline, whose latents are scaled by one factor and not centred."""
    from diffusers import DiTTransformer2DModel

    transformer = folder / "transformer"
    settings = network_settings(transformer, "DiTTransformer2DModel")
    file = str(transformer / "config.json")
    size = from_settings(DiTSettings, settings, file).sample_size * downsampling(folder / "vae")
    codec = load_pretrained(folder / "vae", size)
    if not isinstance(codec, PretrainedKL):
        raise ValueError(f"{folder / 'vae'} holds a {codec.family}, not an AutoencoderKL: that is not supported")
    like = build(
        lambda: DiTTransformer2DModel.from_config(checked_settings(DiTTransformer2DModel, settings)),
        file,
        read_all_shapes(transformer, "DiTTransformer2DModel"),
    )
    network = read_network(transformer, like)
    codec.set_scale(codec.network.config.scaling_factor)
    names = _class_names(folder / "model_index.json")
    return Latent.over(codec, from_diffusers(network.config, network.state_dict(), size, process, names)).eval()


def _class_names(file: Path) -> tuple[str, ...]:
    """Read the names of classes 0, 1, 2 ... from `id2label`, or () if it lacks some of them.

    Raises:
        ValueError: when `id2label` does not give names by number.
    """
    names = from_dict(dict[str, str], read_json(file).get("id2label") or {}, f"{file}: id2label")
    numbers = [str(i) for i in range(len(names))]
    return tuple(names[number] for number in numbers) if names.keys() == set(numbers) else ()
