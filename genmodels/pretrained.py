"""Autoencoders of diffusers as codecs: AutoencoderKL, the one of Stable Diffusion, AutoencoderTiny
and VQModel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor

from genmodels.base import Model
from genmodels.nn.density import Whitening
from genmodels.nn.diffusers_codec import check_side, decoded, latents, posterior
from genmodels.reading import in_one_line, read_json
from genmodels.saving import Range, from_settings
from genmodels.types import Batch
from genmodels.usage import without_warnings
from genmodels.weights import build, check_finite, checked_settings, masks, read_all_shapes

FOLDERS = (".", "vae", "vqvae")
"""Places of an autoencoder: its own folder, or the folder of a pipeline."""


@dataclass(frozen=True)
class PretrainedConfig:
    """An autoencoder of diffusers."""

    size: int
    """Side of the images in pixels."""
    settings: dict[str, Any]
    """Settings in its own config.json."""


Size = Annotated[int, Range(1, 2**20)]


@dataclass(frozen=True)
class CodecSettings:
    """Settings of an autoencoder of diffusers that are used here."""

    block_out_channels: Annotated[tuple[Size, ...], Range(1, 16)]
    scaling_factor: Annotated[float, Range(1e-6, 1e6)] = 1.0


@dataclass(frozen=True)
class TinySettings:
    """Settings of an AutoencoderTiny that are used here."""

    encoder_block_out_channels: Annotated[tuple[Size, ...], Range(1, 16)]
    decoder_block_out_channels: Annotated[tuple[Size, ...], Range(1, 16)]


class PretrainedCodec(Model, ABC):
    """A network of diffusers as a codec. It is used as it is and cannot be trained.

    Args:
        config: the network and the size of the images.

    Raises:
        ValueError: if it is not for RGB images of that size.
    """

    Config = PretrainedConfig
    Settings: ClassVar[type] = CodecSettings

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        import diffusers

        kind = getattr(diffusers, self.family)
        settings = checked_settings(kind, config.settings)
        try:
            with without_warnings():
                self.network: Any = kind.from_config(settings)
        except Exception as error:  # diffusers checks few of its settings
            raise ValueError(f"not the config of a diffusers {self.family}: {in_one_line(error, 200)}") from None
        used = self.network.config
        if used.in_channels != 3 or used.out_channels != 3:
            raise ValueError(f"this {self.family} is for images of {used.in_channels} channels, not of 3")
        self.grid = check_side(self.family, config.size, 2 ** (len(used.block_out_channels) - 1))

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents of one image."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode (N, 3, H, W) in [-1, 1] as latents (N, *latent_shape)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (N, *latent_shape) to (N, 3, H, W) in [-1, 1]."""

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        raise ValueError(f"an imported {self.family} is a codec and is not trained here")

    @final
    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images (N, 3, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))


class PretrainedContinuous(PretrainedCodec):
    """Codec of continuous latents, normalised by statistics of training images.

    The published `scaling_factor` is a single number that was measured on other images; `prepare`
    measures the training images instead. A prior that was trained with the published number needs
    `set_scale`.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.whitening = Whitening(self.network.config.latent_channels)
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))

    calibrated: Tensor

    @abstractmethod
    def _code(self, images: Tensor) -> Tensor:
        """Encode (N, 3, H, W) in [-1, 1] as the latents of the network."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.network.config.latent_channels, self.grid, self.grid)

    def encode(self, images: Tensor) -> Tensor:
        if not self.calibrated:
            raise ValueError(
                f"the mean and standard deviation of this {self.family}'s latents are unknown: call prepare(images)"
            )
        return self.whitening.whiten(self._code(images))

    def decode(self, latents: Tensor) -> Tensor:
        return decoded(self.network, self.whitening.unwhiten(latents)).clamp(-1, 1)

    @torch.no_grad()
    def prepare(self, images: Iterable[Tensor]) -> None:
        """Measure the mean and standard deviation of the latents of training images."""
        self.whitening.fit(torch.cat([self._code(batch) for batch in images]))
        self.calibrated.fill_(True)

    def set_scale(self, factor: float) -> None:
        """Multiply latents by `factor` without centring them."""
        self.whitening.mean.zero_()
        self.whitening.std.fill_(1 / factor)
        self.calibrated.fill_(True)


class PretrainedKL(PretrainedContinuous):
    """AutoencoderKL. Its latents are posterior means, normalised per channel."""

    family = "AutoencoderKL"

    def _code(self, images: Tensor) -> Tensor:
        return posterior(self.network, images)[0]


class PretrainedTiny(PretrainedContinuous):
    """AutoencoderTiny. Its latents are scaled by one number, which diffusers can represent: its
    decoder limits latents to [-3, 3], so a mean and scale per channel have no place in it."""

    family = "AutoencoderTiny"
    Settings = TinySettings

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        used = self.network.config
        levels = len(used.encoder_block_out_channels), len(used.decoder_block_out_channels)
        if levels[0] != levels[1] or used.upsampling_scaling_factor != 2:
            raise ValueError("this AutoencoderTiny decodes to images of another size than it encodes")

    def _code(self, images: Tensor) -> Tensor:
        return latents(self.network, images)

    @torch.no_grad()
    def prepare(self, images: Iterable[Tensor]) -> None:
        """Measure the standard deviation of the latents of training images, over all channels."""
        self.set_scale(1 / max(float(torch.cat([self._code(batch) for batch in images]).std()), 1e-6))


class PretrainedVQ(PretrainedCodec):
    """VQModel. Its latents are codes (grid, grid)."""

    family = "VQModel"

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.network.config.num_vq_embeddings

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.grid, self.grid)

    def encode(self, images: Tensor) -> Tensor:
        codes = self.network.quantize(self.network.encode(images).latents)[2][2]  # (N h w,)
        return codes.view(len(images), self.grid, self.grid)

    def decode(self, latents: Tensor) -> Tensor:
        network = self.network
        if len(latents) and (latents.min() < 0 or latents.max() >= self.codebook_size):
            raise ValueError(f"codes must be in [0, {self.codebook_size:,}): these are of another codec")
        vectors = network.quantize.embedding(latents.long()).permute(0, 3, 1, 2)  # (N, dim, h, w)
        # As VQModel.decode, without quantising again.
        given = vectors if network.config.norm_type == "spatial" else None
        return network.decoder(network.post_quant_conv(vectors), given).float().clamp(-1, 1)

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """Shape of the vectors of one image, (dim, grid, grid)."""
        settings = self.network.config
        return (settings.vq_embed_dim or settings.latent_channels, self.grid, self.grid)

    def vectors(self, images: Tensor) -> Tensor:
        """Encode (N, 3, H, W) in [-1, 1] as vectors before quantisation, (N, *vector_shape)."""
        return self.network.encode(images).latents

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Quantise vectors (N, *vector_shape) and decode them to (N, 3, H, W) in [-1, 1]."""
        return self.network.decode(vectors).sample.float().clamp(-1, 1)


PRETRAINED: dict[str, type[PretrainedCodec]] = {
    kind.family: kind for kind in (PretrainedKL, PretrainedTiny, PretrainedVQ)
}
"""Codecs by the name of their class in diffusers."""


def is_pretrained(path: Path) -> bool:
    """Return whether folder `path` was written by diffusers, whose configs name a class."""
    return _folder(path) is not None or (path / "model_index.json").is_file()


@without_warnings()
def load_pretrained(path: Path, size: int) -> PretrainedCodec:
    """Load the autoencoder in folder `path`, or in the pipeline there, from safetensors only.

    Args:
        path: the folder.
        size: side of the images in pixels.

    Raises:
        ValueError: if there is no autoencoder, or it is damaged or for other images.
    """
    place = _folder(path)
    if place is None:
        raise ValueError(f"{path} is a diffusers pipeline without an autoencoder in {' or '.join(FOLDERS[1:])}/")
    file = place / "config.json"
    kind = class_name(file)
    if kind not in PRETRAINED:
        raise ValueError(f"{place} holds a diffusers {kind}; a codec can be one of {', '.join(PRETRAINED)}")
    settings = read_json(file)
    from_settings(PRETRAINED[kind].Settings, settings, str(file))
    plain = {name: value for name, value in settings.items() if not name.startswith("_")}
    codec = build(lambda: PRETRAINED[kind](PretrainedConfig(size, plain)), str(file), read_all_shapes(place, kind))
    codec.network = read_network(place, codec.network)
    return codec.requires_grad_(False).eval()


@without_warnings()
def read_network(place: Path, like: Any) -> Any:
    """Load a diffusers network from safetensors only.

    Args:
        place: the folder.
        like: a network of the same class.

    Raises:
        ValueError: if weights are missing, damaged or incomplete.
    """
    kind = type(like).__name__
    read_all_shapes(place, kind)
    try:
        network, loaded = type(like).from_pretrained(
            place, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of many types, which mean the same to the caller
        raise ValueError(
            f"{place} does not hold the weights of this {kind} as safetensors ({in_one_line(error, 200)}): save it "
            "again with save_pretrained(..., safe_serialization=True)"
        ) from None
    if absent := [*loaded["missing_keys"], *loaded["mismatched_keys"]]:
        raise ValueError(f"{place} lacks weights of this {kind}, such as {absent[0]}: the file is damaged or mixed up")
    if extra := loaded["unexpected_keys"]:
        raise ValueError(f"{place} holds weights that this {kind} does not have: {', '.join(sorted(extra))}")
    check_finite(network.state_dict(), place, masks(like))
    return network


def class_name(file: Path) -> str | None:
    """Return the class that a config of diffusers names, or None.

    Raises:
        ValueError: if the file is damaged.
    """
    settings = read_json(file)
    name = settings.get("_class_name") if isinstance(settings, dict) else None
    return name if isinstance(name, str) else None


def _folder(path: Path) -> Path | None:
    for place in (path / name for name in FOLDERS):
        if (place / "config.json").is_file() and class_name(place / "config.json") is not None:
            return place
    return None
