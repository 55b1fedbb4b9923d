"""WebDataset shards: samples, splits, captions; shards that do not pair up or are damaged."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import pictures, to_json, write_shard

from genmodels.data import load_packed, open_data, pack
from genmodels.data.shards import expand, split_of
from genmodels.data.webdataset import webdataset_source


def refused(root: Path, match: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=match) as error:
        webdataset_source(root)
    assert "\n" not in str(error.value)


def test_samples_are_pairs_of_members(tmp_path: Path) -> None:
    images = pictures(6)
    for split, own in (("train", range(4)), ("valid", range(4, 6))):
        members: dict[str, bytes | str] = {}
        for i in own:  # the key may contain folders, and the label may come first
            members |= {
                f"x/{i:04d}.cls": f"{7 * (i % 2)}\n",
                f"x/{i:04d}.png": images[i],
                f"x/{i:04d}.txt": f" image {i} ",
            }
            members[f"x/{i:04d}.mask.png"] = b"not read"
        write_shard(tmp_path / f"faces-{split}-0000.tar", members)
    packed = open_data("webdataset", tmp_path, 16)
    assert packed.counts() == {"train": 4, "valid": 2}
    assert packed.class_names == ("0", "7") and packed.labels is not None and packed.labels.tolist() == [0, 1] * 3
    assert packed.text is not None and list(packed.text) == [(f"image {i}",) for i in range(6)]
    for pixels, image in zip(packed.images, images, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(image))))
    assert "members that end with .mask.png are not read" in packed.manifest["notes"]
    assert packed.names[4] == "faces-valid-0000/x/0004.png"


def test_json_holds_label_and_captions(tmp_path: Path) -> None:
    records = [
        {"label": "sea lion", "caption": ["a", "b"]},
        {"label": None, "text": "c", "score": float("nan")},
        {"label": "cat"},
    ]
    members: dict[str, bytes | str] = {}
    for i, (image, record) in enumerate(zip(pictures(3), records, strict=True)):
        members |= {f"{i}.png": image, f"{i}.json": to_json(**record)}
    source = webdataset_source(write_shard(tmp_path / "a.tar", members))
    assert source.class_names == ("cat", "sea lion") and source.labels is not None
    assert source.labels.tolist() == [1, -1, 0]
    assert source.text == [("a", "b"), ("c",), ()]


def test_images_alone_have_no_labels_and_get_a_split_by_a_hash(tmp_path: Path) -> None:
    images = pictures(40)
    write_shard(tmp_path / "shards" / "a-0.tar", {f"{i:03d}.png": images[i] for i in range(20)})
    write_shard(tmp_path / "shards" / "a-1.tar", {f"{i:03d}.png": images[i] for i in range(20, 40)})
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(images):
        (tmp_path / "folder" / f"{i:03d}.png").write_bytes(image)
    shards, folder = open_data("webdataset", tmp_path / "shards", 16), open_data("folder", tmp_path / "folder", 16)
    assert shards.labels is None and shards.text is None and shards.class_names == ()
    assert len(shards.counts()) > 1
    np.testing.assert_array_equal(shards.images, folder.images)
    np.testing.assert_array_equal(shards.splits, folder.splits)


def test_a_pattern_is_a_list_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(expand("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(expand("{a,b}/{1..0}")) == ["a/1", "a/0", "b/1", "b/0"]
    assert list(expand("a{b}.tar")) == ["a{b}.tar"]
    for i, image in enumerate(pictures(3)):
        write_shard(tmp_path / ("train" if i < 2 else "test") / f"{i:02d}.tar", {"a.png": image})
    monkeypatch.chdir(tmp_path)
    source = webdataset_source(Path("{train/{00..01},test/02}.tar"))
    assert source.splits.tolist() == [2, 0, 0] and source.names == ["test/02/a.png", "train/00/a.png", "train/01/a.png"]
    assert len(webdataset_source(Path("train/{00..01}.tar")).names) == 2
    refused(Path("train/{00..03}.tar"), r"train/02.tar: no such shard; 2 of 4 are missing")
    refused(tmp_path / "none.tar", r"none.tar: no such shard; 1 of 1 are missing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty holds no shards: put .tar files into it")


def test_words_of_names_are_splits() -> None:
    names = (
        "train/0.tar",
        "imagenet-Train-000.tar",
        "x_val01.tar",
        "validation.tar",
        "a/test/0.tar",
        "trains.tar",
        "0.tar",
    )
    assert [split_of(name) for name in names] == [0, 0, 1, 1, 2, None, None]


def test_members_that_do_not_pair_up_are_named(tmp_path: Path) -> None:
    one, two = pictures(2)
    members = {"a.png": one, "a.cls": "0", "b.png": two}
    refused(
        write_shard(tmp_path / "1.tar", members), r"1.tar: b.png has no .cls, and other images of the shard have one"
    )
    refused(
        write_shard(tmp_path / "2.tar", {"a.png": one, "b.txt": "x"}),
        r"2.tar: b.txt has no image \(jpg, jpeg, png, webp\)",
    )
    refused(
        write_shard(tmp_path / "3.tar", {"a.png": one, "a.jpg": two}),
        r"3.tar: a.png and a.jpg are images of one sample",
    )
    refused(write_shard(tmp_path / "4.tar", {"a.npy": one}), r"4.tar holds no images")
    for i, (record, reason) in enumerate(
        {
            "[": "its .json is damaged",
            "[1]": "its .json is not an object",
            '{"label": [1]}': "neither an integer nor a text",
            '{"caption": 3}': "the caption '3' is neither",
            "[" * 100_000: "its .json is damaged",
        }.items()
    ):
        shard = write_shard(tmp_path / f"x{i}.tar", {"a.png": one, "a.json": record})
        refused(shard, rf"x{i}.tar: a: .*{reason}")
    shard = write_shard(tmp_path / "case.tar", {"a.png": one, "a.cls": "Cat", "b.png": two, "b.cls": "cat"})
    refused(shard, r"case.tar: the classes 'Cat' and 'cat' differ only in upper and lower case")


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {f"{i}.png": image for i, image in enumerate(pictures(3))})
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        second = archive.getmember("1.png")
    for cut in (second.offset, second.offset + 100, second.offset_data, second.offset_data + 10):
        path.write_bytes(whole[:cut])
        refused(path, r"a.tar cannot be read \(.*\): it is damaged or was cut short: copy it again")
    path.write_bytes(whole[: second.offset] + b"\xff" * 512 + whole[second.offset + 512 :])
    refused(path, r"a.tar cannot be read .*: it is damaged")
    path.write_bytes(b"")
    refused(path, r"a.tar cannot be read .*: it is damaged")
    path.write_bytes(gzip.compress(whole))
    refused(path, r"a.tar cannot be read .*: it is compressed: decompress it")


def test_an_image_that_cannot_be_decoded_is_skipped(tmp_path: Path) -> None:
    one, two = pictures(2)
    shard = write_shard(tmp_path / "a.tar", {"a.png": one[:60], "b.png": two, "._b.png": b"of a Mac", "../c.png": one})
    packed = load_packed(pack("webdataset", shard, tmp_path / "out", 16))
    assert [name for name, _ in packed.manifest["skipped"]] == ["../c.png", "a/a.png"]
    assert list(packed.names) == ["a/b.png"]


def test_shards_that_are_all_for_training_get_splits_by_a_hash(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000.tar", {f"{i:04d}.png": image for i, image in enumerate(pictures(60))})
    source = webdataset_source(tmp_path)
    assert set(source.splits.tolist()) == {0, 1, 2}
    assert "there is only a train split: images get a split by a hash of their names" in source.notes


def test_a_byte_order_mark_is_no_part_of_a_class(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"1.png": pictures(1)[0], "1.cls": "\ufeffcat"})
    assert webdataset_source(tmp_path).class_names == ("cat",)
