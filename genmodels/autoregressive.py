"""Autoregressive: p(x) = prod_t p(x_t | x_1, ..., x_(t-1)), over raw pixels or over a codec's codes, by one decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.inpainting import known_rows
from genmodels.nn.alphabet import Alphabet, Codes, Shades
from genmodels.nn.conditioning import ConditionEmbedding, drop_condition
from genmodels.nn.decoder import GridDecoder
from genmodels.nn.likelihood import LikelihoodKind
from genmodels.nn.transformer import TransformerConfig
from genmodels.prior import Prior
from genmodels.token_sampling import draw, filtered
from genmodels.types import Batch, Condition, Noise


@dataclass(frozen=True)
class AutoregressiveConfig:
    """The alphabet, the transformer, and what it can be asked for."""

    size: int = 64
    """Side of the images in pixels; the recipe sets it from --size."""
    levels: int = 32
    """Shades of each colour, for pixels: 256 are all of them, 32 are 5 bits. Images are rounded to them."""
    codes: tuple[int, ...] | None = None
    """Shape of an image's codes, (rows, columns) or (rows, columns, levels); None: pixels. Set from --codec."""
    codebook_size: int | None = None
    """How many codes the codec's book has. Set from --codec."""
    attributes: tuple[str, ...] = ()
    """Attributes it can be asked for, by their names in the data; none: unconditional."""
    classes: int = 0
    """Labels it can be asked for."""
    drop: float = 0.1
    """Share of the training images whose condition is hidden, so that it can also be left open."""
    drop_each: float = 0.5
    """Share of the others in which a coin decides for each attribute whether it is hidden, so that any can be left
    open."""
    transformer: TransformerConfig = TransformerConfig(width=192, depth=6, heads=4, qk_norm=True)
    """The network."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must be 2 to 256 shades of each colour, got {self.levels}")
        if (self.codes is None) != (self.codebook_size is None):
            raise ValueError("codes and codebook_size belong together: both are a codec's")
        if self.codes is not None and (len(self.codes) not in (2, 3) or min(self.codes) < 1):
            raise ValueError(f"codes must be (rows, columns) or (rows, columns, levels), got {self.codes}")
        if self.codebook_size is not None and self.codebook_size < 1:
            raise ValueError(f"the codebook is empty: codebook_size must be at least 1, got {self.codebook_size}")
        if not (0 <= self.drop <= 1 and 0 <= self.drop_each <= 1):
            raise ValueError(f"drop and drop_each must be shares in [0, 1], got {self.drop} and {self.drop_each}")
        if self.classes < 0 or len(set(self.attributes)) < len(self.attributes):
            raise ValueError("classes must not be negative, and each attribute can be named once")

    def alphabet(self) -> Alphabet:
        """What its sequences consist of."""
        if self.codes is None or self.codebook_size is None:
            return Shades(self.size, self.levels)
        return Codes(self.codes, self.codebook_size)


@dataclass(frozen=True)
class AutoregressiveOptions:
    """How to choose the next symbol."""

    temperature: float = 1.0
    """1 samples the distribution as it is, less prefers likely symbols."""
    top_k: int | None = None
    """Choose among the k likeliest symbols; None: all."""
    top_p: float = 1.0
    """Choose among the fewest symbols that hold this probability together."""
    min_p: float = 0.0
    """Choose among symbols at least this share as likely as the likeliest."""
    guidance: float = 1.0
    """How much to exaggerate the condition (arXiv 2207.12598); 1: not at all."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, got {self.temperature}: top_k 1 takes the likeliest symbol")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1 symbol, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")


class Autoregressive(Prior):
    """A decoder over sequences of symbols, trained on the cross-entropy: maximum likelihood, and exact.

    Pixels are read row by row from the top left, and in each the colours in the order red, green, blue; every colour is
    one of `levels` shades. Codes are read row by row, residual levels coarsest first. Over codes it is a prior, which
    makes images as part of `Latent`; its "images" are then codes (N, *codes).
    """

    family = "autoregressive"
    Config = AutoregressiveConfig
    Options = AutoregressiveOptions
    learns_codes = True

    def __init__(self, config: AutoregressiveConfig | None = None):
        c = config or AutoregressiveConfig()
        super().__init__(c)
        self.alphabet = c.alphabet()
        self.decoder = GridDecoder(*self.alphabet.grid, self.alphabet.size, c.transformer)
        self.condition = ConditionEmbedding(len(c.attributes), c.classes, c.transformer.width)

    @property
    def over_latents(self) -> bool:
        return self.config.codes is not None

    @classmethod
    def config_over(cls, config: AutoregressiveConfig, codec: Any) -> AutoregressiveConfig:
        if not codec.can("quantise"):
            raise ValueError(
                f"an autoregressive prior learns codes, and the latents of this {codec.family} are not codes"
            )
        return replace(config, codes=tuple(codec.latent_shape), codebook_size=codec.codebook_size)

    def can(self, name: str) -> bool:
        likelihoods = {"bits_per_dim": not self.over_latents, "bits_per_token": self.over_latents}
        return super().can(name) and likelihoods.get(name, True)

    @property
    def likelihood_kind(self) -> LikelihoodKind:
        """What `bits_per_dim` computes."""
        return LikelihoodKind(levels=self.alphabet.size, exact=True)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        condition = drop_condition(batch.condition, batch.noise, c.drop, c.drop_each)
        loss = self.nats(self.alphabet.spell(batch.images), condition).mean()  # per symbol
        return loss, {self.alphabet.unit: loss.detach() / math.log(2)}

    def nats(self, tokens: Tensor, condition: Condition) -> Tensor:
        """-log p of each symbol of `tokens` (N, T, S), given those before it: (N, T, S), float32."""
        embedded = self.condition(condition, len(tokens), tokens.device)
        logits = self.decoder(tokens, embedded).float()  # (N, T, S, V)
        return F.cross_entropy(logits.flatten(0, 2), tokens.flatten(), reduction="none").view_as(tokens)

    def bits_per_dim(self, images: Tensor, noise: Noise) -> Tensor:
        """Exact bits per dimension of `images` (N, 3, H, W), rounded to `levels` shades, without a condition: (N,).

        Raises:
            ValueError: for a prior over codes, whose likelihood is not that of images.
        """
        if self.over_latents:
            raise ValueError("a prior over codes has bits per token, and they are not bits per dimension of an image")
        return self.nats(self.alphabet.spell(images), Condition()).mean((1, 2)) / math.log(2)

    def bits_per_token(self, codes: Tensor) -> Tensor:
        """Bits per code of `codes` (N, *codes), or per colour of images, without a condition: (N,)."""
        return self.nats(self.alphabet.spell(codes), Condition()).mean((1, 2)) / math.log(2)

    def sample(self, noise: Noise, condition: Condition, options: AutoregressiveOptions) -> Tensor:
        nothing = torch.zeros(len(noise), 0, self.decoder.symbols, dtype=torch.int64)
        return self._continue(nothing, noise, condition, options)

    def inpaint(
        self, images: Tensor, known: Tensor, noise: Noise, condition: Condition, options: AutoregressiveOptions
    ) -> Tensor:
        """Draws the rows below those that are known. What was known stays as it was, rounded to `levels` shades.

        Args:
            images: (N, 3, H, W) in [-1, 1], or codes (N, *codes).
            known: bool (H, W), or of the codes' grid: True in the first rows.
            noise, condition, options: as for `sample`.

        Raises:
            ValueError: when `known` is anything but the first rows: this model reads from the top.
        """
        rows, columns, _ = self.alphabet.grid
        prefix = self.alphabet.spell(images)[:, : known_rows(known, rows, columns) * columns]
        return self._continue(prefix, noise, condition, options)

    def _continue(self, prefix: Tensor, noise: Noise, condition: Condition, options: AutoregressiveOptions) -> Tensor:
        """Images or codes that begin with `prefix` (N, P, S)."""
        o = options
        if o.guidance != 1 and self.conditions.is_empty:
            raise ValueError(f"guidance {o.guidance:g} needs a condition, and this {self.family} was trained without")
        probabilities = partial(filtered, temperature=o.temperature, top_k=o.top_k, top_p=o.top_p, min_p=o.min_p)
        tokens = self.decoder.generate(
            self.condition(condition, len(noise), noise.device),
            noise.uniform(self.decoder.length, self.decoder.symbols),
            lambda logits, uniform: draw(probabilities(logits), uniform),
            prefix.to(noise.device),
            o.guidance,
        )
        return self.alphabet.read(tokens)
