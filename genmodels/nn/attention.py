"""Attention, softmax(Q K^T / sqrt(d)) V, with a choice of kernels. What is asked for runs, or one line says why not."""

from __future__ import annotations

import importlib.util
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Backend = Literal["native", "flash", "flash3", "flex"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""native: torch's scaled_dot_product_attention (SDPA). flash: FlashAttention 2 (package flash-attn, arXiv 2307.08691).
flash3: FlashAttention 3 (package flash_attn_3, arXiv 2407.08608). flex: torch's FlexAttention (arXiv 2412.05496). All
but native run through diffusers' dispatch."""
DIFFUSERS_NAMES = {"flash": "flash", "flash3": "_flash_3", "flex": "flex"}
CAPABILITY = {"flash": (8, 0), "flash3": (9, 0)}
"""The oldest GPUs that the FlashAttention packages support: Ampere and Hopper."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None, backend: Backend = "native"
) -> Tensor:
    """Attention of T queries over S keys.

    Multi-head (G = H), grouped-query (arXiv 2305.13245) or multi-query (G = 1, arXiv 1911.02150): query head h looks at
    key head h // (H / G). The scale is 1 / sqrt(d); the softmax is computed in float32 whatever the dtype.

    Args:
        q: queries (N, H, T, d).
        k: keys (N, G, S, d), with G a divisor of H.
        v: values (N, G, S, d).
        causal: query t sees keys up to t + S - T. The queries are thus the last T of S positions, as with cached keys.
        mask: bool (T, S), True where a query may look, in place of `causal`. FlashAttention takes none.
        backend: which implementation. It is never replaced by another one.

    Returns:
        (N, H, T, d), in the dtype of q.

    Raises:
        ValueError: when shapes or dtypes do not fit, or the backend cannot run; the message lists those that can.
    """
    check_inputs(q, k, v, causal, mask)
    if backend == "native":
        return F.scaled_dot_product_attention(q, k, v, **sdpa_arguments(q, k, causal, mask))
    if not torch.compiler.is_compiling():  # what is installed cannot be looked up inside a compiled graph
        check_backend(backend, q.device)
    check_support(q, k, v, mask, backend)
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    flex = backend == "flex"
    options: dict[str, Any] = {
        # Flex ignores is_causal and needs a block mask. FlashAttention aligns its causal mask as we do.
        "attn_mask": block_mask(q, k, causal, mask) if flex else None,
        "is_causal": causal and not flex,
        "enable_gqa": k.shape[1] != q.shape[1],
        "backend": DIFFUSERS_NAMES[backend],
    }
    out = dispatch_attention_fn(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options)  # (N, T, H, d)
    return out.transpose(1, 2)  # (N, H, T, d)


def available_backends(device: torch.device | str = "cpu") -> list[Backend]:
    """The backends that can run on `device`, native first."""
    return [backend for backend in BACKENDS if why_not(backend, torch.device(device)) is None]


def check_backend(backend: str, device: torch.device | str) -> None:
    """Raises ValueError, listing the backends that can run on `device`, when `backend` cannot."""
    reason = why_not(backend, torch.device(device))
    if reason is not None:
        able = ", ".join(available_backends(device))
        raise ValueError(f"attention backend {backend!r} {reason}; these can run on {device}: {able}")


def kernel_of(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None, backend: Backend = "native"
) -> str:
    """The name of the kernel that `attend` runs for these inputs, which it checks as `attend` does.

    SDPA chooses among kernels by device, dtype and shape. "native: flash", "native: efficient" and "native: cudnn" are
    tiled; "native: math" holds all T x S scores. Flex is fused by torch.compile only: outside it, "flex: unfused" holds
    the scores as well.
    """
    check_inputs(q, k, v, causal, mask)
    check_backend(backend, q.device)
    if backend == "native":
        from torch.nn.attention import SDPBackend

        choice = SDPBackend(torch._fused_sdp_choice(q, k, v, **sdpa_arguments(q, k, causal, mask)))
        return "native: " + choice.name.lower().removesuffix("_attention")
    check_support(q, k, v, mask, backend)
    return "flex: unfused" if backend == "flex" else backend


def check_inputs(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> None:
    """Raises ValueError when shapes or dtypes do not fit together."""
    n, heads, queries, d = q.shape
    groups, keys = k.shape[1:3]
    if k.shape != v.shape or k.shape != (n, groups, keys, d):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"attention needs q (N, H, T, d) and k, v (N, G, S, d), got {shapes}")
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key heads: choose a divisor of {heads}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if causal and mask is not None:
        raise ValueError("give causal or a mask, not both: put the causal part into the mask")
    if causal and keys < queries:
        raise ValueError(f"causal attention of {queries} queries needs at least as many keys, got {keys}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (queries, keys)):
        raise ValueError(f"the mask must be bool ({queries}, {keys}), got {mask.dtype} {tuple(mask.shape)}")


def check_support(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: Backend) -> None:
    """Raises ValueError when a backend that is there cannot do what these inputs ask."""
    if backend == "flex":
        differentiates = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if differentiates and q.device.type == "cpu":
            raise ValueError("attention backend 'flex' has no gradients on a CPU: train with 'native'")
        return
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"attention backend {backend!r} needs float16 or bfloat16, got {q.dtype}: use autocast")
    if mask is not None:
        raise ValueError(f"attention backend {backend!r} takes no mask: use 'native' or 'flex'")


@cache
def why_not(backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run on `device`, as the end of a sentence; None when it can."""
    if backend not in BACKENDS:
        return f"is unknown; known: {', '.join(BACKENDS)}"
    if backend == "native":
        return None
    if backend in CAPABILITY:
        least = CAPABILITY[backend]
        if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
            return "needs an NVIDIA GPU"
        if torch.cuda.get_device_capability(device) < least:
            return f"needs a GPU of compute capability {least[0]}.{least[1]}"
    elif device.type not in ("cpu", "cuda"):
        return "needs a CPU or a CUDA device"
    if importlib.util.find_spec("diffusers") is None:
        return "needs the diffusers package: pip install diffusers"
    from diffusers.models.attention_dispatch import attention_backend

    try:
        with attention_backend(DIFFUSERS_NAMES[backend]):  # entering it checks what is installed
            return None
    except (RuntimeError, ValueError) as error:
        return f"cannot be used ({str(error).splitlines()[0].rstrip('.')})"


def sdpa_arguments(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> dict[str, Any]:
    """The mask and switches that SDPA needs.

    SDPA's is_causal lets query t see keys up to t, as if the queries were the *first* of the S positions. With cached
    keys they are the last, so that is_causal is right for T = S alone.
    """
    queries, keys = q.shape[2], k.shape[2]
    square = queries == keys
    if causal and not square and queries > 1:  # a single query is the last position and sees every key
        mask = lower_right(queries, keys, q.device)
    return {"attn_mask": mask, "is_causal": causal and square, "enable_gqa": k.shape[1] != q.shape[1]}


def lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """Bool (T, S): query t may look at keys up to t + S - T."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def block_mask(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> BlockMask | None:
    """What flex needs in place of a mask or of is_causal."""
    queries, keys = q.shape[2], k.shape[2]
    if mask is not None:
        from torch.nn.attention.flex_attention import create_block_mask

        may_look = mask

        def given(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return may_look[t, s]

        return create_block_mask(given, None, None, queries, keys, device=q.device)
    return causal_block_mask(queries, keys, q.device) if causal and queries > 1 else None


@lru_cache(maxsize=16)
def causal_block_mask(queries: int, keys: int, device: torch.device) -> BlockMask:
    """The block mask of `lower_right`. Making one costs more than a layer's attention, hence the cache."""
    from torch.nn.attention.flex_attention import create_block_mask

    def past(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return s <= t + (keys - queries)

    with torch.inference_mode(False):  # sampling may be the first to ask; training must be able to use it too
        return create_block_mask(past, None, None, queries, keys, device=device)
