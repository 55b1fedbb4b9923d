"""The page, figure and JSON of what compute at sampling time buys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmodels import __version__
from genmodels.evaluation.columns import amount
from genmodels.evaluation.cost import OPERATIONS
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.report import COLOURS, INK, Cell, Figure, Heading, Numbers, Section, drawn_in, markup, page
from genmodels.evaluation.report_folder import check_place, report_folder
from genmodels.scaling.figures import legend, logarithmic, plain_axes
from genmodels.scaling.inference import Point, frontier
from genmodels.scaling.report import DPI
from genmodels.scaling.table import to_csv
from genmodels.writing import write_text

if TYPE_CHECKING:  # importing matplotlib is slow
    from matplotlib.figure import Figure as Canvas

FORMAT = 1
MARKERS = {"sample": "o", "best-of": "^", "search": "s"}
"""Marker of each method in the figure."""


def plain(points: Sequence[Point], judge: Extractor, verifier: Extractor | None, n: int) -> dict[str, Any]:
    """Return the results as JSON values."""
    best = {id(point) for point in frontier(points)}
    return {
        "format": FORMAT,
        "judge": {"name": judge.name, "weights": judge.weights},
        "verifier": None if verifier is None else {"name": verifier.name, "weights": verifier.weights},
        "samples": n,
        "convention": f"FLOPs per image, of all candidates and of the verifier: {OPERATIONS}",
        "points": [vars(point) | {"on-the-frontier": id(point) in best} for point in points],
    }


def write_report(
    points: Sequence[Point], judge: Extractor, verifier: Extractor | None, n: int, out: Path, force: bool = False
) -> Path:
    """Write a report.

    Args:
        points: what was measured.
        judge: extractor of the distance.
        verifier: extractor that chose among candidates; None if there was no choice.
        n: number of samples of each setting.
        out: a new or empty folder for index.html, results.json, points.csv and figures/.
        force: replace an earlier report in `out`.

    Returns:
        Path of the page.
    """
    check_place(out, force)
    with drawn_in(INK):
        svg = markup(draw(points, judge, INK))
    best = {id(point) for point in frontier(points)}
    headings = [Heading("FLOPs", "per image"), Heading("of them the verifier's"), Heading("evaluations", "per image")]
    headings += [Heading("parameters"), Heading(judge.measure("fd"), f"n = {n:,}", "lower")]
    rows = [
        (
            f"{point.model}, {point.setting}",
            [
                Cell(amount(point.flops, "FLOPs"), point.flops),
                Cell(amount(point.verifier_flops, "FLOPs"), point.verifier_flops),
                Cell(f"{point.evaluations:,}", point.evaluations),
                Cell(amount(point.parameters), point.parameters),
                Cell(amount(point.distance), point.distance, best=id(point) in best),
            ],
        )
        for point in points
    ]
    chosen = "" if verifier is None else f" Candidates are chosen by their realism by {verifier.name}."
    notes = [f"FLOPs: {OPERATIONS}. They include all candidates and the verifier.", "Orange: on the frontier."]
    text = page(
        title="Compute at sampling time",
        lead=f"{len(points)} settings, each judged by {judge.measure('fd')} of {n:,} samples.{chosen}",
        facts={},
        sections=[
            Section("Quality and compute", figures=[Figure("Frontier.", "The line joins the best points.", svg=svg)]),
            Section("Settings", numbers=[Numbers([("", len(headings))], headings, rows, notes=notes)]),
        ],
        footer=f"Written by genmodels {__version__}.",
    )
    with report_folder(out, plain(points, judge, verifier, n)) as draft:
        (draft / "figures").mkdir()
        with drawn_in("black"):
            draw(points, judge, "black").savefig(draft / "figures" / "frontier.png", dpi=DPI)
        write_text(draft / "points.csv", to_csv(vars(point) for point in points))
        write_text(draft / "index.html", text)
    return out / "index.html"


def draw(points: Sequence[Point], judge: Extractor, ink: str) -> Canvas:
    """Plot distance over FLOPs: a colour for each model, a marker for each method, and the frontier."""
    canvas, axes = plain_axes("FLOPs per image", f"{judge.measure('fd')}, lower is better", ink)
    names = list(dict.fromkeys(point.model for point in points))
    for number, name in enumerate(names):
        for method, marker in MARKERS.items():
            own = [p for p in points if p.model == name and p.method == method]
            if own:
                label = name if method == "sample" else f"{name}, {method}"
                x, y = [p.flops for p in own], [p.distance for p in own]
                axes.plot(x, y, marker, color=COLOURS[number % len(COLOURS)], markersize=5, label=label)
    best = frontier(points)
    axes.plot([p.flops for p in best], [p.distance for p in best], color=ink, linewidth=1, zorder=0, label="frontier")
    logarithmic(axes, "x", "y")
    legend(canvas, columns=2)
    return canvas


def summary(points: Sequence[Point], judge: Extractor, verifier: Extractor | None) -> list[str]:
    """Return the frontier as lines of text."""
    by = "" if verifier is None else f"; candidates by {verifier.name}"
    lines = [f"frontier of {len(points)} settings, judged by {judge.measure('fd')}{by}:"]
    return lines + [
        f"  {amount(p.flops, 'FLOPs'):>14}  {amount(p.distance):>8}  {p.model}, {p.setting}" for p in frontier(points)
    ]
