"""Train the same two encoders with `genmodels train clip` and with a plain loop on open_clip's loss.

    pip install open_clip_torch
    python benchmarks/vs_open_clip.py --data packed/celeba64 --minutes 5 --out runs/vs-open-clip

Both run at the same time, on one core each, for the same minutes, and are evaluated in the same way.
The plain loop is what the example of open_clip does: ClipLoss, AdamW with betas 0.9 and 0.98 and
weight decay 0.2 on matrices, warm-up and a cosine schedule. It reads the same images, mirrored at
random, with the same captions, and has no average of the weights. The number of its steps is set from
the time that the first ones take.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import genmodels
from genmodels.clip import CLIP, CLIPConfig
from genmodels.data.captions import captions
from genmodels.evaluation.evaluate import evaluate
from genmodels.evaluation.results import Evaluation
from genmodels.pictures import to_float
from genmodels.saving import read_last_line

ATTRIBUTES = (
    *("Male", "Young", "Smiling", "Blond_Hair", "Black_Hair"),
    *("Eyeglasses", "Wearing_Hat", "Heavy_Makeup", "Bangs", "Wearing_Lipstick"),
)
"""Attributes of which the table has the mean."""
SHOWN = ("Male", "Smiling", "Blond_Hair", "Eyeglasses")
"""Attributes that have columns of their own."""
WARMUP, TIMED = 100, 20
"""Steps of warm-up, and steps that are timed first."""


def plain_loop(arguments: argparse.Namespace) -> None:
    """Train with open_clip's loss and a plain loop, and save the model."""
    from open_clip.loss import ClipLoss

    start = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    train = genmodels.open_data(arguments.data).split("train")
    images, attributes = torch.from_numpy(np.array(train.images)), np.array(train.attributes)
    model = CLIP(CLIPConfig(size=train.size)).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.lr, betas=(0.9, 0.98), eps=1e-6)
    loss_of = ClipLoss()

    def batches() -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(len(images)).split(arguments.batch_size)[:-1]

    total = 10**9
    begun = time.monotonic()
    for step, rows in enumerate(batches()):
        if step == TIMED:  # what fits into the time, with five seconds to save
            per_step = (time.monotonic() - begun) / TIMED
            total = step + int((60 * arguments.minutes - 5 - (time.monotonic() - start)) / per_step)
        if step >= total or time.monotonic() - start > 60 * arguments.minutes - 5:
            break
        progress = step / total
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * progress)) / 2
        mirrored = torch.rand(len(rows)) < 0.5
        pixels = to_float(images[rows])
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
        texts = captions(attributes[rows], train.attribute_names, rows.tolist(), [step] * len(rows), arguments.seed)
        image, text = model.embed_images(pixels), model.embed_texts(model.tokenize(texts))
        loss = loss_of(image, text, model.scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.after_step()
    seconds = time.monotonic() - begun
    model.eval().save_pretrained(arguments.out / "plain")
    speed = {"images_per_second": step * arguments.batch_size / seconds, "images": step * arguments.batch_size}
    (arguments.out / "plain" / "speed.json").write_text(json.dumps(speed))


def row(name: str, result: Evaluation, speed: dict[str, float]) -> str:
    """Return a row of the table."""
    scores = result.scores
    zero_shot, probe = scores["zero-shot"].each, scores["zero-shot-probe"].each
    gap = np.mean([probe[name] - zero_shot[name] for name in ATTRIBUTES])
    values = [
        *(zero_shot[name] for name in SHOWN),
        np.mean([zero_shot[name] for name in ATTRIBUTES]),
        gap,
        scores["recall@10-text-to-image"].value,
    ]
    numbers = " | ".join(f"{value:.3f}" for value in values)
    return f"| {name} | {speed['images']:,.0f} | {speed['images_per_second']:.0f} | {numbers} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="packed/celeba64", help="packed images with attributes")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of the plain loop")
    parser.add_argument("--out", type=Path, default=Path("runs/vs-open-clip"))
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain_loop(arguments)
        return
    arguments.out.mkdir(parents=True)
    ours = [sys.executable, "-m", "genmodels", "train", "clip", "--output", str(arguments.out / "ours")]
    ours += [f"--{name}={getattr(arguments, name)}" for name in ("data", "minutes", "seed")]
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(call, env=one_core) for call in (ours, [sys.executable, *sys.argv, "--plain"])]
    statuses = [process.wait() for process in started]
    if any(statuses):
        raise SystemExit("one of the two failed")
    data = genmodels.open_data(arguments.data)
    last = read_last_line(arguments.out / "ours" / "metrics.jsonl")
    speeds = {
        "ours": {"images": last["images"], "images_per_second": last["images_per_second"]},
        "plain": json.loads((arguments.out / "plain" / "speed.json").read_text()),
    }
    names = {"ours": "genmodels train clip", "plain": "open_clip's loss, plain loop"}
    columns = ["images", "images/s", *SHOWN, "mean of ten", "gap to the probe", "recall@10"]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, speed in speeds.items():
        print(row(names[name], evaluate(genmodels.load(str(arguments.out / name)), data), speed), flush=True)


if __name__ == "__main__":
    main()
