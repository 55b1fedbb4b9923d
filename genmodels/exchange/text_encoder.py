"""Loading of text encoders: of our CLIPs, and of CLIPModel and CLIPTextModel of transformers."""

from __future__ import annotations

from pathlib import Path

import genmodels
from genmodels.exchange.stable_diffusion import import_text_encoder
from genmodels.reading import read_json
from genmodels.text_conditions import TextSource


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
        beside = path.parent / "tokenizer"
        return import_text_encoder(path, beside if beside.is_dir() else path)
    model = genmodels.load(str(path))
    if not (model.can("embed") and model.can("tokenize")):
        raise ValueError(f"--text {path}: a {model.family} has no text encoder: give the run folder of a clip")
    return TextSource.of(model)
