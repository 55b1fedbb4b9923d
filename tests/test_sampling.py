"""Sampling: from seeds to images, grids and files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from ranks import run_twice
from tiny_model import Asked, AskedConfig, OnlySamples, Tiny, TinyConfig

from genmodels import pictures, sampling, stopping
from genmodels.candidates import BestOf
from genmodels.conditions import Condition
from genmodels.pictures import to_uint8


def test_to_uint8_rounds_and_clamps() -> None:
    levels = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5, 100 / 127.5 - 1, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1])
    images = levels.reshape(8, 1, 1, 1).expand(8, 3, 2, 4)
    result = to_uint8(images)
    assert result.shape == (8, 2, 4, 3)
    assert result.dtype == np.uint8
    # 0.0 lies between two levels, 127 and 128; round-half-even takes 128
    assert result[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255, 100, 100, 101]


def test_sample_is_generate_whatever_the_batch_size() -> None:
    model = Tiny(TinyConfig())
    whole = sampling.sample(model, 5, seed=3, steps=3, progress=False)
    parts = sampling.sample(model, 5, seed=3, steps=3, batch_size=2, progress=False)
    assert np.array_equal(whole, to_uint8(model.generate(5, seed=3, steps=3)))
    assert np.array_equal(whole, parts)
    assert model.training  # the mode is restored


def test_long_sampling_says_how_far_it_is_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Tiny(TinyConfig())
    sampling.sample(model, 3, batch_size=1)
    assert capfd.readouterr().err == ""  # it took less than 10 seconds
    monkeypatch.setattr(stopping, "QUIET", 0.0)
    sampling.sample(model, 3, batch_size=1)
    assert re.search(r"sampling: +0%.* 0/3 .*\r.*3/3", capfd.readouterr().err, re.DOTALL)
    sampling.sample(model, 3, batch_size=1, progress=False)
    assert capfd.readouterr().err == ""


def test_sample_gives_each_image_its_condition() -> None:
    wanted = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    model = Asked(AskedConfig())
    images = sampling.sample(model, 5, condition=Condition(wanted), batch_size=2, progress=False)
    assert np.array_equal(images, to_uint8(model.generate(5, condition=Condition(wanted))))
    assert not np.array_equal(images, sampling.sample(model, 5, progress=False))


def test_a_dict_is_the_condition_of_every_image() -> None:
    model = Asked(AskedConfig())
    rows = Condition(torch.tensor([[1.0, -1.0]]).expand(3, 2))
    asked = {"Smiling": True, "Eyeglasses": "no"}
    expected = to_uint8(model.generate(3, condition=rows))
    assert np.array_equal(sampling.sample(model, 3, condition=asked, progress=False), expected)
    assert np.array_equal(to_uint8(model.generate(3, condition=asked)), expected)
    with pytest.raises(ValueError, match="unknown attribute 'Beard'"):
        sampling.sample(model, 3, condition={"Beard": True})
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.generate(3, batch_size=0)


def test_sample_refuses() -> None:
    model = Tiny(TinyConfig())
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sampling.sample(model, 0)
    with pytest.raises(ValueError, match="'top_k' for tiny; known: temperature, latents, steps"):
        sampling.sample(model, 1, top_k=3)


def test_the_best_candidate_is_kept_and_the_first_of_equals() -> None:
    drawn = np.array([[[1], [5]], [[4], [5]], [[2], [3]]], np.uint8)  # (3 candidates, 2 images, 1)
    asked: list[int] = []

    def draw(candidate: int) -> np.ndarray:
        asked.append(candidate)
        return drawn[candidate].copy()

    assert BestOf(3, lambda images: images[:, 0].astype(float)).choose(draw).tolist() == [[4], [5]]
    assert asked == [0, 1, 2]
    assert BestOf(3, lambda images: np.zeros(2)).choose(draw).tolist() == [[1], [5]]
    assert str(BestOf(3, draw, "light")) == "best of 3 by light"
    with pytest.raises(ValueError, match="candidates per image must be at least 1, got 0"):
        BestOf(0, draw)


def test_candidates_are_those_of_smaller_numbers_and_one_more() -> None:
    model = Tiny(TinyConfig())

    def light(images: np.ndarray) -> np.ndarray:
        return images.mean((1, 2, 3))

    most = [light(sampling.sample(model, 6, 3, best=BestOf(n, light), progress=False)) for n in (1, 2, 4, 8)]
    assert np.array_equal(most[0], light(sampling.sample(model, 6, 3, progress=False)))
    assert (np.diff(most, axis=0) >= 0).all() and (most[3] > most[0]).sum() >= 4


def test_two_processes_sample_what_one_does(tmp_path: Path) -> None:
    model = Tiny(TinyConfig())
    model.save_pretrained(tmp_path / "model")
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nfrom genmodels.sampling import processes\n"
        "from genmodels.sampling import sample\nfrom tiny_model import Tiny\n"
        f"model = Tiny.from_pretrained({str(tmp_path / 'model')!r})\n"
        "for n in (1, 5):\n"
        "    images = sample(model, n, 4, batch_size=2)\n"
        f"    np.save({str(tmp_path)!r} + f'/{{n}}_{{processes().process_index}}.npy', images)\n"
    )
    run_twice(script)
    for n in (1, 5):  # fewer images than processes; shares of 3 and 2
        expected = sampling.sample(model, n, seed=4, progress=False)
        for rank in range(2):
            assert np.array_equal(np.load(tmp_path / f"{n}_{rank}.npy"), expected)


def test_save_images_in_three_forms(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    pictures.save_images(tmp_path / "new" / "all.npy", images)
    assert np.array_equal(np.load(tmp_path / "new" / "all.npy"), images)
    pictures.save_images(tmp_path / "files", images)
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "files" / "000003.png")), images[3])
    pictures.save_images(tmp_path / "grid.png", images)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (2 * 10 + 2, 3 * 10 + 2, 3)  # 5 images: 3 columns, 2 rows, gaps of 2
    assert np.array_equal(sheet[12:20, 12:20], images[4])
    assert (sheet[10:22, 22:] == 255).all()  # the place of the sixth


def test_interpolation_starts_and_ends_at_the_seeds() -> None:
    model = Tiny(TinyConfig())
    legs = sampling.interpolate(model, [1, 2], 5)
    assert legs.shape == (1, 5, 16, 16, 3)
    for frame, seed in ((0, 1), (-1, 2)):
        assert np.array_equal(legs[0, frame], sampling.sample(model, 1, seed=seed, progress=False)[0])
    tour = sampling.interpolate(model, [1, 2, 3], 4)
    assert tour.shape == (3, 4, 16, 16, 3)
    assert np.array_equal(tour[-1, -1], tour[0, 0])
    with pytest.raises(ValueError, match="only_samples models do not interpolate"):
        sampling.interpolate(OnlySamples(TinyConfig()), [1, 2], 3)


def test_animation_never_stands_still() -> None:
    one = np.arange(4, dtype=np.uint8).reshape(1, 4, 1, 1, 1)
    assert pictures.animation_frames(one).ravel().tolist() == [0, 1, 2, 3, 2, 1]
    tour = np.array([[0, 1, 2], [2, 3, 4], [4, 5, 0]], np.uint8)[..., None, None, None]
    assert pictures.animation_frames(tour).ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_pairs_stand_above_each_other() -> None:
    above = np.arange(1, 6, dtype=np.uint8).reshape(5, 1, 1, 1)
    below = above + 10
    assert pictures.in_pairs(above, below, 3).ravel().tolist() == [1, 2, 3, 11, 12, 13, 4, 5, 255, 14, 15, 255]


def test_reconstruct_in_batches() -> None:
    images = np.full((5, 16, 16, 3), 255, np.uint8)
    rebuilt = sampling.reconstruct(Tiny(TinyConfig(gain=0.5)), images, batch_size=2)
    assert rebuilt.shape == images.shape
    assert (rebuilt == 191).all()  # 1.0 -> 0.5 -> 191.25
    with pytest.raises(ValueError, match="only_samples models do not reconstruct"):
        sampling.reconstruct(OnlySamples(TinyConfig()), images)


def test_save_animation(tmp_path: Path) -> None:
    frames = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 100, 200)])
    pictures.save_animation(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as image:
        assert len(list(ImageSequence.Iterator(image))) == 3
        assert image.info["loop"] == 0
        image.seek(2)
        assert image.convert("RGB").getpixel((4, 4)) == (200, 200, 200)


def test_a_grid_is_cut_into_what_it_was_made_of(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), np.uint8)
    pictures.save_grid(tmp_path / "grid.png", images)  # four columns, two places left white
    np.testing.assert_array_equal(pictures.cut_grid(tmp_path / "grid.png", 8), images)
    with pytest.raises(ValueError, match="not a grid of images of 9 px"):
        pictures.cut_grid(tmp_path / "grid.png", 9)
