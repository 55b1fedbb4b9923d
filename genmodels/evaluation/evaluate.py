"""Everything that can be measured of a model, or of images that somebody made. Features are computed once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genmodels import sampling
from genmodels.base import Generator, evaluating
from genmodels.data.batches import to_float
from genmodels.evaluation.codebook import codebook_scores
from genmodels.evaluation.conditional import attribute_accuracy
from genmodels.evaluation.cost import cost_scores
from genmodels.evaluation.distances import check_varied, frechet_distance, kernel_distance
from genmodels.evaluation.extractors import Extractor, load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.neighbours import diversity, manifold, memorisation
from genmodels.evaluation.pairs import likelihood_score, lpips_diversity, pair_scores
from genmodels.evaluation.protocol import FULL_N, Protocol, check_count, code_version
from genmodels.evaluation.reference import Reference, spread
from genmodels.evaluation.results import Evaluation, Score, Subject
from genmodels.nn.perceptual import Distance, load_lpips
from genmodels.types import Condition, Likelihood, Quantises, Reconstructs

SHOWN = 64
"""Samples that are kept to be looked at."""
PAIRS = 16
"""Reconstructions, and nearest neighbours, that are kept to be looked at."""


def evaluate(
    model: Generator,
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
    extractors = extractors or [load_extractor("faces", next(model.parameters()).device)]
    lpips, absent = _lpips(model)
    chosen = asdict(model.options(**options))
    images = Images(sampling.sample(model, n, seed, batch_size=batch_size, **options), f"samples of {model.family}")
    subject = replace(
        subject or Subject(model.family, model.family), seed=seed, options=chosen, fingerprint=images.fingerprint
    )
    scores, missing, pictures = _samples(images, reference, extractors, lpips, batch_size)
    absent |= missing
    for part in (
        _reconstruction(model, reference, extractors, lpips, n, batch_size, pictures),
        _likelihood(model, reference, n, seed, batch_size),
        _attributes(model, reference, extractors[0], n, seed, batch_size, options),
        cost_scores(model, batch_size=batch_size, seed=seed, options=options),
    ):
        scores |= part[0]
        absent |= part[1]
    return Evaluation(subject, scores, absent, _made(model), pictures)


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
    lpips, absent = _lpips(None, device)
    scores, missing, pictures = _samples(images, reference, extractors, lpips, batch_size)
    subject = Subject(images.name, "images", fingerprint=images.fingerprint)
    return Evaluation(subject, scores, absent | missing, _made(None), pictures)


Part = tuple[dict[str, Score], dict[str, str]]
"""Scores by name, and what is absent, with the reason."""


def _samples(
    images: Images, reference: Reference, extractors: Sequence[Extractor], lpips: Distance | None, batch_size: int
) -> tuple[dict[str, Score], dict[str, str], dict[str, np.ndarray]]:
    """Scores of images as samples, what is absent, and pictures."""
    scores: dict[str, Score] = {}
    absent: dict[str, str] = {}
    pictures = {"samples": np.asarray(images.pixels[:SHOWN])}
    floor = None
    if reference.others is not None and len(reference.others) >= len(images):
        floor = spread(reference.others, len(images))
    else:
        held = "none" if reference.others is None else f"{len(reference.others):,}"
        absent["real images, same n"] = (
            f"needs {len(images):,} further real images beside the {len(reference.images):,} compared with; "
            f"there are {held}"
        )
    protocol = replace(reference.protocol, n=len(images))
    for extractor in extractors:
        scores |= _distances(images, reference, floor, extractor, protocol, batch_size)
    if reference.train is not None:
        found, closest = _copies(images, reference, extractors[0], protocol, batch_size)
        scores |= found
        pictures |= closest
    else:
        absent[extractors[0].measure("nearest-train")] = "nobody said which images the model learnt from"
    if lpips is not None:
        value, error = lpips_diversity(np.asarray(images.pixels), lpips)
        real = None if floor is None else lpips_diversity(np.asarray(floor.pixels), lpips)[0]
        how = "mean LPIPS (v0.1, AlexNet) of random pairs; compare with real images, higher is not always better"
        scores["diversity-lpips"] = Score(value, "neither", how, protocol, error=error, floor=real)
    return scores, absent, pictures


def _distances(
    images: Images,
    reference: Reference,
    floor: Images | None,
    extractor: Extractor,
    protocol: Protocol,
    batch_size: int,
) -> dict[str, Score]:
    """Distances between samples and real images by one extractor, each beside its real-versus-real floor."""
    protocol = replace(protocol, extractor=extractor.name, weights=extractor.weights, resize=extractor.resize)
    fake = extract(images, extractor, batch_size=batch_size)
    real = extract(reference.images, extractor, batch_size=batch_size)
    check_varied(fake, images.name)
    check_varied(real, reference.images.name)
    # Real images in the samples' place: the same code, so the same bias by n.
    sets = [fake] if floor is None else [fake, extract(floor, extractor, batch_size=batch_size)]
    frechet = [frechet_distance(one, real) for one in sets]
    kernel = [kernel_distance(one, real) for one in sets]
    shapes = [manifold(real, one) for one in sets]
    spreads = [diversity(one) for one in sets]

    def second(values: list[Any]) -> Any:
        return values[1] if len(values) > 1 else None

    found = {
        "fd": Score(frechet[0], "lower", "Frechet distance of Gaussians fitted to the features", protocol,
                    floor=second(frechet)),
        "kd": Score(kernel[0][0], "lower", "unbiased squared MMD of the features, cubic kernel, over all pairs",
                    protocol, error=kernel[0][1], floor=second([value for value, _ in kernel])),
        "precision": Score(shapes[0].precision, "higher", "share of samples within reach of real images (k = 3)",
                           protocol, floor=second([shape.precision for shape in shapes])),
        "recall": Score(shapes[0].recall, "higher", "share of real images within reach of samples (k = 3)",
                        protocol, floor=second([shape.recall for shape in shapes])),
        "density": Score(shapes[0].density, "higher", "real neighbourhoods a sample lies in, over k = 5; can pass 1",
                         protocol, floor=second([shape.density for shape in shapes])),
        "coverage": Score(shapes[0].coverage, "higher", "share of real images with a sample in their neighbourhood "
                          "(k = 5)", protocol, floor=second([shape.coverage for shape in shapes])),
        "diversity": Score(spreads[0][0], "neither", "mean feature distance of random pairs; compare with real images",
                           protocol, error=spreads[0][1], floor=second([value for value, _ in spreads])),
    }  # fmt: skip
    return {extractor.measure(what): score for what, score in found.items()}


def _copies(
    images: Images, reference: Reference, extractor: Extractor, protocol: Protocol, batch_size: int
) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
    """Whether samples lie nearer to training images than unseen real images do; the nearest pairs."""
    assert reference.train is not None
    train = extract(reference.train, extractor, batch_size=batch_size)
    fake, unseen = (extract(part, extractor, batch_size=batch_size) for part in (images, reference.images))
    found = memorisation(fake, train, unseen)
    protocol = replace(protocol, extractor=extractor.name, weights=extractor.weights, resize=extractor.resize)
    pictures = {
        "nearest samples": np.asarray(images.pixels)[found.order[:PAIRS]],
        "nearest train": np.asarray(reference.train.pixels)[found.partner[found.order[:PAIRS]]],
    }
    ratio = "median distance to the nearest training image, over that of unseen real images; well under 1: copies"
    share = "share of samples nearer to a training image than 99 % of unseen real images are; well over 0.01: copies"
    return {
        extractor.measure("nearest-train"): Score(found.ratio, "neither", ratio, protocol, floor=1.0),
        extractor.measure("copies"): Score(found.share, "neither", share, protocol, floor=0.01),
    }, pictures


def _reconstruction(
    model: Generator,
    reference: Reference,
    extractors: Sequence[Extractor],
    lpips: Distance | None,
    n: int,
    batch_size: int,
    pictures: dict[str, np.ndarray],
) -> Part:
    """PSNR, SSIM, LPIPS, rFD and the use of a codebook, where the model can; adds to `pictures`."""
    if not isinstance(model, Reconstructs):
        return {}, {"psnr": f"{model.family} does not reconstruct images"}
    originals = spread(reference.images, n)
    pixels = sampling.reconstruct(model, np.asarray(originals.pixels), batch_size)
    rebuilt = Images(pixels, f"reconstructions of {model.family}")
    pictures |= {"originals": np.asarray(originals.pixels[:PAIRS]), "reconstructions": pixels[:PAIRS]}
    protocol = replace(reference.protocol, n=len(originals))
    scores = pair_scores(np.asarray(originals.pixels), pixels, lpips, protocol, batch_size)
    for extractor in extractors:
        value = frechet_distance(*(extract(part, extractor, batch_size=batch_size) for part in (rebuilt, originals)))
        of = replace(protocol, extractor=extractor.name, weights=extractor.weights, resize=extractor.resize)
        how = "Frechet distance between real images and their reconstructions"
        scores[extractor.measure("rfd")] = Score(value, "lower", how, of, floor=0.0, group="reconstruction")
    if isinstance(model, Quantises):
        with evaluating(model), torch.inference_mode():
            scores |= codebook_scores(model, _batches(model, originals, batch_size, "codes"), protocol)
    return scores, {}


def _likelihood(model: Generator, reference: Reference, n: int, seed: int, batch_size: int) -> Part:
    if not isinstance(model, Likelihood):
        return {}, {"bits-per-dim": f"{model.family} has no likelihood"}
    images = spread(reference.images, n)
    protocol = replace(reference.protocol, n=len(images))
    with evaluating(model):
        return {
            "bits-per-dim": likelihood_score(model, _batches(model, images, batch_size, "bits/dim"), seed, protocol)
        }, {}


def _attributes(
    model: Generator,
    reference: Reference,
    extractor: Extractor,
    n: int,
    seed: int,
    batch_size: int,
    options: dict[str, Any],
) -> Part:
    """Whether samples have the attributes they were asked for, as a probe trained on real images sees it."""
    wanted = asdict(model.config).get("attributes", ())
    measure = extractor.measure("attributes")
    if not wanted:
        return {}, {measure: f"this {model.family} takes no attributes"}
    if reference.train is None or reference.attributes is None or reference.train_attributes is None:
        return {}, {measure: "needs attributes of training and of held-out images"}
    if missing := [name for name in wanted if name not in reference.attribute_names]:
        return {}, {measure: f"{reference.images.name} does not know {', '.join(missing)}"}
    columns = [reference.attribute_names.index(name) for name in wanted]
    held, known = reference.attributes[:, columns], reference.train_attributes[:, columns]
    asked = held[np.arange(n) % len(held)]  # combinations that occur
    condition = Condition(attributes=torch.from_numpy(asked).float())
    pixels = sampling.sample(model, n, seed, condition, batch_size=batch_size, **options)
    parts = (Images(pixels, "conditional samples"), reference.train, reference.images)
    fake, train, real = (extract(part, extractor, batch_size=batch_size) for part in parts)
    found = attribute_accuracy(fake, asked, train, known, real, held, wanted)
    of = replace(reference.protocol, n=n, extractor=extractor.name, weights=extractor.weights, resize=extractor.resize)
    each = ", ".join(f"{name} {value:.2f}" for name, value in found.samples.items())
    how = f"balanced accuracy by a linear probe of the features; each: {each}"
    return {measure: Score(found.mean, "higher", how, of, floor=found.ceiling)}, {}


def _batches(model: Generator, images: Images, batch_size: int, what: str) -> Iterator[Tensor]:
    """(n, 3, H, W) in [-1, 1] on the model's device, behind a progress bar."""
    device = next(model.parameters()).device
    steps = range(0, len(images), batch_size)
    for start in tqdm(steps, what, math.ceil(len(images) / batch_size), disable=None, leave=False):
        yield to_float(torch.from_numpy(np.array(images.pixels[start : start + batch_size])), device)


def _lpips(model: Generator | None, device: torch.device | str = "cpu") -> tuple[Distance | None, dict[str, str]]:
    """LPIPS if its weights are here, else the reason why not."""
    try:
        return load_lpips(device=device if model is None else next(model.parameters()).device), {}
    except ValueError as error:
        return None, {"lpips": str(error)}


def _made(model: Generator | None) -> dict[str, str]:
    """By what the numbers were made."""
    device = "cpu" if model is None else str(next(model.parameters()).device)
    return {
        "code": code_version(),
        "torch": torch.__version__,
        "device": device,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
