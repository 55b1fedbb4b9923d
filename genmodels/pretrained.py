"""Autoencoders in the format of diffusers, as codecs: AutoencoderKL (Stable Diffusion's) and VQModel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from genmodels.base import read_json
from genmodels.nn.density import Whitening

FOLDERS = (".", "vae", "vqvae")
"""Where an autoencoder lies: by itself, or in the folder of a pipeline."""


@dataclass(frozen=True)
class PretrainedConfig:
    """An autoencoder of diffusers."""

    size: int
    """Side of the images in pixels."""
    settings: dict[str, Any]
    """What its own config.json says."""


class PretrainedCodec(nn.Module, ABC):
    """A network of diffusers behind our protocols. It is used, never trained.

    Args:
        config: what it is.

    Raises:
        ValueError: when it is for other images than three colours of that size.
    """

    family: ClassVar[str]
    Config = PretrainedConfig

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        import diffusers

        self.config = config
        try:
            self.network: Any = getattr(diffusers, self.family).from_config(dict(config.settings))
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"not the config of a diffusers {self.family}: {reason}") from None
        settings = self.network.config
        if settings.in_channels != 3 or settings.out_channels != 3:
            raise ValueError(f"this {self.family} is for images of {settings.in_channels} channels, not of 3 colours")
        factor = 2 ** (len(settings.block_out_channels) - 1)
        if config.size % factor:
            raise ValueError(f"{self.family} reduces images {factor} times: {config.size} px do not divide by that")
        self.grid = config.size // factor

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latents."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, *latent_shape)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """(N, *latent_shape) -> (N, 3, H, W) in [-1, 1]."""

    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Measure what is not in its folder, on training images in batches of (N, 3, H, W) in [-1, 1]. Optional."""

    @final
    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same."""
        return self.decode(self.encode(images))


class PretrainedKL(PretrainedCodec):
    """AutoencoderKL. Latents are posterior means, whitened channel by channel by what the training images have.

    The published `scaling_factor` is one number, measured on other images; `calibrate` measures these. A prior that was
    trained with it needs `set_scale`.
    """

    family = "AutoencoderKL"

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.whitening = Whitening(self.network.config.latent_channels)
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))

    calibrated: Tensor

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.network.config.latent_channels, self.grid, self.grid)

    def encode(self, images: Tensor) -> Tensor:
        if not self.calibrated:
            raise ValueError("the mean and spread of this AutoencoderKL's latents are unknown: call calibrate(images)")
        return self.whitening.whiten(self.network.encode(images).latent_dist.mode())

    def decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(self.whitening.unwhiten(latents)).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Measure mean and spread of the latents of `images`, in batches of (N, 3, H, W) in [-1, 1]."""
        self.whitening.fit(torch.cat([self.network.encode(batch).latent_dist.mode() for batch in images]))
        self.calibrated.fill_(True)

    def set_scale(self, factor: float) -> None:
        """Scale latents by `factor`, and do not centre them."""
        self.whitening.mean.zero_()
        self.whitening.std.fill_(1 / factor)
        self.calibrated.fill_(True)


class PretrainedVQ(PretrainedCodec):
    """VQModel. Its latents are codes, (grid, grid)."""

    family = "VQModel"

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.codebook_size: int = self.network.config.num_vq_embeddings

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.grid, self.grid)

    def encode(self, images: Tensor) -> Tensor:
        codes = self.network.quantize(self.network.encode(images).latents)[2][2]  # (N h w,)
        return codes.view(len(images), self.grid, self.grid)

    def decode(self, latents: Tensor) -> Tensor:
        network = self.network
        if len(latents) and (latents.min() < 0 or latents.max() >= self.codebook_size):
            raise ValueError(f"codes go from 0 to {self.codebook_size - 1:,}: these are of another codec")
        vectors = network.quantize.embedding(latents.long()).permute(0, 3, 1, 2)  # (N, dim, h, w)
        # VQModel.decode without its quantisation: vectors of the book stand for themselves.
        given = vectors if network.config.norm_type == "spatial" else None
        return network.decoder(network.post_quant_conv(vectors), given).float().clamp(-1, 1)

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """Shape of one image's vectors, (dim, grid, grid)."""
        settings = self.network.config
        return (settings.vq_embed_dim or settings.latent_channels, self.grid, self.grid)

    def vectors(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> vectors before they are quantised, (N, *vector_shape)."""
        return self.network.encode(images).latents

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """(N, *vector_shape), not quantised -> (N, 3, H, W) in [-1, 1], through the nearest codes."""
        return self.network.decode(vectors).sample.float().clamp(-1, 1)


PRETRAINED: dict[str, type[PretrainedCodec]] = {kind.family: kind for kind in (PretrainedKL, PretrainedVQ)}
"""By the name of their class in diffusers."""


def is_pretrained(path: Path) -> bool:
    """Whether folder `path` is diffusers': its config names a class, and ours a family."""
    return _folder(path) is not None or (path / "model_index.json").is_file()


def load_pretrained(path: Path, size: int) -> PretrainedCodec:
    """The autoencoder in folder `path`, its own or that of a pipeline. Only safetensors are read, never a pickle.

    Args:
        path: the folder.
        size: side of the images in pixels.

    Raises:
        ValueError: when it is none, damaged, or for other images.
    """
    place = _folder(path)
    if place is None:
        raise ValueError(f"{path} is a pipeline of diffusers without an autoencoder in {' or '.join(FOLDERS[1:])}/")
    settings = read_json(place / "config.json")
    kind = settings["_class_name"]
    if kind not in PRETRAINED:
        raise ValueError(f"{place} holds a {kind} of diffusers; codecs can be {' or '.join(PRETRAINED)}")
    plain = {name: value for name, value in settings.items() if not name.startswith("_")}
    codec = PRETRAINED[kind](PretrainedConfig(size, plain))
    codec.network = read_network(place, codec.network)
    return codec.requires_grad_(False).eval()


def read_network(place: Path, like: Any) -> Any:
    """The network of diffusers in folder `place`, of the class of `like`. Only safetensors are read, never a pickle.

    Raises:
        ValueError: when its weights are absent, damaged or not whole.
    """
    kind = type(like).__name__
    try:
        network, loaded = type(like).from_pretrained(
            place, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{place} does not hold the weights of this {kind} as safetensors ({reason}): save it again with "
            "save_pretrained(..., safe_serialization=True)"
        ) from None
    if absent := [*loaded["missing_keys"], *loaded["mismatched_keys"]]:
        raise ValueError(f"{place} lacks weights of this {kind}, such as {absent[0]}: the file is damaged or mixed up")
    if extra := loaded["unexpected_keys"]:
        raise ValueError(f"{place} holds weights that this {kind} has no place for: {', '.join(sorted(extra))}")
    return network


def _folder(path: Path) -> Path | None:
    for place in (path / name for name in FOLDERS):
        if (place / "config.json").is_file() and "_class_name" in read_json(place / "config.json"):
            return place
    return None
