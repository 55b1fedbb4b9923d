"""Displays during training: grids that fit into the time, and an end at once after Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FakeTime, Tiny, TinyConfig, faces, recipe, tiny
from torch import Tensor

from genmodels.conditions import UNCONDITIONAL, Condition, ConditionConfig
from genmodels.pictures import cut_grid
from genmodels.sampling import sample
from genmodels.stopping import StoppedError
from genmodels.training import show
from genmodels.training.fit import fit
from genmodels.training.limits import AT_THE_END, ON_THE_WAY, STOPPED
from genmodels.types import Noise


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    Costly.clock = FakeTime(monkeypatch)
    Costly.batches.clear()


class Costly(Tiny):
    """Model that samples in many evaluations of a network, which take time for every image."""

    seconds = 0.0
    """Time of one evaluation of one image."""
    evaluations = 50
    interrupted_at: int | None = None
    """Evaluation at which Ctrl-C is pressed."""
    batches: ClassVar[list[int]] = []
    clock: ClassVar[FakeTime]

    def after_step(self) -> None:
        super().after_step()
        self.clock.now += 1.0

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        self.batches.append(len(noise))
        for evaluation in range(self.evaluations):
            if evaluation == self.interrupted_at:
                os.kill(os.getpid(), signal.SIGINT)
            self.decoder(torch.zeros(1, self.config.width))
            self.clock.now += self.seconds * len(noise)
        return super().sample(noise, condition, options)


def costly(**settings: Any) -> Costly:
    return tiny(type("Costly", (Costly,), settings))


def grids(run: Path) -> list[Path]:
    return sorted((run / "samples").glob("*.png"))


def test_the_grid_is_as_large_as_its_measured_cost_allows(tmp_path: Path) -> None:
    began = Costly.clock.now
    settings = recipe(tmp_path / "run", steps=None, minutes=1)
    fit(costly(seconds=0.004), faces(), settings)  # 0.2 s for an image, 12.8 s for 64
    assert 54 < Costly.clock.now - began < 61.5  # it ends within one step
    # In 2% of the minute, of which the first grid spends 0.2 s on measuring, and in 5% at the end.
    assert [len(cut_grid(path, 8)) for path in grids(tmp_path / "run")] == [4, 4, 4, 4, 9]
    model = Costly.from_pretrained(str(tmp_path / "run"))
    model.evaluations = 0
    images = sample(model, 64, settings.seed, progress=False)
    assert np.abs(cut_grid(grids(tmp_path / "run")[-1], 8).astype(int) - images[:9]).max() <= 1
    assert f"](samples/{grids(tmp_path / 'run')[-1].name})" in (tmp_path / "run" / "README.md").read_text()


def test_no_image_is_drawn_that_takes_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = Costly.clock.now
    fit(costly(seconds=0.5), faces(), recipe(tmp_path / "run", steps=None, minutes=1))  # 25 s for an image
    assert 54 < Costly.clock.now - began < 64  # it is given up at 63 s
    assert not grids(tmp_path / "run")
    said = capsys.readouterr().err
    line = "no samples are drawn: one image takes more than 5% of the run; "
    assert said.count(f"{line}another is tried at the end\n") == 1
    assert said.count(f"{line}draw one afterwards: genmodels sample {tmp_path / 'run'} --n 1\n") == 1
    assert said.count(line) == 2
    assert "](samples/" not in (tmp_path / "run" / "README.md").read_text()
    assert Costly.from_pretrained(str(tmp_path / "run"))


def test_an_image_that_takes_a_little_longer_than_the_first_is_still_drawn(tmp_path: Path) -> None:
    class Slowing(Costly):
        seconds = 0.058  # 2.9 s for an image, of which 5 % of a minute allow one

        def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
            images = super().sample(noise, condition, options)
            type(self).seconds = 0.07
            return images

    fit(tiny(Slowing), faces(), recipe(tmp_path / "run", steps=None, minutes=1))
    assert [Image.open(path).size for path in grids(tmp_path / "run")] == [(8, 8), (8, 8)]  # at 5 % and at the end


def test_a_first_image_that_was_too_slow_is_tried_again_at_the_end(tmp_path: Path) -> None:
    began = Costly.clock.now
    fit(costly(seconds=0.14), faces(), recipe(tmp_path / "run", steps=None, minutes=1))  # 7 s: 12 % of the time
    assert [Image.open(path).size for path in grids(tmp_path / "run")] == [(8, 8)]
    assert 60 < Costly.clock.now - began < 63.5


def test_with_steps_the_grid_is_whole_and_goes_on_with_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(costly(seconds=0.018), faces(), recipe(tmp_path / "run", steps=2, sample_every=9))  # 0.9 s for an image
    assert [len(cut_grid(path, 8)) for path in grids(tmp_path / "run")] == [64]
    assert Costly.batches == [1, 64]
    assert re.findall(r"step 2: sampling 64 images, (.*) of about 0:58\n", capsys.readouterr().err) == ["0:10", "0:41"]


def test_slow_images_are_sampled_in_small_batches_which_stop_sooner(tmp_path: Path) -> None:
    fit(costly(seconds=0.1), faces(), recipe(tmp_path / "run", steps=2, sample_every=9))  # 5 s for an image
    assert Costly.batches == [1, *[12] * 5, 4]
    assert [len(cut_grid(path, 8)) for path in grids(tmp_path / "run")] == [64]


def test_ctrl_c_ends_sampling_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = costly(seconds=10.0, interrupted_at=2)  # 500 s for an image
    began = Costly.clock.now
    with pytest.raises(SystemExit) as stop:
        fit(model, faces(), recipe(tmp_path / "run", sample_every=2))
    assert stop.value.code == 1
    assert Costly.clock.now - began < 40
    assert not grids(tmp_path / "run")
    assert "stopped by a signal at step 2; saved" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "step_00000002").is_dir()
    assert Costly.from_pretrained(str(tmp_path / "run"))


def test_ctrl_c_during_the_first_image_does_not_make_it_look_quick(tmp_path: Path) -> None:
    model = costly(seconds=0.6, interrupted_at=1)  # 30 s for an image, 1.2 s until the signal
    began = Costly.clock.now
    with pytest.raises(SystemExit):
        fit(model, faces(), recipe(tmp_path / "run", sample_every=2))
    assert Costly.clock.now - began < 2 + 1.2 + 3  # two steps, and at most 2 s and an evaluation for the last grid
    assert Costly.batches == [1, 1]
    assert not grids(tmp_path / "run")


def test_ctrl_c_before_a_grid_is_not_followed_by_a_whole_one(tmp_path: Path) -> None:
    class Interrupted(Costly):
        seconds = 0.018  # 0.9 s for an image

        def calibrate(self, images: Iterable[Tensor]) -> None:
            super().calibrate(images)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        fit(tiny(Interrupted), faces(), recipe(tmp_path / "run", sample_every=2))
    assert Costly.batches == [1]
    assert len(grids(tmp_path / "run")) == 1


@dataclass(frozen=True)
class OfClassesConfig(TinyConfig):
    condition: ConditionConfig = ConditionConfig(classes=3)


class OfClasses(Costly):
    """Model whose images are grey, lighter for each next class."""

    Config = OfClassesConfig

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        images = super().sample(noise, condition, options)
        labels = torch.full((len(noise),), -1) if condition.labels is None else condition.labels
        return 0.1 * images + 0.4 * labels[:, None, None, None]


def test_the_grid_shows_all_classes_in_turn(tmp_path: Path) -> None:
    model = OfClasses(OfClassesConfig())
    model.seconds = 0.004
    data = faces()
    labels = (np.arange(len(data)) % 3).astype(np.int32)
    data = replace(data, labels=labels, class_names=("sea lion", "cat", "<dog>"))
    fit(model, data, recipe(tmp_path / "run", steps=None, minutes=1))
    grid = cut_grid(grids(tmp_path / "run")[-1], 8)
    assert len(grid) == 9  # of 64, as many as there is time for: image i has the same class in all grids
    levels = grid.mean(axis=(1, 2, 3)).reshape(3, 3)
    np.testing.assert_allclose(levels, np.broadcast_to([127.5, 178.5, 229.5], (3, 3)), atol=13)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "![Samples of seed 0, of all classes in turn, not selected]" in card
    assert "3 classes: sea lion, cat, <dog>." in card
    assert 'model.generate(16, seed=0, condition={"label": "sea lion"})' in card


@pytest.mark.parametrize("signalled", [False, True])
def test_all_ranks_remember_the_same_cost_of_an_image(monkeypatch: pytest.MonkeyPatch, signalled: bool) -> None:
    agreed: list[list[float]] = []

    class Rank:
        budget = 60.0

        def __init__(self, rank: int) -> None:
            self.rank, self.asked = rank, 0

        def agree(self, *values: float, any_rank: bool = False) -> list[float]:
            self.asked += 1
            if self.rank == 0:  # the signal has arrived on rank 1, while it sampled
                agreed.append([*values, float(signalled and self.asked == 2)])
            return agreed[self.asked - 1]

    costs: list[dict[str, float]] = []
    for rank in range(2):

        def out_of_time(*_: Any, rank: int = rank, **__: Any) -> None:
            Costly.clock.now += 3.0 + rank
            raise StoppedError

        monkeypatch.setattr(show, "sample", out_of_time)
        run: Any = SimpleNamespace(
            state=SimpleNamespace(costs={}, step=1),
            clock=Rank(rank),
            stop=SimpleNamespace(requested=False),
            log=SimpleNamespace(say=lambda _: None),
            recipe=SimpleNamespace(seed=0, output="run"),
            ema=SimpleNamespace(conditions=UNCONDITIONAL, can=lambda name: False),
        )
        assert show.sample_grid(run, ON_THE_WAY) is None
        costs.append(run.state.costs)
    assert costs == 2 * [{} if signalled else {"draw": 3.0}]


def test_a_stopped_run_draws_only_what_is_quick() -> None:
    for seconds, count in ((0.01, 64), (0.2, 9), (1.5, 1), (2.5, 0)):
        run: Any = SimpleNamespace(state=SimpleNamespace(costs={"draw": seconds}), clock=SimpleNamespace(budget=None))
        assert show.images_to_draw(run, STOPPED, 0.0) == count
        assert show.images_to_draw(run, AT_THE_END, 0.0) == 64


def test_sampling_that_is_stopped_leaves_nothing_behind() -> None:
    calls: list[int] = []
    model = costly()
    with pytest.raises(StoppedError):
        sample(model, 2, progress=False, until=lambda: bool(calls.append(0)) or len(calls) > 3)
    assert len(calls) == 4
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert np.array_equal(sample(model, 2, progress=False, until=lambda: False), sample(model, 2, progress=False))


def test_minutes_without_time_for_a_step_are_an_error(tmp_path: Path) -> None:
    class Starting(Costly):
        def initialise(self, images: Iterable[Tensor]) -> None:
            Costly.clock.now += 70

    settings = recipe(tmp_path / "run", steps=None, minutes=1)
    with pytest.raises(ValueError, match=r"--minutes 1 is too short: start-up alone took 70 .* at least --minutes 2.4"):
        fit(tiny(Starting), faces(), settings)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "config.json").exists()
