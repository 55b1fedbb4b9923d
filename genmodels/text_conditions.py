"""Text as a condition: a frozen text encoder, as part of another model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import genmodels
from genmodels.conditions import TextConfig
from genmodels.hashing import weights_hash
from genmodels.nn.text_encoder import TextEncoder
from genmodels.reading import read_json
from genmodels.saving import to_dict
from genmodels.text import Tokenizer


@dataclass(frozen=True)
class TextSource:
    """A text encoder that other models are conditioned by.

    Attributes:
        encoder: the encoder.
        tokenizer: its tokenizer.
        weights: hash of the weights of the model that it is a part of.
    """

    encoder: TextEncoder
    tokenizer: Tokenizer
    weights: str

    @classmethod
    def of(cls, clip: Any) -> TextSource:
        """Return the text encoder of a CLIP."""
        return cls(clip.text_encoder, clip.tokenizer, weights_hash(clip))


def load_text_encoder(path: Path) -> TextSource:
    """Load the text encoder that a model is conditioned by.

    Args:
        path: run or model folder of a clip; or folder of a CLIPModel or a CLIPTextModel of
            transformers, with its tokenizer there or in the folder tokenizer/ beside it.

    Raises:
        ValueError: if it is missing or damaged, or no text encoder.
    """
    if not path.is_dir():
        raise ValueError(
            f"--text {path}: no such folder; train a text encoder first: genmodels train clip --output {path}"
        )
    file = path / "config.json"
    if file.is_file() and (read_json(file) or {}).get("model_type") == "clip_text_model":
        from genmodels.exchange.stable_diffusion import import_text_encoder

        beside = path.parent / "tokenizer"
        return import_text_encoder(path, beside if beside.is_dir() else path)
    model = genmodels.load(str(path))
    if not (model.can("embed") and model.can("tokenize")):
        raise ValueError(f"--text {path}: a {model.family} has no text encoder: give the run folder of a clip")
    return TextSource.of(model)


def conditioned_on_text(config: Any, source: TextSource) -> Any:
    """Return the config of a prior with a text encoder as its condition.

    Args:
        config: with a field `condition`.
        source: the text encoder.
    """
    tokenizer = source.tokenizer
    text = TextConfig(
        vocabulary=tokenizer.vocabulary,
        length=tokenizer.length,
        encoder=to_dict(source.encoder.config),
        start=tokenizer.start,
        tokenizer=tokenizer.hash,
        weights=source.weights,
    )
    return replace(config, condition=replace(config.condition, text=text))
