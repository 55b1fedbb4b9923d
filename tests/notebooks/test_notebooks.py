"""The notebooks, executed with small budgets, and their outputs, which `make docs` takes from build/notebooks."""

from __future__ import annotations

import base64
import io
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import genmodels
from genmodels.shipped import names

ROOT = Path(__file__).parent.parent.parent
BUDGETS = {"tour": "steps = 100", "anatomy": "steps = 300", "your_own_data": "steps = 60\ncount = 1200"}


@cache
def executed(name: str) -> Any:
    """Run a notebook with a small budget, write it with its outputs, and return it."""
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    small = nbformat.v4.new_code_cell(f"# Smaller budgets, of make notebooks:\n{BUDGETS[name]}")
    small.metadata["tags"] = ["injected-parameters"]
    notebook.cells.insert(place + 1, small)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "notebooks")}})
    client.execute(env=os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"})  # of tqdm: no widgets here
    out = ROOT / "build" / "notebooks" / f"{name}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out)
    return notebook


def text(name: str) -> str:
    """Return what all cells printed."""
    outputs = (output for cell in executed(name).cells for output in cell.get("outputs", []))
    return "".join(output.get("text", "") for output in outputs)


def pictures(name: str) -> list[np.ndarray]:
    """Return the pictures that all cells show, uint8 (H, W, 3)."""
    data = (output.get("data", {}) for cell in executed(name).cells for output in cell.get("outputs", []))
    pngs = [each["image/png"] for each in data if "image/png" in each]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")) for png in pngs]


def number(pattern: str, name: str) -> float:
    """Return the number of the only match of a pattern with one group."""
    (value,) = re.findall(pattern, text(name))
    return float(value.replace(",", ""))


@pytest.mark.parametrize(("name", "count"), [("tour", 9), ("anatomy", 2), ("your_own_data", 3)])
def test_every_picture_shows_something(name: str, count: int) -> None:
    shown = pictures(name)
    assert len(shown) == count
    for picture in shown:
        tile = picture[2:66, 2:66].astype(float)  # a face: neither white, nor one colour
        assert tile.std() > 10 and tile.mean() < 250


@pytest.mark.parametrize("name", sorted(BUDGETS))
def test_training_lowers_the_loss(name: str) -> None:
    (line,) = re.findall(r"^loss ([-\d. ]+)$", text(name), re.MULTILINE)
    losses = [float(value) for value in line.split()]
    assert len(losses) >= 3 and losses[-1] < losses[0]


def test_the_tour_visits_every_model_of_the_package() -> None:
    for model in names():
        assert re.search(rf"^{model} .* parameters; ", text("tour"), re.MULTILINE)
        if genmodels.load(model).can("sample"):
            assert number(rf"{model} +([\d.,]+) images/s", "tour") > 0


def test_the_flow_of_the_anatomy_learns_and_beats_the_standard_normal() -> None:
    before, after = re.findall(r"value: ([\d.]+) before, ([\d.]+) after", text("anatomy"))[0]
    assert float(after) < float(before) - 0.02
    flow, normal = (number(rf"z from {z}\s+FD-faces.*: ([\d.]+)", "anatomy") for z in ("the flow", r"N\(0, I\)"))
    assert flow < normal
    assert "'interpolate': True, 'inpaint': False" in text("anatomy")


def test_your_own_data_are_packed_and_scored() -> None:
    said = text("your_own_data")
    assert "classes: hat, no hat" in said
    assert "skipped train/hat/damaged.jpg: not an image" in said
    distance, floor = re.findall(r"fd-faces +([\d.]+) \(floor ([\d.]+)\)", said)[0]
    assert float(distance) > float(floor) > 0
    assert number(r"psnr +([\d.]+)", "your_own_data") > 15
