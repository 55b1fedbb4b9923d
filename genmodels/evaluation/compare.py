"""Several evaluations side by side: one page to read and send, the same numbers as JSON and CSV, figures to print."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from genmodels import __version__
from genmodels.evaluation.columns import columns, with_training
from genmodels.evaluation.figures import write_figures
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.report import page
from genmodels.evaluation.results import FORMAT, Evaluation, Subject, comparable
from genmodels.evaluation.sections import facts, lead, sections, title


def write_report(evaluations: Sequence[Evaluation], out: Path, command: str = "") -> Path:
    """Write a comparison of `evaluations` into `out`.

    Args:
        evaluations: at least one, in the order they shall be shown. Subjects of the same name are told apart by what
            else is known of them.
        out: a new or empty folder. It gets index.html, which needs no other file, results.json, results.csv and
            figures/*.png.
        command: what to type to do it again.

    Returns:
        the path of the page.

    Raises:
        ValueError: when there is nothing to compare, protocols differ, or `out` holds something.
    """
    if not evaluations:
        raise ValueError("nothing to compare: give at least one evaluation")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another --out")
    named = told_apart(evaluations)
    shown = [with_training(e) for e in comparable(named)]
    found = columns(shown)
    text = page(
        title=title([e.subject for e in shown]),
        lead=lead(shown, found),
        facts=facts(shown, found),
        sections=sections(shown, found, command),
        footer=f"Made by genmodels {__version__}. The numbers are also in results.json and results.csv, and the "
        "figures for print in figures/, where this page was made.",
    )
    write_figures(shown, found, out / "figures")
    whole = {"format": FORMAT, "evaluations": [e.plain() for e in named]}
    (out / "results.json").write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _write_csv(shown, out / "results.csv")
    (out / "index.html").write_text(text, encoding="utf-8")
    return out / "index.html"


def told_apart(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """`evaluations` under names that differ: where two share one, what else differs follows it, or else a number."""
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
    return {key: value for key, value in (known | subject.options).items() if value not in ("", None)}


def _renamed(e: Evaluation, name: str) -> Evaluation:
    return replace(e, subject=replace(e.subject, name=name))


def _write_csv(evaluations: Sequence[Evaluation], path: Path) -> None:
    """One line per subject and measure."""
    protocol = [field.name for field in fields(Protocol)]
    head = ["subject", "kind", "group", "measure", "value", "error", "floor", "unit", "better", *protocol]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for e in evaluations:
            for name, score in e.scores.items():
                own = [score.group, name, score.value, score.error, score.floor, score.unit, score.better]
                writer.writerow([e.subject.name, e.subject.kind, *own, *asdict(score.protocol).values()])
