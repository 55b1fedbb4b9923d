"""Export to, and import from, folders of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from genmodels.base import Model
from genmodels.exchange.clip import export_clip, import_clip
from genmodels.exchange.language import export_lm, import_llama
from genmodels.exchange.llava import export_llava, import_llava
from genmodels.reading import read_json
from genmodels.writing import is_free, replacing_folder

EXPORTS: dict[str, Callable[[Any, Path], str]] = {"clip": export_clip, "lm": export_lm, "llava": export_llava}
"""What writes a model of each family that has a counterpart."""
IMPORTS: dict[str, Callable[[Path], Model]] = {"clip": import_clip, "llama": import_llama, "llava": import_llava}
"""What reads a folder, by the model_type in its config.json."""


def export_to_transformers(model: Model, out: Path) -> str:
    """Write a clip, lm or llava into the new or empty folder `out`, as a whole, with its tokenizer
    or processor.

    Returns:
        One line on how to use the folder.

    Raises:
        ValueError: for a model that has no counterpart. Nothing has been written then.
    """
    if model.family not in EXPORTS:
        known = ", ".join(EXPORTS)
        raise ValueError(f"transformers has no counterpart of {model.kind} models here; {known} can be exported")
    if not is_free(out):
        raise ValueError(f"{out} is not an empty folder: choose another")
    with replacing_folder(out) as draft:
        return EXPORTS[model.family](model, draft).format(out=out)


def import_from_transformers(folder: Path) -> Model:
    """Import a folder of a CLIPModel, LlamaForCausalLM or LlavaForConditionalGeneration.

    Raises:
        ValueError: if it has no counterpart.
    """
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in IMPORTS:
        raise ValueError(f"{folder}: a model of type {str(kind)[:40]!r} cannot be imported; {', '.join(IMPORTS)} can")
    return IMPORTS[kind](folder)
