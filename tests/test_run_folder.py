"""The run folder: what is removed from it, who may write to it, and which folders are started again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_checkpoint import save
from test_fit import assert_equal, lines
from tiny import Tiny, TinyRecipe, faces, recipe, tiny

from genmodels.training.checkpoint import newest_checkpoint, problem_with
from genmodels.training.command_line import parse
from genmodels.training.ema import average_of, drop_snapshots
from genmodels.training.fit import fit
from genmodels.training.folder import LOCK, check_unlocked, claimed
from genmodels.training.log import reporting_full_disk
from genmodels.training.recipe import MAX_STEPS, check_recipe


class Failing(Tiny):
    """Model that fails in the fourth step."""

    steps = 0

    def after_step(self) -> None:
        self.steps += 1
        if self.steps == 4:
            raise RuntimeError("failed")
        super().after_step()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- what is removed ----


def test_pruning_keeps_folders_that_are_not_checkpoints(tmp_path: Path) -> None:
    names = [
        "step_00000001_backup",
        "step_0",
        "step_000000001",
        "step_" + 8 * "\u0661",
        ".step_0.partial",
        ".step_notes",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "note.txt").write_text("mine")
    (tmp_path / ".step_00000001.0123abcd-9-0.partial").mkdir()  # of a process that was killed
    for steps in (1, 2, 3):
        save(tmp_path, steps, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "step_00000003"])
    assert all((tmp_path / name / "note.txt").read_text() == "mine" for name in names)


def test_a_copied_or_renamed_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    shutil.copytree(path, tmp_path / "step_00000006_old")
    shutil.copytree(path, tmp_path / "step_00000005")
    (tmp_path / "step_00000009").symlink_to(path, target_is_directory=True)
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == path
    assert said == [f"skipping checkpoint {tmp_path / 'step_00000005'}: it is a copy of the checkpoint of step 3"]


def test_only_the_first_process_reports_a_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run", steps=6, save_every=3))
    (run / "checkpoints" / "step_00000006" / "state.json").write_text("{")

    def fail(*_: object) -> None:
        raise RuntimeError("failed")

    monkeypatch.setattr("genmodels.training.setup.load_checkpoint", fail)
    capsys.readouterr()
    for first in (True, False):
        monkeypatch.setattr("accelerate.Accelerator.is_main_process", property(lambda _, first=first: first))
        with pytest.raises(RuntimeError, match="failed"):
            fit(tiny(), faces(), recipe(run, resume=True))
        assert capsys.readouterr().err.count("skipping checkpoint ") == int(first)


def test_snapshots_with_other_names_are_neither_read_nor_removed(tmp_path: Path) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run", ema_snapshots=4))
    expected, _ = average_of(run / "ema", 0.06)
    shutil.copy(run / "ema" / "step_00000020.safetensors", run / "ema" / "step_00000020_old.safetensors")
    save_file({}, run / "ema" / "step_best.safetensors")
    found, _ = average_of(run / "ema", 0.06)
    assert all((found[name] == value).all() for name, value in expected.items())
    drop_snapshots(run / "ema", 10)
    assert sorted(p.name for p in (run / "ema").iterdir()) == [
        "step_00000005.safetensors",
        "step_00000010.safetensors",
        "step_00000020_old.safetensors",
        "step_best.safetensors",
    ]


def test_a_run_is_not_longer_than_the_names_of_its_checkpoints_can_say() -> None:
    assert check_recipe(recipe(Path("x"), steps=MAX_STEPS)).steps == 99_999_999
    with pytest.raises(ValueError, match="--steps must be at most 99,999,999, got 100,000,000"):
        check_recipe(recipe(Path("x"), steps=MAX_STEPS + 1))


# ---- one run at a time ----


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run", steps=5))
    assert not (run / LOCK).exists()
    with claimed(run):
        before = contents(run)
        for refused in (lambda: fit(tiny(), faces(), recipe(run, resume=True)), lambda: check_unlocked(run)):
            with pytest.raises(ValueError, match=r"run is in use by another run: wait until it ends") as error:
                refused()
            assert "\n" not in str(error.value)
        assert contents(run) == before
        monkeypatch.setenv("RANK", "1")  # the other processes of a run share the lock of the first
        check_unlocked(run)
        with claimed(run):
            pass
        monkeypatch.delenv("RANK")
    fit(tiny(), faces(), recipe(run, resume=True))
    assert lines(run)[-1]["step"] == 20


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        with claimed(out):
            os.write(told, b"x")
            signal.pause()
    os.read(ready, 1)
    with pytest.raises(ValueError, match="in use"):
        check_unlocked(out)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (out / LOCK).exists()
    fit(tiny(), faces(), recipe(out, steps=2))  # the lock that was left behind does not count as contents
    assert not (out / LOCK).exists()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setattr("genmodels.training.folder.FileLock.acquire", absent)
    assert fit(tiny(), faces(), recipe(tmp_path / "run", steps=2)).is_dir()
    assert "run cannot be locked (no flock): make sure that no other run uses it" in capsys.readouterr().err


def test_a_refused_run_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 px a side and the model 16"):
        fit(tiny(size=16), faces(), recipe(tmp_path / "a" / "b" / "run"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="8 px a side"):
        fit(tiny(size=16), faces(), recipe(tmp_path / "mine"))
    assert [p.name for p in tmp_path.rglob("*")] == ["mine"]


# ---- links ----


@pytest.mark.parametrize(
    "name", ["samples", "checkpoints", "metrics.jsonl", "tensorboard", "wandb", "ema", "config.yaml", LOCK]
)
def test_nothing_is_written_through_a_link_in_a_run_folder(tmp_path: Path, name: str) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run", steps=5))
    elsewhere = tmp_path / "elsewhere"
    if (run / name).exists():
        (run / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (run / name).symlink_to(elsewhere)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is a link: a run does not write through links") as error:
        fit(tiny(), faces(), recipe(run, resume=True))
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_planted_temporary_links_are_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "README.md").write_text("keep")
    real = tmp_path / "disk"
    run = tmp_path / "run"
    real.mkdir()
    run.symlink_to(real)  # the folder itself may be on another disk
    fit(tiny(), faces(), recipe(run, steps=5))
    for name in (
        ".partial",
        ".export.partial",
        "checkpoints/.step_00000020.0123abcd-9-0.partial",
        "samples/.step_00000020.0123abcd-9-0.partial.png",
    ):
        (run / name).symlink_to(precious)
    for name in (".config.partial", ".config.partial.yaml", "metrics.partial", ".metrics.partial.jsonl"):
        (run / name).symlink_to(precious / "README.md")
    fit(tiny(), faces(), recipe(run, resume=True))
    assert contents(precious) == {"README.md": b"keep"}
    assert lines(run)[-1]["step"] == 20 and problem_with(run / "checkpoints" / "step_00000020") is None
    assert run.is_symlink() and (real / "samples" / "step_00000020.png").is_file()


# ---- folders without a checkpoint ----


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_stopped_before_its_first_checkpoint_can_be_started_again(
    tmp_path: Path, resume: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(tiny(), faces(), recipe(tmp_path / "whole", log_every=2))
    settings = recipe(tmp_path / "run", log_every=2, save_every=10, sample_every=10, track="tensorboard")
    with pytest.raises(RuntimeError, match="failed"):
        fit(tiny(Failing), faces(), settings)
    run = settings.output
    assert [line["step"] for line in lines(run)] == [2]
    (run / "checkpoints" / ".step_00000005.0123abcd-9-0.partial").mkdir(parents=True)
    (run / ".config.0123abcd-9-0.partial.yaml").touch()
    (run / LOCK).touch()  # of a process that was killed
    capsys.readouterr()
    fit(tiny(), faces(), recipe(run, log_every=2, resume=resume))
    assert_equal(whole, run)
    assert [line["step"] for line in lines(run)] == list(range(2, 21, 2))
    said = f"{run} has no finished checkpoint: starting from the beginning\n"
    assert (said in capsys.readouterr().err) == resume


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "model.safetensors",
        "README.md",
        "samples/a.png",
        "ema/step_00000005.safetensors",
        ".hidden",
        "config.yaml.1",
    ],
)
def test_a_folder_with_something_else_is_not_started_in(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    (tmp_path / "run" / "config.yaml").write_text("family: tiny\n")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is not empty: give another --output, or empty it"):
        fit(tiny(), faces(), recipe(tmp_path / "run"))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_starting_again_keeps_the_files_of_before(
    tmp_path: Path, resume: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    mine = {
        "config.yaml": b"family: tiny # mine\n",
        "metrics.jsonl": b'{"step": 1, "loss": 1}\nnotes',
        "metrics.1.jsonl": b"",
    }
    for name, content in mine.items():
        (run / name).write_bytes(content)
    fit(tiny(), faces(), recipe(run, resume=resume))
    found = contents(run)
    kept = {"config.1.yaml": "config.yaml", "metrics.2.jsonl": "metrics.jsonl", "metrics.1.jsonl": "metrics.1.jsonl"}
    assert {name: found[name] for name in kept} == {name: mine[old] for name, old in kept.items()}
    assert b"fingerprint" in found["config.yaml"] and [line["step"] for line in lines(run)] == [5, 10, 15, 20]
    assert f"{run / 'config.yaml'} was there before this run: it is now config.1.yaml\n" in capsys.readouterr().err
    fit(tiny(), faces(), recipe(run, steps=30, resume=True))  # the files of the run itself are not put aside
    assert not any((run / name).exists() for name in ("config.2.yaml", "metrics.3.jsonl"))


def test_a_snapshot_is_never_written_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="failed"):
        fit(tiny(Failing), faces(), recipe(tmp_path / "run", save_every=10, sample_every=10, ema_snapshots=10))
    assert [p.name for p in (tmp_path / "run" / "ema").iterdir()] == ["step_00000002.safetensors"]
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]


def test_a_copied_or_moved_run_continues_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run", steps=5))
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(run, copy)
    monkeypatch.chdir(tmp_path)

    def output(*args: str) -> Path:
        return parse(TinyRecipe, "tiny", list(args)).output

    assert output("--config", f"{copy}/config.yaml", "--resume") == copy
    assert output("--resume") == Path("runs/tiny")
    assert output("--config", f"{copy}/config.yaml", "--resume", "--output", str(run)) == run
    assert output("--config", f"{copy}/config.yaml") == run
    shutil.copy(copy / "config.yaml", tmp_path / "config.yaml")  # not in the folder of a run
    assert output("--config", "config.yaml", "--resume") == run


def test_a_long_log_does_not_prevent_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run", steps=10, log_every=1))
    monkeypatch.setattr("genmodels.reading.LARGEST_TEXT", 100)
    fit(tiny(), faces(), recipe(run, resume=True, log_every=1))
    assert [line["step"] for line in lines(run)] == list(range(1, 21))


def test_errors_of_other_threads_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[threading.ExceptHookArgs] = []

    def fail(error: OSError) -> None:
        raise error

    monkeypatch.setattr(threading, "excepthook", reported.append)
    errors = [FileNotFoundError("mine"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
    with reporting_full_disk(tmp_path):
        for error in errors:
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()
    assert [failure.exc_value for failure in reported] == errors[:1]


def test_a_model_without_checkpoints_is_not_overwritten_by_resume(tmp_path: Path) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run", steps=5))
    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    with pytest.raises(ValueError, match="nothing to resume: .* holds a model but no checkpoint"):
        fit(tiny(), faces(), recipe(run, resume=True))
    assert contents(run) == before


def test_a_model_is_never_exported_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("failed")

    monkeypatch.setattr("genmodels.training.show.save_grid", fail)
    with pytest.raises(RuntimeError, match="failed"):
        fit(tiny(), faces(), recipe(tmp_path / "run", sample_every=2, save_every=10))
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    monkeypatch.undo()
    fit(tiny(), faces(), recipe(tmp_path / "run", resume=True))
    assert_equal(fit(tiny(), faces(), recipe(tmp_path / "whole")), tmp_path / "run")


# ---- metrics ----


def test_metrics_of_a_killed_and_resumed_run_equal_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def compared(run: Path) -> list[str]:
        timed = ("elapsed", "images_per_second")
        return [json.dumps({k: v for k, v in line.items() if k not in timed}) for line in lines(run)]

    for save_every in (7, 10):  # between lines of the log, and at one
        settings = {"save_every": save_every, "log_every": 5, "evaluate_every": None}
        whole, parts = tmp_path / f"{save_every}w", tmp_path / f"{save_every}"
        fit(tiny(dropout=0.2, bad_from=6, bad_until=7), faces(), recipe(whole, **settings))
        model = tiny(Failing, dropout=0.2, bad_from=6, bad_until=7)
        model.steps = -7  # it fails in step 11
        with pytest.raises(RuntimeError, match="failed"):
            fit(model, faces(), recipe(parts, **settings))
        again = tiny(dropout=0.2, bad_from=6, bad_until=7)
        fit(again, faces(), recipe(parts, resume=True, **settings))
        assert compared(parts) == compared(whole)
        assert len(compared(whole)) == 4
        tensors = [load_file(run / "model.safetensors") for run in (whole, parts)]
        assert all((tensors[0][name] == value).all() for name, value in tensors[1].items())


def test_metrics_with_damaged_lines_are_read(tmp_path: Path) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run", steps=10))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('null\n[1]\n{"step": null}\n{"step": "9"}\n{"a": 1}\n{"step": NaN}\n{"step": 9, "los')
    fit(tiny(), faces(), recipe(run, resume=True))
    assert [line["step"] for line in lines(run)] == [5, 10, 15, 20]
