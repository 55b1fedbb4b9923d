"""Texts as conditions, encoded by a frozen text encoder with the conventions of Stable Diffusion."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.conditions import Text, TextConfig
from genmodels.nn.text_encoder import TextEncoder, TextEncoderConfig
from genmodels.saving import from_dict


class EncodedText(nn.Module):
    """Text -> a pooled vector and token vectors, by a frozen text encoder.

    As in Stable Diffusion (arXiv 2112.10752), every text is padded to the context with end tokens,
    all positions are used, and the null condition is the encoding of the empty text.

    Args:
        config: config of the encoder, and the context.
        width: D, size of the pooled vector.
        token_width: size of the token vectors. None: that of the encoder, whose vectors are then
            not projected.
    """

    empty: Tensor

    def __init__(self, config: TextConfig, width: int, token_width: int | None):
        super().__init__()
        settings = from_dict(TextEncoderConfig, config.encoder, "condition.text.encoder")
        inner = settings.transformer.width
        self.encoder = TextEncoder(settings)
        self.pool = nn.Linear(inner, width)
        self.project = nn.Identity() if token_width is None else nn.Linear(inner, token_width)
        empty = torch.full((config.length,), settings.end)
        empty[0] = config.start
        self.register_buffer("empty", empty, persistent=False)
        self.encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode. The encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, text: Text, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Encode N texts. A row without a real token is the empty text.

        Returns:
            Pooled vectors (N, D), token vectors (N, L, width) in float32, and a mask (N, L) that is
            True everywhere.

        Raises:
            ValueError: for a wrong shape or dtype, too many tokens, an id outside the vocabulary,
                or a text without its end token.
        """
        ids, mask = text.ids, text.mask
        if ids.ndim != 2 or ids.shape[0] != n or mask.shape != ids.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"the text needs ids and a bool mask of shape ({n}, L), got {tuple(ids.shape)} and "
                f"{mask.dtype} {tuple(mask.shape)}"
            )
        more, end = len(self.empty) - ids.shape[1], self.empty[-1]
        if more > 0:
            ids, mask = F.pad(ids, (0, more)), F.pad(mask, (0, more))
        ids = torch.where(mask.any(1, keepdim=True), torch.where(mask, ids, end), self.empty)  # (N, L)
        ends = self.encoder.ends(Text(ids, mask))
        pooled, tokens = self.encode(ids, ends)
        return pooled, tokens, torch.ones_like(mask)

    def encode(self, ids: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts (N, L) that are padded with end tokens, the first of which are at `ends` (N,):
        pooled vectors (N, D) and token vectors (N, L, width), in float32."""
        with torch.no_grad():
            states = self.encoder.states(ids).float()  # (N, L, W)
        pooled = states[torch.arange(ids.shape[0], device=ids.device), ends]
        return self.pool(pooled).float(), self.project(states).float()
