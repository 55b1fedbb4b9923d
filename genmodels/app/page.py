"""The page: a part for each model, and one for two models side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.routes import INTERNAL_ROUTES

from genmodels.app import work
from genmodels.app.controls import whole_number
from genmodels.app.parts import MOST, Parts, condition_of, condition_parts, seed_and_count
from genmodels.app.results import leave, on_click, result_parts
from genmodels.app.tabs import tabs
from genmodels.app.work import Result, Served
from genmodels.conditions import UNCONDITIONAL

QUEUE = 200
"""Largest number of jobs that wait."""
STYLE = """
.faces .grid-container { grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)) !important; }
.faces .fixed-height { min-height: 14rem !important; max-height: none !important; }
.faces .caption-label { font-size: 10px !important; padding: 1px 4px !important; max-width: 100% !important; }
.small img { width: 100% !important; height: 100% !important; object-fit: contain !important; }
@media (max-width: 640px) {
  .nav-holder nav {
    flex-wrap: nowrap !important; justify-content: flex-start !important; overflow-x: auto; white-space: nowrap;
  }
}
"""
"""Small images fill their place, captions do not hide them, and links take one line on a phone."""
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")


def theme() -> gr.themes.Base:
    """Return the look of the page, with fonts of the system only."""
    return gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace")
    )


def page(served: Sequence[Served]) -> gr.Blocks:
    """Build the page of some models, at least one.

    Each model has its own address, the first one that of the page itself, and so have two models
    side by side.
    """
    with gr.Blocks(title="genmodels", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        _model(blocks, served, served[0])
    for each in served[1:]:
        with blocks.route(each.name, slug(each.name)):
            _model(blocks, served, each)
    generators = [each for each in served if each.model.can("sample")]
    if len(generators) > 1:
        with blocks.route("Side by side", "side-by-side"):
            _side_by_side(blocks, served, generators)
    blocks.queue(max_size=QUEUE, default_concurrency_limit=1)
    return blocks


def slug(name: str) -> str:
    """Return the last part of the address of a model, which is none of gradio's own."""
    words = re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-").lower()
    return f"model-{words}" if words in INTERNAL_ROUTES else words


def _frame(blocks: gr.Blocks, served: Sequence[Served]) -> None:
    """Draw what every part has: links to the others, and what happens when a visitor leaves."""
    gr.Navbar(main_page_name=served[0].name)
    blocks.unload(leave)


def _model(blocks: gr.Blocks, served: Sequence[Served], each: Served) -> None:
    """Draw the part of one model."""
    _frame(blocks, served)
    model = each.model
    size, count = model.config.size, sum(p.numel() for p in model.parameters())
    gr.Markdown(f"## {each.name}\n{model.kind}, {size} x {size} pixels, {count / 1e6:.1f} million parameters")
    tabs(each)


def _side_by_side(blocks: gr.Blocks, served: Sequence[Served], generators: Sequence[Served]) -> None:
    """Draw two models that sample from the same seed."""
    _frame(blocks, served)
    named = {each.name: each for each in generators}
    gr.Markdown("## Side by side\nImages of two models from the same seed.")
    configs = [each.model.conditions for each in generators]
    attributes = dict.fromkeys(name for config in configs for name in config.attributes)
    conditions = replace(UNCONDITIONAL, attributes=tuple(attributes))
    with gr.Row():
        inputs: Parts = {
            "left": gr.Dropdown(list(named), value=generators[0].name, label="Left"),
            "right": gr.Dropdown(list(named), value=generators[1].name, label="Right"),
        }
    with gr.Row():
        inputs |= seed_and_count(8, MOST // 2)
    if attributes or any(each.model.can("tokenize") for each in generators):
        with gr.Accordion("Condition of both", open=False):
            inputs |= condition_parts(conditions, any(each.model.can("tokenize") for each in generators))
    with gr.Row():
        button = gr.Button("Compare", variant="primary")
        stop = gr.Button("Cancel")
    results = []
    with gr.Row():
        for side in ("Left", "Right"):
            with gr.Column(min_width=300):
                results.append(result_parts(side, "gallery"))

    def compute(values: Mapping[str, Any]) -> list[Result]:
        n, seed, condition = whole_number(values["n"], "n"), whole_number(values["seed"]), condition_of(values)
        return [_named(named[values[side]], n, seed, condition) for side in ("left", "right")]

    on_click(button, stop, generators, "side_by_side", inputs, results, compute)


def _named(each: Served, n: int, seed: int, condition: Mapping[str, Any]) -> Result:
    """Sample from one of two models. Its errors name it."""
    try:
        return work.sample(each, n, seed, condition, {})
    except ValueError as error:
        raise ValueError(f"{each.name}: {error}") from None
