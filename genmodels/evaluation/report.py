"""A self-contained HTML page of text, tables, images and plots, which loads nothing from
elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

if TYPE_CHECKING:  # importing matplotlib is slow, and not every page has a plot
    from matplotlib.figure import Figure as Canvas

Width = Literal["full", "half", "third"]
COLOURS = ("#c8612f", "#3a7ca5", "#6a994e", "#8e5fa8")
"""Colours of lines and points, visible on light and on dark backgrounds."""
INK = "#010203"
"""Placeholder colour for matplotlib. `markup` replaces it by the text colour of the page."""


@dataclass(frozen=True)
class Figure:
    """An image, a plot or rows of images, with a caption.

    Attributes:
        title: a few words in bold, which are also the alternative text of the image.
        caption: text after the title.
        source: data URI of an image.
        svg: markup of a plot, which is not escaped.
        width: width relative to the column.
        rows: label and data URI of each row of images.
    """

    title: str
    caption: str = ""
    source: str = ""
    svg: str = ""
    width: Width = "full"
    rows: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Heading:
    """The heading of a column of numbers.

    Attributes:
        text: name of the metric.
        note: a few words in small print, such as the unit.
        better: which values are better.
        title: tooltip.
    """

    text: str
    note: str = ""
    better: Literal["higher", "lower", "neither"] = "neither"
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """A number in a column.

    Attributes:
        text: displayed text.
        value: value by which rows are sorted; None if it is missing.
        note: a few words in small print, such as the standard error.
        title: tooltip.
        best: whether it is the best value of the column.
        starred: whether it has an asterisk.
    """

    text: str
    value: float | None = None
    note: str = ""
    title: str = ""
    best: bool = False
    starred: bool = False


@dataclass(frozen=True)
class Numbers:
    """A table of numbers that the reader can sort by any column.

    Attributes:
        groups: headings that span several columns, and the number of columns.
        headings: one heading per column.
        rows: label and cells of each row.
        last: a row that stays last.
        notes: paragraphs below the table.
    """

    groups: Sequence[tuple[str, int]]
    headings: Sequence[Heading]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    last: tuple[str, Sequence[Cell]] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables of numbers, figures, a table of text (first row: headings)
    and code.

    A `wide` section may be wider than the text around it, and displays images without
    interpolation.
    """

    heading: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    table: Sequence[Sequence[str]] = ()
    code: str = ""
    numbers: Sequence[Numbers] = ()
    wide: bool = False


def page(title: str, lead: str, facts: Mapping[str, str], sections: Sequence[Section], footer: str) -> str:
    """Render the page as HTML. All text is escaped. `facts` are displayed in large type below the
    lead."""
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=title, lead=lead, facts=facts, sections=sections, footer=footer
    )


def tiles(images: np.ndarray, columns: int) -> str:
    """Return the data URI of a PNG of uint8 (N, H, W, 3) in rows, with transparent gaps."""
    opaque = np.full((*images.shape[:3], 1), 255, np.uint8)
    pixels = torch.from_numpy(np.concatenate([images, opaque], axis=3)).permute(0, 3, 1, 2)  # (N, 4, H, W)
    sheet = make_grid(pixels, nrow=columns, padding=2, pad_value=0)[:, 2:-2, 2:-2]
    buffer = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), "png")


def embedded(path: Path) -> str:
    """Return the data URI of an image file."""
    return _uri(path.read_bytes(), path.suffix.removeprefix("."))


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """Draw a line chart as SVG markup in the colours of the page around it.

    Args:
        lines: x and y values by name.
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis, with its unit.
    """
    from matplotlib.figure import Figure as Canvas

    with drawn_in(INK):
        canvas = Canvas(figsize=(8.4, 3.2), layout="constrained")
        axes = canvas.subplots()
        axes.set_prop_cycle(color=COLOURS)
        for name, (x, y) in lines.items():
            axes.plot(x, y, label=name, linewidth=1.8)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.18, color=INK)
        if len(lines) > 1:
            axes.legend(frameon=False)
        return markup(canvas)


@contextmanager
def drawn_in(ink: str) -> Iterator[None]:
    """Context manager that sets the colour of matplotlib's text and lines, and keeps text as text
    in SVG."""
    from matplotlib import rc_context

    style: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}
    style["text.parse_math"] = False  # names of runs may contain $
    for part in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"):
        style[part] = ink
    with rc_context(style):
        yield


def markup(canvas: Canvas) -> str:
    """Return a plot drawn in INK as SVG markup in the colours of the page. Call it inside
    `drawn_in`."""
    text = io.StringIO()
    without = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(text, format="svg", transparent=True, metadata=without)
    whole = text.getvalue()
    return whole[whole.index("<svg") :].replace(INK, "currentColor")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
