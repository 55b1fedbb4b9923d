"""Recipes: flags, files, settings refused, and exit of the command."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from genmodels.training.clock import Clock
from genmodels.training.command_line import parse, run, to_yaml
from genmodels.training.folder import check_output
from genmodels.training.optim import OptimConfig
from genmodels.training.recipe import Recipe, check_recipe


@dataclass(frozen=True)
class NetConfig:
    """A network."""

    latent_dim: int = 64
    """Numbers per image."""
    shape: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class NetRecipe(Recipe):
    model: NetConfig = NetConfig()
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-4))


def net(*args: str) -> NetRecipe:
    return parse(NetRecipe, "net", list(args))


def test_the_flags_of_the_design() -> None:
    command = "--data celeba --root PATH --size 32 --output runs/x --steps 300 --batch-size 64 --seed 3"
    found = net(*command.split(), "--model.latent-dim", "128", "--optim.lr", "2e-4", "--optim.betas", "0.5", "0.9")
    assert found == NetRecipe(
        data="celeba",
        root=Path("PATH"),
        size=32,
        output=Path("runs/x"),
        steps=300,
        batch_size=64,
        seed=3,
        model=NetConfig(latent_dim=128),
        optim=OptimConfig(lr=2e-4, betas=(0.5, 0.9)),
    )
    assert net("--minutes", "10").steps is None
    assert net("--resume").resume
    assert not net("--no-flip").flip


def test_defaults() -> None:
    found = net()
    assert (found.output, found.steps, found.minutes) == (Path("runs/net"), 20_000, None)
    assert found.optim.lr == 5e-4


def test_a_file_gives_values_and_flags_override_them(tmp_path: Path) -> None:
    first = net("--steps", "300", "--optim.lr", "0.01", "--model.shape", "4", "5", "6", "--root", str(tmp_path))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(first, "net"))
    assert path.read_text().startswith("family: net\n")
    assert net("--config", str(path)) == first
    second = net(f"--config={path}", "--minutes", "5", "--optim.lr", "0.02", "--resume")
    assert (second.minutes, second.steps, second.optim.lr, second.resume) == (5, None, 0.02, True)
    assert second.model == first.model
    assert "resume" not in to_yaml(second, "net")
    path.write_text(to_yaml(second, "net"))
    assert "data: Bl\u00e5haj" in to_yaml(second, "net", data="Bl\u00e5haj")  # readable, not escaped
    assert net("--config", str(path), "--steps", "7").minutes is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("family: other\nsteps: 3\n", "is a recipe of family 'other', not 'net'"),
        ("family: net\nlatents: 3\n", "unknown setting 'latents'"),
        ("family: net\noptim:\n  rate: 3\n", "optim: unknown setting 'rate'; known: name, lr"),
        ("family: net\nsteps: many\n", "steps: expected a number, got 'many'"),
        ("family: net\nbatch_size: 8.5\n", "batch_size: expected a whole number, got 8.5"),
        ("family: net\nshown: []\n", "unknown setting 'shown'; known: data, root"),
        ("steps: 3\n", "does not begin with `family: net`"),
        ("a: [", "is not YAML"),
        (None, "no such file"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        net("--config", str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ("--steps 10 --minutes 3", "--steps or --minutes, not both"),
        ("--minutes 0", "--minutes must be above 0"),
        ("--steps 0", "--steps must be a whole number of at least 1"),
        ("--size 0", "--size must be"),
        ("--batch-size 10 --accumulate 4", "--batch-size 10 is not divisible by --accumulate 4"),
        ("--ema 0.5", "--ema must be in [0, 0.2887]"),
        ("--optim.lr 0", "--optim.lr must be above 0"),
        ("--optim.betas 0.9 1.0", "--optim.betas"),
        ("--optim.clip 0", "--optim.clip"),
        ("--keep 0", "--keep"),
        ("--evaluate-every 0", "--evaluate-every must be a whole number of at least 1"),
    ],
)
def test_flags_that_are_refused(args: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        net(*args.split())


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        net("--help-all")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for words in ("--config FILE", "--model.latent-dim", "Numbers per image", "--optim.warmup", "Peak learning rate"):
        assert words in text
    assert "startup" not in text


def launch(monkeypatch: pytest.MonkeyPatch, main: Callable[[NetRecipe], object], *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["net.py", *args])
    try:
        run(main, NetRecipe, "net")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_how_a_command_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[NetRecipe, float]] = []
    assert launch(monkeypatch, lambda recipe: seen.append((recipe, torch.rand(()).item())), "--seed", "5") == 0
    assert seen[0][0].startup > 0
    assert seen[0][1] == torch.rand((), generator=torch.Generator().manual_seed(5)).item()

    def fail(recipe: NetRecipe) -> None:
        raise ValueError("two\nlines")

    capsys.readouterr()
    assert launch(monkeypatch, fail) == 1
    assert capsys.readouterr().err == "genmodels: error: two lines\n"
    assert launch(monkeypatch, fail, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
    assert launch(monkeypatch, fail, "--steps", "1", "--minutes", "1") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert launch(monkeypatch, fail, "--stepz", "1") == 2


@pytest.mark.parametrize(
    ("prepare", "args", "reason"),
    [
        (lambda out: (out / "notes.txt").write_text("mine"), (), "is not empty: give another --output, or empty it"),
        (
            lambda out: (out / "checkpoints" / "step_00000001").mkdir(parents=True),
            (),
            "is not empty: give another --output, or --resume",
        ),
        (lambda out: None, ("--resume",), "nothing to resume: "),
        (lambda out: out.rmdir() or out.write_text("mine"), (), "is a file; --output must be a folder"),
    ],
)
def test_a_folder_in_use_is_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], object],
    args: tuple[str, ...],
    reason: str,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prepare(out)
    before = sorted(tmp_path.rglob("*"))
    assert launch(monkeypatch, lambda _: pytest.fail("started"), "--output", str(out), *args) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_folder_that_is_not_utf8_is_refused_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8, which TensorBoard cannot write to: give another --output"):
        check_output(Recipe(output=out))
    assert not out.exists()


def test_a_recipe_without_a_length_has_one() -> None:
    assert check_recipe(Recipe()).steps == 20_000
    assert check_recipe(Recipe(minutes=1)).steps is None


def test_the_clock_keeps_time_for_the_end() -> None:
    clock = Clock(None, 10, before=300, device=torch.device("cpu"), main=True)
    # Half of ten minutes has passed. The work after the last step is estimated at 100 s, and 153 s
    # are reserved for it.
    elapsed, progress, stop = clock.read(step=7, end=100.0, stop=False)
    assert elapsed == pytest.approx(300, abs=0.5)
    assert progress == pytest.approx(300 / (600 - 153), rel=2e-3)
    assert not stop
    # Nothing has been timed yet, so 5 % are reserved. Progress never decreases.
    assert clock.read(step=7, end=None, stop=False)[1] == progress
    fresh = Clock(None, 10, before=300, device=torch.device("cpu"), main=True)
    assert fresh.read(step=7, end=None, stop=False)[1] == pytest.approx(300 / 570, rel=2e-3)
    assert clock.read(step=7, end=10_000.0, stop=True)[1:] == (1.0, True)
    by_steps = Clock(28, None, before=0, device=torch.device("cpu"), main=True)
    assert by_steps.read(step=7, end=None, stop=False)[1] == 0.25
    time.sleep(0.01)
    assert by_steps.now() >= 0.01


def test_resume_goes_on_with_the_runs_own_settings(tmp_path: Path) -> None:
    began = net("--output", str(tmp_path), "--steps", "7", "--optim.lr", "3e-4", "--no-flip")
    (tmp_path / "config.yaml").write_text(to_yaml(began, "net"))
    goes_on = net("--output", str(tmp_path), "--resume")
    assert (goes_on.steps, goes_on.optim.lr, goes_on.flip, goes_on.resume) == (7, 3e-4, False, True)
    assert net("--output", str(tmp_path), "--resume", "--steps", "9").steps == 9
