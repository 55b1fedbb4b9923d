"""Tables of the scores of several subjects: order of the columns, labels and number formats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text

from genmodels.evaluation.protocol import FULL_N, Protocol
from genmodels.evaluation.report import Cell, Heading, Numbers
from genmodels.evaluation.results import Evaluation, Score, digits

GROUPS = {
    "samples": "Samples",
    "reconstruction": "Reconstruction",
    "likelihood": "Likelihood",
    "text": "Images and text",
    "answers": "Questions and answers",
    "own": "Own metrics",
    "cost": "Cost",
}
"""Headings of the groups of scores, in the order of the tables."""
ORDER = (
    *("fid", "fd", "kid", "kd", "precision", "recall", "density", "coverage", "diversity", "diversity-lpips"),
    *("nearest-train", "copies", "realism", "outliers", "attributes", "labels", "fid-conditional", "fd-conditional"),
    *("fid-by-class", "fd-by-class", "psnr", "ssim", "lpips", "rfid", "rfd", "codebook-usage"),
    *("codebook-perplexity", "bits-per-dim", "bits-per-token", "parameters", "train-flops", "sample-flops"),
    *("network-evaluations", "images-per-second", "memory", "training-minutes"),
)
"""Order of the metrics within a group. Others follow, in the order in which they were measured."""
ABBREVIATIONS = {"fid", "fd", "kid", "kd", "rfid", "rfd", "psnr", "ssim", "lpips"}
WORDS = {
    "flops": "FLOPs",
    "bits-per-dim": "bits/dim",
    "bits-per-token": "bits/token",
    "images-per-second": "images/s",
    "zero-shot": "zero-shot",
    "zero-shot-auc": "zero-shot AUC",
    "zero-shot-probe": "zero-shot probe",
    "clip-score": "CLIP-score",
    "clip-score-shuffled": "CLIP-score, shuffled",
}
LISTED = 20
"""Largest number of classes, or attributes, of a metric that the terminal lists."""
COLUMNS = 12
"""Maximum number of columns of a table."""
JOINED = 8
"""Groups share a table if it has at most this many columns."""
ARROWS = {"higher": "\u2191", "lower": "\u2193", "neither": ""}
DASH = "\u2013"
FLOOR = "real images, same n"
"""Label of the row of floors, and key in `absent` of the reason why there are none."""


@dataclass(frozen=True)
class Column:
    """One metric of all subjects.

    Attributes:
        name: name of the metric.
        scores: one score per subject, None if it was not measured.
    """

    name: str
    scores: tuple[Score | None, ...]

    @property
    def first(self) -> Score:
        """The first score that is not None. Unit, direction, group and protocol are the same for
        all."""
        return next(score for score in self.scores if score is not None)

    @property
    def stem(self) -> str:
        """The name without that of the extractor: "fd" for "fd-faces"."""
        return self.name.removesuffix(f"-{self.first.protocol.extractor}")

    @property
    def label(self) -> str:
        """The stem as displayed: "FD", "nearest train", "train FLOPs"."""
        if self.stem in WORDS:
            return WORDS[self.stem]
        return " ".join(WORDS.get(w, w.upper() if w in ABBREVIATIONS else w) for w in self.stem.split("-"))

    @property
    def note(self) -> str:
        """The extractor, or the unit if the formatted numbers do not include it."""
        if self.stem != self.name:
            return str(self.first.protocol.extractor)
        if self.first.unit.startswith(("FLOPs", "bytes")):  # formatted with every number
            return self.first.unit.partition("/")[2].replace("image", "per image")
        return "" if self.first.unit in self.label else self.first.unit

    @property
    def title(self) -> str:
        """Label and note on one line: "FD (faces)"."""
        return f"{self.label} ({self.note})" if self.note else self.label

    @property
    def best(self) -> float | None:
        """The best value, or None if no value is better than another."""
        values = [score.value for score in self.scores if score is not None and not math.isnan(score.value)]
        if len(set(values)) < 2 or self.first.better == "neither":
            return None
        return min(values) if self.first.better == "lower" else max(values)

    @property
    def floor(self) -> str:
        """The floor, or the range of the floors if those of the subjects differ; "" if there is
        none."""
        known = sorted({score.floor for score in self.scores if score is not None and score.floor is not None})
        return " to ".join(dict.fromkeys(amount(value, self.first.unit) for value in [*known[:1], *known[-1:]]))


def columns(evaluations: Sequence[Evaluation]) -> list[Column]:
    """Return a column for every metric that was measured for any of `evaluations`, in order."""
    names = dict.fromkeys(name for e in evaluations for name in e.scores)
    unordered = [Column(name, tuple(e.scores.get(name) for e in evaluations)) for name in names]

    def place(column: Column) -> tuple[int, int]:
        return list(GROUPS).index(column.first.group), [*ORDER, column.stem].index(column.stem)

    return sorted(unordered, key=place)


def terminal_table(evaluation: Evaluation) -> Table:
    """Build the table of one evaluation for a terminal. Arrows show what is better, asterisks mark
    small n."""
    table = Table("metric", title=evaluation.subject.name, title_justify="left")
    for heading in ("value", "±", "floor"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for column in columns([evaluation]):
        score = column.first
        values = ["" if x is None else amount(x, score.unit) for x in (score.value, score.error, score.floor)]
        name = f"{column.name} {ARROWS[score.better]}".rstrip()
        table.add_row(
            name + (" *" if score.protocol.small else ""), *values, column.note if column.stem == column.name else ""
        )
        for part in list(score.each)[:LISTED]:  # as Text: a name may contain brackets
            floor = amount(score.each_floor[part]) if part in score.each_floor else ""
            table.add_row(Text(f"  {part}"), amount(score.each[part]), "", floor)
        if len(score.each) > LISTED:
            table.add_row(f"  and {len(score.each) - LISTED:,} more: see --json")
    return table


def with_training(evaluation: Evaluation) -> Evaluation:
    """Return `evaluation` with the minutes of training among its scores, if they are known."""
    minutes = evaluation.subject.training.get("minutes")
    if minutes is None:
        return evaluation
    how = "wall-clock minutes of training, on the machine on which it was trained"
    score = Score(minutes, "neither", how, Protocol(), "min", group="cost")
    return replace(evaluation, scores=evaluation.scores | {"training-minutes": score})


def amount(value: float, unit: str = "") -> str:
    """Format a number with its unit; large ones get a prefix: 2.80 M, 12.3 GFLOPs, 1.50 GiB."""
    if not math.isfinite(value):
        return digits(value)
    if unit.startswith("FLOPs"):
        return _prefixed(value, 1000, ("", "k", "M", "G", "T", "P", "E", "Z", "Y")) + "FLOPs"
    if unit == "bytes":
        return _prefixed(value, 1024, ("", "Ki", "Mi", "Gi", "Ti")) + "B"
    if not unit and abs(value) >= 1e6:
        return _prefixed(value, 1000, ("", "k", "M", "G", "T"))
    return digits(value)


def _prefixed(value: float, base: int, prefixes: Sequence[str]) -> str:
    power = 0
    while abs(value) >= 0.9995 * base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    value = float(f"{value:.3g}")
    decimals = 2 - math.floor(math.log10(abs(value))) if power else 0
    return f"{value:.{max(0, decimals)}f} {prefixes[power]}"


def numbers(evaluations: Sequence[Evaluation], shown: Sequence[Column]) -> list[Numbers]:
    """Divide the columns into sortable tables with one row per subject. Small groups share a table.

    Args:
        evaluations: evaluations with different names.
        shown: their columns, in order.
    """
    pieces: list[list[Column]] = []
    for group in GROUPS:
        inside = [column for column in shown if column.first.group == group]
        pieces += [inside[start : start + COLUMNS] for start in range(0, len(inside), COLUMNS)]
    tables: list[list[Column]] = []
    for piece in pieces:
        if tables and len(tables[-1]) + len(piece) <= JOINED:
            tables[-1] += piece
        else:
            tables.append(list(piece))
    return [_table(evaluations, table) for table in tables]


def _table(evaluations: Sequence[Evaluation], shown: Sequence[Column]) -> Numbers:
    groups = [column.first.group for column in shown]
    rows = [(e.subject.name, [_cell(e, column, i) for column in shown]) for i, e in enumerate(evaluations)]
    last = [
        Cell(c.floor, starred=c.first.protocol.small) if c.floor else Cell(DASH, title="this metric has no floor")
        for c in shown
    ]
    notes = []
    if any(score is not None and score.protocol.small for column in shown for score in column.scores):
        notes.append(
            f"* Fewer than {FULL_N:,} images on one side of the comparison. Such a value depends strongly on n: "
            "compare it only with values of exactly the same protocol."
        )
    return Numbers(
        groups=[(GROUPS[group], groups.count(group)) for group in dict.fromkeys(groups)],
        headings=[Heading(c.label, c.note, c.first.better, definition(evaluations, c)) for c in shown],
        rows=rows,
        last=(FLOOR, last) if any(column.floor for column in shown) else None,
        notes=notes,
    )


def _cell(evaluation: Evaluation, column: Column, row: int) -> Cell:
    score = column.scores[row]
    if score is None:
        return Cell(DASH, title=reason(evaluation, column))
    return Cell(
        amount(score.value, score.unit),
        value=score.value,
        note="" if score.error is None else f"± {amount(score.error, score.unit)}",
        title=score.how,
        best=score.value == column.best,
        starred=score.protocol.small,
    )


def definition(evaluations: Sequence[Evaluation], column: Column) -> str:
    """Return how a metric was computed, per subject if that differs."""
    hows = {e.subject.name: score.how for e, score in zip(evaluations, column.scores, strict=True) if score is not None}
    if len(set(hows.values())) == 1:
        return column.first.how
    return "; ".join(f"{name}: {how}" for name, how in hows.items())


def reason(evaluation: Evaluation, column: Column) -> str:
    """Return why a score is missing. A key of `absent` may name several scores: "psnr, ssim,
    lpips"."""
    if column.name == "training-minutes":
        return "not known for this subject"
    for names, why in evaluation.absent.items():
        if {column.name, column.stem, column.first.group} & set(names.split(", ")):
            return why
    return "not measured"
