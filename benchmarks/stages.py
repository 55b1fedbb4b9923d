"""Compare training in stages with a single stage of equal FLOPs, by bits per token of held-out codes.

python benchmarks/stages.py --out runs/stages
python benchmarks/stages.py --data celeba --root PATH --codec runs/grid --optimizer muon --steps 2000 \\
  --samples 1024 --out runs/stages
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
import yaml

import genmodels
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.cli import main
from genmodels.codecs import load_codec
from genmodels.data import open_data
from genmodels.data.batches import image_batches
from genmodels.nn.operations import counting
from genmodels.nn.transformer import TransformerConfig
from genmodels.shipped import locate


@dataclass
class Settings:
    """What is compared."""

    out: Path
    """New folder for all runs."""
    data: str = "toyfaces"
    root: Path | None = None
    codec: Path = Path("toyfaces/vqvae")
    size: int = 64
    """Side of the images of the short context; the longer one has twice the side."""
    steps: int = 600
    """FLOPs of every run, in steps at the short context."""
    batch_size: int = 32
    width: int = 96
    depth: int = 3
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 2e-3
    samples: int = 0
    """Number of samples of each run to write to NAME.npy beside its folder."""


def stages_of(s: Settings, ratio: float) -> dict[str, list[dict[str, Any]]]:
    """Return the stages of each run. A step at the longer context has the FLOPs of `ratio` short ones.
    The first 100 steps of a run, or as many FLOPs, are a warm-up."""
    short, long = {"size": s.size}, {"size": 2 * s.size}
    constant, cosine = {"schedule": "constant"}, {"schedule": "cosine"}
    annealing = {"schedule": "linear", "warmup": 20}
    first, rest = round(0.75 * s.steps), s.steps - round(0.75 * s.steps)
    return {
        "constant": [short | {"steps": s.steps, "optim": constant}],
        "annealed": [
            short | {"steps": first, "optim": constant},
            short | {"steps": rest, "optim": annealing, "ema": 0.2},
        ],
        "cosine": [short | {"steps": s.steps, "optim": cosine}],
        "long": [long | {"steps": round(s.steps / ratio), "optim": cosine | {"warmup": round(100 / ratio)}}],
        "short, then long": [
            short | {"steps": s.steps // 2, "optim": constant},
            long | {"steps": round(s.steps / 2 / ratio), "optim": cosine | {"warmup": 20}},
        ],
    }


def operations(size: int, s: Settings) -> float:
    """FLOPs of the forward pass of the codes of one image."""
    codec = load_codec(locate(s.codec), size, codes=True, resize=True)
    blocks = TransformerConfig(width=s.width, depth=s.depth, heads=4, qk_norm=True)
    model = Autoregressive(Autoregressive.config_over(AutoregressiveConfig(size=size, transformer=blocks), codec))
    with counting() as counter, torch.no_grad():
        model.bits_per_token(torch.zeros(1, *codec.latent_shape, dtype=torch.int64))
    return counter.get_total_flops()


@torch.inference_mode()
def bits(run: Path, s: Settings) -> tuple[float, float]:
    """Return the mean bits per token of held-out images, and its standard error."""
    model: Any = genmodels.load(run)
    images = image_batches(open_data(s.data, s.root, model.config.size).split("valid"), 64, limit=1024)
    each = torch.cat([model.bits_per_token(batch) for batch in images])
    return each.mean().item(), (each.std() / len(each) ** 0.5).item()


def run(s: Settings) -> None:
    """Train all runs and print their bits."""
    s.out.mkdir(parents=True, exist_ok=True)
    ratio = operations(2 * s.size, s) / operations(s.size, s)
    print(f"a step at the longer context has the FLOPs of {ratio:.2f} short ones")
    model = {"transformer": {"width": s.width, "depth": s.depth, "heads": 4, "qk_norm": True}}
    shared: dict[str, Any] = {
        "family": "autoregressive",
        "data": s.data,
        "root": s.root and str(s.root),
        "codec": str(s.codec),
    }
    optim = {"name": s.optimizer, "lr": s.lr, "betas": [0.9, 0.95], "weight_decay": 0.05, "clip": 1}
    shared |= {"batch_size": s.batch_size, "optim": optim}
    shared |= {"model": model, "sample_every": 10**6, "track": "none", "mixed_precision": "no", "size": s.size}
    for name, stages in stages_of(s, ratio).items():
        folder = s.out / name.replace(", ", "-").replace(" ", "-")
        file = folder.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(shared | {"stages": stages}))
        if main(["train", "autoregressive", "--config", str(file), "--output", str(folder)]) != 0:
            sys.exit(1)
        mean, error = bits(folder, s)
        print(f"{name:20} {mean:.3f} +- {error:.3f} bits per token", flush=True)
        if s.samples:
            samples = ["--n", str(s.samples), "--out", str(folder.with_suffix(".npy")), "--force"]
            if main(["sample", str(folder), *samples]) != 0:
                sys.exit(1)


if __name__ == "__main__":
    run(tyro.cli(Settings, description=__doc__))
