"""Tabs of a model: one for each thing that it can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from genmodels.app import work
from genmodels.app.canvas import canvas, painted_region, show_picture
from genmodels.app.controls import option_controls, whole_number
from genmodels.app.parts import (
    MOST,
    Parts,
    condition_of,
    condition_parts,
    option_parts,
    options_of,
    picture_of,
    picture_parts,
    seed_and_count,
)
from genmodels.app.results import on_click, result_parts
from genmodels.app.work import DIRECTIONS, Result, Served
from genmodels.variations import can_vary

Values = Mapping[str, Any]


def _tab(
    served: Served,
    title: str,
    about: str,
    parts: Callable[[], Parts],
    compute: Callable[[Values], Result],
    *kinds: str,
) -> tuple[gr.Tab, Parts]:
    """Draw a tab with controls on the left and results on the right, below each other on a phone.

    Args:
        served: the model.
        title: title of the tab and of its button.
        about: what it does, in a sentence.
        parts: draws the controls and returns them by name.
        compute: computes the result from their values.
        *kinds: kinds of results, see `result_parts`.

    Returns:
        The tab and its controls.
    """
    with gr.Tab(title) as drawn:
        gr.Markdown(about)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                inputs = parts()
                with gr.Row():
                    button = gr.Button(title, variant="primary", min_width=140)
                    stop = gr.Button("Cancel", min_width=90)
            with gr.Column(scale=3, min_width=300):
                results = result_parts(title, *kinds)
    on_click(button, stop, [served], served.endpoint(title), inputs, [results], lambda values: [compute(values)])
    return drawn, inputs


def _conditions(served: Served) -> Parts:
    return condition_parts(served.model.conditions, served.model.can("tokenize"))


def _count(values: Values, name: str = "n") -> int:
    return whole_number(values[name], name)


def _seed(values: Values) -> int:
    return whole_number(values["seed"])


def sample(served: Served) -> None:
    """Draw the tab of samples."""
    controls = option_controls(served.model)
    _tab(
        served,
        "Sample",
        "New images. Image number i of a seed is always the same.",
        lambda: seed_and_count() | _conditions(served) | option_parts(controls),
        lambda v: work.sample(served, _count(v), _seed(v), condition_of(v), options_of(controls, v)),
        "gallery",
    )


def vary(served: Served) -> None:
    """Draw the tab of variations."""
    controls = option_controls(served.model)
    edits = served.model.can("edit")

    def parts() -> Parts:
        chosen = picture_parts(served) | {"strength": gr.Slider(0.05, 1, value=0.5, step=0.05, label="Strength")}
        chosen |= seed_and_count(8, 32)
        return chosen | (_conditions(served) if edits else {}) | option_parts(controls)

    def compute(v: Values) -> Result:
        options = options_of(controls, v)
        return work.vary(served, picture_of(served, v), _count(v), v["strength"], _seed(v), condition_of(v), options)

    _tab(served, "Variations", "Images that resemble one image.", parts, compute, "gallery")


def reconstruct(served: Served) -> None:
    """Draw the tab of reconstructions."""
    _tab(
        served,
        "Reconstruct",
        "An image as the model encodes and decodes it: what it cannot represent is lost.",
        lambda: picture_parts(served),
        lambda v: work.reconstruct(served, picture_of(served, v)),
        "gallery",
    )


def _frames() -> Parts:
    return {"frames": gr.Slider(2, 32, value=16, step=1, label="Number of images")}


def interpolate(served: Served) -> None:
    """Draw the tab of interpolations between samples, and between prompts."""
    controls = option_controls(served.model)
    prompts = ("first_prompt", "second_prompt") if served.model.can("interpolate_prompts") else ()

    def parts() -> Parts:
        ends: Parts = {
            "first": gr.Number(1, label="First seed", precision=0),
            "second": gr.Number(2, label="Second seed", precision=0),
        }
        about = "With two prompts, the way leads from one to the other, from the noise of the first seed."
        for name in prompts:
            ends[name] = gr.Textbox(label=name.replace("_", " ").capitalize(), info=about)
        return ends | _frames() | option_parts(controls)

    def compute(v: Values) -> Result:
        first, second = (whole_number(v[name], f"the {name} seed") for name in ("first", "second"))
        sentences = [v[name] or "" for name in prompts]
        return work.interpolate(served, first, second, _count(v, "frames"), options_of(controls, v), sentences)

    _tab(served, "Interpolate", "The way from one sample to another.", parts, compute, "frames", "gallery")


def morph(served: Served) -> None:
    """Draw the tab of interpolations between images."""
    controls = option_controls(served.model)

    def compute(v: Values) -> Result:
        ends = [picture_of(served, v, key) for key in ("picture", "second")]
        return work.morph(served, ends[0], ends[1], _count(v, "frames"), options_of(controls, v))

    _tab(
        served,
        "Morph",
        "The way from one image to another. Both are reconstructed first.",
        lambda: picture_parts(served) | picture_parts(served, "second", 2) | _frames() | option_parts(controls),
        compute,
        "frames",
        "gallery",
    )


def edit(served: Served) -> None:
    """Draw the tab of edits."""
    controls = option_controls(served.model)

    def parts() -> Parts:
        chosen = picture_parts(served)
        chosen["strength"] = gr.Slider(0.05, 1, value=0.5, step=0.05, label="Strength", info="1 replaces everything.")
        chosen["seed"] = gr.Number(0, label="Seed", precision=0)
        return chosen | _conditions(served) | option_parts(controls)

    def compute(v: Values) -> Result:
        picture = picture_of(served, v)
        return work.edit(served, picture, v["strength"], _seed(v), condition_of(v), options_of(controls, v))

    _tab(served, "Edit", "An image with noise added and removed again.", parts, compute, "gallery")


def inpaint(served: Served) -> None:
    """Draw the tab of completions, with a brush for the region to complete."""
    controls = option_controls(served.model, "inpaint")

    def parts() -> Parts:
        chosen = picture_parts(served)
        chosen["painted"] = canvas()
        chosen["known"] = gr.Slider(
            0, 0.95, value=0.5, step=0.05, label="Known part", info="Used if nothing is painted: rows from the top."
        )
        return chosen | seed_and_count(6, 32) | _conditions(served) | option_parts(controls)

    def compute(v: Values) -> Result:
        picture, unknown = picture_of(served, v), painted_region(v["painted"], served.model.config.size)
        n, seed, condition = _count(v), _seed(v), condition_of(v)
        return work.inpaint(served, picture, unknown, v["known"], n, seed, condition, options_of(controls, v))

    about = "Paint over what the model should complete. A model that works row by row takes only whole rows."
    drawn, inputs = _tab(served, "Inpaint", about, parts, compute, "gallery", "mask")
    show_picture(inputs, drawn, served)


def directions(served: Served) -> None:
    """Draw the tab of attributes, each with a slider."""
    names = [name for name in DIRECTIONS if name in served.attributes]

    def parts() -> Parts:
        sliders: Parts = {name: gr.Slider(-3, 3, value=0, step=0.1, label=name.replace("_", " ")) for name in names}
        return sliders | picture_parts(served)

    def compute(v: Values) -> Result:
        picture = picture_of(served, v) if v["picture"] else None
        seed = whole_number(v.get("picture_seed", 0), "the seed of the sample")
        return work.change(served, picture, seed, {name: float(f"{v[name]:.6g}") for name in names})

    _tab(
        served,
        "Directions",
        "A face with more or less of some attributes. 1 is the distance between faces without and with one. "
        "The directions are computed from training images at first, which takes a while.",
        parts,
        compute,
        "gallery",
    )


def trajectory(served: Served) -> None:
    """Draw the tab of trajectories."""
    controls = option_controls(served.model)

    def parts() -> Parts:
        chosen = seed_and_count(2, 8)
        chosen["frames"] = gr.Slider(2, 20, value=8, step=1, label="Number of steps to show")
        return chosen | _conditions(served) | option_parts(controls)

    def compute(v: Values) -> Result:
        settings = condition_of(v), options_of(controls, v)
        return work.trajectory(served, _count(v), _seed(v), _count(v, "frames"), *settings)

    about = "How noise becomes images: each has a row of steps, and a row of predictions of the final image."
    _tab(served, "Trajectory", about, parts, compute, "rows")


def retrieve(served: Served) -> None:
    """Draw the tabs of images for a sentence, and of sentences for an image."""
    _tab(
        served,
        "Retrieve",
        "The images that are closest to a sentence, among the held-out images of the data the model was trained on.",
        lambda: {
            "sentence": gr.Textbox("a smiling woman with glasses", label="Sentence"),
            "n": gr.Slider(1, MOST, value=16, step=1, label="Number of images"),
        },
        lambda v: work.retrieve(served, v["sentence"] or "", _count(v)),
        "gallery",
    )
    _tab(
        served,
        "Captions",
        "The sentences that are closest to an image.",
        lambda: picture_parts(served) | {"n": gr.Slider(1, MOST, value=8, step=1, label="Number of sentences")},
        lambda v: work.captions(served, picture_of(served, v), _count(v)),
        "gallery",
        "text",
    )


def ask(served: Served) -> None:
    """Draw the tab of questions about an image."""
    _tab(
        served,
        "Ask",
        "The answer to a question about an image. It can be wrong, however certain it sounds.",
        lambda: picture_parts(served) | {"question": gr.Textbox("Is this person smiling?", label="Question")},
        lambda v: work.ask(served, picture_of(served, v), v["question"] or ""),
        "gallery",
        "text",
    )


def tabs(served: Served) -> None:
    """Draw a tab for each thing that a model can do."""
    can = served.model.can
    rows: list[tuple[bool, Callable[[Served], None]]] = [
        (can("sample"), sample),
        (can_vary(served.model), vary),
        (can("reconstruct"), reconstruct),
        (can("interpolate"), interpolate),
        (can("morph"), morph),
        (can("edit"), edit),
        (can("inpaint"), inpaint),
        (can("latent_directions") and bool(set(DIRECTIONS) & set(served.attributes)), directions),
        (can("trajectory"), trajectory),
        (can("embed") and can("tokenize"), retrieve),
        (can("answer"), ask),
    ]
    with gr.Tabs():
        for offered, draw in rows:
            if offered:
                draw(served)
