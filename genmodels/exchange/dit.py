"""Conversion between DiTTransformer2DModel of diffusers and our diffusion transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.conditions import ConditionConfig
from genmodels.diffusion.ddpm import DDPM
from genmodels.dit import DiT, DiTConfig, vanilla
from genmodels.nn.transformer import TransformerConfig

PUBLISHED = vanilla().ddpm
TIME = ("linear_1", "linear_2")
BLOCK = {
    "modulations.{}": ["norm1.linear"],
    "transformer.blocks.{}.attention.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "transformer.blocks.{}.attention.out": ["attn1.to_out.0"],
    "transformer.blocks.{}.mlp.up": ["ff.net.0.proj"],
    "transformer.blocks.{}.mlp.down": ["ff.net.2"],
}
"""Layers of our block i, and the layers of transformer_blocks.i that each concatenates."""
EMBEDDING = "norm1.emb"
"""Embedding of time and label. In diffusers every block has a copy of it; our model has one."""


def from_diffusers(
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    size: int,
    process: DDPM = PUBLISHED,
    class_names: tuple[str, ...] = (),
) -> DiT:
    """Convert a DiTTransformer2DModel.

    Its last class is the null class. Here an absent label adds nothing to the embedding, so the
    vector of the null class is added to the bias of the time embedding and subtracted from the
    other classes. A model with twice as many output as input channels has a learned variance.

    Args:
        settings: config.json of the model.
        weights: state dict of the model.
        size: side in pixels of the images that the latents are decoded to.
        process: the DDPM that it was trained with.
        class_names: names of the first classes, or (). If all further classes equal the null class,
            as in a pipeline that `to_diffusers` made, they are left out.

    Raises:
        ValueError: when a weight is missing or unknown, or the embeddings of the blocks differ.
    """
    heads, depth = settings["num_attention_heads"], settings["num_layers"]
    blocks = TransformerConfig(width=heads * settings["attention_head_dim"], depth=depth, heads=heads)
    channels, side = settings["in_channels"], settings["sample_size"]
    classes = _classes_used(settings["num_embeds_ada_norm"], weights, class_names)
    latents = (channels, side, side)
    patch = settings["patch_size"]
    if settings.get("out_channels") not in (None, channels, 2 * channels):
        raise ValueError(f"{channels} channels in and {settings['out_channels']} out are not supported")
    process = replace(process, learned_variance=settings.get("out_channels") == 2 * channels)
    condition = ConditionConfig(classes=classes, class_names=class_names if len(class_names) == classes else ())
    model = DiT(vanilla(size=size, latents=latents, patch=patch, transformer=blocks, condition=condition, ddpm=process))
    source = dict(weights)

    def take(*names: str) -> Tensor:
        if missing := [name for name in names if name not in source]:
            raise ValueError(f"not the weights of a DiTTransformer2DModel with {depth} blocks: {missing[0]} is missing")
        return torch.cat([source.pop(name) for name in names])

    target: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        for i in range(depth):
            for ours, theirs in BLOCK.items():
                target[f"{ours.format(i)}.{kind}"] = take(*(f"transformer_blocks.{i}.{name}.{kind}" for name in theirs))
        target[f"patches.{kind}"] = take(f"pos_embed.proj.{kind}")
        target[f"last_modulation.{kind}"] = take(f"proj_out_1.{kind}")
        last = take(f"proj_out_2.{kind}").unflatten(0, (model.config.patch**2, -1))  # (p^2, C or 2 C, ...)
        target[f"head.{kind}"] = last.transpose(0, 1).flatten(0, 1)
    target["patches.weight"] = target["patches.weight"].flatten(1)  # (D, C p^2)
    embedding = [
        {name: take(f"transformer_blocks.{i}.{EMBEDDING}.{name}") for name in _embedding_names()} for i in range(depth)
    ]
    for name, value in embedding[0].items():
        if any(not torch.equal(value, other[name]) for other in embedding[1:]):
            raise ValueError(f"{EMBEDDING}.{name} differs between blocks: such a model is not supported")
    if source:
        raise ValueError(f"not the weights of a DiTTransformer2DModel: unknown weights {', '.join(sorted(source))}")
    labels = embedding[0].pop("class_embedder.embedding_table.weight")  # (classes + 1, D)
    for name, value in embedding[0].items():
        target[name.replace("timestep_embedder", "time")] = value
    target["time.linear_2.bias"] = target["time.linear_2.bias"] + labels[-1]
    target["condition.labels.weight"] = labels[:classes] - labels[-1]
    model.load_state_dict(target)
    return model.eval()


def to_diffusers(model: DiT, classes: int | None = None) -> Any:
    """Convert `model` to a DiTTransformer2DModel with the same outputs.

    Args:
        model: the model.
        classes: number of classes of the result; by default, that of the model. Further classes
            equal the null class.

    Raises:
        ValueError: when a DiTTransformer2DModel does not support the config of the model, or the
            model has more than `classes`.
    """
    from diffusers import DiTTransformer2DModel

    if reasons := unsupported(model.config):
        raise ValueError(f"a DiTTransformer2DModel does not support this dit: {'; '.join(reasons)}")
    c, blocks = model.config, model.config.transformer
    classes = c.condition.classes if classes is None else classes
    if c.condition.classes > classes:
        raise ValueError(
            f"diffusers' DiTPipeline has at most {classes:,} classes: this dit has {c.condition.classes:,}"
        )
    network: Any = DiTTransformer2DModel(
        num_attention_heads=blocks.heads,
        attention_head_dim=blocks.head_dim,
        in_channels=c.shape[0],
        out_channels=c.outputs,
        num_layers=blocks.depth,
        sample_size=c.shape[1],
        patch_size=c.patch,
        num_embeds_ada_norm=classes,
        norm_eps=blocks.norm_eps,
    )
    source = model.state_dict()
    target: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        for i in range(blocks.depth):
            for ours, theirs in BLOCK.items():
                parts = source[f"{ours.format(i)}.{kind}"].chunk(len(theirs))
                for name, part in zip(theirs, parts, strict=True):
                    target[f"transformer_blocks.{i}.{name}.{kind}"] = part
            for layer in TIME:
                name = f"transformer_blocks.{i}.{EMBEDDING}.timestep_embedder.{layer}.{kind}"
                target[name] = source[f"time.{layer}.{kind}"]
        target[f"pos_embed.proj.{kind}"] = source[f"patches.{kind}"]
        target[f"proj_out_1.{kind}"] = source[f"last_modulation.{kind}"]
        last = source[f"head.{kind}"].unflatten(0, (c.outputs, -1))  # (C or 2 C, p^2, ...)
        target[f"proj_out_2.{kind}"] = last.transpose(0, 1).flatten(0, 1)
    target["pos_embed.proj.weight"] = target["pos_embed.proj.weight"].unflatten(1, (c.shape[0], c.patch, c.patch))
    labels = source["condition.labels.weight"]
    table = F.pad(labels, (0, 0, 0, classes + 1 - len(labels)))  # (classes + 1, D); the null class adds nothing
    for i in range(blocks.depth):
        target[f"transformer_blocks.{i}.{EMBEDDING}.class_embedder.embedding_table.weight"] = table
    network.load_state_dict(target)
    return network.eval()


def unsupported(config: DiTConfig) -> list[str]:
    """Return what a DiTTransformer2DModel does not support of a config."""
    c, blocks = config, config.transformer
    reasons = {
        "its blocks are not those of vanilla (LayerNorm, GELU, biases, no rotation)": (
            blocks.norm != "layer" or blocks.mlp != "gelu" or not blocks.bias or blocks.rotary
        ),
        "it normalises queries and keys": blocks.qk_norm,
        "its heads share keys": blocks.key_heads != blocks.heads,
        "its heads were pruned": blocks.head_width is not None,
        "its attention has a window": blocks.window is not None,
        "its MLP is not 4 times as wide": blocks.inner != 4 * blocks.width,
        "its mixers are not attention": set(blocks.mixers) != {"attention"},
        "it has experts": blocks.experts.count > 0,
        "it corrects a closed-form denoiser": c.gaussian > 0,
        "it takes attributes": bool(c.condition.attributes),
        "it takes text": c.condition.text.vocabulary > 0,
        "it has no classes": not c.condition.classes,
        "its input is not square": c.shape[1] != c.shape[2],
        "its positions are interpolated": c.trained is not None,
    }
    return [reason for reason, applies in reasons.items() if applies]


def _classes_used(classes: int, weights: Mapping[str, Tensor], class_names: tuple[str, ...]) -> int:
    """Return the number of classes without those that are unused: they have no name, and the vector
    of the null class."""
    table = weights.get(f"transformer_blocks.0.{EMBEDDING}.class_embedder.embedding_table.weight")
    named = len(class_names)
    if table is None or not 0 < named < classes or bool((table[named:] != table[-1]).any()):
        return classes
    return named


def _embedding_names() -> list[str]:
    times = [f"timestep_embedder.{layer}.{kind}" for layer in TIME for kind in ("weight", "bias")]
    return [*times, "class_embedder.embedding_table.weight"]
