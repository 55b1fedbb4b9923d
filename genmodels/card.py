"""The model card: README.md of a saved model, with the metadata that the Hub reads."""

from __future__ import annotations

import json
import re
from typing import Any

from huggingface_hub import ModelCardData

LOCAL_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?://)[^)]*\)\n*")
PROMPTED = "images = model.generate(16, seed=0, condition=condition, guidance=4.0)  # with a prompt"
"""Line of the snippet of models that take prompts."""
LIMITS = """## Limits

Prompts have at most {length} tokens. The model knows the words of the captions that it was trained
on, and what other words name is ignored. It can be wrong about what a prompt denies, about
attributes that are rarely seen together, and about people who are rare in its data. Samples are not
photos, and should be marked as generated: `genmodels sample` does so in the metadata of PNG files,
and with `--watermark` also invisibly in the pixels."""
"""Section of models that take prompts."""
CHECKED = """## Safety checker

A safety checker looks at the generated images, and shows a black one in place of each that it
flags. It was trained on other images: it misses some, and flags harmless ones.
`load(PATH, safety_checker=False)` leaves it out."""
"""Section of models with a safety checker."""
EMBEDDING = """\
`genmodels retrieve PATH "a smiling woman with glasses" --data IMAGES` shows the images that are
closest to a sentence, and `genmodels retrieve PATH FACE.jpg` prints the sentences that are closest
to an image. `genmodels evaluate PATH` measures the accuracy of both.

The model only knows what the captions of its training say. A sentence with other words also gets a
vector, and images that are closest to it, which mean nothing. Similarities are comparable for one
sentence (which image?) or one image (which sentence?), and not in absolute terms."""
"""What the card of a model that embeds images and sentences says about its use."""
ANSWERING = """\
`genmodels ask PATH FACE.jpg "Is this person smiling?"` prints an answer, and
`genmodels describe PATH IMAGES --out captions.csv` describes all images of a folder.

The model only knows what the questions and answers of its training say. It also answers other
questions, and images of other things, and these answers mean nothing. An answer that sounds certain
can be wrong: `genmodels evaluate PATH` measures how often, for each attribute. Do not use it to
decide anything about a person."""
"""What the card of a model that answers questions says about its use."""
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
    embeds, prompted = (model.can(name) and model.can("tokenize") for name in ("embed", "sample"))
    task = "unconditional-image-generation" if samples else "zero-shot-image-classification" if embeds else None
    task = "text-to-image" if prompted else task
    answers, completes = model.can("answer"), model.can("complete")
    task = "visual-question-answering" if answers else "text-generation" if completes else task
    front = ModelCardData(
        library_name="genmodels",
        pipeline_tag=task,
        license=licence,
        tags=["genmodels", model.family, *(["image-generation"] if samples else []), "faces"],
    )
    use = [f"images = model.generate(16, seed=0)  # (16, 3, {size}, {size}) in [-1, 1]"] if samples else []
    conditions = model.conditions
    if samples and conditions.classes:
        label = json.dumps(conditions.class_names[0], ensure_ascii=False) if conditions.class_names else 0
        use += [f'images = model.generate(16, seed=0, condition={{"label": {label}}})  # of one class']
    if prompted:
        use += ['condition = {"prompt": "a smiling woman with glasses"}', PROMPTED]
    if embeds:
        use += [
            "pixels = torch.zeros(4, 3, model.config.size, model.config.size)  # your images, in [-1, 1]",
            "images = model.embed_images(pixels)  # (4, D)",
            'texts = model.embed_texts(model.tokenize(["a smiling woman with glasses", "a man with a beard"]))',
            "similarity = images @ texts.T  # (4, 2), cosines",
        ]
    if answers:
        use += [
            "pixels = torch.zeros(2, 3, model.config.size, model.config.size)  # your images, in [-1, 1]",
            'answers = model.answer(pixels, ["Is this person smiling?", "Describe this person."])',
        ]
    if completes:
        use += ['sentences = model.complete(["This person is", "She has"])']
    imports = ["import torch"] if embeds or answers else []
    code = "\n".join([*imports, "from genmodels import load", "", 'model = load("PATH_OR_HUB_ID")', *use])
    parameters = sum(p.numel() for p in model.parameters())
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {model.kind}, {size} x {size} pixels",
        picture,
        training or f"{parameters:,} parameters.",
        f"## Use\n\n```python\n{code}\n```",
        EMBEDDING if embeds else "",
        ANSWERING if answers else "",
        LIMITS.format(length=model.tokenizer.length - 2) if prompted else "",
        CHECKED if samples and model.safety_checker is not None else "",
        f"## Classes\n\n{conditions.classes:,} classes: {listed}." if (listed := conditions.list_classes()) else "",
        sections,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def without_local_pictures(card: str) -> str:
    """Remove the pictures that are files beside a card, for a copy of the card in another place."""
    return LOCAL_PICTURE.sub("", card)
