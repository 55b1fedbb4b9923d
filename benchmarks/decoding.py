"""Measure the time to generate a sequence: with our cache, without it, and with transformers.

    pip install 'genmodels[evaluation]'
    python benchmarks/decoding.py [--length 1024] [--width 256] [--depth 6] [--json decoding.json]

All three use the same random weights of a Llama, start from one token and choose the most likely
next token until the sequence is full. The share of equal tokens is printed. They alternate in one
process; medians are reported. transformers uses its defaults, SDPA and a dynamic cache.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from genmodels.exchange.llama import from_llama
from genmodels.nn.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class Settings:
    length: int = 1024
    """Tokens of a finished sequence."""
    batch_size: int = 1
    """Sequences at a time."""
    width: int = 256
    depth: int = 6
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 1024
    """Tokens there are."""
    repeats: int = 3
    """Rounds of the two sides with a cache. The one without is timed once: it takes minutes."""
    threads: int = 1
    """Threads of torch."""
    device: str = "cpu"
    json: Path | None = None
    """Where to write every number."""


def build(settings: Settings) -> tuple[Any, Transformer]:
    """transformers' model with random weights, and ours with the same."""
    config = TransformerConfig(
        width=settings.width, depth=settings.depth, heads=settings.heads, kv_heads=settings.kv_heads
    )
    torch.manual_seed(0)
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.inner,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_heads,
            max_position_embeddings=settings.length,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            initializer_range=0.1,  # wide enough for the likeliest token to stand out
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    ours = Transformer(config, causal=True)
    ours.load_state_dict(from_llama(peer.state_dict()))
    peer.to(device=settings.device)  # type: ignore[call-arg]  # its annotation hides torch's
    return peer.eval(), ours.to(settings.device).eval()


def sides(settings: Settings) -> dict[str, Callable[[], Tensor]]:
    """What is timed: each returns the tokens (N, length)."""
    peer, ours = build(settings)
    embed, head = peer.model.embed_tokens, peer.lm_head  # the same for all
    first = torch.zeros(settings.batch_size, 1, dtype=torch.int64, device=settings.device)

    def with_cache() -> Tensor:
        cache = ours.make_cache(settings.batch_size, settings.length)
        tokens = [first]
        while len(tokens) < settings.length:
            tokens.append(head(ours(embed(tokens[-1]), cache=cache)).argmax(-1))  # (N, 1)
        return torch.cat(tokens, dim=1)

    def without() -> Tensor:
        tokens = first
        while tokens.shape[1] < settings.length:
            last = ours(embed(tokens))[:, -1:]  # (N, 1, D)
            tokens = torch.cat([tokens, head(last).argmax(-1)], dim=1)
        return tokens

    def generate() -> Tensor:
        mask = torch.ones_like(first)
        return peer.generate(first, attention_mask=mask, max_new_tokens=settings.length - 1, do_sample=False)

    return {"ours, cache": with_cache, "transformers, generate": generate, "ours, no cache": without}


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, list[float]]:
    """Seconds of each side's rounds."""
    times: dict[str, list[float]] = {}
    tokens: dict[str, Tensor] = {}
    ways = sides(settings)
    for way in list(ways)[:2]:
        ways[way]()  # warm up
    for turn in range(settings.repeats):
        for name, run in ways.items():
            if turn and name == "ours, no cache":
                continue
            start = time.perf_counter()
            tokens[name] = run().cpu()  # copying waits for the device
            times.setdefault(name, []).append(time.perf_counter() - start)
    for name, own in tokens.items():
        same = (own == tokens["ours, cache"]).float().mean().item()
        # Rounding may turn a near tie, and with it all that follows.
        print(f"{name}: {100 * same:.1f}% of the tokens are those of 'ours, cache'")
    return times


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    times = measure(settings)
    ours = statistics.median(times["ours, cache"])
    table = Table(
        "",
        "seconds",
        "tokens/s",
        "times 'ours, cache'",
        title=f"{settings.length} tokens, batch {settings.batch_size}, width {settings.width}, depth {settings.depth}",
    )
    for name, rounds in times.items():
        seconds = statistics.median(rounds)
        rate = settings.batch_size * settings.length / seconds
        table.add_row(name, f"{seconds:.2f}", f"{rate:,.0f}", f"{seconds / ours:.2f}")
    Console().print(table)
    if settings.json is not None:
        versions = {name: version(name) for name in ("torch", "transformers")}
        shown = asdict(settings) | {"json": str(settings.json)}
        settings.json.write_text(json.dumps({"settings": shown, "versions": versions, "seconds": times}, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
