"""The same images through every source give packs with the same pixels, labels and captions; sizes
and crops that all sources share."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Value
from datasets import Image as ImageType
from PIL import Image
from sources import pictures, png, write_mnist, write_parquet, write_shard
from test_cli import fails

from genmodels.cli import main
from genmodels.data import SOURCES, Packed, default_size, load_packed, open_data, pack
from genmodels.data.huggingface import Columns
from genmodels.data.joining import join
from genmodels.data.parts import Part

CLASSES = ["cat", "dog", "sea lion"]
SPLITS = {"train": range(0, 12), "valid": range(12, 16), "test": range(16, 18)}


def write_all(root: Path, size: int = 24) -> dict[str, tuple[str, Path]]:
    """Write 18 PNG images of 3 classes with captions as class folders, parquet and shards."""
    images = pictures(18, size)
    captions = ["file,caption"]
    for split, own in SPLITS.items():
        for i in own:
            path = root / "folder" / split / CLASSES[i % 3] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images[i])
            captions.append(f"{split}/{CLASSES[i % 3]}/{i:02d}.png,picture {i}")
        rows = {
            "image": [{"bytes": images[i], "path": f"{i:02d}.png"} for i in own],
            "label": [i % 3 for i in own],
            "text": [f"picture {i}" for i in own],
        }
        features = {"image": ImageType(), "label": ClassLabel(names=CLASSES), "text": Value("string")}
        write_parquet(root / "parquet" / f"{split}.parquet", rows, features)
        members: dict[str, bytes | str] = {}
        for i in own:
            members |= {f"{i:02d}.png": images[i], f"{i:02d}.cls": CLASSES[i % 3], f"{i:02d}.txt": f"picture {i}"}
        write_shard(root / "shards" / f"{split}-000.tar", members)
    (root / "folder" / "captions.csv").write_text("\n".join(captions) + "\n")
    sources = {"folder": "folder", "huggingface": "parquet", "webdataset": "shards"}
    return {name: (name, root / place) for name, place in sources.items()}


def by_name(packed: Packed) -> dict[str, tuple[bytes, int, str, tuple[str, ...]]]:
    assert packed.labels is not None and packed.text is not None
    return {
        name.rpartition("/")[2]: (pixels.tobytes(), int(split), packed.class_names[label], tuple(text))
        for name, pixels, split, label, text in zip(
            packed.names, packed.images, packed.splits, packed.labels, packed.text, strict=True
        )
    }


@pytest.mark.parametrize(("size", "crop"), [(16, None), (None, "16"), ("native", None), (32, "pad")])
def test_the_same_images_give_the_same_pack(tmp_path: Path, size: int | str | None, crop: str | None) -> None:
    packs = {}
    for name, root in write_all(tmp_path).values():
        columns = Columns(text="text") if name == "huggingface" else None
        asked = 16 if size is None else size
        packs[name] = load_packed(pack(name, root, tmp_path / "out" / name, asked, crop, columns=columns))
    folder, *others = packs.values()
    assert folder.class_names == tuple(CLASSES) and folder.size == {"native": 24, None: 16}.get(size, size)
    assert folder.counts() == {"train": 12, "valid": 4, "test": 2}
    for i, image in enumerate(pictures(18, 24)):
        pixels, split, label, text = by_name(folder)[f"{i:02d}.png"]
        assert (split, label, text) == ((i >= 12) + (i >= 16), CLASSES[i % 3], (f"picture {i}",))
        whole = np.asarray(Image.open(io.BytesIO(image)))
        if size == "native":
            assert pixels == whole.tobytes()
        elif crop == "16":
            assert pixels == whole[4:20, 4:20].tobytes()
        elif crop == "pad":
            assert pixels == np.pad(whole, ((4, 4), (4, 4), (0, 0))).tobytes()
    for other in others:
        assert other.class_names == folder.class_names
        assert by_name(other) == by_name(folder)


def test_the_same_images_through_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, root in write_all(tmp_path).values():
        extra = ["--text-column", "text"] if name == "huggingface" else []
        out = str(tmp_path / "out" / name)
        assert main(["data", "pack", name, "--root", str(root), "--out", out, "--size", "native", *extra]) == 0
        line = "12 train, 4 valid, 2 test; 24 px, crop centre, 3 classes, 0 attributes, 18 captions"
        assert line in capsys.readouterr().out
        assert main(["data", "show", out, "--out", str(tmp_path / f"{name}.png")]) == 0
    assert (tmp_path / "webdataset.png").read_bytes() == (tmp_path / "huggingface.png").read_bytes()


def test_a_second_call_uses_the_cache_until_a_file_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = write_all(tmp_path)
    for name, root in sources.values():
        first = pack(name, root, size=8)
        assert pack(name, root, size=8) == first
        assert pack(name, root, size=8, crop="pad") != first
    capsys.readouterr()
    _, root = sources["webdataset"]
    before = pack("webdataset", root, size=8)
    write_shard(root / "test-000.tar", {"16.png": png(np.zeros((24, 24, 3), np.uint8))})
    assert pack("webdataset", root, size=8) != before


def test_parts_of_every_source_are_joined_to_the_whole(tmp_path: Path) -> None:
    for name, root in write_all(tmp_path).values():
        whole = pack(name, root, tmp_path / "out" / name / "whole", 16)
        parts = [pack(name, root, tmp_path / "out" / name / str(i), 16, part=Part(i, 2)) for i in (1, 2)]
        joined = join(tmp_path / "out" / name / "joined", parts)
        for file in whole.iterdir():
            assert file.name == "checked" or file.read_bytes() == (joined / file.name).read_bytes(), file


def test_images_are_padded_or_made_smaller_but_never_larger(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide, small = rng.integers(0, 256, (20, 40, 3), np.uint8), rng.integers(0, 256, (9, 12, 3), np.uint8)
    for name, pixels in (("a", wide), ("b", small)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    packed = load_packed(pack("folder", tmp_path, tmp_path.parent / "out", 16, "pad"))
    images = dict(zip(packed.names, packed.images, strict=True))
    shrunk = np.asarray(Image.fromarray(wide).resize((16, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(images["a.png"], np.pad(shrunk, ((4, 4), (0, 0), (0, 0))))
    np.testing.assert_array_equal(images["b.png"], np.pad(small, ((3, 4), (2, 2), (0, 0))))
    assert packed.crop == "pad"

    native = load_packed(pack("folder", tmp_path, tmp_path.parent / "native", "native", "pad"))
    np.testing.assert_array_equal(native.images[list(native.names).index("a.png")][10:30], wide)


def test_native_size_needs_squares_of_one_size(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    Image.new("RGB", (12, 12)).save(tmp_path / "a.png")
    assert load_packed(pack("folder", tmp_path, tmp_path.parent / "one", "native")).size == 12
    Image.new("RGB", (16, 12)).save(tmp_path / "b.png")
    message = (
        r"--size native needs square images of one size, but a.png has 12 x 12 and b.png has 16 x 12 pixels: "
        r"choose a size, such as --size 64, or --crop pad"
    )
    with pytest.raises(ValueError, match=message):
        pack("folder", tmp_path, tmp_path.parent / "out", "native")
    assert load_packed(pack("folder", tmp_path, tmp_path.parent / "ten", "native", "10")).size == 10
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match="no usable image"):
        pack("folder", tmp_path, tmp_path.parent / "none", "native")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="size 4 is too small"):
        pack("folder", tmp_path, tmp_path.parent / "four", "native")


def test_settings_of_other_sources_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path)
    asked = ["--root", tmp_path, "--out", tmp_path / "out"]
    assert "leave out --image-column" in fails(capsys, 1, "data", "pack", "mnist", *asked, "--label-column", "x")
    message = "mnist has images of 28 px: choose at most that as --size, or --crop pad"
    assert fails(capsys, 1, "data", "pack", "mnist", *asked, "--size", "32") == message
    with pytest.raises(ValueError, match="cannot pack 'toyfaces': expected celeba, folder, mnist, "):
        pack("toyfaces", tmp_path)
    with pytest.raises(ValueError, match="unknown data 'cifar': expected toyfaces, celeba, .*cifar10, .*webdataset"):
        open_data("cifar")


def test_the_command_offers_every_source() -> None:
    import typing

    from genmodels.cli.data import pack as command

    hint = typing.get_type_hints(command)["data"]
    assert {*typing.get_args(hint)} == {*SOURCES}
    assert [default_size(name) for name in SOURCES] == [64, 64, 64, 28, 28, 32, 32, 64, 64]
