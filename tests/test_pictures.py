"""Conversion between uint8 and float images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.utils import make_grid

from genmodels import pictures
from genmodels.pictures import to_float, to_uint8


def test_every_level_survives_and_lies_where_it_should() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    images = to_float(levels)
    assert images.dtype == torch.float32 and images.shape == (1, 3, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    torch.testing.assert_close(images[0, 0].flatten().double(), expected, rtol=0, atol=1e-7)
    assert images.min() == -1 and images.max() == 1
    np.testing.assert_array_equal(to_uint8(images), levels)


def test_arrays_tensors_and_views_give_the_same_and_stay_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    before = pixels.copy()
    images = to_float(pixels)
    assert torch.equal(images, to_float(torch.from_numpy(pixels)))
    assert torch.equal(to_float(pixels[::-1]), images.flip(0))
    images.zero_()
    np.testing.assert_array_equal(pixels, before)


def test_to_uint8_rounds_to_the_nearest_level_and_clamps() -> None:
    values = torch.tensor([-1.5, -1.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1, 1.0, 1.5])
    images = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert to_uint8(images)[0, 0, :, 0].tolist() == [0, 0, 100, 101, 255, 255]


@pytest.mark.parametrize(("count", "columns"), [(1, None), (2, None), (5, 3), (7, 12), (16, None)])
def test_grids_against_torchvision(count: int, columns: int | None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = make_grid(pixels, nrow=columns or math.ceil(math.sqrt(count)), padding=2, pad_value=255)
    assert np.array_equal(np.asarray(pictures.grid(images, columns)), expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("fraction", "rows"), [(0, 0), (0.25, 2), (0.5, 4), (0.999, 7)])
def test_upper_rows_leave_at_least_one(fraction: float, rows: int) -> None:
    mask = pictures.upper_rows(8, fraction)
    assert mask.shape == (8, 8) and mask[:rows].all() and not mask[rows:].any()
