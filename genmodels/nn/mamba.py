"""Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060), the two state-space mixers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn import kernels
from genmodels.nn.scan import selective_scan, ssd, ssd_step
from genmodels.nn.ssm import Core, StateSpace, at_least_float

if TYPE_CHECKING:
    from genmodels.nn.transformer import TransformerConfig


class Mamba2(StateSpace):
    """Mamba-2: heads of P channels with one decay each, computed in chunks."""

    def __init__(self, config: TransformerConfig, causal: bool, index: int = 0):
        super().__init__(config, causal, index)
        c = config.ssm
        self.size = c.state_size("mamba2")
        self.heads = self.width // c.head
        cores = [Core(self.convolved, c.conv, (self.heads,), self.heads, self.heads) for _ in range(self._count())]
        self._build(config, self.width + self.convolved + self.heads, cores)
        self.norm = nn.Parameter(torch.ones(self.width))
        self.eps = config.norm_eps

    @property
    def convolved(self) -> int:
        return self.width + 2 * self.settings.groups * self.size

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, values = self.inputs(x).split([self.width, self.convolved + self.heads], dim=-1)
        return values, gate

    def scanned(
        self, core: Core, x: Tensor, values: Tensor, h: Tensor | None, sequences: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        c = self.settings
        dt = core.steps(values[..., self.convolved :], valid)  # (N, T, H)
        part = c.groups * self.size
        x, *pair = x.split([self.width, part, part], dim=-1)
        x = x.unflatten(-1, (self.heads, c.head))  # (N, T, H, P)
        b, cc = (value.unflatten(-1, (c.groups, self.size)) for value in pair)  # (N, T, G, S)
        a = core.decay(dt)
        if self._uses_scan(h, x.device):
            y, last = kernels.ssd(x, dt, a, b, cc, sequences, c.chunk), None
        else:
            h = self.first_state(len(x), dt.dtype, x.device) if h is None else h.to(dt.dtype)
            if x.shape[1] == 1 and sequences is None:
                y, last = ssd_step(x[:, 0], dt[:, 0], a, b[:, 0], cc[:, 0], h)
                y = y[:, None]
            else:
                y, last = ssd(x, dt, a, b, cc, h, sequences, c.chunk)
        return (y + core.skip.to(x.dtype)[:, None] * x).flatten(2), last

    def gated(self, y: Tensor, gate: Tensor) -> Tensor:
        y = at_least_float(y, y) * F.silu(at_least_float(gate, y))
        y = F.rms_norm(y.unflatten(-1, (self.settings.groups, -1)), (self.width // self.settings.groups,), eps=self.eps)
        return (y.flatten(-2) * self.norm).to(gate.dtype)

    def first_state(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        shape = (n, self.heads, self.settings.head, self.size)
        return torch.zeros(shape, dtype=torch.promote_types(dtype, torch.float32), device=device)


class Mamba(StateSpace):
    """Mamba: one decay per channel and number of the state; steps, B and C are read from the
    convolved inputs."""

    forward_mode: ClassVar[bool] = False  # `selective_scan` has a gradient only

    def __init__(self, config: TransformerConfig, causal: bool, index: int = 0):
        super().__init__(config, causal, index)
        c = config.ssm
        self.size = c.state_size("mamba")
        rank = c.step_rank(config.width)
        cores = [MambaCore(self.width, c.conv, self.size, rank) for _ in range(self._count())]
        self._build(config, 2 * self.width, cores)

    @property
    def convolved(self) -> int:
        return self.width

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, gate = self.inputs(x).chunk(2, dim=-1)
        return values, gate

    def scanned(
        self, core: Core, x: Tensor, values: Tensor, h: Tensor | None, sequences: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert isinstance(core, MambaCore)
        rank = core.dt.in_features
        low, b, c = F.linear(x, core.read.weight.to(x.dtype)).split([rank, self.size, self.size], dim=-1)
        dt = core.steps(F.linear(low, core.dt.weight.to(x.dtype)), valid)  # (N, T, I)
        if sequences is None and self._uses_scan(h, x.device):  # the kernel knows no boundaries of sequences
            y, last = kernels.selective_scan(x, dt, core.decay(dt), b, c), None
        else:
            h = self.first_state(len(x), dt.dtype, x.device) if h is None else h.to(dt.dtype)
            starts = None if sequences is None else sequences != F.pad(sequences, (1, 0))[:, :-1]
            y, last = selective_scan(x, dt, core.decay(dt), b, c, h, starts)
        return (y + core.skip * x).to(x.dtype), last

    def gated(self, y: Tensor, gate: Tensor) -> Tensor:
        return y * F.silu(gate)

    def first_state(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        shape = (n, self.width, self.size)
        return torch.zeros(shape, dtype=torch.promote_types(dtype, torch.float32), device=device)


class MambaCore(Core):
    """Those of Mamba, whose steps, B and C are linear in the convolved inputs."""

    def __init__(self, width: int, kernel: int, size: int, rank: int):
        super().__init__(width, kernel, (width, size), width, width)
        self.read = nn.Linear(width, rank + 2 * size, bias=False)
        self.dt = nn.Linear(rank, width, bias=False)

    def undecayed(self) -> Iterable[Tensor]:
        return self.conv, self.log_a, self.dt.weight

    def initialise(self) -> None:
        super().initialise()
        bound = 1 / math.sqrt(self.dt.in_features)
        nn.init.uniform_(self.dt.weight, -bound, bound)
