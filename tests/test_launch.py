"""Processes whose launcher has been killed stop, with a checkpoint."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_fit import assert_equal, lines
from tiny import Tiny, faces, recipe, tiny

from genmodels.cli.train import recipes
from genmodels.training import launch
from genmodels.training.fit import fit
from genmodels.training.launch import launcher_has_ended, launchers, spread_over_cpu


class Orphaned(Tiny):
    """Model whose process gets another parent during the tenth step."""

    steps = 0

    def after_step(self) -> None:
        super().after_step()
        self.steps += 1
        if self.steps == 10:
            pytest.MonkeyPatch().setattr(launch.os, "getppid", lambda: 1)


@pytest.mark.parametrize("launched", [True, False])
def test_a_process_without_its_launcher_stops_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], launched: bool
) -> None:
    monkeypatch.setattr(launch, "parent_command", lambda: ["bash"])
    monkeypatch.setattr(launch.os, "getppid", os.getppid)  # restored at the end
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    settings = recipe(tmp_path / "run")
    if launched:
        with pytest.raises(SystemExit) as end:
            fit(tiny(Orphaned), faces(), settings)
        assert end.value.code == 1
        assert "stopped by the end of its launcher at step 10" in capsys.readouterr().err
        assert (settings.output / "checkpoints" / "step_00000010").is_dir()
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        fit(tiny(), faces(), recipe(settings.output, resume=True))
        assert_equal(settings.output, fit(tiny(), faces(), recipe(tmp_path / "whole")))
    else:  # a shell that starts a run in the background and ends, as nohup allows
        fit(tiny(Orphaned), faces(), settings)
    assert lines(settings.output)[-1]["step"] == 20


def test_launchers_are_known_by_torchrun_and_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(launch, "parent_command", lambda: ["bash"])
    assert launchers() == []
    assert not launcher_has_ended([])
    monkeypatch.setattr(launch, "parent_command", lambda: ["python", "/bin/accelerate", "launch", "train.py"])
    assert launchers() == [os.getppid()]
    # Under two launchers, accelerate's and the one that spread_over_cpu put in its place.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    command: list[str] = []
    monkeypatch.setattr(launch, "processes_wanted", lambda *_: 2)
    monkeypatch.setattr(launch.os, "execv", lambda _, given: command.extend(given))
    monkeypatch.setattr(launch, "STARTED", (os.getpid(), psutil.Process(os.getppid()).ppid()))
    spread_over_cpu(["train.py"])
    assert command[-2:] == ["--nproc-per-node=2", "train.py"]
    monkeypatch.setattr(launch, "STARTED", (os.getpid(), os.getppid()))
    assert launchers() == [os.getppid(), psutil.Process(os.getppid()).ppid()]
    assert not launcher_has_ended(launchers())
    monkeypatch.setenv(launch.LAUNCHER_VARIABLE, "999999")
    assert launcher_has_ended(launchers())


def test_a_forked_process_knows_its_own_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as accelerate's notebook_launcher does
    monkeypatch.delenv(launch.LAUNCHER_VARIABLE, raising=False)
    monkeypatch.setattr(launch, "parent_command", list)
    process = os.getpid()
    child = os.fork()
    if not child:
        ids = launchers()
        os._exit(0 if ids == [process] and not launcher_has_ended(ids) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_only_accelerate_itself_is_taken_for_its_launcher() -> None:
    for line in (
        "/venv/bin/python3.12 /venv/bin/accelerate launch train.py",
        "python /venv/bin/accelerate-launch train.py",
        "python -u -m accelerate.commands.launch --cpu train.py",
        "python -m accelerate.commands.accelerate_cli launch train.py",
    ):
        assert launch.by_accelerate(line.split())
    for line in (
        "",
        "python",
        "bash /home/u/accelerate-faces/run.sh",
        "make accelerate",
        "python /home/u/accelerate/run.py",
        "python accelerated.py",
        "python -m accelerate_all.commands",
        "python train.py accelerate",
    ):
        assert not launch.by_accelerate(line.split())


def test_a_killed_launcher_is_noticed() -> None:
    ready, told = os.pipe()
    launcher = os.fork()
    if not launcher:
        if not os.fork():  # the process that it launches
            ids = [os.getppid()]
            os.write(told, b"0" if launcher_has_ended(ids) else b"1")
            deadline = time.monotonic() + 20
            while not launcher_has_ended(ids) and time.monotonic() < deadline:
                time.sleep(0.01)
            os.write(told, b"2" if launcher_has_ended(ids) else b"0")
            os._exit(0)
        signal.pause()
    assert os.read(ready, 1) == b"1"
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    assert os.read(ready, 1) == b"2"


@pytest.mark.parametrize("name", sorted(recipes()))
def test_no_flag_of_a_recipe_is_taken_by_the_launchers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """argparse reads abbreviations even after the script: `--start` failed as --start-method."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    spec = importlib.util.spec_from_file_location(f"launched_{name}", recipes()[name])
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where the types of its fields are looked up
    spec.loader.exec_module(module)
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == spec.name]
    (settings,) = (value for value in own if dataclasses.is_dataclass(value))
    flags = [
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(settings)
        if "Positional" not in str(field.type)
    ]
    assert "--output" in flags
    for parser in (launch_command_parser(), get_args_parser()):
        for flag in flags:
            parsed = parser.parse_args(["recipe.py", flag, "1"])
            assert parsed.training_script_args == [flag, "1"], flag
