"""Training speed of diffusion transformers on a GPU: ours and diffusers' DiTTransformer2DModel.

    python benchmarks/dit_throughput.py --sizes S B L XL --batch-size 256

Each is measured compiled and not compiled. A training step (forward, backward, AdamW) runs in bf16
autocast on random 32 x 32 x 4 latents with patch 2, which gives 256 tokens per image, as in arXiv
2212.09748. diffusers' model has the structure of that paper. Model FLOPs are the matrix products
and attention of a forward pass, as counted by torch without fused attention, times three to include
the backward pass. Utilisation (MFU) is model FLOPs per second divided by --peak (989e12: an H100 in
dense bf16). --cpu-check only verifies that the script runs, with two tiny steps on the CPU.
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

from genmodels.conditions import Condition, ConditionConfig
from genmodels.dit import SIZES, DiT, DiTConfig, vanilla
from genmodels.training.optim import OptimConfig, build_optimizer
from genmodels.training.setup import compile_blocks
from genmodels.types import Batch, Noise

LATENTS = (4, 32, 32)
CLASSES = 1000
Build = Callable[[], tuple[nn.Module, Callable[[int], Tensor]]]


def ours(config: DiTConfig, device: torch.device) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """Build our DiT, and a function that computes its loss on a random batch of n images."""
    model = DiT(config).to(device)

    def loss(n: int) -> Tensor:
        images = torch.randn(n, *LATENTS, device=device)
        labels = torch.zeros(n, dtype=torch.long, device=device)
        return model(Batch(images, FastNoise(n, device), Condition(labels=labels)))[0]

    return model, loss


class FastNoise(Noise):
    """Noise that is drawn on the device.

    The training loop draws it on the CPU, image by image, to be reproducible.
    """

    def __init__(self, n: int, device: torch.device):
        super().__init__(range(n), device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(len(self), *shape, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(len(self), *shape, device=self.device)


def theirs(size: str, device: torch.device) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """Build diffusers' network of the same size, and a function that computes its loss.

    The loss is that of the paper, the error of the predicted noise, without the variance term.
    """
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
        prediction = model(noise, t, class_labels=torch.zeros_like(t)).sample.float()
        return F.mse_loss(prediction[:, : LATENTS[0]], noise)

    return model, loss


def forward_flops(loss: Callable[[int], Tensor], device: torch.device) -> float:
    """Count the FLOPs of a forward pass per image."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(2)
    return counter.get_total_flops() / 2


def measure(model: nn.Module, loss: Callable[[int], Tensor], n: int, steps: int, device: torch.device) -> float:
    """Measure images per second: the median of `steps` steps after three warm-up steps."""
    optimizer = build_optimizer(model.parameters(), OptimConfig(), model)
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


def candidates(size: str, device: torch.device) -> Iterator[tuple[str, Build]]:
    """Yield the name of each model to measure and a function that builds it."""
    settings: dict[str, Any] = dict(latents=LATENTS, patch=2, condition=ConditionConfig(classes=CLASSES))
    yield "modern", lambda: ours(DiTConfig(transformer=SIZES[size], **settings), device)
    yield "diffusers", lambda: theirs(size, device)
    yield "vanilla", lambda: ours(vanilla(transformer=SIZES[size], **settings), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak", type=float, default=989e12, help="peak FLOP/s of the GPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further row after this time")
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
        for name, build in candidates(size, device):
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
