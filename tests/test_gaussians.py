"""Benchmark of the GAN page: mode coverage on Gaussians, with a short training."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from gaussians import MODES, SETTINGS, draw, grid, score, train


def test_real_points_are_good_and_a_mode_is_one_mode() -> None:
    torch.manual_seed(0)
    modes, good = score(draw(10_000))
    assert modes == 25 and good > 0.999
    assert score(MODES[:1].expand(1000, 2) / MODES.std()) == (1, 1.0)
    assert score(torch.full((1000, 2), 0.5) / MODES.std()) == (0, 0.0)


def test_r3gan_finds_every_mode_of_a_small_grid() -> None:
    modes, good = score(train(SETTINGS[0], steps=1000, modes=grid(3)), grid(3))
    assert modes == 9 and good > 0.5, (modes, good)
