"""Published kernels: when they are used, what they receive, and what is said where they are absent.

The packages need a GPU. Here, fakes with their interfaces compute the plain form.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from genmodels.nn import kernels, scan
from genmodels.nn.operations import counting
from genmodels.nn.ssm import SSMConfig
from genmodels.nn.transformer import Transformer, TransformerConfig


@pytest.fixture
def called(monkeypatch):
    """Install fakes of the packages, on what looks like a GPU. Returns the names that were called."""
    calls: list[str] = []
    modules = [ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton")]
    interface, combined, conv = (ModuleType(name) for name in kernels.MODULES.values())

    def selective_scan_fn(u, delta, A, B, C):
        calls.append("selective_scan_fn")
        assert u.dtype == delta.dtype and u.is_contiguous()
        u, delta, B, C = (value.mT for value in (u, delta, B, C))
        return scan.selective_scan(u, delta.to(A.dtype), A, B, C, A.new_zeros(len(u), *A.shape))[0].to(u.dtype).mT

    def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, seq_idx=None):
        calls.append("mamba_chunk_scan_combined")
        assert seq_idx is None or seq_idx.dtype == torch.int32
        h = A.new_zeros(len(x), *x.shape[2:], B.shape[-1])
        return scan.ssd(x, dt, A, B, C, h, seq_idx, chunk_size)[0]

    def causal_conv1d_fn(x, weight, bias, seq_idx=None, activation=None):
        calls.append("causal_conv1d_fn")
        assert activation == "silu" and x.stride(1) == 1  # channels last, which seq_idx requires
        assert seq_idx is None or seq_idx.dtype == torch.int32
        assert x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0  # checked by the package
        before = x.new_zeros(len(x), weight.shape[1] - 1, x.shape[1])
        return F.silu(scan.short_convolution(x.mT, weight, bias, before, seq_idx)).mT

    interface.selective_scan_fn = selective_scan_fn
    combined.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    conv.causal_conv1d_fn = causal_conv1d_fn
    for module in (*modules, interface, combined, conv):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernels, "on_gpu", lambda device: True)
    return calls


def stack(*mixers: str, causal: bool = True, **ssm) -> Transformer:
    torch.manual_seed(0)
    ssm = SSMConfig(head=8, state=4, chunk=5, **ssm)
    return Transformer(TransformerConfig(width=16, depth=2, heads=2, mixers=mixers, ssm=ssm), causal=causal)


BOTH = ("mamba-ssm", "causal-conv1d")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_kernels_compute_what_the_plain_form_does(called, causal, packed):
    plain, fast = (stack("mamba", "mamba2", causal=causal, kernels=names) for names in ((), BOTH))
    x = torch.randn(2, 12, 16)
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, 5] = starts[1, 7] = True
    given = {"starts": starts} if packed else {}
    expected = plain(x, **given)
    assert called == []
    torch.testing.assert_close(fast(x, **given), expected)
    # Mamba's kernel knows no boundaries of sequences.
    scans = {"mamba_chunk_scan_combined"} if packed else {"mamba_chunk_scan_combined", "selective_scan_fn"}
    assert {*called} == {"causal_conv1d_fn", *scans}
    fast(x, **given).sum().backward()
    assert all(parameter.grad is not None for parameter in fast.parameters())


def test_each_kernel_is_used_by_its_name_only(called):
    stack("mamba", "mamba2", kernels=("causal-conv1d",))(torch.randn(2, 12, 16))
    assert {*called} == {"causal_conv1d_fn"}
    called.clear()
    stack("mamba", "mamba2", kernels=("mamba-ssm",))(torch.randn(2, 12, 16))
    assert {*called} == {"mamba_chunk_scan_combined", "selective_scan_fn"}


@torch.no_grad()
def test_generation_and_counting_use_the_plain_form(called):
    model, x = stack("mamba", "mamba2", kernels=BOTH), torch.randn(2, 12, 16)
    cache = model.make_cache(2, 12)
    pieces = torch.cat([model(part, cache=cache) for part in x.split([7, 1, 4], 1)], 1)
    with counting() as counter:
        model(x)
    assert called == []
    with counting() as plain:
        stack("mamba", "mamba2")(x)
    assert counter.get_total_flops() == plain.get_total_flops()
    torch.testing.assert_close(pieces, model(x), atol=1e-5, rtol=0)


def test_elsewhere_the_plain_form_is_used():
    torch.testing.assert_close(*(stack("mamba2", kernels=names)(torch.ones(2, 12, 16)) for names in ((), BOTH)))


@pytest.mark.parametrize(("mixer", "kernel"), [("mamba", "mamba-ssm"), ("mamba2", "causal-conv1d")])
def test_a_kernel_that_is_not_installed_is_named_with_the_remedy(mixer, kernel, monkeypatch):
    monkeypatch.setattr(kernels, "on_gpu", lambda device: True)
    for module in ("mamba_ssm", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    with pytest.raises(
        ValueError, match=f"kernel '{kernel}' .*: pip install --no-build-isolation {kernel}, or"
    ) as said:
        stack(mixer, kernels=(kernel,))(torch.randn(2, 12, 16))
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="ssm: unknown kernel 'triton'; known: mamba-ssm, causal-conv1d"):
        SSMConfig(kernels=("triton",))
