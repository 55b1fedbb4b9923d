"""Kills commands at random times and fills the disk under them, and checks that nothing is lost.

python benchmarks/storm.py
python benchmarks/storm.py --kills 60 --fills 30 --seed 1

Kills: every command is run without interruption in a process of its own. Copies of it are then
killed (SIGKILL) at random times and started again, until they end. Their files must be the same,
byte for byte, except for times.

Full disks: commands write to a small file system in memory (tmpfs, so this part needs root) which
is filled so that they run out of space at a random place. They must end with status 1 and one line
about the disk, leave earlier files as they were, and give the same files once there is space again.

The interrupted commands are forks of a process that has loaded all modules, which saves the seconds
of starting Python. That they write the same bytes as ordinary processes is part of the check.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process with threads cannot be forked
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import tyro
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # test this checkout
SIZE = 16
IMAGES = 1_200
FACES = (1_024, 128)
"""Number of toy faces for training and validation, instead of 18,432, which take a minute."""
LONGEST = 180.0
"""Seconds after which a command is said to hang."""
SPACE = 64
"""Megabytes of the small file system."""

INPUTS = "../inputs"
QUICK = ["--data", f"{INPUTS}/pack", "--size", str(SIZE), "--batch-size", "8", "--mixed-precision", "no"]
QUICK += ["--steps", "12", "--save-every", "2", "--sample-every", "6", "--log-every", "3", "--output", "run"]
PACK = ["data", "pack", "folder", "--root", f"{INPUTS}/faces", "--size", str(SIZE)]
LEVELS = ["--model.channels", "16", "16", "--model.patch", "2"]
CODEC = [*LEVELS, "--model.encoder-blocks", "1", "0", "--model.decoder-blocks", "1", "0"]
CODES = ["--model.codebook-size", "16", "--model.code-dim", "4"]
TOKENS = ["--model.transformer.width", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]
UNET = ["--model.channels", "16", "--model.attention", "True", "--model.head", "8", "--model.groups", "8"]
UNET += ["--model.blocks", "1", "--model.gaussian", "8"]
GAN = [*LEVELS, "--model.latent-dim", "8", "--model.group", "8", "--model.principal", "8", "--evaluate-every", "None"]
MAP = [*CODEC, "--model.spatial", "--model.latent-dim", "4"]
DIT = [*TOKENS, "--model.patch", "4", "--model.gaussian", "8"]
PRIOR = [*TOKENS, "--model.gaussian", "8", "--codec", f"{INPUTS}/codec"]


@dataclass(frozen=True)
class Subject:
    """A command that is interrupted. It runs in a folder of its own, with the inputs beside it."""

    command: list[str]
    resumes: bool = False
    """Whether it is started again with --resume, once there is a run."""
    keeps: str = ""
    """An earlier file that --force replaces, and that a failure must leave as it was."""
    before: tuple[str, ...] = ()
    """Command that writes it. Otherwise it holds a few bytes."""


def train(family: str, *settings: str) -> Subject:
    return Subject(["train", family, *QUICK, *settings], resumes=True)


KILLED = {
    "ae": train("ae", *CODEC, "--model.latent-dim", "8"),
    "vae": train("vae", *CODEC, "--model.latent-dim", "8", "--ema-snapshots", "3"),
    "vqvae": train("vqvae", *CODEC, *CODES),
    "autoregressive": train("autoregressive", *TOKENS, "--model.levels", "8"),
    "gan": train("gan", *GAN),
    "unet": train("unet", *UNET, "--model.patch", "2"),
    "dit": train("dit", *DIT),
    "dit over a vae": train("dit", *PRIOR),
    "latents cache": train("dit", *PRIOR, "--steps", "2"),
    "toyfaces cache": Subject(["data", "show", "toyfaces", "--force"]),
    "data pack": Subject([*PACK, "--out", "pack"]),
    "data pack, encoded": Subject([*PACK, "--out", "pack", "--store", "jpeg"]),
    "data join": Subject(["data", "join", "pack", f"{INPUTS}/part1", f"{INPUTS}/part2"]),
    "evaluate": Subject(
        ["evaluate", f"{INPUTS}/codec", "--data", f"{INPUTS}/pack", "--n", "256", "--json", "scores.json", "--force"]
    ),
}
"""Commands that are killed."""

SAMPLE = ("sample", f"{INPUTS}/codec", "--n", "64", "--out")
COMPARE = ("compare", f"{INPUTS}/scores.json", "--out", "report")
FILLED = {
    "vae": KILLED["vae"],
    "gan": KILLED["gan"],
    "dit over a vae": KILLED["dit over a vae"],
    "latents cache": KILLED["latents cache"],
    "toyfaces cache": KILLED["toyfaces cache"],
    "data pack": KILLED["data pack"],
    "data pack, encoded": KILLED["data pack, encoded"],
    "data join": KILLED["data join"],
    "data export": Subject(["data", "export", f"{INPUTS}/pack", "--out", "a.zip"]),
    "evaluate --json": Subject(KILLED["evaluate"].command, keeps="scores.json"),
    "sample --force, a picture": Subject([*SAMPLE, "a.png", "--force"], keeps="a.png"),
    "sample --force, an array": Subject([*SAMPLE, "a.npy", "--force"], keeps="a.npy"),
    "sample, a folder": Subject([*SAMPLE, "a/"]),
    "reconstruct --force": Subject(
        ["reconstruct", f"{INPUTS}/codec", f"{INPUTS}/faces/0000.png", "--out", "a.png", "--force"], keeps="a.png"
    ),
    "compare --force": Subject([*COMPARE, "--force"], keeps="report", before=COMPARE),
    "export": Subject(["export", f"{INPUTS}/unet", "a"]),
    "average": Subject(["average", f"{INPUTS}/codec", "a", "--ema", "0.06"]),
}
"""Commands under which the disk is filled."""


class StormError(Exception):
    """A command fails even if it is not interrupted, or there is no small disk."""


@dataclass
class Outcome:
    """What happened to one subject."""

    name: str
    seconds: float = 0.0
    """Duration of the command without interruption."""
    interrupted: int = 0
    """Number of kills, or of failures because the disk was full."""
    ended: int = 0
    """Number of times that the command ended after all. Each time, its files were compared."""
    problems: list[str] = field(default_factory=list)


# ---- running commands ----


def start(command: Sequence[str], place: Path, log: Path) -> int:
    """Start `genmodels COMMAND` in a fork of this process, in the folder `place`."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        os.chdir(place)
        os.environ["GENMODELS_CACHE"] = str(place / "cache")
        from genmodels.cli import main

        status = main(command)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(process: int, seconds: float, watch: Callable[[], None] = lambda: None) -> int | None:
    """Return the exit status, negative for a signal, or None if it still runs after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        watch()
        time.sleep(0.002)


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def run(command: Sequence[str], place: Path, log: Path, watch: Callable[[], None] = lambda: None) -> str:
    """Run a command to its end. Returns "" if it succeeded, or else what happened."""
    process = start(command, place, log)
    status = wait(process, LONGEST, watch)
    if status is None:
        kill(process)
        return f"hangs for {LONGEST:.0f} s"
    return "" if status == 0 else f"status {status}: {said(log)[-1]}"


def said(log: Path) -> list[str]:
    return log.read_text(errors="replace").strip().splitlines() or [""]


def must(command: Sequence[str], place: Path, log: Path, watch: Callable[[], None] = lambda: None) -> None:
    if problem := run(command, place, log, watch):
        raise StormError(f"genmodels {' '.join(command)}, not interrupted: {problem}")


def ordinary(command: Sequence[str], place: Path) -> None:
    """Run a command in a process that shares nothing with this one."""
    environment = os.environ | {"GENMODELS_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "genmodels", *command]
    done = subprocess.run(call, cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise StormError(f"genmodels {' '.join(command)}, not interrupted: {done.stderr.strip().splitlines()[-1:]}")


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


# ---- comparing files ----


def contents(place: Path) -> dict[str, str]:
    """Return the files in a folder, each with a hash of its content without times."""
    files = {}
    for path in sorted(place.rglob("*")):
        # metrics.1.jsonl is the log of a run that was killed before its first checkpoint.
        spared = path.name in (".lock", "checked") or "tfevents" in path.name or path.match("metrics.*.jsonl")
        if path.is_file() and not spared:
            try:
                content = without_times(path)
            except (ValueError, KeyError, zipfile.BadZipFile):  # damaged, or not a file of this kind
                content = path.read_bytes()
            files[str(path.relative_to(place))] = hashlib.sha256(content).hexdigest()[:16]
    return files


def without_times(path: Path) -> bytes:
    """Return the content of a file without durations, dates and what differs from run to run."""
    if path.name == "README.md":  # lists speed and duration
        return b""
    if path.name == "config.yaml":  # records absolute paths, and whether the last start had --resume
        text = path.read_bytes().replace(str(path.parent.parent).encode(), b"")
        return b"\n".join(line for line in text.splitlines() if not line.startswith(b"resume:"))
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return plain([{k: v for k, v in line.items() if k not in ("elapsed", "images_per_second")} for line in lines])
    if path.name == "state.json":
        record = json.loads(path.read_text())
        record["state"] = {k: v for k, v in record["state"].items() if k not in ("elapsed", "saved", "costs")}
        return plain(record)
    if path.name == "scores.json":
        record = json.loads(path.read_text())
        return plain({k: v for k, v in record["scores"].items() if v.get("group") != "cost"})
    if path.suffix == ".safetensors":  # which writes its metadata in a random order
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        return plain([list(header.items()), sorted(metadata.items())]) + content[8 + length :]
    if path.suffix == ".zip":  # its members have dates
        with zipfile.ZipFile(path) as archive:
            return plain([(member.filename, member.CRC) for member in archive.infolist()])
    return path.read_bytes()


def plain(value: Any) -> bytes:
    return json.dumps(value).encode()


def differences(expected: dict[str, str], actual: dict[str, str]) -> list[str]:
    """Describe how two results of `contents` differ."""
    lines = [f"{name} is missing" for name in expected if name not in actual]
    lines += [f"{name} is left over" for name in actual if name not in expected]
    return lines + [f"{name} differs" for name in expected if name in actual and actual[name] != expected[name]]


# ---- kills ----


def kill_often(work: Path, name: str, kills: int, seed: int, alone: bool) -> Outcome:
    """Kill a command `kills` times, and compare its files each time that it ends after all.

    Args:
        work: folder with the inputs.
        name: name in `KILLED`.
        kills: number of kills.
        seed: seed of the times.
        alone: whether the reference is written by an ordinary process.
    """
    subject, outcome, chance = KILLED[name], Outcome(name), random.Random(f"{seed} {name}")
    base = work / "kills" / name.replace(" ", "-")
    fresh(base)
    (base / "inputs").symlink_to(work / "inputs")
    log = base / "log"
    reference, place = fresh(base / "reference"), fresh(base / "fork")
    if alone and "toyfaces" not in subject.command:  # of which forks draw fewer
        ordinary(subject.command, reference)
    else:
        must(subject.command, reference, log)
    expected = contents(reference)
    began = time.monotonic()
    must(subject.command, place, log)
    outcome.seconds = time.monotonic() - began
    outcome.problems += [f"without a kill: {line}" for line in differences(expected, contents(place))]
    while outcome.interrupted < kills:
        place = fresh(base / f"{outcome.ended}")
        problem = kill_until_done(subject, place, log, outcome, kills, chance)
        found = [problem] if problem else differences(expected, contents(place))
        outcome.problems += [f"{place.name}: {line}" for line in found]
        outcome.ended += 1
        if not found:
            shutil.rmtree(place)
    return outcome


def kill_until_done(
    subject: Subject, place: Path, log: Path, outcome: Outcome, kills: int, chance: random.Random
) -> str:
    """Start a command again and again until it ends, or the kills are used up. Returns a problem."""
    command = subject.command
    while outcome.interrupted < kills:
        process = start(command, place, log)
        status = wait(process, chance.uniform(0, outcome.seconds))
        if status is not None:
            return "" if status == 0 else f"status {status}: {said(log)[-1]}"
        kill(process)
        outcome.interrupted += 1
        command = again(subject, place)
    return run(command, place, log)


def again(subject: Subject, place: Path) -> list[str]:
    """Return the command that goes on where an interrupted one ended."""
    started = subject.resumes and (place / "run" / "config.yaml").exists()
    return [*subject.command, *(["--resume"] if started else [])]


# ---- full disks ----


def fill_often(work: Path, name: str, fills: int, seed: int) -> Outcome:
    """Run a command `fills` times on a disk that becomes full, and again with enough space.

    Args:
        work: folder with the inputs.
        name: name in `FILLED`.
        fills: number of times.
        seed: seed of the space that is left.
    """
    subject, outcome, chance = FILLED[name], Outcome(name), random.Random(f"{seed} {name}")
    base = work / "fills" / "".join(c if c.isalnum() else "-" for c in name)
    log = fresh(base) / "log"
    with small_disk(base / "disk") as disk:
        (disk / "inputs").symlink_to(work / "inputs")
        place, free = prepared(subject, disk, log), [free_bytes(disk)]
        began = time.monotonic()
        must(subject.command, place, log, lambda: free.append(free_bytes(disk)))
        outcome.seconds, needed, expected = time.monotonic() - began, free[0] - min(free), results(subject, place)
        for i in range(fills):
            place = prepared(subject, disk, log)
            earlier = kept(subject, place)
            with filled(disk, int(needed * chance.random() ** 2) if i else 0):
                problem, text = run(subject.command, place, log), said(log)
            if problem:
                outcome.interrupted += 1
                outcome.problems += complaints(problem, text)
                lost = differences(earlier, kept(subject, place))
                outcome.problems += [f"after a full disk: {line}" for line in lost]
            if problem or subject.keeps:  # caches that did not fit are no error, and are written now
                problem = run(again(subject, place), place, log)
            found = [problem] if problem else differences(expected, results(subject, place))
            outcome.problems += [f"with space again: {line}" for line in found]
            outcome.ended += 1
    return outcome


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Context with a file system of `SPACE` megabytes, in memory."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SPACE}m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip() or "mount failed"
        raise StormError(f"full disks need a tmpfs ({reason}): run this as root, or in unshare --map-root-user --mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def free_bytes(disk: Path) -> int:
    return shutil.disk_usage(disk).free


@contextmanager
def filled(disk: Path, room: int) -> Iterator[None]:
    """Context in which only `room` bytes are free on a disk."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free_bytes(disk) - room))
    try:
        yield
    finally:
        filler.unlink()


def prepared(subject: Subject, disk: Path, log: Path) -> Path:
    """Return a new folder for a command, with the earlier file if it has one."""
    place = fresh(disk / "place")
    if subject.before:
        must(subject.before, place, log)
    elif subject.keeps:
        (place / subject.keeps).write_bytes(b"earlier")
    return place


def results(subject: Subject, place: Path) -> dict[str, str]:
    """Return the contents of a folder, without caches that --force may leave incomplete."""
    return {name: value for name, value in contents(place).items() if not (subject.keeps and name.startswith("cache/"))}


def kept(subject: Subject, place: Path) -> dict[str, str]:
    """Return the contents of the earlier file or folder of a command."""
    inside = {name: value for name, value in contents(place).items() if subject.keeps}
    return {name: value for name, value in inside.items() if name.split("/")[0] == subject.keeps}


def complaints(problem: str, text: list[str]) -> list[str]:
    """Return what is wrong with how a command on a full disk ended."""
    errors = [line for line in text if line.startswith("genmodels: error:")]
    if not problem.startswith("status 1:"):
        return [problem]
    if any("Traceback" in line or "Exception" in line for line in text):
        return [f"a traceback: {text[-1]}"]
    if len(errors) != 1 or not any(words in errors[0] for words in ("the disk is full", "GB free")):
        return [f"not one line about the disk: {' / '.join(errors) or text[-1]}"]
    return []


# ---- all of it ----


def load_everything() -> None:
    """Import what the commands import, before this process is forked."""
    import diffusers  # noqa: F401
    import torch
    from torch.utils import tensorboard  # noqa: F401

    import genmodels.cli
    import genmodels.data
    import genmodels.evaluation.compare
    import genmodels.evaluation.evaluate
    import genmodels.exchange.export
    import genmodels.training.pipeline

    for family in genmodels.families():
        genmodels.family(family)
    torch.set_num_threads(1)
    genmodels.data.TOYFACES = FACES


def make_inputs(work: Path, upto: int = 4) -> None:
    """Write what the commands read into work/inputs: images, and the first `upto` of a pack and its
    parts, a VAE, a U-Net and scores."""
    from genmodels.data import toyfaces

    inputs, place, log = fresh(work / "inputs"), fresh(work / "setup"), work / "setup.log"
    images, attributes = toyfaces.draw(0, np.arange(IMAGES), SIZE + 8)
    (inputs / "faces").mkdir()
    rows = ["file,split,Smiling"]
    smiling = attributes[:, toyfaces.ATTRIBUTES.index("Smiling")]
    for i, image in enumerate(images):
        Image.fromarray(image).save(inputs / "faces" / f"{i:04d}.png")
        rows.append(f"{i:04d}.png,{'train' if i < IMAGES // 2 else 'valid'},{smiling[i]}")
    (inputs / "faces" / "attributes.csv").write_text("\n".join(rows) + "\n")
    pack = [*PACK, "--out", f"{INPUTS}/pack"]
    parts = [[*PACK, "--out", f"{INPUTS}/part{number}", "--part", f"{number}/2"] for number in (1, 2)]
    codec = ["train", "vae", *QUICK, *MAP, "--steps", "40", "--ema-snapshots", "8", "--output", f"{INPUTS}/codec"]
    unet = [*KILLED["unet"].command, "--output", f"{INPUTS}/unet"]
    scores = [*KILLED["evaluate"].command, "--json", f"{INPUTS}/scores.json"]
    for command in (pack, *parts, codec, unet, scores)[: upto + 2]:
        must(command, place, log)


@dataclass(frozen=True)
class Settings:
    kills: int = 204
    """Number of kills, divided among the commands that are killed."""
    fills: int = 120
    """Number of full disks, divided among the commands under which the disk is filled."""
    seed: int = 0
    """Seed of the times of the kills and of the space on the disks."""
    workers: int = 2
    """Number of commands that run at a time."""
    only: tuple[str, ...] = ()
    """Names of the commands; all if there are none."""
    alone: bool = True
    """Compare with ordinary processes, and not only with forks that are not killed."""
    work: Path | None = None
    """Folder for all files, which are then kept. None: a temporary one."""
    json: Path | None = None
    """File to write the results to."""


def main(settings: Settings) -> int:
    began = time.monotonic()
    load_everything()
    with tempfile.TemporaryDirectory() as temporary:
        work = fresh((settings.work or Path(temporary) / "storm").absolute())
        try:
            make_inputs(work)
            results = storm(work, settings)
        except StormError as error:
            print(f"storm: error: {error}", file=sys.stderr)
            return 1
    for title, what, outcomes in (
        ("Kills", "kills", results["kills"]),
        ("Full disks", "ended by a full disk", results["fills"]),
    ):
        print(table(title, what, outcomes))
    minutes = (time.monotonic() - began) / 60
    print(f"seed {settings.seed}, {minutes:.1f} minutes, {os.cpu_count()} cores")
    if settings.json:
        values = {name: [asdict(o) for o in outcomes] for name, outcomes in results.items()}
        settings.json.write_text(json.dumps(values, indent=2) + "\n")
    return int(any(outcome.problems for outcomes in results.values() for outcome in outcomes))


def storm(work: Path, settings: Settings) -> dict[str, list[Outcome]]:
    """Run both storms."""
    results: dict[str, list[Outcome]] = {"kills": [], "fills": []}
    killed, filled = ([name for name in names if name in (settings.only or names)] for names in (KILLED, FILLED))
    with get_context("fork").Pool(settings.workers) as pool:
        jobs = []
        for i, name in enumerate(killed):
            if kills := share(settings.kills, i, len(killed)):
                arguments = (work, name, kills, settings.seed, settings.alone)
                jobs.append(("kills", pool.apply_async(kill_often, arguments)))
        for i, name in enumerate(filled):
            if fills := share(settings.fills, i, len(filled)):
                jobs.append(("fills", pool.apply_async(fill_often, (work, name, fills, settings.seed))))
        pool.close()
        pool.join()  # also if one fails: the others unmount their disks
        for kind, job in jobs:
            outcome: Outcome = job.get()
            results[kind].append(outcome)
            print(f"{outcome.name}: {outcome.interrupted} {kind}, {len(outcome.problems)} problems", file=sys.stderr)
    return results


def share(total: int, i: int, count: int) -> int:
    """Return the i-th of `count` nearly equal parts of `total`."""
    return total * (i + 1) // count - total * i // count


def table(title: str, what: str, outcomes: list[Outcome]) -> str:
    """Return the results as a table in Markdown, with the problems below it."""
    if not outcomes:
        return ""
    lines = [f"\n## {title}\n", f"| command | seconds | {what} | ended, then compared | problems |"]
    lines.append("|---|---|---|---|---|")
    for o in outcomes:
        lines.append(f"| {o.name} | {o.seconds:.1f} | {o.interrupted} | {o.ended} | {len(o.problems)} |")
    total = [sum(getattr(o, name) for o in outcomes) for name in ("interrupted", "ended")]
    lines.append(f"| all | | {total[0]} | {total[1]} | {sum(len(o.problems) for o in outcomes)} |\n")
    return "\n".join([*lines, *(f"{o.name}: {problem}" for o in outcomes for problem in o.problems)])


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings, description=__doc__)))
