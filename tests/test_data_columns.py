"""Columns on disk: strings and captions, selections of rows, and memory that does not grow."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap

from genmodels.data import load_packed
from genmodels.data.batches import BatchReader
from genmodels.data.columns import (
    ROWS,
    Captions,
    Texts,
    count_captions,
    digested,
    map_captions,
    map_texts,
    write_captions,
    write_texts,
)
from genmodels.data.directory import IMAGES, save_labels
from genmodels.data.packed import Packed

ODD = ["", "a", "é/ü.png", "\udcff\udcfe.png", "😀", "line\nbreak", "x" * 3000, "nul\0", '"quoted" \\']


def test_strings_come_back(tmp_path: Path) -> None:
    strings = ODD * 300
    assert write_texts(tmp_path, "names", iter(strings), len(strings)) == ["names.bin", "names.offsets.npy"]
    texts = map_texts(tmp_path, "names", len(strings), check=True)
    assert list(texts) == strings and len(texts) == len(strings)
    assert texts[4] == "😀" and texts[-1] == strings[-1] and texts[np.int64(2)] == strings[2]
    with pytest.raises(IndexError):
        texts[len(strings)]
    assert isinstance(texts[10:2000:7], Texts) and list(texts[10:2000:7]) == strings[10:2000:7]
    rows = np.array([5, 2000, 5, -1])
    assert list(texts.take(rows)) == [strings[row] for row in rows]
    assert list(texts[100:200].take(rows % 100)[1:]) == [strings[100 + row % 100] for row in rows][1:]
    assert list(map_texts(tmp_path, "none", *write_nothing(tmp_path))) == []


def write_nothing(folder: Path) -> tuple[int, bool]:
    write_texts(folder, "none", [], 0)
    return 0, True


def test_captions_come_back(tmp_path: Path) -> None:
    rows = [tuple(ODD[: i % 4]) for i in range(1000)]
    write_captions(tmp_path, "text", [rows[:10], rows[10:10], rows[10:]])
    captions = map_captions(tmp_path, "text", 1000, check=True)
    assert list(captions) == rows and captions[-2] == rows[-2]
    assert isinstance(captions[3:50], Captions) and list(captions[3:50]) == rows[3:50]
    chosen = np.array([999, 4, 7])
    assert list(captions.take(chosen)) == [rows[i] for i in chosen]
    for part, known in ((captions, rows), (captions[3:50], rows[3:50]), (rows, rows)):
        assert count_captions(part) == sum(map(len, known))
    assert count_captions(captions.take(chosen)) == sum(len(rows[i]) for i in chosen)


@pytest.mark.parametrize("count", [0, 1, ROWS, 2 * ROWS + 1])
def test_columns_in_memory_are_digested_as_json(count: int) -> None:
    values = [("é", str(i)) for i in range(count)]
    assert b"".join(digested(values)) == json.dumps(values).encode()
    assert b"".join(digested(values, ("a", "b"))) == json.dumps(["a", "b", *values]).encode()


def test_the_fingerprint_tells_rows_on_disk_apart(tmp_path: Path) -> None:
    data = load_packed(write_large(tmp_path / "pack", 100))
    slices = (slice(0, 50), slice(0, 49), slice(1, 50), slice(0, 50, 2), slice(49, None, -1))
    arrays = (np.array([3, 1]), np.array([1, 3]), np.array([1]))
    prints = [data.take(rows).fingerprint for rows in (*slices, *arrays)]
    prints += [data.fingerprint, data.split("train").fingerprint, data.with_attributes(("a",)).fingerprint]
    assert len(set(prints)) == len(prints)
    assert data.take(np.arange(50)).fingerprint == prints[0]
    again = load_packed(write_large(tmp_path / "again", 100))
    assert again.fingerprint == data.fingerprint and again.split("train").fingerprint == data.split("train").fingerprint


def write_large(folder: Path, count: int) -> Path:
    """Write a pack of `count` images of 8 px, most of which are black."""
    folder.mkdir()
    images = open_memmap(folder / IMAGES, "w+", np.uint8, (count, 8, 8, 3))  # a sparse file
    images[:, 0, 0, 0] = np.arange(count) % 251
    rng = np.random.default_rng(0)
    save_labels(
        folder,
        {"source": "synthetic", "size": 8, "attributes": ["a", "b", "c"], "classes": ["x", "y"]},
        attributes=rng.integers(-1, 2, (count, 3), np.int8),
        names=[f"folder/image-{i:08d}.jpg" for i in range(count)],
        splits=np.repeat(np.array([0, 1], np.uint8), [count - count // 10, count // 10]),
        labels=rng.integers(-1, 2, count, np.int32),
        identities=np.arange(count, dtype=np.int32),
        text=[(f"caption {i}",) * (i % 2) for i in range(count)],
    )
    return folder


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (ROWS, 5 * ROWS):
        folder = write_large(tmp_path / str(count), count)
        tracemalloc.start()
        train = load_packed(folder, verify=True).split("train")
        assert len(train.fingerprint) == 16
        reader = BatchReader(train, 32, seed=0, attributes=("c", "a"))
        for step in range(0, 4_000, 200):
            (batch,) = reader.read(step, 0.0)
        train.describe()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        index = train.names[len(train) - 1]
        assert index == f"folder/image-{count - count // 10 - 1:08d}.jpg"
        assert batch.images.shape == (32, 3, 8, 8)
    # The names of 65,536 more images would take 5 MB, an order in int64 numbers 0.5 MB.
    assert peaks[1] - peaks[0] < 0.4e6, peaks


def test_batches_of_a_pack_show_each_image_once_with_its_own_row(tmp_path: Path) -> None:
    train = load_packed(write_large(tmp_path / "pack", 1000)).split("train")
    reader = BatchReader(train, 100, seed=1, flip=False)
    batches = [reader.read(step, 0.0)[0] for step in range(9)]
    shown = np.concatenate([((b.images[:, 0, 0, 0] + 1) * 127.5).round().int().numpy() for b in batches])
    assert sorted(shown) == sorted(np.arange(900) % 251)
    assert train.labels is not None
    for batch in batches:
        # The rows are those whose image, label and attributes agree.
        labels = batch.condition.labels.numpy()  # type: ignore[union-attr]
        values = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().numpy()
        for value, label, attributes in zip(values, labels, batch.condition.attributes, strict=True):  # type: ignore[arg-type]
            rows = np.arange(value, 900, 251)
            same = (train.labels[rows] == label) & (train.attributes[rows] == attributes.numpy()).all(1)
            assert same.any()


def test_a_reader_gives_the_attributes_it_is_asked_for(tmp_path: Path) -> None:
    data = load_packed(write_large(tmp_path / "pack", 50))
    for names in (("c", "a"), ("b",), ("a", "b", "c")):
        (batch,) = BatchReader(data, 16, seed=2, attributes=names).read(1, 0.0)
        (other,) = BatchReader(data.with_attributes(names), 16, seed=2).read(1, 0.0)
        assert batch.condition.attributes is not None and other.condition.attributes is not None
        assert batch.condition.attributes.tolist() == other.condition.attributes.tolist()
    assert BatchReader(data, 16, seed=2, attributes=()).read(1, 0.0)[0].condition.attributes is None
    with pytest.raises(ValueError, match="has no attribute 'd'; known: a, b, c"):
        BatchReader(data, 16, seed=2, attributes=("d",))


def test_mixed_splits_in_memory_are_selected() -> None:
    splits = np.array([1, 0, 1, 0, 0, 2], np.uint8)
    images = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    data = Packed(images, np.zeros((6, 0), np.int8), (), [str(i) for i in range(6)], splits)
    assert data.counts() == {"train": 3, "valid": 2, "test": 1}
    assert [list(data.split(name).names) for name in ("train", "valid", "test")] == [["1", "3", "4"], ["0", "2"], ["5"]]  # type: ignore[arg-type]
