"""A --minutes budget is kept at any size: long steps, slow start-up, calibration and encoding."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_show import Costly, grids
from tiny import FakeTime, Tiny, faces, recipe, tiny
from torch import Tensor

from genmodels.data.packed import Packed
from genmodels.training import limits, pipeline, setup
from genmodels.training.fit import fit
from genmodels.training.limits import AT_THE_END, ON_THE_WAY, most_images, timed_batches
from genmodels.training.pipeline import with_cached_latents
from genmodels.types import Batch


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    Costly.clock = FakeTime(monkeypatch)
    return Costly.clock


class Large(Costly):
    """Model whose every task takes as long as those of a model of large images do."""

    step = 1.0
    """Seconds of a step."""
    image = 0.0
    """Seconds to read an image for initialisation or calibration."""
    images_seen = 0

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        self.clock.now += self.step - 1.0  # the step itself is 1 s
        return super().loss(batch, turn)

    def slowly(self, images: Iterable[Tensor]) -> list[Tensor]:
        read = []
        for batch in images:
            self.clock.now += self.image * len(batch)
            read.append(batch)
        return read

    def initialise(self, images: Iterable[Tensor]) -> None:
        type(self).images_seen = sum(map(len, self.slowly(images)))

    def calibrate(self, images: Iterable[Tensor]) -> None:
        super().calibrate(self.slowly(images))


def large(**settings: Any) -> Large:
    return tiny(type("Large", (Large,), settings))


def steps(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("step", [3.0, 7.0, 11.0, 20.0, 25.0, 50.0])
def test_a_step_that_would_not_end_in_time_is_not_begun(tmp_path: Path, clock: FakeTime, step: float) -> None:
    began = clock.now
    run = fit(large(step=step, seconds=0.002), faces(), recipe(tmp_path / "run", steps=None, minutes=1, log_every=1))
    assert 60 - step - 8 < clock.now - began <= 60  # 8 s: what the displays take, and the reserve of the end
    assert int((60 - 8) / step) <= steps(run) <= 60 / step
    assert grids(run) and Tiny.from_pretrained(str(run))


def test_one_long_step_says_little_about_the_next(tmp_path: Path, clock: FakeTime) -> None:
    class Compiling(Large):
        def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
            self.clock.now += 30.0 if batch.step in (0, 20) else 0.0
            return super().loss(batch, turn)

    began = clock.now
    run = fit(tiny(Compiling), faces(), recipe(tmp_path / "run", steps=None, minutes=2, log_every=1))
    assert steps(run) > 45 and 115 < clock.now - began <= 121


def test_no_step_is_begun_after_a_display_that_took_the_rest_of_the_time(tmp_path: Path, clock: FakeTime) -> None:
    class Slowing(Large):
        step = 5.0

        def calibrate(self, images: Iterable[Tensor]) -> None:
            super().calibrate(images)
            self.clock.now += 0.2 if self.clock.now < 140 else 7.0

    began = clock.now
    run = fit(tiny(Slowing), faces(), recipe(tmp_path / "run", steps=None, minutes=1, log_every=1))
    assert 50 < clock.now - began <= 60
    assert Tiny.from_pretrained(str(run))


def test_slow_images_limit_initialisation_and_calibration(tmp_path: Path, clock: FakeTime) -> None:
    data = faces(4000)  # 3,000 for training
    began = clock.now
    run = fit(large(image=0.02), data, recipe(tmp_path / "run", steps=None, minutes=3, log_every=1))
    assert 165 < clock.now - began <= 180
    # 5 % of the time are 9 s, or 450 images: the round that reaches them is finished.
    assert 450 <= Large.__subclasses__()[-1].images_seen <= 450 + 66
    assert steps(run) > 100
    model = large(image=0.02)
    fit(model, data, recipe(tmp_path / "steps", steps=2))
    assert type(model).images_seen == 3000


def test_calibration_ends_when_it_becomes_slow(tmp_path: Path, clock: FakeTime) -> None:
    class Slowing(Large):
        seen: ClassVar[list[int]] = []

        def calibrate(self, images: Iterable[Tensor]) -> None:
            self.image = 0.001 if clock.now < 250 else 0.1  # after 150 s of 180
            self.seen.append(sum(map(len, self.slowly(images))))

    began = clock.now
    fit(tiny(Slowing), faces(4000), recipe(tmp_path / "run", steps=None, minutes=3))
    # The rest is estimated at 3 s for the 3,000 images, and stops after 1.5 times a tenth of the time.
    assert Slowing.seen[:4] == [64, 1800, 1800, 1800] and 270 <= Slowing.seen[4] <= 270 + 66
    assert clock.now - began < 180 + 30


def test_images_within_a_time_are_spread_over_the_data(clock: FakeTime) -> None:
    images = np.zeros((5000, 8, 8, 3), np.uint8)
    images[:] = (np.arange(5000) // 20)[:, None, None, None]
    data = Packed(
        images=images,
        attributes=np.zeros((5000, 0), np.int8),
        attribute_names=(),
        names=[str(i) for i in range(5000)],
        splits=np.zeros(5000, np.uint8),
        manifest={},
    )

    def read(seconds: float | None, least: int = 256) -> np.ndarray:
        seen = []
        for batch in timed_batches(data, 2048, seconds, torch.device("cpu"), least):
            clock.now += 0.1 * len(batch)
            seen.append((batch[:, 0, 0, 0] * 127.5 + 127.5).round().int().numpy())
        return np.concatenate(seen)

    few = read(seconds=40.0)
    assert 400 < len(few) < 470  # 40 s are 400 images, and a round has 64 or 65
    assert abs(few.mean() - 124.5) < 2 and few.max() > 240 and few.min() < 10
    assert 256 <= len(read(seconds=0.0)) <= 260 and 64 <= len(read(seconds=0.0, least=64)) <= 65
    assert len(np.unique(read(seconds=1e9))) == 250 and len(read(seconds=1e9)) == 2048
    assert (np.diff(read(seconds=None)) >= 0).all()  # in order, as always


def test_large_images_are_fewer() -> None:
    first = [most_images(setup.INITIALISATION, setup.INITIALISATION_PIXELS, size) for size in (64, 128, 256, 4096)]
    assert first == [8192, 8192, 2048, limits.FEWEST]
    assert [AT_THE_END.images(size) for size in (64, 128, 256)] == [20_000, 20_000, 5_000]
    assert [ON_THE_WAY.images(size) for size in (64, 256, 1024)] == [2_048, 2_048, 312]


@pytest.mark.parametrize(("minutes", "cached"), [(None, True), (10, True), (1, False)])
def test_latents_are_cached_if_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], minutes: float, cached: bool
) -> None:
    """Encoding 96 images and their mirror images takes 38.4 s: 64 % of a minute, 6 % of ten."""
    clock = FakeTime(monkeypatch)
    monkeypatch.setattr(pipeline, "time", clock)
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path))

    class Codec:
        latents_name = "latents of a test"

        def encode(self, images: Tensor) -> Tensor:
            clock.now += 0.2 * len(images)
            return images.mean((2, 3))

    settings = recipe(tmp_path, steps=None, minutes=minutes)
    object.__setattr__(settings, "cache", True)
    model = Codec()
    for _ in range(2):  # also when they are there
        data, seconds = with_cached_latents(faces(), model, settings, torch.device("cpu"))
        assert (data.latents is not None) == cached and seconds == 0
        line = "encoding all 96 images before training would take about 0:38 of the 1:00: every step encodes its own"
        assert (line in capsys.readouterr().err) == (not cached)
    if cached:  # and then it is used, however short the run is
        object.__setattr__(settings, "minutes", 0.01)
        assert with_cached_latents(faces(), model, settings, torch.device("cpu"))[0].latents is not None
