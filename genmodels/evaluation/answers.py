"""Answers of a model to questions about held-out images: whether they are right, how often they are
yes, and whether descriptions are true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genmodels.data.captions import parse
from genmodels.data.questions import DESCRIBE, THREE, parse_yes_no, yes_no_question
from genmodels.data.rows import spread_rows
from genmodels.data.sentences import Draws
from genmodels.data.wellformed import is_sentence, split_sentences
from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.images import Images
from genmodels.evaluation.probe import LEAST, accuracies, predictions, standardised
from genmodels.evaluation.reference import spread
from genmodels.evaluation.results import Score
from genmodels.evaluation.zero_shot import measurable
from genmodels.pictures import to_float

PER_SIDE = 100
"""Largest number of images with an attribute, and of images without it, that are asked about."""
DESCRIBED = 128
"""Largest number of images that are described."""
PROBED = 20_000
"""Largest number of training images that the probe is fitted to."""
NAMES = ("answers", "answers-shuffled", "answers-blank", "answers-yes", "answers-probe")
DESCRIPTIONS = ("facts-true", "facts", "sentences")


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions of yes or no about one attribute.

    Attributes:
        rows: numbers of the images, as many with the attribute as without it.
        questions: one for each.
        truth: right answers, +1 for yes and -1 for no.
        values: values of the attribute.
    """

    rows: np.ndarray
    questions: list[str]
    truth: np.ndarray
    values: np.ndarray


def part(context: Context) -> Part:
    """Ask about every attribute of which enough images are known, in phrasings that do not occur in
    training; and let the model describe images in three sentences."""
    absent: dict[str, str] = {}
    scores: dict[str, Score] = {}
    with reasons(absent, *NAMES):
        scores |= _attributes(context)
        probe, why = _probe(context, list(scores["answers"].each))
        scores |= probe
        absent |= why
    with reasons(absent, *DESCRIPTIONS):
        scores |= _descriptions(context)
    return Part(scores, absent)


def questions_about(name: str, values: np.ndarray, per_side: int) -> Asked:
    """Choose images for an attribute, (N,) in {-1, 0, +1}, and ask about each of them."""
    sides = [np.flatnonzero(values == sign) for sign in (1, -1)]
    count = min(per_side, *map(len, sides))
    rows = np.concatenate([side[spread_rows(len(side), count)] for side in sides])
    asked = [yes_no_question(name, Draws("evaluation", name, row), "test") for row in rows.tolist()]
    chosen = values[rows]
    truth = np.array([1 if value == yes else -1 for value, (_, yes) in zip(chosen, asked, strict=True)])
    return Asked(rows, [question for question, _ in asked], truth, chosen)


def _attributes(context: Context) -> dict[str, Score]:
    reference = context.reference
    measured = measurable(reference.attributes, reference.attribute_names)
    asked = {name: questions_about(name, values, PER_SIDE) for name, values in measured.items()}
    orders = {
        name: np.random.default_rng(number).permutation(len(a.rows)) for number, (name, a) in enumerate(asked.items())
    }
    seen = {
        "answers": {name: _said(context, a.rows, a.questions) for name, a in asked.items()},
        "answers-shuffled": {name: _said(context, a.rows[orders[name]], a.questions) for name, a in asked.items()},
        "answers-blank": {name: _said(context, None, a.questions) for name, a in asked.items()},
    }
    every = "\n".join(question for a in asked.values() for question in a.questions)
    of = replace(
        reference.protocol,
        n=sum(len(a.rows) for a in asked.values()),
        attributes=", ".join(asked),
        text=f"{sha256(every.encode()).hexdigest()[:8]}, such as: {next(iter(asked.values())).questions[0]}",
    )
    ways = {
        "answers": "balanced accuracy of answers to questions of yes or no in phrasings that training lacks, mean "
        "over the attributes; an answer that is neither counts as wrong",
        "answers-shuffled": "the same, if each question is asked about the image of another; chance is 0.5",
        "answers-blank": "the same, if every image is gray; chance is 0.5",
    }
    scores = {}
    for kind, said in seen.items():
        each = {name: _accuracy(said[name], a) for name, a in asked.items()}
        better: Literal["higher", "neither"] = "higher" if kind == "answers" else "neither"
        scores[kind] = Score(
            float(np.mean([*each.values()])),
            better,
            ways[kind],
            of,
            each=each,
            group="answers",
        )
    yes = {name: float(np.mean(said == 1)) for name, said in seen["answers"].items()}
    share = float(np.mean([np.mean(a.truth == 1) for a in asked.values()]))
    how = "share of answers that are yes; the floor is the share of right answers that are"
    scores["answers-yes"] = Score(
        float(np.mean([*yes.values()])), "neither", how, of, floor=share, each=yes, group="answers"
    )
    return scores


def _accuracy(said: np.ndarray, asked: Asked) -> float:
    """Return the mean of the accuracies on images with the attribute and on those without it."""
    right = said == asked.truth
    return float(np.mean([np.mean(right[asked.values == sign]) for sign in (1, -1)]))


def _said(context: Context, rows: np.ndarray | None, questions: Sequence[str]) -> np.ndarray:
    """Return the answers to questions about images of the reference, or about gray images: +1 for
    yes, -1 for no, 0 for neither. Only the first token is generated."""
    images = _pixels(context, rows, len(questions))
    answers = context.model.answer(images, questions, batch_size=context.batch_size, max_tokens=1)
    return np.array([parse_yes_no(answer) for answer in answers])


def _pixels(context: Context, rows: np.ndarray | None, count: int) -> Tensor:
    """Return images of the reference as (N, 3, H, W) in [-1, 1]; gray ones without `rows`."""
    if rows is None:
        size = context.model.config.size
        return torch.zeros(count, 3, size, size)
    return to_float(np.array(context.reference.images.pixels[rows]), "cpu")


def _probe(context: Context, names: Sequence[str]) -> tuple[dict[str, Score], dict[str, str]]:
    """Return the accuracy of a linear probe of the frozen image encoder on the same images, or the
    reason why there is none."""
    reference = context.reference
    if getattr(context.model, "image_encoder", None) is None:
        return {}, {"answers-probe": f"{context.model.kind} has no image encoder"}
    if reference.train is None or reference.train_attributes is None:
        return {}, {"answers-probe": "needs attributes of training images"}
    rows = spread_rows(len(reference.train), min(PROBED, len(reference.train)))
    known = dict(zip(reference.attribute_names, reference.train_attributes[rows].T, strict=True))
    truth = measurable(reference.attributes, reference.attribute_names)
    names = [name for name in names if min((known[name] > 0).sum(), (known[name] < 0).sum()) >= LEAST]
    if not names:
        return {}, {"answers-probe": f"no attribute has {LEAST} training images with and {LEAST} without it"}
    sets = (spread(reference.train, PROBED), reference.images)
    train, held_out = standardised(*(_encoded(context, images) for images in sets))
    each = {}
    for name in names:
        labelled = known[name] != 0
        (predicted,) = predictions(train[labelled], known[name][labelled], held_out)
        each[name] = float(np.mean([*accuracies(predicted, truth[name], (1, -1)).values()]))
    how = "balanced accuracy of a linear probe of the embeddings of the frozen image encoder, for comparison"
    of = replace(reference.protocol, n=len(held_out), attributes=", ".join(names), train=sets[0].identity)
    score = Score(float(np.mean([*each.values()])), "neither", how, of, each=each, group="answers")
    return {"answers-probe": score}, {}


def _encoded(context: Context, images: Images) -> np.ndarray:
    """Return the outputs of the image encoder, (N, D)."""
    encoder: Any = context.model.image_encoder
    with torch.inference_mode():
        parts = [encoder(batch).float().cpu() for batch in context.batches(images, "features of the probe")]
    return torch.cat(parts).numpy()


def _descriptions(context: Context) -> dict[str, Score]:
    """Describe images, and compare what is stated with their attributes."""
    reference = context.reference
    known = measurable(reference.attributes, reference.attribute_names)
    rows = spread_rows(len(reference.images), min(DESCRIBED, len(reference.images)))
    question = DESCRIBE["test"][1].format(length=THREE)
    texts = context.model.answer(_pixels(context, rows, len(rows)), [question] * len(rows))
    stated = true = 0
    for row, text in zip(rows, texts, strict=True):
        facts = {name: value for name, value in parse(text).items() if name in known and known[name][row] != 0}
        stated += len(facts)
        true += sum(known[name][row] == value for name, value in facts.items())
    if not stated:
        raise ValueError("the descriptions state no fact about an attribute that is known")
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    share, well = true / stated, float(np.mean([is_sentence(sentence) for sentence in sentences]))
    of = replace(reference.protocol, n=len(rows), text=question, attributes=", ".join(known))
    error = math.sqrt(share * (1 - share) / stated)
    how = "share of the facts in descriptions that are true, of attributes that are known"
    return {
        "facts-true": Score(share, "higher", how, of, error=error, group="answers"),
        "facts": Score(stated / len(rows), "neither", "facts per description", of, group="answers"),
        "sentences": Score(
            well, "higher", "share of the sentences that follow the grammar of captions", of, group="answers"
        ),
    }
