"""Autoregressive models of pixels or codes: p(x) = prod_t p(x_t | x_1, ..., x_(t-1))."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.conditions import Condition, ConditionConfig
from genmodels.inpainting import known_rows
from genmodels.nn.alphabet import Alphabet, Codes, PixelLevels
from genmodels.nn.conditioning import Conditioner, drop_condition
from genmodels.nn.decoder import GridDecoder, resized_places
from genmodels.nn.likelihood import LikelihoodKind
from genmodels.nn.rope import stretched
from genmodels.nn.stages import Carried, Stages, check_stages
from genmodels.nn.transformer import TransformerConfig
from genmodels.prior import Prior, check_negative, negative_condition
from genmodels.saving import Derived
from genmodels.token_sampling import draw, filtered
from genmodels.types import Batch, Noise
from genmodels.weights import copy_weights


@dataclass(frozen=True)
class AutoregressiveConfig:
    """The symbols, the transformer and the condition."""

    size: Derived[int] = 64
    """Side of the images in pixels, from --size."""
    levels: int = 32
    """Levels of each colour channel, for pixels: 256 keeps all 8 bits, 32 keeps 5. Images are
    rounded to them."""
    codes: Derived[tuple[int, ...] | None] = None
    """Shape of an image's codes, (rows, columns) or (rows, columns, levels), from --codec. None:
    pixels."""
    codebook_size: Derived[int | None] = None
    """Number of codes in the codec's codebook, from --codec."""
    condition: ConditionConfig = ConditionConfig()
    """What samples can be conditioned on."""
    transformer: TransformerConfig = TransformerConfig(width=192, depth=6, heads=4, qk_norm=True)
    """The network."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must be 2 to 256 levels of each colour channel, got {self.levels}")
        if (self.codes is None) != (self.codebook_size is None):
            raise ValueError(
                f"codes and codebook_size must be given together, got {self.codes} and {self.codebook_size}"
            )
        if self.codes is not None and (len(self.codes) not in (2, 3) or min(self.codes) < 1):
            raise ValueError(f"codes must be (rows, columns) or (rows, columns, levels), got {self.codes}")
        if self.codebook_size is not None and self.codebook_size < 1:
            raise ValueError(f"the codebook is empty: codebook_size must be at least 1, got {self.codebook_size}")

    def alphabet(self) -> Alphabet:
        """The symbols that sequences consist of."""
        if self.codes is None or self.codebook_size is None:
            return PixelLevels(self.size, self.levels)
        return Codes(self.codes, self.codebook_size)


@dataclass(frozen=True)
class AutoregressiveOptions:
    """Sampling options of an autoregressive model."""

    temperature: float = 1.0
    """Logits are divided by it. 1 samples from the model's distribution; less favours likely
    symbols."""
    top_k: int | None = None
    """Sample among the k most likely symbols. None: all."""
    top_p: float = 1.0
    """Sample among the fewest symbols whose probabilities add up to this."""
    min_p: float = 0.0
    """Sample among symbols at least this fraction as likely as the most likely one."""
    guidance: float = 1.0
    """Classifier-free guidance scale (arXiv 2207.12598). 1: no guidance."""
    negative: str = ""
    """Prompt that guidance leads away from, in place of the null condition."""

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
        check_negative(self.negative, self.guidance)


class Autoregressive(Prior):
    """A causal transformer over sequences of symbols, with an exact likelihood.

    Pixels are ordered row by row from the top left, and colours within a pixel as red, green, blue,
    each one of `levels` levels. Codes are ordered row by row, residual levels from coarse to fine.
    Over codes it is a prior, and samples images as part of `Latent`. Its "images" are then codes
    (N, *codes).
    """

    family = "autoregressive"
    Config = AutoregressiveConfig
    Options = AutoregressiveOptions
    learns_codes = True
    condition: Conditioner

    def __init__(self, config: AutoregressiveConfig | None = None):
        c = config or AutoregressiveConfig()
        super().__init__(c)
        self.alphabet = c.alphabet()
        has_text = c.condition.text.vocabulary > 0
        self.decoder = GridDecoder(*self.alphabet.grid, self.alphabet.size, c.transformer, has_text)
        self.condition = Conditioner(c.condition, c.transformer.width)

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
        condition = drop_condition(batch.condition, batch.noise, self.config.condition)
        return self._mean(self.nats(self.alphabet.tokenize(batch.images), condition))

    def _mean(self, nats: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = nats.mean()  # per symbol
        return loss, {self.alphabet.unit: loss.detach() / math.log(2)}

    def stages(self) -> Stages:
        """The loss in parts."""
        decoder = self.decoder
        check_stages(self.family, self.config.transformer, text=decoder.cross_attention is not None)

        def prepare(batch: Batch) -> tuple[Tensor, Condition]:
            return self.alphabet.tokenize(batch.images), drop_condition(batch.condition, batch.noise, self.conditions)

        def embed(drawn: tuple[Tensor, Condition]) -> Carried:
            tokens, condition = drawn
            return (decoder.embed(tokens, self.condition(condition, len(tokens), tokens.device), 0, decoder.length),)

        def through(carried: Carried, first: int, last: int) -> Carried:
            places = decoder.transformer.places(decoder.grid)
            return (decoder.transformer.through(carried[0], places, first=first, last=last),)

        def loss(carried: Carried, drawn: tuple[Tensor, Condition]) -> tuple[Tensor, dict[str, Tensor]]:
            logits = decoder.logits(decoder.transformer.norm(carried[0]), drawn[0])
            return self._mean(nats_of(logits, drawn[0]))

        last = [decoder.transformer.norm, decoder.head] + ([] if decoder.inside is None else [decoder.inside])
        return Stages(prepare, embed, through, loss, [(block,) for block in decoder.transformer.blocks], tuple(last))

    def nats(self, tokens: Tensor, condition: Condition) -> Tensor:
        """Compute -log p of each symbol of `tokens` (N, T, S), given those before it."""
        embedded = self.condition(condition, len(tokens), tokens.device)
        return nats_of(self.decoder(tokens, embedded), tokens)

    def extended_config(self, config: AutoregressiveConfig, given: Mapping[str, Any]) -> AutoregressiveConfig:
        """Return the config of a model that goes on at another size, with the base of its rotary
        positions (`genmodels.nn.rope.stretched`). One among the settings `given` stays."""
        if "rope_theta" in given.get("transformer", {}):
            return config
        stretch = max(config.alphabet().grid[:2]) / max(self.alphabet.grid[:2])
        old = self.config.transformer
        theta = stretched(old.rope_theta, stretch, old.head_dim // 2)  # half of the channels turn by the row
        return replace(config, transformer=replace(config.transformer, rope_theta=theta))

    @torch.no_grad()
    def extend_from(self, model: Autoregressive) -> None:
        """Copy the weights of a model of another size. Learned places are interpolated.

        Raises:
            ValueError: if the symbols or the architecture differ.
        """
        symbols = (self.alphabet.size, self.decoder.symbols)
        if symbols != (model.alphabet.size, model.decoder.symbols):
            raise ValueError(
                f"the model has {symbols[1]} x {symbols[0]:,} symbols at a position, and that of the stage before "
                f"{model.decoder.symbols} x {model.alphabet.size:,}: choose a codec with the same codebook"
            )
        weights = model.state_dict()
        weights["decoder.places"] = resized_places(weights["decoder.places"], model.alphabet.grid, self.alphabet.grid)
        copy_weights(self, weights)

    def log_probability(self, images: Tensor, condition: Condition) -> Tensor:
        """Compute log p of images (N, 3, H, W), rounded to `levels` levels, or of codes (N, *codes),
        given a condition of N rows: nats, (N,)."""
        return -self.nats(self.alphabet.tokenize(images), condition).sum((1, 2))

    def bits_per_dim(self, images: Tensor, noise: Noise) -> Tensor:
        """Compute exact bits per dimension of images, rounded to `levels` levels, unconditionally.

        Args:
            images: (N, 3, H, W) in [-1, 1].
            noise: not used.

        Returns:
            (N,).

        Raises:
            ValueError: for a prior over codes, whose likelihood is not that of images.
        """
        if self.over_latents:
            raise ValueError("a prior over codes has bits per token, and they are not bits per dimension of an image")
        return self._bits(images)

    def bits_per_token(self, codes: Tensor) -> Tensor:
        """Compute bits per code of `codes` (N, *codes), without a condition: (N,)."""
        return self._bits(codes)

    def _bits(self, images: Tensor) -> Tensor:
        """Mean bits per symbol, without a condition: (N,)."""
        return self.nats(self.alphabet.tokenize(images), Condition()).mean((1, 2)) / math.log(2)

    def sample(self, noise: Noise, condition: Condition, options: AutoregressiveOptions) -> Tensor:
        empty = torch.zeros(len(noise), 0, self.decoder.symbols, dtype=torch.int64)
        return self._complete(empty, noise, condition, options)

    def inpaint(
        self, images: Tensor, known: Tensor, noise: Noise, condition: Condition, options: AutoregressiveOptions
    ) -> Tensor:
        """Sample the rows below those that are known, which stay the same up to rounding.

        Args:
            images: (N, 3, H, W) in [-1, 1], or codes (N, *codes).
            known: bool (H, W), or over the grid of codes: True in the first rows.
            noise: N streams.
            condition: N rows.
            options: sampling options.

        Raises:
            ValueError: if `known` is not exactly the first rows, since sampling goes from top to
                bottom.
        """
        rows, columns, _ = self.alphabet.grid
        prefix = self.alphabet.tokenize(images)[:, : known_rows(known, rows, columns) * columns]
        return self._complete(prefix, noise, condition, options)

    def _complete(self, prefix: Tensor, noise: Noise, condition: Condition, options: AutoregressiveOptions) -> Tensor:
        """Sample images or codes that begin with `prefix` (N, P, S)."""
        o, n, device = options, len(noise), noise.device
        if o.guidance != 1 and self.conditions.is_empty:
            raise ValueError(f"guidance {o.guidance:g} needs a condition, and this {self.family} was trained without")
        probabilities = partial(filtered, temperature=o.temperature, top_k=o.top_k, top_p=o.top_p, min_p=o.min_p)
        tokens = self.decoder.generate(
            self.condition(condition, n, device),
            noise.uniform(self.decoder.length, self.decoder.symbols),
            lambda logits, uniform: draw(probabilities(logits), uniform),
            prefix.to(device),
            o.guidance,
            self.condition(negative_condition(self, o.negative, n, device), n, device) if o.guidance != 1 else None,
        )
        return self.alphabet.decode(tokens)


def nats_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of `tokens` (N, T, S) from logits (N, T, S, V)."""
    return F.cross_entropy(logits.float().flatten(0, 2), tokens.flatten(), reduction="none").view_as(tokens)
