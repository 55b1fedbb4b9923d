"""Layout of the towers of CLIPModel and CLIPTextModel of transformers: settings, weights, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from genmodels.nn.text_encoder import CLIP_BLOCKS, TextEncoderConfig
from genmodels.nn.transformer import TransformerConfig
from genmodels.reading import read_json
from genmodels.saving import Range
from genmodels.text import TOKENIZER, Tokenizer

ACTIVATIONS = {"quick_gelu": "quick_gelu", "exact_gelu": "gelu", "gelu": "gelu_pytorch_tanh"}
"""Names of MLPs here, and of their activations in transformers."""
BLOCK = {
    "attention_norm": ("layer_norm1",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.out_proj",),
    "mlp_norm": ("layer_norm2",),
    "mlp.up": ("mlp.fc1",),
    "mlp.down": ("mlp.fc2",),
}
"""Layers of our block i, and the layers of encoder.layers.i that each concatenates."""
LEGACY_END = 2
"""End id in the configs of the first published models, which transformers replaces by the largest
id of a text."""
Count = Annotated[int, Range(1, 2**20)]


@dataclass(frozen=True)
class TowerSettings:
    """Settings that both towers of a CLIPModel have. The defaults are those of transformers."""

    hidden_size: Count = 512
    intermediate_size: Count = 2048
    num_hidden_layers: Annotated[int, Range(1, 1000)] = 12
    num_attention_heads: Count = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def blocks(self, where: str) -> TransformerConfig:
        """Return the blocks of the tower.

        Raises:
            ValueError: for another activation, or settings that do not fit together.
        """
        names = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
        if self.hidden_act not in names:
            raise ValueError(
                f"{where}: hidden_act {self.hidden_act[:40]!r} is not supported; known: {', '.join(names)}"
            )
        return replace(
            CLIP_BLOCKS,
            width=self.hidden_size,
            hidden=self.intermediate_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            mlp=names[self.hidden_act],  # type: ignore[arg-type]
            norm_eps=self.layer_norm_eps,
        )


@dataclass(frozen=True)
class TextSettings(TowerSettings):
    """Settings of a CLIPTextModel that are used here."""

    vocab_size: Count = 49408
    max_position_embeddings: Count = 77
    eos_token_id: int = 49407


def block_names(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each weight of the blocks of a tower, with the names of those in transformers
    that are concatenated to form it.

    Args:
        ours: name of our tower.
        theirs: name of theirs.
        depth: number of blocks.
    """
    for i in range(depth):
        for layer, parts in BLOCK.items():
            for kind in ("weight", "bias"):
                sources = tuple(f"{theirs}.encoder.layers.{i}.{part}.{kind}" for part in parts)
                yield f"{ours}.transformer.blocks.{i}.{layer}.{kind}", sources


def tower_settings(blocks: TransformerConfig) -> dict[str, Any]:
    """Return the settings of a tower of CLIPModel with these blocks."""
    return {
        "hidden_size": blocks.width,
        "intermediate_size": blocks.inner,
        "num_hidden_layers": blocks.depth,
        "num_attention_heads": blocks.heads,
        "hidden_act": ACTIVATIONS[blocks.mlp],
        "layer_norm_eps": blocks.norm_eps,
    }


def text_settings(config: TextEncoderConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the settings of a CLIPTextModel with this encoder and tokenizer."""
    return tower_settings(config.transformer) | {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.length,
        "bos_token_id": tokenizer.start,
        "eos_token_id": config.end,
        "pad_token_id": config.end,
    }


def unsupported_blocks(blocks: TransformerConfig) -> list[str]:
    """Return what the towers of transformers do not support of blocks."""
    reasons = {
        "its blocks are not those of CLIP (LayerNorm with gain and bias, GELU, biases, no rotation)": (
            blocks.norm != "affine" or blocks.mlp not in ACTIVATIONS or not blocks.bias or blocks.rotary
        ),
        "it normalises queries and keys": blocks.qk_norm,
        "its heads share keys": blocks.key_heads != blocks.heads,
        "its heads were pruned": blocks.head_width is not None,
        "its attention has a window": blocks.window is not None,
        "its mixers are not attention": set(blocks.mixers) != {"attention"},
        "it has experts": blocks.experts.count > 0,
    }
    return [reason for reason, applies in reasons.items() if applies]


def check_blocks(tower: str, blocks: TransformerConfig) -> None:
    """Raise ValueError for blocks that the towers of transformers do not support."""
    if reasons := unsupported_blocks(blocks):
        raise ValueError(f"a CLIPModel does not support the {tower} of this clip: {reasons[0]}")


def tokenizer_for_transformers(tokenizer: Tokenizer, folder: Path) -> Any:
    """Return the CLIPTokenizer with the same ids. `folder` receives tokenizer.json."""
    tokenizer.save(folder)
    model = read_json(folder / TOKENIZER)["model"]
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    tokens = import_transformers().CLIPTokenizer(vocab=model["vocab"], merges=merges)
    tokens.model_max_length = tokenizer.length
    return tokens


def load_tokenizer(folder: Path, text: TextSettings, where: Path) -> Tokenizer:
    """Load the tokenizer of a text encoder.

    Args:
        folder: holds tokenizer.json, or vocab.json with merges.txt.
        text: settings of the encoder.
        where: folder of the encoder, for messages.

    Raises:
        ValueError: if it does not belong to the encoder.
    """
    end = text.vocab_size - 1 if text.eos_token_id == LEGACY_END else text.eos_token_id
    tokenizer = Tokenizer.load(folder, length=text.max_position_embeddings)
    if (tokenizer.vocabulary, tokenizer.end) != (text.vocab_size, end):
        raise ValueError(
            f"{where}: the tokenizer has {tokenizer.vocabulary:,} tokens and end id {tokenizer.end}, the model "
            f"{text.vocab_size:,} and {end}: they do not belong together"
        )
    return tokenizer


def is_weight(name: str) -> bool:
    """Whether a tensor is a weight: older files also hold the numbers of the positions."""
    return not name.endswith("position_ids")


def import_transformers() -> Any:
    """Import transformers.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("transformers is not installed: pip install 'genmodels[evaluation]'") from None
    return transformers
