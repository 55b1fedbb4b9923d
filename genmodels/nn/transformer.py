"""The transformer that autoregressive models and diffusion transformers share. It does not know what tokens mean.

The block is Llama's (arXiv 2302.13971, 2407.21783): RMSNorm before each branch, grouped-query attention with rotary
positions, SwiGLU, no biases. Each of these has the older choice beside it: LayerNorm, no rotation, GELU, biases, which
together are the block of GPT-2 and of the first diffusion transformer. Embeddings, heads and conditions belong to the
models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genmodels.nn.attention import BACKENDS, Backend, attend
from genmodels.nn.cache import KVCache, Slots, empty_cache
from genmodels.nn.rope import Rope, rope, rotate

INIT_STD = 0.02


@dataclass(frozen=True)
class TransformerConfig:
    """Architecture of a stack of blocks."""

    width: int = 256
    """D, the size of a token's vector."""
    depth: int = 6
    """Blocks."""
    heads: int = 4
    """H, query heads; each has width / heads channels."""
    kv_heads: int | None = None
    """G, heads of keys and values, a divisor of `heads`. None is `heads` (multi-head); 1 is multi-query, more
    are grouped (arXiv 2305.13245)."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm with a gain, or LayerNorm without any."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """SwiGLU, or two layers with GELU (its tanh form) between them."""
    hidden: int | None = None
    """Inner width of the MLP. None is 4 times the width with GELU; with SwiGLU 8/3, rounded up to a multiple of 64,
    which are as many weights (arXiv 2002.05202)."""
    bias: bool = False
    """Biases in the linear layers of the blocks."""
    rotary: bool = True
    """Rotary positions; otherwise whoever makes the tokens tells them where they are."""
    causal: bool = True
    """A token sees itself and those before it; otherwise all."""
    qk_norm: bool = False
    """RMSNorm on the queries and keys of each head, which bounds the scores (arXiv 2302.05442)."""
    rope_theta: float = 10_000.0
    """Base of the wavelengths of the rotary positions."""
    norm_eps: float = 1e-5
    """Added to the mean square in every norm."""
    dropout: float = 0.0
    """Share of each branch's output set to zero in training."""
    backend: Backend = "native"
    """Implementation of attention; see `genmodels.nn.attention`."""
    recompute: bool = False
    """Compute each block again in the backward pass instead of keeping its activations (arXiv 1604.06174): about a
    third more work for a fraction of the memory."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.key_heads, self.inner) < 1:
            raise ValueError("width, depth, heads, kv_heads and hidden of a transformer must be at least 1")
        if self.width % self.heads or self.head_dim % 2:
            raise ValueError(
                f"width {self.width} must be {self.heads} heads of an even number of channels: choose a multiple of "
                f"{2 * self.heads}"
            )
        if self.heads % self.key_heads:
            raise ValueError(f"kv_heads {self.key_heads} must divide heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.rope_theta <= 0 or self.norm_eps <= 0:
            raise ValueError("rope_theta and norm_eps must be positive")
        if self.norm not in ("rms", "layer") or self.mlp not in ("swiglu", "gelu"):
            raise ValueError(f"norm must be rms or layer and mlp swiglu or gelu, got {self.norm!r} and {self.mlp!r}")
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown attention backend {self.backend!r}; known: {', '.join(BACKENDS)}")

    @property
    def head_dim(self) -> int:
        """d."""
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        """G."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def inner(self) -> int:
        """Inner width of the MLP."""
        usual = 4 * self.width if self.mlp == "gelu" else 64 * math.ceil(self.width * 8 / 3 / 64)
        return usual if self.hidden is None else self.hidden


class Modulation(NamedTuple):
    """What adaLN-zero (arXiv 2212.09748) does to a branch of a block: x + gate * branch(norm(x) * (1 + scale) + shift).

    Each is (N, 1, D), or (N, T, D) where tokens differ.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor


BlockModulation = tuple[Modulation, Modulation]
"""Of the attention and of the MLP."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv 1910.07467), computed in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202). Gate and up are one matrix."""

    def __init__(self, width: int, hidden: int, bias: bool = False):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (N, T, hidden)
        return self.down(F.silu(gate) * up)


class GELU(nn.Module):
    """down(gelu(up(x))), with the tanh form of GELU (arXiv 1606.08415)."""

    def __init__(self, width: int, hidden: int, bias: bool = False):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) over the last axis, without gain, computed in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Attention(nn.Module):
    """Self-attention. Queries, keys and values come from one matrix."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.causal = config.causal
        self.backend: Backend = config.backend
        self.head_dim = config.head_dim
        self.heads = [config.heads, config.key_heads, config.key_heads]
        self.qkv = nn.Linear(config.width, sum(self.heads) * config.head_dim, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, angles: Rope | None, slots: Slots | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (N, H + 2G, T, d)
        q, k, v = qkv.split(self.heads, dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        mask = None
        if slots is not None:
            k, v = slots.append(k, v)  # (N, G, S, d)
            mask = slots.mask
        causal = self.causal and mask is None
        out = attend(q, k, v, causal=causal, mask=mask, backend=self.backend)  # (N, H, T, d)
        return self.out(out.transpose(1, 2).flatten(2))  # (N, T, D)


class Block(nn.Module):
    """Attention, then the MLP, each normalised before and added to the stream; modulated by adaLN-zero if asked to."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = (GELU if config.mlp == "gelu" else SwiGLU)(config.width, config.inner, config.bias)

    def forward(
        self, x: Tensor, angles: Rope | None, slots: Slots | None = None, modulation: BlockModulation | None = None
    ) -> Tensor:
        first, second = modulation or (None, None)
        x = self._add(x, self.attention(_shifted(self.attention_norm(x), first), angles, slots), first)
        return self._add(x, self.mlp(_shifted(self.mlp_norm(x), second)), second)

    def _add(self, x: Tensor, branch: Tensor, modulation: Modulation | None) -> Tensor:
        branch = F.dropout(branch, self.dropout, self.training)
        return x + (branch if modulation is None else modulation.gate * branch)


def make_norm(config: TransformerConfig) -> nn.Module:
    """The norm before each branch."""
    return (RMSNorm if config.norm == "rms" else LayerNorm)(config.width, config.norm_eps)


def _shifted(x: Tensor, modulation: Modulation | None) -> Tensor:
    return x if modulation is None else x * (1 + modulation.scale) + modulation.shift


class Transformer(nn.Module):
    """A stack of blocks and a final norm: (N, T, D) -> (N, T, D)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = make_norm(config)
        init_weights(self, config.depth)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        modulation: Sequence[BlockModulation] | None = None,
        *,
        after: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """Mixes tokens.

        Args:
            x: token vectors (N, T, D).
            positions: (T,) along a line or (T, 2) over a grid; by default 0, 1, ..., counted on from `cache`.
            cache: keys and values of earlier positions, to which those of x are added. For generation: it is changed
                in place, so no gradients pass.
            modulation: of each block, `depth` of them.
            after: one function (N, T, D) -> (N, T, D) per block, applied after it, such as cross-attention.

        Returns:
            (N, T, D), normalised.

        Raises:
            ValueError: when the cache is too short.
        """
        slots = None if cache is None else cache.extend(x.shape[1])
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device) if slots is None else slots[0].write
        x = self.through(x, positions, modulation, slots=slots, after=after)
        if cache is not None:
            cache.length += x.shape[1]  # at the end: all blocks write to the same slots
        return self.norm(x)

    def through(
        self,
        x: Tensor,
        positions: Tensor,
        modulation: Sequence[BlockModulation] | None = None,
        first: int = 0,
        last: int | None = None,
        slots: Sequence[Slots] | None = None,
        *,
        after: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """x (N, T, D) after the blocks from `first` up to, without it, `last`: (N, T, D), not normalised. Arguments as
        for `forward`; modulation, slots and after are of all blocks."""
        c = self.config
        angles = rope(positions, c.head_dim, c.rope_theta) if c.rotary else None
        for i, block in list(enumerate(self.blocks))[first:last]:
            slot = None if slots is None else slots[i]
            change = None if modulation is None else modulation[i]
            if c.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, angles, slot, change, use_reentrant=False)
            else:
                x = block(x, angles, slot, change)
            if after is not None:
                x = after[i](x)
        return x

    def make_cache(self, n: int, capacity: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `n` sequences of up to `capacity` positions: 2 * depth * n * G * capacity * d values.

        Args:
            n: sequences.
            capacity: S, positions that fit, prefix included.
            dtype: of keys and values; by default that of autocast, or else of the weights.

        Raises:
            ValueError: when the transformer is not causal.
        """
        if not self.config.causal:
            raise ValueError("a cache of keys needs a causal transformer: here earlier positions see later ones")
        weight = next(self.parameters())
        kind = weight.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        shape = (n, self.config.key_heads, capacity, self.config.head_dim)
        return empty_cache(self.config.depth, shape, dtype, weight.device)


def block_matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weight matrices of every block inside `model`."""
    for block in (module for module in model.modules() if isinstance(module, Block)):
        yield from (parameter for parameter in block.parameters() if parameter.ndim == 2)


def set_backend(model: nn.Module, backend: Backend) -> None:
    """Makes every attention inside `model` use `backend` from now on, say to sample on another machine."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(BACKENDS)}")
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = backend


@torch.no_grad()
def init_weights(model: nn.Module, depth: int) -> None:
    """GPT-2's initialisation: N(0, 0.02^2) for every linear layer and embedding in `model`, zero biases.

    The two layers that write into the residual stream start smaller by sqrt(2 depth), the number of things that are
    added to it, so that the stream's variance does not grow with depth. Norms keep their ones.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Block):
            for last in (module.attention.out, module.mlp.down):
                nn.init.normal_(last.weight, std=INIT_STD / math.sqrt(2 * depth))
