"""Latent: a prior trained in the space of a frozen codec. Which codec and which prior makes no difference here."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

import genmodels
from genmodels.base import Generator, from_dict, weights_hash
from genmodels.nn.precision import full_precision
from genmodels.nn.regions import continued, known_cells
from genmodels.pretrained import PRETRAINED, PretrainedCodec, is_pretrained, load_pretrained
from genmodels.types import (
    Batch,
    Codec,
    Condition,
    Denoises,
    Edits,
    HasLatents,
    HasVectors,
    Inpaints,
    Interpolates,
    Morphs,
    Noise,
    Quantises,
    continuous_shape,
)


@dataclass(frozen=True)
class Part:
    """A model inside a model: what its own config.json would say."""

    family: str
    """One of genmodels.FAMILIES, or the class of an autoencoder of diffusers."""
    model: dict[str, Any]
    """Its config."""

    def __post_init__(self) -> None:
        # As JSON gives it back, so that what is read equals what was written.
        object.__setattr__(self, "model", json.loads(json.dumps(self.model)))

    @classmethod
    def of(cls, module: Generator | PretrainedCodec) -> Part:
        """What describes `module`."""
        return cls(module.family, dataclasses.asdict(module.config))

    def build(self) -> Any:
        """A module with this config and random weights."""
        kind: Any = PRETRAINED[self.family] if self.family in PRETRAINED else genmodels.family(self.family)
        return kind(from_dict(kind.Config, self.model, self.family))


@dataclass(frozen=True)
class LatentConfig:
    """Codec and prior, each with its own config."""

    codec: Part
    """What images become latents or codes by. It is not trained."""
    prior: Part
    """What is trained, on these."""
    codec_weights: str = ""
    """Hash of the codec's weights: what the prior has learnt means nothing to another codec."""
    size: int = 64
    """Side of the images in pixels."""


class Latent(Generator):
    """Images by way of a codec: prior.loss(codec.encode(images)); codec.decode(prior.sample(noise)).

    The codec is frozen and stays in eval mode; only the prior has turns, an optimiser and an average of its weights. A
    saved Latent holds both. Make one with `Latent.over(codec, prior)`.

    Args:
        config: of both.
        codec, prior: what it describes; None: built from it, with random weights.
    """

    family = "latent"
    Config = LatentConfig
    vector_scale: Tensor | None
    """What gives vectors unit variance, for a prior that learns those behind the codes."""

    def __init__(self, config: LatentConfig, codec: Any = None, prior: Any = None):
        super().__init__(config)
        self.codec = (config.codec.build() if codec is None else codec).requires_grad_(False).eval()
        self.prior: Any = config.prior.build() if prior is None else prior
        self.codec_weights = self.prior.codec_weights = config.codec_weights
        self.Options = self.prior.Options
        self.turns = self.prior.turns
        vectors = isinstance(self.codec, HasVectors) and not self.prior.needs_codes
        self.register_buffer("vector_scale", torch.ones(()) if vectors else None)
        for name, ability in ABILITIES.items():
            if isinstance(self.prior, ability):  # so that isinstance(self, ability) says what this one can do
                self.__dict__[name] = getattr(self, f"_{name}")

    @classmethod
    def over(cls, codec: nn.Module, prior: Generator) -> Self:
        """`prior`, to be trained on what the trained `codec` makes of images. Both become part of the model.

        Raises:
            ValueError: when the prior was built for other latents.
        """
        if not isinstance(codec, (Generator, PretrainedCodec)) or not isinstance(codec, Codec):
            raise ValueError(f"{type(codec).__name__} is no codec of ours: see load_codec")
        if prior.config.size != codec.config.size:
            raise ValueError(f"the prior is for images of {prior.config.size} px, the codec for {codec.config.size} px")
        prior.check_codec(codec)
        config = LatentConfig(Part.of(codec), Part.of(prior), weights_hash(codec), codec.config.size)
        return cls(config, codec, prior)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The prior's."""
        return self.prior.attributes

    @property
    def classes(self) -> int:
        """The prior's."""
        return self.prior.classes

    def get_prior(self) -> Generator:
        """What is trained."""
        return self.prior

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> latents or codes, (N, *latent_shape), in full precision; for a prior of
        continuous latents over a codec that quantises, the vectors before that."""
        with full_precision(images.device):
            return self.codec.encode(images) if self.vector_scale is None else self.codec.vectors(images)

    @property
    def latents_name(self) -> str:
        """What identifies what `encode` gives: the codec's weights, and whether it is vectors in place of codes."""
        return self.codec_weights if self.vector_scale is None else f"{self.codec_weights} vectors"

    def to_prior(self, latents: Tensor) -> Tensor:
        """What `encode` gives, as the prior sees it: vectors have no unit variance by themselves."""
        return latents if self.vector_scale is None else latents * self.vector_scale

    def decode(self, found: Tensor) -> Tensor:
        """What the prior makes -> (N, 3, H, W) in [-1, 1]."""
        if self.vector_scale is None:
            return self.codec.decode(found)
        return self.codec.decode_vectors(found / self.vector_scale)

    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same, through the codec alone: no sample can be better than this."""
        return self.decode(self.to_prior(self.encode(images)))

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        latents = self.encode(batch.images) if batch.latents is None else batch.latents
        return self.prior.loss(replace(batch, images=self.to_prior(latents), latents=None), turn)

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        return self.decode(self.prior.sample(noise, condition, options))

    # ---- what the prior can do, through the codec: model.inpaint and so on, where it can ----

    def _inpaint(self, images: Tensor, known: Tensor, noise: Noise, condition: Condition, options: Any) -> Tensor:
        """Completes images where they are not `known`, bool (H, W), in any region that the prior can; known pixels stay
        as they are.

        The codec never sees what is unknown: what is known, mirrored, stands there when it encodes. Latents that cover
        known pixels only are kept, and the prior draws the others.

        Raises:
            ValueError: for a mask of another size, or a region that the prior cannot complete.
        """
        size = self.config.size
        shown = continued(images, known, size)
        if not known.any():
            return self.sample(noise, condition, options)
        shape = learnt_shape(self.codec, self.prior.needs_codes)
        grid = shape[:2] if self.prior.needs_codes else shape[1:]
        if len(grid) < 2 or grid[0] != grid[1]:
            raise ValueError("this codec's latents stand for the whole image: it cannot be known in part")
        latents = self.encode(shown)
        kept = known_cells(known, grid)
        if not kept.any():
            raise ValueError(
                f"one of this codec's latents stands for {size // grid[0]} x {size // grid[1]} pixels: at least one "
                "such square must be known"
            )
        drawn = self.decode(self.prior.inpaint(self.to_prior(latents), kept, noise, condition, options))
        return torch.where(known, images, drawn)

    def _interpolate(self, first: Noise, second: Noise, weights: Tensor, options: Any) -> Tensor:
        """Samples on the prior's way from `first` to `second`: (len(weights), 3, H, W)."""
        return self.decode(self.prior.interpolate(first, second, weights, options))

    def _morph(self, first: Tensor, second: Tensor, weights: Tensor, options: Any) -> Tensor:
        """The prior's way from one image (1, 3, H, W) to another, each reconstructed by the codec."""
        ends = (self.to_prior(self.encode(image)) for image in (first, second))
        return self.decode(self.prior.morph(*ends, weights, options))

    def _draw_latents(self, noise: Noise, options: Any) -> Tensor:
        """The prior's vectors (N, D) of the samples of `noise`."""
        return self.prior.draw_latents(noise, options)

    def _find_latents(self, images: Tensor, exact: bool = True) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the prior's vectors (N, D)."""
        return self.prior.find_latents(self.to_prior(self.encode(images)), exact)

    def _from_latents(self, latents: Tensor) -> Tensor:
        """The prior's vectors (N, D) -> (N, 3, H, W) in [-1, 1]."""
        return self.decode(self.prior.from_latents(latents))

    def _edit(self, images: Tensor, strength: float, noise: Noise, condition: Condition, options: Any) -> Tensor:
        """Images (N, 3, H, W), redrawn by the prior."""
        return self.decode(self.prior.edit(self.to_prior(self.encode(images)), strength, noise, condition, options))

    def _trajectory(self, noise: Noise, condition: Condition, options: Any) -> tuple[Tensor, Tensor]:
        """The prior's steps, each decoded: two (steps + 1, N, 3, H, W)."""
        both = self.prior.trajectory(noise, condition, options)
        seen, expected = (torch.stack([self.decode(step) for step in steps]) for steps in both)
        return seen, expected

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """The prior's."""
        return self.prior.parameters_for(turn)

    def after_step(self) -> None:
        self.prior.after_step()

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        latents: Iterable[Tensor] = (self.encode(batch) for batch in images)
        if self.vector_scale is not None:
            latents = list(latents)
            self.vector_scale.copy_(1 / torch.cat(latents).std().clamp_min(1e-6))
        self.prior.initialise(self.to_prior(batch) for batch in latents)

    def diagnose(self, seen: Tensor, held_out: Tensor) -> tuple[dict[str, float], list[str]]:
        return self.prior.diagnose(*(self.to_prior(self.encode(images)) for images in (seen, held_out)))

    def calibrate(self, images: Iterable[Tensor]) -> None:
        self.prior.calibrate(self.to_prior(self.encode(batch)) for batch in images)

    def train(self, mode: bool = True) -> Self:
        """The prior's mode; the codec stays in eval mode."""
        super().train(mode)
        self.codec.eval()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that shares the codec: it is frozen, and an average of the weights needs no second one."""
        memo[id(self.codec)] = self.codec
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


ABILITIES: dict[str, Any] = {
    "inpaint": Inpaints,
    "interpolate": Interpolates,
    "morph": Morphs,
    "edit": Edits,
    "trajectory": Denoises,
    "draw_latents": HasLatents,
    "find_latents": HasLatents,
    "from_latents": HasLatents,
}
"""What a Latent can do when its prior can, by the name of the method."""


def learnt_shape(codec: Any, codes: bool) -> tuple[int, ...]:
    """Shape of what a prior over `codec` learns: codes, latents, or the vectors behind codes.

    Args:
        codec: as `load_codec` gives it.
        codes: whether the prior is one over codes.
    """
    return tuple(codec.latent_shape) if codes else continuous_shape(codec)


def prepare_codec(codec: Any, images: Iterable[Tensor]) -> None:
    """Measures what a folder of diffusers does not say of its autoencoder, on training images in batches of
    (N, 3, H, W) in [-1, 1]. Codecs of ours know it."""
    if isinstance(codec, PretrainedCodec):
        codec.calibrate(images)


def load_codec(path: Path, size: int, codes: bool = False) -> Any:
    """The codec in `path`: a run or model folder of ours, or the folder of a diffusers AutoencoderKL or VQModel.

    Args:
        path: the folder.
        size: side of the images in pixels.
        codes: whether its latents must be codes of a finite book.

    Raises:
        ValueError: when it is missing, damaged, no such codec, or for images of another size; in one line.
    """
    if not path.is_dir():
        raise ValueError(f"--codec {path}: no such folder; train a codec first: genmodels train vqvae --output {path}")
    found: Any = load_pretrained(path, size) if is_pretrained(path) else genmodels.load(path)
    family, trained_on = found.family, found.config.size
    if not isinstance(found, Codec):
        raise ValueError(f"--codec {path}: {family} is no codec: it does not encode and decode")
    if codes and not isinstance(found, Quantises):
        raise ValueError(f"--codec {path}: the latents of this {family} are no codes: give a vqvae, or a VQModel")
    if trained_on != size:
        raise ValueError(
            f"--codec {path}: it was trained on images of {trained_on} px, --size is {size}: set --size {trained_on}, "
            "or train another codec"
        )
    return found
