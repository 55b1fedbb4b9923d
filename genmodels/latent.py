"""Latent: a prior that is trained on the latents of a frozen codec. Any two can be combined."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from genmodels.base import Generator, Model
from genmodels.codecs import prior_grid
from genmodels.conditions import Condition, ConditionConfig, Text
from genmodels.hashing import weights_hash
from genmodels.inpainting import continued, known_cells
from genmodels.latent_config import LatentConfig, Part
from genmodels.modes import evaluating, full_precision
from genmodels.nn.stages import Stages
from genmodels.prior import Prior
from genmodels.safety import FILES, SafetyChecker
from genmodels.text import Tokenizer
from genmodels.types import Batch, Noise

OWN = ("sample", "prior", "reconstruct")
"""Abilities of every Latent. It has any other ability if its prior has it."""


class Latent(Generator):
    """A prior over a frozen codec.

    It trains by prior.loss(codec.encode(images)) and samples by codec.decode(prior.sample(noise)).

    Only the prior has optimisers and averaged weights. A saved Latent holds both parts. Create one
    with `Latent.over(codec, prior)`.

    Args:
        config: configs of both parts.
        codec: the codec, or None to build it with random weights.
        prior: the prior, or None to build it with random weights.
    """

    family = "latent"
    Config = LatentConfig
    further_files: ClassVar[tuple[str, ...]] = (*Prior.further_files, *FILES)
    safety_checker: SafetyChecker | None = None
    vector_scale: Tensor | None
    """Factor that gives vectors unit variance, for a prior over vectors before quantisation."""

    def __init__(self, config: LatentConfig, codec: Any = None, prior: Any = None):
        super().__init__(config)
        self.codec = (config.codec.build() if codec is None else codec).requires_grad_(False).eval()
        self.prior: Any = config.prior.build() if prior is None else prior
        self.prior.codec_weights = config.codec_weights
        vectors = self.codec.can("vectors") and not self.prior.learns_codes
        self.register_buffer("vector_scale", torch.ones(()) if vectors else None)

    @classmethod
    def over(cls, codec: Any, prior: Prior) -> Self:
        """Combine a trained codec and a prior to be trained on its latents.

        Raises:
            ValueError: if the prior was built for other latents.
        """
        if not codec.can("encode"):
            raise ValueError(f"{codec.family} is not a codec: it does not encode and decode")
        if not isinstance(prior, Prior):
            raise ValueError(f"a {prior.family} cannot be trained on the latents of a codec")
        if prior.config.size != codec.config.size:
            raise ValueError(f"the prior is for images of {prior.config.size} px, the codec for {codec.config.size} px")
        prior.check_codec(codec)
        config = LatentConfig(Part.of(codec), Part.of(prior), weights_hash(codec), codec.config.size)
        return cls(config, codec, prior)

    def can(self, name: str) -> bool:
        able = super().can(name) and (name in OWN or self.prior.can(name))
        return able and (name != "inpaint" or prior_grid(self.codec, self.prior.learns_codes) is not None)

    @property
    def kind(self) -> str:
        return f"{self.prior.family} (over a codec)"

    @property
    def trained(self) -> Model:
        return self.prior

    @property
    def conditions(self) -> ConditionConfig:
        return self.prior.conditions

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text that the prior is conditioned on."""
        return self.prior.tokenizer

    def tokenize(self, texts: Sequence[str]) -> Text:
        """Turn texts into token ids, on the CPU."""
        return self.prior.tokenize(texts)

    def use_safety_checker(self, checker: SafetyChecker | None) -> None:
        """Flag samples by `checker`, which becomes a part of the model, or by nothing."""
        self.safety_checker = checker
        self.config = replace(self.config, safety_checker=checker is not None)

    def save_files(self, folder: Path) -> None:
        self.prior.save_files(folder)
        if self.safety_checker is not None:
            self.safety_checker.save(folder)

    def load_files(self, folder: Path) -> None:
        self.prior.load_files(folder)
        if self.config.safety_checker:
            self.safety_checker = SafetyChecker.beside_weights(folder)

    def name_classes(self, names: tuple[str, ...]) -> None:
        self.prior.name_classes(names)
        self.update_config()

    def update_config(self) -> None:
        """Take over the config of the prior, which has changed."""
        self.config = replace(self.config, prior=Part.of(self.prior))

    @property
    def options_class(self) -> type:
        return self.prior.options_class

    # ---- encoding and decoding ----

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode (N, 3, H, W) in [-1, 1] as the codec's latents or codes, in the codec's precision.

        For a prior of continuous latents over a codec that quantises, these are the vectors before
        quantisation, (N, *vector_shape).
        """
        half = next(self.codec.parameters()).dtype != torch.float32
        with evaluating(self.codec) if half else full_precision(images.device):
            return self.codec.encode(images) if self.vector_scale is None else self.codec.vectors(images)

    @property
    def latents_name(self) -> str:
        """Identifier of the latents: the codec's weights, and whether they are vectors or codes."""
        weights = self.config.codec_weights
        return weights if self.vector_scale is None else f"{weights} vectors"

    def scaled(self, latents: Tensor) -> Tensor:
        """Scale encoded images for the prior: vectors do not have unit variance by themselves."""
        return latents if self.vector_scale is None else latents * self.vector_scale

    def decode(self, samples: Tensor) -> Tensor:
        """Decode samples of the prior to images (N, 3, H, W) in [-1, 1]."""
        if self.vector_scale is None:
            return self.codec.decode(samples)
        return self.codec.decode_vectors(samples / self.vector_scale)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images (N, 3, H, W) in [-1, 1] by the codec. Samples cannot be sharper."""
        return self.decode(self.scaled(self.encode(images)))

    # ---- text and answers ----

    def read_conversations(self, conversations: Sequence[Any]) -> Text:
        """Tokenize conversations about images."""
        return self.prior.read_conversations(conversations)

    def answer(self, images: Tensor, questions: Sequence[Any], seed: int = 0, **how: Any) -> list[str]:
        """Answer one question about each of the images (N, 3, H, W) in [-1, 1]."""
        return self.prior.answer(self.encode(images.to(self.device)), questions, seed, **how)

    def stream(self, image: Tensor, question: Any, seed: int = 0, **how: Any) -> Iterator[str]:
        """Yield the answer to a question about an image (3, H, W) as far as it is known."""
        return self.prior.stream(self.encode(image.to(self.device).unsqueeze(0))[0], question, seed, **how)

    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the prior's own metrics on held-out images, means over `batches`."""
        return self.prior.measure([replace(batch, images=self.encode(batch.images)) for batch in batches])

    # ---- training ----

    @property
    def turns(self) -> tuple[str, ...]:
        return self.prior.turns

    def for_prior(self, batch: Batch) -> Batch:
        """Return `batch` with latents in place of its images."""
        latents = self.encode(batch.images) if batch.latents is None else batch.latents
        return replace(batch, images=self.scaled(latents), latents=None)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        return self.prior.loss(self.for_prior(batch), turn)

    def stages(self) -> Stages:
        """The loss of the prior in parts."""
        stages: Stages = self.prior.stages()
        return stages._replace(prepare=lambda batch: stages.prepare(self.for_prior(batch)))

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """Return the parameters of the prior that `turn` updates."""
        return self.prior.parameters_for(turn)

    def after_step(self) -> None:
        self.prior.after_step()

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        latents: Iterable[Tensor] = (self.encode(batch) for batch in images)
        if self.vector_scale is not None:
            latents = list(latents)
            self.vector_scale.copy_(1 / torch.cat(latents).std().clamp_min(1e-6))
        self.prior.initialise(self.scaled(batch) for batch in latents)

    def diagnose(self, seen: Tensor, held_out: Tensor) -> tuple[dict[str, float], list[str]]:
        return self.prior.diagnose(*(self.scaled(self.encode(images)) for images in (seen, held_out)))

    def calibrate(self, images: Iterable[Tensor]) -> None:
        self.prior.calibrate(self.scaled(self.encode(batch)) for batch in images)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the prior. The codec stays in eval mode."""
        super().train(mode)
        self.codec.eval()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the prior and share the codec, which is frozen."""
        memo[id(self.codec)] = self.codec
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    # ---- abilities of the prior, with decoded results ----

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        return self.decode(self.prior.sample(noise, condition, options))

    def inpaint(self, images: Tensor, known: Tensor, noise: Noise, condition: Condition, options: Any) -> Tensor:
        """Complete images where they are not known. Known pixels stay as they are.

        The codec never sees unknown pixels: known ones, mirrored, take their place when it encodes.
        Latents that cover only known pixels are kept, and the prior samples the others. Noise,
        condition and options are as for `sample`.

        Args:
            images: (N, 3, H, W) in [-1, 1].
            known: bool (H, W), True where the images are known.

        Raises:
            ValueError: if the mask has another size, or the prior cannot complete this region.
        """
        size = self.config.size
        filled = continued(images, known, size)
        if not known.any():
            return self.sample(noise, condition, options)
        grid = prior_grid(self.codec, self.prior.learns_codes)
        if grid is None:
            raise ValueError("this codec's latents describe the whole image, so no part of them can be known")
        kept = known_cells(known, grid)
        if not kept.any():
            raise ValueError(
                f"each latent of this codec covers {size // grid[0]} x {size // grid[1]} pixels: at least one such "
                "square must be known"
            )
        latents = self.scaled(self.encode(filled))
        samples = self.decode(self.prior.inpaint(latents, kept, noise, condition, options))
        return torch.where(known, images, samples)

    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: Any) -> Tensor:
        """Interpolate between the samples of `first` and `second`: (len(weights), 3, H, W)."""
        return self.decode(self.prior.interpolate(first, second, weights, options))

    def interpolate_prompts(self, noise: Noise, a: Condition, b: Condition, weights: Tensor, options: Any) -> Tensor:
        """Interpolate between two conditions of one row, from the same noise: (len(weights), 3, H, W)."""
        return self.decode(self.prior.interpolate_prompts(noise, a, b, weights, options))

    def morph(self, first: Tensor, second: Tensor, weights: Tensor, options: Any) -> Tensor:
        """Interpolate between two images (1, 3, H, W), each reconstructed by the codec."""
        ends = (self.scaled(self.encode(image)) for image in (first, second))
        return self.decode(self.prior.morph(*ends, weights, options))

    def edit(self, images: Tensor, strength: float, noise: Noise, condition: Condition, options: Any) -> Tensor:
        """Edit images (N, 3, H, W) by adding noise to their latents and removing it."""
        return self.decode(self.prior.edit(self.scaled(self.encode(images)), strength, noise, condition, options))

    def trajectory(self, noise: Noise, condition: Condition, options: Any) -> tuple[Tensor, Tensor]:
        """Return the steps of sampling, decoded: two (steps + 1, N, 3, H, W)."""
        both = self.prior.trajectory(noise, condition, options)
        noisy, predictions = (torch.stack([self.decode(step) for step in steps]) for steps in both)
        return noisy, predictions

    def draw_latents(self, noise: Noise, options: Any) -> Tensor:
        """Draw the vectors (N, D) that the samples of `noise` are made from."""
        return self.prior.draw_latents(noise, options)

    def find_latents(self, images: Tensor, exact: bool = True) -> Tensor:
        """Find the vectors (N, D) of images (N, 3, H, W) in [-1, 1]."""
        return self.prior.find_latents(self.scaled(self.encode(images)), exact)

    def from_latents(self, latents: Tensor) -> Tensor:
        """Generate images (N, 3, H, W) in [-1, 1] from vectors (N, D)."""
        return self.decode(self.prior.from_latents(latents))

    def bits_per_token(self, images: Tensor) -> Tensor:
        """Compute the bits per code of the codes of images (N, 3, H, W) in [-1, 1]: (N,)."""
        return self.prior.bits_per_token(self.encode(images))


def over_codec(codec: Any, prior: Prior, images: Iterable[Tensor]) -> Latent:
    """Prepare a codec and combine it with a prior to be trained on its latents. (This module imports
    `genmodels.codecs`, which can therefore not define it.)

    Args:
        codec: as `load_codec` returns it.
        prior: with a config from `config_over(config, codec)`.
        images: batches of training images (N, 3, H, W) in [-1, 1] for `codec.prepare`.
    """
    codec.prepare(images)
    return Latent.over(codec, prior)
