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
from genmodels.nn.regions import known_rows, mirrored_below
from genmodels.pretrained import PRETRAINED, PretrainedCodec, is_pretrained, load_pretrained
from genmodels.types import Batch, Codec, Condition, Inpaints, Noise, Quantises


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

    def __init__(self, config: LatentConfig, codec: Any = None, prior: Any = None):
        super().__init__(config)
        self.codec = (config.codec.build() if codec is None else codec).requires_grad_(False).eval()
        self.prior: Any = config.prior.build() if prior is None else prior
        self.codec_weights = config.codec_weights
        self.Options = self.prior.Options
        self.turns = self.prior.turns

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
        """(N, 3, H, W) in [-1, 1] -> what the prior learns, (N, *latent_shape); in full precision."""
        with full_precision(images.device):
            return self.codec.encode(images)

    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same, through the codec alone: no sample can be better than this."""
        return self.codec.decode(self.encode(images))

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        latents = self.encode(batch.images) if batch.latents is None else batch.latents
        return self.prior.loss(replace(batch, images=latents, latents=None), turn)

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        return self.codec.decode(self.prior.sample(noise, condition, options))

    def inpaint(self, images: Tensor, known: Tensor, noise: Noise, condition: Condition, options: Any) -> Tensor:
        """Completes images of which the first rows are known; known pixels stay as they are.

        The codec never sees what is unknown: the known rows, mirrored, stand there when it encodes. Rows of codes that
        cover known pixels only are kept, and the prior draws the others.

        Raises:
            ValueError: when the prior cannot, or `known` is anything but whole rows from the top.
        """
        if not isinstance(self.prior, Inpaints):
            raise ValueError(f"a {self.prior.family} prior does not complete images")
        size, grid = self.config.size, self.codec.latent_shape[:2]
        rows = known_rows(known, size, size)
        if rows == 0:
            return self.sample(noise, condition, options)
        if rows < size / grid[0]:
            raise ValueError(
                f"a row of this codec's codes stands for {size // grid[0]} rows of pixels: at least these must be known"
            )
        codes = self.encode(mirrored_below(images, rows))
        kept = torch.zeros(grid, dtype=torch.bool, device=images.device)
        kept[: rows * grid[0] // size] = True
        drawn = self.codec.decode(self.prior.inpaint(codes, kept, noise, condition, options))
        return torch.where(known, images, drawn)

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """The prior's."""
        return self.prior.parameters_for(turn)

    def after_step(self) -> None:
        self.prior.after_step()

    def initialise(self, images: Iterable[Tensor]) -> None:
        self.prior.initialise(self.encode(batch) for batch in images)

    def calibrate(self, images: Iterable[Tensor]) -> None:
        self.prior.calibrate(self.encode(batch) for batch in images)

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
