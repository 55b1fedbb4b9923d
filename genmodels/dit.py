"""The diffusion transformer: patches as tokens, and a transformer that is told the time by adaLN-zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from torch import Tensor, nn

from genmodels.diffusion.model import Diffusion, DiffusionConfig
from genmodels.diffusion.process import DDPM
from genmodels.nn.rope import grid_positions
from genmodels.nn.transformer import Modulation, Transformer, TransformerConfig, block_matrices

SIZES = {
    name: TransformerConfig(width=width, depth=depth, heads=heads, causal=False)
    for name, (width, depth, heads) in {
        "S": (384, 12, 6),
        "B": (768, 12, 12),
        "L": (1024, 24, 16),
        "XL": (1152, 28, 16),
    }.items()
}
"""The sizes of the paper; the default is for a processor."""
FREQUENCIES = 256
"""Sines and cosines that the time is shown as."""


@dataclass(frozen=True)
class DiTConfig(DiffusionConfig):
    """The network, beside what every diffusion model has."""

    patch: int = 2
    """Side of the square of pixels (or latents) that is one token."""
    transformer: TransformerConfig = TransformerConfig(width=256, depth=8, heads=4, causal=False)
    """The blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _, height, width = self.shape
        if self.patch < 1 or height % self.patch or width % self.patch:
            raise ValueError(f"patch must divide the sides of the input, got {self.patch} for {height} x {width}")
        if self.transformer.causal:
            raise ValueError("every patch of a diffusion transformer sees all others: transformer.causal must be False")
        channels = self.transformer.head_dim if self.transformer.rotary else self.transformer.width
        if channels % 4:
            what = "heads" if self.transformer.rotary else "tokens"
            raise ValueError(f"positions over a grid need {what} of a multiple of 4 channels, got {channels}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.shape[1] // self.patch, self.shape[2] // self.patch


class DiT(Diffusion):
    """Diffusion with a transformer (arXiv 2212.09748): Llama's blocks, with rotary positions over the grid (as in
    LightningDiT, arXiv 2501.01423), or those it was introduced with (`vanilla`)."""

    family = "dit"
    Config = DiTConfig
    positions: Tensor
    """Rows and columns of the tokens (T, 2)."""
    places: Tensor | None
    """Sines and cosines of the positions (1, T, D), where they are not rotary."""

    def __init__(self, config: DiTConfig | None = None):
        c = config or DiTConfig()
        width = c.transformer.width
        super().__init__(c, width)
        values = c.shape[0] * c.patch**2
        self.patches = nn.Linear(values, width)
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=1)  # as diffusers
        self.time = TimestepEmbedding(FREQUENCIES, width)
        self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(c.transformer.depth))
        self.transformer = Transformer(c.transformer)
        self.last_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, values)
        for zero in (*self.modulations, self.last_modulation, self.head):  # every block begins as the identity
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        self.register_buffer("positions", grid_positions(*c.grid), persistent=False)
        places = None
        if not c.transformer.rotary:
            places = get_2d_sincos_pos_embed(width, c.grid, base_size=c.grid[0], output_type="pt").float().unsqueeze(0)
        self.register_buffer("places", places, persistent=False)

    def hidden_matrices(self) -> Iterator[nn.Parameter]:
        return block_matrices(self)

    def predict(self, x: Tensor, signal: Tensor, condition: Tensor | None) -> Tensor:
        patch = self.config.patch
        tokens = F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)  # (N, T, C p^2)
        told = self.time(self.frequencies(signal).to(x.dtype))  # (N, D)
        told = F.silu(told if condition is None else told + condition).unsqueeze(1)  # (N, 1, D)
        modulation = [pairs(layer(told)) for layer in self.modulations]
        tokens = self.patches(tokens)  # (N, T, D)
        if self.places is not None:
            tokens = tokens + self.places
        found = self.transformer(tokens, self.positions, modulation=modulation)
        shift, scale = self.last_modulation(told).chunk(2, dim=-1)
        found = self.head(found * (1 + scale) + shift)  # (N, T, C p^2)
        return F.pixel_shuffle(found.transpose(1, 2).unflatten(2, self.config.grid), patch)


def pairs(change: Tensor) -> tuple[Modulation, Modulation]:
    """(N, 1, 6 D) -> what it does to the attention and to the MLP of a block."""
    parts = change.chunk(6, dim=-1)
    return Modulation(*parts[:3]), Modulation(*parts[3:])


def vanilla(**settings: Any) -> DiTConfig:
    """The diffusion transformer as it was introduced (arXiv 2212.09748): LayerNorm, GELU, biases, sines and cosines
    added for positions, and a DDPM that predicts the noise.

    Args:
        **settings: of DiTConfig, over these; `transformer` may be a TransformerConfig of which width, depth and heads
            count.
    """
    size = settings.pop("transformer", DiTConfig().transformer)
    blocks = replace(size, norm="layer", mlp="gelu", bias=True, rotary=False, norm_eps=1e-6, hidden=None, causal=False)
    ddpm = DDPM(prediction="eps", schedule="linear", min_snr=None)
    return DiTConfig(**({"process": "ddpm", "ddpm": ddpm, "transformer": blocks} | settings))
