"""Diffusion transformer (DiT): patches as tokens, and the time embedding in adaLN-zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from torch import Tensor, nn

from genmodels.diffusion.config import DiffusionConfig
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.model import Diffusion
from genmodels.diffusion.stages import pairs, transformer_stages
from genmodels.nn.conditioning import Embedded
from genmodels.nn.cross_attention import CrossAttentionStack
from genmodels.nn.rope import grid_positions
from genmodels.nn.stages import Stages
from genmodels.nn.transformer import Transformer, TransformerConfig
from genmodels.saving import Derived
from genmodels.types import Batch

SIZES = {
    name: TransformerConfig(width=width, depth=depth, heads=heads)
    for name, (width, depth, heads) in {
        "S": (384, 12, 6),
        "B": (768, 12, 12),
        "L": (1024, 24, 16),
        "XL": (1152, 28, 16),
    }.items()
}
"""Sizes of the paper (arXiv 2212.09748). The default of `DiTConfig` is smaller, for CPUs."""
FREQUENCIES = 256
"""Number of sines and cosines of the time that are embedded."""


@dataclass(frozen=True)
class Masking:
    """Deferred masking of tokens in training (arXiv 2407.15811).

    The first blocks process all tokens, the others a random subset of them.
    """

    keep: float = 1.0
    """Fraction of the tokens that the other blocks process. 1: no masking."""
    mixers: int = 2
    """Number of first blocks, which process all tokens."""
    until: float = 0.8
    """Fraction of training after which no token is masked."""

    def __post_init__(self) -> None:
        if not (0 < self.keep <= 1 and self.mixers >= 0 and 0 <= self.until <= 1):
            raise ValueError(
                f"masking: keep must be in (0, 1], mixers not negative and until in [0, 1], got {self.keep}, "
                f"{self.mixers} and {self.until}"
            )


@dataclass(frozen=True)
class Alignment:
    """Representation alignment (REPA, arXiv 2410.06940).

    The mean token of an inner block, projected by a small MLP, is trained to have a high cosine
    similarity with the features of the clean image.
    """

    features: Derived[int] = 0
    """Number of features of the extractor, from --align. 0: no alignment."""
    weights: Derived[str] = ""
    """Hash of the weights of the extractor, which evaluation compares with those of its own."""
    after: int = 2
    """Number of blocks after which tokens are compared with the features."""
    weight: float = 0.5
    """Weight of the alignment loss, 1 - cosine similarity."""
    until: float = 0.5
    """Fraction of training after which alignment ends, since it slows later training (arXiv
    2505.16792)."""

    def __post_init__(self) -> None:
        if self.features < 0 or self.after < 1 or self.weight < 0 or not 0 <= self.until <= 1:
            raise ValueError(
                f"align: features and weight must not be negative, after at least 1 and until in [0, 1], got "
                f"{self.features}, {self.weight}, {self.after} and {self.until}"
            )


@dataclass(frozen=True)
class DiTConfig(DiffusionConfig):
    """Process, shapes and condition of a diffusion model, and the settings of the transformer."""

    patch: int = 2
    """Side of the square of pixels (or latents) that becomes one token."""
    transformer: TransformerConfig = TransformerConfig(width=256, depth=8, heads=4)
    """The blocks."""
    trained: Derived[tuple[int, int] | None] = None
    """Rows and columns of the token grid that the model was trained on, if `resized` has changed
    the grid. Positions are interpolated onto it."""
    masking: Masking = Masking()
    """Masking of tokens in training."""
    align: Alignment = Alignment()
    """Alignment with an extractor's features in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        depth = self.transformer.depth
        if self.masking.keep < 1 and self.masking.mixers >= depth:
            raise ValueError(f"masking: mixers must be fewer than the {depth} blocks, got {self.masking.mixers}")
        if self.process == "meanflow" and (lacking := self.transformer.backward_only):
            raise ValueError(f"meanflow needs derivatives along a direction, which {lacking[0]} lacks: choose another")
        if self.align.features and self.process == "meanflow":
            raise ValueError("alignment evaluates a batch at once, and meanflow does so in parts")
        if self.align.features and not self.first < self.align.after <= depth:
            raise ValueError(f"align: after must be {self.first + 1} to {depth} blocks, got {self.align.after}")
        _, height, width = self.shape
        if self.patch < 1 or height % self.patch or width % self.patch:
            raise ValueError(f"patch must divide the sides of the input, got {self.patch} for {height} x {width}")
        channels = self.transformer.head_dim if self.transformer.rotary else self.transformer.width
        if channels % 4:
            what = "heads" if self.transformer.rotary else "tokens"
            raise ValueError(f"positions over a grid need {what} of a multiple of 4 channels, got {channels}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        return self.shape[1] // self.patch, self.shape[2] // self.patch

    @property
    def first(self) -> int:
        """Number of blocks before tokens are masked."""
        return self.masking.mixers if self.masking.keep < 1 else 0


class DiT(Diffusion):
    """Diffusion with a transformer (arXiv 2212.09748).

    Blocks are Llama's, with rotary positions over the grid (as in LightningDiT, arXiv 2501.01423),
    or the original ones (`vanilla`). The pooled condition is added to the time embedding. With
    text, cross-attention to its tokens follows every block (as in PixArt-alpha, arXiv
    2310.00426).
    """

    family = "dit"
    Config = DiTConfig
    positions: Tensor
    """Rows and columns of the tokens (T, 2)."""
    position_embedding: Tensor | None
    """Sines and cosines of the positions (1, T, D), if they are not rotary."""

    def __init__(self, config: DiTConfig | None = None):
        c = config or DiTConfig()
        width = c.transformer.width
        super().__init__(c, width)
        values = c.shape[0] * c.patch**2
        self.patches = nn.Linear(values, width)
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=1)  # as diffusers
        self.time = TimestepEmbedding(FREQUENCIES, width)
        self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(c.transformer.depth))
        self.transformer = Transformer(c.transformer, causal=False)
        self.last_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, c.outputs * c.patch**2)
        for zero in (*self.modulations, self.last_modulation, self.head):  # every block starts as the identity
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        self.cross_attention = CrossAttentionStack(c.transformer) if c.condition.text.vocabulary else None
        self.projector = None
        if c.align.features:
            self.projector = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, c.align.features))
        rows, columns = c.trained or c.grid
        positions = grid_positions(*c.grid)
        if c.trained is not None:
            positions = positions * torch.tensor([rows / c.grid[0], columns / c.grid[1]], device=positions.device)
        self.register_buffer("positions", positions, persistent=False)
        embedding = None
        if not c.transformer.rotary:
            scale = c.grid[0] / rows
            embedding = get_2d_sincos_pos_embed(
                width, c.grid, base_size=c.grid[0], interpolation_scale=scale, output_type="pt"
            )
            embedding = embedding.float().unsqueeze(0)
        self.register_buffer("position_embedding", embedding, persistent=False)

    def predict(self, x: Tensor, time_input: Tensor, condition: Embedded | None) -> Tensor:
        """As `Diffusion.predict`.

        Raises:
            ValueError: if x has another size.
        """
        if x.shape[1:] != self.config.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape[1:])} and this dit was trained on {self.config.shape}: use "
                "genmodels.dit.resized(model, size), which interpolates the positions"
            )
        return self.network(x, time_input, condition)[0]

    def network(
        self, x: Tensor, time_input: Tensor, condition: Embedded | None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply the network.

        Args:
            x: (N, C, H, W).
            time_input: (N,).
            condition: of N rows, or None for an unconditional model.
            kept: indices (K,) of the tokens that are not masked. None: all.

        Returns:
            The prediction of `predict`, which is 0 at masked tokens, and the tokens (N, K, D)
            inside the network that alignment uses.
        """
        c = self.config
        places = self.transformer.places(self.positions)
        middle = max(c.first, c.align.after)
        after = None
        if condition is not None:
            after = None if self.cross_attention is None else self.cross_attention(condition)
        tokens, embedding = self.begin(x, time_input, condition)
        modulation = [pairs(layer(embedding)) for layer in self.modulations]
        through = partial(self.transformer.through, modulation=modulation, after=after)
        tokens = through(tokens, places, first=0, last=c.first)
        if kept is not None:
            tokens, places = tokens[:, kept], self.transformer.places(self.positions[kept])
        inner = tokens = through(tokens, places, first=c.first, last=middle)
        tokens = through(tokens, places, first=middle)
        return self.end(tokens, embedding, kept), inner

    def begin(self, x: Tensor, time_input: Tensor, condition: Embedded | None) -> tuple[Tensor, Tensor]:
        """The tokens (N, T, D) of x, and the embedding (N, 1, D) of time and condition."""
        embedding = self.time(self.frequencies(time_input).to(x.dtype))  # (N, D)
        if condition is not None:
            embedding = embedding + condition.pooled
        tokens = F.pixel_unshuffle(x, self.config.patch).flatten(2).transpose(1, 2)  # (N, T, C p^2)
        tokens = self.patches(tokens)  # (N, T, D)
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding
        return tokens, F.silu(embedding.unsqueeze(1))

    def end(self, tokens: Tensor, embedding: Tensor, kept: Tensor | None = None) -> Tensor:
        """The prediction from tokens (N, K, D) after the last block and the embedding (N, 1, D)."""
        c = self.config
        shift, scale = self.last_modulation(embedding).chunk(2, dim=-1)
        output = self.head(self.transformer.norm(tokens) * (1 + scale) + shift)  # (N, K, outputs p^2)
        if kept is not None:
            output = output.new_zeros(len(output), len(self.positions), output.shape[2]).index_copy(1, kept, output)
        return F.pixel_shuffle(output.transpose(1, 2).unflatten(2, c.grid), c.patch)

    def stages(self) -> Stages:
        """The loss in parts (nn/stages.py)."""
        return transformer_stages(self)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        align, kept, inner = self.config.align, self._kept(batch), []

        def predict(x: Tensor, time_input: Tensor, condition: Embedded | None) -> Tensor:
            prediction, tokens = self.network(x, time_input, condition, kept)
            inner.append(tokens)
            return prediction

        region = None
        if kept is not None:
            region = torch.zeros(len(self.positions), dtype=torch.bool, device=kept.device).index_fill(0, kept, True)
            region = region.view(self.config.grid)
            region = region.repeat_interleave(self.config.patch, 0).repeat_interleave(self.config.patch, 1)  # (H, W)
        loss, metrics = self.denoising_loss(batch, predict, region)
        if self.projector is None or (batch.features is None and batch.progress >= align.until):
            return loss, metrics
        if batch.features is None:
            raise ValueError("this dit is aligned with features of the images, and the batch has none: see --align")
        projected = self.projector(inner[0].mean(1))  # (N, F)
        distance = 1 - F.cosine_similarity(projected.float(), batch.features, dim=1).mean()
        weight = align.weight if batch.progress < align.until else 0.0
        return loss + weight * distance, metrics | {"alignment": distance.detach()}

    def _kept(self, batch: Batch) -> Tensor | None:
        """Sorted indices (K,) of the tokens that are not masked in this step, or None for all."""
        masking, count = self.config.masking, len(self.positions)
        if masking.keep == 1 or batch.progress >= masking.until:
            return None
        order = batch.noise.uniform(count)[0].argsort()
        return order[: max(1, round(masking.keep * count))].sort().values


def resized(model: DiT, size: int) -> DiT:
    """Copy `model` for images of another size, with interpolated positions (arXiv 2306.15595).

    Positions are scaled to the grid that the model was trained on. Train the copy further: the
    scale of what an image shows is new to it.

    Args:
        model: a model of pixels.
        size: side of the images.

    Raises:
        ValueError: for a prior over latents, a model with a closed-form denoiser, or a size that
            the patch does not divide.
    """
    c = model.config
    if c.latents is not None or c.gaussian:
        raise ValueError("only a dit over pixels without a closed-form denoiser (--model.gaussian 0) can be resized")
    twin = DiT(replace(c, size=size, trained=c.trained or c.grid))
    twin.load_state_dict(model.state_dict())
    return twin.to(next(model.parameters()).device)


def vanilla(**settings: Any) -> DiTConfig:
    """Return the config of the original diffusion transformer (arXiv 2212.09748).

    It has LayerNorm, GELU, biases, sinusoidal positions that are added to the tokens, and a DDPM
    that predicts the noise and the variance of its steps.

    Args:
        **settings: fields of DiTConfig, which take precedence. Of `transformer`, only width, depth
            and heads are used.
    """
    size = settings.pop("transformer", DiTConfig().transformer)
    blocks = replace(size, norm="layer", mlp="gelu", bias=True, rotary=False, norm_eps=1e-6, hidden=None)
    ddpm = DDPM(prediction="eps", schedule="linear", min_snr=None, learned_variance=True)
    return DiTConfig(**({"process": "ddpm", "ddpm": ddpm, "transformer": blocks} | settings))
