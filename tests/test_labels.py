"""Labels: from class folders and labels.csv into packs, and from packs into class-conditional models."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import genmodels
from genmodels.cli import main
from genmodels.data import export, load_packed, pack
from genmodels.data.batches import BatchReader
from genmodels.data.classes import check_classes, number_classes
from genmodels.data.packed import Packed

ZOO = ("cat", "dog", "sea lion")


def write_zoo(root: Path, classes: tuple[str, ...] = ZOO, each: int = 4) -> Path:
    """Write `each` images of 16 px per class; the red value of an image is 20 times its class."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = np.full((16, 16, 3), (20 * number, 7 * i, 99), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}-{i}.png")
    return root


def labels_by_red(data: Packed) -> dict[int, set[int]]:
    assert data.labels is not None
    red = data.images[:, 0, 0, 0]
    return {int(value): set(data.labels[red == value].tolist()) for value in np.unique(red)}


def test_folders_of_one_class_each_are_labels(tmp_path: Path) -> None:
    data = load_packed(pack("folder", write_zoo(tmp_path / "zoo"), tmp_path / "out", 16))
    assert data.class_names == ZOO
    assert labels_by_red(data) == {0: {0}, 20: {1}, 40: {2}}
    assert data.labels is not None and data.labels.dtype == np.int32
    assert "3 classes" in data.describe()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["notes"] == [
        "classes are the folders cat, dog, sea lion"
    ]


def test_classes_lie_in_the_folders_of_splits(tmp_path: Path) -> None:
    for split, classes in (("train", ZOO), ("val", ZOO[:2])):
        write_zoo(tmp_path / "zoo" / split, classes)
    data = load_packed(pack("folder", tmp_path / "zoo", tmp_path / "out", 16))
    assert data.class_names == ZOO
    assert data.counts() == {"train": 12, "valid": 8}
    assert labels_by_red(data.split("valid")) == {0: {0}, 20: {1}}


def test_folders_that_do_not_hold_every_image_are_not_classes(tmp_path: Path) -> None:
    root = write_zoo(tmp_path / "zoo")
    (root / "README.txt").write_text("not an image")
    assert load_packed(pack("folder", root, tmp_path / "a", 16)).class_names == ZOO
    Image.new("RGB", (16, 16)).save(root / "outside.png")
    data = load_packed(pack("folder", root, tmp_path / "b", 16))
    assert data.labels is None and data.class_names == ()
    assert "folders are not read as classes, because 1 images are in none of them" in data.manifest["notes"]


def test_labels_in_a_table_take_precedence_over_folders(tmp_path: Path) -> None:
    root = write_zoo(tmp_path / "zoo")
    rows = [f"{name}/{number}-{i}.png,{10 - number}" for number, name in enumerate(ZOO) for i in range(4)]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows[:-1]]))
    data = load_packed(pack("folder", root, tmp_path / "out", 16))
    assert data.class_names == ("8", "9", "10")  # in the order of numbers
    assert labels_by_red(data) == {0: {2}, 20: {1}, 40: {0, -1}}
    assert any("1 of 12 files have no row" in note for note in data.manifest["notes"])


def test_labels_survive_an_export(tmp_path: Path) -> None:
    data = load_packed(pack("folder", write_zoo(tmp_path / "zoo"), tmp_path / "a", 16))
    again = load_packed(pack("folder", export(data, tmp_path / "zoo.zip", quality=100), tmp_path / "b", 16))
    assert again.class_names == ZOO
    assert again.labels is not None and data.labels is not None
    assert dict(zip(again.names, again.labels, strict=True)) == {
        f"{name}.jpg": label for name, label in zip(data.names, data.labels, strict=True)
    }


def test_a_label_changes_the_fingerprint(tmp_path: Path) -> None:
    root = write_zoo(tmp_path / "zoo")
    before = load_packed(pack("folder", root, tmp_path / "a", 16))
    (root / "cat").rename(root / "ant")
    assert load_packed(pack("folder", root, tmp_path / "b", 16)).fingerprint != before.fingerprint


def test_a_class_folder_without_images_is_refused(tmp_path: Path) -> None:
    root = write_zoo(tmp_path / "zoo")
    (root / "bird").mkdir()
    with pytest.raises(ValueError, match="the class folder 'bird' holds no image"):
        pack("folder", root, tmp_path / "out", 16)
    (root / "bird" / "notes.txt").write_text("later")
    with pytest.raises(ValueError, match="the class folder 'bird' holds no image"):
        pack("folder", root, tmp_path / "out", 16)
    (root / "bird" / "broken.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no image of the class 'bird' can be read"):
        pack("folder", root, tmp_path / "out", 16)


def test_one_class_beside_an_empty_folder_is_refused_too(tmp_path: Path) -> None:
    root = write_zoo(tmp_path / "zoo", ("cat",))
    (root / "val").mkdir()  # a split, not a class
    assert load_packed(pack("folder", root, tmp_path / "a", 16)).labels is None
    (root / "dog").mkdir()
    with pytest.raises(ValueError, match="the class folder 'dog' holds no image"):
        pack("folder", root, tmp_path / "b", 16)
    (root / "1.png").write_bytes((root / "cat" / "0-1.png").read_bytes())  # so folders are no classes
    assert load_packed(pack("folder", root, tmp_path / "c", 16)).labels is None


def test_composed_and_decomposed_characters_are_the_same_class() -> None:
    names, numbers = number_classes(["caf\u00e9", "cafe\u0301", "bar"], "zoo")
    assert names == ("bar", "caf\u00e9")
    assert numbers.tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="have the same name: rename one"):
        check_classes(["caf\u00e9", "cafe\u0301"], "zoo")
    with pytest.raises(ValueError, match="differ only in upper and lower case"):
        check_classes(["CAF\u00c9", "cafe\u0301"], "zoo")


def test_classes_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the classes 'Cat' and 'cat' differ only in upper and lower case"):
        number_classes(["cat", "dog", None, "Cat"], "zoo")
    with zipfile.ZipFile(tmp_path / "zoo.zip", "w") as archive:  # also where the file system ignores case
        for name in ("Cat/1.png", "cat/2.png"):
            archive.writestr(name, b"x")
    with pytest.raises(ValueError, match=r"zoo\.zip: the classes 'Cat' and 'cat' differ only in"):
        pack("folder", tmp_path / "zoo.zip", tmp_path / "out", 16)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\ncat/0-0.png,cat\ncat/gone.png,cat", r"labels\.csv: 1 of 2 rows have no file .*gone\.png"),
        ("file,label\ncat/0-0.png,cat\ncat/0-0.png,dog", r"line 3: cat/0-0\.png was listed in line 2 already"),
        ("file,species\ncat/0-0.png,cat", "expected the columns file and label, got file, species"),
        ("file,label\ncat/0-0.png,", "no image has a label"),
    ],
)
def test_wrong_tables_of_labels_are_refused(tmp_path: Path, table: str, message: str) -> None:
    root = write_zoo(tmp_path / "zoo")
    (root / "labels.csv").write_text(table)
    with pytest.raises(ValueError, match=message) as error:
        pack("folder", root, tmp_path / "out", 16)
    assert "\n" not in str(error.value)


def test_batches_have_the_labels_of_their_images(tmp_path: Path) -> None:
    data = load_packed(pack("folder", write_zoo(tmp_path / "zoo"), tmp_path / "out", 16))
    (batch,) = BatchReader(data, 6, seed=0).read(0, 0.0)
    labels = batch.condition.labels
    assert labels is not None and labels.dtype == torch.int64
    red = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().long()
    assert torch.equal(labels, red // 20)


BLOCKS = [f"--model.transformer.{x}" for x in ("width=16", "depth=1", "heads=2")]
QUICK = ["--data", "packed", "--steps", "2", "--batch-size", "4", "--output", "run", "--track", "none"]
TINY = {
    "autoregressive": ["--model.levels", "4", *BLOCKS],
    "gan": [
        "--model.channels",
        "16",
        "16",
        "--model.group",
        "8",
        "--model.blocks",
        "1",
        "--model.latent-dim",
        "8",
        "--model.principal",
        "0",
    ],
    "unet": ["--model.channels", "32", "32", "32", "--model.blocks", "1", "--model.gaussian", "0"],
    "dit": ["--model.gaussian", "0", *BLOCKS],
}


@pytest.mark.parametrize("family", TINY)
def test_families_are_trained_and_sampled_by_class(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("genmodels.training.show.GRID", 4)
    monkeypatch.chdir(tmp_path)
    pack("folder", write_zoo(tmp_path / "zoo" / "train"), Path("packed"), 8)
    command = ["train", family, *QUICK, *TINY[family], "--model.condition.classes", "3", "--mixed-precision", "no"]
    assert main(command) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["model"]["condition"]["class_names"] == list(ZOO)
    model = genmodels.load("run")
    assert model.conditions.class_names == ZOO
    with torch.no_grad():  # two steps leave the zero-initialised outputs near zero
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    lion, cat = (model.generate(2, condition={"label": label}) for label in ("sea lion", 0))
    assert not torch.equal(lion, cat)
    assert torch.equal(lion, model.generate(2, condition={"label": "2"}))
    null = model.generate(2)
    guided = [model.generate(2, condition={"label": 2}, guidance=scale) for scale in (0.0, 1.0, 2.0)]
    torch.testing.assert_close(guided[0], null, atol=1e-4, rtol=0)
    torch.testing.assert_close(guided[1], lion, atol=1e-4, rtol=0)
    capsys.readouterr()
    assert main(["train", family, "--help"]) == 0
    assert "--model.condition.classes INT" in capsys.readouterr().out
    assert main(["sample", "run", "--n", "2", "--label", "sea lion", "--out", "a.png"]) == 0
    assert main(["sample", "run", "--n", "2", "--label", "seal", "--out", "b.png"]) == 2
    assert "its classes are cat, dog, sea lion" in " ".join(capsys.readouterr().err.split())


def test_a_model_and_data_with_other_classes_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pack("folder", write_zoo(tmp_path / "zoo" / "train"), Path("packed"), 8)
    assert main(["train", "dit", *QUICK, *TINY["dit"], "--model.condition.classes", "10"]) == 1
    assert "has 3 classes, not 10: use --model.condition.classes 3" in " ".join(capsys.readouterr().err.split())
