"""Compute every metric that a model, or a set of images, allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from genmodels import sampling
from genmodels.base import Model
from genmodels.candidates import BestOf
from genmodels.data.packed import Packed
from genmodels.evaluation import (
    answers,
    classes,
    clip_score,
    codebook,
    conditional,
    copies,
    cost,
    diversity,
    likelihood,
    own,
    pairs,
    realism,
    retrieval,
    samples,
    tokens,
    zero_shot,
)
from genmodels.evaluation.context import Context, Part
from genmodels.evaluation.extractors import Extractor, load_extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.protocol import FULL_N, check_count, code_version
from genmodels.evaluation.reference import Reference, reference_from
from genmodels.evaluation.results import Evaluation, Score, Subject
from genmodels.saving import to_dict


class Row(NamedTuple):
    """One metric, or several that are computed together."""

    ability: str | None
    """The ability that a model needs (see `genmodels.abilities`), or None if every model has the
    metric."""
    part: Callable[[Context], Part]
    """Computes the scores."""
    otherwise: Mapping[str, str] = {}
    """Reasons for absent scores if the model lacks the ability, by score. "{kind}" stands for
    the kind of model."""


SAMPLE_PARTS = [
    Row("sample", samples.part),
    Row("sample", copies.part),
    Row("sample", realism.part),
    Row("sample", diversity.part),
]
"""Metrics of images, whether a model sampled them or they were given."""

PARTS = [
    *SAMPLE_PARTS,
    Row("reconstruct", pairs.part, {"psnr": "{kind} does not reconstruct images"}),
    Row("quantise", codebook.part),
    Row("bits_per_dim", likelihood.part, {"bits-per-dim": "{kind} has no likelihood"}),
    Row("bits_per_token", tokens.part),
    Row("sample", conditional.part),
    Row("sample", classes.part),
    Row("answer", answers.part),
    Row("embed", zero_shot.part),
    Row("embed", retrieval.part),
    Row("sample", clip_score.part),
    Row("measure", own.part),
    Row(None, cost.part),
]
"""Every metric, in the order of the results. To add one, write its file and add a row here."""


def evaluate(
    model: Model,
    data: Reference | Packed,
    extractors: Sequence[Extractor] = (),
    *,
    n: int = FULL_N,
    seed: int = 0,
    batch_size: int = 64,
    options: Mapping[str, Any] | None = None,
    best_of: int = 1,
    subject: Subject | None = None,
) -> Evaluation:
    """Compute every metric of `PARTS` that `model` has the ability for.

    Example::

        >>> result = evaluate(genmodels.load("runs/vae"), genmodels.open_data("toyfaces"))
        >>> result.scores["fd-faces"].value, result.scores["fd-faces"].floor

    Args:
        model: the model, on the device it should run on.
        data: real images of the model's size. Of a data set, the validation split is the reference.
            Samples are not compared with fewer than 256 images; everything else is measured.
        extractors: feature extractors; the embedded one by default. Copies of training images and
            attributes are detected with the first one.
        n: number of samples. Reconstruction and likelihood use at most as many real images.
        seed: seed of the samples.
        batch_size: number of images computed at a time.
        options: sampling options: fields of the model's `Options`.
        best_of: number of candidates per sample, of which the most realistic one is kept. The first
            extractor compares them with the training images.
        subject: what is known about the model in addition.

    Raises:
        ValueError: if the images are not of the model's size, `n` is less than 256, or the model
            has no such option. The message is one line.
    """
    reference = reference_from(data) if isinstance(data, Packed) else data
    if reference.images.size != model.config.size:
        raise ValueError(
            f"the images of {reference.images.name} have {reference.images.size} px, the model makes "
            f"{model.config.size} px: choose real images of {model.config.size} px"
        )
    options = dict(options or {})
    extractors = _checked(extractors, model.device)
    subject = subject or Subject(model.family, model.family)
    subject = replace(subject, notes=(*subject.notes, *_guided_by(model.config, extractors)))
    images = best = None
    if model.can("sample"):
        check_count(n, "samples")
        if best_of != 1:
            best = realism.most_realistic(best_of, _training_images(reference), extractors[0], batch_size)
        images, subject = _sampled(model, n, seed, batch_size, options, best, subject)
    elif options or best_of != 1:
        names = ", ".join([*options, *["best_of"] * (best_of != 1)])
        raise ValueError(f"{model.kind} models do not sample images: leave out the sampling options {names}")
    context = Context(reference, extractors, batch_size, images, model, n, seed, options, best, model.device)
    parts, absent = [], dict[str, str]()
    for ability, part, otherwise in PARTS:
        if ability is None or model.can(ability):
            parts.append(part)
        else:
            absent |= {name: why.format(kind=model.kind) for name, why in otherwise.items()}
    return _run(parts, context, subject, absent)


def evaluate_images(
    images: Images,
    reference: Reference,
    extractors: Sequence[Extractor] = (),
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Score given images as the samples of a model are scored.

    Args:
        images: the images, of the size of the reference.
        reference: real images.
        extractors: see `evaluate`.
        batch_size: number of images computed at a time.
        device: device of the embedded extractor, which is used if `extractors` is empty.

    Raises:
        ValueError: see `evaluate`.
    """
    if reference.images.size != images.size:
        raise ValueError(
            f"{images.name} has images of {images.size} px, {reference.images.name} of {reference.images.size} px: "
            "bring them to one size with --size"
        )
    for part in (images, reference.images):
        check_count(len(part), part.name)
    context = Context(reference, _checked(extractors, device), batch_size, images, n=len(images), device=device)
    subject = Subject(images.name, "images", fingerprint=images.fingerprint, notes=images.notes)
    return _run([row.part for row in SAMPLE_PARTS], context, subject, {})


def _run(
    parts: Sequence[Callable[[Context], Part]], context: Context, subject: Subject, absent: dict[str, str]
) -> Evaluation:
    """Run `parts` in order. A score that is not finite, such as the PSNR of exact copies, becomes
    absent."""
    scores: dict[str, Score] = {}
    for part in parts:
        result = part(context)
        if twice := scores.keys() & result.scores.keys():
            raise ValueError(f"two metrics are called {min(twice)!r}: give them different names")
        scores |= result.scores
        absent |= result.absent
    absent |= {name: f"it is {score.value}" for name, score in scores.items() if not math.isfinite(score.value)}
    finite = {name: score for name, score in scores.items() if math.isfinite(score.value)}
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    made = {"code": code_version(), "torch": torch.__version__, "device": str(context.device), "date": date}
    return Evaluation(subject, finite, absent, made, context.pictures)


def _training_images(reference: Reference) -> Images:
    """Return the real images that candidates are compared with: not those of the scores."""
    if reference.train is None:
        raise ValueError(
            f"{reference.images.name}: candidates are compared with training images, and these are not known or are "
            "what the scores compare with; leave out best_of, or choose the split valid of a data set"
        )
    return reference.train


def _sampled(
    model: Any, n: int, seed: int, batch_size: int, options: dict[str, Any], best: BestOf | None, subject: Subject
) -> tuple[Images, Subject]:
    """Draw the samples, and add to `subject` how they were drawn."""
    settings = asdict(model.options(**options))
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    pixels = sampling.sample(model, n, seed, batch_size=batch_size, best=best, **options)
    images = Images(pixels, f"samples of {model.kind}")
    subject = replace(subject, seed=seed, options=chosen, fingerprint=images.fingerprint)
    return images, replace(subject, candidates=best.count, best_by=best.rule) if best else subject


def _guided_by(config: Any, extractors: Sequence[Extractor]) -> Iterator[str]:
    """Yield a note for each extractor that took part in making the samples.

    A model records in its config the hash of the weights of every network that trained, guided or
    conditioned it (DiT: `align.weights`), as `Extractor.weights` has it.
    """
    recorded = set(_strings(to_dict(config)))
    for extractor in extractors:
        if extractor.weights in recorded:
            yield (
                f"{extractor.name} also trained, guided or conditioned the model: its scores do not judge it "
                "independently"
            )


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.values() for text in _strings(item))
    elif isinstance(value, (list, tuple)):
        yield from (text for item in value for text in _strings(item))


def _checked(extractors: Sequence[Extractor], device: torch.device | str) -> Sequence[Extractor]:
    """Return `extractors`, or the embedded one if there are none; refuse two with the same name."""
    names = [extractor.name for extractor in extractors]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two extractors are called {twice!r}: give them different names, or use one at a time")
    return extractors or [load_extractor("faces", device)]
