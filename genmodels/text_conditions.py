"""Text as a condition: a frozen text encoder, as part of another model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from genmodels.conditions import TextConfig
from genmodels.hashing import weights_hash
from genmodels.nn.text_encoder import TextEncoder
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
