"""Packs of format 1: read as before, with the same fingerprint and the same order of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmodels.data import load_packed
from genmodels.data.batches import BatchReader
from genmodels.data.directory import CHECKED, IMAGES, MANIFEST
from genmodels.data.format1 import ALWAYS, LABELS, NAMES, TEXT
from genmodels.hashing import file_sha256

N, SIZE = 24, 8
LABEL_COLUMNS = {
    "attributes": (np.arange(N)[:, None] % 3 - 1).astype(np.int8),
    "splits": np.repeat(np.array([0, 1], np.uint8), [N - 4, 4]),
    "identities": np.arange(N, dtype=np.int32) * 10,
}
NAMED = [f"é{i}\udcff.png" for i in range(N)]
CAPTIONS = [[f"{i}.{k} ü" for k in range(i % 4)] for i in range(N)]


def write_format1(folder: Path, **changes: Any) -> Path:
    """Write a pack of 24 images of format 1. Image i is filled with the value i."""
    folder.mkdir(exist_ok=True)
    np.save(folder / IMAGES, np.arange(N, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3))
    np.savez(folder / LABELS, **LABEL_COLUMNS)
    (folder / NAMES).write_text(json.dumps(NAMED))
    (folder / TEXT).write_text(json.dumps(CAPTIONS))
    write_manifest(folder, **changes)
    return folder


def write_manifest(folder: Path, **changes: Any) -> None:
    checksums = {name: file_sha256(folder / name) for name in (IMAGES, *ALWAYS)}
    manifest = {"format": 1, "source": "test", "size": SIZE, "attributes": ["A"], "count": N, "checksums": checksums}
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def test_an_old_pack_has_the_columns_and_the_fingerprint_that_it_had(tmp_path: Path) -> None:
    packed = load_packed(write_format1(tmp_path / "pack"))
    assert packed.images[:, 0, 0, 0].tolist() == list(range(N))
    assert list(packed.names) == NAMED
    assert [list(row) for row in packed.text or ()] == CAPTIONS
    for name, column in LABEL_COLUMNS.items():
        np.testing.assert_array_equal(getattr(packed, name), column)
    # As the version that wrote such packs computes them.
    assert packed.fingerprint == "dcae2aee4a2006c1"
    assert packed.split("train").fingerprint == "1a1b007834b846fa"
    assert packed.take(np.array([3, 1])).fingerprint == "7988beae735faefb"


def test_a_run_on_an_old_pack_goes_on_in_its_order(tmp_path: Path) -> None:
    train = load_packed(write_format1(tmp_path / "pack")).split("train")
    (batch,) = BatchReader(train, 24, seed=5).read(2, 0)
    shown = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert shown == [18, 8, 17, 2, 0, 10, 4, 9, 7, 15, 5, 12, 2, 12, 1, 10, 7, 6, 18, 17, 13, 14, 9, 3]


def test_what_an_older_version_has_checked_is_not_checked_again(tmp_path: Path) -> None:
    folder = write_format1(tmp_path / "pack")
    state = (folder / IMAGES).stat()
    (folder / CHECKED).write_text(f"{state.st_size} {state.st_mtime_ns}")
    write_manifest(folder, checksums=json.loads((folder / MANIFEST).read_text())["checksums"] | {IMAGES: "0"})
    assert len(load_packed(folder)) == N
    with pytest.raises(ValueError, match="images.npy is missing or does not match"):
        load_packed(folder, verify=True)


@pytest.mark.parametrize("name", [IMAGES, *ALWAYS])
def test_a_damaged_old_pack_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_format1(tmp_path / "pack")
    assert len(load_packed(folder)) == N
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"does not match the manifest.*pack again"):
        load_packed(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=r"is missing|are missing"):
        load_packed(folder)


def test_columns_of_an_old_pack_that_do_not_fit_its_images_are_refused(tmp_path: Path) -> None:
    folder = write_format1(tmp_path / "pack")
    for text in ('["a", "b"]', json.dumps([*NAMED[:-1], 3]), "{}", "null", "[" * 100_000):
        (folder / NAMES).write_text(text)
        write_manifest(folder)
        with pytest.raises(ValueError, match=r"names\.json .*pack again"):
            load_packed(folder)
    write_format1(folder)
    for bad in (
        {"splits": np.full(N, 9, np.uint8)},
        {"splits": np.zeros(N + 1, np.uint8)},
        {"attributes": np.zeros((N, 2), np.int8)},
        {"identities": np.zeros(N)},
        {"identities": np.array([None] * N)},
    ):
        np.savez(folder / LABELS, **LABEL_COLUMNS | bad)
        write_manifest(folder)
        with pytest.raises(ValueError, match=r"labels\.npz.*pack again") as caught:
            load_packed(folder)
        assert "\n" not in str(caught.value)
    np.savez(folder / LABELS, splits=LABEL_COLUMNS["splits"])
    write_manifest(folder)
    with pytest.raises(ValueError, match=r"labels\.npz has no 'attributes'.*pack again"):
        load_packed(folder)
