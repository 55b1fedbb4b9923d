"""A model without images as output is trained, resumed, saved, loaded and evaluated like others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contrastive import Contrastive, contrastive
from ranks import in_two_processes
from test_fit import assert_equal, lines
from tiny import TinyRecipe, faces, recipe

from genmodels.conditions import Condition
from genmodels.evaluation.evaluate import evaluate
from genmodels.evaluation.reference import reference_from
from genmodels.training.fit import fit
from genmodels.training.optim import OptimConfig
from genmodels.types import Batch, Noise

FAST = OptimConfig(lr=1e-2, warmup=0)


def labelled(n: int) -> Batch:
    """Held-out images with their attributes."""
    data = faces(400).split("valid")
    images = torch.from_numpy(np.asarray(data.images[:n])).permute(0, 3, 1, 2) / 127.5 - 1
    return Batch(images, Noise.for_images(0, range(n)), Condition(torch.from_numpy(data.attributes[:n]).float()))


def test_it_trains_and_is_saved_without_a_sample_grid(tmp_path: Path) -> None:
    run = fit(contrastive(), faces(), recipe(tmp_path / "run", steps=60, optim=FAST))
    assert lines(run)[-1]["loss"] < lines(run)[0]["loss"]
    assert {path.name for path in run.iterdir()} == {
        "config.json", "model.safetensors", "README.md", "config.yaml", "metrics.jsonl", "checkpoints",
    }  # fmt: skip
    loaded = Contrastive.from_pretrained(str(run))
    assert loaded.config == contrastive().config and not loaded.can("sample")
    card = (run / "README.md").read_text()
    assert "pipeline_tag" not in card and "model.generate" not in card and "![" not in card


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = fit(contrastive(), faces(), recipe(tmp_path / "whole"))
    settings = recipe(tmp_path / "parts")
    fit(contrastive(), faces(), replace(settings, steps=10, optim=replace(settings.optim, schedule="constant")))
    half = tmp_path / "parts" / "checkpoints" / "step_00000010"
    assert half.is_dir()
    steady = replace(recipe(tmp_path / "steady"), optim=replace(settings.optim, schedule="constant"))
    uninterrupted = fit(contrastive(), faces(), steady)
    continued = fit(contrastive(), faces(), replace(steady, output=tmp_path / "parts", resume=True))
    assert_equal(uninterrupted, continued)
    assert whole.is_dir()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_two_processes(Path(__file__).parent / "contrastive.py", tmp_path / "two")
    one = fit(contrastive(), faces(), recipe(tmp_path / "one"))
    assert_equal(one, tmp_path / "two", tolerance=2e-5)
    assert lines(one)[-1]["loss"] == pytest.approx(lines(tmp_path / "two")[-1]["loss"], rel=1e-4)


def test_a_batch_that_belongs_together_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="remove --accumulate 2"):
        fit(contrastive(), faces(), recipe(tmp_path / "run", accumulate=2))
    assert not (tmp_path / "run").exists()


def test_its_own_metrics_are_evaluated(tmp_path: Path) -> None:
    run = fit(contrastive(), faces(400), recipe(tmp_path / "run", steps=60, optim=FAST))
    model, untrained = Contrastive.from_pretrained(str(run)), contrastive().eval()
    result = evaluate(model, reference_from(faces(1200), "valid"))
    score = result.scores["recall"]
    assert score.protocol.n == 300 and 0 < score.value <= 1
    assert score.value == evaluate(model, reference_from(faces(1200), "valid")).scores["recall"].value
    assert "parameters" in result.scores and not any(name.startswith("fd") for name in result.scores)
    assert json.loads(result.to_json())["scores"]["recall"]["value"] == score.value
    assert model.loss(labelled(64), "model")[0] < untrained.loss(labelled(64), "model")[0]


def test_without_samples_no_scores_of_samples_are_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(contrastive(), faces(1200), recipe(tmp_path / "run", steps=2, evaluate_every=2))
    assert "samples against" not in capsys.readouterr().err


def test_config_yaml_of_a_plain_recipe_names_the_model(tmp_path: Path) -> None:
    run = fit(contrastive(), faces(), recipe(tmp_path / "run", steps=2))
    assert isinstance(recipe(run), TinyRecipe)
    assert "width: 8" in (run / "config.yaml").read_text()
