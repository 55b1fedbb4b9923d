"""How fast diffusion transformers train on a GPU: ours, compiled and not, beside diffusers' DiTTransformer2DModel.

    python benchmarks/dit_throughput.py --sizes S B L XL --batch-size 256

One training step (forward, backward, AdamW) in bf16 autocast on random 32 x 32 x 4 latents with patch 2: 256 tokens an
image, as in arXiv 2212.09748, whose structure diffusers' model has. Model FLOPs are those of the matrix products and of
attention in a forward pass, as torch counts them without fused attention, times three for the backward; utilisation
is model FLOPs per second over --peak (989e12: an H100 in bf16, dense). --cpu-check runs two tiny steps on a processor.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genmodels.dit import SIZES, DiT, DiTConfig, vanilla
from genmodels.training.optim import OptimConfig, build_optimizer
from genmodels.training.setup import compile_blocks
from genmodels.types import Batch, Condition, ConditionConfig, Noise

LATENTS = (4, 32, 32)
CLASSES = 1000
Build = Callable[[], tuple[nn.Module, Callable[[int], Tensor]]]


def ours(config: DiTConfig, device: torch.device) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A model of ours and its loss on a batch of n."""
    model = DiT(config).to(device)

    def loss(n: int) -> Tensor:
        images = torch.randn(n, *LATENTS, device=device)
        labels = torch.zeros(n, dtype=torch.long, device=device)
        return model(Batch(images, FastNoise(n, device), Condition(labels=labels)))[0]

    return model, loss


class FastNoise(Noise):
    """Noise drawn on the device: the loop's is drawn on the CPU, image by image, so that runs are reproducible."""

    def __init__(self, n: int, device: torch.device):
        super().__init__(range(n), device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(len(self), *shape, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(len(self), *shape, device=self.device)


def theirs(size: str, device: torch.device) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """diffusers' network of the same size, trained on the noise as the paper does (without its variance term)."""
    from diffusers import DiTTransformer2DModel

    c = SIZES[size]
    model: Any = DiTTransformer2DModel(
        num_attention_heads=c.heads,
        attention_head_dim=c.head_dim,
        in_channels=LATENTS[0],
        out_channels=2 * LATENTS[0],
        num_layers=c.depth,
        sample_size=LATENTS[1],
        patch_size=2,
    )
    model.to(device)

    def loss(n: int) -> Tensor:
        noise = torch.randn(n, *LATENTS, device=device)
        t = torch.randint(1000, (n,), device=device)
        found = model(noise, t, class_labels=torch.zeros_like(t)).sample.float()
        return F.mse_loss(found[:, : LATENTS[0]], noise)

    return model, loss


def forward_flops(loss: Callable[[int], Tensor], device: torch.device) -> float:
    """Of one image."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(2)
    return counter.get_total_flops() / 2


def measure(model: nn.Module, loss: Callable[[int], Tensor], n: int, steps: int, device: torch.device) -> float:
    """Images per second, the median of `steps` steps after three."""
    optimizer = build_optimizer(model.parameters(), OptimConfig())
    times = []
    for _ in range(steps + 3):
        began = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(n)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    return n / statistics.median(times[3:])


def contestants(size: str, device: torch.device) -> Iterator[tuple[str, Build]]:
    """Names, and what builds each."""
    settings: dict[str, Any] = dict(latents=LATENTS, patch=2, condition=ConditionConfig(classes=CLASSES))
    yield "modern", lambda: ours(DiTConfig(transformer=SIZES[size], **settings), device)
    yield "diffusers", lambda: theirs(size, device)
    yield "vanilla", lambda: ours(vanilla(transformer=SIZES[size], **settings), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak", type=float, default=989e12)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further row after this long")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cpu-check", action="store_true")
    args = parser.parse_args()
    device = torch.device("cpu" if args.cpu_check else "cuda")
    if args.cpu_check:
        SIZES["S"] = replace(SIZES["S"], width=32, depth=2, heads=2)
        args.sizes, args.batch_size, args.steps = ["S"], 4, 2
    torch.set_float32_matmul_precision("high")
    began, rows = time.monotonic(), []
    print(f"{'size':4} {'model':10} {'compiled':8} {'M params':>9} {'GFLOPs/image':>13} {'images/s':>9} {'MFU':>6}")
    for compiled, size in itertools.product((True, False), args.sizes):
        for name, build in contestants(size, device):
            if time.monotonic() - began > args.seconds:
                continue
            model, loss = build()
            flops = 3 * forward_flops(loss, device)
            if compiled:
                torch.compiler.reset()
                compile_blocks(model)
            try:
                speed = measure(model, loss, args.batch_size, args.steps, device)
            except torch.OutOfMemoryError:
                print(f"{size:4} {name:10} out of memory at batch size {args.batch_size}")
                continue
            count = sum(p.numel() for p in model.parameters()) / 1e6
            row = dict(size=size, model=name, compiled=compiled, parameters=count, flops=flops, images_per_second=speed)
            rows.append(row | {"mfu": flops * speed / args.peak})
            yes = "yes" if compiled else "no"
            print(f"{size:4} {name:10} {yes:8} {count:9.1f} {flops / 1e9:13.1f} {speed:9.1f} {rows[-1]['mfu']:6.1%}")
            del model, loss
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
