"""Packing: pixels, unusual files, resuming after a kill, and input refused."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import genmodels.data as data_package
from genmodels import image_files, writing
from genmodels.data import export, load_packed, open_data, pack, packing, save_sheet
from genmodels.data.directory import IMAGES, MANIFEST
from genmodels.hashing import file_sha256


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_tree(root: Path, count: int = 12) -> Path:
    for i in range(count):
        path = root / f"group{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    return root


def expected(image: Image.Image, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    return np.asarray(image.crop(box).resize((size, size), Image.Resampling.LANCZOS))


def png16(pixels: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG, which Pillow cannot write for colour."""
    height, width = pixels.shape[:2]

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def by_name(folder: Path) -> dict[str, np.ndarray]:
    packed = load_packed(folder)
    return dict(zip(packed.names, packed.images, strict=True))


def test_pixels_are_the_centre_square_resized(tmp_path: Path):
    found = by_name(pack("folder", write_tree(tmp_path / "tree"), tmp_path / "out", 16))
    assert len(found) == 12
    for i in range(12):
        np.testing.assert_array_equal(found[f"group{i % 3}/{i:03d}.png"], expected(picture(i), (5, 0, 35, 30), 16))


def test_a_number_as_crop_is_a_centre_square_of_that_many_pixels(tmp_path: Path):
    out = pack("folder", write_tree(tmp_path / "tree", 3), tmp_path / "out", 16, crop="20")
    np.testing.assert_array_equal(by_name(out)["group0/000.png"], expected(picture(0), (10, 5, 30, 25), 16))
    assert load_packed(out).crop == "20"


def test_a_zip_gives_what_the_folder_gives(tmp_path: Path):
    tree = write_tree(tmp_path / "tree")
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for path in sorted(tree.rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(tree))
    folder = load_packed(pack("folder", tree, tmp_path / "a", 16))
    zipped = load_packed(pack("folder", tmp_path / "tree.zip", tmp_path / "b", 16))
    assert folder.fingerprint == zipped.fingerprint
    np.testing.assert_array_equal(folder.images, zipped.images)


def write_odd_files(root: Path) -> None:
    root.mkdir()
    grey = picture(1).convert("L")
    wide = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    clear = picture(2).convert("RGBA")
    clear.putalpha(0)
    picture(0).save(root / "plain.png")
    grey.save(root / "grey.png")
    picture(1).quantize(16).save(root / "palette.png")
    picture(1).convert("CMYK").save(root / "cmyk.tif")
    (root / "wide.png").write_bytes(png16(wide, 0))
    (root / "wide.pgm").write_bytes(b"P5 40 30 65535\n" + wide.astype(">u2").tobytes())
    (root / "wide_rgb.png").write_bytes(png16(np.full((30, 40, 3), 0x80FF, np.uint16), 2))
    picture(3).save(root / "turned.png", exif=sideways)
    clear.save(root / "clear.png")
    picture(0).save(root / "film.gif", save_all=True, append_images=[picture(1)])
    whole = io.BytesIO()
    picture(4).save(whole, "JPEG")
    (root / "cut.jpg").write_bytes(whole.getvalue()[:-400])
    (root / "empty.jpg").touch()
    (root / "page.jpg").write_text("<!DOCTYPE html>")
    picture(5, 40, 12).save(root / "small.png")
    Image.fromarray(np.zeros((30, 40), np.float32)).save(root / "float.tif")


def test_odd_files_are_converted_or_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_odd_files(tmp_path / "tree")
    Image.new("L", (400, 300)).save(tmp_path / "tree" / "bomb.png")
    Image.new("L", (600, 500)).save(tmp_path / "tree" / "big_bomb.png")
    monkeypatch.setattr(image_files, "LARGEST_IMAGE", 100_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow warns of 120,000 pixels, refuses 300,000
    out = pack("folder", tmp_path / "tree", tmp_path / "out", 16)
    found, manifest = by_name(out), load_packed(out).manifest
    assert manifest["converted"] == {
        "grey": 3, "palette": 2, "CMYK": 1, "16-bit": 3, "orientation": 1, "alpha": 1, "first frame": 1,
    }  # fmt: skip
    reasons = dict(manifest["skipped"])
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "bomb.png": "decompression bomb",
        "big_bomb.png": "decompression bomb",
        "cut.jpg": "truncated or damaged",
        "empty.jpg": "empty file",
        "page.jpg": "not an image of a known format",
        "small.png": "smaller than the size",
        "float.tif": "floating-point pixels have no obvious range",
    }
    assert manifest["count"] == len(found) == 10
    centre = (5, 0, 35, 30)
    np.testing.assert_array_equal(found["grey.png"], expected(picture(1).convert("L").convert("RGB"), centre, 16))
    np.testing.assert_array_equal(found["clear.png"], 255)
    np.testing.assert_array_equal(found["wide_rgb.png"], 128)
    turned = picture(3).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(found["turned.png"], expected(turned, (0, 5, 30, 35), 16))
    np.testing.assert_array_equal(found["wide.png"], found["wide.pgm"])
    assert found["wide.png"].min() < 8  # scaled, not clipped at 255 of 65,535
    assert found["wide.png"].max() > 247
    assert abs(found["wide.png"].mean() - 127.5) < 1


def test_a_killed_pack_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tree = write_tree(tmp_path / "tree", 40)
    (tree / "broken.png").write_bytes(b"nothing")
    script = """
import os, signal, sys, time
from pathlib import Path
import genmodels.data.packing as packing
packing.CHUNK = 4
decode, calls = packing.decode, []
def dies(*args):
    calls.append(1)
    if len(calls) == 30:  # the 7 chunks before are decoded; die once the journal says so
        journal = Path(sys.argv[2], "progress.jsonl")
        while journal.read_text().count("}\\n") < 1 + 7:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*args)
packing.decode = dies
from genmodels.data import pack
pack("folder", Path(sys.argv[1]), Path(sys.argv[2]), 16, workers=1)
"""
    out = tmp_path / "out"
    died = subprocess.run([sys.executable, "-c", script, str(tree), str(out)], cwd=os.getcwd(), capture_output=True)
    assert died.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="partial pack: run the same"):
        load_packed(out)

    monkeypatch.setattr(packing, "CHUNK", 4)
    whole, calls = packing.decode, []

    def counted(*args: Any) -> Any:
        calls.append(1)
        return whole(*args)

    monkeypatch.setattr(packing, "decode", counted)
    resumed = load_packed(pack("folder", tree, out, 16))
    assert len(calls) == 41 - 7 * 4  # what is in the journal is not decoded again
    fresh = load_packed(pack("folder", tree, tmp_path / "fresh", 16))
    assert resumed.fingerprint == fresh.fingerprint
    np.testing.assert_array_equal(resumed.images, fresh.images)
    assert resumed.manifest == fresh.manifest
    assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "fresh"))


def test_a_resumed_pack_counts_every_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, out, bars = write_tree(tmp_path / "tree", 6), tmp_path / "out", []
    monkeypatch.setattr(packing, "CHUNK", 4)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(packing, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack("folder", tree, out, 16)
    journal = out / "progress.jsonl"
    kept = [line for line in journal.read_text().splitlines() if '"start": 0' not in line]
    journal.write_text("\n".join(kept) + "\n")  # only the last chunk, of 2 images, is done
    made = packing.progress_bar
    monkeypatch.setattr(packing, "progress_bar", lambda title: bars.append(made(title)) or bars[-1])
    pack("folder", tree, out, 16)
    (task,) = bars[0].tasks
    assert task.completed == task.total == 6


def test_a_kill_while_the_journal_is_written_does_not_block_the_pack(tmp_path: Path):
    tree = write_tree(tmp_path / "tree", 4)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".progress.{writing._HOST}-99999999999-0.partial.jsonl").touch()
    assert len(load_packed(pack("folder", tree, tmp_path / "out", 16)).images) == 4
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(pack("folder", tree, tmp_path / "fresh", 16)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".progress.mine.partial.jsonl").touch()
    with pytest.raises(ValueError, match="is not empty"):
        pack("folder", tree, tmp_path / "other", 16)


def test_pixels_lost_in_a_crash_are_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tree, out = write_tree(tmp_path / "tree"), tmp_path / "out"
    monkeypatch.setattr(packing, "CHUNK", 4)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack("folder", tree, out, 16)
    partial = out / "images.partial"
    content = bytearray(partial.read_bytes())
    content[-100:] = bytes(100)
    partial.write_bytes(content)
    pack("folder", tree, out, 16)
    np.testing.assert_array_equal(
        load_packed(out).images, load_packed(pack("folder", tree, tmp_path / "fresh", 16)).images
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("images.partial", b"\x93NUMPY\x01\x00v\x00{'descr': '|u1'"),
        ("images.partial", b""),
        (
            "progress.jsonl",
            b"null\n[1]\n" + b"[" * 50_000 + b'\n{"start": "x", "checksum": 0}\n{"start": 999, "checksum": 0}\n',
        ),
        ("progress.jsonl", b'{"start": 0, "checksum": 0, "skipped": [[7, "x"]], "converted": null}\n'),
    ],
)
def test_what_is_damaged_in_a_partial_pack_is_decoded_again(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tree, out = write_tree(tmp_path / "tree"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack("folder", tree, out, 16)
    kept = (out / name).read_bytes().partition(b"\n")[0] + b"\n" if name == "progress.jsonl" else b""
    (out / name).write_bytes(kept + content)
    fresh = load_packed(pack("folder", tree, tmp_path / "fresh", 16))
    resumed = load_packed(pack("folder", tree, out, 16))
    np.testing.assert_array_equal(resumed.images, fresh.images)
    assert resumed.manifest == fresh.manifest


def test_a_partial_pack_of_changed_files_is_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tree, out = write_tree(tmp_path / "tree"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack("folder", tree, out, 16)
    picture(99, 50, 50).save(tree / "group0" / "000.png")
    with pytest.raises(ValueError, match="partial pack of something else or of changed files"):
        pack("folder", tree, out, 16)


def test_an_existing_pack_is_never_overwritten(tmp_path: Path):
    tree, out = write_tree(tmp_path / "tree"), tmp_path / "out"
    first = load_packed(pack("folder", tree, out, 16)).fingerprint
    assert load_packed(pack("folder", tree, out, 16)).fingerprint == first
    with pytest.raises(ValueError, match="already holds another pack"):
        pack("folder", tree, out, 8)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(ValueError, match=r"is not empty \(thesis.txt\)"):
        pack("folder", tree, tmp_path / "mine", 16)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["images.npy", "attributes.npy", "splits.npy", "names.bin", "names.offsets.npy"])
def test_a_damaged_pack_is_refused(tmp_path: Path, name: str):
    out = pack("folder", write_tree(tmp_path / "tree"), tmp_path / "out", 16)
    flip_a_byte(out / name)
    with pytest.raises(ValueError, match=r"does not match the manifest.*pack again") as caught:
        load_packed(out)
    assert "\n" not in str(caught.value)


def test_a_truncated_or_mixed_pack_is_refused(tmp_path: Path):
    out = pack("folder", write_tree(tmp_path / "tree"), tmp_path / "out", 16)
    whole, manifest = (out / IMAGES).read_bytes(), json.loads((out / MANIFEST).read_text())
    (out / IMAGES).write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match="missing or truncated"):
        load_packed(out)
    (out / IMAGES).write_bytes(whole)
    (out / MANIFEST).write_text(json.dumps({**manifest, "count": 11}))
    with pytest.raises(ValueError, match=r"the manifest says uint8 \(11, 16, 16, 3\)"):
        load_packed(out)
    (out / MANIFEST).write_text(json.dumps({**manifest, "format": 3}))
    with pytest.raises(ValueError, match="upgrade genmodels"):
        load_packed(out)
    (out / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="not a manifest of genmodels"):
        load_packed(out)


def with_checksums(out: Path, **changes: Any) -> None:
    """Write a manifest with the checksums of the files as they are, and with changed entries."""
    manifest = json.loads((out / MANIFEST).read_text()) | changes
    manifest["checksums"] |= {name: file_sha256(out / name) for name in manifest["checksums"] if (out / name).exists()}
    (out / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": "16"}, "'size' is a str"),
        ({"size": 0}, "it describes no images"),
        ({"count": None}, "'count' is a NoneType"),
        ({"attributes": [1]}, "does not hold texts"),
        ({"skipped": ["a.png"]}, "does not hold texts"),
        ({"origin": "celeba"}, "'origin' is a str"),
        ({"origin": {"crop": 3}}, "does not hold texts"),
        ({"checksums": []}, "'checksums' is a list"),
    ],
)
def test_a_manifest_of_other_types_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    out = pack("folder", write_tree(tmp_path / "tree", 3), tmp_path / "out", 16)
    (out / MANIFEST).write_text(json.dumps(json.loads((out / MANIFEST).read_text()) | changes))
    with pytest.raises(ValueError, match=f"not a manifest of genmodels .*{reason}.*pack again"):
        load_packed(out)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("splits", np.full(3, 9, np.uint8)),
        ("splits", np.zeros(4, np.uint8)),
        ("splits", np.zeros(3, np.int64)),
        ("attributes", np.zeros((3, 2), np.int8)),
        ("names.offsets", np.array([0, 20, 15, 42])),
        ("names.offsets", np.array([1, 14, 28, 42])),
        ("names.offsets", np.array([0, 14, 28, 90])),
        ("names.offsets", np.array([0, 14, 42])),
        ("names.offsets", np.array([0.0, 14, 28, 42])),
    ],
)
def test_columns_that_do_not_fit_the_images_are_refused(tmp_path: Path, name: str, column: np.ndarray) -> None:
    out = pack("folder", write_tree(tmp_path / "tree", 3), tmp_path / "out", 16)
    np.save(out / f"{name}.npy", column)
    with_checksums(out)
    with pytest.raises(ValueError, match=r"(splits|attributes|names).*(fit|bytes).*pack again") as caught:
        load_packed(out)
    assert "\n" not in str(caught.value)


def test_what_is_no_column_is_refused(tmp_path: Path) -> None:
    out = pack("folder", write_tree(tmp_path / "tree", 3), tmp_path / "out", 16)
    files = {name: (out / name).read_bytes() for name in ("splits.npy", "names.bin", IMAGES)}
    for name, content, reason in (
        ("splits.npy", files["splits.npy"][:40], r"splits\.npy cannot be read as an array"),
        ("names.bin", b"\xff" * len(files["names.bin"]), r"names\.bin holds bytes that are not text"),
        ("names.bin", b"", r"names\.bin has 0 bytes instead of 42"),
        (IMAGES, files[IMAGES].replace(b"'shape': (3, ", b"'shape': (((("), "missing or truncated.*header is damaged"),
    ):
        (out / name).write_bytes(content)
        with_checksums(out)
        with pytest.raises(ValueError, match=f"{reason}.*pack again") as caught:
            load_packed(out)
        assert "\n" not in str(caught.value)
        (out / name).write_bytes(files[name])


@pytest.mark.parametrize("name", ["images.npy", "attributes.npy", "names.bin", "manifest.json", "checked"])
def test_a_pipe_in_a_pack_does_not_hang(tmp_path: Path, name: str) -> None:
    out = pack("folder", write_tree(tmp_path / "tree", 3), tmp_path / "out", 16)
    (out / name).unlink()
    os.mkfifo(out / name)
    if name == "checked":
        assert len(load_packed(out)) == 3
        return
    with pytest.raises(ValueError, match="not a packed directory" if name == MANIFEST else "missing"):
        load_packed(out)


def test_unusable_folders_get_one_clear_line(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    (tmp_path / "fake.zip").write_text("<html>quota exceeded</html>")
    tree = write_tree(tmp_path / "tree", 3)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"root": tmp_path / "absent"}, "absent: no such folder"),
        ({"root": tmp_path / "empty"}, "holds no images"),
        ({"root": tmp_path / "notes"}, r"no usable image in .*notes: 1 files, none readable; a.txt: not an image"),
        ({"root": tmp_path / "fake.zip"}, "not a complete zip archive.*download it again"),
        ({"root": None}, "needs --root"),
        (
            {"root": tree, "size": 31},
            "no usable image.*smaller than the size: its square has 30 pixels, the size is 31",
        ),
        ({"root": tree, "crop": "32"}, "no usable image.*smaller than the crop: 40 x 30 pixels, the crop is 32"),
        ({"root": tree, "crop": "12"}, "size 16 is larger than the crop '12'"),
        ({"root": tree, "crop": "face"}, "unknown crop 'face'"),
        ({"root": tree, "size": 0}, "size 0 is too small"),
    ]
    for arguments, message in cases:
        with pytest.raises((ValueError, OSError), match=message) as caught:
            pack("folder", out=tmp_path / "out", **({"size": 16} | arguments))
        assert "\n" not in str(caught.value)
    assert load_packed(pack("folder", tree, tmp_path / "out", 16)).size == 16  # the failures above left nothing behind


def test_an_unwritable_place_gets_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to .*file/out"):
        pack("folder", write_tree(tmp_path / "tree", 2), tmp_path / "file" / "out", 16)


def test_open_data_packs_into_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    tree = write_tree(tmp_path / "tree")
    first = open_data("folder", tree, 16)
    assert first.describe().startswith("folder tree (12 files): ")
    with monkeypatch.context() as patch:
        patch.setattr(packing, "decode", None)  # would fail if anything were decoded again
        assert open_data("folder", tree, 16).fingerprint == first.fingerprint
    picture(50).save(tree / "group0" / "new.png")
    assert len(open_data("folder", tree, 16)) == 13
    with pytest.raises(ValueError, match="unknown data 'celebs'"):
        open_data("celebs")
    with pytest.raises(ValueError, match="not a packed directory"):
        open_data(str(tree))


def test_two_processes_packing_at_once_agree(tmp_path: Path):
    tree = write_tree(tmp_path / "tree", 60)
    script = """
import sys
from pathlib import Path
from genmodels.data import open_data
print(open_data("folder", Path(sys.argv[1]), 16).fingerprint)
"""
    environment = {**os.environ, "GENMODELS_CACHE": str(tmp_path / "cache")}
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(tree)], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {process.communicate()[0].strip() for process in both}
    assert len(answers) == 1
    assert [process.returncode for process in both] == [0, 0]


def test_open_data_checks_what_a_packed_directory_holds(tmp_path: Path):
    out = pack("folder", write_tree(tmp_path / "tree"), tmp_path / "out", 16)
    assert open_data(str(out)).size == open_data(out, size=16).size == 16  # a pack knows its size
    with pytest.raises(ValueError, match="16 px, not 64: choose --size 16, or pack the images again with --size 64"):
        open_data(str(out), size=64)
    with pytest.raises(ValueError, match="crop centre, not 178"):
        open_data(str(out), size=16, crop="178")


def test_a_pack_below_the_home_folder_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pack("folder", write_tree(tmp_path / "tree"), tmp_path / "pack", 16)
    assert data_package.default_size("~/pack") == 16
    assert open_data("~/pack").size == 16


def test_export_travels_and_reads_as_a_folder(tmp_path: Path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for i in range(20):
        Image.linear_gradient("L").rotate(i * 18).convert("RGB").save(tree / f"{i}.png")
    (tree / "attributes.csv").write_text(
        "file,Smiling,identity\n" + "".join(f"{i}.png,{i % 3 - 1},{i}\n" for i in range(20))
    )
    original = load_packed(pack("folder", tree, tmp_path / "a", 32, crop="64"))
    archive = export(original, tmp_path / "small.zip")
    again = load_packed(pack("folder", archive, tmp_path / "b", 32))
    assert [name.removesuffix(".jpg") for name in again.names] == list(original.names)
    assert again.attribute_names == ("Smiling",)
    assert original.identities is not None
    for field in ("attributes", "identities", "splits"):
        np.testing.assert_array_equal(getattr(again, field), getattr(original, field))
    assert again.crop == "64"
    assert np.abs(again.images.astype(int) - original.images).mean() < 3
    with pytest.raises(ValueError, match="already exists"):
        export(original, archive)


def test_toyfaces_are_packed_with_their_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from genmodels.data import toyfaces

    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path))
    monkeypatch.setattr(data_package, "TOYFACES", (96, 40))
    faces = open_data(size=16)
    assert faces.counts() == {"train": 96, "valid": 40}
    images, attributes = toyfaces.draw(0, np.arange(96, 136), 16)
    np.testing.assert_array_equal(faces.split("valid").images, images)
    np.testing.assert_array_equal(faces.split("valid").attributes, attributes)
    assert faces.attribute_names == toyfaces.ATTRIBUTES
    with pytest.raises(ValueError, match="drawn, not read"):
        open_data("toyfaces", root=tmp_path)


def test_sheet_shows_the_images(tmp_path: Path):
    packed = load_packed(pack("folder", write_tree(tmp_path / "tree"), tmp_path / "out", 16))
    with Image.open(save_sheet(packed, tmp_path / "sheet.png", n=9)) as sheet:
        assert sheet.width == 8 * 168 + 8
        np.testing.assert_array_equal(np.asarray(sheet)[8 + 5, 8 + 5], packed.images[_first_shown(packed)][0, 0])


def _first_shown(packed: data_package.Packed) -> int:
    return int(np.random.default_rng(0).permutation(len(packed))[:9].min())
