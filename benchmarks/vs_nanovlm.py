"""Train a LLaVA in two stages, and the same towers as nanoVLM does, for the same minutes.

    genmodels train clip --data packed/celeba64 --output runs/clip --minutes 10
    genmodels train lm --data packed/celeba64 --output runs/lm --minutes 5
    python benchmarks/vs_nanovlm.py --data packed/celeba64 --clip runs/clip --lm runs/lm --minutes 10

nanoVLM's recipe, as its code has it: one stage, which trains both towers (learning rate 5e-5) and a
projector (0.00512), a single matrix after a pixel shuffle of 2 x 2 features; AdamW with its
defaults, clipping at 1, 3 % warm-up and a cosine down to a tenth; the mean loss of all answer tokens
of a batch; no averaged weights. The plain loop here does the same on the same conversations. With
--towers-lr, both towers have another learning rate: 5e-5 is for towers trained on billions of tokens.

Ours spends a quarter of the minutes on stage 1. Both run on one core, one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genmodels
import genmodels.saving
from genmodels.conditions import Text
from genmodels.data.batches import BatchReader
from genmodels.evaluation import answers
from genmodels.evaluation.context import Context
from genmodels.evaluation.reference import reference_from
from genmodels.llava import LLaVA, LLaVAConfig

SHOWN = ("Male", "Smiling", "Eyeglasses", "Blond_Hair")
FACTOR, LR, TOWERS, WARMUP, LEAST, SEQUENCE = 2, 0.00512, 5e-5, 0.03, 0.1, 32
"""Of the pixel shuffle; learning rates; share of warm-up; last learning rate, relative; batch size."""


class NanoVLM(LLaVA):
    """The projector of nanoVLM: the features of 2 x 2 positions in one vector, and one matrix."""

    def use_nanovlm_projector(self) -> None:
        """Replace the projector."""
        width = self.language.config.transformer.width
        matrix = nn.Linear(FACTOR**2 * self.image_encoder.feature_width, width, bias=False)
        nn.init.normal_(matrix.weight, std=0.02)
        self.projector = nn.Sequential(matrix)
        self.requires_grad_(True)

    @property
    def image_tokens(self) -> int:
        return self.image_encoder.feature_count // FACTOR**2

    def image_vectors(self, images: Tensor) -> Tensor:
        features = self.image_encoder.features(images)  # (N, T, C)
        side = math.isqrt(features.shape[1])
        grid = features.transpose(1, 2).unflatten(2, (side, side))
        return self.projector(F.pixel_unshuffle(grid, FACTOR).flatten(2).transpose(1, 2))


def token_mean(model: LLaVA, images: Tensor, text: Text) -> Tensor:
    """The mean cross-entropy of all answer tokens of a batch."""
    assert text.learned is not None
    learned = text.learned[:, 1:]
    hidden = model.language.hidden(model.vectors(images, text.ids))[:, :-1][learned]
    return F.cross_entropy(model.language.logits(hidden).float(), text.ids[:, 1:][learned])


def plain_loop(arguments: argparse.Namespace) -> tuple[NanoVLM, dict[str, float]]:
    """Train as nanoVLM does."""
    start = time.monotonic()
    torch.manual_seed(arguments.seed)
    train = genmodels.open_data(arguments.data).split("train")
    model = NanoVLM.of(genmodels.load(arguments.clip), genmodels.load(arguments.lm), LLaVAConfig(train="all"))
    model.use_nanovlm_projector()
    model.train()
    rates = [LR, arguments.towers_lr, arguments.towers_lr]
    parts = (model.projector, model.image_encoder, model.language)
    optimizer = torch.optim.AdamW([{"params": part.parameters()} for part in parts])
    reader = BatchReader(train, SEQUENCE, arguments.seed, converse=model.read_conversations)
    seconds, step = 60 * arguments.minutes, 0
    while (spent := time.monotonic() - start) < seconds:
        progress = spent / seconds
        cosine = LEAST + (1 - LEAST) * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) / 2
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(progress / WARMUP, cosine)
        (batch,) = reader.read(step, progress)
        assert batch.condition.text is not None
        loss = token_mean(model, batch.images, batch.condition.text)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    images = step * SEQUENCE
    return model.eval(), {"images": images, "images_per_second": images / (time.monotonic() - start)}


def ours(arguments: argparse.Namespace) -> tuple[Any, dict[str, float]]:
    """Train both stages from the command line."""
    first, second = arguments.out / "projector", arguments.out / "llava"
    command = [sys.executable, "-m", "genmodels", "train", "llava", f"--data={arguments.data}"]
    command += [f"--seed={arguments.seed}"]
    stages = [
        [f"--clip={arguments.clip}", f"--lm={arguments.lm}", f"--minutes={arguments.minutes / 4}", f"--output={first}"],
        [f"--projector={first}", f"--minutes={3 * arguments.minutes / 4}", f"--output={second}"],
    ]
    images = 0.0
    for stage in stages:
        subprocess.run([*command, *stage], check=True)
        images += genmodels.saving.read_last_line(Path(stage[-1].removeprefix("--output=")) / "metrics.jsonl")["images"]
    return genmodels.load(second), {"images": images, "images_per_second": images / (60 * arguments.minutes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="packed/celeba64", help="packed images with attributes")
    parser.add_argument("--clip", default="runs/clip")
    parser.add_argument("--lm", default="runs/lm")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--towers-lr", type=float, default=TOWERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("ours", "nanovlm"), help="train one of the two")
    parser.add_argument("--out", type=Path, default=Path("runs/vs-nanovlm"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    torch.set_num_threads(1)
    reference = reference_from(genmodels.open_data(arguments.data))
    print("| | images | images/s | " + " | ".join([*SHOWN, "mean of all", "shuffled", "yes"]) + " |")
    print("|---" * (len(SHOWN) + 6) + "|")
    results = {}
    for name, train in {"nanovlm": plain_loop, "ours": ours}.items():
        if arguments.only not in (None, name):
            continue
        model, speed = train(arguments)
        scores = answers.part(Context(reference, [], 64, model=model)).scores
        each = scores["answers"].each
        values = [*(each[attribute] for attribute in SHOWN)]
        values += [scores[key].value for key in ("answers", "answers-shuffled", "answers-yes")]
        results[name] = speed | {"each": dict(each), "mean": scores["answers"].value}
        row = " | ".join(f"{value:.3f}" for value in values)
        print(f"| {name} | {speed['images']:,.0f} | {speed['images_per_second']:.0f} | {row} |", flush=True)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
