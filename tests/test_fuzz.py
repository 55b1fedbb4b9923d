"""Malformed inputs: a share of `make fuzz`, the fuzzer itself, and the readers on any text and value."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzz import driver as fuzzer
from fuzz.cases import KINDS, kind_of, prepare
from fuzz.originals import Originals
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ranks import run_alone

import genmodels
from genmodels.reading import parse_json, read_json, read_json_lines, read_yaml
from genmodels.saving import from_dict, to_dict

SOURCES = ("cifar", "mnist", "columns", "save_to_disk", "shard")
GROUPS = {
    "models": (("model config", "model weights", "model used"), 80),
    "runs": (("recipe", "checkpoint", "metrics", "results"), 24),
    "data": (("pack", "part", "journal", "table", "celeba", "zip", "array", "picture", "pictures", *SOURCES), 90),
    "exchange": (("diffusers", "diffusers codec", "cache"), 36),
}
"""Kinds of input that are tested together, and the number of their cases."""
FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate])

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
tree = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))


def test_every_kind_is_in_one_group() -> None:
    assert sorted(kind for kinds, _ in GROUPS.values() for kind in kinds) == sorted(KINDS)
    assert sum(kind.share for kind in KINDS.values()) > 5000


@pytest.mark.parametrize("group", GROUPS)
def test_malformed_inputs_end_in_one_line(group: str, tmp_path: Path) -> None:
    """In a process of its own: it forks, which torch allows only before anything was trained."""
    kinds, count = GROUPS[group]
    chosen = [word for kind in kinds for word in ("--kind", kind)]
    script = Path(fuzzer.__file__).with_name("run.py")
    limits = ["--cases", str(count), "--jobs", "1", "--keep", str(tmp_path / "cases")]
    status, said = run_alone(script, *limits, *chosen)
    assert status == 0 and "no failure" in said, said[-4000:]


def test_cases_are_a_function_of_the_seed(tmp_path: Path) -> None:
    originals, numbers = Originals(tmp_path / "originals"), [n for n in range(90) if kind_of(5, n) == "table"]
    assert len(numbers) > 2
    for number in numbers:
        made = []
        for folder in ("first", "second"):
            case = prepare(originals, 5, number, tmp_path / f"{folder}{number}", tmp_path)
            files = {
                f.name: f.read_bytes() for f in (tmp_path / f"{folder}{number}" / "faces").iterdir() if f.is_file()
            }
            made.append((case, files))
        assert made[0] == made[1]


def _outside(arguments: list[str]) -> int:
    Path("../canary/kept.txt").write_text("lost")
    return 0


def _natively_outside(arguments: list[str]) -> int:
    """Write where no audit event tells of it."""
    descriptor = os.open("../canary", os.O_RDONLY)
    os.rename("kept.txt", "gone.txt", src_dir_fd=descriptor, dst_dir_fd=descriptor)
    return 0


def _fails(arguments: list[str]) -> int:
    raise TypeError("NoneType")


def _blames_nobody(arguments: list[str]) -> int:
    print("genmodels: error: it did not work", file=sys.stderr)
    return 1


@pytest.mark.parametrize(
    ("end", "command"),
    [
        ("fine", lambda arguments: 0),
        ("hang", lambda arguments: time.sleep(60)),
        ("killed", lambda arguments: os.kill(os.getpid(), signal.SIGKILL)),
        ("outside", _outside),
        ("outside", _natively_outside),
        ("outside", lambda arguments: subprocess.run(["true"]).returncode),
        ("exception", _fails),
        ("message", _blames_nobody),
        ("message", lambda arguments: 3),
        ("exception", lambda arguments: len(bytes(1 << 34))),
    ],
)
def test_the_fuzzer_sees(end: str, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzer, "command", command)
    monkeypatch.setattr(fuzzer, "import_everything", lambda: None)
    monkeypatch.setattr(fuzzer, "LIMIT", 1.0)
    numbers = [number for number in range(200) if kind_of(0, number) == "table"][:1]
    found = list(fuzzer.run(numbers, 0, tmp_path))
    assert [result.end for result in found] == [end], found


def refusal(call: Callable[..., object], *arguments: object) -> str | None:
    """Return the message of the ValueError of a call, or None."""
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    return None


@FEW
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")) | tree.map(
    lambda value: json.dumps(value).encode()
))  # fmt: skip
def test_readers_return_a_value_or_name_the_file(data: bytes) -> None:
    file = Path(os.environ["GENMODELS_CACHE"]) / "read.txt"
    file.write_bytes(data)
    for read in (read_json, read_yaml, lambda path: list(read_json_lines(path))):
        message = refusal(read, file)
        assert message is None or (str(file) in message and "\n" not in message)


@FEW
@given(tree)
def test_json_that_is_read_is_what_was_written(value: Any) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:  # not a finite number
        with pytest.raises(ValueError, match="is not a finite number"):
            parse_json(json.dumps(value))
        return
    assert parse_json(text) == value


@pytest.mark.parametrize("family", genmodels.FAMILIES)
def test_configs_of_any_values_are_valid_or_refused(family: str) -> None:
    kind = genmodels.family(family).Config
    names = list(kind.__dataclass_fields__)

    @FEW
    @given(st.dictionaries(st.sampled_from(names), tree, min_size=1, max_size=2))
    def check(given: dict[str, Any]) -> None:
        message = refusal(lambda: yaml.safe_dump(to_dict(from_dict(kind, given))))
        assert message is None or message.startswith("config")

    check()
