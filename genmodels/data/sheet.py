"""Contact sheets: images of a data set with their names and attributes."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genmodels.data.captions import captions
from genmodels.data.packed import Packed
from genmodels.data.source import readable
from genmodels.writing import replacing

_TILE, _LINE, _GAP = 160, 12, 8
_COLUMNS = 8


def save_sheet(data: Packed, path: Path, n: int = 32, seed: int = 0, captioned: bool = False) -> Path:
    """Write `n` random images and their labels as one picture, and return `path`.

    Args:
        data: data set.
        path: image file to write (.png, .jpg ...); an existing file is replaced.
        n: number of images.
        seed: seed of the random choice.
        captioned: write a caption below each image in place of its attributes: a stored one, or one
            from the attributes.

    Raises:
        ValueError: if `captioned` is set and the images have neither captions nor attributes that
            the grammar knows.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data))[:n])
    labels = _captions(data, chosen, seed) if captioned else [_label(data, i) for i in chosen]
    lines = max(label.count("\n") + 1 for label in labels)
    cell = (_TILE + _GAP, _TILE + lines * _LINE + 2 * _GAP)
    rows = -(-len(chosen) // _COLUMNS)
    sheet = Image.new("RGB", (min(len(chosen), _COLUMNS) * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for place, (i, label) in enumerate(zip(chosen, labels, strict=True)):
        left, top = _GAP + place % _COLUMNS * cell[0], _GAP + place // _COLUMNS * cell[1]
        sheet.paste(Image.fromarray(data.images[i]).resize((_TILE, _TILE), Image.Resampling.NEAREST), (left, top))
        draw.multiline_text((left, top + _TILE + 2), label, fill="black", font=font, spacing=1)
    with replacing(path) as draft:
        sheet.save(draft)
    return path


def _captions(data: Packed, chosen: np.ndarray, seed: int) -> list[str]:
    """Return a caption of each chosen image, wrapped to the width of the tile."""
    if not data.has_captions:
        raise ValueError(f"{data.source} has neither captions nor attributes that captions can be written from")
    if data.text is None:
        written = captions(data.attributes[chosen], data.attribute_names, chosen.tolist(), [0] * len(chosen), seed)
    else:
        written = [data.text[i][0] if data.text[i] else "no caption" for i in chosen]
    return ["\n".join(wrap(readable(text), 26)) for text in written]


def _label(data: Packed, i: int) -> str:
    """Return the file name, the class and the positive attributes, wrapped to the width of the
    tile."""
    lines = [readable(data.names[i]).rsplit("/", 1)[-1][-24:]]
    if data.labels is not None:
        lines.append(readable(data.class_names[data.labels[i]])[:26] if data.labels[i] >= 0 else "no label")
    above = len(lines)
    for k in np.flatnonzero(data.attributes[i] > 0):
        name = data.attribute_names[k].replace("_", " ")
        if len(lines) > above and len(lines[-1]) + len(name) < 26:
            lines[-1] += f", {name}"
        else:
            lines.append(name)
    return "\n".join(lines)
