"""Data sets of Hugging Face: files of every kind, columns, classes, splits; what is refused."""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets import Image as ImageType
from sources import pictures, write_parquet

from genmodels.data import load_packed, open_data, pack
from genmodels.data.huggingface import Columns, huggingface_source
from genmodels.image_files import RefusedError

IMAGES = pictures(12)
FEATURES = {"image": ImageType(), "label": ClassLabel(names=["dog", "Sea lion"]), "text": Value("string")}
ROWS: dict[str, list[Any]] = {
    "image": [{"bytes": image, "path": f"{i:02d}.png"} for i, image in enumerate(IMAGES)],
    "label": [i % 2 for i in range(12)],
    "text": [f"picture {i}" for i in range(12)],
}


def part(first: int, last: int) -> dict[str, list[Any]]:
    return {name: column[first:last] for name, column in ROWS.items()}


def refused(root: Path, match: str, *names: str | None) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=match) as error:
        huggingface_source(root, Columns(*names))
    assert "\n" not in str(error.value)


def write(kind: str, root: Path) -> Path:
    """Write 8 rows for training and 4 for validation."""
    if kind == "parquet":
        write_parquet(root / "data" / "train-00000-of-00002.parquet", part(0, 5), FEATURES, rows=2)
        write_parquet(root / "data" / "train-00001-of-00002.parquet", part(5, 8), FEATURES)
        write_parquet(root / "data" / "validation-00000-of-00001.parquet", part(8, 12), FEATURES)
        return root
    sets = {
        name: Dataset.from_dict(part(*rows), Features(FEATURES))
        for name, rows in {"train": (0, 8), "validation": (8, 12)}.items()
    }
    if kind == "save_to_disk":
        DatasetDict(sets).save_to_disk(str(root), num_shards={"train": 3, "validation": 1})
        return root
    root.mkdir()
    for name, own in sets.items():
        table = own.with_format("arrow")[:]
        open_writer = {"arrow file": pa.ipc.new_file, "arrow stream": pa.ipc.new_stream}[kind]
        with open_writer(str(root / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return root


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk", "arrow file", "arrow stream"])
def test_every_kind_of_file_gives_the_same_pack(kind: str, tmp_path: Path) -> None:
    root = write(kind, tmp_path / "data set")
    packed = load_packed(pack("huggingface", root, tmp_path / "out", 16, columns=Columns(text="text")))
    reference = huggingface_source(write("parquet", tmp_path / "reference"), Columns(text="text"))
    assert list(packed.names) == reference.names == [f"{i:02d}.png" for i in range(12)]
    for i, pixels in enumerate(packed.images):
        np.testing.assert_array_equal(pixels, np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8))
    assert packed.class_names == ("dog", "Sea lion")
    assert packed.labels is not None and packed.labels.tolist() == ROWS["label"]
    assert packed.text is not None and [caption for (caption,) in packed.text] == ROWS["text"]
    assert packed.counts() == {"train": 8, "valid": 4}


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    features = {"a": ImageType(), "b": ImageType(), "kind": Value("string"), "texts": List(Value("string"))}
    rows = {
        "a": ROWS["image"][:3],
        "b": [{"bytes": image, "path": None} for image in IMAGES[3:6]],
        "kind": ["x", None, "w"],
        "texts": [["one", "two"], None, []],
    }
    path = write_parquet(tmp_path / "x.parquet", rows, features)
    refused(
        path,
        r"x.parquet has several columns of images \(a, b\); its columns are a \(Image\), b \(Image\), "
        r"kind \(string\), texts \(List\); --image-column chooses one",
    )
    refused(path, r"x.parquet has no column 'c'; its columns are a \(Image\)", "c")
    refused(path, r"has no column 'label'", "a", "label")
    refused(path, r"column 'kind' does not hold images", "kind")
    source = huggingface_source(path, Columns("b", "kind", "texts"))
    assert source.class_names == ("w", "x") and source.labels is not None and source.labels.tolist() == [1, -1, 0]
    assert source.text == [("one", "two"), (), ()]
    assert source.names == ["00000000", "00000001", "00000002"]
    with source.reader.open(1) as file:
        assert file.read() == IMAGES[4]


def test_integers_strings_and_plain_bytes_of_other_programs(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": image, "path": None} for image in IMAGES[:4]], "label": [10, 9, -1, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = huggingface_source(tmp_path / "a.parquet")
    assert source.class_names == ("9", "10") and source.labels is not None and source.labels.tolist() == [1, 0, -1, -1]

    pq.write_table(
        pa.table({"img": IMAGES[:2], "label": pa.array(["b", "a"]).dictionary_encode()}), tmp_path / "b.parquet"
    )
    refused(
        tmp_path / "b.parquet",
        r"b.parquet has no column of images; its columns are img \(binary\), label \(.*\); "
        "--image-column chooses one",
    )
    source = huggingface_source(tmp_path / "b.parquet", Columns("img"))
    assert source.class_names == ("a", "b")
    with source.reader.open(1) as file:
        assert file.read() == IMAGES[1]

    pq.write_table(pa.table({"img": IMAGES[:2], "label": [0.5, 1.0]}), tmp_path / "c.parquet")
    refused(
        tmp_path / "c.parquet", r"c.parquet, column 'label': the label '0.5' is neither an integer nor a text", "img"
    )
    pq.write_table(pa.table({"img": IMAGES[:2], "label": ["Cat", "cat"]}), tmp_path / "d.parquet")
    refused(
        tmp_path / "d.parquet",
        r"column 'label': the classes 'Cat' and 'cat' differ only in upper and lower case",
        "img",
    )


def test_files_without_splits_get_them_by_a_hash(tmp_path: Path) -> None:
    many = {"image": [{"bytes": IMAGES[0], "path": f"{i:03d}.png"} for i in range(100)]}
    for name in ("a.parquet", "train-0.parquet"):
        source = huggingface_source(write_parquet(tmp_path / name, many, {"image": ImageType()}))
        assert 80 < np.sum(source.splits == 0) < 100
    assert source.notes == ["there is only a train split: images get a split by a hash of their names"]


def test_the_stamp_changes_with_the_columns_and_the_files(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", part(0, 4), FEATURES)
    first = huggingface_source(path).stamp
    assert huggingface_source(path).stamp == first
    assert huggingface_source(path, Columns(text="text")).stamp != first
    write_parquet(path, part(0, 5), FEATURES)
    assert huggingface_source(path).stamp != first


def test_the_reader_can_be_pickled_and_reads_a_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = huggingface_source(write_parquet(tmp_path / "a.parquet", ROWS, FEATURES, rows=5))
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group

    def counted(self: Any, group: int, columns: list[str]) -> pa.Table:
        groups.append(group)
        return read(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    reader = pickle.loads(pickle.dumps(source.reader))
    for i, image in enumerate(IMAGES):
        with reader.open(i) as file:
            assert file.read() == image
    assert groups == [0, 1, 2]


def test_rows_without_an_image_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(IMAGES[0])
    cells = [{"bytes": IMAGES[0], "path": None}, None, {"bytes": None, "path": str(tmp_path / "private.png")}]
    root = write_parquet(tmp_path / "a.parquet", {"image": cells}, {"image": ImageType()})
    packed = load_packed(pack("huggingface", root, tmp_path / "out", 16))
    reasons = ["no image in the row", "the row holds the path of an image and not the image"]
    assert [reason for _, reason in packed.manifest["skipped"]] == reasons
    assert len(packed) == 1


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", part(0, 4), FEATURES)
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:100], b"", b"PAR1"):
        path.write_bytes(content)
        refused(path, r"a.parquet is damaged \(.*\): download or write it again")
    arrow = write("arrow stream", tmp_path / "stream") / "train.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-200])
    refused(tmp_path / "stream", r"train.arrow is damaged")
    disk = write("save_to_disk", tmp_path / "disk")
    (disk / "train" / "state.json").write_text("{")
    refused(disk, r"disk is not a complete folder of save_to_disk")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", r"none holds no file whose name ends with .parquet or .arrow")


def test_a_group_that_is_damaged_stops_packing(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", part(0, 4), FEATURES)
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.parquet is damaged") as error:
        pack("huggingface", path, tmp_path / "out", 16)
    assert "\n" not in str(error.value)


def test_files_of_one_set_have_the_same_columns_and_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", part(0, 4), FEATURES)
    other = write_parquet(tmp_path / "b.parquet", part(4, 8), FEATURES | {"label": ClassLabel(names=["cat", "dog"])})
    refused(tmp_path, r"b.parquet: column 'label' has other classes than the first file")
    write_parquet(other, {"image": ROWS["image"][:2]}, {"image": ImageType()})
    refused(tmp_path, r"b.parquet has no column 'label'")
    write_parquet(other, part(4, 8) | {"label": [0, 1, 2, 0]}, FEATURES)
    refused(other, r"column 'label': the label 2 is not the number of one of its 2 classes")


def test_a_hub_id_while_offline_is_one_line_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    refused(
        Path("user/name"), r"user/name: no such folder here.*cannot be reached \(.*Offline.*\); .*give their folder$"
    )
    assert time.monotonic() - start < 10
    refused(Path("one/two/three"), r"one/two/three: no such folder or file")
    (tmp_path / "user").mkdir()
    refused(Path("user/name"), r"user/name: no such folder or file")


def test_a_data_set_of_the_hub_is_loaded_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("parquet", tmp_path / "repository")
    asked: list[str] = []

    def loaded(name: str) -> Any:
        asked.append(name)
        return load_dataset(str(tmp_path / "repository"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr("datasets.load_dataset", loaded)
    packed = open_data("huggingface", "user/name", 16)
    assert packed.counts() == {"train": 8, "valid": 4} and packed.class_names == ("dog", "Sea lion")
    assert asked == ["user/name"]
    assert packed.origin is not None and len(open_data(packed.origin.data)) == 12  # what a run records


def test_images_that_are_files_of_the_hub_are_read_from_its_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set of image files is loaded as paths in the cache."""
    for i in range(4):
        path = tmp_path / "cache" / "hub" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGES[i])
    loaded = load_dataset("imagefolder", data_dir=str(tmp_path / "cache" / "hub"), cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.load_dataset", lambda _: loaded)
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "cache"))
    source = huggingface_source(Path("user/name"))
    assert source.class_names == ("cat", "dog")
    assert sorted(source.names) == ["cat/1.png", "cat/3.png", "dog/0.png", "dog/2.png"]
    contents = []
    for i in range(4):
        with source.reader.open(i) as file:
            contents.append(file.read())
    assert sorted(contents) == sorted(IMAGES[:4])
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(RefusedError, match="path of an image"), huggingface_source(Path("user/name")).reader.open(0):
        pass


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path, r"pip install 'genmodels\[datasets\]'")
