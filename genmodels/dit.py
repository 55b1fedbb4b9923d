"""The diffusion transformer: patches as tokens, and a transformer that is told the time by adaLN-zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from torch import Tensor, nn

from genmodels.diffusion.config import DiffusionConfig
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.model import Diffusion
from genmodels.nn.rope import grid_positions
from genmodels.nn.transformer import Modulation, Transformer, TransformerConfig
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
"""The sizes of the paper; the default is for a processor."""
FREQUENCIES = 256
"""Sines and cosines that the time is shown as."""


@dataclass(frozen=True)
class Masking:
    """Deferred masking (arXiv 2407.15811): most of training sees a part of the tokens, after a few blocks in which they
    have seen each other."""

    keep: float = 1.0
    """Share of the tokens that go on; 1: all."""
    mixers: int = 2
    """Blocks that all tokens go through."""
    until: float = 0.8
    """Share of training after which nothing is masked any more."""

    def __post_init__(self) -> None:
        if not (0 < self.keep <= 1 and self.mixers >= 0 and 0 <= self.until <= 1):
            raise ValueError(
                f"masking: keep must be in (0, 1], mixers not negative and until in [0, 1], got {self.keep}, "
                f"{self.mixers} and {self.until}"
            )


@dataclass(frozen=True)
class Alignment:
    """Representation alignment (REPA, arXiv 2410.06940): the mean token inside the network, through a small MLP, is to
    point where the features of the clean image do."""

    features: int = 0
    """How many features the extractor has; the recipe sets it from --align. 0: there is no alignment."""
    after: int = 2
    """Blocks after which tokens are compared."""
    weight: float = 0.5
    """Of 1 - cosine, beside the loss."""
    until: float = 0.5
    """Share of training after which it ends: later it holds the model back (arXiv 2505.16792)."""

    def __post_init__(self) -> None:
        if self.features < 0 or self.after < 1 or self.weight < 0 or not 0 <= self.until <= 1:
            raise ValueError(
                f"align: features and weight must not be negative, after at least 1 and until in [0, 1], got "
                f"{self.features}, {self.weight}, {self.after} and {self.until}"
            )


@dataclass(frozen=True)
class DiTConfig(DiffusionConfig):
    """The network, beside what every diffusion model has."""

    patch: int = 2
    """Side of the square of pixels (or latents) that is one token."""
    transformer: TransformerConfig = TransformerConfig(width=256, depth=8, heads=4)
    """The blocks."""
    trained: tuple[int, int] | None = None
    """Rows and columns of the grid of tokens that it was trained on, onto which a larger or smaller one is laid; None:
    the grid is its own. `resized` sets it."""
    masking: Masking = Masking()
    """Dropping tokens in training."""
    align: Alignment = Alignment()
    """Alignment with an extractor's features in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        depth = self.transformer.depth
        if self.masking.keep < 1 and self.masking.mixers >= depth:
            raise ValueError(f"masking: mixers must be fewer than the {depth} blocks, got {self.masking.mixers}")
        if self.align.features and self.process == "meanflow":
            raise ValueError("alignment is for processes that evaluate a batch at once, and meanflow does so in parts")
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
        """Rows and columns of tokens."""
        return self.shape[1] // self.patch, self.shape[2] // self.patch

    @property
    def first(self) -> int:
        """Blocks before any token is dropped."""
        return self.masking.mixers if self.masking.keep < 1 else 0


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
        self.transformer = Transformer(c.transformer, causal=False)
        self.last_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, c.outputs * c.patch**2)
        for zero in (*self.modulations, self.last_modulation, self.head):  # every block begins as the identity
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        self.projector = None
        if c.align.features:
            self.projector = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, c.align.features))
        rows, columns = c.trained or c.grid
        positions = grid_positions(*c.grid)
        if c.trained is not None:
            positions = positions * torch.tensor([rows / c.grid[0], columns / c.grid[1]], device=positions.device)
        self.register_buffer("positions", positions, persistent=False)
        places = None
        if not c.transformer.rotary:
            scale = c.grid[0] / rows
            places = get_2d_sincos_pos_embed(
                width, c.grid, base_size=c.grid[0], interpolation_scale=scale, output_type="pt"
            )
            places = places.float().unsqueeze(0)
        self.register_buffer("places", places, persistent=False)

    def predict(self, x: Tensor, time_input: Tensor, condition: Tensor | None) -> Tensor:
        """As `Diffusion.predict`.

        Raises:
            ValueError: for x of another size.
        """
        if x.shape[1:] != self.config.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape[1:])} and this dit was trained on {self.config.shape}, whose positions it "
                "knows: genmodels.dit.resized(model, size) interpolates them"
            )
        return self.network(x, time_input, condition)[0]

    def network(
        self, x: Tensor, time_input: Tensor, condition: Tensor | None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `predict` gives, 0 where a token is not among those `kept`, (K,) or None for all; and the tokens after
        the blocks that alignment looks at (N, K, D)."""
        c = self.config
        patch, places = c.patch, self.transformer.places(self.positions)
        middle = max(c.first, c.align.after)
        tokens = F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)  # (N, T, C p^2)
        told = self.time(self.frequencies(time_input).to(x.dtype))  # (N, D)
        told = F.silu(told if condition is None else told + condition).unsqueeze(1)  # (N, 1, D)
        modulation = [pairs(layer(told)) for layer in self.modulations]
        tokens = self.patches(tokens)  # (N, T, D)
        if self.places is not None:
            tokens = tokens + self.places
        tokens = self.transformer.through(tokens, places, modulation, 0, c.first)
        if kept is not None:
            tokens, places = tokens[:, kept], self.transformer.places(self.positions[kept])
        inner = tokens = self.transformer.through(tokens, places, modulation, c.first, middle)
        tokens = self.transformer.norm(self.transformer.through(tokens, places, modulation, middle))
        shift, scale = self.last_modulation(told).chunk(2, dim=-1)
        found = self.head(tokens * (1 + scale) + shift)  # (N, K, outputs p^2)
        if kept is not None:
            found = found.new_zeros(len(x), len(self.positions), found.shape[2]).index_copy(1, kept, found)
        return F.pixel_shuffle(found.transpose(1, 2).unflatten(2, c.grid), patch), inner

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        align, kept, inner = self.config.align, self._kept(batch), []

        def predict(x: Tensor, time_input: Tensor, condition: Tensor | None) -> Tensor:
            found, tokens = self.network(x, time_input, condition, kept)
            inner.append(tokens)
            return found

        seen = None
        if kept is not None:
            seen = torch.zeros(len(self.positions), dtype=torch.bool, device=kept.device).index_fill(0, kept, True)
            seen = seen.view(self.config.grid)
            seen = seen.repeat_interleave(self.config.patch, 0).repeat_interleave(self.config.patch, 1)
        loss, metrics = self.denoising_loss(batch, predict, seen)
        if self.projector is None or (batch.features is None and batch.progress >= align.until):
            return loss, metrics
        if batch.features is None:
            raise ValueError("this dit is aligned with features of the images, and the batch has none: see --align")
        guess = self.projector(inner[0].mean(1))  # (N, F)
        apart = 1 - F.cosine_similarity(guess.float(), batch.features, dim=1).mean()
        weight = align.weight if batch.progress < align.until else 0.0
        return loss + weight * apart, metrics | {"apart": apart.detach()}

    def _kept(self, batch: Batch) -> Tensor | None:
        """The tokens that go on in this step, the same of every image, (K,), in order; None: all."""
        masking, count = self.config.masking, len(self.positions)
        if masking.keep == 1 or batch.progress >= masking.until:
            return None
        chance = batch.noise.uniform(count)[0]
        return chance.argsort()[: max(1, round(masking.keep * count))].sort().values


def pairs(change: Tensor) -> tuple[Modulation, Modulation]:
    """(N, 1, 6 D) -> what it does to the attention and to the MLP of a block."""
    parts = change.chunk(6, dim=-1)
    return Modulation(*parts[:3]), Modulation(*parts[3:])


def resized(model: DiT, size: int) -> DiT:
    """A copy of `model`, over pixels, for images of another size: its tokens lie on the grid that it was trained on,
    closer together or further apart (position interpolation, arXiv 2306.15595).

    It knows what is there and not how things look at the new scale: train it on.

    Args:
        model: a model of pixels.
        size: side of the images.

    Raises:
        ValueError: for a prior over latents, a closed-form denoiser, which knows one size only, or a size that the
            patch does not divide.
    """
    c = model.config
    if c.latents is not None or c.gaussian:
        raise ValueError("only a dit over pixels without a closed-form denoiser (--model.gaussian 0) can be resized")
    twin = DiT(replace(c, size=size, trained=c.trained or c.grid))
    twin.load_state_dict(model.state_dict())
    return twin.to(next(model.parameters()).device)


def vanilla(**settings: Any) -> DiTConfig:
    """The diffusion transformer as it was introduced (arXiv 2212.09748): LayerNorm, GELU, biases, sines and cosines
    added for positions, and a DDPM that predicts the noise and the variance of its steps.

    Args:
        **settings: of DiTConfig, over these; `transformer` may be a TransformerConfig of which width, depth and heads
            count.
    """
    size = settings.pop("transformer", DiTConfig().transformer)
    blocks = replace(size, norm="layer", mlp="gelu", bias=True, rotary=False, norm_eps=1e-6, hidden=None)
    ddpm = DDPM(prediction="eps", schedule="linear", min_snr=None, learned_variance=True)
    return DiTConfig(**({"process": "ddpm", "ddpm": ddpm, "transformer": blocks} | settings))
