"""What compute at sampling time buys: quality against steps, model size, guidance and search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genmodels import sampling
from genmodels.candidates import BestOf
from genmodels.conditions import Condition, condition_of
from genmodels.evaluation.cost import FEW, sampling_operations
from genmodels.evaluation.distances import frechet, moments
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.realism import most_realistic
from genmodels.evaluation.reference import Reference
from genmodels.nn.operations import counting
from genmodels.pictures import save_images, to_uint8
from genmodels.scaling.search import search
from genmodels.types import Noise

ROUNDS = 4
"""Number of moves of a search over noises, among which its candidates are divided."""


@dataclass(frozen=True)
class Setting:
    """How samples are drawn.

    Attributes:
        method: "sample", "best-of" (n independent candidates) or "search" (over noises).
        candidates: number of candidates per image.
        options: sampling options as (name, value), such as (("steps", 8),).
    """

    method: str = "sample"
    candidates: int = 1
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        chosen = [f"{name} {value}" for name, value in self.options]
        return ", ".join([*chosen, *([f"{self.method} {self.candidates}"] if self.candidates > 1 else [])]) or "default"


@dataclass(frozen=True)
class Point:
    """Quality and cost of one setting of one model.

    Attributes:
        model: name of the model.
        setting: how samples were drawn, in words.
        method: as in `Setting`.
        candidates: number of candidates per image.
        parameters: number of all parameters.
        evaluations: network evaluations per image, those of all candidates together.
        flops: FLOPs per image, of the model and of the verifier for all candidates.
        verifier_flops: those of the verifier alone.
        distance: Fréchet distance to the real images by the judge.
    """

    model: str
    setting: str
    method: str
    candidates: int
    parameters: int
    evaluations: int
    flops: float
    verifier_flops: float
    distance: float


def settings_of(
    model: Any, steps: Sequence[int], guidance: Sequence[float], candidates: Sequence[int]
) -> list[Setting]:
    """Return the settings to measure of a model: every combination of steps, guidance scale, and number
    of candidates, chosen among independent ones or by a search.

    Options that a model does not have are left out. A search has a whole number of neighbours in each
    of its `ROUNDS`, and therefore at most as many candidates.
    """
    names = {field.name for field in fields(model.options_class)}
    plain: list[tuple[tuple[str, Any], ...]] = [()]
    if "steps" in names:
        plain = [(("steps", value),) for value in steps]
    if "guidance" in names and not model.conditions.is_empty:
        plain = [(*options, ("guidance", value)) for options in plain for value in guidance]
    found = [Setting(options=options) for options in plain]
    for count in sorted(set(candidates) - {1}):
        for options in plain:
            found.append(Setting("best-of", count, options))
            if count > ROUNDS:
                found.append(Setting("search", 1 + ROUNDS * ((count - 1) // ROUNDS), options))
    return found


def measure(
    name: str,
    model: Any,
    settings: Sequence[Setting],
    reference: Reference,
    judge: Extractor,
    verifier: Extractor | None,
    n: int,
    seed: int = 0,
    batch_size: int = 64,
    save: Path | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> list[Point]:
    """Measure quality and cost of settings of a model.

    Args:
        name: name of the model.
        model: the model, on the device it should run on.
        settings: how to draw the samples.
        reference: real images, with training images for the verifier.
        judge: extractor of the Fréchet distance.
        verifier: extractor that chooses among candidates by their realism; None if no setting has
            candidates.
        n: number of samples.
        seed: seed of the samples.
        batch_size: number of images computed at a time.
        save: folder for the samples as .npy, so that another judge can score them. None: they are
            not kept.
        say: called with a line for each setting.

    Raises:
        ValueError: if the judge is the verifier, or there are no training images for the verifier.
    """
    if verifier is not None:
        check_independent(judge, verifier)
    real = moments(extract(reference.images, judge, batch_size=batch_size))
    best = None
    if verifier is not None and any(setting.candidates > 1 for setting in settings):
        if reference.train is None:
            raise ValueError("the verifier compares candidates with training images, and these are not known")
        best = most_realistic(2, reference.train, verifier, batch_size)
    parameters = sum(p.numel() for p in model.parameters())
    each = verifier_operations(verifier, model.config.size) if verifier is not None else 0.0
    points = []
    drawn: dict[Setting, np.ndarray] = {}
    for setting in settings:
        if setting not in drawn:
            alike = [other for other in settings if other.options == setting.options]
            say(f"{name}: {', '.join(map(str, alike))}")
            drawn |= draw(model, alike, best, n, seed, batch_size)
        images = drawn.pop(setting)
        operations, calls = sampling_operations(
            model, partial(sampling.sample, model, FEW, progress=False, **dict(setting.options))
        )
        chosen = setting.candidates if setting.candidates > 1 else 0
        flops = setting.candidates * operations / FEW + chosen * each
        distance = frechet(moments(extract(Images(images, "samples"), judge, progress=False, cached=False)), real)
        points.append(
            Point(
                name,
                str(setting),
                setting.method,
                setting.candidates,
                parameters,
                calls * setting.candidates,
                flops,
                chosen * each,
                distance,
            )
        )
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
            save_images(save / f"{_plain(name)}-{_plain(str(setting))}.npy", images)
    return points


def check_independent(judge: Extractor, verifier: Extractor) -> None:
    """Refuse a judge that is the verifier: choosing by a score raises that score, whatever it is worth.

    Raises:
        ValueError: if both have the same name and weights.
    """
    if (judge.name, judge.weights) == (verifier.name, verifier.weights):
        raise ValueError(
            f"{judge.name} would judge the samples that it chose: give another --judge or --verifier, such as "
            "--verifier clip=toyfaces/clip"
        )


def draw(
    model: Any, settings: Sequence[Setting], best: BestOf | None, n: int, seed: int, batch_size: int
) -> dict[Setting, np.ndarray]:
    """Sample `n` images, uint8 (n, H, W, 3), for each of some settings with the same options.

    The best of 2, 4, ... candidates are chosen among the same candidates, which are drawn once.
    """
    options = model.options(**dict(settings[0].options))
    searches = [setting for setting in settings if setting.method == "search"]
    counts = {setting.candidates: setting for setting in settings if setting.method != "search"}
    chosen = None if best is None else replace(best, count=max(counts, default=1))
    parts: dict[Setting, list[np.ndarray]] = {setting: [] for setting in settings}
    with torch.inference_mode():
        for start in range(0, n, batch_size):
            rows = range(start, min(start + batch_size, n))
            condition = condition_of(model, None, len(rows)).to(model.device)

            def noise(candidate: int, rows: range = rows) -> Noise:
                return Noise.for_images(seed, rows, model.device, candidate)

            def sampled(noise: Noise, condition: Condition = condition) -> np.ndarray:
                return to_uint8(model.sample(noise, condition, options))

            candidates = chosen.improve(lambda k: sampled(noise(k))) if chosen else [sampled(noise(0))]
            for count, images in enumerate(candidates, 1):
                if count in counts:
                    parts[counts[count]].append(images.copy())
            for setting in searches:
                assert best is not None
                neighbours = (setting.candidates - 1) // ROUNDS
                parts[setting].append(search(sampled, best.score, noise, ROUNDS, neighbours))
    return {setting: np.concatenate(images) for setting, images in parts.items()}


def verifier_operations(verifier: Extractor, size: int) -> float:
    """Count the FLOPs of the verifier for one image of `size` pixels a side."""
    pixels = torch.zeros(FEW, 3, size, size, dtype=torch.uint8, device=verifier.device)
    with torch.inference_mode(), counting() as counter:
        verifier.network(pixels)
    return counter.get_total_flops() / FEW


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in both FLOPs and distance, in order of FLOPs."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.flops, p.distance)):
        if not found or point.distance < found[-1].distance:
            found.append(point)
    return found


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name).strip("-")
