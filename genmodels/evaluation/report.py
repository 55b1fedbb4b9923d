"""One self-contained HTML page: words, numbers, pictures and curves, with nothing to load from elsewhere."""

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

if TYPE_CHECKING:  # importing matplotlib takes a while, and not every page has a drawing
    from matplotlib.figure import Figure as Canvas

Width = Literal["full", "half", "third"]
COLOURS = ("#c8612f", "#3a7ca5", "#6a994e", "#8e5fa8")
"""Of lines and points; they stand out on light and on dark."""
INK = "#010203"
"""matplotlib wants a colour; in markup it becomes that of the page."""


@dataclass(frozen=True)
class Figure:
    """A picture or a drawing with its caption.

    Attributes:
        title: a few words in bold; also the text for those who do not see the picture.
        caption: what else to know of it.
        source: data URI of a picture.
        svg: a drawing instead, as markup; it is not escaped.
        width: the share of the column it takes.
        rows: pictures instead, one under the other: what each shows, and its data URI.
    """

    title: str
    caption: str = ""
    source: str = ""
    svg: str = ""
    width: Width = "full"
    rows: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Heading:
    """The head of a column of numbers.

    Attributes:
        text: what they are.
        note: a few small words under it, such as the unit.
        better: which of them are better.
        title: what is shown to who asks for more.
    """

    text: str
    note: str = ""
    better: Literal["higher", "lower", "neither"] = "neither"
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """A number in a column.

    Attributes:
        text: as it is read.
        value: as it is sorted; None when it is missing.
        note: a few small words under it, such as its error.
        title: what is shown to who asks for more.
        best: whether none in the column is better.
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
    """A table of numbers whose rows the reader can sort by any column.

    Attributes:
        groups: headings over several columns, and over how many.
        headings: one per column of cells.
        rows: a name and its cells.
        last: a row that stays last.
        notes: lines under the table.
    """

    groups: Sequence[tuple[str, int]]
    headings: Sequence[Heading]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    last: tuple[str, Sequence[Cell]] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it: paragraphs, numbers, figures, a table (first row: headings), code.

    A `wide` one may be wider than the text around it, and shows its pictures pixel by pixel.
    """

    heading: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    table: Sequence[Sequence[str]] = ()
    code: str = ""
    numbers: Sequence[Numbers] = ()
    wide: bool = False


def page(title: str, lead: str, facts: Mapping[str, str], sections: Sequence[Section], footer: str) -> str:
    """The page as HTML text. All words are escaped; `facts` are shown large under the lead."""
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=title, lead=lead, facts=facts, sections=sections, footer=footer
    )


def tiles(images: np.ndarray, columns: int) -> str:
    """Data URI of a PNG that shows uint8 (N, H, W, 3) in rows, with see-through gaps for light and dark pages."""
    opaque = np.full((*images.shape[:3], 1), 255, np.uint8)
    pixels = torch.from_numpy(np.concatenate([images, opaque], axis=3)).permute(0, 3, 1, 2)  # (N, 4, H, W)
    sheet = make_grid(pixels, nrow=columns, padding=2, pad_value=0)[:, 2:-2, 2:-2]
    buffer = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), "png")


def embedded(path: Path) -> str:
    """Data URI of a picture file."""
    return _uri(path.read_bytes(), path.suffix.removeprefix("."))


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """A line chart as SVG markup in the colours of the page around it.

    Args:
        lines: x and y values by name.
        x_label: with its unit.
        y_label: with its unit.
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
    """`with drawn_in(INK):` matplotlib writes and draws its lines in this colour, and leaves text as text in an SVG."""
    from matplotlib import rc_context

    style: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}
    for part in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"):
        style[part] = ink
    with rc_context(style):
        yield


def markup(canvas: Canvas) -> str:
    """A drawing made in INK as SVG markup in the colours of the page around it. To be called under `drawn_in`."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(text, format="svg", transparent=True, metadata=nothing)
    whole = text.getvalue()
    return whole[whole.index("<svg") :].replace(INK, "currentColor")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
