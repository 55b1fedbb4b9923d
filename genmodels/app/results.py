"""Results on the page, and the event that computes them: progress, cancel, errors and files."""

from __future__ import annotations

import hashlib
import html
import inspect
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from genmodels import pictures
from genmodels.app import jobs
from genmodels.app.parts import Parts
from genmodels.app.work import Result, Served
from genmodels.reading import in_one_line
from genmodels.stopping import StoppedError
from genmodels.usage import LONGEST

COMPUTING = "computing"
"""Queue of everything that computes: one job at a time, in order."""
FILES = tempfile.TemporaryDirectory(prefix="genmodels-app-")
"""Downloads: a folder for each session, in which a result replaces the last one of its tab."""
SHORT = 384
"""A picture of rows has at least this height, so that its small images can be seen."""

Compute = Callable[[Mapping[str, Any]], Sequence[Result]]


def result_parts(title: str, *kinds: str) -> Parts:
    """Draw where a result is shown.

    Args:
        title: of the images, for screen readers.
        *kinds: what there is to show: "gallery" (images with captions), "rows" (images in the rows
            of the command's picture), "frames" (one of the images, chosen by a slider), "text",
            "mask" (a further picture that the command reads).
    """
    parts: Parts = {}
    shown: dict[str, Any] = dict(label=title, show_label=False, format="png", interactive=False)
    if "frames" in kinds:
        parts["frames"] = gr.State()
        parts["frame"] = gr.Image(**shown, height=300, buttons=["download"], elem_classes="small")
        parts["place"] = gr.Slider(0, 1, value=0.5, step=0.01, label="Position", info="0: the first, 1: the last.")
    if "gallery" in kinds:
        parts["gallery"] = gr.Gallery(**shown, buttons=["download", "fullscreen"], elem_classes="faces")
    if "rows" in kinds:
        parts["rows"] = gr.Image(**shown, buttons=["download", "fullscreen"], elem_classes="small")
    if "text" in kinds:
        parts["text"] = gr.Textbox(label="Result", lines=8)
    # Not disabled, which would keep the keyboard out. The button of gr.Textbox takes its label.
    parts["command"] = gr.Textbox(label="The same on the command line", lines=2)
    with gr.Row():
        copy = gr.Button("Copy command", size="sm", min_width=110)
        copy.click(None, parts["command"], js="text => navigator.clipboard?.writeText(text)", api_visibility="private")
        parts["png"] = gr.DownloadButton("Download PNG", size="sm", min_width=110, interactive=False)
        parts["npy"] = gr.DownloadButton("Download .npy", size="sm", min_width=110, interactive=False)
        if "mask" in kinds:
            parts["mask"] = gr.DownloadButton("Download mask", size="sm", min_width=110, interactive=False)
    if "frames" in kinds:
        parts["place"].change(
            _frame,
            [parts["frames"], parts["place"]],
            parts["frame"],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    return parts


def on_click(
    button: gr.Button,
    stop: gr.Button,
    served: Sequence[Served],
    name: str,
    inputs: Parts,
    results: Sequence[Parts],
    compute: Compute,
) -> None:
    """Compute results when a button is clicked, until another one is.

    Args:
        button, stop: start and cancel.
        served: the models that may compute.
        name: of the endpoint, for programs that use the page, and of the folder of the files.
        inputs: parts whose values `compute` takes, by name.
        results: where its results are shown, one for each.
        compute: computes them.
    """
    # A slider that chooses a frame is no output: it keeps its place.
    outputs = [{key: part for key, part in parts.items() if key != "place"} for parts in results]

    def call(request: gr.Request, *given: Any) -> list[Any]:
        *chosen, progress = given
        with computing(request, served, progress):
            made = compute(dict(zip(inputs, chosen, strict=True)))
            filled: list[Any] = []
            for place, (result, parts) in enumerate(zip(made, outputs, strict=True)):
                filled += fill(result, parts, session_folder(request) / name / str(place))
        return filled

    _name_parameters(call, list(inputs))
    flat = [part for parts in outputs for part in parts.values()]
    event = button.click(
        call,
        list(inputs.values()),
        flat,
        api_name=name,
        concurrency_id=COMPUTING,
        concurrency_limit=1,
        show_progress_on=[part for parts in outputs for key, part in parts.items() if key in SHOWN],
    )
    stop.click(_cancel, cancels=[event], queue=False, api_visibility="private")


def _name_parameters(call: Callable[..., Any], names: Sequence[str]) -> None:
    """Give a function of a request, the values of `names` and a progress bar a signature.

    From it, gradio names the parameters of the endpoint, and adds the first and the last.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("request", *names)]
    parameters.append(inspect.Parameter("progress", kind, default=gr.Progress()))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


SHOWN = ("gallery", "rows", "frame", "text")
"""Parts over which progress is shown."""


@contextmanager
def computing(
    request: gr.Request, served: Sequence[Served], progress: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Context of the job of a visitor. Its errors are shown on the page, in one line each.

    Args:
        request: of the visitor.
        served: the models that compute.
        progress: shows progress, a `gr.Progress`.
    """

    def report(blocks: int) -> None:
        if progress is not None:
            progress((blocks, None), unit="network blocks")

    try:
        with jobs.job(str(request.session_hash), [each.model for each in served], report):
            yield
    except StoppedError:
        raise gr.Error("Cancelled.", duration=4, title="", print_exception=False) from None
    except gr.Error:
        raise
    except Exception as error:
        raise _shown(error) from None
    for each in served:
        if each.is_deleted:
            gr.Warning(html.escape(f"{each.name} was deleted. This page still has it in memory, commands do not."))


def _shown(error: Exception) -> gr.Error:
    """Return an error as a short message of the page. It is shown as text, not as HTML."""
    expected = isinstance(error, (ValueError, OSError))
    if not expected:
        traceback.print_exc()
    text = in_one_line(str(error) if expected else f"{type(error).__name__}: {error}", LONGEST)
    return gr.Error(html.escape(text, quote=False), duration=15, print_exception=False)


def _cancel(request: gr.Request) -> None:
    jobs.cancel(str(request.session_hash))


def leave(request: gr.Request) -> None:
    """Stop the job of a visitor who leaves, and remove their files."""
    _cancel(request)
    shutil.rmtree(session_folder(request), ignore_errors=True)


def session_folder(request: gr.Request) -> Path:
    """Return the folder of a session's files. The name of a session comes from the visitor and may be
    any path, so the folder has its hash."""
    name = str(request.session_hash).encode(errors="replace")
    return Path(FILES.name, hashlib.sha256(name).hexdigest())


def fill(result: Result, parts: Iterable[str], folder: Path) -> list[Any]:
    """Return the values of `parts`, in order, after writing their files to `folder`.

    Pictures are shown from these files, not as arrays, so that they keep their marks when a visitor
    downloads one.
    """
    stem = Path(result.out).stem
    mark = pictures.Mark(result.kind) if result.kind else None
    folder.mkdir(parents=True, exist_ok=True)
    picture = result.picture()
    pictures.save_picture(folder / f"{stem}.png", picture, mark)
    pictures.save_images(folder / f"{stem}.npy", result.images)
    single = [folder / f"{stem}-{place}.png" for place in range(len(result.images))]
    for place, (path, image) in enumerate(zip(single, result.images, strict=True)):
        pictures.save_picture(path, Image.fromarray(image), mark if place >= result.given else None)
    values: dict[str, Any] = {
        "frames": single,
        "gallery": list(zip(single, result.captions, strict=True)),
        "text": result.text,
        "command": result.command,
        "png": gr.DownloadButton(value=folder / f"{stem}.png", interactive=True),
        "npy": gr.DownloadButton(value=folder / f"{stem}.npy", interactive=True),
    }
    if "frame" in parts:
        values["frame"] = _frame(single, 0.5)
    if "rows" in parts:
        times = -(-SHORT // picture.height)
        larger = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        values["rows"] = folder / f"{stem}-rows.png"
        pictures.save_picture(values["rows"], larger, mark)
    if "mask" in parts:
        for name, pixels in result.files.items():
            Image.fromarray(pixels).save(folder / name)
        there = bool(result.files)
        values["mask"] = gr.DownloadButton(value=folder / "mask.png" if there else None, interactive=there)
    return [values[key] for key in parts]


def _frame(frames: Sequence[Path] | None, place: float) -> Path | None:
    """Return the image at a place from 0 to 1 of an interpolation."""
    return None if frames is None else frames[round(place * (len(frames) - 1))]
