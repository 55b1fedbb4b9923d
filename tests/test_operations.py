"""Counts of floating-point operations, forward and backward, against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from genmodels.nn.mamba import Mamba, Mamba2
from genmodels.nn.operations import counting
from genmodels.nn.places import Places
from genmodels.nn.scan import selective_scan, short_convolution, ssd, ssd_step
from genmodels.nn.ssm import SSMConfig
from genmodels.nn.transformer import TransformerConfig


def counts(call: Callable[[], Tensor]) -> tuple[int, int]:
    """Operations of a call, and of its backward pass."""
    with counting() as forward:
        y = call()
    with counting() as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.rand(shape, requires_grad=True) for shape in shapes]


def test_short_convolution() -> None:
    x, weight = leaves((2, 9, 5), (5, 4))
    forward = 2 * 2 * 9 * 5 * 4
    assert counts(lambda: short_convolution(x, weight, None, torch.zeros(2, 3, 5), None)) == (forward, 2 * forward)


@pytest.mark.parametrize("length", [1, 37])  # one block and several
def test_selective_scan(length: int) -> None:
    x, dt, a, b, c = leaves((2, length, 6), (2, length, 6), (6, 5), (2, length, 5), (2, length, 5))
    each = 2 * length * 6 * 5
    assert counts(lambda: selective_scan(x, dt, -a, b, c, torch.zeros(2, 6, 5))[0]) == (6 * each, 19 * each)


def test_state_space_duality() -> None:
    n, heads, width, groups, size, chunk, chunks = 2, 4, 3, 2, 5, 8, 5  # 37 tokens fill 5 chunks
    x, dt, a = leaves((n, 37, heads, width), (n, 37, heads), (heads,))
    b, c = leaves((n, 37, groups, size), (n, 37, groups, size))
    products = n * chunks * chunk * 2 * (groups * chunk * size + heads * chunk * width + 2 * heads * width * size)
    state = 2 * n * heads * width * size
    expected = products + chunks * state, 2 * (products + (chunks - 1) * state)
    h = torch.zeros(n, heads, width, size)
    assert counts(lambda: ssd(x, dt, -a, b, c, h, chunk=chunk)[0]) == expected
    with counting() as step:
        ssd_step(x[:, 0], dt[:, 0], -a, b[:, 0], c[:, 0], h)
    assert step.get_total_flops() == 5 * n * heads * width * size


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_mixer_is_its_projections_its_convolution_and_its_scan(kind: Literal["mamba", "mamba2"]) -> None:
    config = TransformerConfig(width=8, depth=1, heads=2, mixers=(kind,), ssm=SSMConfig(state=4, head=8))
    mixer, tokens = {"mamba": Mamba, "mamba2": Mamba2}[kind](config, True), 2 * 16
    with counting() as counter:
        mixer(torch.randn(2, 16, 8), Places(torch.arange(16)))
    linear = mixer.inputs.weight.numel() + mixer.out.weight.numel()
    if isinstance(mixer, Mamba):
        linear += mixer.cores[0].read.weight.numel() + mixer.cores[0].dt.weight.numel()
        scan = tokens * 6 * 16 * 4
    else:  # 2 heads, and one chunk
        scan = tokens * 2 * (16 * 4 + 2 * 16 * 8 + 2 * 2 * 8 * 4) + 2 * 2 * 2 * 8 * 4
    assert counter.get_total_flops() == tokens * (2 * linear + 2 * 4 * mixer.convolved) + scan


@pytest.mark.parametrize(("heads", "groups", "masked"), [(4, 4, False), (4, 2, True)])
def test_fused_attention_counts_as_its_matrix_products(heads: int, groups: int, masked: bool) -> None:
    q, k, v = leaves((2, heads, 7, 8), (2, groups, 9, 8), (2, groups, 9, 8))
    mask = torch.ones(7, 9, dtype=torch.bool).tril(2) if masked else None

    def call() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=groups != heads)

    forward = 2 * 2 * heads * 7 * 9 * (8 + 8)
    assert counts(call) == (forward, 2 * forward)
    with sdpa_kernel(SDPBackend.MATH):
        assert counts(call) == (forward, 2 * forward)


def test_nothing_is_reported_outside() -> None:
    x, weight = leaves((2, 9, 5), (5, 4))
    y = short_convolution(x, weight, None, torch.zeros(2, 3, 5), None)
    with counting() as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 0
