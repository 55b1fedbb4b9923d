"""Image files of any source: formats read, conversions reported, and input refused."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genmodels.data import pack
from genmodels.evaluation.images import Images, holds_images, read_images


def noise(n: int = 4, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def write_folder(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def refusal(path: Path, size: int | None = None) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_images(path, size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_form_gives_the_same_pixels_in_the_order_of_names(tmp_path: Path) -> None:
    pixels = noise()
    folder = write_folder(tmp_path / "faces", pixels[:3])
    write_folder(folder / "z" / "deeper", pixels[3:])
    for beside in ("labels.CSV", "README", "notes/about.md", "z/index.json", ".hidden.png", "Thumbs.db"):
        (folder / beside).parent.mkdir(exist_ok=True)
        (folder / beside).write_text("not an image")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    np.save(tmp_path / "one.npy", pixels)
    np.savez(tmp_path / "one.npz", anything=pixels)
    np.savez(tmp_path / "two.npz", arr_0=pixels, arr_1=np.arange(4))
    np.savez_compressed(tmp_path / "named.npz", labels=np.arange(4), samples=pixels)
    for name in ("faces", "faces.zip", "one.npy", "one.npz", "two.npz", "named.npz"):
        images = read_images(tmp_path / name)
        np.testing.assert_array_equal(images.pixels, pixels)
        assert (images.name, images.notes, images.size, len(images)) == (name, (), 16, 4)
    assert isinstance(read_images(tmp_path / "one.npy").pixels, np.memmap)


def test_a_member_that_leads_out_of_the_archive_is_left_out_and_said(tmp_path: Path) -> None:
    pixels = noise()
    folder = write_folder(tmp_path / "faces", pixels)
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(f"faces\\{path.name}", path.read_bytes())
        archive.writestr("../000.png", (folder / "000.png").read_bytes())
    images = read_images(tmp_path / "faces.zip")
    np.testing.assert_array_equal(images.pixels, pixels)
    assert images.notes == ("../000.png was left out: its name leads out of the archive",)


def test_a_packed_directory_and_a_folder_with_a_manifest_of_its_own(tmp_path: Path) -> None:
    pixels = noise(6)
    folder = write_folder(tmp_path / "faces", pixels)
    packed = pack("folder", folder, tmp_path / "packed", 16)
    images = read_images(packed)
    assert images.name == "packed (packed, all splits)"
    assert sorted(map(bytes, images.pixels)) == sorted(map(bytes, pixels))
    (folder / "manifest.json").write_text("{}")
    np.testing.assert_array_equal(read_images(folder).pixels, pixels)


def test_fingerprint_is_of_shape_and_pixels_alone(tmp_path: Path) -> None:
    pixels = noise(1030, 4)
    expected = hashlib.sha256(b"(1030, 4, 4, 3)" + pixels.tobytes()).hexdigest()[:16]
    np.save(tmp_path / "a.npy", pixels)
    assert Images(pixels, "a").fingerprint == read_images(tmp_path / "a.npy").fingerprint == expected
    assert Images(pixels, "b").take(slice(1, None)).fingerprint == Images(pixels[1:], "c").fingerprint
    changed = pixels.copy()
    changed[1029, 3, 3, 2] ^= 1
    assert Images(changed, "a").fingerprint != expected


def test_take_is_a_view_for_a_slice_and_follows_indices() -> None:
    images = Images(noise(), "a", ("a note",))
    assert np.shares_memory(images.take(slice(1, 3)).pixels, images.pixels)
    some = images.take(np.array([3, 0]))
    np.testing.assert_array_equal(some.pixels, images.pixels[[3, 0]])
    assert (some.name, some.notes) == ("a", ("a note",))


def test_conversions_are_those_of_packs_and_counted_in_one_note(tmp_path: Path) -> None:
    rgb = Image.fromarray(noise(1)[0])
    transparent = rgb.convert("RGBA")
    transparent.putalpha(Image.fromarray(noise(1, seed=1)[0, ..., 0]))
    modes = {"0.png": rgb.convert("L"), "1.png": rgb.convert("L"), "2.png": transparent, "3.gif": rgb.convert("P")}
    for name, image in (modes | {"4.png": rgb}).items():
        image.save(tmp_path / name)
    images = read_images(tmp_path)
    grey = np.asarray(rgb.convert("L"))
    np.testing.assert_array_equal(images.pixels[0], np.stack([grey] * 3, axis=-1))
    white = Image.alpha_composite(Image.new("RGBA", (16, 16), "white"), transparent).convert("RGB")
    np.testing.assert_array_equal(images.pixels[2], np.asarray(white))
    assert images.notes == ("4 of 5 images were converted to 8-bit RGB: 2 grey; 1 alpha; 1 palette",)


@pytest.mark.parametrize("form", ["folder", "npy", "packed"])
def test_size_resizes_with_lanczos_and_says_so(tmp_path: Path, form: str) -> None:
    pixels = noise()
    path = write_folder(tmp_path / "a", pixels)
    if form == "npy":
        path = tmp_path / "a.npy"
        np.save(path, pixels)
    if form == "packed":
        path = pack("folder", path, tmp_path / "packed", 16)
        pixels = np.load(path / "images.npy")
    images = read_images(path, 8)
    expected = [np.asarray(Image.fromarray(p).resize((8, 8), Image.Resampling.LANCZOS)) for p in pixels]
    np.testing.assert_array_equal(images.pixels, expected)
    assert images.notes == ("resized from 16 to 8 px, lanczos",)
    assert read_images(path, 16).notes == ()
    assert re.search(
        r"16( x 16 pixels and images| px, which) are not enlarged: choose at most --size 16", refusal(path, 32)
    )
    assert "size 4 is too small" in refusal(path, 4)


def test_size_cuts_the_centre_square_of_mixed_images(tmp_path: Path) -> None:
    square, wide = noise(1, 16)[0], noise(1, 24)[0, :12]
    Image.fromarray(square).save(tmp_path / "a.png")
    Image.fromarray(wide).save(tmp_path / "b.png")
    images = read_images(tmp_path, 8)
    cut = Image.fromarray(wide[:, 6:18]).resize((8, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(images.pixels[1], np.asarray(cut))
    assert images.notes == (
        "1 of 2 images are not square: they were cropped to the centre square",
        "resized from 12-16 to 8 px, lanczos",
    )
    assert "b.png has 24 x 12 pixels and images are not enlarged: choose at most --size 12" in refusal(tmp_path, 14)


def test_mixed_sizes_and_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mixed", noise(3))
    Image.fromarray(noise(1, 32)[0]).save(folder / "big.png")
    message = refusal(folder)
    assert "mixes sizes: 000.png has 16 x 16 pixels, big.png has 32 x 32; --size S" in message
    Image.fromarray(noise(1, 16)[0, :12]).save(folder / "000.png")
    assert "000.png has 16 x 12 pixels and is not square; --size S" in refusal(folder)


def test_damaged_images_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", noise(3, 64))
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(whole[:5000])
    assert re.search(r"a: 001.png: truncated or damaged: .*; replace it or remove it", refusal(folder))
    assert "001.png: truncated or damaged" in refusal(folder, 32)
    (folder / "001.png").write_bytes(b"")
    assert "001.png: empty file; replace it" in refusal(folder)
    (folder / "001.png").write_bytes(b"<html>not found</html>")
    assert "001.png: not an image of a known format; replace it" in refusal(folder)
    (folder / "001.png").unlink()
    (folder / "000.png").write_bytes(b"clip.mp4")
    assert "000.png: not an image" in refusal(folder)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in write_folder(tmp_path / "a", noise(2)).iterdir():
            file.write(path, path.name)
    whole = archive.read_bytes()
    broken = bytearray(whole)
    broken[200] ^= 0xFF  # inside the first member
    archive.write_bytes(broken)
    assert re.search(r"a.zip: \d+.png cannot be read \(Bad CRC-32.*\); replace it", refusal(archive))
    archive.write_bytes(whole[:-30])
    assert "is not a complete zip archive" in refusal(archive)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "nowhere: no such folder, .zip, .npy or .npz of images" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "labels.csv").write_text("file\n")
    assert refusal(tmp_path / "empty").endswith("empty holds no images")
    (tmp_path / "a.png").write_bytes(b"")
    assert "a.png is not a set of images: expected a folder" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((2, 3, 8, 8), np.uint8, ["uint8 (2, 3, 8, 8)", "x.transpose(0, 2, 3, 1)"]),
        ((2, 8, 8, 3), np.float32, ["float32", "(x * 255).round()", "(x * 127.5 + 127.5).round()"]),
        ((2, 3, 8, 8), np.float64, ["float64", "x.transpose(0, 2, 3, 1)", "(x * 255)"]),
        ((2, 8, 8, 3), np.int64, ["int64", "x.astype('uint8')"]),
        ((2, 8, 8), np.uint8, ["grey", "x[..., None].repeat(3, axis=-1)"]),
        ((2, 8, 8, 1), np.uint8, ["grey", "x.repeat(3, axis=-1)"]),
        ((2, 8, 8, 4), np.uint8, ["alpha", "x[..., :3]"]),
        ((8, 8, 3), np.uint8, ["single image", "x[None]"]),
        ((2, 8, 6, 3), np.uint8, ["crop the images to squares"]),
        ((0, 8, 8, 3), np.uint8, ["contains no images"]),
        ((8,), np.uint8, ["images are uint8 (N, S, S, 3)", "np.save"]),
    ],
)
def test_other_layouts_are_refused_with_the_line_that_converts_them(
    tmp_path: Path, shape: tuple[int, ...], dtype: type, words: list[str]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, dtype))
    message = refusal(tmp_path / "a.npy")
    assert message.startswith("a.npy is ")
    assert all(word in message for word in words), message
    with pytest.raises(ValueError, match="^mine is "):
        Images(np.zeros(shape, dtype), "mine")


def claimed_png(side: int) -> bytes:
    """Return a PNG file that claims side x side pixels and holds none."""
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + b"\0\0\0\x08IDAT" + bytes(12)


class Trap:
    """Object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_and_damaged_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([Trap()], object), allow_pickle=True)
    assert re.search("a.npy cannot be read as an array .*pickled objects are never loaded", refusal(path))
    np.savez(tmp_path / "a.npz", samples=np.array([Trap()], object), allow_pickle=True)
    assert "pickled objects are never loaded" in refusal(tmp_path / "a.npz")
    for pixels in (noise(2), noise(2)[:0]):
        np.save(path, pixels)
        path.write_bytes(path.read_bytes()[:100])
        assert "a.npy cannot be read as an array" in refusal(path)
    path.write_bytes(b"<html>")
    assert "a.npy is not an array of numpy (it begins with b'<html>')" in refusal(path)
    np.savez(tmp_path / "a.npz", noise(2))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    assert "a.npz cannot be read as an array" in refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    assert "a.npz holds 2 arrays (mu, sigma), none called arr_0 or samples" in refusal(tmp_path / "a.npz")


def array_file(shape: str, kind: str = "|u1") -> bytes:
    """Return an .npy file with any shape in its header, and 384 bytes of data."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(384)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("(99999999999, 8, 8, 3)", "|u1"),
        ("(4611686018427387904, 4611686018427387904, 8, 3)", "|u1"),
        ("(-1, 8, 8, 3)", "|u1"),
        ("(True, 8, 8, 3)", "|u1"),
        ("(2, 8, 8, 3)", "|V2147483647"),
        ("(" * 90, "|u1"),
    ],
)
def test_arrays_that_claim_more_than_they_hold_are_refused(tmp_path: Path, shape: str, kind: str) -> None:
    (tmp_path / "a.npy").write_bytes(array_file(shape, kind))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", array_file(shape, kind))
    for name in ("a.npy", "a.npz"):
        assert f"{name} cannot be read as an array" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.zip"])
def test_a_pipe_does_not_hang(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert re.search(
        "is neither a folder nor a file|is not a regular file|not a set of images", refusal(tmp_path / name)
    )


def test_images_that_do_not_fit_into_memory_are_refused_before_any_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmodels.evaluation.images.free_memory", lambda: 16_000_000_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(200):
            archive.writestr(f"{i}.png", claimed_png(9_400))
    needs = "a.zip: 200 images of 9,400 px need 53.0 GB of memory and 16.0 GB are free: choose a smaller --size"
    assert needs in refusal(tmp_path / "a.zip")
    monkeypatch.setattr("genmodels.evaluation.images.free_memory", lambda: 1_000)
    assert "4 images of 16 px need 0.0 GB" in refusal(write_folder(tmp_path / "b", noise()))
    np.save(tmp_path / "c.npy", noise())
    assert "c.npy: 4 images of 12 px" in refusal(tmp_path / "c.npy", 12)
    assert len(read_images(tmp_path / "c.npy")) == 4  # memory-mapped
    monkeypatch.setattr("genmodels.array_files.free_memory", lambda: 1_000)
    np.savez_compressed(tmp_path / "d.npz", noise() // 255)
    assert "arr_0 needs 0.0 GB of memory and 0.0 GB are free" in refusal(tmp_path / "d.npz")


def test_holds_images_tells_images_from_models(tmp_path: Path) -> None:
    assert holds_images(write_folder(tmp_path / "faces", noise(1)))
    assert all(holds_images(tmp_path / name) for name in ("a.npy", "a.NPZ", "a.zip"))
    for name in ("config.json", "config.yaml"):
        (tmp_path / name[7:]).mkdir()
        (tmp_path / name[7:] / name).write_text("{}")
        assert not holds_images(tmp_path / name[7:])
    assert not holds_images(tmp_path / "nowhere")
    assert not holds_images(Path("someone/model"))
