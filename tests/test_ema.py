"""EMA of the weights: its profile against the closed form, and averages of other widths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genmodels.training.ema import (
    MAX_SIGMA_REL,
    average_of,
    combination,
    ema_decay,
    power_exponent,
    save_snapshot,
    update_ema,
)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.25, 0.72), (MAX_SIGMA_REL, 0.0)])
def test_exponents_of_the_paper(sigma_rel: float, gamma: float) -> None:
    # arXiv 2312.02696, section 3.1, names gamma = 16.97 and 6.94 for 5 % and 10 %.
    assert power_exponent(sigma_rel) == pytest.approx(gamma, abs=0.01)
    assert np.sqrt(gamma + 1) / (gamma + 2) / np.sqrt(gamma + 3) == pytest.approx(sigma_rel, rel=1e-3)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1])
def test_the_profile_has_the_width_asked_for(sigma_rel: float) -> None:
    # The average of a weight that is t at step t is the mean of the profile. That of t^2 gives the
    # variance.
    model, ema = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
    model, ema = model.double(), ema.double()
    steps = 4000
    for t in range(1, steps + 1):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[t], [t * t]]))
        update_ema(ema, model, ema_decay(t, sigma_rel))
    mean, square = ema.weight[:, 0].tolist()
    assert np.sqrt(square - mean**2) / steps == pytest.approx(sigma_rel, rel=2e-3)
    gamma = power_exponent(sigma_rel)
    assert mean / steps == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


def test_the_first_update_forgets_the_start_and_zero_switches_it_off() -> None:
    assert ema_decay(1, 0.05) == 0
    assert ema_decay(2, 0.05) == pytest.approx(0.5**17.97, rel=0.01)
    assert ema_decay(1000, 0.0) == 0


def test_buffers_are_copied_and_shared_modules_left_alone() -> None:
    shared = nn.Linear(2, 2)
    before = shared.weight.clone()
    own, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        own.state_dict()["running_mean"].fill_(3)
        own.weight.fill_(5)
    update_ema(nn.Sequential(average, shared), nn.Sequential(own, shared), 0.75)
    assert average.state_dict()["running_mean"].tolist() == [3, 3]
    assert average.weight.tolist() == [2, 2]
    assert torch.equal(shared.weight, before)


@pytest.mark.parametrize("sigma_rel", [-0.1, 0.0, 0.3])
def test_impossible_widths_are_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match="sigma_rel"):
        power_exponent(sigma_rel)


# ---- averages of other widths, after training ----


def walk(steps: int, width: float, keep: int, folder: Path | None = None) -> nn.Module:
    """Average a random walk with relative width `width`, saving `keep` evenly spaced snapshots."""
    model, ema = nn.Linear(2, 3).double(), nn.Linear(2, 3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for t in range(1, steps + 1):
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / steps**0.5
            update_ema(ema, model, ema_decay(t, width))
            if folder is not None and t * keep % steps == 0:
                save_snapshot(folder, ema, model, t, width)
    return ema


@pytest.mark.parametrize("width", [0.08, 0.1, 0.15, 0.2])
def test_snapshots_of_one_average_make_those_of_other_widths(width: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    walk(1600, 0.1, 16, tmp_path / "ema")
    found, miss = average_of(tmp_path / "ema", width)
    torch.manual_seed(0)
    expected = walk(1600, width, 16)
    spread = torch.cat([p.flatten() for p in expected.parameters()]).std()
    for name, value in expected.named_parameters():
        assert (found[name] - value).abs().amax() < 0.03 * spread
    assert miss < 0.02


def test_a_combination_is_the_nearest_profile() -> None:
    """The integrals equal sums over a fine grid."""
    steps, widths = [250, 500, 750, 1000], [0.1] * 4
    weights, miss = combination(steps, widths, 0.15)
    tau = (np.arange(200_000) + 0.5) / 200_000

    def profile(t: float, width: float) -> np.ndarray:
        gamma = power_exponent(width)
        return np.where(tau <= t, (gamma + 1) * (tau / t) ** gamma / t, 0)

    made = sum(w * profile(step / 1000, width) for w, step, width in zip(weights, steps, widths, strict=True))
    wanted = profile(1.0, 0.15)
    assert weights.sum() == pytest.approx(1)
    assert miss == pytest.approx(np.square(made - wanted).sum() / np.square(wanted).sum(), rel=1e-2)
    assert combination(steps, widths, 0.1) == (pytest.approx([0, 0, 0, 1], abs=1e-6), pytest.approx(0, abs=1e-9))


def test_widths_that_cannot_be_made_are_refused_with_those_that_can(tmp_path: Path) -> None:
    walk(160, 0.1, 4, tmp_path / "ema")
    with pytest.raises(
        ValueError, match=r"no average of width 0.01 can be computed from the 4 snapshots .*: possible widths are 0.0"
    ):
        average_of(tmp_path / "ema", 0.01)
    with pytest.raises(ValueError, match="contains no snapshots: train with --ema-snapshots"):
        average_of(tmp_path / "none", 0.1)
    (tmp_path / "ema" / "step_00000040.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="step_00000040.safetensors is damaged or not a snapshot"):
        average_of(tmp_path / "ema", 0.1)
