"""Reading files with limits, and writing files and folders atomically."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from genmodels import reading, writing
from genmodels.cli import arguments


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ---- reading ----


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("9" * 10_000, "digits"),
        ("{", "Expecting"),
    ],
)
def test_json_that_cannot_be_meant_is_refused_with_the_name_of_the_file(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match=reason) as error:
        reading.read_json(path)
    assert str(path) in str(error.value)


def test_a_name_that_occurs_twice_among_many_is_found_at_once() -> None:
    many = ",".join(f'"{i}": 0' for i in range(40_000))
    start = time.process_time()
    with pytest.raises(ValueError, match="'39999' occurs twice"):
        reading.parse_json(f'{{{many}, "39999": 1}}')
    assert time.process_time() - start < 2  # it took 54


def test_json_is_read_with_or_without_a_mark() -> None:
    assert reading.parse_json('{"a": [1, 2.5, null, "é"]}') == {"a": [1, 2.5, None, "é"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [1]\nb: *a\n", "line 2: aliases"),
        ("[" * 1_000 + "]" * 1_000, "nested more than"),
        ("a: 1\nb: 2\na: 3\n", "'a' occurs twice"),
        ("a: {b: 1, b: 2}\n", "'b' occurs twice"),
        ("a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        ("a: 2026-99-99\n", "month"),
        ("a: [", "is not YAML"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused_with_the_name_of_the_file(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path / "a.yaml", text)
    with pytest.raises(ValueError, match=reason) as error:
        reading.read_yaml(path)
    assert str(path) in str(error.value)


def test_an_alias_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    lines = ["a: &a [x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    with pytest.raises(ValueError, match="aliases"):
        reading.read_yaml(write(tmp_path / "bomb.yaml", "\n".join(lines)))


def test_plain_yaml_is_read(tmp_path: Path) -> None:
    assert reading.read_yaml(write(tmp_path / "a.yaml", "a: {b: [1, 2.5, null]}\nc: x\n")) == {
        "a": {"b": [1, 2.5, None]},
        "c": "x",
    }


def test_endless_and_large_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="not a regular file"):
            reading.read_bytes(path)
    with pytest.raises(ValueError, match="has 11 bytes; at most 10"):
        reading.read_bytes(write(tmp_path / "a", "x" * 11), limit=10)
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"b is not UTF-8 text"):
        reading.read_text(tmp_path / "b")


def test_incomplete_lines_are_left_out(tmp_path: Path) -> None:
    assert list(reading.read_json_lines(tmp_path / "absent")) == []
    path = write(tmp_path / "a.jsonl", '{"a": 1}\nnull\n[2]\n{"a": NaN}\n{"a": 3}\n{"a": ')
    said: list[str] = []
    assert list(reading.read_json_lines(path, said.append)) == [{"a": 1}, {"a": 3}]
    damaged = "is damaged (not a JSON object) and is left out"  # the last line is incomplete, not damaged
    assert said == [f"{path}, line {number} {damaged}" for number in (2, 3, 4)]


def test_a_long_log_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", "\ufeff" + '{"a": 1}\r\n' * 3)
    with path.open("ab") as file:
        file.write(b'{"b": "\xff"}\n{"a": 2}')
    monkeypatch.setattr(reading, "LARGEST_TEXT", 10)
    assert [line["a"] for line in reading.read_json_lines(path)] == [1, 1, 1, 2]
    monkeypatch.setattr(reading, "LARGEST_LINE", 20)
    path.write_text('{"a": 1}\n' + '{"a": 2}' * 3 + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl has a line of more than 20 bytes"):
        list(reading.read_json_lines(path))


# ---- writing ----

ENDED = f"{writing._HOST}-99999999999-0"
"""A process of this computer that has ended, in the names of temporary files."""


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "old")

    def interrupted() -> None:
        with writing.replacing(path) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_write_never_goes_through_a_link(tmp_path: Path) -> None:
    precious = write(tmp_path / "precious", "keep")
    path = tmp_path / "run" / "config.yaml"
    path.parent.mkdir()
    path.symlink_to(precious)
    (path.parent / f".config.{ENDED}.partial.yaml").symlink_to(precious)
    writing.write_text(path, "new")
    assert precious.read_text() == "keep"
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert os.listdir(path.parent) == ["config.yaml"]


def test_folders_are_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "report"
    with writing.replacing_folder(out) as draft:
        (draft / "sub").mkdir()
        write(draft / "sub" / "a", "1")
    with pytest.raises(FileNotFoundError), writing.replacing_folder(out) as draft:
        (draft / "b" / "absent").write_text("2")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        "report",
        "report/sub",
        "report/sub/a",
    ]
    with writing.replacing_folder(out) as draft:
        write(draft / "c", "3")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["report", "report/c"]


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, new = write(tmp_path / "a.png", "old"), tmp_path / "sub" / "b.png"
    arguments.check_free(out, force=True)
    arguments.check_free(new, force=False)
    arguments.check_empty(new.parent)
    with pytest.raises(PermissionError, match=f"{out} does not allow it"):
        arguments.check_free(out / "b.png", force=False)  # a file is in the place of its folder
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)  # permissions do not stop root
    for refused in (
        lambda: arguments.check_free(out, force=True),
        lambda: arguments.check_free(new, force=False),
        lambda: arguments.check_empty(new.parent),
    ):
        with pytest.raises(PermissionError, match=f"{tmp_path} does not allow it"):
            refused()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != out)
    with pytest.raises(PermissionError, match=r"a\.png: the file is read-only"):
        arguments.check_free(out, force=True)


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        writing.write_json(tmp_path / "a.json", {"a": float("nan")})
    writing.write_json(tmp_path / "a.json", {"a": 1.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1.5}


def test_the_space_of_an_array_is_reserved_before_it_is_mapped(tmp_path: Path) -> None:
    array = writing.create_array(tmp_path / "a.npy", np.uint8, (1000, 1000))
    array[:] = 7
    array.flush()
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 1_000_000
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), 7)


def test_an_array_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="needs .* GB and .* has .* GB free") as error:
        writing.create_array(tmp_path / "a.npy", np.uint8, (1 << 52,))
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a\.bin: the disk is full"), writing.explained(tmp_path / "a.bin"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_the_error_of_an_array_keeps_its_numbers_and_names_the_file_and_not_a_draft(tmp_path: Path) -> None:
    message = r"^cannot write .*/a\.npy: it needs .* GB and the disk has .* GB free; free some space and try again$"
    with pytest.raises(OSError, match=message) as error, writing.replacing(tmp_path / "a.npy") as draft:
        writing.create_array(draft, np.uint8, (1 << 52,))
    assert writing.is_full(error.value) and os.listdir(tmp_path) == []
    assert not writing.is_full(OSError(errno.EIO, os.strerror(errno.EIO)))


def test_a_free_folder_is_filled_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"  # such as a mounted disk, or the current directory
    left = out / f".genmodels.{ENDED}.partial"
    left.mkdir(parents=True)
    write(left / "half", "of a killed process")
    monkeypatch.chdir(out)
    before = out.stat().st_ino
    with writing.replacing_folder(Path(".")) as draft:
        write(draft / "a", "1")
    assert os.listdir(out) == ["a"]
    assert out.stat().st_ino == before
    assert not writing.is_free(out)


def test_files_of_a_folder_are_replaced_together(tmp_path: Path) -> None:
    write(tmp_path / "config.json", "old")
    write(tmp_path / "notes", "mine")

    def interrupted() -> None:
        with writing.replacing_files(tmp_path) as draft:
            write(draft / "config.json", "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "config.json").read_text() == "old"
    with writing.replacing_files(tmp_path, ("b", "config.json")) as draft:
        write(draft / "config.json", "new")
        write(draft / "b", "new")
    assert sorted(os.listdir(tmp_path)) == ["b", "config.json", "notes"]
    assert (tmp_path / "config.json").read_text() == "new"


def test_the_message_of_a_full_disk_is_plain(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="^cannot write .*a: the disk is full") as error,
        writing.replacing(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.errno == errno.ENOSPC


def test_what_a_killed_process_left_is_removed_but_not_what_another_writes(tmp_path: Path) -> None:
    write(tmp_path / f".a.{ENDED}.partial.txt", "of a killed process")
    with writing.replacing(tmp_path / "a.txt") as first, writing.replacing(tmp_path / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "first"


def test_a_write_removes_no_draft_of_another_file_or_computer_and_no_file_of_the_user(tmp_path: Path) -> None:
    names = (
        f".a.v2.{ENDED}.partial.png",
        ".a.00000000-99999999999-0.partial.png",
        f".a.{writing._HOST}-{os.getppid()}-0.partial.png",
        ".a.mine.partial.png",
        ".a.99999999999-0.partial.png",
    )
    for name in names:
        write(tmp_path / name, "keep")
    with writing.replacing(tmp_path / "a.v2.png") as other:
        other.write_text("other")
        writing.write_text(tmp_path / "a.png", "new")
    assert sorted(os.listdir(tmp_path)) == sorted([*names[1:], "a.png", "a.v2.png"])
    long = ["x" * 100 + end for end in ("1", "2")]  # the temporary names must fit in 255 bytes
    with writing.replacing(tmp_path / f"{long[0]}.txt") as first:
        first.write_text("1")
        write(tmp_path / first.name.replace(f"-{os.getpid()}-", "-99999999999-"), "of a killed process")
        writing.write_text(tmp_path / f"{long[1]}.txt", "2")
    assert [(tmp_path / f"{name}.txt").read_text() for name in long] == ["1", "2"]


def test_containers_that_share_a_name_have_temporary_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert writing._host() == writing._HOST
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[1]")
    container = writing._host()
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[2]")
    other = writing._host()
    monkeypatch.setattr(writing.platform, "node", lambda: "elsewhere")
    assert len({writing._HOST, container, other, writing._host()}) == 4


def test_only_exact_temporary_names_are_leftovers(tmp_path: Path) -> None:
    with writing.replacing(tmp_path / "a.b.png") as file, writing.replacing_folder(tmp_path / "c") as folder:
        assert writing.is_leftover(file.name) and writing.is_leftover(folder.name)
        assert writing.is_leftover(folder.with_suffix(".replaced").name)
        assert writing.is_free(folder)
        file.touch()
    for name in (".a.mine.partial.png", ".partial", "images.partial", "a.partial", ".a.partial", f"a.{ENDED}.partial"):
        assert not writing.is_leftover(name)


def test_two_writers_of_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with writing.replacing_files(out) as first, writing.replacing_files(out) as second:
        write(first / "config.json", "same")
        write(second / "config.json", "same")
    assert os.listdir(out) == ["config.json"]
    one, two = tmp_path / ("x" * 60 + "1"), tmp_path / ("x" * 60 + "2")
    with writing.replacing_folder(one) as first, writing.replacing_folder(two) as second:
        write(first / "a", "1")
        write(second / "a", "2")
    assert ((one / "a").read_text(), (two / "a").read_text()) == ("1", "2")
    assert len(os.listdir(tmp_path)) == 3


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report"
    out.mkdir()
    write(out / "a", "old")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if source.suffix == ".partial":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), writing.replacing_folder(out) as draft:
        write(draft / "a", "new")
    assert os.listdir(tmp_path) == ["report"] and (out / "a").read_text() == "old"


def test_a_kill_while_a_folder_is_replaced_loses_neither_it_nor_the_next_write(tmp_path: Path) -> None:
    old = tmp_path / f".report.{ENDED}.replaced"
    old.mkdir()
    write(old / "a", "old")
    with pytest.raises(KeyboardInterrupt), writing.replacing_folder(tmp_path / "report"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["report"] and (tmp_path / "report" / "a").read_text() == "old"


def test_every_file_of_a_folder_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.fstat(file).st_ino))
    with writing.replacing_folder(tmp_path / "out") as draft:
        (draft / "sub").mkdir()
        for i in range(50):
            write(draft / "sub" / str(i), "x")
        expected = {path.stat().st_ino for path in (tmp_path, draft, *draft.rglob("*"))}
    assert set(flushed) == expected and len(flushed) == len(expected)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"), writing.replacing_folder(tmp_path / "b") as draft:
        write(draft / "a", "x")
    assert os.listdir(tmp_path) == ["out"]


def fail(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_of_settings_is_read_in_a_second_or_refused(tmp_path: Path) -> None:
    many = "\n".join(f"a{i}: 1" for i in range(10_000))
    start = time.process_time()
    assert len(reading.read_yaml(write(tmp_path / "a.yaml", many))) == 10_000
    assert time.process_time() - start < 5  # it took 60 when each name was compared with all others
    with pytest.raises(ValueError, match=r"b.yaml has .* bytes; at most 131,072 are read"):
        reading.read_yaml(write(tmp_path / "b.yaml", many * 2))


def test_numbers_with_an_exponent_are_numbers_in_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a: 1e-4\nb: -2E3\nc: .5e1\nd: 1e\ne: 1e4x\n")
    assert reading.read_yaml(path) == {"a": 1e-4, "b": -2000.0, "c": 5.0, "d": "1e", "e": "1e4x"}
