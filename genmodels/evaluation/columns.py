"""Scores of several subjects as columns of numbers: in which order, under which words, with which digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from genmodels.evaluation.protocol import FULL_N, Protocol
from genmodels.evaluation.report import Cell, Heading, Numbers
from genmodels.evaluation.results import Evaluation, Score, digits

GROUPS = {
    "samples": "Samples",
    "reconstruction": "Reconstruction",
    "likelihood": "Likelihood",
    "own": "Own metrics",
    "cost": "Cost",
}
"""The heading of each group of scores, in the order they are shown."""
ORDER = (
    *("fid", "fd", "kid", "kd", "precision", "recall", "density", "coverage", "diversity", "diversity-lpips"),
    *("nearest-train", "copies", "attributes", "psnr", "ssim", "lpips", "rfid", "rfd", "codebook-usage"),
    *("codebook-perplexity", "bits-per-dim", "bits-per-token", "parameters", "train-flops", "sample-flops"),
    *("network-evaluations", "images-per-second", "memory", "training-minutes"),
)
"""Who comes first within a group; what is not named here comes after, as it was measured."""
ABBREVIATIONS = {"fid", "fd", "kid", "kd", "rfid", "rfd", "psnr", "ssim", "lpips"}
WORDS = {"flops": "FLOPs", "bits-per-dim": "bits/dim", "bits-per-token": "bits/token", "images-per-second": "images/s"}
COLUMNS = 12
"""No table has more columns of numbers."""
JOINED = 8
"""Groups stand in one table while it has no more than so many."""
ARROWS = {"higher": "\u2191", "lower": "\u2193", "neither": ""}
DASH = "\u2013"
FLOOR = "real images, same n"
"""What the row of the real images is called; also where `absent` says why there is none."""


@dataclass(frozen=True)
class Column:
    """One measure of all subjects.

    Attributes:
        name: the scores' name.
        scores: one per subject; None where it was not measured.
    """

    name: str
    scores: tuple[Score | None, ...]

    @property
    def first(self) -> Score:
        """Of the scores that are there; unit, direction, group and protocol are those of all."""
        return next(score for score in self.scores if score is not None)

    @property
    def stem(self) -> str:
        """The name without that of the extractor: "fd" of "fd-faces"."""
        return self.name.removesuffix(f"-{self.first.protocol.extractor}")

    @property
    def label(self) -> str:
        """What people call the stem: "FD", "nearest train", "train FLOPs"."""
        if self.stem in WORDS:
            return WORDS[self.stem]
        return " ".join(WORDS.get(w, w.upper() if w in ABBREVIATIONS else w) for w in self.stem.split("-"))

    @property
    def note(self) -> str:
        """The extractor, or the unit where the numbers do not carry it themselves."""
        if self.stem != self.name:
            return str(self.first.protocol.extractor)
        if self.first.unit.startswith(("FLOPs", "bytes")):  # which stand beside every number
            return self.first.unit.partition("/")[2].replace("image", "per image")
        return "" if self.first.unit in self.label else self.first.unit

    @property
    def title(self) -> str:
        """Label and note on one line: "FD (faces)"."""
        return f"{self.label} ({self.note})" if self.note else self.label

    @property
    def best(self) -> float | None:
        """The best number, or None where none is better."""
        values = [score.value for score in self.scores if score is not None and not math.isnan(score.value)]
        if len(set(values)) < 2 or self.first.better == "neither":
            return None
        return min(values) if self.first.better == "lower" else max(values)

    @property
    def floor(self) -> str:
        """The number for real images, or a span of them where the subjects' own differ; "" where there is none."""
        known = sorted({score.floor for score in self.scores if score is not None and score.floor is not None})
        return " to ".join(dict.fromkeys(amount(value, self.first.unit) for value in [*known[:1], *known[-1:]]))


def columns(evaluations: Sequence[Evaluation]) -> list[Column]:
    """All that was measured of any of `evaluations`, group by group, best known first."""
    names = dict.fromkeys(name for e in evaluations for name in e.scores)
    found = [Column(name, tuple(e.scores.get(name) for e in evaluations)) for name in names]

    def place(column: Column) -> tuple[int, int]:
        return list(GROUPS).index(column.first.group), [*ORDER, column.stem].index(column.stem)

    return sorted(found, key=place)


def terminal_table(evaluation: Evaluation) -> Table:
    """One subject's scores for a terminal: an arrow says what is better, an asterisk marks small n."""
    table = Table("measure", title=evaluation.subject.name, title_justify="left")
    for heading in ("value", "±", "real images"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for column in columns([evaluation]):
        score = column.first
        values = ["" if x is None else amount(x, score.unit) for x in (score.value, score.error, score.floor)]
        name = f"{column.name} {ARROWS[score.better]}".rstrip()
        table.add_row(
            name + (" *" if score.protocol.small else ""), *values, column.note if column.stem == column.name else ""
        )
    return table


def with_training(evaluation: Evaluation) -> Evaluation:
    """`evaluation` with the minutes of its subject's training among its scores, where they are known."""
    minutes = evaluation.subject.training.get("minutes")
    if minutes is None:
        return evaluation
    how = "minutes of training by the clock, on the machine it was trained on"
    score = Score(minutes, "neither", how, Protocol(), "min", group="cost")
    return replace(evaluation, scores=evaluation.scores | {"training-minutes": score})


def amount(value: float, unit: str = "") -> str:
    """A number with as many digits as it is worth; a large one with a prefix: 2.80 M, 12.3 GFLOPs, 1.50 GiB."""
    if not math.isfinite(value):
        return digits(value)
    if unit.startswith("FLOPs"):
        return _prefixed(value, 1000, ("", "k", "M", "G", "T", "P", "E")) + "FLOPs"
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


def numbers(evaluations: Sequence[Evaluation], found: Sequence[Column]) -> list[Numbers]:
    """The columns as sortable tables, one row per subject: a large group by itself, small ones together.

    Args:
        evaluations: with names that differ.
        found: their columns, in order.
    """
    pieces: list[list[Column]] = []
    for group in GROUPS:
        inside = [column for column in found if column.first.group == group]
        pieces += [inside[start : start + COLUMNS] for start in range(0, len(inside), COLUMNS)]
    tables: list[list[Column]] = []
    for piece in pieces:
        if tables and len(tables[-1]) + len(piece) <= JOINED:
            tables[-1] += piece
        else:
            tables.append(list(piece))
    return [_table(evaluations, table) for table in tables]


def _table(evaluations: Sequence[Evaluation], found: Sequence[Column]) -> Numbers:
    groups = [column.first.group for column in found]
    rows = [(e.subject.name, [_cell(e, column, i) for column in found]) for i, e in enumerate(evaluations)]
    last = [
        Cell(c.floor, starred=c.first.protocol.small) if c.floor else Cell(DASH, title="has no such number")
        for c in found
    ]
    notes = []
    if any(score is not None and score.protocol.small for column in found for score in column.scores):
        notes.append(
            f"* Fewer than {FULL_N:,} images on one side of the comparison: such a number depends on n, and may stand "
            "beside others of this very protocol only."
        )
    return Numbers(
        groups=[(GROUPS[group], groups.count(group)) for group in dict.fromkeys(groups)],
        headings=[Heading(c.label, c.note, c.first.better, definition(evaluations, c)) for c in found],
        rows=rows,
        last=(FLOOR, last) if any(column.floor for column in found) else None,
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
    """How the column's numbers were computed; subject by subject where that differs."""
    hows = {e.subject.name: score.how for e, score in zip(evaluations, column.scores, strict=True) if score is not None}
    if len(set(hows.values())) == 1:
        return column.first.how
    return "; ".join(f"{name}: {how}" for name, how in hows.items())


def reason(evaluation: Evaluation, column: Column) -> str:
    """Why a score is missing. Several may share a line of `absent`: "psnr, ssim, lpips"."""
    if column.name == "training-minutes":
        return "not known of this subject"
    for names, why in evaluation.absent.items():
        if {column.name, column.stem, column.first.group} & set(names.split(", ")):
            return why
    return "not measured"
