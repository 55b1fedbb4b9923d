"""Feature extraction: batches, checks, and the cache."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from genmodels.evaluation import features
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images


def noise(n: int = 7, size: int = 8, seed: int = 0) -> Images:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)
    return Images(pixels, "noise.npy")


class Counting:
    """Linear network that records its batches."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.uint8
        assert torch.is_inference_mode_enabled()
        self.seen.append(tuple(pixels.shape))
        return pixels.double()[:, :, 0, :2].flatten(1)  # the first two pixels of each colour


def expected(images: Images) -> np.ndarray:
    return images.pixels[:, 0, :2].transpose(0, 2, 1).reshape(len(images), 6).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path))
    return tmp_path / "features"


def only_file(cache: Path) -> Path:
    (file,) = (path for path in cache.rglob("*") if path.is_file())
    return file


def test_batches_are_channels_first_and_features_float32(cache: Path) -> None:
    network, images = Counting(), noise()
    images.pixels.flags.writeable = False  # as in a read-only memory map
    found = extract(images, Extractor("mine", network), batch_size=3)
    np.testing.assert_array_equal(found, expected(images))
    assert found.dtype == np.float32
    assert network.seen == [(3, 3, 8, 8), (3, 3, 8, 8), (1, 3, 8, 8)]
    assert not cache.exists()  # the weights have no known hash


def test_a_second_call_is_answered_from_the_cache(cache: Path) -> None:
    network, images = Counting(), noise()
    mine = Extractor("mine", network, weights="0123456789abcdef", resize="none")
    first = extract(images, mine)
    again = extract(Images(images.pixels.copy(), "another name"), mine, batch_size=2)
    np.testing.assert_array_equal(again, first)
    assert len(network.seen) == 1
    file = only_file(cache)
    assert file.parent.name.startswith("mine-0123456789abcdef-")
    assert file.name.startswith(images.fingerprint)
    with safe_open(file, "numpy") as kept:
        assert kept.metadata()["count"] == "7"
        assert kept.metadata()["shape"] == "(7, 6)"
    extract(images, mine, cached=False)
    assert len(network.seen) == 2


def test_other_pixels_weights_names_or_resizing_are_computed_anew(cache: Path) -> None:
    network, images = Counting(), noise()
    mine = Extractor("mine", network, weights="0" * 16)
    extract(images, mine)
    changed = images.pixels.copy()
    changed[6, 0, 0, 0] ^= 1
    np.testing.assert_array_equal(extract(Images(changed, "noise.npy"), mine)[6, 0], changed[6, 0, 0, 0])
    for other in (replace(mine, weights="1" * 16), replace(mine, name="other"), replace(mine, resize="to 4 px")):
        extract(images, other)
    assert len(network.seen) == 5
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 5


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "text"])
def test_a_damaged_file_is_said_and_replaced(cache: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    network, images = Counting(), noise()
    mine = Extractor("mine", network, weights="0" * 16)
    extract(images, mine)
    file = only_file(cache)
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    harm = {"truncated": bytes(whole[:-40]), "empty": b"", "one bit": bytes(whole), "text": b"<html>" * 100}
    file.write_bytes(harm[damage])
    for _ in range(2):
        np.testing.assert_array_equal(extract(images, mine), expected(images))
    assert len(network.seen) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(str(file))
    assert lines[0].endswith("recomputing it")


def test_features_of_another_definition_are_computed_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, images = Counting(), noise()
    mine = Extractor("mine", network, weights="0" * 16)
    monkeypatch.setattr(features, "DEFINITIONS", 0)
    extract(images, mine)
    monkeypatch.undo()
    monkeypatch.setenv("GENMODELS_CACHE", str(cache.parent))
    file = only_file(cache)
    for _ in range(2):
        np.testing.assert_array_equal(extract(images, mine), expected(images))
    assert len(network.seen) == 2
    assert capsys.readouterr().err.splitlines() == [f"recomputing {file}: its definition changed"]


def test_a_file_of_other_images_is_not_believed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, images, others = Counting(), noise(), noise(seed=1)
    mine = Extractor("mine", network, weights="0" * 16)
    extract(others, mine)
    file = only_file(cache)
    file.rename(file.with_name(file.name.replace(others.fingerprint, images.fingerprint)))
    np.testing.assert_array_equal(extract(images, mine), expected(images))
    assert "is damaged (its content does not match its name)" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "file"))
    mine, images = Extractor("mine", Counting(), weights="0" * 16), noise()
    np.testing.assert_array_equal(extract(images, mine), expected(images))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "features are not cached" in lines[0] and "GENMODELS_CACHE" in lines[0]


def test_a_full_disk_leaves_nothing_behind(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(tensors: dict[str, np.ndarray], file: Path, metadata: dict[str, str]) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "save_file", full)
    mine, images = Extractor("mine", Counting(), weights="0" * 16), noise()
    np.testing.assert_array_equal(extract(images, mine), expected(images))
    assert "the disk is full" in capsys.readouterr().err
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_many_at_once_write_one_whole_file(cache: Path) -> None:
    network, images = Counting(), noise(200)
    mine = Extractor("mine", network, weights="0" * 16)
    computed, place = expected(images), features.cache_place(mine)
    assert place is not None

    def work(_: int) -> None:
        features._write(place / f"{images.fingerprint}.safetensors", computed, images, mine)
        np.testing.assert_array_equal(extract(images, mine), computed)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert network.seen == []
    assert only_file(cache).suffix == ".safetensors"


def test_a_name_cannot_leave_the_cache(cache: Path) -> None:
    mine = Extractor("../../up/mine", Counting(), weights="0" * 16)
    extract(noise(), mine)
    assert only_file(cache).parent.parent == cache
    assert os.listdir(cache.parent) == ["features"]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x: x.float(), r"extractor mine: expected features of shape \(4, D\) .*got shape \(4, 3, 8, 8\)"),
        (lambda x: x.float().flatten(1)[:-1], r"expected features of shape \(4, D\) .*got shape \(3, 192\)"),
        (lambda x: [1.0] * len(x), "got list"),
        (lambda x: torch.zeros(len(x), len(x)), "the number of its features differs between batches"),
    ],
)
def test_networks_that_give_no_features_are_refused(network: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract(noise(), Extractor("mine", network), batch_size=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_image(value: float, cache: Path) -> None:
    images = noise()

    def network(pixels: Tensor) -> Tensor:
        found = pixels.float().flatten(1)
        found[(pixels == torch.tensor(images.pixels[5]).permute(2, 0, 1)).all((1, 2, 3)), 3] = value
        return found

    with pytest.raises(ValueError, match="extractor mine: the features of image 5 of noise.npy are not finite"):
        extract(images, Extractor("mine", network, weights="0" * 16), batch_size=3)
    assert not cache.exists()


def test_precision_of_the_caller_is_suspended_and_restored() -> None:
    found = []

    def network(pixels: Tensor) -> Tensor:
        found.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return torch.nn.functional.linear(pixels.flatten(1).float(), torch.ones(2, 192) / 3)

    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            values = extract(noise(1), Extractor("mine", network))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found == [("highest", False)]
    assert values[0, 0] == pytest.approx(noise(1).pixels.sum() / 3, rel=1e-6)  # bfloat16 would be 4e-3 off
