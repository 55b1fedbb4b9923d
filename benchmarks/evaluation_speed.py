"""Speed and memory of the evaluation, beside scipy and torch-fidelity, in one run.

    pip install 'genmodels[evaluation]'
    python benchmarks/evaluation_speed.py [--width 2048] [--count 10000] [--threads 2] [--extractors faces inception]

1. The Frechet distance of given moments: ours, scipy.linalg.sqrtm of the product of the covariances, torch-fidelity's.
2. Precision and recall: ours (with density and coverage) and torch-fidelity's; seconds, and the peak of memory.
3. Features of random images, in images/s: as evaluated, and with nothing but the resizing in the network's place.

The features of 1 and 2 are random and correlated. Each measurement has a process of its own, and the sides take turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

SIDES = {"faces": 64, "inception": 299, "dinov2": 224, "clip": 336}
"""To how many pixels a side the extractors resize."""
T = TypeVar("T")


def fresh(measure: Callable[[], T]) -> T:
    """The result of `measure` in a process of its own, whose libraries start with the environment's threads."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure).result()


def gibibytes() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def timed(compute: Callable[[], float]) -> tuple[float, float]:
    """Seconds, result."""
    start = time.perf_counter()
    result = compute()
    return time.perf_counter() - start, result


def random_features(count: int, width: int, seed: int) -> np.ndarray:
    """float32 (N, D): rectified, correlated, with variances over five decades, as Inception's are."""
    mix = np.random.default_rng(0).standard_normal((width, width)) * np.geomspace(1, 3e-3, width) / width**0.5
    base = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return np.maximum(base @ (mix * (1 + 0.05 * seed)).astype(np.float32) + 0.1, 0)


def frechet_speed(side: str, count: int, width: int) -> tuple[float, float]:
    """Seconds and result of one side's distance between the same moments."""
    from scipy.linalg import sqrtm
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    from genmodels.evaluation.distances import frechet, moments

    one, other = (moments(random_features(count, width, seed)) for seed in (1, 2))

    def ours() -> float:
        return frechet(one, other)

    def scipy() -> float:
        root = np.asarray(sqrtm(one.covariance @ other.covariance)).real
        shift = one.mean - other.mean
        return float(shift @ shift + np.trace(one.covariance) + np.trace(other.covariance) - 2 * np.trace(root))

    def torch_fidelity() -> float:
        statistics = [{"mu": m.mean, "sigma": m.covariance} for m in (one, other)]
        return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])

    sides = {"genmodels": ours, "scipy sqrtm": scipy, "torch-fidelity": torch_fidelity}
    return timed(sides[side])


def manifold_speed(side: str, count: int, width: int) -> tuple[float, float, float, float, float]:
    """Seconds, precision, recall, peak of memory in GiB, and what was held before."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    from genmodels.evaluation.neighbours import manifold

    real, fake = random_features(count, width, 1), random_features(count, width, 2)
    before, start = gibibytes(), time.perf_counter()
    if side == "genmodels":
        found = manifold(real, fake)
        precision, recall = found.precision, found.recall
    else:
        settings = {"prc_neighborhood": 3, "prc_batch_size": 10_000, "save_cpu_ram": False, "verbose": False}
        theirs = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), **settings)
        precision, recall = theirs["precision"], theirs["recall"]
    return time.perf_counter() - start, precision, recall, gibibytes(), before


def extraction_speed(spec: str, images: int, size: int, batch_size: int, with_network: bool) -> float:
    """Images/s from an .npy file to features; without the network, the mean colours of the resized images."""
    from genmodels.evaluation.extractors import Extractor, load_extractor
    from genmodels.evaluation.features import extract
    from genmodels.evaluation.images import read_images

    side = SIDES[spec.partition("=")[0]]

    def only_resize(pixels: Tensor) -> Tensor:
        resized = F.interpolate(pixels.float(), (side, side), mode="bilinear", antialias=True)  # (N, 3, side, side)
        return resized.mean((2, 3))  # (N, 3)

    extractor = load_extractor(spec) if with_network else Extractor("resizing", only_resize)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, np.random.default_rng(0).integers(0, 256, (images, size, size, 3), np.uint8))
        pixels = read_images(path)
        extract(pixels.take(slice(batch_size)), extractor, batch_size=batch_size, progress=False, cached=False)
        start = time.perf_counter()
        extract(read_images(path), extractor, batch_size=batch_size, progress=False, cached=False)
        return images / (time.perf_counter() - start)


def in_turns(sides: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Every side `repeats` times, one after the other, each time in a fresh process."""
    rounds: dict[str, list[T]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, measure in sides.items():
            rounds[side].append(fresh(measure))
    return rounds


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def report_frechet(count: int, width: int, repeats: int) -> None:
    """Measure and print the first table."""
    names = ("genmodels", "scipy sqrtm", "torch-fidelity")
    rounds = in_turns({name: partial(frechet_speed, name, count, width) for name in names}, repeats)
    seconds = {name: statistics.median(r[0] for r in found) for name, found in rounds.items()}
    rows = [
        (name, f"{seconds[name]:.2f}", f"{seconds[name] / seconds['genmodels']:.1f}", f"{found[0][1]:.10g}")
        for name, found in rounds.items()
    ]
    show(f"Frechet distance of {width}-d moments", ("", "seconds", "times ours", "distance"), rows)


def report_manifold(count: int, width: int, repeats: int) -> None:
    """Measure and print the second table."""
    names = ("genmodels", "torch-fidelity")
    rounds = in_turns({name: partial(manifold_speed, name, count, width) for name in names}, repeats)
    rows = []
    for name, found in rounds.items():
        seconds, (_, precision, recall, peak, before) = statistics.median(r[0] for r in found), found[0]
        rows.append((name, f"{seconds:.1f}", f"{peak:.2f}", f"{before:.2f}", f"{precision:.6f}", f"{recall:.6f}"))
    headings = ("", "seconds", "peak GiB", "before", "precision", "recall")
    show(f"Precision and recall of {count:,} x {count:,} images, {width}-d", headings, rows)


def report_extraction(arguments: argparse.Namespace) -> None:
    """Measure and print the third table."""
    rows = []
    for spec in arguments.extractors:
        settings = (spec, arguments.images, arguments.size, arguments.batch_size)
        sides = {name: partial(extraction_speed, *settings, name == "with") for name in ("with", "without")}
        rates = {name: statistics.median(found) for name, found in in_turns(sides, arguments.repeats).items()}
        rows.append((spec, f"{rates['with']:,.0f}", f"{rates['without']:,.0f}"))
    title = f"Features of {arguments.images:,} images of {arguments.size} px, batch {arguments.batch_size}"
    show(title, ("", "images/s", "without the network"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048, help="of the features")
    parser.add_argument("--count", type=int, default=10_000, help="of the features")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; medians are reported")
    parser.add_argument(
        "--extractors", nargs="*", default=["faces"], metavar="NAME[=PATH]", help="none: leave out part 3"
    )
    parser.add_argument("--images", type=int, default=1024, help="for the extractors")
    parser.add_argument("--size", type=int, default=64, help="of these images, in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()

    # Libraries read these when they start, in the processes to come.
    os.environ |= {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    print(f"{arguments.threads} threads, {arguments.repeats} rounds, torch {torch.__version__}, numpy {np.__version__}")
    report_frechet(arguments.count, arguments.width, arguments.repeats)
    report_manifold(arguments.count, arguments.width, arguments.repeats)
    if arguments.extractors:
        report_extraction(arguments)


if __name__ == "__main__":
    main()
