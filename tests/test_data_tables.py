"""Labels, captions and splits of data sets that other tools made, and exports that other tools read."""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from genmodels.cli import main
from genmodels.data import download_celeba, export, load_packed, pack, packing
from genmodels.data.celeba import celeba_source
from genmodels.data.directory import IMAGES, JOURNAL, packed_size
from genmodels.data.folder import folder_source
from genmodels.data.format1 import LABELS, NAMES
from genmodels.data.packed import Packed
from genmodels.data.source import Files, Source

FILES = tuple(f"{i:02d}.jpg" for i in range(12))
TABLE = "file,Smiling\n" + "".join(f"{name},{2 * (i % 2) - 1}\n" for i, name in enumerate(FILES))
SMILES = [[-1], [1]] * 6


def make_tree(root: Path, table: str | bytes = "", files: Sequence[str] = FILES, to: str = "attributes.csv") -> Path:
    """Write empty image files and a table of their labels."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if table:
        (root / to).parent.mkdir(parents=True, exist_ok=True)
        (root / to).write_bytes(table if isinstance(table, bytes) else table.encode())
    return root


def make_images(root: Path, files: Sequence[str] = FILES) -> Path:
    for i, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i * 20, 0, 0)).save(root / name, "PNG")
    return root


def make_celeba(root: Path, attributes: str, count: int = 8, mark: bytes = b"") -> Path:
    names = [f"{i + 1:06d}.jpg" for i in range(count)]
    make_tree(root / "img_align_celeba", files=names)
    (root / "list_attr_celeba.txt").write_bytes(mark + attributes.encode())
    lines = [f"{name} {int(i >= 6)}\r\n" for i, name in enumerate(names)]
    (root / "list_eval_partition.txt").write_bytes(mark + "".join(lines).encode())
    (root / "identity_CelebA.txt").write_bytes(mark + "".join(f"{name} 7\n" for name in names).encode())
    return root


def celeba_table(rows: int = 8, announced: int = 8, no: int = -1) -> str:
    values = [f"{i + 1:06d}.jpg {1 if i % 2 else no} {no if i < 4 else 1}" for i in range(rows)]
    return f"{announced}\nSmiling Male\n" + "\n".join(values) + "\n"


def splits(source: Source) -> dict[str, int]:
    return dict(zip(source.names, source.splits.tolist(), strict=True))


def refusal(root: Path, allow_unmatched: bool = False) -> str:
    with pytest.raises(ValueError) as caught:
        folder_source(root, allow_unmatched)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_one_name_get_splits_by_their_folders(tmp_path: Path) -> None:
    files = [f"faces/{i:02d}/face.png" for i in range(60)] + ["faces/face.png", "faces/only.png", "faces/00/b.png"]
    make_tree(tmp_path / "a", files=[*files, "readme.txt"])
    above, below = splits(folder_source(tmp_path / "a")), splits(folder_source(tmp_path / "a" / "faces"))
    assert {name: above[f"faces/{name}"] for name in below} == below
    shared = [below[f"{i:02d}/face.png"] for i in range(60)]
    assert 45 <= shared.count(0) < 60 and set(shared) == {0, 1, 2}
    alone = splits(folder_source(make_tree(tmp_path / "b", files=["b.png", "only.png"])))
    assert alone == {"b.png": below["00/b.png"], "only.png": below["only.png"]}


def test_the_column_split_takes_the_names_that_folders_have(tmp_path: Path) -> None:
    names = ("train", "val", "valid", "validation", "test", "Val")
    table = "file,split\n" + "".join(f"{file},{name}\n" for file, name in zip(FILES, names, strict=False))
    source = folder_source(make_tree(tmp_path, table))
    assert source.splits[: len(names)].tolist() == [0, 1, 1, 1, 2, 1]


def test_a_row_that_fits_needs_no_shorter_name(tmp_path: Path) -> None:
    files = [f"faces/{side}/{name}" for side in "ab" for name in FILES]
    lines = [f"faces/{side}/{name},{1 if side == 'a' else -1}" for side in "ab" for name in FILES]
    source = folder_source(make_tree(tmp_path / "whole", "\n".join(["file,Smiling", *lines]), files))
    assert source.attributes[:, 0].tolist() == [1] * 12 + [-1] * 12
    # Without the folder in front, which the last row needs, the other rows would be ambiguous.
    rows = [f"a/{name},1" for name in FILES]
    source = folder_source(make_tree(tmp_path / "part", "\n".join(["file,Smiling", *rows, "a/no.jpg,1"]), files))
    assert source.attributes[:, 0].tolist() == [1] * 12 + [0] * 12


def test_tables_and_files_of_a_pack_may_be_larger_than_64_mib(tmp_path: Path) -> None:
    size = (1 << 26) + 1
    (tmp_path / "captions.csv").touch()
    os.truncate(tmp_path / "captions.csv", size)
    assert len(Files(tmp_path).read_bytes("captions.csv")) == size
    manifest = {"format": 1, "size": 16, "count": 1, "source": "", "attributes": [], "notes": ["x" * size]}
    checksums = dict.fromkeys((IMAGES, LABELS, NAMES), "")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"checksums": checksums}))
    assert packed_size(tmp_path) == 16
    header = {"count": 1, "size": 8}
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / JOURNAL).write_text(f"{json.dumps(header)}\n{'x' * size}")
    assert packing._resume(tmp_path / "partial", header)[1] == {}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda name: name.replace(".jpg", ".png"), "their extensions"),
        (lambda name: name.replace("jpg", "JPG"), "upper and lower case"),
        (lambda name: str(int(name[:2])) + name[2:], "leading zeros"),
        (lambda name: f"{name[1]}/{name}", "their folders"),
        (lambda name: f"{int(name[:2])}.PNG", "several of case, extension, zeros and folder"),
    ],
)
def test_labels_of_other_files_are_refused_with_counts_and_the_likely_cause(tmp_path: Path, change, cause: str) -> None:
    lines = TABLE.splitlines()
    table = "\n".join([lines[0], *(change(line.split(",")[0]) + "," + line.split(",")[1] for line in lines[1:])])
    message = refusal(make_tree(tmp_path, table))
    assert message.startswith(f"{tmp_path / 'attributes.csv'}: 1")  # 10 or 12 of 12
    assert " of 12 rows have no file (such as " in message and " of 12 files have no row (such as 0" in message
    assert f"; most differ only in {cause}; correct the names" in message and message.endswith("--allow-unmatched")
    source = folder_source(tmp_path, allow_unmatched=True)
    assert source.attribute_names == ("Smiling",) and len(source.names) == 12
    assert sum("rows have no file" in note for note in source.notes) == 1


def test_a_pack_says_how_many_labels_have_no_image_and_keeps_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = make_images(tmp_path / "faces")
    (root / "attributes.csv").write_text(TABLE.replace("00.jpg", "a.jpg").replace("01.jpg", "b.jpg"))
    out = tmp_path / "out"
    assert main(["data", "pack", "folder", "--root", str(root), "--out", str(out), "--size", "8"]) == 0
    note = (
        "attributes.csv: 2 of 12 rows have no file (such as a.jpg, b.jpg) and 2 of 12 files have no row "
        "(such as 00.jpg, 01.jpg)"
    )
    assert note in capfd.readouterr().err.splitlines()
    packed = load_packed(out)
    assert packed.manifest["notes"] == [note]
    assert dict(zip(packed.names, packed.attributes[:, 0].tolist(), strict=True)) == {
        name: 0 if i < 2 else SMILES[i][0] for i, name in enumerate(FILES)
    }
    (root / "attributes.csv").write_text(TABLE.replace(".jpg", ".png"))
    command = ["data", "pack", "folder", "--root", str(root), "--out", str(tmp_path / "other"), "--size", "8"]
    assert main(command) == 1
    assert not (tmp_path / "other").exists()
    assert main([*command, "--allow-unmatched"]) == 0
    assert not load_packed(tmp_path / "other").attributes.any()


@pytest.mark.parametrize("start", ["./", "/", ".\\", "faces/", "faces\\", "C:\\data\\faces\\", "/data/faces/", "../x/"])
def test_rows_name_their_image_whatever_the_slashes_and_the_folder_in_front(tmp_path: Path, start: str) -> None:
    table = TABLE.replace("\n0", f"\n{start}0").replace("\n1", f"\n{start}1")
    source = folder_source(make_tree(tmp_path, table))
    assert source.attributes.tolist() == SMILES and source.notes == []
    inside = make_tree(tmp_path / "deeper", table, [f"faces/{name}" for name in FILES])
    if "x" not in start:  # which would be another folder
        assert folder_source(inside).attributes.tolist() == SMILES


def test_composed_and_decomposed_characters_are_the_same_name(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    assert composed != decomposed
    for i, (name, row) in enumerate([(composed, decomposed), (decomposed, composed)]):
        source = folder_source(make_tree(tmp_path / str(i), f"file,A\n{row},1\n", [name]))
        assert source.attributes.tolist() == [[1]] and source.notes == []
    both = folder_source(make_tree(tmp_path / "both", f"file,A\n{composed},1\n", [composed, decomposed]))
    assert both.attributes[both.names.index(composed)] == 1 and both.attributes.sum() == 1


def test_a_row_of_another_split_is_not_taken_for_the_file_of_the_same_name(tmp_path: Path) -> None:
    rows = "file,A\n" + "".join(f"val/{name},1\n" for name in FILES)
    assert "12 of 12 rows have no file" in refusal(make_tree(tmp_path, rows, [f"train/{name}" for name in FILES]))


def test_a_file_that_is_listed_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = refusal(make_tree(tmp_path / "folder", TABLE + "./00.jpg,1\n"))
    assert message == f"{tmp_path / 'folder' / 'attributes.csv'}, line 14: ./00.jpg was listed in line 2 already"
    captions = "file,caption\n" + "".join(f"{name},a\n{name},b\n" for name in FILES)
    assert folder_source(make_tree(tmp_path / "text", captions, to="captions.csv")).text == [("a", "b")] * 12
    root = make_celeba(tmp_path / "celeba", celeba_table(7) + "000001.jpg 1 1\n")
    with pytest.raises(ValueError, match=r"list_attr_celeba.txt, line 10: 000001.jpg is listed twice"):
        celeba_source(root)


def test_a_column_without_name_and_values_is_ignored_and_said(tmp_path: Path) -> None:
    source = folder_source(make_tree(tmp_path, TABLE.replace("\n", ",,\n") + ",,,\n\n"))
    assert source.attribute_names == ("Smiling",) and source.attributes.tolist() == SMILES
    assert source.notes == [
        f"attributes.csv: column {k} is empty and has no name; it is ignored (a comma too many?)" for k in (4, 3)
    ]
    make_tree(tmp_path, TABLE.replace("Smiling", "Smiling,").replace("1\n", "1,1\n"))
    assert "line 2: column 3 has a value and no name in the header" in refusal(tmp_path)


def test_attributes_of_celeba_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    root = make_celeba(tmp_path, celeba_table(rows=4))
    with pytest.raises(ValueError, match="lists 4 images, and its first line announces 8: the file is incomplete"):
        celeba_source(root)
    (root / "list_attr_celeba.txt").write_text(celeba_table(4, announced=4))  # whole, of a subset
    source = celeba_source(root)
    assert source.notes == [
        "list_attr_celeba.txt: 4 of 8 files have no row (such as 000005.jpg, 000006.jpg and 2 more)"
    ]
    assert source.attributes.tolist() == [[-1, -1], [1, -1]] * 2 + [[0, 0]] * 4
    (root / "list_attr_celeba.txt").write_text(celeba_table(3, announced=3))
    with pytest.raises(ValueError, match=r"5 of 8 files have no row.*--allow-unmatched"):
        celeba_source(root)
    assert len(celeba_source(root, allow_unmatched=True).names) == 8


@pytest.mark.parametrize(
    ("cells", "values", "said"),
    [
        (["0,1", "1,1", "0,-1"], [[-1, 1], [1, 1], [-1, -1]], "in A; "),  # each column by itself
        (["0,0", "1,0", "0,0"], [[-1, -1], [1, -1], [-1, -1]], "in A, B; "),  # nobody has B
        (["0,1", "1,", ",0"], [[-1, 1], [1, 0], [0, -1]], "in A, B; "),  # an empty cell is unknown
        (["0,0", "1,0", "-1,0"], [[0, 0], [1, 0], [-1, 0]], ""),
        (["1,1", ",1", "1,"], [[1, 1], [0, 1], [1, 0]], ""),
        (["0,0", "0,0", "0,0"], [[0, 0], [0, 0], [0, 0]], ""),
    ],
)
def test_zero_means_no_in_a_column_of_zeros_and_ones(tmp_path: Path, cells, values, said: str) -> None:
    table = "file,A,B\n" + "".join(f"{name},{row}\n" for name, row in zip(FILES, cells, strict=False))
    source = folder_source(make_tree(tmp_path, table, FILES[:3]))
    assert source.attributes.tolist() == values
    assert len(source.notes) == bool(said)
    assert all("0 is read as no" in note and said in note for note in source.notes)


def test_zero_means_no_in_attributes_of_celeba_without_minus_one(tmp_path: Path) -> None:
    signed, binary = (celeba_source(make_celeba(tmp_path / str(no), celeba_table(no=no))) for no in (-1, 0))
    np.testing.assert_array_equal(binary.attributes, signed.attributes)
    assert signed.notes == [] and "0 is read as no" in binary.notes[0]


def test_an_export_keeps_unknown_apart_from_no(tmp_path: Path) -> None:
    attributes = np.array([[0, 0, 1], [1, 0, -1], [0, 0, 0]], np.int8)
    names, kept = ["a.png", "b.png", "c.png"], ("A", "B", "C")
    data = Packed(np.zeros((3, 8, 8, 3), np.uint8), attributes, kept, names, np.array([0, 1, 2], np.uint8))
    source = folder_source(export(data, tmp_path / "out.zip"))
    np.testing.assert_array_equal(source.attributes, attributes)
    assert source.splits.tolist() == [0, 1, 2] and source.notes == []


def test_folders_called_train_val_and_test_are_the_splits(tmp_path: Path) -> None:
    kinds = {"train": 0, "VAL": 1, "valid": 1, "validation": 1, "Test": 2}
    files = [f"{folder}/{name}" for folder in kinds for name in ("a/" + FILES[0], *FILES)]
    source = folder_source(make_tree(tmp_path / "up" / "faces", files=files))
    assert splits(source) == {name: kinds[name.split("/")[0]] for name in files}
    assert source.notes == ["splits are the folders Test, VAL, train, valid, validation"]
    (tmp_path / "up" / "README.txt").touch()
    above = splits(folder_source(tmp_path / "up"))
    assert above.pop("README.txt") is not None
    assert above == {f"faces/{name}": code for name, code in splits(source).items()}
    table = "file,split\ntrain/00.jpg,test\n"
    labelled = splits(folder_source(make_tree(tmp_path / "up" / "faces", table, ["other.jpg"])))
    assert labelled["train/00.jpg"] == 2 and labelled["train/01.jpg"] == 0


def test_files_beside_split_folders_are_counted(tmp_path: Path) -> None:
    source = folder_source(make_tree(tmp_path, files=["train/a.jpg", "b.jpg", "extra/c.jpg"]))
    assert source.notes == [
        "splits are the folders train; 2 files outside of them get a split by a hash of their names"
    ]


def test_held_out_images_stay_held_out_when_the_folder_above_is_given(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(300)]
    deep = make_tree(tmp_path / "a" / "b" / "faces", files=names)
    make_tree(tmp_path / "a" / "others", files=["x.png"])
    expected = splits(folder_source(deep))
    assert min(np.bincount(list(expected.values()), minlength=3)) > 5
    for root in (deep.parent, tmp_path / "a", tmp_path):
        found = splits(folder_source(root))
        assert {name.rpartition("/")[2]: code for name, code in found.items() if "faces" in name} == expected


@pytest.mark.parametrize("start", ["./", "/", "faces/", "faces\\", "./faces/", "C:\\faces\\", "a/b/"])
def test_archives_of_other_tools_keep_their_images_and_labels(tmp_path: Path, start: str) -> None:
    make_images(tmp_path / "tree")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for name in FILES:
            archive.writestr(start + name, (tmp_path / "tree" / name).read_bytes())
        archive.writestr(start + "Attributes.csv", TABLE)
        archive.writestr(start + "../../outside.png", b"")
        archive.writestr("__MACOSX/._00.jpg", b"")
    packed = load_packed(pack("folder", tmp_path / "faces.zip", tmp_path / "out", 8))
    assert sorted(name.rpartition("/")[2] for name in packed.names) == list(FILES)
    red = {
        name.rpartition("/")[2]: int(image[0, 0, 0]) for name, image in zip(packed.names, packed.images, strict=True)
    }
    assert red == {name: i * 20 for i, name in enumerate(FILES)}
    assert packed.attribute_names == ("Smiling",) and packed.attributes.sum() == 0
    assert np.abs(packed.attributes).sum() == 12
    assert [reason for _, reason in packed.manifest["skipped"]] == ["its name leads out of the archive"]
    assert not any(".." in name or name.startswith(("/", "C:")) or "\\" in name for name in packed.names)


def test_names_in_an_archive_that_are_utf8_without_saying_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.writestr("été.jpg", b"")
    content = (tmp_path / "faces.zip").read_bytes()
    flagged = b"\x14\x00\x00\x08"  # version 2.0 and the flag of UTF-8
    assert content.count(flagged) == 2
    (tmp_path / "faces.zip").write_bytes(content.replace(flagged, b"\x14\x00\x00\x00"))
    assert folder_source(tmp_path / "faces.zip").names == ["été.jpg"]


def test_of_two_members_with_one_name_the_last_is_the_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.writestr("a.jpg", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.jpg", b"second")
    files = Files(tmp_path / "faces.zip")
    assert [(entry.name, entry.size) for entry in files.entries()] == [("a.jpg", 6)]
    assert files.read_bytes("a.jpg") == b"second"
    assert files.left_out == [("a.jpg", "another file has the same name")]


@pytest.mark.parametrize("to", ["faces/attributes.csv", "Attributes.CSV", "faces/deep/ATTRIBUTES.csv"])
def test_labels_of_an_unpacked_tree_are_read_from_where_they_are(tmp_path: Path, to: str) -> None:
    files = [f"{'faces/deep' if 'deep' in to else 'faces'}/{name}" for name in FILES]
    source = folder_source(make_tree(tmp_path, TABLE, files, to))
    assert source.names == files and source.attributes.tolist() == SMILES


def test_two_tables_of_labels_are_not_confused(tmp_path: Path) -> None:
    root = make_tree(tmp_path, TABLE, to="a/attributes.csv")
    make_tree(root, TABLE.replace("Smiling", "Young"), to="b/attributes.csv")
    assert "holds a/attributes.csv and b/attributes.csv: merge them" in refusal(root)
    source = folder_source(make_tree(root, TABLE))
    assert source.attribute_names == ("Smiling",)
    assert source.notes[0] == "there are 3 files called attributes.csv: attributes.csv is read"


def test_celeba_is_read_below_a_top_folder_and_with_byte_order_marks(tmp_path: Path) -> None:
    root = make_celeba(tmp_path / "CelebA", celeba_table(), mark=b"\xef\xbb\xbf").parent
    source = celeba_source(root)
    assert len(source.names) == 8 and source.names[0] == "000001.jpg"
    assert source.splits.tolist() == [0] * 6 + [1] * 2
    assert source.identities is not None and source.identities.tolist() == [7] * 8
    assert (
        source.attributes.tolist() == celeba_source(make_celeba(tmp_path / "plain", celeba_table())).attributes.tolist()
    )


def test_loops_of_links_end_and_each_folder_is_listed_once(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "up" / "faces", files=["z/one.png"])
    (tmp_path / "up" / "private.png").touch()
    (root / "itself").symlink_to("itself")
    (root / "ping").symlink_to("pong")
    (root / "pong").symlink_to("ping")
    (root / "up").symlink_to(tmp_path / "up")
    (root / "alias").symlink_to("z")
    (root / "z" / "back").symlink_to(root)
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "attributes.csv").symlink_to("/dev/zero")
    source = folder_source(root)
    assert source.names == ["z/one.png"]
    assert sorted(name for name, _ in source.left_out) == ["attributes.csv", "gone.png", "itself", "ping", "pong"]
    elsewhere = make_tree(tmp_path / "elsewhere", files=["two.png"])
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere)
    assert folder_source(root).names == ["b/two.png", "z/one.png"]


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode("utf-16"),
        TABLE.encode("utf-16-be").join([b"\xfe\xff", b""]),
        TABLE.encode("utf-8-sig"),
        TABLE.replace("\n", "\r").encode(),
        TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace("\n", "\n\n").encode(),
        TABLE.replace("00.jpg", '"00.jpg"').encode(),
    ],
    ids=["utf-16", "utf-16-be", "utf-8-sig", "cr", "crlf", "empty lines", "quotes"],
)
def test_tables_are_read_in_every_common_encoding_and_line_end(tmp_path: Path, content: bytes) -> None:
    source = folder_source(make_tree(tmp_path, content))
    assert source.attribute_names == ("Smiling",) and source.attributes.tolist() == SMILES and source.notes == []


def test_a_table_in_latin_1_is_read_and_said(tmp_path: Path) -> None:
    table = TABLE.replace("Smiling", "Lächeln").encode("latin-1").replace(b"00.jpg", "é.jpg".encode("latin-1"))
    source = folder_source(make_tree(tmp_path, table, ["é.jpg", *FILES[1:]]))
    assert source.attribute_names == ("Lächeln",)
    assert source.attributes.tolist() == [*SMILES[1:], SMILES[0]]
    assert "not UTF-8 were read as Latin-1" in source.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TABLE.replace("00.jpg", '"00.jpg').encode(), r"attributes.csv, line 2: .* close the field with a quote"),
        (TABLE.replace("03.jpg", '"03.jpg" x').encode(), r"attributes.csv, line 5: .* write a quote inside it twice"),
        ((TABLE + f"{'x' * 131_073},1\n").encode(), r"attributes.csv, line 14: field larger .* shorten a field"),
        (TABLE.encode("utf-16-le"), "is not text, or in an encoding without a byte-order mark: save it as UTF-8"),
        (TABLE.encode("utf-32"), "is not text, or in an encoding"),
        (b"\xff\xfe" + TABLE.encode("utf-16-le")[:-1], r"is damaged UTF-16 \(byte .*: save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not text"),
        (b"file,Smiling\n", "it has a header and no rows"),
        (TABLE.replace("00.jpg", "").encode(), "line 2: the name of the file is missing"),
        (b"file,identity\n00.jpg,99999999999\n", "identity '99999999999' is not an integer"),
    ],
)
def test_tables_that_cannot_be_read_get_one_line_with_file_and_remedy(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        folder_source(make_tree(tmp_path, content))
    assert "\n" not in str(caught.value) and str(tmp_path / "attributes.csv") in str(caught.value)


def test_label_files_of_celeba_that_cannot_be_read_get_one_line(tmp_path: Path) -> None:
    root = make_celeba(tmp_path, celeba_table().replace("\n", "\r"))
    assert celeba_source(root).attributes.any()
    for content in (b"\xff\xfeabc", b"8\0", b"", b"8\n", b"x\nA B\n", b"8\nA A\n"):
        (root / "list_attr_celeba.txt").write_bytes(content)
        with pytest.raises(ValueError, match="list_attr_celeba.txt") as caught:
            celeba_source(root)
        assert "\n" not in str(caught.value)
    (root / "list_attr_celeba.txt").write_text(celeba_table())
    (root / "identity_CelebA.txt").write_text("000001.jpg 99999999999\n")
    with pytest.raises(ValueError, match=r"identity_CelebA.txt, line 1: expected a file name and 1 integers"):
        celeba_source(root)


def test_file_names_that_are_not_utf8_are_packed_shown_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode("Zoë.png".encode("latin-1"))
    assert name != "Zoë.png"
    root = make_images(tmp_path / os.fsdecode(b"caf\xe9"), [name, "plain.png"])
    (root / os.fsdecode(b"\xfe.txt")).write_text("no image")
    (root / "attributes.csv").write_bytes("file,A\nZoë.png,1\nplain.png,-1\n".encode("latin-1"))
    out, sheet, archive = tmp_path / "out", tmp_path / "sheet.png", tmp_path / "small.zip"
    assert main(["data", "pack", "folder", "--root", str(root), "--out", str(out), "--size", "8"]) == 0
    packed = load_packed(out)
    assert dict(zip(packed.names, packed.attributes[:, 0].tolist(), strict=True)) == {name: 1, "plain.png": -1}
    assert packed.source == "folder café (3 files)"  # which every kind of text file can hold
    assert main(["data", "show", str(out), "--out", str(sheet)]) == 0
    assert main(["data", "export", str(out), "--out", str(archive)]) == 0
    assert "Error" not in capsys.readouterr().err
    again = folder_source(archive)
    assert dict(zip(again.names, again.attributes[:, 0].tolist(), strict=True)) == {
        "Zoë.png.jpg": 1,
        "plain.png.jpg": -1,
    }


def test_an_export_never_writes_a_name_that_leads_out_of_the_archive(tmp_path: Path) -> None:
    given = [
        "../../x",
        "/etc/y.jpg",
        "C:\\z.jpg",
        "a/../b.jpg",
        "./b.jpg",
        "a/b.jpg",
        "A/B.jpg",
        ".hidden.jpg",
        "..",
        "",
    ]
    count = len(given)
    data = Packed(
        images=np.arange(count, dtype=np.uint8).repeat(192).reshape(count, 8, 8, 3) * 20,
        attributes=np.zeros((count, 0), np.int8),
        attribute_names=(),
        names=given,
        splits=np.zeros(count, np.uint8),
        identities=np.arange(count, dtype=np.int32),
    )
    out = export(data, tmp_path / "out.zip")
    with zipfile.ZipFile(out) as archive:
        members = archive.namelist()[:count]
    assert members == [
        "x.jpg", "etc/y.jpg", "z.jpg", "a/b.jpg", "b.jpg", "a/b-2.jpg", "A/B-3.jpg", "hidden.jpg", "image.jpg",
        "image-2.jpg",
    ]  # fmt: skip
    source = folder_source(out)
    assert source.left_out == [] and source.identities is not None
    assert dict(zip(source.names, source.identities.tolist(), strict=True)) == {m: i for i, m in enumerate(members)}


def test_download_without_gdown_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import genmodels.data.celeba as celeba

    def lacks(*_: object, **__: object) -> None:
        raise RuntimeError("To download files from GDrive, 'gdown' is required. You can install it with 'pip ...'.")

    monkeypatch.setattr(torchvision.datasets, "CelebA", lacks)
    monkeypatch.setattr(celeba, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"needs gdown.*: pip install 'genmodels\[celeba\]'\); instead, place") as caught:
        download_celeba("torchvision", tmp_path)
    assert "\n" not in str(caught.value)
