"""Conversion between LlavaForConditionalGeneration of transformers and our LLaVA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmodels.chat import ChatTokenizer
from genmodels.clip import CLIPConfig
from genmodels.exchange.clip import VisionSettings, check_supported, image_processor, statistics
from genmodels.exchange.clip_layout import block_names, import_transformers, tower_settings
from genmodels.exchange.language import (
    LlamaSettings,
    check_tokenizer,
    llama_settings,
    lm_config,
    load_llama,
    to_llama,
    tokenizer_for_transformers,
)
from genmodels.llava import LLaVA, LLaVAConfig
from genmodels.nn.image_encoder import ViTConfig
from genmodels.nn.lora import merge_lora
from genmodels.reading import read_json
from genmodels.saving import from_settings
from genmodels.weights import build

LAYER, STRATEGY = -2, "default"
"""The features that LLaVA uses: those of the next-to-last layer, without the class token."""
TOWER, LANGUAGE = "model.vision_tower", "model.language_model."
ENCODER = {
    "patches.weight": "embeddings.patch_embedding.weight",
    "token": "embeddings.class_embedding",
    "positions.weight": "embeddings.position_embedding.weight",
    **{f"first_norm.{kind}": f"pre_layrnorm.{kind}" for kind in ("weight", "bias")},
    **{f"transformer.norm.{kind}": f"post_layernorm.{kind}" for kind in ("weight", "bias")},
}
PROJECTOR = {
    f"projector.{ours}.{kind}": f"model.multi_modal_projector.{theirs}.{kind}"
    for ours, theirs in (("0", "linear_1"), ("2", "linear_2"))
    for kind in ("weight", "bias")
}


def names(config: CLIPConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each weight of the image encoder and of the projector, with the names of
    those of transformers that are concatenated to form it."""
    yield from block_names("image_encoder", TOWER, config.vit.transformer.depth)
    for name, other in ENCODER.items():
        yield f"image_encoder.{name}", (f"{TOWER}.{other}",)
    for name, other in PROJECTOR.items():
        yield name, (other,)


def to_transformers(model: LLaVA) -> Any:
    """Convert `model` to a LlavaForConditionalGeneration with the same logits. Low-rank updates are
    added to the matrices.

    Raises:
        ValueError: if transformers does not support the config, or is not installed.
    """
    check_supported(model.config.clip)
    transformers = import_transformers()
    language = merged(model).language
    clip, vit = model.config.clip, model.config.clip.vit
    settings = llama_settings(language)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **tower_settings(vit.transformer),
            image_size=clip.size,
            patch_size=vit.patch,
            projection_dim=vit.transformer.width,
        ),
        text_config=transformers.LlamaConfig(**settings),
        image_token_index=model.tokens.image,
        image_seq_length=model.image_tokens,
        projector_hidden_act="gelu",
        vision_feature_layer=LAYER,
        vision_feature_select_strategy=STRATEGY,
        tie_word_embeddings=settings["tie_word_embeddings"],
    )
    network = transformers.LlavaForConditionalGeneration(config)
    source, target = model.state_dict(), to_llama(language, LANGUAGE)
    for ours, theirs in names(clip):
        target |= dict(zip(theirs, source[ours].chunk(len(theirs)), strict=True))
    network.load_state_dict(target)
    network.generation_config.eos_token_id = network.generation_config.pad_token_id = model.tokens.end
    return network.eval()


def merged(model: LLaVA) -> LLaVA:
    """Return a model without low-rank updates: they are added to the matrices of a copy."""
    if not model.config.lora:
        return model
    import copy

    made = copy.deepcopy(model)
    merge_lora(made.language)
    made.config = replace(made.config, lora=0)
    return made


def export_llava(model: LLaVA, folder: Path) -> str:
    """Write a LlavaForConditionalGeneration and its processor into `folder`, and return how to use
    them.

    Raises:
        ValueError: if transformers does not support the model.
    """
    network = to_transformers(model)
    transformers = import_transformers()
    tokens = tokenizer_for_transformers(model.tokens, folder)
    transformers.LlavaProcessor(
        image_processor(model.config.clip),
        tokens,
        patch_size=model.config.clip.vit.patch,
        vision_feature_select_strategy=STRATEGY,
        num_additional_image_tokens=1,  # the class token, which the strategy leaves out again
    ).save_pretrained(folder)
    network.save_pretrained(folder)
    return (
        "a LlavaForConditionalGeneration with its processor: "
        "transformers.LlavaForConditionalGeneration.from_pretrained('{out}')"
    )


def import_llava(folder: Path) -> LLaVA:
    """Import a folder with the layout of llava-hf/llava-1.5-7b-hf, whose language model is a Llama.

    Raises:
        ValueError: for settings without a counterpart, missing or damaged files.
    """
    file = folder / "config.json"
    settings = read_json(file)
    text, seen = (settings.get(key) or {} for key in ("text_config", "vision_config"))
    if text.get("model_type", "llama") != "llama" or seen.get("model_type", "clip_vision_model") != "clip_vision_model":
        kinds = f"{str(seen.get('model_type'))[:40]} and {str(text.get('model_type'))[:40]}"
        raise ValueError(f"{file}: a LLaVA of {kinds} is not supported; one of clip_vision_model and llama is")
    supported = {
        "vision_feature_layer": LAYER,
        "vision_feature_select_strategy": STRATEGY,
        "projector_hidden_act": "gelu",
    }
    for name, value in supported.items():
        if (given := settings.get(name, value)) != value:
            raise ValueError(f"{file}: {name} {str(given)[:40]!r} is not supported; {value!r} is")
    vision = from_settings(VisionSettings, seen, f"{file}: vision_config")
    blocks = vision.blocks(f"{file}: vision_config")
    clip = CLIPConfig(
        size=vision.image_size,
        width=blocks.width,
        image="vit",
        vit=ViTConfig(vision.patch_size, blocks, *statistics(folder)),
    )
    tokenizer = ChatTokenizer.load(folder)
    vocabulary = from_settings(LlamaSettings, text, f"{file}: text_config").vocab_size
    check_tokenizer(tokenizer, vocabulary, folder)
    tied = bool(settings.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    config = LLaVAConfig(size=clip.size, clip=clip, lm=lm_config(text, f"{file}: text_config", tied), train="all")
    model = build(lambda: LLaVA(config, tokenizer), str(file))
    transformers = import_transformers()
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, use_safetensors=True, local_files_only=True
    )
    source = {name: value.float() for name, value in theirs.state_dict().items()}
    load_llama(
        model.language,
        {
            name.replace(LANGUAGE, "model."): value
            for name, value in source.items()
            if name.startswith(LANGUAGE) or name == "lm_head.weight"
        },
    )
    target: dict[str, Tensor] = {ours: torch.cat([source[name] for name in parts]) for ours, parts in names(clip)}
    # The projection of a CLIP is not a part of a LLaVA: the image encoder returns the class token.
    target["image_encoder.project.weight"] = torch.eye(blocks.width)
    model.load_state_dict(target, strict=False)
    return model.eval()
