"""Killed commands and full disks: nothing is lost, and the same command can be repeated."""

from __future__ import annotations

import ast
import errno
import importlib.util
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import genmodels
from genmodels import data as sets
from genmodels.cli import main
from genmodels.data.latents import with_latents
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.results import Evaluation, Score, Subject
from genmodels.training.fit import fit
from genmodels.vae import VAE, VAEConfig

ROOT = Path(__file__).parent.parent
SMALL = dict(size=16, patch=2, channels=(16, 16), encoder_blocks=(1, 0), decoder_blocks=(1, 0))


class Disk:
    """A disk on which the reservations and flushes after the first `room` fail.

    Some file systems report a full disk only when a file is flushed. Every file that genmodels
    writes is flushed, so that this reaches each of them.
    """

    def __init__(self, patch: pytest.MonkeyPatch):
        self.room, self.used, self.lock = 1 << 30, 0, threading.Lock()
        for name in ("fsync", "posix_fallocate"):
            patch.setattr(os, name, self._limited(getattr(os, name)))

    def _limited(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*arguments: Any) -> Any:
            is_file = stat.S_ISREG(os.fstat(arguments[0]).st_mode)
            with self.lock:  # the files of a folder are flushed by several threads
                self.used += is_file
                full = is_file and self.used > self.room
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments)

        return limited

    def limit(self, room: int = 1 << 30) -> None:
        self.room, self.used = room, 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def files(place: Path) -> dict[str, bytes]:
    # The folder .lock and the record of the last check depend on the time.
    hidden = (".lock", "checked")
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file() and p.name not in hidden}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make small models, images and scores in the parent of an empty working directory."""
    torch.manual_seed(0)
    vae = VAE(VAEConfig(**SMALL, latent_dim=4)).eval()
    with torch.no_grad():
        vae.calibrate([torch.rand(32, 3, 16, 16) * 2 - 1])
    vae.save_pretrained(tmp_path / "vae")
    network = dict(size=16, channels=(16,), head=8, attention=(False,), blocks=1, groups=8)
    # Its export is a pipeline of diffusers, which is written sooner than the programs of a custom pipeline.
    UNet(UNetConfig(**network, process="ddpm", gaussian=0)).save_pretrained(tmp_path / "unet")
    rng = np.random.default_rng(0)
    (tmp_path / "faces").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "faces" / f"{i}.png")
    protocol = Protocol(data="noise", split="valid", size=16, n=256)
    scores = {"fd": Score(1.0, "lower", "distance", protocol)}
    (tmp_path / "a.json").write_text(Evaluation(Subject("a", "vae"), scores, {}, {}).to_json())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "work"


COMPARE = ["compare", "../a.json", "--out", "report"]


@pytest.mark.parametrize(
    ("command", "earlier"),
    [
        (["sample", "../vae", "--n", "4", "--out", "a.png", "--force"], "a.png"),
        (["sample", "../vae", "--n", "4", "--out", "a.npy", "--force"], "a.npy"),
        (["sample", "../vae", "--n", "4", "--out", "a/"], None),
        (["reconstruct", "../vae", "../faces/0.png", "--out", "a.png", "--force"], "a.png"),
        (["interpolate", "../vae", "--frames", "3", "--out", "a.gif", "--force"], "a.gif"),
        ([*COMPARE, "--force"], COMPARE),
        (["export", "../unet", "a"], None),
        (["data", "pack", "folder", "--root", "../faces", "--out", "pack", "--size", "16"], None),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_full_disk_leaves_earlier_files_and_does_not_block_the_next_attempt(
    command: list[str], earlier: Any, place: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(earlier, list):
        assert main(earlier) == 0
    elif earlier:
        (place / earlier).write_bytes(b"earlier")
    before = files(place)
    disk.limit()
    assert main(command) == 0
    expected, needed = files(place), disk.used
    assert needed > 0
    for room in sorted({0, needed // 2, needed - 1}):
        for item in place.iterdir():
            genmodels.writing.remove(item)
        for name, content in before.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        capsys.readouterr()
        disk.limit(room)
        assert main(command) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(lines) == 1 and ("the disk is full" in lines[0] or "GB free" in lines[0]), lines
        left = {name: content for name, content in files(place).items() if name in before}
        assert left == before
        disk.limit()
        assert main(command) == 0
        assert files(place) == expected


def test_a_full_disk_during_training_loses_no_checkpoint(tmp_path: Path, disk: Disk) -> None:
    def train(output: Path, resume: bool = False) -> None:
        recipe = tiny.recipe(output, save_every=5, sample_every=10, keep=2, resume=resume)
        fit(tiny.tiny(), tiny.faces(), recipe)

    def result(run: Path) -> list[bytes]:
        return [(run / name).read_bytes() for name in ("model.safetensors", "config.json")]

    train(tmp_path / "whole")
    expected, needed = result(tmp_path / "whole"), disk.used
    for room in (needed // 3, needed // 2, needed - 1):
        run = tmp_path / str(room)
        disk.limit(room)
        with pytest.raises(OSError, match="^cannot write .*: the disk is full"):
            train(run)
        checkpoints = os.listdir(run / "checkpoints")
        assert checkpoints and not [name for name in checkpoints if name.startswith(".")]
        disk.limit()
        train(run, resume=True)
        assert result(run) == expected


def test_tensorboard_on_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    written, write = [], RecordWriter.write

    def full(self: RecordWriter, record: bytes) -> None:
        if len(written) >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(record)
        write(self, record)

    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    monkeypatch.setattr(RecordWriter, "write", full)
    room = 0
    with pytest.raises(OSError, match="^cannot write .*run: the disk is full"):
        fit(tiny.tiny(), tiny.faces(), tiny.recipe(tmp_path / "run", track="tensorboard"))
    room = 10  # full later, the tracker ends, and the run does not
    run = fit(tiny.tiny(), tiny.faces(), tiny.recipe(tmp_path / "run", track="tensorboard"))
    assert not reported
    said = capsys.readouterr().err
    assert said.count("--track tensorboard failed") == 1 and "No space left on device" in said
    assert tiny.Tiny.from_pretrained(str(run))


def test_the_caches_of_toyfaces_and_of_latents_reserve_their_space(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sets, "TOYFACES", (12, 4))

    def latents() -> np.ndarray:
        column = with_latents(tiny.faces(), lambda x: x.mean(3), "weights", tmp_path / "cache", False).latents
        assert column is not None
        return column

    for make in (lambda: sets.open_data("toyfaces", size=16).images, latents):
        disk.limit(0)
        with pytest.raises(OSError, match="the disk is full"):
            make()
        disk.limit()
        assert len(make()) in (16, 96)
    for path in (tmp_path / "cache").rglob("*.npy"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size


# ---- kills ----


@pytest.fixture(scope="module")
def storm() -> ModuleType:
    spec = importlib.util.spec_from_file_location("storm", ROOT / "benchmarks" / "storm.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["storm"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_commands_end_with_the_same_files(storm: ModuleType, tmp_path: Path) -> None:
    storm.make_inputs(tmp_path, upto=1)
    for name, kills in (("ae", 5), ("data pack", 5)):
        outcome = storm.kill_often(tmp_path, name, kills, seed=0, alone=False)
        assert outcome.problems == []
        assert outcome.interrupted == kills and outcome.ended > 0


def test_the_storm_sees_what_is_lost(storm: ModuleType) -> None:
    before = {"a": "1", "b": "2"}
    assert storm.differences(before, before) == []
    assert storm.differences(before, {"b": "3", "c": "4"}) == ["a is missing", "c is left over", "b differs"]
    good = ["genmodels: error: cannot write a: the disk is full; free some space and try again"]
    assert storm.complaints("status 1: ...", good) == []
    assert storm.complaints("status -7: ...", good) == ["status -7: ..."]
    assert storm.complaints("status 1: ...", ["Traceback (most recent call last):", *good]) != []
    assert storm.complaints("status 1: ...", ["genmodels: error: TypeError: x"]) != []


# ---- one writer ----


def test_files_are_written_by_one_module() -> None:
    for path in sorted((ROOT / "genmodels").rglob("*.py")):
        if path.name == "writing.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                opens = called.rpartition(".")[2] in ("open", "open_memmap") and any(v in values for v in MODES)
                moves = called in ("os.replace", "os.rename", "shutil.move", "np.save", "numpy.save", "json.dump")
                writes = isinstance(node.func, ast.Attribute) and node.func.attr in ("write_text", "write_bytes")
                assert not (opens or moves or writes), f"{path}:{node.lineno} writes a file: use genmodels.writing"


MODES = ("w", "wb", "w+", "w+b", "x", "xb")
