"""The quality of samples while a model trains: numbers of few images, for curves and not for tables."""

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


class Monitor:
    """Frechet distance between samples and real images under the embedded extractor, and how many of the real images
    have a sample near them.

    The real images are those of the valid split, or of the train split where the former has too few: at most FULL_N,
    spread evenly. Their features are computed once.

    Args:
        data: all splits.
        device: where the extractor shall run.

    Raises:
        ValueError: when there are too few real images.
    """

    samples: ClassVar[int] = 512
    """How many to compare: enough to see a model improve."""
    name: ClassVar[str] = f"fd_faces_n{samples}"
    """With the n in it, since so few images have a far larger distance than many: not a number to quote."""
    coverage: ClassVar[str] = f"coverage_faces_n{samples}"
    """Likewise, the share of real images that are covered."""

    def __init__(self, data: Packed, device: torch.device | str = "cpu"):
        split: Split = "valid" if data.counts().get("valid", 0) >= LEAST_N else "train"
        self.held_out = data.split(split) if split == "valid" else None
        """Real images that the model does not train on, where there are enough."""
        self._images = spread(Images(data.split(split).images, f"images of the {split} split"), FULL_N)
        check_count(len(self._images), f"--evaluate-every (None: do without), {split} split of {data.source}")
        self._extractor = load_extractor("faces", device)

    def describe(self) -> str:
        """One line for people: what is compared with what."""
        held_out = "" if self.held_out is not None else "; no images are held out to diagnose the model with"
        return f"{self.name}: {self.samples} samples against {len(self._images):,} {self._images.name}{held_out}"

    @cached_property
    def _real(self) -> tuple[np.ndarray, Moments]:
        features = extract(self._images, self._extractor, progress=False)
        return features, moments(features)

    def measure(self, samples: np.ndarray) -> dict[str, float]:
        """The distance of `samples`, uint8 (N, S, S, 3), to the real images, and the coverage of these, by name.

        Raises:
            ValueError: when they are all the same image, as those of a model that has collapsed or overflowed.
        """
        features = extract(Images(samples, "samples"), self._extractor, progress=False, cached=False)
        check_varied(features, "samples")
        real, of_real = self._real
        return {
            self.name: frechet(moments(features), of_real),
            self.coverage: manifold(real, features).coverage,
        }
