"""Compare speed and memory of the evaluation with scipy and torch-fidelity.

    pip install 'genmodels[evaluation]'
    python benchmarks/evaluation_speed.py [--width 2048] [--count 10000] [--threads 2]

1. Frechet distance of given moments: ours, scipy.linalg.sqrtm of the product of the covariances,
   and torch-fidelity.
2. Precision and recall: ours (which also computes density and coverage) and torch-fidelity;
   seconds and peak memory.
3. Feature extraction of random images, in images/s: with the network, and with the resizing only.
   --extractors faces inception measures several networks.

The features of 1 and 2 are random and correlated. Each measurement runs in its own process, and the
libraries alternate.
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
"""Side in pixels that each extractor resizes images to."""
T = TypeVar("T")


def fresh(measure: Callable[[], T]) -> T:
    """Run `measure` in a new process and return its result.

    The libraries in that process read their number of threads from the environment.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure).result()


def gibibytes() -> float:
    """Return the peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def timed(compute: Callable[[], float]) -> tuple[float, float]:
    """Run `compute` and return its seconds and its result."""
    start = time.perf_counter()
    result = compute()
    return time.perf_counter() - start, result


def random_features(count: int, width: int, seed: int) -> np.ndarray:
    """Draw features (N, D), float32, that resemble Inception's.

    They are rectified and correlated, with variances over five orders of magnitude.
    """
    mix = np.random.default_rng(0).standard_normal((width, width)) * np.geomspace(1, 3e-3, width) / width**0.5
    base = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return np.maximum(base @ (mix * (1 + 0.05 * seed)).astype(np.float32) + 0.1, 0)


def frechet_speed(library: str, count: int, width: int) -> tuple[float, float]:
    """Measure seconds and result of the Frechet distance of the same moments by one library."""
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

    functions = {"genmodels": ours, "scipy sqrtm": scipy, "torch-fidelity": torch_fidelity}
    return timed(functions[library])


def manifold_speed(library: str, count: int, width: int) -> tuple[float, float, float, float, float]:
    """Measure precision and recall by one library.

    Returns:
        Seconds, precision, recall, peak memory in GiB, and the memory in use before.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    from genmodels.evaluation.neighbours import manifold

    real, fake = random_features(count, width, 1), random_features(count, width, 2)
    before, start = gibibytes(), time.perf_counter()
    if library == "genmodels":
        scores = manifold(real, fake)
        precision, recall = scores.precision, scores.recall
    else:
        settings = {"prc_neighborhood": 3, "prc_batch_size": 10_000, "save_cpu_ram": False, "verbose": False}
        theirs = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), **settings)
        precision, recall = theirs["precision"], theirs["recall"]
    return time.perf_counter() - start, precision, recall, gibibytes(), before


def extraction_speed(spec: str, images: int, size: int, batch_size: int, with_network: bool) -> float:
    """Measure images/s from an .npy file to features.

    Without the network, the features are the mean colours of the resized images.
    """
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


def alternate(measurements: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Run all measurements in turn, `repeats` times, each time in a new process."""
    rounds: dict[str, list[T]] = {name: [] for name in measurements}
    for _ in range(repeats):
        for name, measure in measurements.items():
            rounds[name].append(fresh(measure))
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
    rounds = alternate({name: partial(frechet_speed, name, count, width) for name in names}, repeats)
    seconds = {name: statistics.median(r[0] for r in results) for name, results in rounds.items()}
    rows = [
        (name, f"{seconds[name]:.2f}", f"{seconds[name] / seconds['genmodels']:.1f}", f"{results[0][1]:.10g}")
        for name, results in rounds.items()
    ]
    show(f"Frechet distance of {width}-d moments", ("", "seconds", "times ours", "distance"), rows)


def report_manifold(count: int, width: int, repeats: int) -> None:
    """Measure and print the second table."""
    names = ("genmodels", "torch-fidelity")
    rounds = alternate({name: partial(manifold_speed, name, count, width) for name in names}, repeats)
    rows = []
    for name, results in rounds.items():
        seconds, (_, precision, recall, peak, before) = statistics.median(r[0] for r in results), results[0]
        rows.append((name, f"{seconds:.1f}", f"{peak:.2f}", f"{before:.2f}", f"{precision:.6f}", f"{recall:.6f}"))
    headings = ("", "seconds", "peak GiB", "before", "precision", "recall")
    show(f"Precision and recall of {count:,} x {count:,} images, {width}-d", headings, rows)


def report_extraction(arguments: argparse.Namespace) -> None:
    """Measure and print the third table."""
    rows = []
    for spec in arguments.extractors:
        settings = (spec, arguments.images, arguments.size, arguments.batch_size)
        measurements = {name: partial(extraction_speed, *settings, name == "with") for name in ("with", "without")}
        rounds = alternate(measurements, arguments.repeats)
        rates = {name: statistics.median(results) for name, results in rounds.items()}
        rows.append((spec, f"{rates['with']:,.0f}", f"{rates['without']:,.0f}"))
    title = f"Features of {arguments.images:,} images of {arguments.size} px, batch {arguments.batch_size}"
    show(title, ("", "images/s", "without the network"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048, help="width of the features in parts 1 and 2")
    parser.add_argument("--count", type=int, default=10_000, help="number of feature vectors in parts 1 and 2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="number of rounds; medians are reported")
    parser.add_argument(
        "--extractors",
        nargs="*",
        default=["faces"],
        metavar="NAME[=PATH]",
        help="extractors of part 3; give no names to skip it",
    )
    parser.add_argument("--images", type=int, default=1024, help="number of images in part 3")
    parser.add_argument("--size", type=int, default=64, help="side of these images in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()

    # The libraries read these variables when they start in the new processes.
    os.environ |= {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    print(f"{arguments.threads} threads, {arguments.repeats} rounds, torch {torch.__version__}, numpy {np.__version__}")
    report_frechet(arguments.count, arguments.width, arguments.repeats)
    report_manifold(arguments.count, arguments.width, arguments.repeats)
    if arguments.extractors:
        report_extraction(arguments)


if __name__ == "__main__":
    main()
