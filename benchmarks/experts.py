"""Time of experts against a dense MLP that costs a token as much, forward and backward.

    python benchmarks/experts.py [--count 8] [--top-k 2] [--json experts.json]

In each of `--repeats` rounds, the dense MLP and the experts run once each, so that both are measured
under the same conditions; which of them is first alternates. The ratio is the median over rounds.
The block of Mixtral in transformers is measured too. The router is new, so the tokens are spread
about evenly, as in a balanced model.
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

from genmodels.nn.experts import ExpertsConfig
from genmodels.nn.layers import make_mlp
from genmodels.nn.mixer import init_weights
from genmodels.nn.operations import counting
from genmodels.nn.transformer import TransformerConfig


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    width: int = 256
    """D."""
    count: int = 8
    """Experts."""
    top_k: int = 2
    """Experts of a token."""
    rows: int = 64
    """Images."""
    tokens: int = 64
    """Tokens of an image."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of autocast. float32: without it."""
    repeats: int = 20
    """Rounds."""
    threads: int = 2
    """Threads of torch."""
    json: Path | None = None
    """File to write all measurements to."""


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    calls = mlps(settings)
    x = torch.randn(settings.rows, settings.tokens, settings.width, requires_grad=True)
    operations = {name: counted(call, x) for name, call in calls.items()}
    rounds = []
    for i in range(settings.repeats + 1):
        names = list(calls) if i % 2 else list(calls)[::-1]
        rounds.append({name: timed(calls[name], x, settings.dtype) for name in names})
    del rounds[0]  # the warm-up
    table = Table("MLP", "GFLOPs", "ms", "ratio to dense", title="forward and backward, median")
    medians = {}
    for name in calls:
        seconds = statistics.median(row[name] for row in rounds)
        ratio = statistics.median(row[name] / row["dense"] for row in rounds)
        medians[name] = {"operations": operations[name], "seconds": seconds, "ratio": ratio}
        table.add_row(name, f"{operations[name] / 1e9:.2f}", f"{1000 * seconds:.1f}", f"{ratio:.2f}")
    Console().print(table)
    if settings.json is not None:
        record = {"settings": repr(settings), "medians": medians, "rounds": rounds}
        settings.json.write_text(json.dumps(record, indent=2) + "\n")


def mlps(settings: Settings) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the MLPs: dense, experts that choose or are chosen, and the experts of transformers."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    hidden = ExpertsConfig(settings.count, settings.top_k).inner(TransformerConfig(width=settings.width).inner)
    dense = TransformerConfig(width=settings.width, hidden=hidden * settings.top_k)
    made: dict[str, torch.nn.Module] = {"dense": make_mlp(dense, causal=False)}
    for choice in ("tokens", "experts"):
        experts = ExpertsConfig(settings.count, settings.top_k, hidden, choice=choice)  # type: ignore[arg-type]
        config = TransformerConfig(width=settings.width, experts=experts)
        made[f"{choice} choose"] = make_mlp(config, causal=False)
    shapes: dict[str, Any] = {"hidden_size": settings.width, "intermediate_size": hidden}
    theirs = MixtralConfig(num_local_experts=settings.count, num_experts_per_tok=settings.top_k, **shapes)
    made["transformers: mixtral"] = MixtralSparseMoeBlock(theirs)
    for module in made.values():
        init_weights(module, depth=1)
    with torch.no_grad():
        for parameter in made["transformers: mixtral"].parameters():
            parameter.normal_(std=0.02)
    return {name: module.train() for name, module in made.items()}


def counted(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return the operations of a forward and backward pass."""
    with counting() as counter:
        call(x).sum().backward()
    total: int = counter.get_total_flops()
    return total


def timed(call: Callable[[Tensor], Tensor], x: Tensor, dtype: str) -> float:
    """Return the seconds of a forward and backward pass."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        y = call(x)
    y.float().sum().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
