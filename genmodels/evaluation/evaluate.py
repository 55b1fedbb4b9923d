"""Everything that can be measured of a model, or of images that somebody made. Features are computed once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genmodels import sampling
from genmodels.base import Generator
from genmodels.data.packed import spread_rows
from genmodels.evaluation.codebook import codebook_scores
from genmodels.evaluation.conditional import attribute_accuracy
from genmodels.evaluation.cost import cost_scores, reasons
from genmodels.evaluation.distances import frechet_distance
from genmodels.evaluation.extractors import Extractor, load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.pairs import likelihood_score, pair_scores, token_score
from genmodels.evaluation.protocol import FULL_N, Protocol, check_count, code_version
from genmodels.evaluation.reference import Reference, spread
from genmodels.evaluation.results import Evaluation, Score, Subject
from genmodels.evaluation.samples import by_extractor, fingerprint_of, sample_scores
from genmodels.modes import evaluating
from genmodels.nn.perceptual import Distance, load_lpips
from genmodels.pixels import to_float
from genmodels.types import Condition

INVERTED = 256
"""Images that are reconstructed by a search, which is slow."""
PAIRS = 16
"""Reconstructions that are kept to be looked at."""


def evaluate(
    model: Any,
    reference: Reference,
    extractors: Sequence[Extractor] = (),
    *,
    n: int = FULL_N,
    seed: int = 0,
    batch_size: int = 64,
    options: Mapping[str, Any] | None = None,
    subject: Subject | None = None,
) -> Evaluation:
    """Score `model` by all it is capable of: its samples, and where it can, reconstructions and likelihood; its cost.

    Args:
        model: on the device it shall run on.
        reference: the real images, of the model's size.
        extractors: whose features samples are compared by; the embedded one when none is given. With the first of them
            copies of training images are looked for.
        n: how many samples; reconstructions and likelihood take as many real images, if there are.
        seed: of the samples.
        batch_size: images at a time.
        options: fields of the model's Options.
        subject: what is known of the model beside.

    Raises:
        ValueError: when the images are not of the model's size, are too few, or cannot be measured; in one line.
    """
    options = dict(options or {})
    if reference.images.size != model.config.size:
        raise ValueError(
            f"the images of {reference.images.name} have {reference.images.size} px, the model makes "
            f"{model.config.size} px: choose real images of {model.config.size} px"
        )
    check_count(n, "samples")
    check_count(len(reference.images), reference.images.name)
    device = next(model.parameters()).device
    extractors = extractors or [load_extractor("faces", device)]
    _check_names(extractors)
    lpips, absent = _lpips(device)
    settings = asdict(model.options(**options))
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    images = Images(sampling.sample(model, n, seed, batch_size=batch_size, **options), f"samples of {model.family}")
    subject = replace(
        subject or Subject(model.family, model.family), seed=seed, options=chosen, fingerprint=images.fingerprint
    )
    scores, missing, pictures = sample_scores(images, reference, extractors, lpips, batch_size)
    absent |= missing
    for part in (
        _reconstruction(model, reference, extractors, lpips, n, batch_size, pictures),
        _likelihood(model, reference, n, seed, batch_size),
        _attributes(model, reference, extractors[0], n, seed, batch_size, options),
        cost_scores(model, batch_size=batch_size, seed=seed, options=options),
    ):
        scores |= part[0]
        absent |= part[1]
    return _finite(Evaluation(subject, scores, absent, _made(str(device)), pictures))


def evaluate_images(
    images: Images,
    reference: Reference,
    extractors: Sequence[Extractor] = (),
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Score images that somebody made, as the samples of a model are scored.

    Args:
        images: of the reference's size.
        reference, extractors, batch_size: see `evaluate`.
        device: where the embedded extractor runs when none is given.

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
    extractors = extractors or [load_extractor("faces", device)]
    _check_names(extractors)
    lpips, absent = _lpips(device)
    scores, missing, pictures = sample_scores(images, reference, extractors, lpips, batch_size)
    subject = Subject(images.name, "images", fingerprint=images.fingerprint, notes=images.notes)
    return _finite(Evaluation(subject, scores, absent | missing, _made(str(device)), pictures))


Part = tuple[dict[str, Score], dict[str, str]]
"""Scores by name, and what is absent, with the reason."""


def _reconstruction(
    model: Any,
    reference: Reference,
    extractors: Sequence[Extractor],
    lpips: Distance | None,
    n: int,
    batch_size: int,
    pictures: dict[str, np.ndarray],
) -> Part:
    """PSNR, SSIM, LPIPS, rFD and the use of a codebook, where the model can; adds to `pictures`."""
    if not model.can("reconstruct"):
        return {}, {"psnr": f"{model.family} does not reconstruct images"}
    originals = spread(reference.images, min(n, INVERTED if model.can("invert") else n))
    pixels = sampling.reconstruct(model, np.asarray(originals.pixels), batch_size)
    rebuilt = Images(pixels, f"reconstructions of {model.family}")
    pictures |= {"originals": np.asarray(originals.pixels[:PAIRS]), "reconstructions": pixels[:PAIRS]}
    protocol = _of(originals, reference)
    by = "-by-inversion" if model.can("invert") else ""  # another quantity, with another name
    pairs = pair_scores(np.asarray(originals.pixels), pixels, lpips, protocol, batch_size)
    scores = {name + by: score for name, score in pairs.items()}
    for extractor in extractors:
        value = frechet_distance(*(extract(part, extractor, batch_size=batch_size) for part in (rebuilt, originals)))
        how = "Frechet distance between real images and their reconstructions"
        score = Score(value, "lower", how, by_extractor(extractor, protocol), group="reconstruction")
        scores[extractor.measure("rfd" + by)] = score
    if model.can("quantise"):
        with evaluating(model), torch.inference_mode():
            scores |= codebook_scores(model, _batches(model, originals, batch_size, "codes"), protocol)
    why = f"there is no encoder: see psnr{by} and its like"
    return scores, {", ".join([*pairs, "rfd"]): why} if by else {}


def _likelihood(model: Any, reference: Reference, n: int, seed: int, batch_size: int) -> Part:
    kind = model.likelihood_kind if model.can("bits_per_dim") else None
    images = spread(reference.images, min(n, (kind and kind.images) or n))
    protocol = _of(images, reference)
    if model.can("bits_per_token"):
        with evaluating(model), torch.inference_mode():
            parts = _batches(model, images, batch_size, "bits/token")
            score = token_score(model, parts, model.config.codec_weights, protocol)
        return {"bits-per-token": score}, {"bits-per-dim": "it is the codes that have a likelihood, not the images"}
    if kind is None:
        return {}, {"bits-per-dim": f"{model.family} has no likelihood"}
    # Of fewer shades it is another quantity, under a name of its own.
    name = kind.name if kind.levels == 256 else f"{kind.name}-of-{kind.levels}-levels"
    with evaluating(model):
        batches = _batches(model, images, batch_size, "bits/dim")
        return {name: likelihood_score(model, batches, seed, protocol)}, {}


def _of(images: Images, reference: Reference) -> Protocol:
    """The protocol of what is measured on some of the real images alone."""
    return replace(reference.protocol, n=len(images), n_reference=len(images), reference=images.fingerprint)


def _attributes(
    model: Any,
    reference: Reference,
    extractor: Extractor,
    n: int,
    seed: int,
    batch_size: int,
    options: dict[str, Any],
) -> Part:
    """Whether samples have the attributes they were asked for, as a probe trained on real images sees it."""
    wanted = model.conditions.attributes
    measure = extractor.measure("attributes")
    if not wanted:
        return {}, {measure: f"this {model.family} takes no attributes"}
    if reference.train is None or reference.attributes is None or reference.train_attributes is None:
        return {}, {measure: "needs attributes of training and of held-out images"}
    if missing := [name for name in wanted if name not in reference.attribute_names]:
        return {}, {measure: f"{reference.images.name} does not know {', '.join(missing)}"}
    columns = [reference.attribute_names.index(name) for name in wanted]
    held, known = reference.attributes[:, columns], reference.train_attributes[:, columns]
    asked = held[np.arange(n) % len(held)] if n > len(held) else held[spread_rows(len(held), n)]  # those that occur
    condition = Condition(attributes=torch.from_numpy(asked).float())
    pixels = sampling.sample(model, n, seed, condition, batch_size=batch_size, **options)
    parts = (Images(pixels, "conditional samples"), reference.train, reference.images)
    fake, train, real = (extract(part, extractor, batch_size=batch_size) for part in parts)
    absent: dict[str, str] = {}
    with reasons(absent, measure):
        found = attribute_accuracy(fake, asked, train, known, real, held, wanted)
        of = replace(by_extractor(extractor, reference.protocol), n=n, train=fingerprint_of(reference.train))
        each = ", ".join(f"{name} {value:.2f}" for name, value in found.samples.items())
        how = f"balanced accuracy by a linear probe of the features; each: {each}"
        score = Score(found.mean, "higher", how, replace(of, attributes=", ".join(found.samples)), floor=found.ceiling)
        return {measure: score}, {f"{measure} of {name}": why for name, why in found.left_out.items()}
    return {}, absent


def _batches(model: Generator, images: Images, batch_size: int, what: str) -> Iterator[Tensor]:
    """(n, 3, H, W) in [-1, 1] on the model's device, behind a progress bar."""
    device = next(model.parameters()).device
    steps = range(0, len(images), batch_size)
    for start in tqdm(steps, what, math.ceil(len(images) / batch_size), disable=None, leave=False):
        yield to_float(torch.from_numpy(np.array(images.pixels[start : start + batch_size])), device)


def _lpips(device: torch.device | str) -> tuple[Distance | None, dict[str, str]]:
    """LPIPS if its weights are here, else the reason why not."""
    try:
        return load_lpips(device=device), {}
    except ValueError as error:
        return None, {"lpips": str(error)}


def _check_names(extractors: Sequence[Extractor]) -> None:
    """Refuse two extractors of one name: the numbers of one would replace the other's."""
    names = [extractor.name for extractor in extractors]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two extractors are called {twice!r}: give them different names, or use one at a time")


def _finite(evaluation: Evaluation) -> Evaluation:
    """Numbers that are none, such as the PSNR of exact copies, become absent."""
    odd = {name: f"it is {s.value}" for name, s in evaluation.scores.items() if not math.isfinite(s.value)}
    kept = {name: score for name, score in evaluation.scores.items() if name not in odd}
    return replace(evaluation, scores=kept, absent=evaluation.absent | odd)


def _made(device: str) -> dict[str, str]:
    """By what the numbers were made."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"code": code_version(), "torch": torch.__version__, "device": device, "date": date}
