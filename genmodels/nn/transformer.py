"""The transformer that all families share. It does not know what tokens mean.

The default block is Llama's (arXiv 2302.13971, 2407.21783): RMSNorm, grouped-query attention with
rotary positions, SwiGLU, no biases. LayerNorm, no rotation, GELU and biases make the block of GPT-2
and of the first diffusion transformer. Embeddings, heads and conditions belong to the models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from genmodels.nn.attention import BACKENDS, Backend
from genmodels.nn.block import MIXERS, Block, BlockModulation
from genmodels.nn.cache import Cache
from genmodels.nn.experts import ExpertsConfig
from genmodels.nn.head_groups import HeadGroupsConfig
from genmodels.nn.layers import MLPS, NORMS, make_norm
from genmodels.nn.masks import Rule, on_axes
from genmodels.nn.mixer import init_weights
from genmodels.nn.places import Places, number_sequences
from genmodels.nn.recompute import recomputed
from genmodels.nn.rope import rope
from genmodels.nn.ssm import SSMConfig


@dataclass(frozen=True)
class TransformerConfig:
    """Architecture of a stack of blocks."""

    width: int = 256
    """D, the size of a token's vector."""
    depth: int = 6
    """Number of blocks."""
    heads: int = 4
    """H, query heads."""
    head_width: int | None = None
    """d, channels of a head. None: width / heads."""
    kv_heads: int | None = None
    """G, heads of keys and values, a divisor of `heads`. None: `heads` (multi-head attention); 1:
    multi-query; between: grouped-query (arXiv 2305.13245)."""
    head_groups: HeadGroupsConfig = HeadGroupsConfig()
    """Grouped head attention (arXiv 2305.14380): training pulls the heads into groups, of which
    `genmodels prune` keeps one head each."""
    mixers: tuple[Literal["attention", "mamba", "mamba2"], ...] = ("attention",)
    """Mixers of the blocks, a pattern that repeats over the depth."""
    ssm: SSMConfig = SSMConfig()
    """Of the mixers mamba and mamba2."""
    norm: Literal["rms", "layer", "affine"] = "rms"
    """RMSNorm, LayerNorm without a gain, or (affine) with a gain and a bias."""
    mlp: Literal["swiglu", "gelu", "exact_gelu", "quick_gelu", "none"] = "swiglu"
    """SwiGLU, GELU between two layers (its tanh approximation, itself, or x sigmoid(1.702 x)); or
    none: blocks are a mixer only, as those of Mamba."""
    hidden: int | None = None
    """Inner width of the MLP. None: 4 times the width with GELU; with SwiGLU 8/3 of the width,
    rounded up to a multiple of 64, which gives as many weights (arXiv 2002.05202)."""
    experts: ExpertsConfig = ExpertsConfig()
    """Mixture of experts in place of the MLP."""
    bias: bool = False
    """Biases in the linear layers of the blocks."""
    rotary: bool = True
    """Rotary positions, of attention. Otherwise tokens must contain their positions."""
    qk_norm: bool = False
    """RMSNorm on the queries and keys of each head, which bounds the scores (arXiv 2302.05442)."""
    rope_theta: float = 10_000.0
    """Base of the wavelengths of the rotary positions."""
    norm_eps: float = 1e-5
    """Added to the mean square in every norm."""
    dropout: float = 0.0
    """Dropout rate of each branch's output in training."""
    backend: Backend = "native"
    """Implementation of attention; see `genmodels.nn.attention`."""
    window: int | None = None
    """Largest difference of rows and of columns (along a line: of positions) between tokens that
    attend to each other. None: no limit."""
    recompute: bool = False
    """Recompute each block in the backward pass: a third more computation, less memory."""

    def __post_init__(self) -> None:
        for mixer in self.mixers:
            if mixer not in MIXERS:
                raise ValueError(f"unknown mixer {mixer!r}; known: {', '.join(MIXERS)}")
        if self.norm not in NORMS or self.mlp not in (*MLPS, "none"):
            known = f"norm must be {' or '.join(NORMS)} and mlp {' or '.join((*MLPS, 'none'))}"
            raise ValueError(f"{known}, got {self.norm!r} and {self.mlp!r}")
        if min(self.width, self.depth, self.heads, self.key_heads, self.hidden if self.hidden is not None else 1) < 1:
            raise ValueError("width, depth, heads, kv_heads and hidden of a transformer must be at least 1")
        if self.mlp == "none" and (self.hidden is not None or self.experts.count):
            raise ValueError("hidden and experts are settings of an MLP, and mlp is none: leave them out")
        if not 1 <= len(self.mixers) <= self.depth:
            raise ValueError(f"mixers must name 1 to {self.depth} mixers, one per block, got {len(self.mixers)}")
        self.ssm.check(self.width, self.mixers)
        if self.head_width is not None and (self.head_width < 2 or self.head_width % 2):
            raise ValueError(f"head_width must be an even number of channels, got {self.head_width}")
        if self.head_width is None and (self.width % self.heads or self.head_dim % 2):
            even = f"{self.heads} heads of an even number of channels: choose a multiple of {2 * self.heads}"
            raise ValueError(f"width {self.width} must be {even}")
        if self.heads % self.key_heads:
            raise ValueError(f"kv_heads {self.key_heads} must divide heads {self.heads}")
        self.head_groups.check(self.heads, self.key_heads, self.mixers)
        if self.window is not None and (self.window < 1 or "attention" not in self.mixers):
            raise ValueError(f"window must be at least 1, and a mixer attention; got {self.window} and {self.mixers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if min(self.rope_theta, self.norm_eps) <= 0:
            raise ValueError("rope_theta and norm_eps must be positive")
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown attention backend {self.backend!r}; known: {', '.join(BACKENDS)}")

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """Fields without effect, which are not recorded."""
        unused = {
            "ssm": not self.ssm.is_used(self.mixers),
            "experts": not self.experts.count,
            "head_groups": not self.head_groups.count,
            "head_width": self.head_width is None,
            "window": self.window is None,
        }
        return tuple(name for name, is_unused in unused.items() if is_unused)

    @property
    def backward_only(self) -> tuple[str, ...]:
        """Settings without a derivative along a direction, which mean flows compute."""
        mixers = [f"mixer {kind}" for kind in self.mixers if not MIXERS[kind].forward_mode]
        backend = [] if self.backend == "native" else [f"backend {self.backend}"]
        return tuple(dict.fromkeys([*mixers, *backend, *(f"kernel {kernel}" for kernel in self.ssm.kernels)]))

    @property
    def head_dim(self) -> int:
        """d."""
        return self.head_width or self.width // self.heads

    @property
    def key_heads(self) -> int:
        """G."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def inner(self) -> int:
        """Inner width of the MLP; 0 without one."""
        return self.hidden or (0 if self.mlp == "none" else MLPS[self.mlp].default_hidden(self.width))


class Transformer(nn.Module):
    """A stack of blocks and a final norm: (N, T, D) -> (N, T, D).

    Args:
        config: its architecture.
        causal: whether token t depends on tokens up to t only; otherwise, on all tokens.

    Raises:
        ValueError: when the mixers or the experts do not fit `causal`.
    """

    def __init__(self, config: TransformerConfig, *, causal: bool):
        super().__init__()
        self.config = config
        self.causal = causal
        kinds = (config.mixers[i % len(config.mixers)] for i in range(config.depth))
        self.blocks = nn.ModuleList(Block(config, kind, causal, i) for i, kind in enumerate(kinds))
        self.norm = make_norm(config)
        init_weights(self, config.depth)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        modulation: Sequence[BlockModulation] | None = None,
        *,
        starts: Tensor | None = None,
        valid: Tensor | None = None,
        after: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: token vectors (N, T, D).
            positions: (T,) along a line, (T, 2) over a grid, or (N, T, 1 or 2) where rows differ;
                by default 0, 1, ..., continued from `cache`.
            cache: states of earlier positions, changed in place. For generation, without gradients.
            modulation: one per block.
            starts: bool (N, T), True where a new sequence (a document) begins. Tokens of one
                sequence do not see others. None: each row is one sequence.
            valid: bool (N, T), False at padding, which no other token sees. None: no padding.
            after: one function (N, T, D) -> (N, T, D) per block, applied to its output.

        Returns:
            (N, T, D), normalised.

        Raises:
            ValueError: for positions beyond the cache, or `starts` or `valid` that is not bool (N, T).
        """
        length = x.shape[1]
        if positions is None:
            positions = torch.arange(length, device=x.device) if cache is None else cache.slots(length)
        places = self.places(positions, starts, valid, cache)
        x = self.through(x, places, modulation, cache=cache, after=after)
        if cache is not None:
            cache.advance(length)
        return self.norm(x)

    def places(
        self,
        positions: Tensor,
        starts: Tensor | None = None,
        valid: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Places:
        """Angles, masks and slots of a forward pass, shared by all blocks. Arguments as for
        `forward`."""
        c = self.config
        length = positions.shape[max(0, positions.ndim - 2)]  # T
        for name, rows in (("starts", starts), ("valid", valid)):
            if rows is not None and (rows.dtype != torch.bool or rows.ndim != 2 or rows.shape[1] != length):
                raise ValueError(f"{name} must be bool (N, {length}), got {rows.dtype} {tuple(rows.shape)}")
        angles = rope(positions, c.head_dim, c.rope_theta) if c.rotary else None
        if cache is None:
            write, end, sequences = torch.arange(length, device=positions.device), length, None
            if starts is not None or valid is not None:
                sequences = (number_sequences(starts, valid),) * 2
        else:
            write, end = cache.slots(length), cache.end(length)
            sequences = cache.add_sequences(write, end, starts, valid)
        mask = None
        if readers := [block.mixer for block in self._blocks() if block.mixer.needs_mask]:
            # A compiled step reads the whole cache: a mask hides the slots that are not filled yet.
            whole = self.causal and cache is not None and torch.compiler.is_compiling()
            near = None
            if c.window is not None:
                own = on_axes(positions)
                near = (own, own) if cache is None else cache.add_positions(write, end, own)
            if whole or sequences is not None or near is not None:
                rule = Rule(write, end, self.causal, sequences, near, c.window or 0)
                mask = rule.blocks() if readers[0].takes_blocks else rule.dense()
        return Places(positions, angles, mask, starts, valid, *(() if cache is None else (write, end)))

    def through(
        self,
        x: Tensor,
        places: Places,
        modulation: Sequence[BlockModulation] | Mapping[int, BlockModulation] | None = None,
        first: int = 0,
        last: int | None = None,
        cache: Cache | None = None,
        after: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """Apply blocks `first` to `last` - 1 to x (N, T, D), without the final norm.

        Args:
            x: (N, T, D).
            places: where the tokens are, from `places`.
            modulation: of all blocks, or of these by their index.
            first: index of the first block.
            last: index after the last block; None: all.
            cache: whose states are updated; the caller advances it.
            after: as for `forward`.
        """
        for i, block in list(enumerate(self.blocks))[first:last]:
            state = None if cache is None else cache.states[i]
            change = None if modulation is None else modulation[i]
            if self.config.recompute and state is None and torch.is_grad_enabled():
                x = recomputed(block, x, places, None, change)
            else:
                x = block(x, places, state, change)
            if after is not None:
                x = after[i](x)
        return x

    def make_cache(self, n: int, capacity: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty cache for `n` rows of up to `capacity` positions.

        Attention keeps keys and values, 2 * n * G * capacity * d numbers per block.

        Args:
            n: rows.
            capacity: S, positions that fit, prefix included.
            dtype: of the states; by default that of autocast, otherwise that of the weights.

        Raises:
            ValueError: when the transformer is not causal.
        """
        if not self.causal:
            raise ValueError("a cache needs a causal transformer: in this one, earlier tokens depend on later ones")
        weight = next(self.parameters())
        device = weight.device
        if dtype is None:
            enabled = torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if enabled else weight.dtype
        blocks = self._blocks()
        states = [block.mixer.make_state(n, capacity, dtype, device) for block in blocks]
        forward_only = [block.kind for block in blocks if not block.mixer.rewindable]
        return Cache(states, n, capacity, device, forward_only)

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))
