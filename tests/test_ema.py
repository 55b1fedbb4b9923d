"""The average of the weights: its profile against the closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from genmodels.training.ema import MAX_SIGMA_REL, ema_decay, power_exponent, update_ema


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.25, 0.72), (MAX_SIGMA_REL, 0.0)])
def test_exponents_of_the_paper(sigma_rel: float, gamma: float) -> None:
    # arXiv 2312.02696, section 3.1, names gamma = 16.97 and 6.94 for 5 % and 10 %.
    assert power_exponent(sigma_rel) == pytest.approx(gamma, abs=0.01)
    assert np.sqrt(gamma + 1) / (gamma + 2) / np.sqrt(gamma + 3) == pytest.approx(sigma_rel, rel=1e-3)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1])
def test_the_profile_has_the_width_asked_for(sigma_rel: float) -> None:
    # A weight that is t at step t: its average is the profile's mean, that of t^2 gives its variance.
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
