"""Scores, and all scores of one model or set of images: kept as JSON, and fit to stand side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genmodels.evaluation.protocol import Protocol, check_equal
from genmodels.saving import from_dict, read_json

FORMAT = 2
"""Version of the JSON. A reader refuses another one."""


@dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        value: the number.
        better: whether a "higher" or a "lower" value is better, or "neither".
        how: what exactly was computed.
        protocol: what it depends on beside what was measured.
        unit: "dB", "bits/dim", "images/s" ... or "" for a plain number.
        error: its standard error, where one is known.
        floor: the same number for real images in place of the measured ones, at the same n: as good as it gets.
        group: the heading it stands under.
    """

    value: float
    better: Literal["higher", "lower", "neither"]
    how: str
    protocol: Protocol
    unit: str = ""
    error: float | None = None
    floor: float | None = None
    group: Literal["samples", "reconstruction", "likelihood", "cost"] = "samples"


@dataclass(frozen=True)
class Subject:
    """What was measured.

    Attributes:
        name: for people, such as "runs/vae".
        kind: the family of a model, or "images".
        weights: "EMA", "raw", or "" where nobody knows or there are none.
        seed: of the samples; None for images that were given.
        options: of the sampler.
        fingerprint: 16 hex digits that identify the images.
        training: what is known of how it was trained: "minutes", "images", "steps".
        notes: what was done to given images: "resized from 128 to 64 px, lanczos".
    """

    name: str
    kind: str
    weights: str = ""
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    training: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of one subject.

    Attributes:
        subject: what was measured.
        scores: by name, such as "fd-faces".
        absent: what was not measured, and why.
        made: by what: "code", "torch", "device", "date".
        pictures: uint8 (N, H, W, 3) by name; they are no part of the JSON. "samples" (the first of a seed); "originals"
            and "reconstructions"; "nearest samples" and "nearest train" (the closest pairs).
    """

    subject: Subject
    scores: dict[str, Score]
    absent: dict[str, str]
    made: dict[str, str]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def to_json(self) -> str:
        """The same as JSON text, each score with its protocol."""
        return json.dumps({"format": FORMAT, **self.plain()}, indent=2, allow_nan=False) + "\n"

    def plain(self) -> dict[str, Any]:
        """The same as numbers, text, lists and dicts."""
        return {
            "subject": asdict(self.subject),
            "scores": {name: asdict(score) for name, score in self.scores.items()},
            "absent": self.absent,
            "made": self.made,
        }


def read_evaluation(path: Path) -> Evaluation:
    """What `to_json` wrote to the file `path`.

    Raises:
        ValueError: when it is absent, no JSON, or not such a file; in one line.
    """
    try:
        text = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    if not isinstance(text, dict) or not {"format", "subject", "scores", "absent", "made"} <= text.keys():
        raise ValueError(f"{path} was not written by `genmodels evaluate --json`")
    if text["format"] != FORMAT:
        raise ValueError(f"{path} has format {text['format']}, this genmodels reads format {FORMAT}: evaluate again")
    try:
        scores = {name: from_dict(Score, score, f"{path}: {name}") for name, score in text["scores"].items()}
        subject = from_dict(Subject, text["subject"], str(path))
        return Evaluation(subject, scores, dict(text["absent"]), dict(text["made"]))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): evaluate again") from None


def comparable(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """`evaluations`, fit to be put side by side: speeds of different machines, and probabilities of different codecs'
    codes, are moved to `absent`.

    Raises:
        ValueError: when a score that two of them have was measured under different protocols.
    """
    fit = [replace(e, scores=dict(e.scores), absent=dict(e.absent)) for e in evaluations]
    for name in sorted({name for e in fit for name in e.scores}):
        having = [e for e in fit if name in e.scores]
        if len({e.scores[name].protocol.machine for e in having}) > 1:
            for e in having:
                e.absent[name] = f"measured on {e.scores.pop(name).protocol.machine}, others on another machine"
        elif len({e.scores[name].protocol.alphabet for e in having}) > 1:
            for e in having:
                e.absent[name] = (
                    f"of the codes of codec {e.scores.pop(name).protocol.alphabet}, others of another codec"
                )
        else:
            check_equal(name, [e.subject.name for e in having], [e.scores[name].protocol for e in having])
    return fit


def digits(value: float) -> str:
    """A number with as many digits as it is worth: 0.00495, 0.0123, 4.320, 12.35, 1,234."""
    if not np.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) >= 1e6:
        return f"{value:.4g}"
    if abs(value) < 0.01:
        return f"{value:.3g}"
    places = 4 - min(4, len(str(int(abs(value)))) - (abs(value) < 1))
    return f"{value:,.{places}f}"
