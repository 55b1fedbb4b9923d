"""Comparison of several evaluations: a page, the same numbers as JSON and CSV, and figures as
PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from genmodels import __version__
from genmodels.evaluation.columns import columns, with_training
from genmodels.evaluation.figures import write_figures
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.report import page
from genmodels.evaluation.report_folder import check_place, report_folder
from genmodels.evaluation.results import FORMAT, Evaluation, Subject, comparable
from genmodels.evaluation.sections import facts, lead, sections, title
from genmodels.writing import write_text


def write_report(evaluations: Sequence[Evaluation], out: Path, command: str = "", force: bool = False) -> Path:
    """Write a comparison of `evaluations` into `out`.

    Args:
        evaluations: at least one, in the order of the rows. Subjects with the same name get
            additions to their names, such as their seeds.
        out: a new or empty folder for index.html, which needs no other file, results.json,
            results.csv and figures/*.png. It is written as a whole.
        command: command that repeats the comparison.
        force: replace an earlier report in `out`.

    Returns:
        Path of the page.

    Raises:
        ValueError: if there are no evaluations, protocols differ, or `check_place` refuses `out`.
    """
    if not evaluations:
        raise ValueError("nothing to compare: give at least one evaluation")
    check_place(out, force)
    named = with_unique_names(evaluations)
    shown = [with_training(e) for e in comparable(named)]
    metrics = columns(shown)
    text = page(
        title=title([e.subject for e in shown]),
        lead=lead(shown, metrics),
        facts=facts(shown, metrics),
        sections=sections(shown, metrics, command),
        footer=f"Written by genmodels {__version__}. The folder of this page also contains results.json, results.csv "
        "and, for print, figures/.",
    )
    with report_folder(out, {"format": FORMAT, "evaluations": [e.plain() for e in named]}) as draft:
        write_figures(shown, metrics, draft / "figures")
        _write_csv(shown, draft / "results.csv")
        write_text(draft / "index.html", text)
    return out / "index.html"


def with_unique_names(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return `evaluations` with different names.

    If several have the same name, facts that differ are added to it, or a number.
    """
    named: list[Evaluation] = []
    for e in evaluations:
        same = [other.subject for other in evaluations if other.subject.name == e.subject.name]
        facts = [_facts_of(subject) for subject in same]
        own = _facts_of(e.subject)
        differing = [f"{key} {own[key]}" for key in own if any(other.get(key) != own[key] for other in facts)]
        named.append(_renamed(e, f"{e.subject.name} ({', '.join(differing)})" if differing else e.subject.name))
    taken: set[str] = set()
    for i, e in enumerate(named):
        name, number = e.subject.name, 2
        while name in taken:
            name, number = f"{e.subject.name} #{number}", number + 1
        taken.add(name)
        named[i] = _renamed(e, name)
    return named


def _facts_of(subject: Subject) -> dict[str, Any]:
    known = {"kind": subject.kind, "weights": subject.weights, "seed": subject.seed}
    known |= {"best of": subject.candidates if subject.candidates > 1 else None}
    return {key: value for key, value in (known | subject.options).items() if value not in ("", None)}


def _renamed(e: Evaluation, name: str) -> Evaluation:
    return replace(e, subject=replace(e.subject, name=name))


def _write_csv(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write one line per subject and metric, and per class or attribute of a metric."""
    protocol = [field.name for field in fields(Protocol)]
    head = ["subject", "kind", "group", "measure", "value", "error", "floor", "unit", "better", *protocol]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(head)
    for e in evaluations:
        for name, score in e.scores.items():
            rows = [(name, score.value, score.error, score.floor)]
            rows += [(f"{name} of {part}", x, None, score.each_floor.get(part)) for part, x in score.each.items()]
            for measured in rows:
                own = [score.group, *measured, score.unit, score.better]
                writer.writerow([e.subject.name, e.subject.kind, *own, *asdict(score.protocol).values()])
    write_text(path, text.getvalue())
