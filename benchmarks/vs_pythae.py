"""Compare the speed of the standard convolutional VAE in pythae and of recipes/vae.py.

    pip install 'genmodels[peers]'
    python benchmarks/vs_pythae.py --data celeba --root PATH --json vs_pythae.json

Each library runs its own training loop on the same faces, with the same batch size and number of
threads. Each measurement runs in its own process, and the libraries alternate, so that a slow phase
of the machine affects all of them. See benchmarks/README.md.
"""

from __future__ import annotations

import json
import os
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from genmodels.data import open_data

RECIPE = Path(__file__).parent.parent / "recipes" / "vae.py"
CHANNELS = (32, 64, 128, 256, 512)
LATENT = 128


@dataclass(frozen=True)
class Settings:
    data: str = "celeba"
    """toyfaces, celeba, folder, or the path of a packed directory."""
    root: Path | None = None
    """Folder with the images of celeba or folder."""
    size: int = 64
    """Side of the images in pixels, a multiple of 32."""
    batch_size: int = 128
    steps: int = 60
    """Number of timed training steps."""
    warmup: int = 10
    """Number of training steps before the timed ones."""
    samples: int = 2048
    """Number of timed samples, after one batch of warm-up."""
    repeats: int = 3
    """Number of rounds; medians are reported."""
    threads: int = os.cpu_count() or 1
    """Number of threads used by torch."""
    json: Path | None = None
    """File to write the results to."""


@dataclass(frozen=True)
class Speed:
    """Number of parameters and speed of one library."""

    parameters: int
    train: float
    """Training speed in images/s."""
    sample: float
    """Sampling speed in images/s."""


def encoder_layers() -> nn.Sequential:
    """Build the strided convolutions of the encoder: (N, 3, H, W) -> (N, 512 * H/32 * W/32)."""
    layers: list[nn.Module] = []
    for inner, outer in zip((3, *CHANNELS), CHANNELS, strict=False):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.BatchNorm2d(outer), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def decoder_layers(side: int) -> nn.Sequential:
    """Build the decoder, which mirrors the encoder: (N, 128) -> (N, 3, H, W) in [0, 1]."""
    layers: list[nn.Module] = [nn.Linear(LATENT, CHANNELS[-1] * side**2), nn.Unflatten(1, (CHANNELS[-1], side, side))]
    down = CHANNELS[::-1]
    for inner, outer in zip(down, (*down[1:], down[-1]), strict=True):
        layers.append(nn.ConvTranspose2d(inner, outer, 3, stride=2, padding=1, output_padding=1))
        layers += [nn.BatchNorm2d(outer), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Conv2d(down[-1], 3, 3, padding=1), nn.Sigmoid())


def pythae_vae(size: int) -> Any:
    """Build the standard convolutional VAE, 3.9 M parameters at 64 pixels, as a pythae model."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    side = size // 32

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = encoder_layers()
            self.mean = nn.Linear(CHANNELS[-1] * side**2, LATENT)
            self.log_variance = nn.Linear(CHANNELS[-1] * side**2, LATENT)

        def forward(self, x: Tensor) -> ModelOutput:
            h = self.layers(x)  # (N, 512 * side**2)
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = decoder_layers(side)

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(z))  # (N, 3, H, W)

    return VAE(VAEConfig(input_dim=(3, size, size), latent_dim=LATENT), Encoder(), Decoder())


def images_per_second(ends: list[float], settings: Settings) -> float:
    """Compute images/s from the end times of the steps, from the last warm-up step to the last."""
    timed = ends[settings.warmup - 1 :]
    return settings.batch_size * (len(timed) - 1) / (timed[-1] - timed[0])


def time_sampling(sample: Callable[[int], Tensor], settings: Settings) -> float:
    """Measure the images/s of sample(n), after one batch of warm-up."""
    sample(settings.batch_size)
    start = time.perf_counter()
    images = sample(settings.samples)
    seconds = time.perf_counter() - start
    assert images.shape == (settings.samples, 3, settings.size, settings.size)
    return settings.samples / seconds


def measure_pythae(settings: Settings) -> Speed:
    """Measure one epoch of BaseTrainer on batches of floats in memory, then NormalSampler."""
    from pythae.data.datasets import BaseDataset
    from pythae.samplers import NormalSampler
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Clock(TrainingCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_step_end(self, training_config: Any, **_: Any) -> None:
            self.ends.append(time.perf_counter())

    torch.set_num_threads(settings.threads)
    faces = open_data(settings.data, settings.root, settings.size).split("train").images
    chosen = np.arange(settings.batch_size * (settings.warmup + settings.steps)) % len(faces)
    images = torch.from_numpy(faces[chosen]).permute(0, 3, 1, 2).float().div_(255)  # (M, 3, H, W) in [0, 1]
    model = pythae_vae(settings.size)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=1e-3,
            no_cuda=True,
        )
        dataset = BaseDataset(images, torch.zeros(len(images)))
        BaseTrainer(model, train_dataset=dataset, training_config=config, callbacks=[clock]).train()
    sampler = NormalSampler(model)
    return Speed(
        parameters=sum(p.numel() for p in model.parameters()),
        train=images_per_second(clock.ends, settings),
        sample=time_sampling(lambda n: sampler.sample(n, batch_size=settings.batch_size), settings),
    )


def measure_ours(settings: Settings, precision: Literal["no", "bf16"]) -> Speed:
    """Measure fit() with the settings of recipes/vae.py, then generate() from the prior."""
    from genmodels.training.fit import fit
    from genmodels.vae import VAE

    class ClockedVAE(VAE):
        def after_step(self) -> None:
            super().after_step()
            ends.append(time.perf_counter())

        def calibrate(self, images: Iterable[Tensor]) -> None:
            super().calibrate(islice(images, 8))  # not timed; on all faces it would take a minute

    torch.set_num_threads(settings.threads)
    ends: list[float] = []
    steps = settings.warmup + settings.steps
    recipe = runpy.run_path(str(RECIPE))["VAERecipe"]()
    model = ClockedVAE(replace(recipe.model, size=settings.size))
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(
            recipe,
            output=Path(folder) / "run",
            steps=steps,
            minutes=None,
            batch_size=settings.batch_size,
            mixed_precision=precision,
            sample_every=steps,
            save_every=steps,
        )
        saved = fit(model, open_data(settings.data, settings.root, settings.size), recipe)
        trained = VAE.from_pretrained(str(saved))
    assert len(ends) == steps

    def sample(n: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return trained.generate(n, batch_size=settings.batch_size, latents="prior")

    return Speed(
        parameters=sum(p.numel() for p in trained.parameters()),
        train=images_per_second(ends, settings),
        sample=time_sampling(sample, settings),
    )


MEASUREMENTS: dict[str, tuple[Callable[..., Speed], tuple[Any, ...]]] = {
    "pythae, fp32": (measure_pythae, ()),
    "genmodels, fp32": (measure_ours, ("no",)),
    "genmodels, bf16": (measure_ours, ("bf16",)),
}


def main(settings: Settings) -> None:
    rounds: dict[str, list[Speed]] = {name: [] for name in MEASUREMENTS}
    for _ in range(settings.repeats):
        for name, (measure, options) in MEASUREMENTS.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                rounds[name].append(fresh.submit(measure, settings, *options).result())

    table = Table(title=f"{settings.size} px, batch {settings.batch_size}, {settings.threads} threads")
    for heading in ("", "parameters", "training images/s", "sampling images/s"):
        table.add_column(heading, justify="left" if not heading else "right")
    middle = {
        name: Speed(
            speeds[0].parameters,
            statistics.median(speed.train for speed in speeds),
            statistics.median(speed.sample for speed in speeds),
        )
        for name, speeds in rounds.items()
    }
    theirs = middle["pythae, fp32"]
    for name, speed in middle.items():
        train = f"{speed.train:.0f} ({speed.train / theirs.train:.2f}x)"
        sample = f"{speed.sample:.0f} ({speed.sample / theirs.sample:.2f}x)"
        table.add_row(name, f"{speed.parameters:,}", train, sample)
    Console().print(table)
    if settings.json is not None:
        report = {
            "settings": json.loads(json.dumps(asdict(settings), default=str)),
            "versions": {name: version(name) for name in ("torch", "pythae")},
            "median": {name: asdict(speed) for name, speed in middle.items()},
            "rounds": {name: [asdict(speed) for speed in speeds] for name, speeds in rounds.items()},
        }
        settings.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
