"""Sources CelebA and folder: images, labels and crop."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genmodels.data import download_celeba, load_packed, pack
from genmodels.data.celeba import celeba_source
from genmodels.data.folder import folder_source

NAMES = ["Smiling", "Eyeglasses", "Young"]
IDS = (3, 7, 162_771, 182_638, 202_599)


def aligned(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (218, 178, 3), dtype=np.uint8))


def write_celeba(root: Path, identities: bool = True) -> Path:
    """Write five images in the official layout. The label files list a sixth, which is missing."""
    (root / "img_align_celeba").mkdir(parents=True)
    listed = sorted((*IDS, 9))
    for number in IDS:
        aligned(number).save(root / "img_align_celeba" / f"{number:06d}.jpg", quality=95)
    rows = [f"{n:06d}.jpg  {1 if n % 2 else -1} -1  {1 if n > 9 else -1}" for n in listed]
    (root / "list_attr_celeba.txt").write_text(f"{len(rows)}\n{' '.join(NAMES)} \n" + "\n".join(rows) + "\n")
    parts = [f"{n:06d}.jpg {(n > 162_770) + (n > 182_637)}" for n in listed]
    (root / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    if identities:
        (root / "identity_CelebA.txt").write_text("".join(f"{n:06d}.jpg {n + 5}\n" for n in listed))
    return root


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (None, (0, 20, 178, 198)),
        ("178", (0, 20, 178, 198)),
        ("148", (15, 35, 163, 183)),
        ("140", (19, 39, 159, 179)),
        ("128", (25, 57, 153, 185)),
    ],
)
def test_celeba_crops_are_the_published_boxes(tmp_path: Path, crop: str | None, box: tuple[int, int, int, int]):
    root = write_celeba(tmp_path / "celeba")
    packed = load_packed(pack("celeba", root, tmp_path / "out", 32, crop))
    assert packed.crop == (crop or "178")
    for name, pixels in zip(packed.names, packed.images, strict=True):
        with Image.open(root / "img_align_celeba" / name) as image:
            reference = image.crop(box).resize((32, 32), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(pixels, np.asarray(reference))


def test_celeba_labels_stay_with_their_images(tmp_path: Path):
    packed = load_packed(pack("celeba", write_celeba(tmp_path / "celeba"), tmp_path / "out", 16))
    assert packed.source == "celeba (5 of 202,599 images)"
    assert list(packed.names) == [f"{n:06d}.jpg" for n in IDS]
    assert packed.attribute_names == tuple(NAMES)
    assert packed.attributes.tolist() == [[1, -1, -1], [1, -1, -1], [1, -1, 1], [-1, -1, 1], [1, -1, 1]]
    assert packed.identities is not None
    assert packed.identities.tolist() == [n + 5 for n in IDS]
    assert packed.counts() == {"train": 2, "valid": 1, "test": 2}
    assert list(packed.split("test").names) == ["182638.jpg", "202599.jpg"]


def test_celeba_zip_and_torchvision_folder_read_alike(tmp_path: Path):
    root = write_celeba(tmp_path / "data" / "celeba", identities=False)
    folder = load_packed(pack("celeba", root, tmp_path / "a", 16))
    assert folder.identities is None
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as archive:
        for path in (root / "img_align_celeba").iterdir():
            archive.write(path, f"img_align_celeba/{path.name}")
    (root / "img_align_celeba").rename(tmp_path / "moved")
    zipped = load_packed(pack("celeba", tmp_path / "data", tmp_path / "b", 16))
    assert zipped.fingerprint == folder.fingerprint
    assert zipped.manifest["skipped"] == []


def test_celeba_skips_what_is_not_aligned_or_not_listed(tmp_path: Path):
    root = write_celeba(tmp_path / "celeba")
    picture = Image.new("RGB", (100, 120))
    picture.save(root / "img_align_celeba" / "000003.jpg")
    Image.new("RGB", (400, 500)).save(root / "img_align_celeba" / "000007.jpg")
    picture.save(root / "img_align_celeba" / "cat.jpg")
    packed = load_packed(pack("celeba", root, tmp_path / "out", 16))
    assert packed.manifest["skipped"] == [
        ["cat.jpg", "not in list_eval_partition.txt"],
        ["000003.jpg", "smaller than the crop: 100 x 120 pixels, an aligned CelebA image has 178 x 218"],
        ["000007.jpg", "400 x 500 pixels, an aligned CelebA image has 178 x 218"],
    ]
    assert packed.counts() == {"valid": 1, "test": 2}
    assert packed.attributes[0].tolist() == [1, -1, 1]  # 162771, though two before it were dropped
    with pytest.raises(ValueError, match=r"the 'train' split of celeba .* is empty: it holds 1 valid, 2 test"):
        packed.split("train")


def test_celeba_errors_say_how_to_place_the_files(tmp_path: Path):
    def refused(message: str, size: int = 64, crop: str | None = None) -> None:
        with pytest.raises((ValueError, OSError), match=message) as caught:
            pack("celeba", root, tmp_path / "out", size, crop)
        assert "\n" not in str(caught.value)

    root = tmp_path / "absent"
    refused("absent: no such folder; make it and place img_align_celeba.zip")
    root = tmp_path
    refused("holds neither img_align_celeba/ nor img_align_celeba.zip: place")
    root = write_celeba(tmp_path / "celeba")
    refused("size 129 is larger than the crop '128'", 129, "128")
    refused("unknown crop '99' for celeba; known: 178, 148, 140, 128", crop="99")
    attributes = (root / "list_attr_celeba.txt").read_text()
    (root / "list_attr_celeba.txt").write_text(attributes.replace("-1 -1", "-1", 1))
    refused(r"list_attr_celeba.txt, line 7: expected a file name and 3 integers")
    (root / "list_attr_celeba.txt").write_text(attributes.replace("-1", "-7"))
    refused("an attribute is neither -1 nor 1")
    (root / "list_attr_celeba.txt").unlink()
    refused("celeba lacks list_attr_celeba.txt: place")
    (root / "list_attr_celeba.txt").write_text(attributes)
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    refused("holds none of the images that list_eval_partition.txt lists")
    for path in (root / "img_align_celeba").iterdir():
        path.unlink()
    (root / "img_align_celeba").rmdir()
    (root / "img_align_celeba.zip").write_text("<!DOCTYPE html>")
    refused("not a complete zip archive .*DOCTYPE html.*download it again")


def test_celeba_download_failures_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub
    import torchvision

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Too many users have viewed\nor downloaded this file recently")

    monkeypatch.setattr(torchvision.datasets, "CelebA", fails)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    for via in ("torchvision", "hub"):
        with pytest.raises(
            OSError, match=r"Too many users have viewed or.*instead, place img_align_celeba.zip"
        ) as caught:
            download_celeba(via, tmp_path, "someone/celeba")  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="--repo user/name"):
        download_celeba("hub", tmp_path)

    def arrives(repo_id: str, *, local_dir: Path, **_: object) -> None:
        assert repo_id == "someone/celeba"
        write_celeba(local_dir / "celeba")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", arrives)
    assert celeba_source(download_celeba("hub", tmp_path, "someone/celeba")).attribute_names == tuple(NAMES)


def test_folder_splits_depend_on_the_name_alone(tmp_path: Path):
    for i in range(400):
        (tmp_path / f"{i}.png").touch()
    source = folder_source(tmp_path)
    whole = dict(zip(source.names, source.splits.tolist(), strict=True))
    assert np.bincount(source.splits, minlength=3).tolist() == [361, 22, 17]
    for i in range(0, 400, 2):
        (tmp_path / f"{i}.png").unlink()
    fewer = folder_source(tmp_path)
    assert {name: whole[name] for name in fewer.names} == dict(zip(fewer.names, fewer.splits.tolist(), strict=True))


def test_folder_reads_attributes_csv(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for name in ("a/one.png", "two.png", "three.png", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "attributes.csv").write_text(
        "file,Smiling,split,Young\none.png,1,test,-1\ntwo.png,,valid,0\ngone.png,1,,1\n"
    )
    source = folder_source(tmp_path)
    assert source.names == ["a/one.png", "three.png", "two.png"]
    assert source.attribute_names == ("Smiling", "Young")
    assert source.attributes.tolist() == [[1, -1], [0, 0], [0, 0]]
    assert source.splits.tolist()[::2] == [2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header line"),
        ("file,A,A\none.png,1,1\n", "occurs twice"),
        ("file,A\none.png,1,1\n", "line 2: 3 columns, the header has 2"),
        ("file,A\none.png,2\n", "line 2: A is '2', expected -1"),
        ("file,A\none.png,yes\n", "line 2: A is 'yes'"),
        ("file,split\none.png,dev\n", "split 'dev', expected train, val, valid, validation, test"),
        ("file,A\nother.png,1\n", "1 of 1 rows have no file .such as other.png. and 3 of 3 files have no row"),
        ("file,A\ntwo.png,1\n", "line 2: two.png is the name of 2 files: give the relative path"),
    ],
)
def test_folder_refuses_labels_that_do_not_fit(tmp_path: Path, text: str, message: str):
    for name in ("one.png", "a/two.png", "b/two.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "attributes.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        folder_source(tmp_path)


def test_a_link_back_up_the_tree_is_not_followed_for_ever(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.png").touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert folder_source(tmp_path).names == ["a/one.png"]
