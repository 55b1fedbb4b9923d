"""Codecs as autoencoders of diffusers: the scale of their latents becomes part of the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from genmodels.base import Model
from genmodels.kl import KL
from genmodels.nn.density import Whitening
from genmodels.pretrained import PretrainedKL, PretrainedTiny
from genmodels.tiny import Tiny

WITH_COUNTERPART = (KL, Tiny, PretrainedKL, PretrainedTiny)
"""Codecs that `autoencoder_for_diffusers` converts."""


def autoencoder_for_diffusers(codec: Model) -> Any:
    """Return an AutoencoderKL or AutoencoderTiny of diffusers with the latents of `codec`.

    With its `scaling_factor` s, its posterior mean (or latent) of an image times s is
    `codec.encode(image)`, and it decodes z / s as `codec.decode(z)` does, except that it does not
    clamp. s is 1, except for an imported AutoencoderTiny.

    Raises:
        ValueError: for another codec.
    """
    if not isinstance(codec, WITH_COUNTERPART):
        raise ValueError(
            f"diffusers cannot decode the latents of a {codec.family}: it can those of a kl or tiny, and of an "
            "AutoencoderKL or AutoencoderTiny"
        )
    network: Any = copy.deepcopy(codec.network).requires_grad_(True)
    factor = 1.0
    if isinstance(codec, KL | PretrainedKL):
        _fold(network, codec.whitening)
    elif isinstance(codec, Tiny):  # whose decoder takes whitened latents
        _divide(network.encoder.layers[-1], codec.whitening.mean, codec.whitening.std)
    else:  # one scale for all channels, and no mean
        factor = 1 / float(codec.whitening.std[0])
    network.register_to_config(scaling_factor=factor)
    return network.eval()


@torch.no_grad()
def _fold(network: Any, whitening: Whitening) -> None:
    """Fold a whitening into the 1 x 1 convolutions of an AutoencoderKL, which get any that lack.

    The encoder's means m become (m - mean) / std, its log variances decrease by 2 log std, and the
    decoder takes z std + mean.
    """
    mean, std = whitening.mean, whitening.std
    channels = len(mean)
    if network.quant_conv is None:
        network.quant_conv = _identity(2 * channels).to(std)
    if network.post_quant_conv is None:
        network.post_quant_conv = _identity(channels).to(std)
    network.register_to_config(use_quant_conv=True, use_post_quant_conv=True)
    encoder, decoder = network.quant_conv, network.post_quant_conv
    decoder.bias += decoder.weight.flatten(1) @ mean
    decoder.weight *= std.view(1, -1, 1, 1)
    both = torch.cat([std, torch.ones_like(std)])  # the encoder outputs means, then log variances
    _divide(encoder, torch.cat([mean, 2 * std.log()]), both)


@torch.no_grad()
def _divide(layer: nn.Conv2d, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Change the outputs y of a convolution to (y - mean) / std, with a value for each channel."""
    assert layer.bias is not None
    layer.bias.copy_((layer.bias - mean) / std)
    layer.weight /= std.view(-1, 1, 1, 1)


def _identity(channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
