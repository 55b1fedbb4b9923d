"""Attention, softmax(Q K^T / sqrt(d)) V: the mixer of a transformer block, and a choice of kernels.

The requested kernel runs, or a ValueError says why it cannot. It is never replaced by another one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.layers import RMSNorm
from genmodels.nn.masks import block_mask, lower_right
from genmodels.nn.mixer import Layers, Mixer, State
from genmodels.nn.places import Places
from genmodels.nn.rope import rotate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.nn.attention.flex_attention import BlockMask

    from genmodels.nn.transformer import TransformerConfig

Backend = Literal["native", "flash", "flash3", "flex"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""native: torch's scaled_dot_product_attention (SDPA). flash: FlashAttention 2 (package flash-attn,
arXiv 2307.08691). flash3: FlashAttention 3 (package flash_attn_3, arXiv 2407.08608). flex: torch's
FlexAttention (arXiv 2412.05496). All except native run through diffusers' dispatch."""
DIFFUSERS_NAMES = {"flash": "flash", "flash3": "_flash_3", "flex": "flex"}
CAPABILITY = {"flash": (8, 0), "flash3": (9, 0)}
"""The lowest compute capabilities that the FlashAttention packages support: Ampere and Hopper."""


class Attention(Mixer):
    """Self-attention with H query heads and G heads of keys and values, all from one matrix."""

    rewindable: ClassVar[bool] = True
    needs_mask: ClassVar[bool] = True

    def __init__(self, config: TransformerConfig, causal: bool, index: int = 0):
        super().__init__(config, causal, index)
        self.backend: Backend = config.backend
        self.head_dim = config.head_dim
        self.groups = config.head_groups
        self.heads = [config.heads, config.key_heads, config.key_heads]
        self.qkv = nn.Linear(config.width, sum(self.heads) * config.head_dim, bias=config.bias)
        self.out = nn.Linear(config.heads * config.head_dim, config.width, bias=config.bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, places: Places, state: State | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (N, H + 2G, T, d)
        q, k, v = qkv.split(self.heads, dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if places.angles is not None:
            q, k = rotate(q, places.angles), rotate(k, places.angles)
        if state is not None:
            keys, values = state
            k, v = append(keys, k, places), append(values, v, places)  # (N, G, S, d)
        causal = self.causal and places.mask is None
        out = attend(q, k, v, causal=causal, mask=places.mask, backend=self.backend)  # (N, H, T, d)
        return self.out(out.transpose(1, 2).flatten(2))  # (N, T, D)

    @property
    def takes_blocks(self) -> bool:
        return self.backend == "flex"

    def make_state(self, n: int, capacity: int, dtype: torch.dtype, device: torch.device) -> State:
        """Keys and values, (N, G, capacity, d) each."""
        # Zeros, not uninitialised memory: a mask cannot hide nan.
        shape = (n, self.heads[1], capacity, self.head_dim)
        return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)

    def residual(self) -> Iterable[Tensor]:
        return (self.out.weight,)

    def muon(self) -> Iterable[Tensor]:
        return self.qkv.weight, self.out.weight

    def divisible(self) -> Layers:
        outputs = tuple(heads * self.head_dim for heads in self.heads)
        return Layers({"qkv": outputs}, ("out",), self.heads[1], "kv_heads")

    def divide(self, processes: int, group: ProcessGroup) -> None:
        """Compute 1 / `processes` of the heads."""
        self.heads = [heads // processes for heads in self.heads]
        for norm in (self.q_norm, self.k_norm):
            if isinstance(norm, RMSNorm):
                norm.group = group


def append(cached: Tensor, new: Tensor, places: Places) -> Tensor:
    """Write `new` (N, G, T, d) into `cached` and return all that is attended to, (N, G, S, d)."""
    assert places.write is not None
    cached.index_copy_(2, places.write, new.to(cached.dtype))
    return cached[:, :, : places.end].to(new.dtype)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | BlockMask | None = None,
    backend: Backend = "native",
) -> Tensor:
    """Attention of T queries over S keys.

    Multi-head (G = H), grouped-query (arXiv 2305.13245) or multi-query (G = 1, arXiv 1911.02150):
    query head h attends to key head h // (H / G). The scale is 1 / sqrt(d); the softmax is computed
    in float32 for every dtype.

    Args:
        q: queries (N, H, T, d).
        k: keys (N, G, S, d), with G a divisor of H.
        v: values (N, G, S, d).
        causal: query t attends to keys up to t + S - T: the queries are the last T of S positions,
            as with cached keys.
        mask: bool (T, S), (N, T, S) or (N, 1 or H, T, S), in place of `causal`: True where a query
            attends to a key. Every query needs at least one key. FlashAttention takes no mask. `flex`
            also takes a BlockMask.
        backend: which implementation. It is never replaced by another one.

    Returns:
        (N, H, T, d), in the dtype of q.

    Raises:
        ValueError: when shapes or dtypes do not fit, or the backend cannot run; the message lists
            those that can.
    """
    check_inputs(q, k, v, causal, mask, backend)
    if isinstance(mask, Tensor) and mask.ndim == 3:
        mask = mask.unsqueeze(1)  # (N, 1, T, S)
    if backend == "native":
        assert mask is None or isinstance(mask, Tensor)
        return F.scaled_dot_product_attention(q, k, v, **sdpa_arguments(q, k, causal, mask))
    if not torch.compiler.is_compiling():  # a compiled graph cannot look up installed packages
        check_backend(backend, q.device)
    check_support(q, k, v, mask, backend)
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    flex = backend == "flex"
    options: dict[str, Any] = {
        # Flex ignores is_causal and needs a block mask. FlashAttention aligns causal masks as here.
        "attn_mask": block_mask(q, k, causal, mask) if flex else None,
        "is_causal": causal and not flex,
        "enable_gqa": k.shape[1] != q.shape[1],
        "backend": DIFFUSERS_NAMES[backend],
    }
    out = dispatch_attention_fn(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options)  # (N, T, H, d)
    return out.transpose(1, 2)  # (N, H, T, d)


def set_backend(model: nn.Module, backend: Backend) -> None:
    """Make every attention inside `model` use `backend`, for example to sample on another machine.

    Raises:
        ValueError: for an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(BACKENDS)}")
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = backend


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
    """The name of the kernel that `attend` runs for these inputs. It raises the errors of `attend`.

    SDPA chooses a kernel by device, dtype and shape. "native: flash", "native: efficient" and
    "native: cudnn" are tiled; "native: math" stores all T x S scores. Flex is only fused by
    torch.compile: outside it, "flex: unfused" stores all scores too.
    """
    check_inputs(q, k, v, causal, mask, backend)
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    check_backend(backend, q.device)
    if backend == "native":
        from torch.nn.attention import SDPBackend

        choice = SDPBackend(torch._fused_sdp_choice(q, k, v, **sdpa_arguments(q, k, causal, mask)))
        return "native: " + choice.name.lower().removesuffix("_attention")
    check_support(q, k, v, mask, backend)
    return "flex: unfused" if backend == "flex" else backend


def check_inputs(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | BlockMask | None, backend: Backend
) -> None:
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
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        if backend != "flex":
            raise ValueError(f"attention backend {backend!r} takes no BlockMask: give a bool mask, or use 'flex'")
        return
    leading = ((), (n,), (n, 1), (n, heads))
    if mask.dtype != torch.bool or mask.shape[-2:] != (queries, keys) or mask.shape[:-2] not in leading:
        raise ValueError(
            f"the mask must be bool ({queries}, {keys}), got {mask.dtype} {tuple(mask.shape)}; it may have leading "
            f"axes ({n},), ({n}, 1) or ({n}, {heads}) for rows and heads"
        )


def check_support(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None, backend: Backend) -> None:
    """Raises ValueError when a backend that is installed does not support these inputs."""
    differentiates = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if backend == "flex":
        if differentiates and q.device.type == "cpu":
            raise ValueError("attention backend 'flex' has no gradients on a CPU: train with 'native'")
        return
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"attention backend {backend!r} needs float16 or bfloat16, got {q.dtype}: use autocast")
    if mask is not None:
        raise ValueError(f"attention backend {backend!r} takes no mask: use 'native' or 'flex'")
    if differentiates and backend == "flash3":  # diffusers registers the kernel without a backward pass
        raise ValueError("attention backend 'flash3' has no gradients: train with 'flash' or 'native'")


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

    With SDPA's is_causal, query t attends to keys up to t, as if the queries were the *first* of
    the S positions. With cached keys they are the last, so is_causal is only correct for T = S.
    """
    queries, keys = q.shape[2], k.shape[2]
    square = queries == keys
    if causal and not square and queries > 1:  # a single query attends to all keys
        mask = lower_right(queries, keys, q.device)
    return {"attn_mask": mask, "is_causal": causal and square, "enable_gqa": k.shape[1] != q.shape[1]}
