"""The sheet of answers of a model that answers questions about images."""

from __future__ import annotations

import textwrap
import time
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genmodels.data.rows import spread_rows
from genmodels.pictures import to_float
from genmodels.training.limits import Limits
from genmodels.training.setup import Run

SHOWN = 8
"""Number of images of a sheet."""
SHEET = "Held-out images with answers, not selected. They are of the data set: check its licence before sharing them"
"""Description of a sheet in the model card."""
_TILE, _GAP, _LINE, _WIDTH, _LETTERS = 128, 8, 16, 1000, 110


def answer_sheet(run: Run, limits: Limits) -> np.ndarray | None:
    """Draw held-out images with the questions of a conversation about each, and the answers of the
    model: uint8 (1, H, W, 3).

    Generated questions have phrasings that do not occur in training. Without a valid split, training
    images are shown.

    Returns:
        The sheet; None on other processes than the first.
    """
    if not run.accelerator.is_main_process:
        return None
    from genmodels.evaluation.conversations import held_out_conversations
    from genmodels.evaluation.reference import Reference, reference_from

    model: Any = run.ema
    began, data = time.monotonic(), run.held_out or run.data
    rows = spread_rows(len(data), min(SHOWN, len(data)))
    shown = data.take(rows)
    reference: Reference = reference_from(shown, "all")
    conversations, _ = held_out_conversations(reference, len(rows))
    turns = [(place, turn) for place, conversation in enumerate(conversations) for turn in conversation]
    images = to_float(np.asarray(shown.images[:]), run.accelerator.device)
    questions = [turn.question for _, turn in turns]
    answers = model.answer(images[[place for place, _ in turns]], questions)
    lines: list[list[str]] = [[] for _ in rows]
    for (place, turn), answer in zip(turns, answers, strict=True):
        question = turn.question.replace("<image>", "").strip()
        lines[place] += textwrap.wrap(f"{question}  {answer}", _LETTERS) + textwrap.wrap(
            f"    ({turn.answer})", _LETTERS
        )
    run.state.costs["retrieve"] = time.monotonic() - began
    return draw(np.asarray(shown.images[:]), lines)[None]


def draw(images: np.ndarray, lines: list[list[str]]) -> np.ndarray:
    """Draw images (N, S, S, 3) below each other, with lines of text beside each: uint8 (H, W, 3)."""
    heights = [max(_TILE, _LINE * len(own)) + _GAP for own in lines]
    sheet = Image.new("RGB", (_WIDTH, sum(heights) + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    top = _GAP
    for image, own, height in zip(images, lines, heights, strict=True):
        sheet.paste(Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.BICUBIC), (_GAP, top))
        for number, line in enumerate(own):
            pen.text((_TILE + 2 * _GAP, top + number * _LINE), line, fill="black", font=font)
        top += height
    return np.array(sheet)
