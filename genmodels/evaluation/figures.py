"""Figures of a comparison for the page and as PNG files: quality against cost, samples,
reconstructions."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from genmodels import pictures
from genmodels.evaluation.columns import FLOOR, Column, amount
from genmodels.evaluation.report import COLOURS, drawn_in
from genmodels.evaluation.results import EXTREMES, OF_CLASS, Evaluation, Score

if TYPE_CHECKING:  # importing matplotlib is slow
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Point = tuple[float, float]

DPI = 300
SHOWN = 64
"""Maximum number of samples of a subject that are displayed."""
FEWEST = 8
"""Number of samples that are displayed even if they are large."""
PLACES = (
    *((7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 7, "center", "bottom"), (0, -7, "center", "top")),
    *((5, 6, "left", "bottom"), (5, -6, "left", "top"), (-5, 6, "right", "bottom"), (-5, -6, "right", "top")),
    *((0, 24, "center", "bottom"), (0, -24, "center", "top"), (24, 24, "left", "bottom"), (24, -24, "left", "top")),
    *((-24, 24, "right", "bottom"), (-24, -24, "right", "top")),
)
"""Positions for the label of a point in order of preference: offsets in points, and alignment of
the text."""


def trade_offs(metrics: Sequence[Column]) -> list[tuple[Column, Column]]:
    """Return pairs of a distance and a cost that at least two subjects have.

    Costs are the speed, or the operations if speeds cannot be compared, and the training time.
    """
    by_name = {column.name: column for column in metrics}

    def pair(quality: Column, *costs: str) -> list[tuple[Column, Column]]:
        known = [(quality, by_name[cost]) for cost in costs if cost in by_name]
        return [(q, cost) for q, cost in known if _differ([x for x, _ in points(q, cost).values()])][:1]

    distances = [column for column in metrics if column.stem in ("fid", "fd")]
    return [
        both
        for distance in distances
        for both in pair(distance, "images-per-second", "sample-flops") + pair(distance, "training-minutes")
    ]


def _differ(costs: Sequence[float]) -> bool:
    """Return whether costs differ enough to be plotted."""
    return len(costs) > 1 and max(costs) > 1.05 * min(costs)


def points(quality: Column, cost: Column) -> dict[int, Point]:
    """Return cost and quality of each subject that has both, by its index in the columns."""
    both = enumerate(zip(cost.scores, quality.scores, strict=True))
    known = {i: (x.value, y.value) for i, (x, y) in both if x is not None and y is not None}
    return {i: point for i, point in known.items() if np.isfinite(point).all()}


def better_corner(quality: Column, cost: Column) -> str:
    """Return the corner of the best points, such as "lower right"."""
    vertical = "upper" if quality.first.better == "higher" else "lower"
    return f"{vertical} {'right' if cost.first.better == 'higher' else 'left'}"


def plot(names: Sequence[str], quality: Column, cost: Column, ink: str) -> Canvas:
    """Plot the quality of each subject over its cost, with labels. Call and save it inside
    `drawn_in(ink)`.

    Args:
        names: names of the subjects.
        quality: the column on the y axis.
        cost: the column on the x axis, which is logarithmic if it spans more than a factor of 10.
        ink: colour of lines and text.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = points(quality, cost)
    x, y = np.array(list(shown.values())).T
    canvas = Canvas(figsize=(5.2, 4), layout="constrained")
    axes = canvas.subplots()
    logarithmic = x.min() > 0 and x.max() > 10 * x.min()
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if x.max() < 300 * x.min() else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, cost.first.unit).removesuffix(".0000")))
    axes.set_xlabel(_axis(cost) + (", logarithmic" if logarithmic else ""))
    axes.set_ylabel(_axis(quality))
    axes.margins(0.16)
    axes.plot(x, y, "o", color=COLOURS[0], markersize=7)
    floors = [score.floor for score in quality.scores if score is not None and score.floor is not None]
    if floors:
        axes.axhline(min(floors), color=COLOURS[1], linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            FLOOR,
            (1, min(floors)),
            (0, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=COLOURS[1],
            fontsize=9.5,
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.18, color=ink)
    canvas.draw_without_rendering()  # computes the positions of the points on the canvas
    canvas.set_layout_engine("none")  # they stay: computing them again at every drawing takes most of its time
    _name(axes, [names[i] for i in shown], list(shown.values()))
    return canvas


def _axis(column: Column) -> str:
    return column.title + (f", {column.first.better} is better" if column.first.better != "neither" else "")


def _name(axes: Axes, names: Sequence[str], where: Sequence[Point]) -> None:
    """Write the name of each point next to it, at the first of PLACES that is free."""
    from matplotlib.transforms import Bbox

    centres = axes.transData.transform(where)
    taken = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in centres]
    taken += [text.get_window_extent() for text in axes.texts]
    frame = axes.get_window_extent()
    for name, point in zip(names, where, strict=True):
        text = axes.annotate("\n".join(textwrap.wrap(name, 24)), point, (0, 0), textcoords="offset points", fontsize=10)
        text.set_in_layout(False)
        for dx, dy, ha, va in [*PLACES, PLACES[0]]:  # if all are taken, the first one
            text.set(position=(dx, dy), ha=ha, va=va)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 + 6 and frame.y0 <= box.y0 and box.y1 <= frame.y1 + 6
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def samples_shown(images: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """Return the first of `images`, uint8 (N, H, W, 3), and the number of columns for a grid of
    about `width` pixels."""
    side = images.shape[2] + 2
    columns = max(1, min(round(width / side), 32))
    return np.array(images[: min(SHOWN, max(FEWEST, columns * columns))]), min(columns, len(images))


def same_originals(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Group the evaluations that reconstructed the same images."""
    together: dict[bytes, list[Evaluation]] = {}
    for e in evaluations:
        if {"originals", "reconstructions"} <= e.pictures.keys():
            together.setdefault(np.ascontiguousarray(e.pictures["originals"]).tobytes(), []).append(e)
    return list(together.values())


def originals_first(together: Sequence[Evaluation]) -> list[tuple[str, np.ndarray]]:
    """Return name and images, uint8 (N, H, W, 3), of the originals and of the reconstructions of
    each subject."""
    made = [(e.subject.name, e.pictures["reconstructions"]) for e in together]
    return [("original", together[0].pictures["originals"]), *made]


def class_samples(e: Evaluation) -> list[tuple[str, np.ndarray]]:
    """Return the names of the classes of which samples are displayed, and samples of each, uint8
    (N, H, W, 3)."""
    return [(name.removeprefix(OF_CLASS), images) for name, images in e.pictures.items() if name.startswith(OF_CLASS)]


def extremes(e: Evaluation) -> list[tuple[str, np.ndarray]]:
    """Return the samples with the lowest and the highest realism in rows of up to eight, uint8
    (N, H, W, 3), the most extreme ones first, with names."""
    sets = [(name, e.pictures[name]) for name in EXTREMES if name in e.pictures]
    return [
        (f"{name}, {start + 1} to {min(start + 8, len(images))}", images[start : start + 8])
        for name, images in sets
        for start in range(0, len(images), 8)
    ]


def class_caption(name: str, score: Score | None) -> str:
    """Return the name of a class, and how often it was found if `score` measured that."""
    if score is None or name not in score.each:
        return name
    real = f", and in {score.each_floor[name]:.0%} of real images" if name in score.each_floor else ""
    return f"{name}: found in {score.each[name]:.0%} of the samples{real}"


def write_figures(evaluations: Sequence[Evaluation], metrics: Sequence[Column], folder: Path) -> None:
    """Write all figures into `folder`, as PNG on white.

    Args:
        evaluations: evaluations with different names.
        metrics: their columns.
        folder: a new or empty folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [e.subject.name for e in evaluations]
    with drawn_in("black"):
        for quality, cost in trade_offs(metrics):
            plot(names, quality, cost, "black").savefig(folder / f"{quality.name}-{cost.name}.png", dpi=DPI)
    for i, together in enumerate(same_originals(evaluations)):
        path = folder / f"reconstructions{f'-{i + 1}' if i else ''}.png"
        with drawn_in("black"):
            strips(originals_first(together)).savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.05)
    for e, name in zip(evaluations, file_names(names), strict=True):
        if "samples" in e.pictures:
            enlarged(pictures.grid(*samples_shown(e.pictures["samples"], 528))).save(folder / f"samples-{name}.png")
        for kind, rows in (("classes", class_samples(e)), ("realism", extremes(e))):
            if len(rows) > 1:
                with drawn_in("black"):
                    strips(rows).savefig(folder / f"{kind}-{name}.png", dpi=DPI, bbox_inches="tight", pad_inches=0.05)


def strips(rows: Sequence[tuple[str, np.ndarray]]) -> Canvas:
    """Draw up to eight images of each of `rows`, uint8 (N, H, W, 3), with its name on the left."""
    from matplotlib.figure import Figure as Canvas

    count = min(8, *(len(images) for _, images in rows))
    canvas = Canvas(figsize=(2 + 0.8 * count, 0.84 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(canvas.subplots(len(rows)), rows, strict=True):
        axes.imshow(np.concatenate(list(images[:count]), axis=1), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel("\n".join(textwrap.wrap(name, 24)), rotation=0, ha="right", va="center", fontsize=9)
    return canvas


def enlarged(picture: Image.Image, least: int = 1000) -> Image.Image:
    """Repeat each pixel until `picture` is at least `least` pixels wide, so that it is not blurred
    in print."""
    factor = math.ceil(least / picture.width)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def file_names(names: Sequence[str]) -> list[str]:
    """Convert `names` to different, short parts of file names without special characters."""
    unique: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-60:] or "subject"
        tries = (plain if i == 1 else f"{plain}-{i}" for i in range(1, len(names) + 1))
        unique.append(next(t for t in tries if t.lower() not in {other.lower() for other in unique}))
    return unique
