"""Packs of encoded images: the same batches, runs and evaluations as from pixels."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.utils.data import DataLoader

from genmodels.data import export, load_packed, pack, packing, save_sheet
from genmodels.data.batches import BatchReader, image_batches
from genmodels.data.directory import ENCODED, MANIFEST
from genmodels.data.encoded import EncodedImages, encode
from genmodels.data.latents import with_latents
from genmodels.data.packed import Packed
from genmodels.evaluation.images import Images, read_images
from genmodels.evaluation.reference import reference_from
from genmodels.hashing import file_sha256
from genmodels.training.checkpoint import STATE
from genmodels.training.fit import fit

SIZE = 8


def write_tree(root: Path, count: int = 40) -> Path:
    """Write smooth images in the folders train and val, and one file that is no image."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / ("val" if i % 4 == 0 else "train") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(coarse).resize((20, 20), Image.Resampling.BICUBIC).save(path)
    (root / "train" / "007.png").write_bytes(b"nothing")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


def packed(tree: Path, store: Any = "jpeg", **settings: Any) -> Packed:
    return load_packed(pack("folder", tree, tree.parent / store, SIZE, store=store, **settings))


def decoded(data: Packed) -> Packed:
    """Return the same data with the pixels in memory."""
    return dataclasses.replace(data, images=np.asarray(data.images))


@pytest.mark.parametrize(("store", "error"), [("jpeg", 15), ("webp", 15)])
def test_images_are_those_of_a_raw_pack_encoded(tree: Path, store: str, error: int) -> None:
    raw, data = packed(tree, "raw"), packed(tree, store)
    assert isinstance(data.images, EncodedImages) and isinstance(raw.images, np.ndarray)
    assert data.images.shape == raw.images.shape == (39, SIZE, SIZE, 3) and len(data) == 39
    assert list(data.names) == list(raw.names) and data.counts() == {"train": 29, "valid": 10}
    for i in range(39):
        with Image.open(io.BytesIO(encode(raw.images[i], store, 95))) as picture:  # type: ignore[arg-type]
            np.testing.assert_array_equal(data.images[i], np.asarray(picture))
    difference = np.abs(np.asarray(data.images).astype(int) - raw.images)
    assert 0 < difference.mean() < error
    assert (data.manifest["store"], data.manifest["quality"]) == (store, 95)
    assert data.fingerprint != raw.fingerprint


def test_it_is_used_as_an_array(tree: Path) -> None:
    images = packed(tree).images
    whole = np.asarray(images)
    assert whole.dtype == np.uint8 and images.dtype == np.uint8
    rows = np.array([30, 2, 2, 0, 38, 11, 5, 6, 7, 8, 9, 10, -1])
    for key in (3, -2, slice(4, 30), slice(None, None, -3), slice(5, 5), rows, np.arange(39) % 2 == 0, [4, 1]):
        np.testing.assert_array_equal(images[key], whole[key])
    np.testing.assert_array_equal(np.concatenate([images, images[:2]]), np.concatenate([whole, whole[:2]]))
    for key in (39, np.array([0, 39]), np.array([-40])):
        with pytest.raises(IndexError):
            images[key]


def test_splits_and_selections_stay_on_disk(tree: Path) -> None:
    data = packed(tree)
    whole = np.asarray(data.images)
    valid = data.split("valid")
    assert isinstance(valid.images, EncodedImages)
    np.testing.assert_array_equal(valid.images, whole[data.splits == 1])
    for rows in (slice(3, 20, 2), np.array([9, 0, 4])):
        taken = valid.take(rows)
        assert isinstance(taken.images, EncodedImages)
        np.testing.assert_array_equal(taken.images, whole[data.splits == 1][rows])
        np.testing.assert_array_equal(taken.take(np.array([1, 0])).images, whole[data.splits == 1][rows][[1, 0]])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_equal_those_of_the_decoded_pixels(tree: Path, accumulate: int) -> None:
    data = packed(tree).split("train")
    encoded, raw = (BatchReader(part, 16, seed=3, accumulate=accumulate) for part in (data, decoded(data)))
    for step in (0, 1, 2, 3, 9, 8, 1, 0, 0):  # those that were decoded ahead, and those that were not
        for ours, theirs in zip(encoded.read(step, 0.5), raw.read(step, 0.5), strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert ours.noise.seeds == theirs.noise.seeds
            assert ours.progress == 0.5
    both = (torch.cat(list(image_batches(part, 7, limit=25, spread=True))) for part in (data, decoded(data)))
    assert torch.equal(*both)


def test_a_run_and_its_resumption_equal_those_on_the_decoded_pixels(tree: Path, tmp_path: Path) -> None:
    data = packed(tree)
    runs = [
        fit(tiny.tiny(), part, tiny.recipe(tmp_path / name, save_every=10, keep=2))
        for name, part in (("raw", decoded(data)), ("encoded", data))
    ]
    whole = (runs[0] / "model.safetensors").read_bytes()
    assert (runs[1] / "model.safetensors").read_bytes() == whole
    (runs[1] / "checkpoints" / "step_00000020" / STATE).unlink()
    fit(tiny.tiny(), load_packed(tree.parent / "jpeg"), tiny.recipe(runs[1], resume=True))
    assert (runs[1] / "model.safetensors").read_bytes() == whole


def test_everything_that_reads_images_reads_them(tree: Path, tmp_path: Path) -> None:
    data = packed(tree)
    raw = decoded(data)
    ours, theirs = Images(data.images, "a"), Images(raw.images, "b")
    assert ours.fingerprint == theirs.fingerprint == read_images(tmp_path / "jpeg").fingerprint
    assert ours.take(np.array([5, 1])).fingerprint == theirs.take(np.array([5, 1])).fingerprint
    assert reference_from(data, "valid").protocol.reference == reference_from(raw, "valid").protocol.reference
    columns = [with_latents(part, lambda x: x.mean(3), "w", tmp_path, False).latents for part in (data, raw)]
    np.testing.assert_array_equal(*columns)
    sheets = [save_sheet(part, tmp_path / f"{i}.png", 9).read_bytes() for i, part in enumerate((data, raw))]
    assert sheets[0] == sheets[1]
    exports = [export(part, tmp_path / f"{i}.zip").read_bytes() for i, part in enumerate((data, raw))]
    assert len(exports[0]) == len(exports[1])
    for workers in (0, 2):
        loader = DataLoader(data.dataset(), batch_size=10, num_workers=workers)
        images = torch.cat([batch["image"] for batch in loader])
        torch.testing.assert_close(images, torch.from_numpy(raw.images).permute(0, 3, 1, 2) / 127.5 - 1)


def test_a_forked_process_decodes_with_threads_of_its_own(tree: Path) -> None:
    images = packed(tree).images
    expected = images[:30]  # starts the threads of this process
    if not (child := os.fork()):
        os._exit(0 if (images[:30] == expected).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_killed_pack_goes_on_and_gives_the_same_files(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "CHUNK", 4)
    fresh = packed(tree).manifest
    out = tree.parent / "again"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack("folder", tree, out, SIZE, store="jpeg")
    journal, partial = out / "progress.jsonl", out / "images.partial"
    lines = journal.read_text().splitlines()
    places = {record["start"]: record for record in map(json.loads, filter(None, lines[1:]))}
    lost, damaged = places[8], places[16]
    content = bytearray(partial.read_bytes())
    content[damaged["place"] + 5] ^= 1
    partial.write_bytes(content)
    odd = json.dumps(places[24] | {"place": len(content)}), json.dumps(places[24] | {"lengths": [-5, 9, 1, 1]})
    kept = [line for line in lines if line and json.loads(line) != lost and json.loads(line) != places[24]]
    journal.write_text("\n".join([*kept, *odd]) + "\n")
    decode, calls = packing.decode, []
    monkeypatch.setattr(packing, "decode", lambda *settings: calls.append(1) or decode(*settings))
    again = load_packed(pack("folder", tree, out, SIZE, store="jpeg"))
    assert len(calls) == 12  # three of ten chunks
    assert again.manifest == fresh
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tree.parent / "jpeg").iterdir())


def test_another_store_or_quality_is_another_pack(tree: Path) -> None:
    out = pack("folder", tree, tree.parent / "out", SIZE, store="jpeg")
    assert pack("folder", tree, out, SIZE, store="jpeg", quality=95) == out
    for settings in ({}, {"store": "webp"}, {"store": "jpeg", "quality": 80}):
        with pytest.raises(ValueError, match="already holds another pack"):
            pack("folder", tree, out, SIZE, **settings)
    assert packed(tree, quality=20).images.content.size < load_packed(out).images.content.size  # type: ignore[union-attr]
    for settings in ({"store": "png"}, {"quality": 0}, {"quality": 101}, {"workers": 0}):
        why = "images as 'png'|quality (0|101): expected 1 to 100|workers 0: expected"
        with pytest.raises(ValueError, match=why):
            pack("folder", tree, out, SIZE, **settings)
    with pytest.raises(ValueError, match="pixels have no --quality 80: leave it out, or choose --store jpeg"):
        pack("folder", tree, tree.parent / "pixels", SIZE, quality=80)


def rewrite(path: Path, content: bytes | bytearray) -> None:
    """Replace a file. One that is mapped into memory must not be cut."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def reseal(folder: Path) -> None:
    """Write a manifest with the checksums of the files as they are."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["checksums"] |= {name: file_sha256(folder / name) for name in ENCODED}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_damaged_pack_is_refused_in_one_line(tree: Path) -> None:
    folder = tree.parent / "jpeg"
    images = packed(tree).images
    assert isinstance(images, EncodedImages)
    offsets, content = images.offsets.copy(), images.content.tobytes()
    for damage in (content[:-1], content[:100] + b"?" + content[101:], b""):
        rewrite(folder / ENCODED[0], damage)
        with pytest.raises(ValueError, match=r"(truncated .*bytes instead of|does not match).*pack again"):
            load_packed(folder)
    (folder / ENCODED[0]).unlink()
    with pytest.raises(ValueError, match=r"truncated .*images.bin is missing.*pack again"):
        load_packed(folder)
    rewrite(folder / ENCODED[0], content)
    swapped, longer = offsets.copy(), offsets.copy()
    swapped[[3, 4]] = offsets[[4, 3]]
    longer[-1] += 1
    for wrong in (swapped, longer, offsets[:-1], offsets.astype(np.float32), np.zeros((40, 2), np.int64)):
        np.save(folder / ENCODED[1], wrong)
        reseal(folder)
        with pytest.raises(ValueError, match=r"truncated .*(does not fit its 39 rows|bytes instead of).*pack again"):
            load_packed(folder)
    np.save(folder / ENCODED[1], offsets)


def test_images_that_cannot_be_decoded_are_named_in_one_line(tree: Path) -> None:
    folder = tree.parent / "jpeg"
    images = packed(tree).images
    assert isinstance(images, EncodedImages)
    content = bytearray(images.content.tobytes())
    start, end = images.offsets[5:7]
    other = io.BytesIO()
    Image.new("RGB", (SIZE, 2 * SIZE)).save(other, "JPEG", quality=10)
    for damage in (bytes(end - start), other.getvalue()[: end - start]):
        content[start:end] = damage.ljust(end - start, b"\0")
        rewrite(folder / ENCODED[0], content)
        reseal(folder)
        data = load_packed(folder)
        for read in (lambda d=data: d.images[5], lambda d=data: BatchReader(d, 39, 0).read(0, 0.0)):
            with pytest.raises(ValueError, match=r"image 5 of .*jpeg cannot be decoded.*pack again") as caught:
                read()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [{"store": "png"}, {"store": "raw"}, {"store": 1}, {"quality": "high"}, {"part": 2}])
def test_a_manifest_of_another_store_is_refused(tree: Path, entry: dict[str, Any]) -> None:
    packed(tree)
    path = tree.parent / "jpeg" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(ValueError, match=r"not a manifest of genmodels .*pack again"):
        load_packed(path.parent)


def test_processes_pack_what_threads_pack(tree: Path) -> None:
    by_threads = packed(tree)
    by_processes = load_packed(pack("folder", tree, tree.parent / "processes", SIZE, store="jpeg", workers=2))
    assert by_processes.manifest == by_threads.manifest


def test_decoding_can_be_sent_to_a_process(tree: Path) -> None:
    from genmodels.data.folder import folder_source

    decoding = packing.Decoding(folder_source(tree).reader, 40, SIZE, "centre", False, "jpeg", 95, 4)
    ours, theirs = decoding(4), pickle.loads(pickle.dumps(decoding))(4)
    assert ours.images == theirs.images and len(ours.images) == 4
