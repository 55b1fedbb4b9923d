"""Codebook usage metrics against closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import genmodels
from genmodels.evaluation.codebook import codebook_scores
from genmodels.evaluation.protocol import Protocol

PROTOCOL = Protocol(data="random", split="valid", size=8, n=6)


@dataclass
class Given:
    """Its codes are the first values of the images."""

    codebook_size: int
    dtype: torch.dtype = torch.int64

    def encode(self, images: Tensor) -> Tensor:
        return images[:, 0, :2, :2].to(self.dtype)  # (N, 2, 2)


def images_of(codes: list[float]) -> Tensor:
    """As many images as it takes, four codes each."""
    images = torch.zeros(len(codes) // 4, 3, 8, 8)
    images[:, 0, :2, :2] = torch.tensor(codes).reshape(-1, 2, 2)
    return images


def values(codes: list[float], size: int, batch: int = 2) -> tuple[float, float]:
    scores = codebook_scores(Given(size), images_of(codes).split(batch), PROTOCOL)
    assert {(s.group, s.better, s.protocol) for s in scores.values()} == {("reconstruction", "higher", PROTOCOL)}
    return scores["codebook-usage"].value, scores["codebook-perplexity"].value


def test_even_use_of_all_codes() -> None:
    assert values([*range(12), *range(12)], 12) == (1.0, pytest.approx(12))


def test_a_single_code() -> None:
    assert values([3] * 8, 10) == (pytest.approx(1 / 10), pytest.approx(1))


def test_uneven_use_whatever_the_batches() -> None:
    codes = [0, 0, 0, 0, 1, 1, 5, 5]  # frequencies 1/2, 1/4, 1/4: an entropy of 3/2 bits
    assert values(codes, 8) == (pytest.approx(3 / 8), pytest.approx(2**1.5))
    assert values(codes, 8, batch=1) == values(codes, 8)
    assert values(codes, 1024)[1] == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize("codes", [[0, 1, 2, 12], [0, 1, 2, -1]])
def test_codes_that_are_not_in_the_book(codes: list[float]) -> None:
    with pytest.raises(ValueError, match="of 12 has whole numbers from 0 to 11") as error:
        values(codes, 12)
    assert "\n" not in str(error.value)


def test_latents_are_no_codes() -> None:
    with pytest.raises(ValueError, match="codes of type float32 from 0.5 to 2; a codebook of 12"):
        codebook_scores(Given(12, torch.float32), [images_of([0.5, 1, 2, 2])], PROTOCOL)
    with pytest.raises(ValueError, match="no images"):
        codebook_scores(Given(12), [], PROTOCOL)


@pytest.mark.parametrize("family", ["ae", "vae"])
def test_codecs_with_continuous_latents_have_no_codebook(family: str) -> None:
    kind = genmodels.family(family)
    model = kind(kind.Config(size=16, channels=(16,), encoder_blocks=(1,), decoder_blocks=(1,), latent_dim=4))
    assert model.can("encode")
    assert not model.can("quantise")
