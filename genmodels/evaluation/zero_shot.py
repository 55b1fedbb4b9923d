"""Zero-shot classification: whether an image is closer to sentences that an attribute is there
than to sentences that it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from sklearn.metrics import roc_auc_score

from genmodels.data.captions import CAPTIONED, prompts
from genmodels.data.rows import spread_rows
from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.embedder import embed_texts
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.probe import LEAST, accuracies, predictions, standardised
from genmodels.evaluation.reference import spread
from genmodels.evaluation.results import Score

PROBED = 20_000
"""Largest number of training images that the probe is fitted to."""


@dataclass(frozen=True)
class ZeroShot:
    """Results of one attribute.

    Attributes:
        accuracy: balanced accuracy: the mean of the accuracies on the images with the attribute and
            on those without it, so that a constant answer gets 0.5.
        auc: area under the ROC curve of the difference of the two similarities. It does not depend
            on a threshold, so that a high AUC beside a low accuracy shows a wrong threshold.
    """

    accuracy: float
    auc: float


def part(context: Context) -> Part:
    """Classify held-out images by the prompts of each attribute, and by a linear probe of the same
    embeddings, which was fitted to training images."""
    reference, embedder = context.reference, context.embedder
    absent: dict[str, str] = {}
    with reasons(absent, "zero-shot", "zero-shot-auc", "zero-shot-probe"):
        measured = measurable(reference.attributes, reference.attribute_names)
        sentences = {name: prompts(name) for name in measured}
        features = context.features(reference.images, embedder)
        results = {
            name: zero_shot(features, truth, *(mean_embedding(side, embedder) for side in sentences[name]))
            for name, truth in measured.items()
        }
        of = replace(
            reference.protocol,
            n=len(features),
            attributes=", ".join(measured),
            text=_described(sentences),
        )
        closer = "an image has an attribute if it is closer to the mean of its prompts than to that of their opposites"
        scores = {
            "zero-shot": _mean(
                {name: result.accuracy for name, result in results.items()},
                Score(0, "higher", f"balanced accuracy, mean over the attributes; {closer}", of, group="text"),
            ),
            "zero-shot-auc": _mean(
                {name: result.auc for name, result in results.items()},
                Score(0, "higher", "area under the ROC curve of the same, for any threshold", of, group="text"),
            ),
        }
        probe, why = _probe(context, measured)
        if probe:
            how = "balanced accuracy of a linear probe of the same embeddings, for comparison with zero-shot"
            train = spread(reference.train, PROBED).identity if reference.train else None
            on = replace(of, attributes=", ".join(probe), text=None, train=train)
            scores["zero-shot-probe"] = _mean(probe, Score(0, "higher", how, on, group="text"))
        return Part(scores, why)
    return Part(absent=absent)


def zero_shot(features: np.ndarray, truth: np.ndarray, yes: np.ndarray, no: np.ndarray) -> ZeroShot:
    """Classify images by one attribute.

    Args:
        features: embeddings of N images, (N, D), of unit length.
        truth: (N,) in {-1, 0, +1}: no, unknown (which does not count), yes.
        yes: embedding (D,) of sentences that the attribute is there.
        no: embedding (D,) of sentences that it is not.
    """
    difference = features @ (yes - no)
    accuracy = np.mean([*accuracies(np.where(difference > 0, 1, -1), truth, (1, -1)).values()])
    known = truth != 0
    return ZeroShot(float(accuracy), float(roc_auc_score(truth[known] > 0, difference[known])))


def mean_embedding(texts: Sequence[str], embedder: Extractor) -> np.ndarray:
    """Return the mean of the embeddings of sentences, scaled to unit length: float32 (D,)."""
    mean = embed_texts(texts, embedder).mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), np.finfo(np.float32).tiny)


def _described(sentences: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> str:
    """Return a line that names the prompts: a hash of all, and the first two of each attribute."""
    digest = sha256("\n".join(line for pair in sentences.values() for side in pair for line in side).encode())
    first = "; ".join(f"{name}: {yes[0]} / {no[0]}" for name, (yes, no) in sentences.items())
    return f"{digest.hexdigest()[:8]}; the first of each: {first}"


def measurable(attributes: np.ndarray | None, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the values (N,) of each attribute that has prompts, and enough images with and without
    it.

    Raises:
        ValueError: if there is none.
    """
    values = {} if attributes is None else dict(zip(names, attributes.T, strict=True))
    known = {name: column for name in CAPTIONED if (column := values.get(name)) is not None}
    enough = {name: column for name, column in known.items() if _has_enough(column)}
    if not enough:
        which = f"{', '.join(known)}: " if known else ""
        raise ValueError(
            f"{which}no attribute with prompts is known for {LEAST} held-out images that have it and {LEAST} that "
            "do not"
        )
    return enough


def _has_enough(values: np.ndarray) -> bool:
    return min(int((values > 0).sum()), int((values < 0).sum())) >= LEAST


def _probe(context: Context, measured: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the accuracy of a probe by attribute, or the reason why there is none."""
    reference = context.reference
    if reference.train is None or reference.train_attributes is None:
        return {}, {"zero-shot-probe": "needs attributes of training images"}
    rows = spread_rows(len(reference.train), min(PROBED, len(reference.train)))
    known = dict(zip(reference.attribute_names, reference.train_attributes[rows].T, strict=True))
    names = [name for name in measured if _has_enough(known[name])]
    if not names:
        return {}, {"zero-shot-probe": f"no attribute has {LEAST} training images with and {LEAST} without it"}
    sets = (spread(reference.train, PROBED), reference.images)
    train, held_out = standardised(*(context.features(images, context.embedder) for images in sets))
    values = {}
    for name in names:
        labelled = known[name] != 0
        (predicted,) = predictions(train[labelled], known[name][labelled], held_out)
        values[name] = float(np.mean([*accuracies(predicted, measured[name], (1, -1)).values()]))
    return values, {}


def _mean(each: dict[str, float], score: Score) -> Score:
    """Return `score` with the mean of `each` as its value."""
    return replace(score, value=float(np.mean([*each.values()])), each=each)
