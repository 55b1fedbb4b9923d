"""Count the files and functions that a training step, a sample and an evaluation pass through.

    python benchmarks/call_counts.py
    PYTHONPATH=OTHER_CHECKOUT python benchmarks/call_counts.py    # of another version

Only files and functions of genmodels are counted, comprehensions and lambdas excluded. The counts
measure how much code a reader has to know to follow each operation. `generate` is the method of a
model in memory; `genmodels sample` and `genmodels evaluate` are the commands on a saved model, from
the command line to the results.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import genmodels
from genmodels.cli import main as run_command
from genmodels.data import load_packed
from genmodels.data.batches import image_batches
from genmodels.data.packed import Packed
from genmodels.dit import DiT, DiTConfig
from genmodels.latent import Latent
from genmodels.training.fit import train_step
from genmodels.training.recipe import Recipe
from genmodels.training.setup import start
from genmodels.vae import VAE, VAEConfig

PACKAGE = str(Path(genmodels.__file__).parent)
SIZE = 32
IMAGES = 640
SMALL = dict(size=SIZE, channels=(16, 24), encoder_blocks=(1, 1), decoder_blocks=(1, 1), mixture=2)


def passed_through(call: Callable[[], Any]) -> tuple[int, int]:
    """Return the number of files and of functions of genmodels that `call` passes through."""
    functions: set[tuple[str, str, int]] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            functions.add((code.co_filename, code.co_name, code.co_firstlineno))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len({file for file, _, _ in functions}), len(functions)


def pack_random_images(folder: Path) -> Packed:
    """Pack smooth random images, half of them for validation, by the `data pack` command."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(IMAGES):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE)).save(folder / "images" / f"{i:04d}.png")
    command = ["data", "pack", "folder", "--root", str(folder / "images"), "--size", str(SIZE)]
    assert run_command([*command, "--out", str(folder / "pack")]) == 0
    data = load_packed(folder / "pack")
    return replace(data, splits=(np.arange(len(data)) >= len(data) // 2).astype(np.uint8))


def build(name: str, data: Packed) -> Any:
    """Build a small model: a VAE, a DiT on pixels, or a DiT over a VAE."""
    torch.manual_seed(0)
    if name == "VAE":
        return VAE(VAEConfig(**SMALL, latent_dim=8))  # type: ignore[arg-type]
    blocks = replace(DiTConfig().transformer, width=16, depth=2, heads=2)
    if name == "DiT":
        return DiT(DiTConfig(size=SIZE, patch=8, transformer=blocks, gaussian=16))
    codec = VAE(VAEConfig(**SMALL, latent_dim=4, spatial=True))  # type: ignore[arg-type]
    images = list(image_batches(data, limit=256))
    codec.initialise(images)
    codec.calibrate(images)
    config = DiTConfig(size=SIZE, latents=codec.latent_shape, patch=1, transformer=blocks, gaussian=16)
    return Latent.over(codec.eval(), DiT(config))


def count(name: str, data: Packed, folder: Path) -> list[tuple[int, int]]:
    """Return files and functions of a training step, a sample and an evaluation of one model."""
    recipe = Recipe(size=SIZE, batch_size=8, steps=4, output=folder / name, track="none")
    run = start(build(name, data), data, recipe)
    train_step(run, run.reader.read(0, 0.0), 0.0)  # fills caches
    step = passed_through(lambda: train_step(run, run.reader.read(1, 0.1), 0.1))
    ema: Any = run.ema
    with torch.no_grad():
        ema.calibrate(image_batches(data, limit=256))
    generate = passed_through(lambda: ema.generate(4))
    saved = str(folder / f"{name}-saved")
    ema.save_pretrained(saved)
    commands = (
        ["sample", saved, "--n", "4", "--out", str(folder / f"{name}.png")],
        [
            "evaluate",
            saved,
            "--data",
            str(folder / "pack"),
            "--split",
            "all",
            "--n",
            "256",
            "--json",
            str(folder / f"{name}.json"),
        ],
    )
    counts = [step, generate]
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()):
            counts.append(passed_through(partial(run_command, command)))
    return counts


def main() -> None:
    table = Table(
        "model", "train step", "generate", "genmodels sample", "genmodels evaluate", title="files / functions"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENMODELS_CACHE"] = folder + "/cache"
        data = pack_random_images(Path(folder))
        for name in ("VAE", "DiT", "DiT over VAE"):
            table.add_row(name, *(f"{files} / {functions}" for files, functions in count(name, data, Path(folder))))
    Console().print(table)


if __name__ == "__main__":
    main()
