"""Packing in parts, and joining them into the pack that would have been made at once."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genmodels.cli import main
from genmodels.data import directory, join, joining, load_packed, pack
from genmodels.data.parts import Part, parse_part

N, SIZE = 23, 8


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Write images in splits of two classes, with captions, identities, odd and damaged files."""
    root = tmp_path / "tree"
    rng = np.random.default_rng(0)
    table, captions = ["file,Smiling,identity"], ["file,caption"]
    for i in range(N):
        path = root / ("val", "train", "train", "test")[i % 4] / ("cat", "dog")[i // 2 % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
        (picture.convert("L") if i % 5 == 0 else picture.convert("P") if i == 3 else picture).save(path)
        table.append(f"{path.relative_to(root)},{i % 3 - 1},{i}")
        captions += [f"{path.relative_to(root)},é {i} {k}" for k in range(i % 3)]
    for i in (6, 17):
        path = next(root.rglob(f"{i:03d}.png"))
        path.write_bytes(b"nothing")
    (root / "attributes.csv").write_text("\n".join(table))
    (root / "captions.csv").write_text("\n".join(captions))
    (root / "lost.png").symlink_to("nowhere")
    return root


def pack_parts(tree: Path, of: int, **settings: Any) -> list[Path]:
    out = [tree.parent / f"part{number}" for number in range(1, of + 1)]
    return [pack("folder", tree, path, SIZE, part=Part(i + 1, of), **settings) for i, path in enumerate(out)]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a pack, without those that differ from one copy to another."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("checked", ".lock")}


@pytest.mark.parametrize("store", ["raw", "jpeg"])
@pytest.mark.parametrize("of", [1, 3, 8])
def test_the_parts_joined_are_the_whole_byte_for_byte(tree: Path, of: int, store: Any) -> None:
    whole = pack("folder", tree, tree.parent / "whole", SIZE, store=store)
    parts = pack_parts(tree, of, store=store)
    before = [contents(path) for path in parts]
    assert sum(len(load_packed(path)) for path in parts) == len(load_packed(whole)) == N - 2
    joined = join(tree.parent / "joined", parts[::-1])
    assert contents(joined) == contents(whole)
    packed = load_packed(joined)
    assert packed.labels is not None and packed.identities is not None and packed.text is not None
    assert len(packed.manifest["skipped"]) == 3 and packed.manifest["converted"] == {"grey": 5, "palette": 1}
    assert [contents(path) for path in parts] == before
    assert join(joined, parts) == joined  # again: it is there
    assert pack("folder", tree, joined, SIZE, store=store) == joined


def test_the_command_line_packs_parts_and_joins_them(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [str(tree.parent / name) for name in ("1", "2", "joined")]
    common = ["data", "pack", "folder", "--root", str(tree), "--size", "8", "--store", "webp", "--workers", "1"]
    for number, path in enumerate(out[:2], 1):
        assert main([*common, "--part", f"{number}/2", "--out", path]) == 0
    assert main(["data", "join", out[2], *out[:2]]) == 0
    assert "10 train, 6 valid, 5 test; 8 px" in capsys.readouterr().out
    assert main([*common, "--out", str(tree.parent / "whole")]) == 0
    assert contents(Path(out[2])) == contents(tree.parent / "whole")
    capsys.readouterr()
    assert main([*common, "--part", "3/2", "--out", path]) == 1
    assert "--part 3/2: expected a part and their number, such as 2/8" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "-1/2", "1/2/3", "a/b", "1/0", "1 / 2", "1/1000000000"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a part and their number, such as 2/8"):
        parse_part(text)


@pytest.mark.parametrize(("count", "of"), [(23, 1), (23, 8), (8, 8), (5, 8), (0, 3), (5_000_001, 7)])
def test_parts_share_the_images(count: int, of: int) -> None:
    rows = [Part(number, of).rows(count) for number in range(1, of + 1)]
    assert rows[0].start == 0 and rows[-1].stop == count
    assert all(a.stop == b.start for a, b in pairwise(rows))
    sizes = [row.stop - row.start for row in rows]
    assert max(sizes) - min(sizes) <= 1


def test_a_part_without_images_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match="part 1/90 of folder tree .* has no images: choose at most 23 parts"):
        pack("folder", tree, tree.parent / "out", SIZE, part=Part(1, 90))


def test_a_part_is_a_pack_of_its_own_and_not_another_part(tree: Path) -> None:
    (first, second) = pack_parts(tree, 2)
    assert len(load_packed(first).split("train")) > 3
    with pytest.raises(ValueError, match="already holds another pack"):
        pack("folder", tree, first, SIZE)
    with pytest.raises(ValueError, match="already holds another pack"):
        pack("folder", tree, second, SIZE, part=Part(1, 2))


def test_parts_that_do_not_belong_together_are_refused(tree: Path) -> None:
    top, out = tree.parent, tree.parent / "joined"
    one, two, three = pack_parts(tree, 3)

    def other(name: str, number: int = 3, of: int = 3, size: int = SIZE, **settings: Any) -> Path:
        return pack("folder", tree, top / name, size, part=Part(number, of), **settings)

    whole = pack("folder", tree, top / "whole", SIZE)
    cases: list[tuple[list[Path], str]] = [
        ([], "no parts: name the directories"),
        ([one, two], r"part 3/3 is missing: pack it with --part 3/3"),
        ([two], r"part 1/3 and 1 more is missing"),
        ([one, two, three, two], r"part2 and .*part2 are both part 2/3: leave out one"),
        ([one, two, whole], r"whole is not a part of a pack: it was packed without --part"),
        ([one, two, other("of4", 3, 4)], r"of4 is one of 4 parts, .*part1 one of 3"),
        ([one, two, other("large", size=9)], r"large and .*part1 were packed .*another size \(9, 8\): pack one again"),
        ([one, two, other("crop", crop="9")], r"crop and .*part1 .*another crop \(9, centre\)"),
        ([one, two, other("jpeg", store="jpeg")], r"jpeg and .*part1 .*another store \(jpeg, raw\)"),
        ([other("webp", 1, store="webp", quality=50), other("webp2", 2, store="webp")], r"another quality \(95, 50\)"),
        ([one, two, top / "absent"], "absent: no such packed directory"),
    ]
    (tree / "train" / "cat" / "009.png").touch()  # another modification time
    cases.append(([one, two, other("changed")], r"changed and .* another files \(names, sizes, modification times"))
    for parts, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            join(out, parts)
        assert "\n" not in str(caught.value)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"is not empty \(thesis.txt\): choose a new directory"):
        join(out, [one, two, three])


@pytest.mark.parametrize("name", ["images.npy", "names.bin", "labels.npy", "text.rows.npy"])
def test_a_damaged_part_is_refused_even_if_it_was_checked_before(tree: Path, name: str) -> None:
    parts = pack_parts(tree, 2)
    content = bytearray((parts[1] / name).read_bytes())
    content[-1] ^= 1
    (parts[1] / name).write_bytes(content)
    remembered = directory._remembered(json.loads((parts[1] / "manifest.json").read_text()))
    directory._remember_checked(parts[1], remembered)  # as if a copy had kept the times
    with pytest.raises(ValueError, match=f"part2/{name} (is missing or )?does not|part2/{name} does not fit"):
        join(tree.parent / "joined", parts)


def test_a_class_may_lack_images_in_a_part_but_not_in_all(tree: Path) -> None:
    for path in (tree / "test").rglob("dog/*.png"):  # the only dogs of the first part
        path.write_bytes(b"nothing")
    parts, whole = pack_parts(tree, 3), pack("folder", tree, tree.parent / "whole", SIZE)
    assert contents(join(tree.parent / "joined", parts)) == contents(whole)
    for path in tree.rglob("dog/*.png"):
        path.write_bytes(b"nothing")
    for path in parts:
        shutil.rmtree(path)
    parts = pack_parts(tree, 2)
    with pytest.raises(ValueError, match="no image of the class 'dog' could be read in any part: add images"):
        join(tree.parent / "other", parts)


def test_an_interrupted_join_can_be_repeated(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, out = pack_parts(tree, 2), tree.parent / "joined"
    with monkeypatch.context() as patch:
        patch.setattr(joining, "save_columns", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            join(out, parts)
    with pytest.raises(ValueError, match="partial pack: run the same"):
        load_packed(out)
    copy = shutil.copytree(out, tree.parent / "copy")
    assert contents(join(out, parts)) == contents(pack("folder", tree, tree.parent / "whole", SIZE))
    other = pack("folder", tree, tree.parent / "one", SIZE, part=Part(1, 1), crop="9")
    with pytest.raises(ValueError, match="is not empty"):
        join(copy, [other])
