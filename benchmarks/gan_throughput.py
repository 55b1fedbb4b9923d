"""Training speed of the GAN by precision, memory layout, compilation and interval of the penalties.

    python benchmarks/gan_throughput.py                 on a GPU
    python benchmarks/gan_throughput.py --cpu-check     only verify that the script runs

A step trains critic and generator with AdamW on random images. A row is the median of `--blocks`
blocks of eight steps, so that a penalty in every fourth step is counted in proportion.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from genmodels.gan import GAN, GANConfig
from genmodels.training.optim import OptimConfig, build_optimizer
from genmodels.training.setup import compile_blocks
from genmodels.types import Batch, Noise

STEPS = 8
# Interval of the gradient penalties in steps, channels_last, precision, compiled.
ROWS = (
    (4, True, "bf16", False),
    (1, True, "bf16", False),
    (4, False, "bf16", False),
    (4, True, "fp32", False),
    (4, True, "bf16", True),
    (1, True, "bf16", True),
    (4, True, "fp32", True),
)


def measure(
    config: GANConfig, n: int, precision: str, channels_last: bool, compiled: bool, blocks: int, device: str
) -> float:
    """Measure images per second.

    Args:
        config: the GAN.
        n: batch size.
        precision: "bf16" for autocast, or "fp32".
        channels_last: whether weights and images are in channels_last memory format.
        compiled: whether to compile the blocks.
        blocks: number of timed blocks of eight steps.
        device: "cuda" or "cpu".
    """
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = GAN(config).to(device).to(memory_format=layout)
    if compiled:
        torch.compiler.reset()
        compile_blocks(model)
    parts = {turn: list(model.parameters_for(turn)) for turn in model.turns}
    optimizers = {turn: build_optimizer(part, OptimConfig(betas=(0.0, 0.99)), model) for turn, part in parts.items()}
    images = torch.rand(n, 3, config.size, config.size, device=device).mul(2).sub(1).contiguous(memory_format=layout)

    def eight() -> float:
        began = time.monotonic()
        for step in range(STEPS):
            for turn in model.turns:
                model.requires_grad_(False)
                for parameter in parts[turn]:
                    parameter.requires_grad_(True)
                with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                    loss, _ = model(Batch(images, Noise(range(n), device), step=step), turn)
                loss.backward()
                optimizers[turn].step()
                optimizers[turn].zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - began

    eight()
    return STEPS * n / statistics.median(eight() for _ in range(blocks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further row after this time")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cpu-check", action="store_true")
    args = parser.parse_args()
    device, config = "cuda", GANConfig()
    if args.cpu_check:
        device, args.batch_size, args.blocks = "cpu", 4, 1
        config = GANConfig(size=16, channels=(16, 16, 16), blocks=1)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    rows, began = [], time.monotonic()
    print(f"{'precision':9} {'layout':13} {'compiled':8} {'penalties':9} {'images/s':>9}")
    for every, channels_last, precision, compiled in ROWS:
        if time.monotonic() - began > args.seconds:
            break
        chosen = GANConfig(**{**vars(config), "penalty_every": every})
        speed = measure(chosen, args.batch_size, precision, channels_last, compiled, args.blocks, device)
        layout = "channels_last" if channels_last else "contiguous"
        rows.append(dict(precision=precision, layout=layout, compiled=compiled, every=every, images_per_second=speed))
        yes = "yes" if compiled else "no"
        print(f"{precision:9} {layout:13} {yes:8} {f'1 in {every}':9} {speed:9.0f}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
