"""Metrics of a few samples during training, for curves and not for tables."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from genmodels.data.packed import Packed, Split
from genmodels.evaluation.distances import Moments, check_varied, frechet, moments
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.neighbours import manifold
from genmodels.evaluation.protocol import FULL_N, LEAST_N, check_count
from genmodels.evaluation.reference import spread


def has_enough(data: Packed) -> bool:
    """Return whether a split that a `Monitor` can use has enough images."""
    return any(data.counts().get(split, 0) >= LEAST_N for split in ("train", "valid"))


class Monitor:
    """Fréchet distance between samples and real images under the embedded extractor, and coverage.

    The real images are those of the valid split, or of the train split if the valid split has too
    few: at most FULL_N, evenly spread. Their features are computed once.

    Args:
        data: all splits.
        device: device of the extractor.

    Raises:
        ValueError: if there are too few real images.
    """

    samples: ClassVar[int] = 512
    """Number of samples to compare: enough to show whether a model improves."""
    name: ClassVar[str] = f"fd_faces_n{samples}"
    """Name of the distance. It contains n, since the distance of so few images is much larger than
    that of many."""
    coverage: ClassVar[str] = f"coverage_faces_n{samples}"
    """Name of the coverage, the fraction of real images with a sample in their neighbourhood."""

    def __init__(self, data: Packed, device: torch.device | str = "cpu"):
        split: Split = "valid" if data.counts().get("valid", 0) >= LEAST_N else "train"
        self.held_out = data.split(split) if split == "valid" else None
        """Real images on which the model is not trained, or None if there are too few."""
        self._images = spread(Images(data.split(split).images, f"images of the {split} split"), FULL_N)
        check_count(len(self._images), f"--evaluate-every (None disables it), {split} split of {data.source}")
        self._extractor = load_extractor("faces", device)

    def describe(self) -> str:
        """Return one line that says what is compared with what."""
        held_out = "" if self.held_out is not None else "; there are no held-out images to diagnose the model with"
        return f"{self.name}: {self.samples} samples against {len(self._images):,} {self._images.name}{held_out}"

    @cached_property
    def _real(self) -> tuple[np.ndarray, Moments]:
        features = extract(self._images, self._extractor, progress=False)
        return features, moments(features)

    def measure(self, samples: np.ndarray) -> dict[str, float]:
        """Compute the distance of `samples`, uint8 (N, S, S, 3), to the real images, and their
        coverage, by name.

        Raises:
            ValueError: if all samples are the same image, as those of a model that has collapsed or
                overflowed.
        """
        features = extract(Images(samples, "samples"), self._extractor, progress=False, cached=False)
        check_varied(features, "samples")
        real, of_real = self._real
        return {
            self.name: frechet(moments(features), of_real),
            self.coverage: manifold(real, features).coverage,
        }
