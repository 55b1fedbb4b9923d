"""Distances between samples and real images, and how much of the real images the samples cover."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.distances import check_varied, frechet_distance, kernel_distance, singular
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.features import cache_place, damaged, outdated
from genmodels.evaluation.images import Images
from genmodels.evaluation.neighbours import diversity, manifold
from genmodels.evaluation.protocol import DEFINITIONS, LEAST_N, check_count
from genmodels.evaluation.results import Score
from genmodels.reading import read_json
from genmodels.saving import from_dict
from genmodels.usage import say
from genmodels.writing import write_json

SHOWN = 64
"""Number of samples that are kept for display."""


def part(context: Context) -> Part:
    """Compute Fréchet and kernel distance, precision, recall, density, coverage and diversity."""
    images, reference = context.samples, context.reference
    assert images is not None
    context.pictures["samples"] = np.asarray(images.pixels[:SHOWN])
    absent: dict[str, str] = {}
    names = [field.name for field in fields(SetScores) if not field.name.endswith("_error")]
    with reasons(absent, ", ".join(each.measure(name) for each in context.extractors for name in names)):
        check_count(len(reference.images), reference.images.name)
    if absent:
        return Part(absent=absent)
    if context.floor is None:
        fewer = sum(map(len, reference.others)) or len(reference.images) // 2
        advice = f": choose --n {fewer}" if fewer >= LEAST_N else ""
        absent["real images, same n"] = f"there are not {len(images):,} further real images{advice}"
    scores: dict[str, Score] = {}
    for extractor in context.extractors:
        scores |= _distances(context, extractor)
    return Part(scores, absent)


def _distances(context: Context, extractor: Extractor) -> dict[str, Score]:
    """Compare samples and real images with one extractor. Each score has its floor."""
    assert context.samples is not None
    protocol = extractor.protocol(context.protocol)
    fake = compare_sets(context.samples, context.reference.images, extractor, context.features)
    # The floor is computed by the same code at the same n, so that it has the same bias.
    real = None if context.floor is None else compare_sets(*context.floor, extractor, context.features)

    def score(value: str, better: Literal["higher", "lower", "neither"], how: str, error: str = "") -> Score:
        floor = None if real is None else getattr(real, value)
        return Score(
            getattr(fake, value), better, how, protocol, error=getattr(fake, error) if error else None, floor=floor
        )

    # A set of n images has a covariance of rank n - 1.
    few = min(len(context.samples), len(context.reference.images))
    rank = singular(few, context.features(context.samples, extractor).shape[1])
    if rank:
        say(f"{extractor.measure('fd')}: {rank}, so it depends strongly on n: compare it at equal n only")
    measured = {
        "fd": score("fd", "lower", "Frechet distance of Gaussians fitted to the features" + (rank and f"; {rank}")),
        "kd": score("kd", "lower", "unbiased squared MMD of the features, cubic kernel, over all pairs", "kd_error"),
        "precision": score("precision", "higher", "share of samples within the neighbourhood of a real image (k = 3)"),
        "recall": score("recall", "higher", "share of real images within the neighbourhood of a sample (k = 3)"),
        "density": score("density", "higher", "mean number of real neighbourhoods (k = 5) around a sample, over k"),
        "coverage": score("coverage", "higher", "share of real images with a sample in their neighbourhood (k = 5)"),
        "diversity": score(
            "diversity", "neither", "mean feature distance of random pairs; compare with real images", "diversity_error"
        ),
    }
    return {extractor.measure(what): value for what, value in measured.items()}


@dataclass(frozen=True)
class SetScores:
    """Metrics of one set of images compared with another; see docs/evaluation.md."""

    fd: float
    kd: float
    kd_error: float
    precision: float
    recall: float
    density: float
    coverage: float
    diversity: float
    diversity_error: float


def compare_sets(
    images: Images, real: Images, extractor: Extractor, features: Callable[[Images, Extractor], np.ndarray]
) -> SetScores:
    """Compute all metrics of `images` compared with `real`.

    They are cached next to the features, under the fingerprints of both sets. The floor of real
    images is therefore computed once and not for every model.

    Args:
        images: images to score.
        real: real images.
        extractor: a feature extractor.
        features: returns the features of images.

    Raises:
        ValueError: if all images of a set are the same, or the extractor fails. The message is one
            line.
    """
    place = cache_place(extractor)
    file = None if place is None else place / f"{images.fingerprint}-{real.fingerprint}.json"
    if file is not None and (kept := _read(file)) is not None:
        return kept
    mine, theirs = features(images, extractor), features(real, extractor)
    check_varied(mine, images.name)
    check_varied(theirs, real.name)
    shapes = manifold(theirs, mine)
    scores = SetScores(
        frechet_distance(mine, theirs),
        *kernel_distance(mine, theirs),
        *(shapes.precision, shapes.recall, shapes.density, shapes.coverage),
        *diversity(mine),
    )
    if file is not None:
        _write(file, scores)
    return scores


def _read(file: Path) -> SetScores | None:
    """Return the cached metrics, or None if there are none that can be used."""
    try:
        kept = read_json(file)
        names = {field.name for field in fields(SetScores)}
        if kept["definitions"] != DEFINITIONS or kept["scores"].keys() != names:
            outdated(file)
            return None
        return from_dict(SetScores, kept["scores"])
    except OSError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        damaged(file, error)
        return None


def _write(file: Path, scores: SetScores) -> None:
    """Cache metrics. It is no error if they cannot be written."""
    with suppress(OSError):  # extract() has reported it
        write_json(file, {"definitions": DEFINITIONS, "scores": asdict(scores)})
