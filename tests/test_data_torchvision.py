"""MNIST and CIFAR in torchvision's layout: pixels, labels and splits; damaged and hostile files."""

from __future__ import annotations

import os
import pickle
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sources import CIFAR10, write_cifar10, write_mnist

from genmodels import load
from genmodels.cli import main
from genmodels.data import load_packed, open_data, pack
from genmodels.data.pickles import read_pickle
from genmodels.data.torchvision_sets import SETS


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_cifar10_keeps_pixels_labels_and_splits(tmp_path: Path) -> None:
    images, labels = write_cifar10(tmp_path / "root")
    packed = load_packed(pack("cifar10", tmp_path / "root", tmp_path / "out"))
    np.testing.assert_array_equal(packed.images, images)
    np.testing.assert_array_equal(packed.labels, labels)
    assert packed.class_names == tuple(CIFAR10)
    assert packed.counts() == {"train": 200, "valid": 40}
    assert (packed.size, packed.names[0], packed.names[200]) == (32, "train/00000", "test/00000")


def test_mnist_becomes_three_equal_channels(tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path)
    packed = open_data("mnist", tmp_path)
    np.testing.assert_array_equal(packed.images, images[..., None].repeat(3, -1))
    np.testing.assert_array_equal(packed.labels, labels)
    assert packed.class_names[:2] == ("0 - zero", "1 - one")
    assert packed.counts() == {"train": 120, "valid": 40}
    assert packed.manifest["converted"] == {"grey": 160}
    assert packed.origin is not None and packed.origin.data == "mnist"


def test_images_are_padded_without_scaling(tmp_path: Path) -> None:
    images, _ = write_mnist(tmp_path, "FashionMNIST")
    packed = load_packed(pack("fashion-mnist", tmp_path, tmp_path / "out", 32, "pad"))
    assert packed.class_names[0] == "T-shirt/top"
    np.testing.assert_array_equal(packed.images[:, 2:30, 2:30], images[..., None].repeat(3, -1))
    assert packed.images.sum() == 3 * images.sum(dtype=np.int64)  # the border is black


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"class {i:03d}" for i in range(100)]
    for name, count in (("train", 30), ("test", 10)):
        content = {
            "fine_labels": list(range(count)),
            "coarse_labels": [0] * count,
            "data": np.zeros((count, 3072), np.uint8),
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["a"]}))
    packed = open_data("cifar100", tmp_path)
    assert packed.labels is not None and packed.labels.tolist() == [*range(30), *range(10)]
    assert packed.class_names == tuple(names)


def test_a_file_of_python_2_is_read(tmp_path: Path) -> None:
    """The files of CIFAR were written by Python 2, with bytes as text."""
    pixels = np.arange(200, 206, dtype=np.uint8).reshape(2, 3)
    # GLOBAL, an empty array, its state with the bytes as SHORT_BINSTRING
    content = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x06" + pixels.tobytes() + b"tbs."
    )
    (tmp_path / "batch").write_bytes(content)
    np.testing.assert_array_equal(read_pickle(tmp_path / "batch")["data"], pixels)
    np.testing.assert_array_equal(pickle.loads(content, encoding="latin1")["data"], pixels)


class Attack:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_not_executed(tmp_path: Path, protocol: int) -> None:
    write_cifar10(tmp_path)
    marker = tmp_path / "executed"
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({"data": Attack(marker), "labels": []}, protocol=protocol))
    with pytest.raises(
        ValueError, match=rf"{batch} is not a file of CIFAR \(it calls .*system, which is not executed"
    ) as error:
        pack("cifar10", tmp_path, tmp_path / "out")
    assert not marker.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"garbage",
        pickle.dumps([1]),
        pickle.dumps({"data": np.zeros((2, 3072), np.float32)}, protocol=2),
        pickle.dumps({"data": np.array([object()])}, protocol=2),
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x04\x8e" + b"\xff" * 8,
        b"c_codecs\nencode\n(N}S'__defaults__'\n(S'utf16'\ntstb.",  # sets the defaults of a function
        b"cnumpy\nndarray\n}S'array'\nNsb.",  # sets an attribute of a class
    ],
)
def test_damaged_pickles_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"batch is not a file of CIFAR \(.*\): it is damaged; download it again"
    ) as error:
        read_pickle(tmp_path / "batch")
    assert "\n" not in str(error.value)


def test_truncated_and_inconsistent_files_are_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar")
    batch = tmp_path / "cifar" / "cifar-10-batches-py" / "test_batch"
    whole = batch.read_bytes()
    batch.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"test_batch .*damaged; download it again"):
        open_data("cifar10", tmp_path / "cifar")
    batch.write_bytes(pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [1, 2]}))
    with pytest.raises(ValueError, match=r"test_batch has 2 labels for 3 images"):
        open_data("cifar10", tmp_path / "cifar")
    batch.write_bytes(pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}))
    with pytest.raises(ValueError, match=r"cifar10 has 10 classes, and a label is 10"):
        open_data("cifar10", tmp_path / "cifar")
    batch.write_bytes(pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [-3]}))
    with pytest.raises(ValueError, match=r"cifar10 has 10 classes, and a label is -3; download it again"):
        open_data("cifar10", tmp_path / "cifar")
    with pytest.raises(ValueError, match=r"cifar10 has no tables of labels: leave out --allow-unmatched"):
        pack("cifar10", tmp_path / "cifar", tmp_path / "out", allow_unmatched=True)

    write_mnist(tmp_path / "mnist")
    images = tmp_path / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    for content in (whole[:-5], whole[:3], b"", struct.pack(">IIII", 0x803, 1 << 31, 28, 28) + b"\0"):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte or train-labels-idx1-ubyte is damaged") as error:
            open_data("mnist", tmp_path / "mnist")
        assert "\n" not in str(error.value)


def test_missing_files_are_listed_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"cifar10 cannot be downloaded .*no network.*; place data_batch_1, .*, "
        rf"batches.meta in {tmp_path}/none/cifar-10-batches-py$",
    ):
        pack("cifar10", tmp_path / "none")
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 4 files of mnist are missing; place t10k-labels-idx1-ubyte in .*/MNIST/raw"
    ):
        pack("mnist", tmp_path)


def test_torchvision_downloads_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    asked = []

    class Answer:
        def close(self) -> None:
            pass

    def download(self: Any) -> None:
        write_mnist(Path(self.root))

    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: asked.append(request.full_url) or Answer())
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    assert len(open_data("mnist", tmp_path)) == 160
    assert asked == [torchvision.datasets.MNIST.mirrors[0] + "train-images-idx3-ubyte.gz"]


def test_the_sets_are_those_of_torchvision() -> None:
    import torchvision.datasets

    for name, side in SETS.values():
        assert (side, getattr(torchvision.datasets, name).__name__) == (32 if "CIFAR" in name else 28, name)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_from_files_to_samples_of_a_class(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmodels.training.show.GRID", 4)
    images, _ = write_cifar10(tmp_path / "root") if name == "cifar10" else write_mnist(tmp_path / "root")
    packed, run, grid = tmp_path / "packed", tmp_path / "run", tmp_path / "grid.png"
    size = ["--size", "32", "--crop", "pad"] if name == "mnist" else []
    assert main(["data", "pack", name, "--root", str(tmp_path / "root"), "--out", str(packed), *size]) == 0
    assert f"{name} ({len(images)} images)" in capfd.readouterr().out
    small = ["--model.transformer.width", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]
    small += ["--model.condition.classes", "10", "--batch-size", "8", "--steps", "3", "--model.patch", "4"]
    assert main(["train", "dit", "--data", str(packed), "--output", str(run), *small]) == 0
    model = load(run)
    assert model.conditions.class_names == load_packed(packed).class_names
    label = model.conditions.class_names[3]
    assert main(["sample", str(run), "--n", "4", "--label", label, "--out", str(grid)]) == 0
    assert Image.open(grid).size[0] >= 32
    with pytest.raises(ValueError, match="does not know it"):
        model.generate(1, condition={"label": "sea lion"})


def test_a_file_of_cifar_without_images_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path, each=1)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_2 does not hold images of 32 x 32 pixels"):
        open_data("cifar10", tmp_path)
