"""Opening image files: formats, limits, orientation, masks, and damaged metadata."""

from __future__ import annotations

import errno
import io
import os
import runpy
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile, PngImagePlugin

from genmodels import array_files, image_files, pictures
from genmodels.cli.arguments import read_images, read_mask
from genmodels.data import load_packed, pack
from genmodels.image_files import RefusedError, image_size, open_image, to_rgb

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of a value of each type of EXIF."""


def picture(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def exif(orientation: int, tag: int = 0, kind: int = 3, count: int = 0) -> bytes:
    """Return EXIF with an orientation and, if `count` is not 0, one more entry of any kind."""
    entries = [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)]
    data = (struct.pack("<d", 1.5) * (count + 1))[: SIZES.get(kind, 4) * count]
    if count:
        value = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", 8 + 2 + 24 + 4)
        entries.append(struct.pack("<HHI", tag, kind, count) + value)
    entries.sort()
    outside = data if len(data) > 4 else b""
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + outside


def bomb(side: int) -> bytes:
    """Return a PNG file that claims side x side pixels and holds none."""

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_is_made_upright_in_every_format(kind: str) -> None:
    corner = Image.new("RGB", (24, 16))
    corner.paste((255, 255, 255), (0, 0, 8, 8))  # top left
    for number in range(1, 9):
        turn = {**image_files._TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(number)
        stored = corner if turn is None else corner.transpose(turn)
        metadata = Image.Exif()
        metadata[0x0112] = number
        upright, _ = open_image(encoded(stored, kind, exif=metadata))
        levels = np.asarray(to_rgb(upright)[0]).mean(-1)
        assert levels.shape == (16, 24), number
        assert levels[:8, :8].min() > 200 and levels[9:].max() < 50 and levels[:, 9:].max() < 50, number


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_odd_entry_in_exif_costs_neither_the_picture_nor_its_orientation(kind: str) -> None:
    rng = np.random.default_rng(0)
    tags = sorted({int(tag) for tag in ExifTags.Base} - {0x0112})
    expected, _ = open_image(encoded(picture(), kind, exif=exif(6)))
    odd = [(tag, 11, 1) for tag in (270, 305, 306, 315, 33432)] + [(262, 3, 2)]  # floats where text belongs
    odd += [(int(rng.choice(tags)), int(rng.integers(0, 15)), int(rng.integers(1, 4))) for _ in range(94)]
    for tag, value, count in odd:
        upright, kinds = open_image(encoded(picture(), kind, exif=exif(6, tag, value, count)))
        assert (upright.size, kinds) == ((16, 24), ["orientation"]), (tag, value, count)
        assert upright.tobytes() == expected.tobytes()


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_exif_costs_the_orientation_at_most() -> None:
    rng = np.random.default_rng(0)
    whole = encoded(picture(), "JPEG", exif=exif(1, 282, 5, 1)).getvalue()
    start = whole.index(b"Exif\0\0")
    expected = np.asarray(picture_of(whole))
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(start, start + len(exif(1, 282, 5, 1)), rng.integers(1, 8)):
            damaged[place] = rng.integers(256)
        found = np.asarray(picture_of(bytes(damaged)))
        assert sorted(found.shape) == sorted(expected.shape) and sorted(found.flat) == sorted(expected.flat)


def picture_of(data: bytes) -> Image.Image:
    return open_image(io.BytesIO(data))[0]


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(value: int) -> None:
    upright, kinds = open_image(encoded(picture(), "PNG", exif=exif(value)))
    assert (upright.tobytes(), kinds) == (picture().tobytes(), [])


def test_a_pack_keeps_photos_with_odd_exif_and_turns_them(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name, entry in {"plain": (0, 3, 0), "float": (270, 11, 1), "two_values": (262, 3, 2)}.items():
        picture().save(tmp_path / "tree" / f"{name}.jpg", exif=exif(6, *entry))
    packed = load_packed(pack("folder", tmp_path / "tree", tmp_path / "out", 16))
    assert (len(packed), packed.manifest["skipped"], packed.manifest["converted"]) == (3, [], {"orientation": 3})
    assert np.array_equal(packed.images[0], packed.images[1]) and np.array_equal(packed.images[0], packed.images[2])


def test_formats_that_run_programs_are_refused_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tmp_path / "samples.png"
    path.write_bytes(encoded(picture(), "EPS").getvalue())
    for use in (lambda: read_images([path], 8), lambda: read_mask(path, 8), lambda: pictures.cut_grid(path, 8)):
        with pytest.raises(ValueError, match=r"samples.png: not an image of a known format$"):
            use()
    for kind in ("PDF", "ICO", "SGI", "TGA", "DDS"):
        with pytest.raises(RefusedError, match="^not an image of a known format$"):
            open_image(encoded(picture(), kind))


@pytest.mark.parametrize("side", [9_460, 13_000, 20_000, 60_000])  # Pillow warns above 9,459 and raises above 13,377
def test_pictures_with_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "samples.png"
    path.write_bytes(bomb(side))
    for use in (lambda: read_images([path], 8), lambda: read_mask(path, 8), lambda: pictures.cut_grid(path, 8)):
        with pytest.raises(ValueError, match=r"samples.png: decompression bomb: it has more than 89,478,485 pixels$"):
            use()
    with pytest.raises(RefusedError, match="decompression bomb"), pytest.warns() as warned:
        image_size(io.BytesIO(bomb(9_460)))
    assert warned
    assert image_size(io.BytesIO(bomb(9_459))) == (9_459, 9_459)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), True),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), True),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), False),
        (MemoryError(), False),
    ],
)
def test_an_image_that_cannot_be_read_now_is_not_left_out_for_good(
    error: Exception, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faces").mkdir()
    for name in ("a.png", "b.png"):
        picture().save(tmp_path / "faces" / name)
    load = ImageFile.ImageFile.load
    with monkeypatch.context() as patched:

        def fail(image: ImageFile.ImageFile) -> Any:
            if image.fp and Path(image.fp.name).name == "b.png":
                raise error
            return load(image)

        patched.setattr(PngImagePlugin.PngImageFile, "load", fail)
        if not passes:
            assert list(load_packed(pack("folder", tmp_path / "faces", tmp_path / "out", 8)).names) == ["a.png"]
            return
        with pytest.raises(ValueError, match=r"b.png cannot be read .* pack again$"):
            pack("folder", tmp_path / "faces", tmp_path / "out", 8)
    assert list(load_packed(pack("folder", tmp_path / "faces", tmp_path / "out", 8)).names) == ["a.png", "b.png"]


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="is not a regular file"):
            read_images([path], 8)
    with pytest.raises(ValueError, match=r"nowhere.png: No such file or directory$"):
        read_mask(tmp_path / "nowhere.png", 8)


@pytest.mark.parametrize("kind", ["RGBA", "RGBA white everywhere", "LA", "I;16", "palette", "1", "RGB"])
def test_masks_are_white_where_they_are_opaque_and_bright(tmp_path: Path, kind: str) -> None:
    marked = np.zeros((32, 32), bool)
    marked[8:24, 8:24] = True
    grey = Image.fromarray(np.where(marked, 255, 0).astype(np.uint8))
    if kind == "I;16":  # 40,000 of 65,535 is bright, 20,000 is dark although it is above 255
        mask = Image.fromarray(np.where(marked, 40_000, 20_000).astype(np.uint16))
    elif kind in ("LA", "RGBA white everywhere"):
        mask = Image.new(kind.split()[0], (32, 32), "white")
        mask.putalpha(grey)
    elif kind == "palette":
        mask = grey.quantize(2)
        mask.info["transparency"] = int(np.asarray(mask)[0, 0])
    else:
        mask = grey.convert(kind)
        if kind == "RGBA":
            mask.putalpha(grey)
    mask.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", 32), ~marked)


def test_a_mask_is_turned_like_the_photo_it_belongs_to(tmp_path: Path) -> None:
    upper = np.zeros((16, 16, 3), np.uint8)
    upper[:8] = 255
    Image.fromarray(upper).save(tmp_path / "mask.png", exif=exif(6))
    known = read_mask(tmp_path / "mask.png", 16)
    assert not known[:, 8:].any() and known[:, :8].all()


def test_a_mask_that_marks_nothing_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="is black: make the region white .*transparent pixels count as black"):
        read_mask(tmp_path / "mask.png", 8)


def test_arrays_are_read_where_processes_have_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)  # as if it were absent
    assert runpy.run_path(array_files.__file__)["free_memory"]() > 0
