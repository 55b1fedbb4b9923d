"""Document masks and windows: FlexAttention, dense masks and each token by itself agree."""

from __future__ import annotations

import pytest
import torch

from genmodels.nn.attention import attend, set_backend
from genmodels.nn.masks import Rule, on_axes
from genmodels.nn.rope import grid_positions
from genmodels.nn.transformer import Transformer, TransformerConfig

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
STARTS = torch.zeros(2, 12, dtype=torch.bool)
STARTS[0, [0, 5]] = STARTS[1, [3, 4, 9]] = True
VALID = torch.ones(2, 12, dtype=torch.bool)
VALID[1, [7, 11]] = False
GRID = grid_positions(3, 4)


def stack(causal: bool = True, **more) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(width=16, depth=2, heads=2, **more), causal=causal).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.ndim > 1 else 1.0, 0.3)
    return model


def tokens() -> torch.Tensor:
    return torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_flex_equals_the_dense_mask(causal, window, packed):
    model, x = stack(causal, window=window), tokens()
    given = {"starts": STARTS, "valid": VALID} if packed else {}
    expected = model(x, GRID, **given)
    set_backend(model, "flex")
    torch.testing.assert_close(model(x, GRID, **given), expected, atol=1e-5, rtol=0)


def test_a_rule_token_by_token():
    """Of every pair: same document, not later, and at most one row and one column apart."""
    number = STARTS.long().cumsum(1)
    near = on_axes(GRID)
    rule = Rule(torch.arange(12), 12, True, (number, number), (near, near), 1)
    dense, blocks = rule.dense(), rule.blocks()
    for n in range(2):
        for t in range(12):
            for s in range(12):
                distance = (GRID[t] - GRID[s]).abs().max()
                expected = bool(number[n, t] == number[n, s] and s <= t and distance <= 1)
                assert dense[n, 0, t, s] == expected
                assert blocks.mask_mod(*(torch.tensor(i) for i in (n, 0, t, s))) == expected


def test_far_tokens_do_not_change_a_window_of_one_block():
    model, x = stack(causal=False, window=1, mixers=("attention",)), tokens()
    other = x.clone()
    other[:, 0] = 9.0  # row 0, column 0: two blocks reach rows and columns 0 to 2
    changed = (model(other, GRID) - model(x, GRID)).abs().amax((0, 2))
    assert changed[GRID.amax(1) <= 2].min() > 1e-4 and changed[GRID.amax(1) > 2].max() == 0


@torch.no_grad()
@pytest.mark.parametrize("backend", ["native", "flex"])
@pytest.mark.parametrize("positions", [torch.arange(12), GRID], ids=["line", "grid"])
def test_cached_generation_with_a_window(backend, positions):
    model, x = stack(window=2), tokens()
    whole = model(x, positions)
    assert (whole - stack()(x, positions)).abs().max() > 1e-3
    set_backend(model, backend)
    cache = model.make_cache(2, 12)
    parts = zip(x.split([5, 1, 6], 1), positions.split([5, 1, 6]), strict=True)
    pieces = torch.cat([model(part, places, cache) for part, places in parts], 1)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)


def test_settings_and_block_masks_that_do_not_fit():
    for changes in (dict(window=0), dict(window=1, mixers=("mamba2",))):
        with pytest.raises(ValueError, match="window must be at least 1, and a mixer attention; got"):
            TransformerConfig(**changes)
    q = torch.randn(1, 1, 12, 8)
    with pytest.raises(ValueError, match="'native' takes no BlockMask: give a bool mask, or use 'flex'"):
        attend(q, q, q, mask=Rule(torch.arange(12), 12, True).blocks())
