"""Scores logged during training, with a stand-in for the extractor."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fit import Stopped, assert_equal, lines, tensors
from tiny import FakeTime, Tiny, faces, recipe, tiny
from torch import Tensor

from genmodels.evaluation import monitor
from genmodels.evaluation.distances import frechet_distance
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.monitor import Monitor
from genmodels.evaluation.neighbours import manifold
from genmodels.sampling import sample
from genmodels.training.checkpoint import STATE
from genmodels.training.fit import fit

NAME = "fd_faces_n512"
COVERAGE = "coverage_faces_n512"


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Use the pixels of a 2 x 2 thumbnail as features, and return the list of batch sizes."""
    seen: list[int] = []

    def network(images: Tensor) -> Tensor:
        seen.append(len(images))
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)  # (N, 12)

    monkeypatch.setattr(monitor, "load_extractor", lambda spec, device: Extractor(spec, network, device=device))
    return seen


def thumbnails(images: np.ndarray) -> np.ndarray:
    half = images.shape[1] // 2
    means = images.reshape(-1, 2, half, 2, half, 3).mean((2, 4))
    return means.transpose(0, 3, 1, 2).reshape(-1, 12)


def test_distance_to_the_valid_split(batches: list[int]) -> None:
    data, samples = faces(1024), faces(512, seed=1).images
    watch = Monitor(data)
    assert watch.describe() == f"{NAME}: 512 samples against 256 images of the valid split"
    expected = frechet_distance(thumbnails(samples), thumbnails(data.images[768:]))
    found = watch.measure(samples)
    assert found[NAME] == pytest.approx(expected, rel=1e-4)
    assert sum(batches) == 512 + 256
    covered = manifold(thumbnails(data.images[768:]), thumbnails(samples)).coverage
    assert found[COVERAGE] == pytest.approx(covered, abs=0.02) and 0.2 < covered < 1
    assert watch.measure(samples) == found
    assert sum(batches) == 512 + 256 + 512, "features of the real images are computed once"


def test_distance_to_the_train_split_where_there_is_no_other(batches: list[int]) -> None:
    data = faces(3000)
    data.splits[:2990], data.splits[2990:] = 0, 1
    watch = Monitor(data)
    assert "against 2,048 images of the train split; there are no held-out images" in watch.describe()
    rows = np.arange(2048) * 2990 // 2048
    samples = faces(512, seed=1).images
    expected = frechet_distance(thumbnails(samples), thumbnails(data.images[rows]))
    assert watch.measure(samples)[NAME] == pytest.approx(expected, rel=1e-4)


def test_what_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"--evaluate-every \(None disables it\), train split of noise: 150 images are too few"
    ):
        Monitor(faces(200))
    with pytest.raises(ValueError, match="samples: all 512 images have the same features"):
        Monitor(faces(1024)).measure(np.full((512, 8, 8, 3), 7, np.uint8))


def test_measuring_does_not_change_what_is_trained(tmp_path: Path) -> None:
    data = faces(1024)
    plain = fit(tiny(dropout=0.2), data, recipe(tmp_path / "plain"))
    watched = fit(tiny(dropout=0.2), data, recipe(tmp_path / "watched", evaluate_every=5))
    assert_equal(plain, watched)
    ours, theirs = lines(watched), lines(plain)
    assert [line["step"] for line in ours] == [5, 10, 15, 20]
    values = [line.pop(NAME) for line in ours]
    assert all(0 <= line.pop(COVERAGE) <= 1 for line in ours)
    assert len(set(values)) == 4
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    assert all(line.keys() == other.keys() for line, other in zip(ours, theirs, strict=True))
    # The last score equals that of the exported model: both are calibrated on 768 images.
    samples = sample(Tiny.from_pretrained(str(watched)), 512, progress=False)
    assert values[-1] == pytest.approx(Monitor(data).measure(samples)[NAME], rel=1e-6)


def test_a_number_stands_in_the_line_of_its_step(tmp_path: Path) -> None:
    run = fit(tiny(), faces(1024), recipe(tmp_path / "run", log_every=8, evaluate_every=6))
    assert [line["step"] for line in lines(run)] == [6, 8, 12, 16, 18, 20]
    assert [line["step"] for line in lines(run) if NAME in line] == [6, 12, 18]


def test_a_resumed_run_measures_the_same(tmp_path: Path) -> None:
    settings = dict(evaluate_every=4, log_every=4)
    whole = fit(tiny(dropout=0.2), faces(1024), recipe(tmp_path / "whole", **settings))
    with pytest.raises(SystemExit):
        fit(tiny(Stopped, dropout=0.2), faces(1024), recipe(tmp_path / "parts", **settings))
    parts = fit(tiny(dropout=0.2), faces(1024), recipe(tmp_path / "parts", resume=True, **settings))
    assert_equal(whole, parts)
    found = {line["step"]: line[NAME] for line in lines(parts) if NAME in line}
    assert found == {line["step"]: line[NAME] for line in lines(whole)}


def test_a_failed_measurement_is_null_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Collapsed(Tiny):
        def sample(self, *given: object) -> Tensor:
            return super().sample(*given) * float("nan")

    data = faces(1024)
    run = fit(tiny(Collapsed), data, recipe(tmp_path / "run", evaluate_every=10))
    said = [line for line in capsys.readouterr().err.splitlines() if NAME in line]
    same = (
        "all 512 images have the same features: they are one image repeated, or the model has collapsed; "
        "look at the images"
    )
    assert said == [
        f"{NAME}: 512 samples against 256 images of the valid split",
        f"no {NAME} at step 10: samples: {same}",
        f"no {NAME} at step 20: samples: {same}",
    ]
    assert [(line["step"], line.get(NAME, "-")) for line in lines(run)] == [(5, "-"), (10, None), (15, "-"), (20, None)]
    assert_equal(run, fit(tiny(), data, recipe(tmp_path / "plain")))


def test_whatever_goes_wrong_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Monitor, samples: np.ndarray) -> dict[str, float]:
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(Monitor, "measure", fail)
    run = fit(tiny(), faces(1024), recipe(tmp_path / "run", evaluate_every=20))
    assert lines(run)[-1][NAME] is None
    assert f"no {NAME} at step 20: no memory\n" in capsys.readouterr().err
    monkeypatch.setattr(Monitor, "measure", lambda self, samples: {NAME: float("inf"), COVERAGE: 1.0})
    run = fit(tiny(), faces(1024), recipe(tmp_path / "other", evaluate_every=20))
    assert lines(run)[-1][NAME] is None
    assert f"no {NAME} at step 20: it is inf\n" in capsys.readouterr().err


def test_its_time_is_within_the_minutes_and_out_of_images_per_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeTime(monkeypatch)

    class Steady(Tiny):
        def after_step(self) -> None:
            super().after_step()
            time.now += 0.02

    def slow(self: Monitor, samples: np.ndarray) -> dict[str, float]:
        time.now += 0.3
        return {NAME: 1.0, COVERAGE: 1.0}

    monkeypatch.setattr(Monitor, "measure", slow)
    start = time.now
    settings = dict(steps=None, minutes=2 / 60, sample_every=10, evaluate_every=10, log_every=10)
    run = fit(tiny(Steady), faces(1024), recipe(tmp_path / "run", **settings))
    assert 1.5 < time.now - start <= 2
    assert lines(run)[-1]["elapsed"] > 1.5
    assert {line["images_per_second"] for line in lines(run)} == {8 / 0.02}
    state = json.loads((sorted((run / "checkpoints").iterdir())[-1] / STATE).read_text())["state"]
    assert state["costs"]["measure"] == pytest.approx(0.3)


def test_too_few_real_images_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=re.escape("--evaluate-every (None disables it), train split of noise: 72 images are too few"),
    ):
        fit(tiny(), faces(), recipe(tmp_path / "run", evaluate_every=5))
    assert not (tmp_path / "run").exists()
    assert len(tensors(fit(tiny(), faces(), recipe(tmp_path / "run")))) == 3


class Diagnosed(Tiny):
    """Model whose diagnosis is the mean brightness, with a warning at step 10."""

    def diagnose(self, seen: Tensor, held_out: Tensor) -> tuple[dict[str, float], list[str]]:
        assert not self.training and not torch.is_grad_enabled() and len(seen) == len(held_out) == 256
        return {"seen": seen.mean().item(), "held_out": held_out.mean().item()}, ["all is lost"]


def test_a_model_says_how_its_training_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = faces(1024)
    run = fit(tiny(Diagnosed), data, recipe(tmp_path / "run", evaluate_every=10))
    found = {line["step"]: line for line in lines(run) if "seen" in line}
    assert list(found) == [10, 20]
    every_third = data.images[:768][np.arange(256) * 3]
    assert found[10]["seen"] == pytest.approx(every_third.mean() / 127.5 - 1, abs=1e-4)
    assert found[10]["held_out"] == pytest.approx(data.images[768:].mean() / 127.5 - 1, abs=1e-4)
    said = capsys.readouterr().err
    assert "warning, step 10: all is lost\n" in said and "warning, step 20: all is lost\n" in said


def test_lost_variety_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run warns as well: the best coverage is in its log."""
    covered = iter((0.4, 0.5, 0.26, 0.2))
    monkeypatch.setattr(Monitor, "measure", lambda self, samples: {NAME: 1.0, COVERAGE: next(covered)})
    fit(tiny(), faces(1024), recipe(tmp_path / "run", evaluate_every=5, keep=9))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == 1 and said[0].startswith(
        "warning, step 20: the samples have lost variety: coverage of real images is 20%, down from 50%."
    )
