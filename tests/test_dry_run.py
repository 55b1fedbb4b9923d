"""train --dry-run: what it measures, what it derives from it, and that it leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from ranks import in_two_processes
from test_show import Costly
from test_two_commands import CODEC, QUICK, train
from tiny import FakeTime, faces, recipe, tiny
from torch import Tensor

from genmodels.evaluation.cost import training_operations
from genmodels.training.dry_run import in_bytes, in_seconds
from genmodels.training.fit import fit


class Timed(Costly):
    """Model whose steps take 1 s, initialisation 7 s, calibration 0.01 s and sampling 0.1 s per image."""

    seconds = 0.002

    def initialise(self, images: Iterable[Tensor]) -> None:
        super().initialise(images)
        self.clock.now += 7.0

    def calibrate(self, images: Iterable[Tensor]) -> None:
        images = list(images)
        self.clock.now += 0.01 * sum(map(len, images))
        super().calibrate(images)


def plan(settings: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the lines of the dry run of a `Timed` model, by name."""
    fit(tiny(Timed), faces(), settings)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"dry run of tiny; nothing is written to {settings.output}"
    return dict(re.split(" {2,}", line[2:], maxsplit=1) for line in lines)


def test_what_is_measured_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Costly.clock = FakeTime(monkeypatch)
    lines = plan(recipe(tmp_path / "run", steps=50, dry_run=True), capsys)
    count = 3 * 16 * 9 + 16 + 16 * 3 + 3
    assert lines["parameters"] == f"{count} trained, 6 frozen"
    assert lines["data"] == "72 training images of noise, 8 px"
    operations = training_operations(tiny(Timed))
    assert lines["operations"].startswith(f"{operations / 1e9:.3g} GFLOPs per image")
    # More than 10 s have passed after 11 steps.
    assert lines["speed"] == "8.0 images/s, 1 s per step of 8 images: the median of 11 steps after 1"
    assert lines["sample grid"] == "64 images in about 6.4 s"
    # AdamW has two moments and a count for each of 4 tensors; the average has buffers too.
    assert f"gradients {4 * count / 1e6:.3g} MB, optimiser {(8 * count + 16) / 1e6:.3g} MB" in lines["memory"]
    # 7 s of start-up and 50 steps. Five displays calibrate on 72 images and draw 64.
    assert lines["--steps 50"] == "about 1:33: 400 images, 5.56 epochs, grids of 64 images"
    assert lines[""] == "0:07 for start-up, 0:36 for grids and saving"
    assert not list(tmp_path.iterdir())


def test_what_minutes_buy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Costly.clock = FakeTime(monkeypatch)
    settings = recipe(tmp_path / "run", steps=None, minutes=2, startup=10.0, dry_run=True)
    lines = plan(settings, capsys)
    # On the way: 2 % of the time for a grid, 16 of 24 images, and 72 images of calibration. At the end 5 %: 49 images.
    between = 4 * (1.6 + 0.72) + 4.9 + 0.72
    steps = int(120 - 17 - between)
    images = f"{8 * steps} images, {8 * steps / 72:.3g} epochs, grids of 16 images"
    assert lines["--minutes 2"] == f"about {steps} steps: {images}"
    assert lines[""] == f"0:17 for start-up, 0:{round(between)} for grids and saving"

    # The run itself takes as many steps, but for the margin of its end.
    fit(tiny(Timed), faces(), recipe(tmp_path / "run", steps=None, minutes=2, startup=10.0, log_every=1))
    taken = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert steps - 5 <= taken <= steps


def test_a_run_folder_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    fit(tiny(), faces(), recipe(run, dry_run=True))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert "into" not in capsys.readouterr().err.splitlines()[-1]


def test_over_a_codec_latents_are_not_cached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: list[str]
) -> None:
    assert train("vqvae", *data, *QUICK, *CODEC, "--steps", "2", "--output", "runs/vqvae") == 0
    network = ["--model.channels", "16", "--model.attention", "True", "--model.head", "8", "--model.groups", "8"]
    arguments = [*data, *QUICK, "--codec", "runs/vqvae", *network, "--model.blocks", "1", "--model.gaussian", "8"]
    capsys.readouterr()

    def operations(*more: str) -> float:
        assert train("unet", *arguments, "--steps", "5", "--dry-run", "--output", "runs/unet", *more) == 0
        out = capsys.readouterr().out
        assert "of the codec" in out
        assert ("before the first step, once for this codec and data" in out) == (not more)
        return float(re.findall("operations +([0-9.e+-]+) GFLOPs", out)[0])

    assert 0 < operations() < operations("--no-cache")
    assert not list((tmp_path / "cache").glob("latents-*"))
    assert not Path("runs/unet").exists()


@pytest.mark.slow
def test_several_processes_print_once(tmp_path: Path) -> None:
    script = tmp_path / "dry.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import sys\nfrom pathlib import Path\n\nfrom tiny import faces, recipe, tiny\n"
        "from genmodels.training.fit import fit\n"
        "sys.stdout = sys.stderr\n"
        "fit(tiny(), faces(), recipe(Path(sys.argv[1]), dry_run=True, steps=50))\n"
    )
    said = "\n".join(in_two_processes(script, tmp_path / "run"))
    assert said.count("dry run of tiny") == 1
    assert not (tmp_path / "run").exists()


def test_sizes_and_times_are_readable() -> None:
    assert [in_bytes(n) for n in (31_600, 25_300_000, 2.51e9)] == ["0.0316 MB", "25.3 MB", "2.51 GB"]
    assert [in_seconds(s) for s in (0.123, 3.0, 42.4, 125.0)] == ["0.12 s", "3 s", "42 s", "2:05"]
