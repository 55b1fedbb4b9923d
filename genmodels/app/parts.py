"""Parts of the page that a visitor chooses by, and the values that they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from genmodels.app.controls import Control, chosen_options, class_choices, condition_values, whole_number
from genmodels.app.uploads import Picture, sampled, uploaded
from genmodels.app.work import Served
from genmodels.conditions import ConditionConfig

Values = Mapping[str, Any]
Parts = dict[str, Component]

MOST = 64
"""Largest number of images at a time."""
OPTION = "option_"
"""Prefix of the names of sampling options among the parts of a tab."""


def seed_and_count(n: int = 16, most: int = MOST) -> Parts:
    """Draw a seed and a number of images."""
    return {
        "seed": gr.Number(0, label="Seed", precision=0, info="The same seed gives the same images."),
        "n": gr.Slider(1, most, value=n, step=1, label="Number of images"),
    }


def condition_parts(conditions: ConditionConfig, text: bool) -> Parts:
    """Draw what a model can be conditioned on."""
    parts: Parts = {}
    if text:
        parts["prompt"] = gr.Textbox(label="Prompt", placeholder="a smiling woman with glasses")
    if conditions.classes:
        names = class_choices(conditions)
        parts["label"] = (
            gr.Dropdown([("any", ""), *names], value="", label="Class")
            if names
            else gr.Textbox(label="Class", info=f"A name, or a number below {conditions.classes:,}.")
        )
    if conditions.attributes:
        names = list(conditions.attributes)
        parts["present"] = gr.Dropdown(names, multiselect=True, label="With", info="Attributes the images should have.")
        parts["absent"] = gr.Dropdown(names, multiselect=True, label="Without", info="Attributes they should not have.")
    return parts


def option_parts(controls: Sequence[Control]) -> Parts:
    """Draw sampling options: the most common ones, and the others in a part that can be opened."""
    parts = {OPTION + control.name: _control(control) for control in controls if control.first}
    others = [control for control in controls if not control.first]
    if others:
        with gr.Accordion("More options", open=False):
            parts |= {OPTION + control.name: _control(control) for control in others}
    return parts


def _control(control: Control) -> Component:
    """Draw one control."""
    common: dict[str, Any] = {"label": control.title, "info": control.about or None}
    if control.kind == "slider":
        low, high, step = control.range
        return gr.Slider(low, max(high, control.default), value=control.default, step=step, **common)
    if control.kind == "choice":
        names = [("default" if choice is None else str(choice), choice) for choice in control.choices]
        return gr.Dropdown(names, value=control.default, **common)
    if control.kind == "switch":
        return gr.Checkbox(control.default, **common)
    if control.kind == "text":
        return gr.Textbox(control.default, **common)
    return gr.Number(control.default, precision=0 if control.kind == "whole" else None, **common)


def picture_parts(served: Served, key: str = "picture", seed: int = 1) -> Parts:
    """Draw the choice of an image to work on: an upload, or a sample of the model."""
    parts: Parts = {key: gr.File(label="Your image", file_types=["image"], height=150)}
    if served.model.can("sample"):
        parts[f"{key}_seed"] = gr.Number(
            seed, label="Or a sample of the model: its seed", precision=0, info="Used if there is no image above."
        )
    return parts


def picture_of(served: Served, values: Values, key: str = "picture") -> Picture:
    """Return the image that a visitor chose to work on."""
    if values[key] or f"{key}_seed" not in values:
        return uploaded(values[key], served.model.config.size)
    return sampled(served.name, served.model, whole_number(values[f"{key}_seed"], "the seed of the sample"))


def condition_of(values: Values) -> dict[str, Any]:
    """Return the chosen condition, as `ConditionConfig.condition` takes it."""
    present, absent = (values.get(name) or () for name in ("present", "absent"))
    return condition_values(present, absent, values.get("label"), values.get("prompt"))


def options_of(controls: Sequence[Control], values: Values) -> dict[str, Any]:
    """Return the chosen options that differ from their defaults."""
    return chosen_options(controls, [values[OPTION + control.name] for control in controls])
