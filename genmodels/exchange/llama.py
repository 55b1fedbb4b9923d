"""Weights of transformers' Llama for our transformer, which shows that both compute the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LLAMA_NAMES = {
    "attention_norm": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.o_proj"],
    "mlp_norm": ["post_attention_layernorm"],
    "mlp.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down": ["mlp.down_proj"],
}
"""Each weight of a block: the weights of LlamaDecoderLayer that are stacked to form it."""


def from_llama(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of LlamaForCausalLM or LlamaModel to that of a `Transformer`.

    | here                           | transformers, after `model.`                                  |
    |--------------------------------|---------------------------------------------------------------|
    | blocks.i.attention_norm.weight | layers.i.input_layernorm.weight                               |
    | blocks.i.attention.qkv.weight  | layers.i.self_attn.{q,k,v}_proj.weight, stacked in this order |
    | blocks.i.attention.out.weight  | layers.i.self_attn.o_proj.weight                              |
    | blocks.i.mlp_norm.weight       | layers.i.post_attention_layernorm.weight                      |
    | blocks.i.mlp.gate_up.weight    | layers.i.mlp.{gate,up}_proj.weight, stacked in this order     |
    | blocks.i.mlp.down.weight       | layers.i.mlp.down_proj.weight                                 |
    | norm.weight                    | norm.weight                                                   |

    Nothing is permuted: both rotate the pairs (i, i + d / 2) of a head's channels. The embedding
    (embed_tokens.weight) and the head (lm_head.weight) are left out, because a `Transformer` has
    neither. The matching config is width = hidden_size, hidden = intermediate_size, kv_heads =
    num_key_value_heads and norm_eps = rms_norm_eps.

    Raises:
        ValueError: when a weight is missing or has no counterpart here, such as a bias.
    """
    source = {name.removeprefix("model."): value for name, value in state.items() if "rotary_emb" not in name}
    for name in ("embed_tokens.weight", "lm_head.weight"):
        source.pop(name, None)

    def take(*names: str) -> Tensor:
        absent = [name for name in names if name not in source]
        if absent:
            raise ValueError(f"not the weights of a Llama: {absent[0]} is missing")
        return torch.cat([source.pop(name) for name in names])

    target = {"norm.weight": take("norm.weight")}
    for i in range(len({name.split(".")[1] for name in source if name.startswith("layers.")})):
        for ours, theirs in LLAMA_NAMES.items():
            target[f"blocks.{i}.{ours}.weight"] = take(*(f"layers.{i}.{name}.weight" for name in theirs))
    if source:
        raise ValueError(f"not the weights of a plain Llama: no place for {', '.join(sorted(source))}")
    return target
