"""Conversion between CLIPModel of transformers and our CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmodels.clip import CLIP, CLIPConfig
from genmodels.exchange.clip_layout import (
    Count,
    TextSettings,
    TowerSettings,
    block_names,
    check_blocks,
    import_transformers,
    is_weight,
    load_tokenizer,
    text_settings,
    tokenizer_for_transformers,
    tower_settings,
)
from genmodels.nn.image_encoder import Colour, ViTConfig
from genmodels.nn.text_encoder import TextEncoderConfig
from genmodels.reading import read_json
from genmodels.saving import from_dict, from_settings
from genmodels.weights import build, check_same, read_all_shapes, read_tensors

TOWERS = {"text_encoder": "text_model", "image_encoder": "vision_model"}
NORMS = {
    "text_encoder.transformer.norm": "text_model.final_layer_norm",
    "image_encoder.first_norm": "vision_model.pre_layrnorm",
    "image_encoder.transformer.norm": "vision_model.post_layernorm",
}
OTHERS = {
    "text_encoder.tokens.weight": "text_model.embeddings.token_embedding.weight",
    "text_encoder.positions.weight": "text_model.embeddings.position_embedding.weight",
    "image_encoder.patches.weight": "vision_model.embeddings.patch_embedding.weight",
    "image_encoder.token": "vision_model.embeddings.class_embedding",
    "image_encoder.positions.weight": "vision_model.embeddings.position_embedding.weight",
    "image_encoder.project.weight": "visual_projection.weight",
    "text_projection.weight": "text_projection.weight",
    "log_scale": "logit_scale",
}
MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
STD: Colour = (0.26862954, 0.26130258, 0.27577711)
"""Statistics of pixels in the published models."""
LARGEST_SCALE = CLIPConfig().largest_scale


@dataclass(frozen=True)
class VisionSettings(TowerSettings):
    """Settings of a CLIPVisionModel that are used here."""

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_attention_heads: Count = 12
    image_size: Count = 224
    patch_size: Count = 32
    num_channels: int = 3


def names(config: CLIPConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each of our weights, with the names of those in CLIPModel that are
    concatenated to form it."""
    depths = config.text.transformer.depth, config.vit.transformer.depth
    for (ours, theirs), depth in zip(TOWERS.items(), depths, strict=True):
        yield from block_names(ours, theirs, depth)
    for layer, other in NORMS.items():
        for kind in ("weight", "bias"):
            yield f"{layer}.{kind}", (f"{other}.{kind}",)
    for name, other in OTHERS.items():
        yield name, (other,)


def to_transformers(model: CLIP) -> Any:
    """Convert `model` to a CLIPModel with the same embeddings and the same factor on their
    similarities. The bias of the sigmoid loss, which a CLIPModel does not have, is left out.

    Its images are normalised with the mean and std of the config (see `export_clip`).

    Raises:
        ValueError: if a CLIPModel does not support the config, or transformers is not installed.
    """
    check_supported(model.config)
    transformers = import_transformers()
    c, text, vit = model.config, model.config.text, model.config.vit
    config = transformers.CLIPConfig(
        text_config=text_settings(text, model.tokenizer) | {"projection_dim": c.width},
        vision_config=tower_settings(vit.transformer)
        | {"image_size": c.size, "patch_size": vit.patch, "projection_dim": c.width},
        projection_dim=c.width,
    )
    network = transformers.CLIPModel(config)
    source, target = model.state_dict(), dict[str, Tensor]()
    for ours, theirs in names(c):
        target |= dict(zip(theirs, source[ours].chunk(len(theirs)), strict=True))
    target["logit_scale"] = model.scale.detach().log()
    network.load_state_dict(target)
    return network.eval()


def export_clip(model: CLIP, folder: Path) -> str:
    """Write a CLIPModel and its processor into `folder`, and return how to use them.

    Raises:
        ValueError: if a CLIPModel does not support the model.
    """
    network = to_transformers(model)
    transformers = import_transformers()
    tokens = tokenizer_for_transformers(model.tokenizer, folder)
    transformers.CLIPProcessor(image_processor(model.config), tokens).save_pretrained(folder)
    network.save_pretrained(folder)
    return "a CLIPModel with its CLIPProcessor: transformers.CLIPModel.from_pretrained('{out}')"


def image_processor(config: CLIPConfig) -> Any:
    """Return the image processor of transformers that prepares images for this config."""
    side, vit = config.size, config.vit
    return import_transformers().CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(vit.mean),
        image_std=list(vit.std),
    )


def check_supported(config: CLIPConfig) -> None:
    """Raise ValueError for a config that a CLIPModel does not support."""
    if config.image != "vit":
        raise ValueError("transformers' CLIPModel has no convolutional image encoder: train with --model.image vit")
    for tower, blocks in (("text", config.text.transformer), ("vit", config.vit.transformer)):
        check_blocks(tower, blocks)


def import_clip(folder: Path) -> CLIP:
    """Import a folder with the layout of openai/clip-vit-base-patch32: config.json,
    preprocessor_config.json, safetensors, and tokenizer.json or vocab.json with merges.txt.

    Raises:
        ValueError: for settings without a counterpart, or missing or damaged files.
    """
    file = folder / "config.json"
    settings = read_json(file)
    text = from_settings(TextSettings, settings.get("text_config") or {}, f"{file}: text_config")
    vision = from_settings(VisionSettings, settings.get("vision_config") or {}, f"{file}: vision_config")
    if vision.num_channels != 3:
        raise ValueError(f"{file}: images of {vision.num_channels} channels are not supported")
    tokenizer = load_tokenizer(folder, text, folder)
    shapes = {name: value for name, value in read_all_shapes(folder, "CLIPModel").items() if is_weight(name)}
    mean, std = statistics(folder)
    config = CLIPConfig(
        size=vision.image_size,
        width=from_dict(Count, settings.get("projection_dim", 512), f"{file}: projection_dim"),
        image="vit",
        vit=ViTConfig(vision.patch_size, vision.blocks(str(file)), mean, std),
        text=TextEncoderConfig(text.blocks(str(file))),
    )
    model = build(lambda: CLIP(config, tokenizer), str(file), shapes)
    source = {
        name: value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in read_tensors(path).items()
        if is_weight(name)
    }
    load_weights(model, source, folder)
    return model.eval()


def load_weights(model: CLIP, source: Mapping[str, Tensor], where: Path) -> None:
    """Load the state dict of a CLIPModel into `model`. Its factor becomes the upper bound where it
    is larger.

    Raises:
        ValueError: if a weight is missing, unknown, or of another shape.
    """
    rest, target = dict(source), dict[str, Tensor]()
    for ours, theirs in names(model.config):
        if missing := [name for name in theirs if name not in rest]:
            raise ValueError(f"{where}: not the weights of this CLIPModel: {missing[0]} is missing")
        target[ours] = torch.cat([torch.atleast_1d(rest.pop(name)).float() for name in theirs])
    if rest:
        raise ValueError(f"{where}: not the weights of a CLIPModel: unknown weights {', '.join(sorted(rest)[:3])}")
    check_same(model.state_dict(), target, where)
    model.load_state_dict(target)
    factor = float(model.log_scale.detach().exp())
    model.config = replace(model.config, scale=max(1.0, factor), largest_scale=max(factor, LARGEST_SCALE))


def statistics(folder: Path) -> tuple[Colour, Colour]:
    """Read mean and std of the pixels from preprocessor_config.json; those of the published models
    if there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (file := folder / name).is_file():
            settings = read_json(file)
            settings = settings.get("image_processor", settings)
            mean, std = (settings.get(key, value) for key, value in (("image_mean", MEAN), ("image_std", STD)))
            return from_dict(Colour, mean, f"{file}: image_mean"), from_dict(Colour, std, f"{file}: image_std")
    return MEAN, STD
