"""The retrieval sheet of a run, and the model card of a model that embeds images and sentences."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from oracle_clip import Oracle, OracleConfig, quarters
from PIL import Image
from tiny import recipe

from genmodels.evaluation import features
from genmodels.evaluation.retrieval_sheet import COLUMNS, Search, draw, nearest
from genmodels.training.fit import fit
from genmodels.training.limits import AT_THE_END, ON_THE_WAY, Limits
from genmodels.training.retrieval import retrieval_sheet


def running(**changes: Any) -> Any:
    """A run as far as a sheet needs it."""
    parts = {
        "accelerator": SimpleNamespace(is_main_process=True),
        "ema": Oracle(OracleConfig()),
        "data": quarters().split("train"),
        "held_out": quarters().split("valid"),
        "clock": SimpleNamespace(budget=None),
        "stop": SimpleNamespace(requested=False),
        "state": SimpleNamespace(costs={}),
    }
    return SimpleNamespace(**(parts | changes))


def test_fit_draws_a_sheet_and_puts_it_into_the_card(tmp_path: Path) -> None:
    run = fit(Oracle(OracleConfig()), quarters(), recipe(tmp_path / "run", size=16, batch_size=30, steps=4))
    sheets = sorted((run / "retrievals").iterdir())
    assert sheets[-1].name == "step_00000004.png" and Image.open(sheets[-1]).width == COLUMNS * 136 + 8
    card = (run / "README.md").read_text()
    assert (
        f"not selected. They are of the data set: check its licence before sharing them](retrievals/{sheets[-1].name})"
        in card
    )
    assert 'model.embed_texts(model.tokenize(["a smiling woman' in card and "zero-shot-image-classification" in card
    assert "genmodels retrieve PATH" in card and "model.generate" not in card


def test_the_images_of_a_sheet_are_the_nearest_held_out_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Search] = []
    monkeypatch.setattr(
        "genmodels.evaluation.retrieval_sheet.draw", lambda searches: drawn.extend(searches) or np.zeros(3)
    )
    run = running()
    retrieval_sheet(run, AT_THE_END)
    assert len(drawn) == 8 and run.state.costs["retrieve"] > 0
    valid = {image.tobytes() for image in quarters().split("valid").images}
    for search in drawn:
        assert len(search.images) == len(search.labels) == COLUMNS
        assert all(image.tobytes() in valid for image in search.images)
        values = [float(label.split()[0]) for label in search.labels]
        assert values == sorted(values, reverse=True)
    retrieval_sheet(running(held_out=None), AT_THE_END)
    assert not any(image.tobytes() in valid for image in drawn[-1].images)


def test_time_and_a_signal_limit_how_many_images_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = features._compute
    monkeypatch.setattr(features, "_compute", lambda images, *rest: read.append(len(images)) or original(images, *rest))
    assert retrieval_sheet(running(), ON_THE_WAY) is not None and read == [128, 128, 44]
    for changes, limits in (
        ({"clock": SimpleNamespace(budget=1e-9)}, ON_THE_WAY),
        ({"stop": SimpleNamespace(requested=True)}, ON_THE_WAY),
        ({}, Limits(fewest=1, most=1, share=0.1, drawing=0.1, seconds=0.0)),
    ):
        read.clear()
        assert retrieval_sheet(running(**changes), limits) is not None and read == [128]
    read.clear()
    assert retrieval_sheet(running(accelerator=SimpleNamespace(is_main_process=False)), ON_THE_WAY) is None
    assert not read


def test_nearest_is_in_order_of_the_cosine() -> None:
    candidates = np.array([[1, 0], [0, 1], [0.6, 0.8]])
    order, similarity = nearest(np.array([0.0, 1.0]), candidates, 2)
    assert order.tolist() == [1, 2] and similarity.tolist() == [1, 0.8]
    assert nearest(np.array([0.0, 1.0]), candidates, 9)[0].tolist() == [1, 2, 0]


def test_long_sentences_are_wrapped_and_odd_characters_do_not_fail() -> None:
    images = np.zeros((9, 8, 8, 3), np.uint8)
    short, long = (
        draw([Search(words, images, ["1.000"] * 9)]) for words in ("a face", "a \x00 smiling \ud800 face " * 20)
    )
    assert long.shape[0] > short.shape[0] and short.shape[1] == long.shape[1]
    assert (short[8 + 18 + 10, 18] == 0).all() and short.dtype == np.uint8
