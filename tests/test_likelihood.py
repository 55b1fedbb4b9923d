"""Calibrated Gaussian of the decoder, against torch.distributions and scipy's DCT."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.fft import dctn

from genmodels.nn.likelihood import CalibratedGaussian, block_dct, nats_to_bits_per_dim


def images(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_block_dct_is_orthonormal_and_agrees_with_scipy():
    filters = block_dct()
    flat = filters.flatten(1).double()
    torch.testing.assert_close(flat @ flat.T, torch.eye(192, dtype=torch.float64), atol=1e-6, rtol=0)
    grey = images(1)[0, :1, :8, :8].expand(3, 8, 8)  # grey affects only the luminance channel, scaled by sqrt(3)
    ours = torch.einsum("fchw,chw->f", filters, grey)
    torch.testing.assert_close(
        ours[:64].numpy(), (math.sqrt(3) * dctn(grey[0].numpy(), norm="ortho")).ravel(), atol=1e-5, rtol=0
    )
    assert ours[64:].abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["pixel", "frequency"])
def test_nll_is_a_normal_density(kind):
    """With variance 0.25 in every band, both kinds are the same isotropic Gaussian."""
    likelihood = CalibratedGaussian(kind)
    likelihood.variance.fill_(0.25)
    x, mean = images(seed=1), images(seed=2)
    expected = -torch.distributions.Normal(mean, 0.5).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.nll(x, mean), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("kind", ["pixel", "frequency"])
def test_the_variance_becomes_the_mean_squared_error_and_no_other_is_likelier(kind):
    likelihood = CalibratedGaussian(kind)
    x, mean = images(64, seed=1), torch.zeros(64, 3, 16, 16)
    likelihood.nll(x, mean)
    likelihood.commit()
    torch.testing.assert_close(likelihood.variance, likelihood.errors(x, mean).square().mean((0, 2)))
    best = likelihood.nll(x, mean).mean()
    for factor in (0.9, 1.1):
        other = CalibratedGaussian(kind)
        other.variance.copy_(likelihood.variance * factor)
        assert other.nll(x, mean).mean() > best


def test_micro_batches_commit_as_one_batch_and_eval_commits_nothing():
    whole, parts = CalibratedGaussian("frequency"), CalibratedGaussian("frequency")
    x, mean = images(8, seed=1), images(8, seed=2)
    whole.nll(x, mean)
    parts.nll(x[:3], mean[:3])
    parts.nll(x[3:], mean[3:])
    whole.commit()
    parts.commit()
    torch.testing.assert_close(whole.variance, parts.variance)
    before = whole.variance.clone()
    whole.eval()
    whole.nll(x * 0, mean)
    whole.commit()
    assert torch.equal(before, whole.variance)


def test_restored_buffers_leave_no_trace_of_a_step_that_was_not_finite():
    """Restoring the buffers, as the loop does for a skipped step, is sufficient."""
    likelihood, untouched = CalibratedGaussian("pixel"), CalibratedGaussian("pixel")
    before = [buffer.clone() for buffer in likelihood.buffers()]
    likelihood.nll(images() * float("nan"), images())
    for buffer, old in zip(likelihood.buffers(), before, strict=True):
        buffer.copy_(old)
    for one in (likelihood, untouched):
        one.nll(images(seed=1), images(seed=2))
        one.commit()
    assert torch.equal(likelihood.variance, untouched.variance)
    assert likelihood.variance.isfinite().all()


def test_bits_per_dim_of_a_uniform_density_is_eight():
    """A density of 1/2 on [-1, 1] is uniform over 255 of the 256 levels' widths: log2(255) bits."""
    nats = torch.tensor([12288 * math.log(2.0)])
    assert nats_to_bits_per_dim(nats, 12288).item() == pytest.approx(math.log2(255), rel=1e-6)
