"""Figures of a scaling law, as in the papers: IsoFLOP curves, frontier, curves of the law, residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genmodels.evaluation.columns import amount
from genmodels.evaluation.report import COLOURS
from genmodels.scaling.analysis import APPROACHES, Analysis

if TYPE_CHECKING:  # importing matplotlib is slow
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LABELLED = 8
"""Largest number of budgets or sizes that a legend lists."""
FINE = 200
"""Number of points of a curve."""


def isoflop(analysis: Analysis, ink: str) -> Canvas:
    """Plot the loss of each size at each budget, with parabolas and their minima."""
    table = analysis.table
    canvas, axes = plain_axes("parameters N", f"loss{_of(analysis)}", ink)
    for number, minimum in enumerate(analysis.minima):
        rows = table.budget == minimum.budget
        colour = _colour(number, len(analysis.minima))
        label = amount(minimum.budget, "FLOPs") if _listed(number, len(analysis.minima)) else None
        axes.plot(table.parameters[rows], table.loss[rows], "o", color=colour, markersize=4.5, label=label)
        if not minimum.left_out:
            low, high = (float(np.log(edge)) for edge in (table.parameters[rows].min(), table.parameters[rows].max()))
            x = np.linspace(low, high, FINE)
            axes.plot(np.exp(x), np.polyval(minimum.parabola, x), color=colour, linewidth=1.3)
            axes.plot(minimum.parameters, minimum.loss, "*", color=ink, markersize=9)
    logarithmic(axes, "x")
    legend(canvas)
    return canvas


def frontier(analysis: Analysis, ink: str) -> Canvas:
    """Plot N*(C) by all three approaches, with the interval of the third."""
    table, cost = analysis.table, analysis.table.cost
    canvas, axes = plain_axes("training FLOPs C", "best size N*(C)", ink)
    last = max([table.flops.max(), *(p.flops for p in analysis.predictions)])
    flops = np.geomspace(table.flops.min(), last, FINE)
    axes.plot(table.flops, table.parameters, ".", color=ink, alpha=0.2, markersize=4, label="runs")
    sizes = analysis.samples.optimum(flops, cost)[0]
    axes.fill_between(flops, *np.nanpercentile(sizes, [2.5, 97.5], axis=0), color=COLOURS[0], alpha=0.2, linewidth=0)
    axes.plot(flops, analysis.law.optimum(flops, cost)[0], color=COLOURS[0], label=_approach("parametric"))
    for colour, (name, power) in zip(COLOURS[1:], reversed(analysis.powers.items()), strict=False):
        if np.isfinite(power.exponent[0]):
            axes.plot(flops, power.size(flops), color=colour, linestyle=(0, (5, 3)), label=_approach(name))
    kept = [m for m in analysis.minima if not m.left_out]
    axes.plot([m.budget for m in kept], [m.parameters for m in kept], "*", color=COLOURS[1], markersize=9)
    for p in analysis.predictions:
        axes.plot(p.flops, p.parameters, "D", color=ink, markersize=5)
        axes.annotate(p.name, (p.flops, p.parameters), (-6, 4), textcoords="offset points", ha="right", fontsize=9.5)
    logarithmic(axes, "x", "y")
    legend(canvas, columns=4)
    return canvas


def curves(analysis: Analysis, ink: str) -> Canvas:
    """Plot the loss over the FLOPs for each size, the law's curves, and the least loss at each budget."""
    table, cost, law = analysis.table, analysis.table.cost, analysis.law
    canvas, axes = plain_axes("training FLOPs C", f"loss{_of(analysis)}", ink)
    sizes = np.unique(table.parameters)
    for number, size in enumerate(sizes):
        rows = table.parameters == size
        label = f"N = {amount(size)}" if _listed(number, len(sizes)) else None
        colour = _colour(number, len(sizes))
        axes.plot(table.flops[rows], table.loss[rows], "o", color=colour, markersize=4, label=label)
        if rows.sum() > 1:
            flops = np.geomspace(table.flops[rows].min(), table.flops[rows].max(), FINE)
            axes.plot(flops, law.loss(size, cost.tokens(size, flops)), color=colour, linewidth=1)
    last = max([table.flops.max(), *(p.flops for p in analysis.predictions)])
    flops = np.geomspace(table.flops.min(), last, FINE)
    axes.plot(
        flops, law.loss(*law.optimum(flops, cost)), color=ink, linestyle=(0, (4, 3)), label="least loss by the law"
    )
    for p in analysis.predictions:
        assert p.loss.value is not None
        axes.plot(p.flops, p.loss.value, "D", color=ink, markersize=5)
        if p.loss.low is not None and p.loss.high is not None:
            axes.vlines(p.flops, p.loss.low, p.loss.high, color=ink)
        axes.annotate(p.name, (p.flops, p.loss.value), (-6, 4), textcoords="offset points", ha="right", fontsize=9.5)
    logarithmic(axes, "x", "y")
    legend(canvas)
    return canvas


def residuals(analysis: Analysis, ink: str) -> Canvas:
    """Plot the relative residuals of the law over the FLOPs, coloured by size."""
    table = analysis.table
    canvas, axes = plain_axes("training FLOPs C", "measured loss over the law's loss, minus 1", ink)
    order = np.log(table.parameters)
    shown = axes.scatter(table.flops, np.expm1(analysis.residuals), c=order, cmap="viridis", s=14)
    low, high = order.min(), order.max()
    bar = axes.figure.colorbar(shown, ax=axes, ticks=[low, high])
    bar.ax.set_yticklabels([f"N = {np.exp(x):.2g}" for x in (low, high)])
    axes.axhline(0, color=ink, linewidth=1)
    logarithmic(axes, "x")
    return canvas


FIGURES = {
    "isoflop": (isoflop, "IsoFLOP curves.", "Each colour is one budget; stars are minima of the parabolas in log N."),
    "frontier": (
        frontier,
        "Best size.",
        "Points are runs and stars are minima. 1: envelope, 2: minima, 3: parametric law, with its interval.",
    ),
    "curves": (curves, "The law.", "Points are runs, and lines of the same colour are the law for their size."),
    "residuals": (residuals, "Residuals.", "A pattern means that the form of the law does not fit."),
}
"""Figures by the name of their file: the function that draws them, title and caption."""


def plain_axes(x_label: str, y_label: str, ink: str) -> tuple[Canvas, Axes]:
    """Return a figure with one plot, whose axes have labels. Call it inside `drawn_in`."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6.4, 4.4), layout="constrained")
    axes = canvas.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.18, color=ink)
    return canvas, axes


def _approach(name: str) -> str:
    return f"approach {APPROACHES[name][0]}"


def legend(canvas: Canvas, columns: int = 3) -> None:
    """List what is labelled above the plot, where it hides no point."""
    canvas.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def logarithmic(axes: Axes, *names: str) -> None:
    """Make the axes "x", "y" or both logarithmic, with plain numbers at their ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in names:
        axes.set(**{f"{name}scale": "log"})  # type: ignore[arg-type]
        axis = getattr(axes, f"{name}axis")
        low, high = axis.get_view_interval()
        near = high < 30 * low
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("e+", "e")))
        axis.set_minor_formatter(NullFormatter())


def _of(analysis: Analysis) -> str:
    metric = analysis.table.shared.get("metric")
    return f" ({metric})" if metric else ""


def _colour(number: int, count: int) -> tuple[float, float, float, float]:
    """Return the colour of a budget or a size on a scale that is visible on light and dark pages."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.15 + 0.75 * number / max(1, count - 1))


def _listed(number: int, count: int) -> bool:
    """Return whether a legend lists this budget or size: at most about `LABELLED` of them."""
    return number % -(-count // LABELLED) == 0 or number == count - 1
