"""Diffusion with a U-Net of diffusers, on pixels or on a codec's latents: UNet2DModel or, with text,
UNet2DConditionModel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from genmodels.diffusion.config import DiffusionConfig
from genmodels.diffusion.model import Diffusion
from genmodels.nn.conditioning import Embedded
from genmodels.nn.conv import check_norm
from genmodels.weights import checked_settings


@dataclass(frozen=True)
class UNetConfig(DiffusionConfig):
    """Settings of the U-Net, in addition to those of every diffusion model."""

    patch: int = 1
    """Side of the square of pixels (or latents) that becomes the channels of one position
    (pixel unshuffle), which makes the network faster."""
    channels: tuple[int, ...] = (96, 192)
    """Channels of each level; every level after the first halves the resolution."""
    blocks: int = 2
    """Residual blocks per level in the encoder; the decoder has one more."""
    attention: tuple[bool, ...] = (False, True)
    """Whether each level has self-attention and, with text, cross-attention to its tokens."""
    head: int = 32
    """Channels of an attention head."""
    groups: int = 16
    """Groups of the group norm; must divide every number of channels."""
    dropout: float = 0.0
    """Dropout probability inside the residual blocks."""
    diffusers: dict[str, Any] = field(default_factory=dict)
    """Other settings of the class of diffusers; all of them, for an imported network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_imported:
            return  # UNet2DModel checks its own settings
        side = self.shape[1]
        if self.shape[2] != side:
            raise ValueError(
                f"a U-Net works on a square map, and these latents are {self.shape[1]} x {self.shape[2]}: use a codec "
                "with a grid, without --model.tokens"
            )
        if self.patch < 1 or side % self.patch:
            raise ValueError(f"patch must divide the side of the input, got {self.patch} for {side}")
        if not self.channels or len(self.attention) != len(self.channels) or self.blocks < 1:
            raise ValueError(
                f"channels and attention need one entry per level and blocks at least 1, got {self.channels}, "
                f"{self.attention} and {self.blocks}"
            )
        halvings = 2 ** (len(self.channels) - 1)
        if side // self.patch % halvings:
            raise ValueError(
                f"{len(self.channels)} levels halve the grid {len(self.channels) - 1} times, and "
                f"{side} / patch {self.patch} = {side // self.patch} does not divide by {halvings}: give fewer channels"
            )
        if self.groups < 1 or any(width < 1 or width % self.groups for width in self.channels):
            raise ValueError(f"channels must be multiples of groups {self.groups}, got {self.channels}")
        check_norm(self.groups, self.channels[-1], side // self.patch // halvings)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.head < 1:
            raise ValueError(f"head must be at least 1, got {self.head}")
        # The middle block, which follows the last level, always has attention.
        attends = (*self.attention[:-1], self.diffusers.get("add_attention", True) or self.attention[-1])
        if any(here and width % self.head for here, width in zip(attends, self.channels, strict=True)):
            raise ValueError(
                f"channels with attention, and those of the last level, which the middle block has too, must be "
                f"multiples of head {self.head}, got {self.channels}"
            )

    @property
    def is_imported(self) -> bool:
        """Whether `diffusers` describes the whole network."""
        return "block_out_channels" in self.diffusers


class UNet(Diffusion):
    """Diffusion with a U-Net (arXiv 2006.11239; 2112.10752).

    The pooled condition is added to the time embedding. The network reads text through
    cross-attention to the vectors of its tokens alone, as in Stable Diffusion.
    """

    family = "unet"
    Config = UNetConfig

    def __init__(self, config: UNetConfig | None = None):
        c = config or UNetConfig()
        super().__init__(c, width=4 * c.channels[0], project_tokens=False)
        self.network = network_class(c)(**network_settings(c))
        if any(isinstance(module, Attention) and module.heads < 1 for module in self.network.modules()):
            raise ValueError("attention_head_dim is larger than the number of channels of an attention layer")
        if not c.is_imported:
            start_small(self.network)
        self.to(memory_format=torch.channels_last)  # the fastest layout for convolutions

    def predict(self, x: Tensor, time_input: Tensor, condition: Embedded | None) -> Tensor:
        x = F.pixel_unshuffle(x, self.config.patch)  # (N, C p^2, H/p, W/p)
        pooled = None if condition is None else condition.pooled
        if condition is None or not self.config.condition.text.encoder:
            result = self.network(x, time_input, pooled)
        else:
            result = self.network(x, time_input, condition.tokens, pooled if reads_pooled(self.config) else None)
        return F.pixel_shuffle(result.sample, self.config.patch)


def network_class(config: UNetConfig) -> type[UNet2DModel] | type[UNet2DConditionModel]:
    """The class of diffusers for `config`: with text, the one with cross-attention."""
    return UNet2DConditionModel if config.condition.text.encoder else UNet2DModel


def reads_pooled(config: UNetConfig) -> bool:
    """Return whether the network adds a vector to the time embedding: that of attributes, of labels,
    of text without a text encoder, or of the length of a mean flow's jump."""
    c = config.condition
    other = c.attributes or c.classes or (c.text.vocabulary and not c.text.encoder)
    return bool(other) or config.process == "meanflow"


def network_settings(config: UNetConfig) -> dict[str, Any]:
    """Arguments of `network_class(config)`."""
    c = config
    text = c.condition.text
    attention = "CrossAttn" if text.encoder else "Attn"
    kinds = [attention if attends else "" for attends in c.attention]
    own: dict[str, Any] = {"attention_head_dim": c.head}
    if text.encoder:
        own = {
            # The number of heads; diffusers calls it attention_head_dim in this class.
            "attention_head_dim": tuple(max(1, width // c.head) for width in c.channels),
            "cross_attention_dim": text.encoder["transformer"]["width"],
        }
    return (
        own
        | {
            "sample_size": c.shape[1] // c.patch,
            "in_channels": c.shape[0] * c.patch**2,
            "out_channels": c.outputs * c.patch**2,
            "layers_per_block": c.blocks,
            "block_out_channels": c.channels,
            "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
            "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
            "norm_num_groups": c.groups,
            "dropout": c.dropout,
            "class_embed_type": "identity" if reads_pooled(c) else None,
        }
        | checked_settings(network_class(c), c.diffusers)
    )


@torch.no_grad()
def start_small(network: nn.Module) -> None:
    """Initialise residual blocks as the identity, and the output as 0 (arXiv 2105.05233)."""
    last_layers = [module.conv2 for module in network.modules() if isinstance(module, ResnetBlock2D)]
    for layer in (*last_layers, network.get_submodule("conv_out")):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
