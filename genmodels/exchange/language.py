"""Conversion between LlamaForCausalLM of transformers and our language models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from genmodels.chat import ChatTokenizer
from genmodels.exchange.clip_layout import Count, import_transformers
from genmodels.exchange.llama import LLAMA_NAMES, from_llama
from genmodels.lm import LM, LMConfig
from genmodels.nn.transformer import TransformerConfig
from genmodels.reading import read_json
from genmodels.saving import Range, from_settings
from genmodels.text import TOKENIZER
from genmodels.weights import build


@dataclass(frozen=True)
class LlamaSettings:
    """Settings of a Llama that are used here. The defaults are those of transformers."""

    vocab_size: Count = 32_000
    hidden_size: Count = 4096
    intermediate_size: Count = 11_008
    num_hidden_layers: Annotated[int, Range(1, 1000)] = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Count = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


def lm_config(settings: Mapping[str, Any], where: str, tied: bool | None = None) -> LMConfig:
    """Return the config of a language model with the settings of a Llama.

    Args:
        settings: config.json of a LlamaForCausalLM, or the text_config of a LLaVA.
        where: the file, for messages.
        tied: whether embeddings and head share a matrix. None: as the settings say.

    Raises:
        ValueError: for settings that have no counterpart.
    """
    used = from_settings(LlamaSettings, settings, where)
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else "default"
    reasons = {
        f"hidden_act {used.hidden_act[:40]!r}": used.hidden_act != "silu",
        "biases": used.attention_bias or used.mlp_bias,
        f"rope_type {str(kind)[:40]!r}": kind != "default",
    }
    if wrong := [reason for reason, applies in reasons.items() if applies]:
        raise ValueError(f"{where}: a Llama with {wrong[0]} is not supported")
    theta = rope.get("rope_theta", settings.get("rope_theta", 10_000.0))
    width = used.hidden_size // used.num_attention_heads
    blocks = TransformerConfig(
        width=used.hidden_size,
        depth=used.num_hidden_layers,
        heads=used.num_attention_heads,
        kv_heads=used.num_key_value_heads,
        head_width=None if used.head_dim in (None, width) else used.head_dim,
        hidden=used.intermediate_size,
        norm_eps=used.rms_norm_eps,
        rope_theta=float(theta),
    )
    tied = used.tie_word_embeddings if tied is None else tied
    return LMConfig(transformer=blocks, context=used.max_position_embeddings, tied=tied)


def llama_settings(model: LM) -> dict[str, Any]:
    """Return the settings of a LlamaConfig with the same architecture.

    Raises:
        ValueError: if a Llama does not support it.
    """
    c, blocks = model.config, model.config.transformer
    reasons = {
        "its blocks are not those of Llama (RMSNorm, SwiGLU, rotary positions, no biases)": (
            blocks.norm != "rms" or blocks.mlp != "swiglu" or blocks.bias or not blocks.rotary
        ),
        "it normalises queries and keys": blocks.qk_norm,
        "its attention has a window": blocks.window is not None,
        "its mixers are not attention": set(blocks.mixers) != {"attention"},
        "it has experts": blocks.experts.count > 0,
    }
    if wrong := [reason for reason, applies in reasons.items() if applies]:
        raise ValueError(f"transformers' Llama does not support this {model.family}: {wrong[0]}")
    return {
        "vocab_size": c.vocabulary,
        "hidden_size": blocks.width,
        "intermediate_size": blocks.inner,
        "num_hidden_layers": blocks.depth,
        "num_attention_heads": blocks.heads,
        "num_key_value_heads": blocks.key_heads,
        "head_dim": blocks.head_dim,
        "max_position_embeddings": c.context,
        "rms_norm_eps": blocks.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": blocks.rope_theta},
        "tie_word_embeddings": c.tied,
        "bos_token_id": model.tokens.start,
        "eos_token_id": model.tokens.end,
        "pad_token_id": model.tokens.end,
    }


def to_llama(model: LM, prefix: str = "model.") -> dict[str, Tensor]:
    """Return the weights of a language model under the names of a LlamaForCausalLM.

    Args:
        model: the model.
        prefix: what the names of the LlamaModel begin with.
    """
    source = model.state_dict()
    heads = model.config.transformer
    groups = {
        "attention.qkv": [n * heads.head_dim for n in (heads.heads, heads.key_heads, heads.key_heads)],
        "mlp.gate_up": [heads.inner, heads.inner],
    }
    target = {f"{prefix}embed_tokens.weight": source["embedding.weight"]}
    for i in range(heads.depth):
        for ours, theirs in LLAMA_NAMES.items():
            value = source[f"transformer.blocks.{i}.{ours}.weight"]
            for name, part in zip(theirs, value.split(groups.get(ours, [len(value)])), strict=True):
                target[f"{prefix}layers.{i}.{name}.weight"] = part
    target[f"{prefix}norm.weight"] = source["transformer.norm.weight"]
    target["lm_head.weight"] = source["embedding.weight" if model.head is None else "head.weight"]
    return target


def load_llama(model: LM, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a LlamaForCausalLM, whose embeddings may have fewer rows than `model` has
    tokens, or more. New rows are the mean of the others, so that a new token is an average one."""

    def rows(value: Tensor) -> Tensor:
        count, value = model.config.vocabulary, value.float()
        more = value.mean(0, keepdim=True).expand(max(0, count - len(value)), -1)
        return torch.cat([value[:count], more])

    embedding = rows(weights["model.embed_tokens.weight"])
    target = {f"transformer.{name}": value.float() for name, value in from_llama(weights).items()}
    target["embedding.weight"] = embedding
    if model.head is not None:
        target["head.weight"] = rows(weights.get("lm_head.weight", weights["model.embed_tokens.weight"]))
    model.load_state_dict(target)


def import_llama(folder: Path) -> LM:
    """Import a folder of a LlamaForCausalLM with its tokenizer.json.

    Raises:
        ValueError: for settings without a counterpart, missing files, or a tokenizer of another model.
    """
    file = folder / "config.json"
    settings = read_json(file)
    config = lm_config(settings, str(file))
    tokenizer = ChatTokenizer.load(folder)
    check_tokenizer(tokenizer, from_settings(LlamaSettings, settings, str(file)).vocab_size, folder)
    model = build(lambda: LM(config, tokenizer), str(file))
    transformers = import_transformers()
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    load_llama(model, theirs.state_dict())
    return model.eval()


def check_tokenizer(tokenizer: ChatTokenizer, vocabulary: int, folder: Path) -> None:
    """Raise ValueError if a tokenizer has more tokens than a model has embeddings, apart from
    `<image>`, which is added where it is missing."""
    if tokenizer.vocabulary > vocabulary + tokenizer.added:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary - tokenizer.added:,} tokens, and the language model "
            f"{vocabulary:,}: they do not belong together"
        )


def tokenizer_for_transformers(tokenizer: ChatTokenizer, folder: Path) -> Any:
    """Return the tokenizer of transformers with the same ids. `folder` receives tokenizer.json."""
    tokenizer.save(folder)
    settings = {"tokenizer_file": str(folder / TOKENIZER), "padding_side": "left", **tokenizer.special_tokens()}
    return import_transformers().PreTrainedTokenizerFast(**settings)


def export_lm(model: LM, folder: Path) -> str:
    """Write a LlamaForCausalLM and its tokenizer into `folder`, and return how to use them.

    Raises:
        ValueError: if a Llama does not support the model.
    """
    transformers = import_transformers()
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama_settings(model)))
    network.load_state_dict(to_llama(model))
    tokenizer_for_transformers(model.tokens, folder).save_pretrained(folder)
    network.save_pretrained(folder)
    return "a LlamaForCausalLM with its tokenizer: transformers.LlamaForCausalLM.from_pretrained('{out}')"
