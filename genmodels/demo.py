"""The demonstration: trains two small models on procedural faces and writes a page about them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import genmodels
from genmodels import pictures, sampling
from genmodels.base import Generator
from genmodels.data import Packed, open_data
from genmodels.data.batches import image_batches
from genmodels.evaluation.likelihood import likelihood_score
from genmodels.evaluation.pairs import pair_scores
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.report import Figure, Section, curves, embedded, page, tiles
from genmodels.evaluation.results import Score
from genmodels.modes import evaluating
from genmodels.reading import read_json_lines
from genmodels.writing import is_free, is_leftover, write_text

SIZE = 64
MADE = {"index.html", "grid.png", "reconstructions.png", "interpolation.png", "interpolation.gif", "vae", "ae"}
"""Everything that a demo writes to its folder."""
PATHS = ((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12), (13, 14, 15), (16, 17, 18))
"""Seeds of the closed paths in the animation, which shows them side by side."""
MEASURED = 256
"""Number of held-out images that reconstructions are measured on."""


def demo(out: Path, minutes: float = 1.5, force: bool = False) -> Path:
    """Train a VAE, and an autoencoder for a third of the time, and write a page about them.

    Args:
        out: new or empty folder. It receives index.html, grid.png, reconstructions.png,
            interpolation.png and .gif, and the run folders vae/ and ae/.
        minutes: wall-clock time of the training command of the VAE.
        force: replace an earlier demo in `out`.

    Returns:
        the path of the page.

    Raises:
        ValueError: when `out` holds something else, or training failed.
    """
    if minutes <= 0:
        raise ValueError(f"--minutes must be above 0, got {minutes}")
    _prepare(out, force)
    began = time.monotonic()
    with _stage("1/4  procedural faces"):
        data = open_data("toyfaces", size=SIZE)
    with _stage(f"2/4  a VAE, {minutes:g} min"):
        _train("vae", out, minutes)
    with _stage(f"3/4  an autoencoder, {minutes / 3:.2g} min"):
        _train("ae", out, minutes / 3)
    with _stage("4/4  pictures and scores"):
        return show(out, data, minutes, began)


def show(out: Path, data: Packed, minutes: float, began: float) -> Path:
    """Write the pictures and the page about out/vae and out/ae. The demo started at `began`."""
    models = {name: genmodels.load(out / name) for name in ("vae", "ae")}
    pictures = _draw(models["vae"], models["ae"], data, out)
    scores = {name: _measure(model, data.split("valid")) for name, model in models.items()}
    text = _page(out, minutes, models, scores, pictures, data, time.monotonic() - began)
    write_text(out / "index.html", text)
    return out / "index.html"


def _prepare(out: Path, force: bool) -> None:
    names = {path.name for path in out.iterdir() if not is_leftover(path.name)} if out.is_dir() else set()
    earlier = "vae" in names and names <= MADE  # finished or not
    if not is_free(out):
        if not (force and earlier):
            hint = "replace that demo with --force (make demo ARGS=--force), or " if earlier else ""
            raise ValueError(f"{out} is not an empty folder: {hint}choose another --out")
        for name in ("vae", "ae"):
            shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


@contextmanager
def _stage(title: str) -> Iterator[None]:
    print(title, flush=True)
    began = time.monotonic()
    yield
    print(f"     done in {time.monotonic() - began:.0f} s", flush=True)


def _train(family: str, out: Path, minutes: float) -> None:
    """Run a recipe in a process of its own, because it counts its time from the start of Python."""
    package = str(Path(genmodels.__file__).parent.parent)
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = ["--size", str(SIZE), "--minutes", f"{minutes:.4f}", "--output", str(out / family)]
    command = [sys.executable, "-m", "genmodels", "train", family, *settings]
    status = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}).returncode
    if status:
        raise ValueError(
            f"training stopped with status {status}; its messages are above, and its files are in {out / family}. "
            "If it was short of time, give the demo a larger --minutes"
        )


def _draw(vae: Generator, ae: Generator, data: Packed, out: Path) -> dict[str, np.ndarray]:
    """Compute the pictures of the page, uint8 (N, H, W, 3), and write the picture files."""
    real = np.asarray(data.split("valid").images[:16])
    shown = {
        "real": np.asarray(data.split("train").images[:32]),
        "vae": sampling.sample(vae, 64, progress=False),
        "vae prior": sampling.sample(vae, 32, latents="prior", progress=False),
        "ae": sampling.sample(ae, 32, progress=False),
        "pairs": pictures.in_pairs(real, sampling.reconstruct(vae, real), 8),
        "ae pairs": pictures.in_pairs(real, sampling.reconstruct(ae, real), 8),
    }
    tours = [sampling.interpolate(vae, seeds, 16) for seeds in PATHS]  # each (3, 16, H, W, 3)
    walks = np.stack([pictures.animation_frames(tour) for tour in tours])
    pictures.save_animation(out / "interpolation.gif", pictures.side_by_side(walks))
    shown["tour"] = tours[0].reshape(-1, *tours[0].shape[2:])
    pictures.save_grid(out / "grid.png", shown["vae"])
    pictures.save_grid(out / "reconstructions.png", shown["pairs"], columns=8)
    pictures.save_grid(out / "interpolation.png", shown["tour"], columns=16)
    return shown


def _measure(model: Generator, held_out: Packed) -> dict[str, Score]:
    """Score the reconstructions of held-out images, and the likelihood if the model has one."""
    faces = held_out.take(slice(MEASURED))
    protocol = Protocol(data=faces.source, split="valid", size=faces.size, n=MEASURED)
    originals = np.asarray(faces.images)
    scores = pair_scores(originals, sampling.reconstruct(model, originals), None, protocol)
    if model.can("bits_per_dim"):
        with evaluating(model):
            scores["bits-per-dim"] = likelihood_score(model, image_batches(faces), 0, protocol)
    return scores


def _page(
    out: Path,
    minutes: float,
    models: dict[str, Generator],
    scores: dict[str, dict[str, Score]],
    pictures: dict[str, np.ndarray],
    data: Packed,
    seconds: float,
) -> str:
    logs = {name: list(read_json_lines(out / name / "metrics.jsonl")) for name in models}
    last = logs["vae"][-1]
    sections = [
        _samples(pictures),
        _training(out, logs, pictures),
        _reconstructions(pictures, scores),
        Section(
            "Interpolation",
            ["Six closed paths through the latent space of the VAE, each through three sampled faces."],
            [
                Figure(
                    "Animation.",
                    "Every frame is decoded from a latent vector. Pixels are not blended.",
                    embedded(out / "interpolation.gif"),
                ),
                Figure(
                    "One tour, frame by frame.",
                    "Each row interpolates from one face to the next.",
                    tiles(pictures["tour"], 16),
                ),
            ],
        ),
        Section("What to try next", code=_next_steps(out)),
    ]
    return page(
        title=f"Generated faces after {minutes:g} minutes of training",
        lead=(
            f"A variational autoencoder (VAE) was trained on {last['images']:,} images of {len(data.split('train')):,} "
            "procedurally drawn faces. This page shows new faces that it generates, without selection."
        ),
        facts={
            "trained for": f"{last['elapsed']:.0f} s",
            "on": f"{os.cpu_count()} CPU cores",
            "training images": f"{last['images']:,}",
            "images per second": f"{last['images'] / last['elapsed']:,.0f}",
            "parameters": f"{sum(p.numel() for p in models['vae'].parameters()) / 1e6:.1f} M",
            "image size": f"{SIZE} x {SIZE}",
        },
        sections=sections,
        footer=f"Made by genmodels {genmodels.__version__} demo in {seconds:.0f} s in all, training included.",
    )


def _samples(pictures: dict[str, np.ndarray]) -> Section:
    return Section(
        "New faces",
        [
            "Each image is decoded from a random latent vector. The three grids differ in the distribution of "
            "that vector."
        ],
        [
            Figure(
                "VAE, mixture.",
                "Latents from a mixture of ten Gaussians, fitted to the latents of the training images.",
                tiles(pictures["vae"][:32], 8),
            ),
            Figure(
                "VAE, prior.",
                "Latents from the standard normal prior, which the training loss pulls the latents towards.",
                tiles(pictures["vae prior"], 8),
                width="half",
            ),
            Figure(
                "Plain autoencoder.",
                "Latents from one Gaussian fitted to those of an autoencoder without a prior: the baseline, "
                "with a third of the training time.",
                tiles(pictures["ae"], 8),
                width="half",
            ),
        ],
    )


def _training(out: Path, logs: dict[str, list[dict[str, float]]], pictures: dict[str, np.ndarray]) -> Section:
    lines = {
        name.upper(): ([line["elapsed"] for line in log], [line["mse"] for line in log]) for name, log in logs.items()
    }
    shown = sorted((out / "vae" / "samples").glob("step_*.png"))
    thirds = [shown[0], shown[len(shown) // 2], shown[-1]] if len(shown) > 2 else shown
    steps = [(path, f"{int(path.stem.removeprefix('step_')):,}") for path in thirds]
    return Section(
        "Training",
        ["Both models learn to reconstruct their training images from a short latent vector."],
        [
            Figure("Training images.", "Procedurally drawn faces.", tiles(pictures["real"], 16)),
            Figure(
                "Reconstruction error.",
                "Mean squared error per colour value, on a scale of -1 to 1, against seconds of training.",
                svg=curves(lines, "seconds of training", "squared error"),
            ),
            *[Figure(f"After {step} steps.", "", embedded(path), width="third") for path, step in steps],
        ],
    )


def _reconstructions(pictures: dict[str, np.ndarray], scores: dict[str, dict[str, Score]]) -> Section:
    rows = [["model", "PSNR", "SSIM", "bits/dim"]]
    for name, result in scores.items():
        bits = result.get("bits-per-dim")
        rows.append(
            [
                name.upper(),
                f"{result['psnr'].value:.2f} dB",
                f"{result['ssim'].value:.3f}",
                f"at most {bits.value:.2f}" if bits else "none: no likelihood",
            ]
        )
    return Section(
        "Reconstructions of held-out images",
        [
            "Each original is above its reconstruction. Details that the reconstruction lacks are not encoded in "
            f"the latent vector. The table is measured on {MEASURED} held-out faces. Higher PSNR and SSIM are better, "
            "and so are fewer bits/dim."
        ],
        [
            Figure("VAE.", source=tiles(pictures["pairs"], 8), width="half"),
            Figure("Autoencoder.", source=tiles(pictures["ae pairs"], 8), width="half"),
        ],
        rows,
    )


def _next_steps(out: Path) -> str:
    return f"""# more faces from this model; a lower temperature gives less variety and fewer artefacts
genmodels sample {out}/vae --n 100 --seed 7 --temperature 0.7 --out faces.png

# describe the model
genmodels info {out}/vae

# train on real faces: CelebA in its official layout, ten minutes
genmodels train vae --data celeba --root PATH --minutes 10 --output runs/vae
genmodels evaluate runs/vae --data celeba --root PATH --json metrics.json

# train on your own pictures
genmodels train vae --data folder --root PATH --minutes 10 --output runs/mine
genmodels reconstruct runs/mine PATH/*.jpg --out pairs.png"""
