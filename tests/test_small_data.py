"""Training on a handful of images, for every family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch
from test_contract import SMALL, calibrate_codec, kind

import genmodels
from genmodels.data.packed import Packed
from genmodels.saving import from_dict
from genmodels.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Evaluating(Recipe):
    """A recipe that evaluates unless it is told otherwise."""

    evaluate_every: int | None = 2


def few(count: int, size: int) -> Packed:
    """Make data with `count` images, all in the train split."""
    data = tiny.faces(count, size=size)
    data.splits[:] = 0
    return data


@pytest.mark.parametrize("family", list(SMALL))
def test_every_family_trains_on_one_image(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("genmodels.training.show.GRID", 4)
    torch.manual_seed(0)
    of = genmodels.family(kind(family))
    model = of(from_dict(of.Config, SMALL[family]))
    calibrate_codec(model)
    recipe = Evaluating(output=tmp_path / "run", steps=2, batch_size=4, track="none")
    run = genmodels.fit(model, few(1, model.config.size), recipe)
    assert "no evaluation during training: noise has too few images for it" in capsys.readouterr().err
    loaded = genmodels.load(str(run))
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())
    if loaded.can("sample"):
        images = loaded.generate(2)
        assert images.shape == (2, 3, model.config.size, model.config.size)
        assert images.isfinite().all()
