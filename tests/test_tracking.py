"""Trackers of --track, with a stand-in for wandb and with TensorBoard itself."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.tracking
import numpy as np
import pytest
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import TinyRecipe, faces, recipe, tiny

from genmodels.training.command_line import from_yaml
from genmodels.training.fit import fit
from genmodels.training.pipeline import train
from genmodels.vae import VAE


class FakeWandB(SimpleNamespace):
    """What accelerate and `check_login` use of the module wandb. It records what it receives."""

    def __init__(self, mode: str = "offline", fails_at: int | None = None):
        super().__init__(started=[], logged=[], finished=0, configs=[], Image=np.asarray)
        self.fails_at = fails_at
        self.config = SimpleNamespace(update=lambda values, **_: self.configs.append(values))
        self.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode))

    def login(self, verify: bool) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    def init(self, **settings: Any) -> FakeWandB:
        self.started.append(settings)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("the server does not answer")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TENSORBOARD, LoggerType.WANDB])
    return fake


def test_numbers_settings_and_grids_reach_the_tracker(tmp_path: Path, wandb: FakeWandB) -> None:
    fit(tiny(), faces(), recipe(tmp_path / "run", track="wandb"))
    (started,) = wandb.started
    assert (started["project"], started["name"], started["dir"]) == ("genmodels", "run", str(tmp_path / "run"))
    (config,) = wandb.configs
    assert config["optim.lr"] == recipe(tmp_path).optim.lr and config["model.width"] == 16
    assert config["size"] == 8 and config["output"] == str(tmp_path / "run")
    numbers = {step: values for step, values in wandb.logged if "loss" in values}
    assert list(numbers) == [5, 10, 15, 20] and numbers[20]["images"] == 160
    pictures = {step: values["samples"][0] for step, values in wandb.logged if "samples" in values}
    assert list(pictures) == [1, 5, 10, 15, 20]
    assert pictures[20].shape == (82, 82, 3)  # 8 x 8 images of 8 px, with 2 px between and around them
    assert wandb.finished == 1


def test_a_resumed_run_continues_the_same_run_of_the_tracker(tmp_path: Path, wandb: FakeWandB) -> None:
    fit(tiny(), faces(), recipe(tmp_path / "run", track="wandb", steps=10))
    fit(tiny(), faces(), recipe(tmp_path / "run", track="wandb", resume=True))
    fit(tiny(), faces(), recipe(tmp_path / "other", track="wandb", steps=5))
    first, second, other = wandb.started
    assert first["id"] == second["id"] != other["id"]
    assert second["resume"] == "allow"


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, wandb: FakeWandB, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.fails_at = 10
    run = fit(tiny(), faces(), recipe(tmp_path / "run", track="wandb"))
    assert (run / "model.safetensors").is_file()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert max(step for step, _ in wandb.logged) == 5
    warning = "warning, step 10: --track wandb failed (the server does not answer); the run goes on without it"
    said = capsys.readouterr().err
    assert said.count(warning) == said.count("--track wandb failed") == 1


def test_a_tracker_that_does_not_start_is_one_line(
    tmp_path: Path, wandb: FakeWandB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeWandB, "init", lambda self, **_: 1 / 0)
    with pytest.raises(ValueError, match="^--track wandb does not start: division by zero; choose another --track"):
        fit(tiny(), faces(), recipe(tmp_path / "run", track="wandb"))


def test_a_tracker_that_cannot_work_is_refused_before_any_image_is_packed(
    tmp_path: Path, wandb: FakeWandB, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, reason: str) -> None:
        settings = recipe(tmp_path / "run", track=name, data="folder", root=tmp_path / "absent")
        with pytest.raises(ValueError, match=reason):
            train(VAE, settings)
        with pytest.raises(ValueError, match=reason):
            fit(tiny(), faces(), settings)
        assert not (tmp_path / "run").exists()

    refused("mlflow", "^--track mlflow: mlflow is not installed: pip install 'genmodels.mlflow.', or choose")
    wandb.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
    monkeypatch.setenv("RANK", "0")
    refused("wandb", "No API key configured. Use `wandb login` to log in. Log in with .*or set WANDB_MODE=offline")


def test_tensorboard_holds_numbers_settings_and_grids(tmp_path: Path) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run", track="tensorboard"))
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 15, 20]
    assert [(event.step, event.width) for event in events.Images("samples")][-1] == (20, 82)
    (settings,) = events.Tensors("config/text_summary")
    assert b"| model.width | 16 |" in settings.tensor_proto.string_val[0]


@pytest.mark.parametrize(("old", "track"), [("true", "tensorboard"), ("false", "none")])
def test_a_config_of_an_earlier_version_is_read(tmp_path: Path, old: str, track: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"family: tiny\ntensorboard: {old}\n")
    assert from_yaml(TinyRecipe, "tiny", path).track == track
    path.write_text("family: tiny\ntensorboard: 3\n")
    with pytest.raises(ValueError, match="tensorboard: expected true or false, got 3"):
        from_yaml(TinyRecipe, "tiny", path)
    path.write_text("family: tiny\ntrack: mine\n")
    with pytest.raises(ValueError, match="track: expected one of 'tensorboard', .*got 'mine'"):
        from_yaml(TinyRecipe, "tiny", path)
