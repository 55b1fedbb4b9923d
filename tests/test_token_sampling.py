"""Choice of the next symbol: transformers' logits processors, and inverse transform sampling."""

from __future__ import annotations

import pytest
import torch

from genmodels.token_sampling import draw, filtered

LOGITS = 3 * torch.randn(6, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0.7),
        dict(top_k=5),
        dict(top_p=0.6),
        dict(min_p=0.1),
        dict(temperature=1.3, top_k=12, top_p=0.8, min_p=0.05),
    ],
    ids=lambda settings: "-".join(settings),
)
def test_against_transformers(settings: dict) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    kinds = {
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
    }
    expected = LOGITS
    for name, value in settings.items():
        expected = kinds[name](value)(None, expected)
    torch.testing.assert_close(filtered(LOGITS, **settings), expected.softmax(-1), atol=1e-6, rtol=0)


def test_the_fewest_that_hold_the_share_are_kept() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    assert filtered(logits, top_p=0.4).tolist() == [0, 1, 0, 0]
    kept = filtered(logits, top_p=0.41)
    torch.testing.assert_close(kept, torch.tensor([0, 4 / 7, 0, 3 / 7]))
    torch.testing.assert_close(filtered(logits, top_p=1.0), logits.exp())
    assert filtered(logits, top_k=1).tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(filtered(logits, top_k=9), logits.exp())


def test_extreme_settings_are_no_accident() -> None:
    assert filtered(LOGITS, temperature=1e-42).argmax(-1).tolist() == LOGITS.argmax(-1).tolist()
    assert torch.isfinite(filtered(LOGITS, temperature=1e-42)).all()
    with pytest.raises(ValueError, match="logits are not finite: its weights are broken, or guidance is too large"):
        filtered(torch.tensor([0.0, float("inf")]))


def test_draws_invert_the_cumulated_probabilities() -> None:
    probabilities = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25, 0.0])
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-24])
    assert draw(probabilities.expand(6, 6), uniform).tolist() == [1, 1, 2, 2, 4, 4]


def test_draws_follow_the_probabilities() -> None:
    probabilities = filtered(LOGITS[0], top_k=8)
    uniform = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    found = torch.bincount(draw(probabilities.expand(50_000, -1), uniform), minlength=40) / 50_000
    assert (found - probabilities).abs().max() < 0.01
    assert ((found > 0) <= (probabilities > 0)).all()
