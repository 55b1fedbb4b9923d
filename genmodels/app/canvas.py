"""The brush: an image to paint on, and the region that was painted."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from genmodels.app.parts import Parts, picture_of
from genmodels.app.results import COMPUTING, computing
from genmodels.app.uploads import painted
from genmodels.app.work import Served
from genmodels.image_files import RefusedError, open_image

SIDE = 384
"""Smallest side of the image that is painted on."""
COLOUR = "#ff3b6b"


def canvas() -> gr.ImageEditor:
    """Draw an image that can be painted on with a brush of one colour, and nothing else."""
    editor = gr.ImageEditor(
        label="Paint over what to complete",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=40, colors=[COLOUR], default_color=COLOUR, color_mode="fixed"),
        eraser=gr.Eraser(default_size=40),
        buttons=[],
        type="numpy",
        image_mode="RGBA",
        canvas_size=(SIDE, SIDE),
        height=SIDE + 90,
    )
    # What was painted is a file from the visitor: it is opened as every other one is.
    editor.convert_and_format_image = _opened  # type: ignore[method-assign]
    return editor


def _opened(file: Any, flatten_on_white: bool = False) -> np.ndarray | None:
    """Open a picture of the canvas, uint8 (H, W, 4). It is in memory, or a file."""
    if file is None:
        return None
    content = file if isinstance(file, bytes) else Path(file.path).read_bytes()
    try:
        return np.asarray(open_image(io.BytesIO(content))[0].convert("RGBA"))
    except RefusedError as reason:
        raise gr.Error(f"the painted region cannot be read: {reason}", print_exception=False) from None


def painted_region(value: Mapping[str, Any] | None, size: int) -> np.ndarray | None:
    """Return which pixels of the model's images were painted over, bool (size, size), or None."""
    return painted(value["layers"] if value else [], size)


def show_picture(inputs: Parts, drawn: gr.Tab, served: Served) -> None:
    """Show the chosen image on the canvas of a tab when the tab is opened, and when it changes."""
    shown = gr.State()
    chosen = {key: part for key, part in inputs.items() if key.startswith("picture")}

    def show(request: gr.Request, last: Any, *given: Any) -> Any:
        values = dict(zip(chosen, given, strict=True))
        if last == list(given):  # the tab was only opened again: what was painted stays
            return gr.skip(), gr.skip()
        with computing(request, [served]):
            pixels = picture_of(served, values).pixels
        times = -(-SIDE // len(pixels))
        side = (len(pixels) * times,) * 2
        return np.asarray(Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC)), list(given)

    gr.on(
        [drawn.select, *(part.change for part in chosen.values())],
        show,
        [shown, *chosen.values()],
        [inputs["painted"], shown],
        concurrency_id=COMPUTING,
        concurrency_limit=1,
        api_visibility="private",
    )
