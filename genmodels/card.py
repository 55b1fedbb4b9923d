"""The model card: README.md of a saved model, with the metadata that the Hub reads."""

from __future__ import annotations

import json
import re
from typing import Any

from huggingface_hub import ModelCardData

LOCAL_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?://)[^)]*\)\n*")
NO_LICENCE = "other"
"""Licence of a model whose training data is not known."""


def model_card(model: Any, licence: str = NO_LICENCE, picture: str = "", training: str = "", sections: str = "") -> str:
    """Write the card of a model.

    Args:
        model: the model (`genmodels.base.Model`), for its family, size and abilities.
        licence: licence of the weights, as the Hub names it.
        picture: Markdown of a picture under the title.
        training: a paragraph on how the model was trained.
        sections: Markdown after the section on use.
    """
    size = model.config.size
    samples = model.can("sample")
    front = ModelCardData(
        library_name="genmodels",
        pipeline_tag="unconditional-image-generation" if samples else None,
        license=licence,
        tags=["genmodels", model.family, *(["image-generation"] if samples else []), "faces"],
    )
    use = [f"images = model.generate(16, seed=0)  # (16, 3, {size}, {size}) in [-1, 1]"] if samples else []
    conditions = model.conditions
    if samples and conditions.classes:
        label = json.dumps(conditions.class_names[0], ensure_ascii=False) if conditions.class_names else 0
        use += [f'images = model.generate(16, seed=0, condition={{"label": {label}}})  # of one class']
    code = "\n".join(["from genmodels import load", "", 'model = load("PATH_OR_HUB_ID")', *use])
    parameters = sum(p.numel() for p in model.parameters())
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {model.kind}, {size} x {size} pixels",
        picture,
        training or f"{parameters:,} parameters.",
        f"## Use\n\n```python\n{code}\n```",
        f"## Classes\n\n{conditions.classes:,} classes: {listed}." if (listed := conditions.list_classes()) else "",
        sections,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def without_local_pictures(card: str) -> str:
    """Remove the pictures that are files beside a card, for a copy of the card in another place."""
    return LOCAL_PICTURE.sub("", card)
