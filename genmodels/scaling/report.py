"""The page, figures and JSON of a scaling analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from genmodels import __version__
from genmodels.evaluation.columns import DASH, amount
from genmodels.evaluation.report import INK, Cell, Figure, Heading, Numbers, Section, drawn_in, markup, page
from genmodels.evaluation.report_folder import check_place, report_folder
from genmodels.scaling.analysis import APPROACHES, LEVEL, Analysis, Estimate
from genmodels.scaling.figures import FIGURES
from genmodels.scaling.table import to_csv
from genmodels.writing import write_text

DPI = 150
"""Resolution of the figures in dots per inch."""


def write_report(analysis: Analysis, out: Path, command: str = "", force: bool = False) -> Path:
    """Write a report of an analysis.

    Args:
        analysis: the results.
        out: a new or empty folder for index.html, which needs no other file, results.json, runs.csv
            and figures/*.png. It is written as a whole.
        command: command that repeats the analysis.
        force: replace an earlier report in `out`.

    Returns:
        Path of the page.

    Raises:
        ValueError: if `check_place` refuses `out`.
    """
    check_place(out, force)
    text = page(
        title="Scaling law",
        lead=_lead(analysis),
        facts=_facts(analysis),
        sections=_sections(analysis, command),
        footer=f"Written by genmodels {__version__}. The folder of this page also contains results.json, runs.csv and, "
        "for print, figures/.",
    )
    with report_folder(out, analysis.plain()) as draft:
        (draft / "figures").mkdir()
        for name, (draw, _, _) in FIGURES.items():
            with drawn_in("black"):
                draw(analysis, "black").savefig(draft / "figures" / f"{name}.png", dpi=DPI)
        write_text(draft / "runs.csv", to_csv(_rows(analysis)))
        write_text(draft / "index.html", text)
    return out / "index.html"


def summary(analysis: Analysis) -> list[str]:
    """Return the results as lines of text."""
    table, cost = analysis.table, analysis.table.cost
    constants = ", ".join(f"{name} {value}" for name, value in analysis.constants().items())
    lines = [_lead(analysis), *table.notes, f"L(N, D) = E + A / N^a + B / D^b: {constants}"]
    lines.append(f"scatter of the runs around it: {analysis.residuals.std():.2%}; C = {cost.k:.4g} N^{cost.m:.3g} D")
    for name, (n, d) in analysis.exponents().items():
        found = "no law, too few budgets have a minimum" if n.value is None else f"N* = C^{n}, D* = C^{d}"
        lines.append(f"approach {APPROACHES[name]}: {found}")
    lines += [f"left out: the budget of {m.budget:.3g} FLOPs: {m.left_out}" for m in analysis.minima if m.left_out]
    for p in analysis.predictions:
        what = "best run" if p.optimal else "run"
        lines.append(
            f"predicted by approach {APPROACHES[p.approach][0]}: {p.name}, the {what} with {p.parameters:.4g} "
            f"parameters and {p.tokens:.4g} tokens ({amount(p.flops, 'FLOPs')}): loss {p.loss}"
        )
    return lines


def _lead(analysis: Analysis) -> str:
    table = analysis.table
    sizes, budgets = len(np.unique(table.parameters)), len(table.budgets)
    low, high = (amount(float(x), "FLOPs") for x in (table.flops.min(), table.flops.max()))
    shared = "".join(f" {name.capitalize()}: {text}." for name, text in table.shared.items())
    return f"{len(table)} runs of {sizes} sizes at {budgets} budgets from {low} to {high}.{shared}"


def _facts(analysis: Analysis) -> dict[str, str]:
    n, d = analysis.exponents()["parametric"]
    return {"N*(C) grows as": f"C^{_number(n)}", "D*(C) grows as": f"C^{_number(d)}"} | {
        name: _number(value) for name, value in analysis.constants().items()
    }


def _number(value: Estimate) -> str:
    return DASH if value.value is None else f"{value.value:.3g}"


def _sections(analysis: Analysis, command: str) -> list[Section]:
    cost = analysis.table.cost
    figures = []
    for draw, title, caption in FIGURES.values():
        with drawn_in(INK):
            figures.append(Figure(title, caption, svg=markup(draw(analysis, INK)), width="half"))
    left_out = [f"Left out: {m.budget:.3g} FLOPs: {m.left_out}." for m in analysis.minima if m.left_out]
    level = f"Intervals hold {LEVEL} % of the bootstrap samples."
    found = [
        Section("Figures", figures=figures, wide=True),
        Section(
            "Exponents",
            text=["The best size and data for a budget grow as N* = F C^x and D* = G C^y.", *left_out],
            numbers=[
                _numbers(
                    ["x, of N*(C)", "y, of D*(C)"], {APPROACHES[k]: v for k, v in analysis.exponents().items()}, level
                )
            ],
        ),
        Section(
            "The law",
            text=[
                "L(N, D) = E + A / N^a + B / D^b. Its constants minimise the Huber loss of log L.",
                f"Training costs C = {cost.k:.4g} N^{cost.m:.4g} D FLOPs, fitted to those of the runs.",
                f"The runs scatter by {analysis.residuals.std():.2%} around the law.",
                *analysis.table.notes,
            ],
            numbers=[_numbers(["value"], {name: (value,) for name, value in analysis.constants().items()}, level)],
        ),
    ]
    if analysis.predictions:
        rows = [
            (
                f"{p.name}, by approach {APPROACHES[p.approach]}",
                [_plain(p.parameters), _plain(p.tokens), _plain(p.flops, "FLOPs"), _cell(p.loss)],
            )
            for p in analysis.predictions
        ]
        headings = [Heading(text) for text in ("parameters", "tokens", "compute", "loss")]
        notes = ["The interval is for a single run: it includes the scatter of runs around the law."]
        found.append(Section("Predictions", numbers=[Numbers([("", 4)], headings, rows, notes=notes)]))
    return [*found, Section("Command", code=command)] if command else found


def _numbers(headings: list[str], rows: dict[str, tuple[Estimate, ...]], note: str) -> Numbers:
    cells = [(name, [_cell(value) for value in values]) for name, values in rows.items()]
    return Numbers([("", len(headings))], [Heading(text) for text in headings], cells, notes=[note])


def _cell(value: Estimate) -> Cell:
    if value.value is None:
        return Cell(DASH, title="could not be determined")
    failed = f"{value.failed:.0%} of the bootstrap samples have no such number" if value.failed else ""
    interval = "" if value.low is None else f"{value.low:.4g} to {value.high:.4g}"
    return Cell(f"{value.value:.4g}", value.value, interval, failed)


def _plain(value: float, unit: str = "") -> Cell:
    return Cell(amount(value, unit), value)


def _rows(analysis: Analysis) -> list[dict[str, Any]]:
    table = analysis.table
    predicted = table.loss / np.exp(analysis.residuals)
    columns = [table.names, table.parameters, table.tokens, table.flops, table.budget, table.loss, predicted]
    names = ("name", "parameters", "tokens", "flops", "budget", "loss", "law")
    return [dict(zip(names, row, strict=True)) | dict(table.shared) for row in zip(*columns, strict=True)]
