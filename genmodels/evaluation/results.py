"""Scores, and the evaluation of one model or set of images, stored as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genmodels.evaluation.protocol import Protocol, check_equal
from genmodels.reading import read_json
from genmodels.saving import from_dict

FORMAT = 2
"""Version of the JSON. Other versions are refused."""
OF_CLASS = "samples of class "
"""Beginning of the names of the pictures that show one class."""
EXTREMES = ("least realistic", "most realistic")
"""Names of the pictures of the samples with the lowest and with the highest realism."""


@dataclass(frozen=True)
class Score:
    """One measured value.

    Attributes:
        value: the value.
        better: whether a "higher" or a "lower" value is better, or "neither" if that is not known.
        how: definition of the metric.
        protocol: everything it depends on in addition to what was measured.
        unit: "dB", "bits/dim", "images/s" ... or "" for a plain number.
        error: standard error, if it is known.
        floor: the same metric measured between real images and other real images, at the same n, or
            another value to compare with, which `how` describes.
        each: the parts that `value` is the mean of, by class or attribute; {} if there are none.
        each_floor: the floors of these parts that are known.
        group: group of the tables it belongs to.
    """

    value: float
    better: Literal["higher", "lower", "neither"]
    how: str
    protocol: Protocol
    unit: str = ""
    error: float | None = None
    floor: float | None = None
    group: Literal["samples", "reconstruction", "likelihood", "text", "answers", "own", "cost"] = "samples"
    each: dict[str, float] = field(default_factory=dict)
    each_floor: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """The model or set of images that was measured.

    Attributes:
        name: display name, such as "runs/vae".
        kind: family of the model, or "images".
        weights: "EMA", "raw", or "" if that is not known or there are none.
        seed: seed of the samples; None for given images.
        options: sampling options.
        candidates: number of candidates per sample, of which the best one was kept.
        best_by: what the candidates were compared by; "" if there was one.
        fingerprint: 16 hex digits that identify the images.
        training: what is known about the training: "minutes", "images", "steps".
        notes: how given images were converted, such as "resized from 128 to 64 px, lanczos", and
            which extractors took part in making the samples of a model.
    """

    name: str
    kind: str
    weights: str = ""
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    candidates: int = 1
    best_by: str = ""
    fingerprint: str = ""
    training: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def choice(self) -> str:
        """How each sample was chosen: "best of 4 by ..."; "" if one was drawn."""
        return f"best of {self.candidates} by {self.best_by}" if self.candidates > 1 else ""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of one subject.

    Attributes:
        subject: what was measured.
        scores: scores by name, such as "fd-faces".
        absent: reasons why scores are missing, by name.
        made: versions and date of the measurement: "code", "torch", "device", "date".
        pictures: uint8 (N, H, W, 3) by name, which are not stored in the JSON: "samples" (the first
            ones), "originals" and "reconstructions", "nearest samples" and "nearest train" (the
            closest pairs), "least realistic" and "most realistic" samples, and "samples of class
            NAME" for each of a few classes.
    """

    subject: Subject
    scores: dict[str, Score]
    absent: dict[str, str]
    made: dict[str, str]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the evaluation as JSON text, each score with its protocol."""
        return json.dumps({"format": FORMAT, **self.plain()}, indent=2, allow_nan=False) + "\n"

    def plain(self) -> dict[str, Any]:
        """Return the evaluation as numbers, strings, lists and dicts."""
        return {
            "subject": asdict(self.subject),
            "scores": {name: asdict(score) for name, score in self.scores.items()},
            "absent": self.absent,
            "made": self.made,
        }


def read_evaluation(path: Path) -> Evaluation:
    """Read the evaluation that `to_json` wrote to the file `path`.

    Raises:
        ValueError: if the file does not exist, is not JSON, or is not an evaluation. The message is
            one line.
    """
    try:
        text = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    if not isinstance(text, dict) or not {"format", "subject", "scores", "absent", "made"} <= text.keys():
        raise ValueError(f"{path} was not written by `genmodels evaluate --json`")
    if text["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {str(text['format'])[:20]}, this genmodels reads format {FORMAT}: evaluate again"
        )
    return Evaluation(
        from_dict(Subject, text["subject"], str(path)),
        from_dict(dict[str, Score], text["scores"], str(path)),
        from_dict(dict[str, str], text["absent"], str(path)),
        from_dict(dict[str, str], text["made"], str(path)),
    )


def comparable(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return `evaluations` with only the scores that can be compared.

    Speeds that were measured on different machines, and likelihoods of the codes of different
    codecs, are moved to `absent`.

    Raises:
        ValueError: if a score that two of them have was measured under different protocols.
    """
    shown = [replace(e, scores=dict(e.scores), absent=dict(e.absent)) for e in evaluations]
    for name in sorted({name for e in shown for name in e.scores}):
        having = [e for e in shown if name in e.scores]
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
    return shown


def digits(value: float) -> str:
    """Format a number with three to five significant digits: 0.00495, 0.0123, 4.320, 12.35,
    1,234."""
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
