"""Time of a mixer's forward and backward pass against T: ours, those of transformers, attention.

    python benchmarks/mixers.py [--lengths 64 256 1024 4096] [--json mixers.json]

All have width 256 and see earlier tokens only. In each of `--repeats` rounds, every mixer runs once
for each length, so that all are measured under the same conditions. The table shows medians. Tokens
of all rows are `--tokens` in total: at T = 64, 64 rows of 4,096 tokens.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genmodels.nn.mixer import Mixer
from genmodels.nn.places import Places
from genmodels.nn.rope import rope
from genmodels.nn.transformer import MIXERS, TransformerConfig

WIDTH = 256


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
    calls = {"transformers: mamba": theirs("mamba"), "transformers: mamba2": theirs("mamba2")}
    calls = {name: ours(name) for name in MIXERS} | calls
    seconds: dict[str, dict[int, list[float]]] = {name: {t: [] for t in settings.lengths} for name in calls}
    for _ in range(settings.repeats + 1):  # the first round is left out
        for length in settings.lengths:
            x = torch.randn(settings.tokens // length, length, WIDTH, requires_grad=True)
            for name, call in calls.items():
                seconds[name][length].append(timed(call, x, settings.dtype))
    medians = {name: {t: statistics.median(rows[t][1:]) for t in rows} for name, rows in seconds.items()}
    table = Table("mixer", *(f"T = {t:,}" for t in settings.lengths), title="ms, forward and backward")
    for name, row in medians.items():
        table.add_row(name, *(f"{1000 * value:.0f}" for value in row.values()))
    Console().print(table)
    if settings.json is not None:
        settings.json.write_text(json.dumps({"settings": repr(settings), "seconds": medians}, indent=2) + "\n")


def timed(call: Callable[[Tensor], Tensor], x: Tensor, dtype: str) -> float:
    """Return the seconds of a forward and backward pass."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        y = call(x)
    y.float().sum().backward()
    return time.perf_counter() - began


def ours(name: str) -> Callable[[Tensor], Tensor]:
    """Return one of our mixers as a function of tokens (N, T, D)."""
    config = TransformerConfig(width=WIDTH, depth=1, heads=4, mixers=(name,))  # type: ignore[arg-type]
    mixer: Mixer = MIXERS[name](config, True)

    def call(x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])
        return mixer(x, Places(positions, rope(positions, config.head_dim)))

    return call


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
