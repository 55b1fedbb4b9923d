"""Made-up evaluations for the tests of reports."""

from __future__ import annotations

from typing import Any

import numpy as np

from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.results import Evaluation, Score, Subject

AGAINST = Protocol("toyfaces", "valid", "178", 32, "lanczos", "0123456789abcdef", 2044, 2000)
FEATURES = {"extractor": "faces", "weights": "fedcba9876543210", "resize": "bilinear to 64"}
MACHINE = "Abacus 3000, 1 thread, float32"


def evaluation(
    name: str = "runs/one",
    number: int = 0,
    *,
    n: int = 2000,
    machine: str = MACHINE,
    without: tuple[str, ...] = (),
    pictures: bool = True,
    **subject: Any,
) -> Evaluation:
    """Make evaluation number `number` with all scores and images but those named in `without`."""
    rng = np.random.default_rng(number)
    at_n = Protocol(**{**vars(AGAINST), "n": n})
    compared = Protocol(**{**vars(at_n), **FEATURES})
    here = Protocol(size=32, n=64, machine=machine)
    unit = rng.random
    scores = {
        "fd-faces": Score(10 + 90 * unit(), "lower", "Frechet distance <exact>", compared, floor=3.25),
        "kd-faces": Score(unit() / 10, "lower", "MMD of the cubic kernel", compared, error=0.001, floor=-0.0001),
        "precision-faces": Score(unit(), "higher", "k = 3", compared, floor=0.75),
        "recall-faces": Score(unit(), "higher", "k = 3", compared, floor=0.5),
        "nearest-train-faces": Score(0.5 + unit(), "neither", "ratio of distances", compared),
        "psnr": Score(20 + unit(), "higher", "per image", at_n, "dB", 0.01, group="reconstruction"),
        "ssim": Score(unit(), "higher", "per image", at_n, error=0.001, group="reconstruction"),
        "bits-per-dim": Score(3 + unit(), "lower", "exact", at_n, "bits/dim", 0.002, group="likelihood"),
        "parameters": Score(1e6 + 1e8 * unit(), "lower", "all", Protocol(size=32), group="cost"),
        "sample-flops": Score(1e9 * unit(), "lower", "counted", Protocol(size=32), "FLOPs/image", group="cost"),
        "network-evaluations": Score(1 + 50 * number, "lower", "calls", Protocol(size=32), group="cost"),
        "images-per-second": Score(10.0 ** (3 - number), "higher", "median", here, "images/s", group="cost"),
        "memory": Score(2**30 * (1 + unit()), "lower", "peak", here, "bytes", group="cost"),
    }
    absent = {other: f"{name} has no {other}" for other in without}
    images = rng.integers(0, 256, (70, 32, 32, 3), np.uint8)
    originals = np.random.default_rng(99).integers(0, 256, (10, 32, 32, 3), np.uint8)
    shown = {
        "samples": images,
        "originals": originals,
        "reconstructions": 255 - originals,
        "nearest samples": images[:8],
        "nearest train": images[8:16],
        "least realistic": images[16:32],
        "most realistic": images[32:48],
    }
    facts: dict[str, Any] = {"kind": "tiny", "weights": "EMA", "seed": 0, "training": {"minutes": 10.0 * (number + 1)}}
    return Evaluation(
        Subject(name, **(facts | subject)),
        {name: score for name, score in scores.items() if name not in without},
        absent,
        {"code": "0.1.0+abcdef01", "torch": "2.14.1", "device": "cpu", "date": "2026-11-23"},
        shown if pictures else {},
    )
