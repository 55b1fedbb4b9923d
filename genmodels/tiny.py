"""Tiny: diffusers' AutoencoderTiny, trained here: a small deterministic codec without norms.

It was published as TAESD, a fast substitute of Stable Diffusion's codec.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genmodels.kl import DiffusersCodec, DiffusersCodecConfig
from genmodels.nn.density import RunningWhitening
from genmodels.nn.diffusers_codec import check_side, decoded, latents
from genmodels.types import Batch


@dataclass(frozen=True)
class TinyConfig(DiffusersCodecConfig):
    """Architecture and loss of an AutoencoderTiny."""

    width: int = 32
    """Channels of every level. The network cannot have different ones."""
    encoder_blocks: tuple[int, ...] = (0, 1, 1, 3)
    """Residual blocks of the encoder at each level, finest first; every level after the first halves
    the resolution. The latents are size / 2^(levels - 1) a side: 8 x 8 at 64 px."""
    decoder_blocks: tuple[int, ...] = (0, 1, 1, 3)
    """Residual blocks of the decoder at each level, finest first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "width")
        for name in ("encoder_blocks", "decoder_blocks"):
            blocks = getattr(self, name)
            if not blocks or len(blocks) != len(self.encoder_blocks) or min(blocks) < 0:
                raise ValueError(
                    f"{name} needs a number of blocks of at least 0 for each level, and as many levels as "
                    f"encoder_blocks, got {blocks}"
                )
        check_side("tiny", self.size, 2 ** (len(self.encoder_blocks) - 1))


class Tiny(DiffusersCodec):
    """AutoencoderTiny, trained by reconstruction.

    Its decoder first limits latents softly to [-3, 3], so their scale cannot be changed after
    training. It is trained on whitened latents instead: between encoder and decoder, they are
    whitened by moving averages of their mean and variance, as in batch normalisation, but without a
    gradient. `calibrate` replaces the averages by the statistics of the training images. The
    decoder of the network therefore takes the latents of the codec as they are.
    """

    family = "tiny"
    Config = TinyConfig
    whitening: RunningWhitening

    def __init__(self, config: TinyConfig | None = None):
        c = config or TinyConfig()
        super().__init__(c, autoencoder_tiny(c))
        self.whitening = RunningWhitening(c.latent_channels)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents of one image, (latent_channels, grid, grid)."""
        c = self.config
        grid = check_side(self.family, c.size, 2 ** (len(c.encoder_blocks) - 1))
        return (c.latent_channels, grid, grid)

    def _autoencoder_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        raw = self._code(batch.images)
        if self.training and torch.is_grad_enabled():
            self.whitening.observe(raw)
        return self.reconstruction(batch, raw)

    def _remade(self, batch: Batch) -> Tensor:
        return self._mean_image(self._code(batch.images))

    def _last_layer(self) -> nn.Conv2d:
        return self.network.decoder.layers[-1]  # type: ignore[no-any-return]

    def after_step(self) -> None:
        super().after_step()
        self.whitening.commit()

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Start the moving averages from the statistics of `images`."""
        self.whitening.fit(torch.cat([self._code(batch) for batch in images]))

    def _code(self, images: Tensor) -> Tensor:
        return latents(self.network, images)

    def _mean_image(self, raw: Tensor) -> Tensor:
        return decoded(self.network, self.whitening.whiten(raw))


def autoencoder_tiny(config: TinyConfig) -> Any:
    """Build diffusers' AutoencoderTiny of a config, with random weights."""
    import diffusers

    levels = len(config.encoder_blocks)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(config.width,) * levels,
        decoder_block_out_channels=(config.width,) * levels,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks[::-1],  # coarsest first
        latent_channels=config.latent_channels,
    )
