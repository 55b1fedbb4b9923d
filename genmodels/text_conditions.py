"""Text as a condition: the frozen text encoder of a CLIP, as part of another model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import genmodels
from genmodels.conditions import TextConfig
from genmodels.hashing import weights_hash
from genmodels.saving import to_dict


def load_text_encoder(path: Path) -> Any:
    """Load the CLIP whose text encoder a model is conditioned on.

    Args:
        path: run or model folder of a CLIP, or the folder of a CLIPModel of transformers.

    Raises:
        ValueError: if it is missing or damaged, or no CLIP.
    """
    if not path.is_dir():
        raise ValueError(
            f"--text {path}: no such folder; train a text encoder first: genmodels train clip --output {path}"
        )
    source = genmodels.load(str(path))
    if not (source.can("embed") and source.can("tokenize")):
        raise ValueError(f"--text {path}: a {source.family} has no text encoder: give the run folder of a clip")
    return source


def conditioned_on_text(config: Any, source: Any) -> Any:
    """Return the config of a prior with a text encoder as its condition.

    Args:
        config: with a field `condition`.
        source: as `load_text_encoder` returns it.
    """
    tokenizer = source.tokenizer
    text = TextConfig(
        vocabulary=tokenizer.vocabulary,
        length=tokenizer.length,
        encoder=to_dict(source.text_encoder.config),
        start=tokenizer.start,
        tokenizer=tokenizer.hash,
        weights=weights_hash(source.text_encoder),
    )
    return replace(config, condition=replace(config.condition, text=text))
