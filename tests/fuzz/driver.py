"""Run commands on malformed inputs: `make fuzz`, or python tests/fuzz/run.py --help.

A case ends well if the command succeeds, or prints one line that begins with "genmodels: error:" and
names the file or the setting. All other ends are failures: another exception, a hang, a killed
process, a foreign program, a file outside of the case's folder that was touched.

Child processes, forked once torch is loaded, run the cases one after the other. The parent watches
them, so that a hang or a kill is seen and attributed to its case.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib
import json
import os
import pkgutil
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from fuzz.cases import KINDS, Case, kind_of, prepare
from fuzz.originals import Originals
from fuzz.watch import Watch, outside
from PIL import Image

import genmodels
from genmodels.cli import main as command

LIMIT = 10.0
"""Seconds that a case may take."""
MEMORY = 4 << 30
"""Bytes of memory that a case may use."""
ROUND = 60
"""Cases that one child runs."""


def import_everything() -> None:
    """Import what commands import when they run, before the processes are forked."""
    for module in pkgutil.walk_packages(genmodels.__path__, "genmodels."):
        if not module.name.startswith("genmodels.recipes") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        "matplotlib.pyplot",
        "scipy.linalg",
        "sklearn.neighbors",
        "torch._dynamo",
        "yaml",
        "zipfile",
        "datasets",
    ):
        importlib.import_module(name)
    for name in ("AutoencoderKL", "VQModel", "UNet2DModel", "DDPMPipeline", "LDMPipeline", "DiTPipeline"):
        getattr(importlib.import_module("diffusers"), name)
    Image.init()


@dataclasses.dataclass
class Result:
    """The end of a case: fine, refused, or what failed."""

    number: int
    kind: str = ""
    end: str = ""
    detail: str = ""
    command: str = ""
    seconds: float = 0.0
    folder: str = ""

    @property
    def failed(self) -> bool:
        return self.end not in ("fine", "refused")


def run(numbers: Sequence[int], seed: int, root: Path, jobs: int = 1) -> Iterator[Result]:
    """Run the cases `numbers` and yield their results as they end.

    Args:
        numbers: numbers of cases.
        seed: seed of all cases.
        root: new folder. The folders of failed cases remain in it.
        jobs: number of child processes at a time.
    """
    import_everything()
    originals = Originals(root / "originals")
    for name in sorted({kind_of(seed, number) for number in numbers}):
        for source in (*KINDS[name].sources, *KINDS[name].others):
            originals.get(source)
    waiting = collections.deque(tuple(numbers[start : start + ROUND]) for start in range(0, len(numbers), ROUND))
    children: list[Child] = []
    try:
        while waiting or children:
            while waiting and len(children) < jobs:
                children.append(Child(waiting.popleft(), seed, root, originals))
            ready, _, _ = select.select([child.pipe for child in children], [], [], 0.2)
            for child in list(children):
                yield from child.receive() if child.pipe in ready else ()
                if child.ended or child.late:
                    children.remove(child)
                    yield from child.close()
                    if child.remaining:
                        waiting.appendleft(child.remaining)
    finally:
        for child in children:
            os.kill(child.process, signal.SIGKILL)
            os.waitpid(child.process, 0)


class Child:
    """A process that runs cases."""

    def __init__(self, numbers: tuple[int, ...], seed: int, root: Path, originals: Originals):
        self.remaining, self.seed, self.root = numbers, seed, root
        self.pipe, write = os.pipe()
        self.since, self.used, self.ended, self._rest = time.monotonic(), 0.0, False, b""
        sys.stdout.flush()
        self.process = os.fork()
        if not self.process:
            os.close(self.pipe)
            try:
                _run_all(numbers, seed, root, originals, write)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        os.close(write)

    @property
    def late(self) -> bool:
        """Whether the case has taken too long: in time of the processor, or three times that by the clock."""
        waited = time.monotonic() - self.since
        return waited > 3 * LIMIT or (waited > LIMIT and _seconds(self.process) - self.used > LIMIT)

    def receive(self) -> Iterator[Result]:
        data = os.read(self.pipe, 1 << 20)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.since, self.used, self.remaining = time.monotonic(), _seconds(self.process), self.remaining[1:]
            yield Result(**json.loads(line))

    def close(self) -> Iterator[Result]:
        """End the process; yield the case that hung or that killed it."""
        late = self.late and not self.ended
        if late:
            os.kill(self.process, signal.SIGKILL)
        status = os.waitpid(self.process, 0)[1]
        os.close(self.pipe)
        if self.remaining:
            number, *rest = self.remaining
            self.remaining = tuple(rest)
            folder = self.root / f"case-{number}"
            note = (folder / "command.txt").read_text() if (folder / "command.txt").exists() else ""
            end, detail = ("hang", f"more than {LIMIT:g} s") if late else ("killed", f"status {status}")
            line = note.partition("\n")[0].removeprefix("genmodels ")
            yield Result(number, kind_of(self.seed, number), end, detail, line, LIMIT, str(folder))


def _seconds(process: int) -> float:
    """Return the seconds that a process has spent on a processor."""
    times = psutil.Process(process).cpu_times()
    return times.user + times.system


def _run_all(numbers: Sequence[int], seed: int, root: Path, originals: Originals, pipe: int) -> None:
    """Run cases in this process, a child, and write each result to `pipe`."""
    os.environ["COLUMNS"] = "200"
    for name, stream in (("stdout", 1), ("stderr", 2)):  # pytest has replaced them
        setattr(sys, name, os.fdopen(stream, "w", closefd=False, errors="backslashreplace"))
    watched = Watch()
    sys.addaudithook(watched.audit)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    for number in numbers:
        result = _run_one(number, seed, root / f"case-{number}", originals, watched)
        os.write(pipe, (json.dumps(dataclasses.asdict(result)) + "\n").encode())


def _run_one(number: int, seed: int, folder: Path, originals: Originals, watched: Watch) -> Result:
    """Run one case. Its folder holds `work`, where the command runs, and `canary`, which it must not touch."""
    from accelerate.state import AcceleratorState

    folder.mkdir(parents=True)
    work, canary = folder / "work", folder / "canary"
    canary.mkdir()
    (canary / "kept.txt").write_text("kept\n")
    case = prepare(originals, seed, number, work, canary)
    (folder / "command.txt").write_text(f"genmodels {' '.join(case.arguments)}\n{case.damaged}: {case.done}\n")
    before = outside(folder, work)
    AcceleratorState._reset_state(True)
    os.environ["GENMODELS_CACHE"], os.environ["HOME"] = str(work / "cache"), str(work)
    tempfile.tempdir = str(work)
    words = _words(work) | {Path(argument).name for argument in case.arguments}
    os.chdir(work)
    status, output, errors = _captured(case.arguments, folder, watched, work)
    os.chdir("/")
    seconds = time.monotonic() - watched.start
    end, detail = _verdict(status, output, errors, words, case)
    if watched.wrong:
        end, detail = "outside", watched.wrong[0]
    elif (changed := outside(folder, work)) != before:
        end, detail = "outside", f"changed: {sorted(set(changed.items()) ^ set(before.items()))[0][0]}"
    result = Result(number, case.kind, end, detail, " ".join(case.arguments), seconds, str(folder))
    if not result.failed:
        shutil.rmtree(folder)
    return result


def _captured(arguments: list[str], folder: Path, watched: Watch, work: Path) -> tuple[int | str, str, str]:
    """Run the command line; return its status (or an exception), and what it printed."""
    kept = os.dup(1), os.dup(2)
    paths = folder / "stdout.txt", folder / "stderr.txt"
    for stream, path in ((1, paths[0]), (2, paths[1])):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, stream)
        os.close(opened)
    watched.begin(work)
    status: int | str
    try:
        status = command(arguments)
    except BaseException as error:
        status = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    finally:
        watched.end()
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, old in ((1, kept[0]), (2, kept[1])):
            os.dup2(old, stream)
            os.close(old)
    return status, *(path.read_text(errors="replace") for path in paths)


def _verdict(status: int | str, output: str, errors: str, words: set[str], case: Case) -> tuple[str, str]:
    """Return how a case ended, and the message or what is wrong with it."""
    lines = [line for line in errors.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("genmodels: error")]
    message = ours[-1] if ours else lines[-1] if lines else ""
    if isinstance(status, str):
        return "exception", status
    if "Traceback (most recent call last)" in output + errors:
        return "traceback", message
    if status == 0:
        return ("fine", "") if not ours else ("message", f"an error with status 0: {message}")
    if status not in (1, 2):
        return "message", f"status {status}: {message}"
    if re.search(r"\b[A-Z]\w*(Error|Exception|Warning)\b(?! of)", message) or "(--debug shows where)" in message:
        return "exception", message
    if len(ours) != 1 or lines[-1] != message:
        return "message", f"not one line of ours at the end: {errors[-500:]}"
    if len(message) > 1000:
        return "message", f"{len(message):,} characters: {message[:200]}"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message):
        return "message", f"control characters: {message!r}"
    if "--" not in message and not set(re.findall(r"[\w.-]+", message)) & words:
        return "message", f"names neither file nor setting: {message}"
    return "refused", message


def _words(work: Path) -> set[str]:
    """Return the names of all files of a case, and of the settings in them."""
    words: set[str] = set()
    for path in work.rglob("*"):
        words |= {path.name, path.stem}
        if path.suffix in (".json", ".yaml") and path.is_file() and not path.is_symlink():
            words |= set(re.findall(r"\w+", path.read_text(errors="replace")[:20_000]))
    return words


def _summary(results: Sequence[Result]) -> str:
    """Return a table of the results by kind."""
    rows = [f"{'kind':16} {'cases':>6} {'fine':>6} {'refused':>8} {'failed':>7} {'seconds':>8}"]
    for kind in [*KINDS, ""]:
        held = [result for result in results if result.kind == kind or not kind]
        if held:
            fine, refused = (sum(r.end == end for r in held) for end in ("fine", "refused"))
            seconds = sum(r.seconds for r in held)
            failed = len(held) - fine - refused
            rows.append(f"{kind or 'all':16} {len(held):6,} {fine:6,} {refused:8,} {failed:7,} {seconds:8.0f}")
    ends = collections.Counter(result.end for result in results if result.failed)
    return "\n".join([*rows, "", ", ".join(f"{count:,} {end}" for end, count in ends.items()) or "no failure"])


def main() -> int:
    """Run the command line and return its exit status: 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases")
    parser.add_argument("--cases", type=int, default=5000, help="number of cases")
    parser.add_argument("--case", type=int, help="run only this case, and show what it prints")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="run only cases of this kind")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    parser.add_argument("--seconds", type=float, help="stop after this time, with what was done")
    parser.add_argument("--keep", type=Path, help="new folder for the inputs of failed cases")
    parser.add_argument("--json", type=Path, help="file to which the results are also written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.keep:
        args.keep.mkdir(parents=True)
    root = args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    numbers = list(range(args.cases)) if args.case is None else [args.case]
    if args.kind and args.case is None:
        numbers = _of_kinds(args.seed, args.kind, args.cases)
    start, results = time.monotonic(), []
    deadline = start + (args.seconds or 1e9)
    for result in run(numbers, args.seed, root.resolve(), args.jobs):
        results.append(result)
        if result.failed or args.case is not None:
            print(f"case {result.number} ({result.kind}) {result.end}: {result.detail[:300]}")
            print(f"    genmodels {result.command}")
        if result.failed:
            print(
                f"    python tests/fuzz/run.py --seed {args.seed} --case {result.number}    # kept in {result.folder}"
            )
        sys.stdout.flush()
        if time.monotonic() > deadline:
            print(f"stopped after {args.seconds:g} s")
            break
    print(f"\n{_summary(results)} in {time.monotonic() - start:.0f} s (seed {args.seed})")
    shutil.rmtree(root / "originals")
    if not any(result.failed for result in results):
        shutil.rmtree(root)
    if args.json:
        args.json.write_text("".join(json.dumps(dataclasses.asdict(result)) + "\n" for result in results))
    return int(any(result.failed for result in results))


def _of_kinds(seed: int, kinds: Sequence[str], count: int) -> list[int]:
    """Return the first `count` cases of some kinds."""
    numbers, number = [], 0
    while len(numbers) < count:
        if kind_of(seed, number) in kinds:
            numbers.append(number)
        number += 1
    return numbers
