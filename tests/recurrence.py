"""Recurrent mixer: an example of adding a mixer to the transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmodels.nn.mixer import Mixer


class Recurrence(Mixer):
    """h_t = a h_(t-1) + v_t for every channel, gated; without causality, one scan in each
    direction."""

    def __init__(self, config, causal, index=0):
        super().__init__(config, causal, index)
        self.inputs = nn.Linear(config.width, 2 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.decay = nn.Parameter(torch.empty(1 if causal else 2, config.width))  # a = sigmoid(decay)

    def forward(self, x, places, state=None):
        value, gate = self.inputs(x).chunk(2, dim=-1)  # (N, T, D)
        starts = torch.zeros_like(x[..., 0], dtype=torch.bool) if places.starts is None else places.starts
        valid = torch.ones_like(starts) if places.valid is None else places.valid
        zero = torch.zeros_like(value[:, 0])
        a = self.decay.sigmoid()
        h, last = scan(value, a[0], starts, valid, zero if state is None else state[0])
        if state is not None:
            state[0].copy_(last)
        if not self.causal:
            ends = starts.roll(-1, dims=1)  # scanning backwards, a sequence begins at its end
            h = h + scan(value.flip(1), a[1], ends.flip(1), valid.flip(1), zero)[0].flip(1)
        return self.out(h * gate.sigmoid())

    def make_state(self, n, capacity, dtype, device):
        return (torch.zeros(n, self.out.out_features, dtype=dtype, device=device),)

    def residual(self):
        return (self.out.weight,)

    def muon(self):
        return self.inputs.weight, self.out.weight

    def no_decay(self):
        return (self.decay,)

    def initialise(self):
        self.decay.copy_(torch.linspace(-1.0, 3.0, self.decay.shape[1]))


def scan(value: Tensor, a: Tensor, starts: Tensor, valid: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """All states (N, T, D), and the last (N, D)."""
    states = []
    for t in range(value.shape[1]):
        h = h.masked_fill(starts[:, t, None], 0.0)
        h = torch.where(valid[:, t, None], a * h + value[:, t], h)
        states.append(h)
    return torch.stack(states, dim=1), h
