"""State-space mixers: Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060).

    values, gate = inputs(x)
    y = scan(convolution(values)) + D values
    output = out(gated(y, gate))

In a causal transformer the scan follows the order of the tokens and has a state of constant size.
Otherwise one scan runs in each direction, and their outputs are added. Over a grid, `SSMConfig.scans`
chooses the order: by rows, by columns, or by rows in alternating directions.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn import kernels
from genmodels.nn.kernels import KERNELS, Kernel
from genmodels.nn.mixer import Mixer, State
from genmodels.nn.places import Places, number_sequences
from genmodels.nn.scan import last_inputs, short_convolution

if TYPE_CHECKING:
    from genmodels.nn.transformer import TransformerConfig

Scan = Literal["row", "column", "zigzag"]
SCANS: tuple[Scan, ...] = get_args(Scan)
FIRST_STEPS = (1e-3, 1e-1)
"""Range of the step sizes before training, log-uniform."""
FIRST_DECAYS = (1.0, 16.0)
"""Range of -A of Mamba-2 before training, uniform. Mamba's are 1 to S."""


@dataclass(frozen=True)
class SSMConfig:
    """Settings of the mixers mamba and mamba2. Others do not read them."""

    state: int | None = None
    """S, numbers of the state per channel. None: 16 for mamba, 64 for mamba2."""
    expand: int = 2
    """Channels of the scan, as a multiple of the width."""
    conv: int = 4
    """Length of the short convolution."""
    head: int = 64
    """P, channels of a head of mamba2, which share one decay. Must divide expand x width."""
    groups: int = 1
    """Groups of heads of mamba2 that share B and C. Must divide the number of heads."""
    chunk: int = 64
    """Tokens of a chunk of mamba2. It changes speed and rounding only."""
    rank: int | None = None
    """Rank of the step sizes of mamba. None: width / 16, rounded up."""
    separate: bool = False
    """Use separate convolutions and decays for the two directions where tokens see all others."""
    kernels: tuple[Kernel, ...] = ()
    """Packages of published kernels to use on a GPU, mamba-ssm and causal-conv1d. On other devices,
    and without them, everything is computed in plain PyTorch."""
    scans: tuple[Scan, ...] = ("row",)
    """Orders in which the blocks scan a grid where tokens see all others, a pattern that repeats
    over the depth: by rows, by columns, or by rows in alternating directions (zigzag)."""

    def __post_init__(self) -> None:
        for name in ("state", "expand", "conv", "head", "groups", "chunk", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"ssm: {name} must be at least 1, got {value}")
        if unknown := [kernel for kernel in self.kernels if kernel not in KERNELS]:
            raise ValueError(f"ssm: unknown kernel {unknown[0]!r}; known: {', '.join(KERNELS)}")
        if not self.scans or any(scan not in SCANS for scan in self.scans):
            raise ValueError(f"ssm: scans must be some of {', '.join(SCANS)}, got {self.scans}")

    def state_size(self, mixer: str) -> int:
        """S of a mixer."""
        return self.state or {"mamba": 16, "mamba2": 64}[mixer]

    def step_rank(self, width: int) -> int:
        """Rank of the step sizes of mamba in a transformer of `width`."""
        return self.rank or math.ceil(width / 16)

    @staticmethod
    def is_used(mixers: Sequence[str]) -> bool:
        """Whether one of the mixers reads these settings."""
        return not {"mamba", "mamba2"}.isdisjoint(mixers)

    def check(self, width: int, mixers: Sequence[str]) -> None:
        """Raises ValueError when a transformer of `width` with these mixers cannot be built, or
        settings would have no effect."""
        if not self.is_used(mixers):
            if self != SSMConfig():
                raise ValueError("ssm: these settings apply to the mixers mamba and mamba2 only, and there is none")
            return
        inner = self.expand * width
        if "mamba2" in mixers and (inner % self.head or inner // self.head % self.groups):
            raise ValueError(
                f"ssm: head must divide expand x width = {inner}, and groups the number of heads; got head "
                f"{self.head} and groups {self.groups}"
            )


class StateSpace(Mixer):
    """What both kinds share: projections, orders, directions, and the state of the convolution.

    Args:
        config: of the transformer.
        causal: whether token t may depend on tokens up to t only.
        index: of the block, which selects the order of the scan.
    """

    bidirectional: ClassVar[bool] = True
    rewindable: ClassVar[bool] = False

    def __init__(self, config: TransformerConfig, causal: bool, index: int = 0):
        super().__init__(config, causal, index)
        self.settings = config.ssm
        self.scan: Scan = config.ssm.scans[index % len(config.ssm.scans)]
        self.width = config.ssm.expand * config.width
        """I, channels of the scan."""

    @property
    @abstractmethod
    def convolved(self) -> int:
        """C, the first channels of the values, which are convolved."""

    @abstractmethod
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values (N, T, V) to scan and the gate (N, T, I) of tokens (N, T, D)."""

    @abstractmethod
    def scanned(
        self, core: Core, x: Tensor, values: Tensor, h: Tensor | None, sequences: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Scan tokens in their order. Returns y (N, T, I) and the last state, or None if h is None.

        Args:
            core: of this direction.
            x: the channels that were convolved, (N, T, C).
            values: of `split`, (N, T, V).
            h: state before the first token, in place of zeros.
            sequences: number of the sequence of each token, int (N, T). None: one sequence.
            valid: bool (N, T), False at padding, which leaves the state as it is. None: no padding.
        """

    @abstractmethod
    def gated(self, y: Tensor, gate: Tensor) -> Tensor:
        """Apply the gate (N, T, I) to y (N, T, I)."""

    @abstractmethod
    def first_state(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The state before the first position."""

    def forward(self, x: Tensor, places: Places, state: State | None = None) -> Tensor:
        values, gate = self.split(x)
        cores = self._cores()
        if self.causal:
            y = self._run(cores[0], values, self._causal_order(places), places, state)
        else:
            forwards, backwards = self._orders(places, len(x))
            y = self._run(cores[0], values, forwards, places, None)
            y = y + self._run(cores[-1], values, backwards, places, None)
        return self.out(self.gated(y, gate))  # (N, T, D)

    def make_state(self, n: int, capacity: int, dtype: torch.dtype, device: torch.device) -> State:
        """The last inputs of the convolution (N, K - 1, C), and the state of the scan."""
        before = torch.zeros(n, self.settings.conv - 1, self.convolved, dtype=dtype, device=device)
        return before, self.first_state(n, dtype, device)

    def residual(self) -> Iterable[Tensor]:
        return (self.out.weight,)

    def muon(self) -> Iterable[Tensor]:
        return self.inputs.weight, self.out.weight

    def no_decay(self) -> Iterable[Tensor]:
        return [parameter for core in self._cores() for parameter in core.undecayed()]

    def initialise(self) -> None:
        for core in self._cores():
            core.initialise()

    def _causal_order(self, places: Places) -> Tensor | None:
        """The order of the scan of a causal transformer, (N, T): padding last. None: as they are."""
        return None if places.valid is None else (~places.valid).long().argsort(dim=1, stable=True)

    def _orders(self, places: Places, rows: int) -> tuple[Tensor, Tensor]:
        """The orders of the two scans where tokens see all others, (T,) or (N, T) each: sequence by
        sequence, padding last."""
        key = scan_key(places.positions, self.scan)  # (T,) or (N, T)
        if places.starts is not None:
            key = key + number_sequences(places.starts, None) * (key.max() - key.min() + 1)
        keys = [key, -key]
        if places.valid is not None:
            keys = [each.expand(rows, -1).masked_fill(~places.valid, torch.inf) for each in keys]
        return keys[0].argsort(dim=-1), keys[1].argsort(dim=-1)

    def _run(self, core: Core, values: Tensor, order: Tensor | None, places: Places, state: State | None) -> Tensor:
        """Convolve and scan in an order. Returns y (N, T, I) in the order of the tokens."""
        valid = None if places.valid is None else reordered(places.valid, order)
        sequences = None
        if places.starts is not None:
            numbers = number_sequences(places.starts, None)
            sequences, end = reordered(numbers, order), numbers[:, -1:]
            if valid is not None:  # a sequence may begin at padding, and the state then ends empty
                sequences = torch.where(valid, sequences, end)
        values = reordered(values, order)
        before, h = state or (None, None)
        with torch.autocast(values.device.type, enabled=False):
            inputs = values[..., : self.convolved]
            x = self._convolve(core, inputs, before, sequences)
            y, last = self.scanned(core, x, values, h, sequences, valid)
            if before is not None and h is not None and last is not None:
                before.copy_(last_inputs(before, inputs, sequences, valid))
                h.copy_(last)
        return y if order is None else reordered(y, order.argsort(dim=-1))

    def _convolve(self, core: Core, inputs: Tensor, before: Tensor | None, sequences: Tensor | None) -> Tensor:
        weight, bias = core.kernel(inputs.dtype)
        if before is None and kernels.uses("causal-conv1d", self.settings.kernels, inputs.device):
            return kernels.convolution(inputs, weight, bias, sequences)
        if before is None:
            before = inputs.new_zeros(len(inputs), self.settings.conv - 1, self.convolved)
        return F.silu(short_convolution(inputs, weight, bias, before, sequences))

    def _uses_scan(self, h: Tensor | None, device: torch.device) -> bool:
        """Whether the kernel of the scan computes. It returns no states."""
        return h is None and kernels.uses("mamba-ssm", self.settings.kernels, device)

    def _build(self, config: TransformerConfig, projected: int, cores: Sequence[Core]) -> None:
        self.inputs = nn.Linear(config.width, projected, bias=config.bias)
        self.cores = nn.ModuleList(cores)
        self.out = nn.Linear(self.width, config.width, bias=config.bias)

    def _cores(self) -> list[Core]:
        return cast(list[Core], list(self.cores))

    def _count(self) -> int:
        return 1 if self.causal or not self.settings.separate else 2


class Core(nn.Module):
    """The convolution and the decays of one direction.

    Args:
        channels: C, convolved channels.
        kernel: length of the convolution.
        decays: shape of A.
        steps: number of step sizes.
        skips: number of values of D.
    """

    def __init__(self, channels: int, kernel: int, decays: tuple[int, ...], steps: int, skips: int):
        super().__init__()
        self.conv = nn.Parameter(torch.zeros(channels, kernel))
        self.conv_bias = nn.Parameter(torch.zeros(channels))
        self.dt_bias = nn.Parameter(torch.zeros(steps))
        self.log_a = nn.Parameter(torch.zeros(decays))
        self.skip = nn.Parameter(torch.ones(skips))

    def kernel(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution."""
        return self.conv.to(dtype), self.conv_bias.to(dtype)

    def undecayed(self) -> Iterable[Tensor]:
        """Parameters without weight decay."""
        return self.conv, self.log_a

    def initialise(self) -> None:
        """Set initial values."""
        bound = 1 / math.sqrt(self.conv.shape[1])
        nn.init.uniform_(self.conv, -bound, bound)
        nn.init.zeros_(self.conv_bias)
        nn.init.ones_(self.skip)
        low, high = (math.log(step) for step in FIRST_STEPS)
        step = torch.empty_like(self.dt_bias).uniform_(low, high).exp()
        self.dt_bias.copy_(step + (-(-step).expm1()).log())  # the inverse of softplus
        if self.log_a.ndim == 1:
            self.log_a.uniform_(*FIRST_DECAYS).log_()
        else:
            self.log_a.copy_(torch.arange(1, self.log_a.shape[1] + 1).log().expand_as(self.log_a))

    def decay(self, like: Tensor) -> Tensor:
        """A, negative, in float32 or higher."""
        return -at_least_float(self.log_a, like).exp()

    def steps(self, dt: Tensor, valid: Tensor | None) -> Tensor:
        """Step sizes (N, T, steps) in float32 or higher; 0 at padding."""
        dt = F.softplus(at_least_float(dt, dt) + self.dt_bias)
        return dt if valid is None else dt * valid[..., None]


def scan_key(positions: Tensor, scan: Scan) -> Tensor:
    """What tokens at `positions`, (T,), (T, 2) or (N, T, 1 or 2), are sorted by: (T,) or (N, T)."""
    if positions.ndim == 1:
        return positions.float()
    if positions.shape[-1] == 1:
        return positions[..., 0].float()
    row, column = (_in_steps(axis) for axis in positions.float().unbind(-1))
    if scan == "column":
        row, column = column, row
    span = column.max() - column.min() + 1
    if scan == "zigzag":
        column = torch.where(row % 2 == 0, column, column.max() + column.min() - column)
    return row * span + column


def _in_steps(axis: Tensor) -> Tensor:
    """Rows (or columns) of a grid as whole numbers. Those of a resized model are 0, 0.5, 1, ...: they
    are divided by the smallest distance between two of them."""
    distances = F.pad(axis.flatten().sort().values.diff(), (1, 0))
    step = distances.where(distances > 0, torch.inf).min()
    return (axis / step.where(step.isfinite(), 1.0)).round()


def reordered(x: Tensor, order: Tensor | None) -> Tensor:
    """Reorder the tokens of x (N, T, ...) by `order`, (T,) or (N, T)."""
    if order is None:
        return x
    if order.ndim == 1:
        return x.index_select(1, order)
    return x.gather(1, order.reshape(*order.shape, *(1,) * (x.ndim - 2)).expand_as(x))


def at_least_float(x: Tensor, like: Tensor) -> Tensor:
    """x in float32, or in the dtype of `like` if it is wider."""
    return x.to(torch.promote_types(like.dtype, torch.float32))
