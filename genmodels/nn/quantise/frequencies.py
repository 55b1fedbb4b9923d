"""Frequencies of codes at each position: the simplest prior over codes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MAX_VALUES = 2**22
"""Largest table (16 MB of weights). If it would be larger, all positions share one row."""


class CodeFrequencies(nn.Module):
    """Frequencies of K codes at each of T positions, which are sampled independently.

    Args:
        positions: T.
        codebook_size: K.
    """

    frequencies: Tensor

    def __init__(self, positions: int, codebook_size: int):
        super().__init__()
        self.positions = positions
        rows = positions if positions * codebook_size <= MAX_VALUES else 1
        self.register_buffer("frequencies", torch.zeros(rows, codebook_size))

    @property
    def fitted(self) -> bool:
        return bool(self.frequencies.any())

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Count the codes of batches (N, T), int64."""
        rows, size = self.frequencies.shape
        counts = torch.zeros(rows * size, dtype=torch.int64, device=self.frequencies.device)
        row = torch.arange(self.positions, device=counts.device) * size if rows > 1 else 0
        for codes in batches:
            counts += torch.bincount((codes + row).flatten(), minlength=rows * size)
        counts = counts.view(rows, size)
        self.frequencies.copy_(counts / counts.sum(1, keepdim=True))

    def sample(self, choice: Tensor, temperature: float) -> Tensor:
        """Return codes (N, T).

        Args:
            choice: uniform numbers in [0, 1), (N, T).
            temperature: frequencies are raised to the power of 1 / temperature.
        """
        logits = self.frequencies.double().log() / temperature  # -inf stays -inf
        cumulative = logits.softmax(1).cumsum(1).expand(self.positions, -1).contiguous()  # (T, K)
        wanted = choice.T.double() * cumulative[:, -1:]  # (T, N), below the total since choice < 1
        return torch.searchsorted(cumulative, wanted.contiguous(), right=True).T  # (N, T)
