"""Measure prompts that no training caption contains: pairs of attributes, and a negative prompt.

    python benchmarks/prompts.py runs/text --data packed/celeba64 --guidance 3 --json prompts.json

For each pair that training captions never state together (`grammar.HELD_OUT_PAIRS`), prompts state
the presence or the absence of both, in all four ways, in templates of tests. A linear probe of real
faces says what the samples show. Chance is 0.5 for an attribute and 0.25 for a pair. Then faces are
sampled with a hat as the negative prompt, and their share of hats is compared with that of faces
without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import tyro
from shared import RunSettings

from genmodels import sampling
from genmodels.conditions import condition_of
from genmodels.data.captions import caption, parse
from genmodels.data.grammar import FACTS, HELD_OUT_PAIRS
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.probe import predictions, standardised

SIGNS = tuple(product((1, -1), repeat=2))
"""Presence (1) and absence (-1) of both attributes."""


@dataclass(frozen=True)
class Settings(RunSettings):
    """The model must read text. `n` is the number of samples of a pair, and of the negative prompt."""

    n: int = 128
    guidance: float = 3.0
    """Guidance of all samples."""
    negative: str = "a person wearing a hat"
    """The negative prompt."""


def main(settings: Settings) -> None:
    s = settings
    model, data = s.open()
    if not model.can("tokenize"):
        raise SystemExit(f"{s.run}: this {model.family} was trained without text")
    pairs = [pair for pair in HELD_OUT_PAIRS if {*pair} <= {*data.attribute_names}]
    names = [*dict.fromkeys((*(name for pair in pairs for name in pair), "Wearing_Hat"))]
    probe = Probe(data.split("train"), names)
    rows = [pair_row(s, model, probe, pair, 1 + k) for k, pair in enumerate(pairs)]
    for row in rows:
        (first, a), (second, b) = row["accuracy"].items()
        print(f"{first} and {second}: {a:.2f} and {b:.2f}, both right {row['both']:.2f}")
    joint, each = (float(np.mean([row[key] for row in rows])) for key in ("both", "mean"))
    print(f"mean: {each:.2f} (chance 0.5), both right {joint:.2f} (chance 0.25)")
    hats = negative_row(s, model, probe)
    print("share of hats: " + ", ".join(f"{key} {value:.3f}" for key, value in hats.items()))
    s.write(rows, guidance=s.guidance, mean=each, both=joint, hats=hats)


class Probe:
    """Linear probes of attributes in FD-faces' features.

    Args:
        data: training images with attributes.
        names: the attributes.
    """

    def __init__(self, data: Any, names: Sequence[str]):
        self.extractor = load_extractor("faces")
        self.train = extract(Images(data.images, "train"), self.extractor)
        self.known = {name: np.asarray(data.attributes)[:, data.attribute_names.index(name)] for name in names}

    def shows(self, samples: np.ndarray, name: str) -> np.ndarray:
        """Return whether samples (N, H, W, 3) show an attribute: -1 or +1, (N,)."""
        features = extract(Images(samples, "samples"), self.extractor, progress=False, cached=False)
        known = self.known[name]
        train, others = standardised(self.train, features)
        return predictions(train[known != 0], known[known != 0], others)[0]


def pair_row(s: Settings, model: Any, probe: Probe, pair: tuple[str, str], seed: int) -> dict[str, Any]:
    """Sample with the four combinations of a pair, and return how often the probe agrees."""
    asked = np.array([SIGNS[i % len(SIGNS)] for i in range(s.n)])  # (N, 2)
    texts = [stating(dict(zip(pair, row, strict=True)), i) for i, row in enumerate(asked.tolist())]
    samples = sampling.sample(
        model, s.n, seed, condition_of(model, {"prompt": texts}, s.n), guidance=s.guidance, progress=False
    )
    s.save_samples("-".join(pair), samples)
    right = np.stack([probe.shows(samples, name) == asked[:, k] for k, name in enumerate(pair)], axis=1)  # (N, 2)
    accuracy = {name: balanced(right[:, k], asked[:, k]) for k, name in enumerate(pair)}
    together = (asked == [FACTS[name].sign for name in pair]).all(1)
    return {
        "pair": pair,
        "accuracy": accuracy,
        "mean": float(np.mean([*accuracy.values()])),
        "both": float(right.all(1).mean()),  # the four combinations are equally frequent
        "both when stated together": float(right[together].all(1).mean()),
        "prompts": texts[: len(SIGNS)],
    }


def stating(values: dict[str, int], index: int) -> str:
    """Return a caption in a template of tests that states all of `values` and nothing else."""
    for view in range(100_000):  # the absence of rare attributes is rarely stated
        text = caption(values, seed=0, index=index, view=view, split="test", length="long")
        if parse(text) == values:
            return text
    raise SystemExit(f"no caption states {values}")


def balanced(right: np.ndarray, asked: np.ndarray) -> float:
    """Return the mean of the accuracies where +1 and where -1 was asked for."""
    return float(np.mean([right[asked == value].mean() for value in (1, -1)]))


def negative_row(s: Settings, model: Any, probe: Probe) -> dict[str, float]:
    """Return the share of faces with a hat: without a condition, with a prompt, and with a negative."""

    def share(prompt: str, **options: Any) -> float:
        condition = condition_of(model, {"prompt": prompt}, s.n) if prompt else None
        samples = sampling.sample(model, s.n, 0, condition, progress=False, **options)
        return float((probe.shows(samples, "Wearing_Hat") == 1).mean())

    return {
        "unconditional": share(""),
        "a photo of a person": share("a photo of a person", guidance=s.guidance),
        f"negative {s.negative}": share("a photo of a person", guidance=s.guidance, negative=s.negative),
    }


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
