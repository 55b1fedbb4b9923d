"""Attention of every available backend against the formula, and the FlashAttention reference."""

from __future__ import annotations

import math
import sys

import flash_reference
import pytest
import torch
import torch.nn.functional as F
from flash_reference import flash_attention_1, flash_attention_2
from torch.utils._python_dispatch import TorchDispatchMode

from genmodels.nn import attention, masks
from genmodels.nn.attention import attend, available_backends, check_backend, kernel_of

HERE = available_backends("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


def inputs(heads: int = 4, groups: int = 2, queries: int = 7, keys: int = 7, d: int = 8, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, heads, queries, d, generator=g),
        torch.randn(2, groups, keys, d, generator=g),
        torch.randn(2, groups, keys, d, generator=g),
    )


def formula(q, k, v, may_look=None):
    """One head and one query at a time, in float64. `may_look` is (T, S) or (N, H, T, S)."""
    n, heads, queries, d = q.shape
    groups, keys = k.shape[1:3]
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    if may_look is not None:
        may_look = may_look.expand(n, heads, -1, -1)
    for i in range(n):
        for h in range(heads):
            g = h // (heads // groups)
            for t in range(queries):
                seen = [s for s in range(keys) if may_look is None or may_look[i, h, t, s]]
                weights = torch.tensor([math.exp(q[i, h, t] @ k[i, g, s] / math.sqrt(d)) for s in seen]).double()
                out[i, h, t] = (weights[:, None] * v[i, g, seen]).sum(0) / weights.sum()
    return out.float()


def past(queries: int, keys: int) -> torch.Tensor:
    """Query t of the last T positions sees keys up to its own position."""
    return torch.tensor([[s <= t + keys - queries for s in range(keys)] for t in range(queries)])


def test_native_and_flex_run_on_a_cpu_and_flash_does_not():
    assert HERE == ["native", "flex"]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)], ids=["multi-head", "grouped", "multi-query"])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 7), (1, 7)])
def test_against_the_formula(backend, heads, groups, queries, keys):
    q, k, v = inputs(heads, groups, queries, keys)
    both = attend(q, k, v, backend=backend)
    torch.testing.assert_close(both, formula(q, k, v), atol=1e-5, rtol=0)
    causal = attend(q, k, v, causal=True, backend=backend)
    torch.testing.assert_close(causal, formula(q, k, v, past(queries, keys)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", HERE)
def test_a_mask_is_kept_to(backend):
    q, k, v = inputs(queries=5, keys=9)
    mask = torch.rand(5, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 3] = True
    out = attend(q, k, v, mask=mask, backend=backend)
    torch.testing.assert_close(out, formula(q, k, v, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("leading", [(2,), (2, 1), (2, 4)], ids=["rows", "rows, one for all heads", "rows and heads"])
def test_a_mask_of_each_row_or_head(backend, leading):
    q, k, v = inputs(queries=5, keys=9)
    mask = torch.rand(*leading, 5, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 3] = True
    out = attend(q, k, v, mask=mask, backend=backend)
    expected = formula(q, k, v, mask.unsqueeze(1) if mask.ndim == 3 else mask)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert kernel_of(q, k, v, mask=mask, backend=backend) in ("native: flash", "flex: unfused")


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("queries", "keys"), [(150, 150), (20, 150)])
def test_nothing_leaks_from_the_future(backend, queries, keys):
    """The length exceeds a block of flex (128). Later keys affect the last queries only."""
    q, k, v = inputs(queries=queries, keys=keys)
    before = attend(q, k, v, causal=True, backend=backend)
    for changed in (keys - queries + 1, keys - 7, keys - 1):
        other_k, other_v = k.clone(), v.clone()
        other_k[:, :, changed:] = 50.0
        other_v[:, :, changed:] = -1e4
        after = attend(q, other_k, other_v, causal=True, backend=backend)
        first = changed - (keys - queries)  # the first query that may see it
        torch.testing.assert_close(after[:, :, :first], before[:, :, :first], atol=1e-6, rtol=0)
        assert (after[:, :, first:] - before[:, :, first:]).abs().amax((0, 1, 3)).min() > 1


def test_half_precision_sums_in_float32():
    """4,096 equal weights: a running sum in bfloat16 would stop at 256."""
    q, k = torch.zeros(1, 1, 2, 16, dtype=torch.bfloat16), torch.zeros(1, 1, 4096, 16, dtype=torch.bfloat16)
    out = attend(q, k, torch.ones_like(k))
    torch.testing.assert_close(out, torch.ones_like(out))


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_that_is_named_is_the_one_that_runs(causal):
    q, k, v = inputs()
    assert kernel_of(q, k, v, causal=causal) == "native: flash"
    with torch.profiler.profile() as seen:
        attend(q, k, v, causal=causal)
    assert any("flash_attention_for_cpu" in event.key for event in seen.key_averages())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert kernel_of(q, k, v, causal=causal) == "native: math"
    assert kernel_of(q, k, v, backend="flex") == "flex: unfused"


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("flash", "'flash' needs an NVIDIA GPU; these can run on cpu: native, flex"),
        ("flash3", "'flash3' needs an NVIDIA GPU; these can run on cpu: native, flex"),
        ("xformers", "'xformers' is unknown; known: native, flash, flash3, flex"),
    ],
)
def test_a_backend_that_cannot_run_is_one_line_and_not_replaced(backend, message):
    q, k, v = inputs()
    for call in (attend, kernel_of):
        with pytest.raises(ValueError, match=message) as caught:
            call(q, k, v, backend=backend)
        assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(attention, "CAPABILITY", {})  # as if this were the right GPU
    attention.why_not.cache_clear()
    try:
        for backend in ("flash", "flash3"):
            with pytest.raises(
                ValueError, match=f"{backend}' cannot be used .*not usable.*these can run on cpu: native"
            ):
                check_backend(backend, "cpu")
    finally:
        attention.why_not.cache_clear()


def test_native_needs_no_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it fails
    attention.why_not.cache_clear()
    try:
        assert available_backends() == ["native"]
        q, k, v = inputs()
        assert attend(q, k, v, causal=True).shape == q.shape
        with pytest.raises(ValueError, match="'flex' needs the diffusers package: pip install diffusers"):
            attend(q, k, v, backend="flex")
    finally:
        attention.why_not.cache_clear()


@pytest.mark.parametrize(("backend", "function"), [("flash", "flash_attn_func"), ("flash3", "_wrapped_flash_attn_3")])
def test_flash_gets_what_the_package_expects(monkeypatch, backend, function):
    """The kernel is replaced by SDPA in its layout, (N, T, H, d), and with its causal alignment."""
    from diffusers.models import attention_dispatch

    calls = []

    def flash_attn_func(q, k, v, softmax_scale, causal, **_):
        calls.append((tuple(q.shape), tuple(k.shape), causal))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = past(q.shape[2], k.shape[2]) if causal else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=softmax_scale, enable_gqa=True)
        out = out.transpose(1, 2)
        return out if backend == "flash" else (out, None)

    monkeypatch.setattr(attention_dispatch, function, flash_attn_func)
    monkeypatch.setattr(attention, "check_backend", lambda backend, device: None)
    q, k, v = (x.bfloat16() for x in inputs(queries=3, keys=7))
    out = attend(q, k, v, causal=True, backend=backend)
    torch.testing.assert_close(out, attend(q, k, v, causal=True), atol=1e-2, rtol=0)
    assert calls == [((2, 3, 4, 8), (2, 7, 2, 8), True)]
    with pytest.raises(ValueError, match=f"'{backend}' needs float16 or bfloat16, got torch.float32: use autocast"):
        attend(*inputs(), backend=backend)
    with pytest.raises(ValueError, match=f"'{backend}' takes no mask: use 'native' or 'flex'"):
        attend(q, k, v, mask=past(3, 7), backend=backend)
    if backend == "flash3":
        with pytest.raises(ValueError, match="'flash3' has no gradients: train with 'flash' or 'native'"):
            attend(q.requires_grad_(), k, v, backend=backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(groups=3), "4 query heads cannot share 3 key heads: choose a divisor of 4"),
        (dict(queries=8, keys=5, causal=True), "causal attention of 8 queries needs at least as many keys, got 5"),
        (dict(mask=torch.ones(7, 7)), r"the mask must be bool \(7, 7\), got torch.float32 \(7, 7\)"),
        (dict(mask=torch.ones(7, 6).bool()), r"the mask must be bool \(7, 7\), got torch.bool \(7, 6\)"),
        (dict(mask=torch.ones(2, 3, 7, 7).bool()), r"leading axes \(2,\), \(2, 1\) or \(2, 4\) for rows and heads"),
        (dict(mask=torch.ones(1, 7, 7).bool()), r"must be bool \(7, 7\), got torch.bool \(1, 7, 7\)"),
        (dict(mask=torch.ones(7, 7).bool(), causal=True), "give causal or a mask, not both"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    call = {name: change.pop(name) for name in ("mask", "causal") if name in change}
    with pytest.raises(ValueError, match=message):
        attend(*inputs(**change), **call)


def test_shapes_and_dtypes_must_agree():
    q, k, v = inputs()
    with pytest.raises(ValueError, match=r"got \(2, 4, 7, 8\), \(2, 2, 7, 8\), \(2, 2, 6, 8\)"):
        attend(q, k, v[:, :, 1:])
    with pytest.raises(ValueError, match="one dtype, got torch.float32, torch.bfloat16, torch.float32"):
        attend(q, k.bfloat16(), v)


def test_flex_says_that_it_cannot_train_on_a_cpu():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="'flex' has no gradients on a CPU: train with 'native'"):
        attend(q.requires_grad_(), k, v, backend="flex")


def test_a_block_mask_made_while_sampling_can_be_used_in_training():
    masks.causal_block_mask.cache_clear()
    with torch.inference_mode():
        attend(*inputs(), causal=True, backend="flex")
    made = masks.causal_block_mask(7, 7, torch.device("cpu"))
    assert masks.causal_block_mask.cache_info().hits == 1 and not made.kv_indices.is_inference()


# ---- the FlashAttention reference ----


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(32, 32), (25, 25), (10, 31)])
@pytest.mark.parametrize("block", [1, 8, 32])
def test_the_reference_equals_sdpa(causal, queries, keys, block):
    q, k, v = (3 * x for x in inputs(2, 2, queries, keys))
    expected = attend(q, k, v, causal=causal)
    torch.testing.assert_close(flash_attention_1(q, k, v, causal=causal, block=block), expected, atol=1e-5, rtol=1e-5)
    out, log_sum = flash_attention_2(q, k, v, causal=causal, block=block)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    scores = q @ k.transpose(-1, -2) / math.sqrt(8)
    if causal:
        scores = scores.masked_fill(~past(queries, keys), -torch.inf)
    torch.testing.assert_close(log_sum, scores.logsumexp(-1), atol=1e-5, rtol=1e-5)


def test_the_running_maximum_keeps_large_scores_finite():
    """Scores grow to 1e5, so every tile changes the maximum. exp(89) overflows float32."""
    q, k, v = inputs(2, 2, 32, 32)
    k = k * torch.linspace(1, 1e5, 32)[:, None]
    expected = attend(q, k, v)
    for out in (flash_attention_1(q, k, v, block=4), flash_attention_2(q, k, v, block=4)[0]):
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


class Largest(TorchDispatchMode):
    """The most values that any operation has returned in one tensor."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.values = max(self.values, out.numel())
        return out


def test_the_reference_never_holds_all_scores():
    q, k, v = inputs(2, 2, 256, 256)
    for run in (flash_attention_1, flash_attention_2):
        with Largest() as seen:
            run(q, k, v, causal=True, block=16)
        assert seen.values == q.numel() == 2 * 2 * 256 * 8


def test_version_1_loops_over_keys_outside_and_version_2_over_queries(monkeypatch):
    order = []
    real = flash_reference.tile_scores

    def noting(q, k, rows, keys, causal):
        scores = real(q, k, rows, keys, causal)
        order.append((rows.start, keys.start, scores is not None))
        return scores

    monkeypatch.setattr(flash_reference, "tile_scores", noting)
    q, k, v = inputs(2, 2, 6, 6)
    flash_attention_1(q, k, v, causal=True, block=3)
    assert order == [(0, 0, True), (3, 0, True), (0, 3, False), (3, 3, True)]
    order.clear()
    flash_attention_2(q, k, v, causal=True, block=3)
    assert order == [(0, 0, True), (0, 3, False), (3, 0, True), (3, 3, True)]
