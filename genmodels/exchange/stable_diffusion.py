"""Conversion between folders of Stable Diffusion (StableDiffusionPipeline) and our text-to-image models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from genmodels.base import Model
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import Flow
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.dit import DiT
from genmodels.exchange.autoencoder import WITH_COUNTERPART
from genmodels.exchange.clip_layout import (
    TextSettings,
    block_names,
    import_transformers,
    is_weight,
    load_tokenizer,
    text_settings,
    tokenizer_for_transformers,
    unsupported_blocks,
)
from genmodels.exchange.folders import downsampling, network_settings
from genmodels.exchange.scheduler import process_of, scheduler_for
from genmodels.hashing import weights_hash
from genmodels.latent import Latent
from genmodels.nn.text_encoder import TextEncoder, TextEncoderConfig
from genmodels.pretrained import PretrainedKL, Size, load_pretrained, read_network
from genmodels.reading import read_json
from genmodels.safety import SafetyChecker
from genmodels.saving import Range, from_dict, from_settings
from genmodels.text import TOKENIZER, VOCABULARY
from genmodels.text_conditions import TextSource, conditioned_on_text
from genmodels.weights import build, check_same, read_all_shapes, read_tensors

PIPELINE = "StableDiffusionPipeline"
PARTS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}
"""Folders that a pipeline must have, with their configs."""
OTHERS = {
    "text_encoder_2": "it is a Stable Diffusion XL",
    "text_encoder_3": "it is a Stable Diffusion 3",
    "transformer": "its network is not a U-Net",
}
"""Folders of other pipelines."""


@dataclass(frozen=True)
class UNetSettings:
    """Settings of a UNet2DConditionModel that are used here."""

    sample_size: Size
    in_channels: Size
    out_channels: Size
    block_out_channels: Annotated[tuple[Size, ...], Range(1, 16)]
    down_block_types: tuple[str, ...]
    layers_per_block: Size | tuple[Size, ...]
    cross_attention_dim: Size
    addition_embed_type: str | None = None
    class_embed_type: str | None = None


# ---- export ----


def write_stable_diffusion(prior: UNet, autoencoder: Any, checker: SafetyChecker | None, draft: Path) -> None:
    """Write a StableDiffusionPipeline.

    Args:
        prior: the U-Net, which the pipeline supports, with its text encoder.
        autoencoder: an AutoencoderKL whose latents are those of the prior.
        checker: the safety checker, or None.
        draft: folder that receives the files.
    """
    import diffusers

    pipeline: Any = diffusers.StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder_for_transformers(prior),
        tokenizer=tokenizer_for_transformers(prior.tokenizer, draft),
        unet=prior.network,
        scheduler=scheduler_with_text(prior),
        safety_checker=checker and checker.network,
        feature_extractor=checker and checker.processor,
        requires_safety_checker=checker is not None,
    )
    (draft / TOKENIZER).unlink()
    pipeline.save_pretrained(draft)


def unsupported(prior: UNet | DiT, codec: Model | None) -> list[str]:
    """Return what the pipeline does not support of a model."""
    if isinstance(prior, DiT):
        return ["its network is not a U-Net"]
    c = prior.config
    name = "pixels" if codec is None else f"a codec {codec.family}"
    reasons = {
        "a model without text (train with --text)": not c.condition.text.encoder,
        f"{name} (train over a kl, a tiny or an autoencoder of diffusers)": not isinstance(codec, WITH_COUNTERPART),
        f"the closed-form denoiser of {c.gaussian} components (train with --model.gaussian 0)": c.gaussian > 0,
        f"patches of {c.patch} latents (train with --model.patch 1)": c.patch > 1,
        "attributes or classes": bool(c.condition.attributes or c.condition.classes),
        "a learned variance": c.outputs > c.shape[0],
        f"the process {c.process} (flow and ddpm are supported)": c.process not in ("flow", "ddpm"),
        "a clipped x_0": prior.process.clip,
    }
    applying = [reason for reason, applies in reasons.items() if applies]
    if c.condition.text.encoder:
        conditioner: Any = prior.condition
        blocks = conditioner.text.encoder.config.transformer
        applying += [f"its text encoder ({reason})" for reason in unsupported_blocks(blocks)]
    return applying


def scheduler_with_text(prior: UNet) -> Any:
    """Return a scheduler for the pipeline, in which that of Stable Diffusion 3 does not work."""
    import diffusers

    process = prior.process
    if isinstance(process, Flow):
        return diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=process.shift, steps_offset=1
        )
    scheduler = scheduler_for(process)
    scheduler.register_to_config(steps_offset=1)  # the pipeline replaces any other
    return scheduler


def text_encoder_for_transformers(prior: UNet) -> Any:
    """Return the CLIPTextModel with the same vectors as the text encoder of `prior`."""
    conditioner: Any = prior.condition
    encoder: TextEncoder = conditioner.text.encoder
    transformers = import_transformers()
    config = transformers.CLIPTextConfig(**text_settings(encoder.config, prior.tokenizer))
    network = transformers.CLIPTextModel(config)
    source, target = encoder.state_dict(), dict[str, Tensor]()
    for ours, theirs in encoder_names(encoder.config.transformer.depth):
        target |= dict(zip(theirs, source[ours].chunk(len(theirs)), strict=True))
    like = network.state_dict()  # newer versions leave out the first part of the names
    network.load_state_dict(
        {name if name in like else name.removeprefix("text_model."): v for name, v in target.items()}
    )
    return network.eval()


def encoder_names(depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each weight of our text encoder, with the names of those of CLIPTextModel
    that are concatenated to form it."""
    for ours, theirs in block_names("", "text_model", depth):
        yield ours.removeprefix("."), theirs
    for kind in ("weight", "bias"):
        yield f"transformer.norm.{kind}", (f"text_model.final_layer_norm.{kind}",)
    yield "tokens.weight", ("text_model.embeddings.token_embedding.weight",)
    yield "positions.weight", ("text_model.embeddings.position_embedding.weight",)


# ---- import ----


def import_stable_diffusion(folder: Path, safety_checker: bool = True) -> Latent:
    """Import a folder in the layout of Stable Diffusion 1.x or 2.x, from safetensors only.

    Its safety checker, if it has one, flags images that are not shown.

    Args:
        folder: the folder.
        safety_checker: False leaves it out.

    Raises:
        ValueError: for another pipeline, settings without a counterpart, or missing or damaged
            files.
    """
    check_layout(folder)
    unet = folder / "unet"
    settings = network_settings(unet, "UNet2DConditionModel")
    settings = {name: value for name, value in settings.items() if not name.startswith("_")}
    used = from_settings(UNetSettings, settings, str(unet / "config.json"))
    codec = load_pretrained(folder / "vae", used.sample_size * downsampling(folder / "vae"))
    if not isinstance(codec, PretrainedKL):
        raise ValueError(f"{folder / 'vae'} holds a {codec.family}, not an AutoencoderKL: that is not supported")
    if used.in_channels != codec.latent_shape[0] or used.out_channels != codec.latent_shape[0]:
        raise ValueError(
            f"{unet}: {used.in_channels} channels in and {used.out_channels} out, and the latents have "
            f"{codec.latent_shape[0]}: a U-Net for inpainting or depth is not supported"
        )
    if used.addition_embed_type or used.class_embed_type:
        raise ValueError(f"{unet}: a U-Net with further embeddings is not supported")
    source = import_text_encoder(folder / "text_encoder", folder / "tokenizer")
    width = source.encoder.config.transformer.width
    if width != used.cross_attention_dim:
        raise ValueError(
            f"{folder}: the text encoder has width {width} and the U-Net reads {used.cross_attention_dim}: they do "
            "not belong together"
        )
    config = unet_config(used, settings, source, process_at(folder), codec)
    weights = read_all_shapes(unet, "UNet2DConditionModel") | source.encoder.state_dict(prefix="text_encoder.")
    prior = build(lambda: UNet(config), str(unet / "config.json"), weights)
    prior.network = read_network(unet, prior.network).to(memory_format=torch.channels_last)
    prior.use_text_encoder(source)
    codec.set_scale(codec.network.config.scaling_factor)
    model = Latent.over(codec, prior)
    model.use_safety_checker(SafetyChecker.of_pipeline(folder) if safety_checker else None)
    return model.eval()


def unet_config(
    used: UNetSettings, settings: dict[str, Any], source: TextSource, process: DDPM | Flow, codec: PretrainedKL
) -> UNetConfig:
    """Return the config of an imported U-Net."""
    layers = used.layers_per_block
    config = UNetConfig(
        size=codec.config.size,
        latents=codec.latent_shape,  # type: ignore[arg-type]
        process="flow" if isinstance(process, Flow) else "ddpm",
        channels=used.block_out_channels,
        attention=tuple("Attn" in kind for kind in used.down_block_types),
        blocks=layers if isinstance(layers, int) else max(layers),
        diffusers=settings,
        **{"flow" if isinstance(process, Flow) else "ddpm": process},  # type: ignore[arg-type]
    )
    return conditioned_on_text(config, source)


def check_layout(folder: Path) -> None:
    """Raise ValueError for a folder that is not that of Stable Diffusion 1.x or 2.x."""
    for name, reason in OTHERS.items():
        if (folder / name).is_dir():
            raise ValueError(f"{folder} has a folder {name}/: {reason}, which is not supported")
    for part, file in PARTS.items():
        if not (folder / part / file).is_file():
            raise ValueError(f"{folder} has no {part}/{file}: the pipeline is incomplete")
    if not (folder / "tokenizer").is_dir():
        raise ValueError(f"{folder} has no tokenizer/: the pipeline is incomplete")
    if not any((folder / "tokenizer" / name).is_file() for name in (TOKENIZER, VOCABULARY)):
        raise ValueError(f"{folder} has no tokenizer/{TOKENIZER} and no tokenizer/{VOCABULARY}: it is incomplete")


def process_at(folder: Path) -> DDPM | Flow:
    """Return the process that the scheduler of a pipeline describes."""
    file = folder / "scheduler" / PARTS["scheduler"]
    settings = read_json(file)
    if isinstance(settings, dict) and settings.get("use_flow_sigmas"):
        return Flow(shift=from_dict(float, settings.get("flow_shift", 1.0), f"{file}: flow_shift"))
    # The pipeline never clips latents, whatever its scheduler says.
    return process_of(settings | {"clip_sample": False} if isinstance(settings, dict) else settings, file)


def import_text_encoder(folder: Path, tokenizer: Path) -> TextSource:
    """Import a CLIPTextModel and its tokenizer.

    Args:
        folder: holds config.json and safetensors.
        tokenizer: holds tokenizer.json, or vocab.json with merges.txt.

    Raises:
        ValueError: for settings without a counterpart, or missing or damaged files.
    """
    file = folder / "config.json"
    text = from_settings(TextSettings, read_json(file), str(file))
    tokens = load_tokenizer(tokenizer, text, folder)
    config = TextEncoderConfig(text.blocks(str(file)), tokens.vocabulary, tokens.length, tokens.end)
    encoder = build(lambda: TextEncoder(config), str(file), read_all_shapes(folder, "CLIPTextModel"))
    rest = {
        name if name.startswith("text_model.") else f"text_model.{name}": value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in read_tensors(path).items()
        if is_weight(name)
    }
    target = dict[str, Tensor]()
    for ours, theirs in encoder_names(config.transformer.depth):
        if missing := [name for name in theirs if name not in rest]:
            raise ValueError(f"{folder}: not the weights of this CLIPTextModel: {missing[0]} is missing")
        target[ours] = torch.cat([rest.pop(name).float() for name in theirs])
    if rest:
        raise ValueError(f"{folder}: not the weights of a CLIPTextModel: unknown weights {', '.join(sorted(rest)[:3])}")
    check_same(encoder.state_dict(), target, folder)
    encoder.load_state_dict(target)
    return TextSource(encoder.eval(), tokens, weights_hash(encoder))
