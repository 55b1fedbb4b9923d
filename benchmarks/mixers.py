"""Time and memory of mixers against T: ours, those of transformers, a loop, and attention.

    pip install 'genmodels[evaluation]'
    python benchmarks/mixers.py [--lengths 64 256 1024 4096] [--json mixers.json]

All have width 256 and see earlier tokens only. In each of `--repeats` rounds, every mixer runs
forward and backward once for each length (up to `LONGEST`), so that all are measured under the same
conditions. Tokens of all rows are `--tokens` in total: at T = 64, 64 rows of 4,096 tokens. Memory is
the peak of the process beyond what it had before the call. "loop: mamba" computes Mamba's recurrence
step by step.

For decoding, T tokens are read first. Then the time of one further token, and the bytes of the state
of a block, are measured: those of attention grow with T.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genmodels.evaluation.cost import peak_memory
from genmodels.nn.block import MIXERS
from genmodels.nn.mixer import Mixer
from genmodels.nn.places import Places
from genmodels.nn.rope import rope
from genmodels.nn.transformer import Transformer, TransformerConfig

WIDTH = 256
STEPS = 16
"""Decoding steps of a round."""
LONGEST = {"transformers: mamba": 64}
"""Largest T of a mixer. Without its kernels, the backward pass of MambaMixer takes T squared: 8 s at
T = 64 and 28 s at T = 256 for equally many tokens in all."""
RATIOS = (
    ("mamba2", "transformers: mamba2"),
    ("mamba2", "attention"),
    ("mamba", "loop: mamba"),
    ("mamba", "transformers: mamba"),
)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    lengths: tuple[int, ...] = (64, 256, 1024, 4096)
    """Numbers of tokens T of a row."""
    tokens: int = 4096
    """Tokens of all rows together."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of autocast. float32: without it."""
    repeats: int = 5
    """Rounds."""
    threads: int = 1
    """Threads of torch."""
    json: Path | None = None
    """File to write all measurements to."""


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    calls = {name: ours(name) for name in MIXERS}
    calls |= {"loop: mamba": looped(ours("mamba"))}
    calls |= {f"transformers: {name}": theirs(name) for name in ("mamba", "mamba2")}
    seconds: dict[str, dict[int, list[float]]] = {name: {} for name in calls}
    memory: dict[str, dict[int, float]] = {name: {} for name in calls}
    for round_number in range(settings.repeats + 2):
        for length in settings.lengths:
            x = torch.randn(settings.tokens // length, length, WIDTH, requires_grad=True)
            for name, call in calls.items():
                if length > LONGEST.get(name, length):
                    continue
                if round_number <= settings.repeats:
                    seconds[name].setdefault(length, []).append(timed(call, x, settings.dtype))
                else:  # apart from the others, since watching the memory takes time
                    peak, _ = peak_memory(partial(timed, call, x, settings.dtype), x.device)
                    memory[name][length] = peak / 2**20
        print(f"round {round_number} of {settings.repeats + 1}", flush=True)
    # The first round is left out.
    milliseconds = {name: {t: 1000 * statistics.median(row[t][1:]) for t in row} for name, row in seconds.items()}
    show("ms, forward and backward", milliseconds, settings)
    ratios = {f"{a} / {b}": {t: milliseconds[a][t] / ms for t, ms in milliseconds[b].items()} for a, b in RATIOS}
    show("times as long", ratios, settings)
    show("MiB, forward and backward", memory, settings)
    steps, states = {}, {}
    for name in MIXERS:
        measured = {length: decoding(name, length, settings) for length in settings.lengths}
        steps[name] = {length: 1000 * step for length, (step, _) in measured.items()}
        states[name] = {length: float(size) for length, (_, size) in measured.items()}
    show("ms, one token after T others, one block and one row", steps, settings)
    show("bytes of the state after T tokens, one block and one row", states, settings)
    if settings.json is not None:
        results = {"ms": milliseconds, "MiB": memory, "ms per decoded token": steps, "bytes of the state": states}
        settings.json.write_text(json.dumps({"settings": repr(settings), **results}, indent=2) + "\n")


def show(title: str, rows: dict[str, dict[int, float]], settings: Settings) -> None:
    """Print a table with a column for each length."""
    table = Table("", *(f"T = {t:,}" for t in settings.lengths), title=title)
    for name, row in rows.items():
        values = [row.get(length) for length in settings.lengths]
        table.add_row(name, *("" if v is None else f"{v:,.0f}" if v >= 100 else f"{v:.2g}" for v in values))
    Console().print(table)


def timed(call: Callable[[Tensor], Tensor], x: Tensor, dtype: str) -> float:
    """Return the seconds of a forward and backward pass."""
    began = time.perf_counter()
    with precision(dtype):
        y = call(x)
    y.float().sum().backward()
    return time.perf_counter() - began


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Compute in `dtype` by autocast."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        yield


def ours(name: str) -> Callable[[Tensor], Tensor]:
    """Return one of our mixers as a function of tokens (N, T, D)."""
    config = TransformerConfig(width=WIDTH, depth=1, heads=4, mixers=(name,))  # type: ignore[arg-type]
    mixer: Mixer = MIXERS[name](config, True)

    def call(x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])
        return mixer(x, Places(positions, rope(positions, config.head_dim)))

    return call


def looped(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `call` with Mamba's recurrence computed step by step, and its gradient by autograd."""

    def run(x: Tensor) -> Tensor:
        with patch("genmodels.nn.mamba.selective_scan", loop):
            return call(x)

    return run


def loop(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`selective_scan` for one sequence a row, as it is written."""
    assert starts is None
    outputs = []
    # unbind and not x[:, t], whose gradient fills a tensor of the size of x at each step.
    for x_t, dt_t, b_t, c_t in zip(x.unbind(1), dt.unbind(1), b.unbind(1), c.unbind(1), strict=True):
        h = (dt_t[..., None] * a).exp() * h + (dt_t * x_t)[..., None] * b_t[:, None]
        outputs.append((h * c_t[:, None]).sum(-1))
    return torch.stack(outputs, dim=1), h


@torch.inference_mode()
def decoding(name: str, length: int, settings: Settings) -> tuple[float, int]:
    """Return the median seconds of a token after `length` others, and the bytes of the state."""
    config = TransformerConfig(width=WIDTH, depth=1, heads=4, mixers=(name,), mlp="none")  # type: ignore[arg-type]
    model = Transformer(config, causal=True).eval()
    with precision(settings.dtype):
        cache = model.make_cache(1, length + STEPS)
        model(torch.randn(1, length, WIDTH), cache=cache)
        times = []
        for _ in range(STEPS):
            x = torch.randn(1, 1, WIDTH)
            began = time.perf_counter()
            model(x, cache=cache)
            times.append(time.perf_counter() - began)
        state = model.make_cache(1, length).states[0]
    return statistics.median(times), sum(tensor.numel() * tensor.element_size() for tensor in state)


def theirs(name: str) -> Callable[[Tensor], Tensor]:
    """Return a mixer of transformers with the same sizes."""
    from transformers import Mamba2Config, MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    common: dict[str, Any] = dict(hidden_size=WIDTH, expand=2, use_bias=False, num_hidden_layers=1)
    if name == "mamba":
        return MambaMixer(MambaConfig(state_size=16, **common), 0)
    return Mamba2Mixer(Mamba2Config(state_size=64, head_dim=64, num_heads=8, n_groups=1, chunk_size=64, **common), 0)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
