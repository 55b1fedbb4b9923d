"""What a part of an evaluation is given and what it returns. A metric is one function of a
`Context`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genmodels import sampling
from genmodels.candidates import BestOf
from genmodels.data.rows import spread_rows
from genmodels.evaluation.embedder import embedder
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.reference import Reference, floor_pair, spread
from genmodels.evaluation.requests import Requested, requested_of
from genmodels.evaluation.results import Score
from genmodels.nn.perceptual import Distance, load_lpips
from genmodels.pictures import to_float


@dataclass(frozen=True)
class Part:
    """What one part of an evaluation measured.

    Attributes:
        scores: scores by name.
        absent: reasons why scores are missing, by the name of the score.
    """

    scores: dict[str, Score] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class Context:
    """Everything that a part of an evaluation may use. All parts share one.

    Attributes:
        reference: real images.
        extractors: feature extractors. Copies and attributes are measured with the first one.
        batch_size: number of images computed at a time.
        samples: images to score: samples of the model, or given images; None if the model cannot
            sample.
        model: the model, on the device it should run on; None if images were given.
        n: number of samples, and the largest number of real images to reconstruct or compute a
            likelihood of.
        seed: seed of the noise.
        options: sampling options of the model.
        best: choice of each sample among several candidates; None if one is drawn.
        device: device of the networks that compare images.
        pictures: images to show with the scores, by name, to which a part may add.
    """

    reference: Reference
    extractors: Sequence[Extractor]
    batch_size: int
    samples: Images | None = None
    model: Any = None
    n: int = 0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    best: BestOf | None = None
    device: torch.device | str = "cpu"
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    _features: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def features(self, images: Images, extractor: Extractor) -> np.ndarray:
        """Return the features of `images`, (N, D). They are computed once per evaluation."""
        key = (images.fingerprint, extractor.name)
        if key not in self._features:
            self._features[key] = extract(images, extractor, batch_size=self.batch_size)
        return self._features[key]

    @cached_property
    def floor(self) -> tuple[Images, Images] | None:
        """As many real images as there are samples, and other real images to compare them with."""
        assert self.samples is not None
        return floor_pair(self.reference, len(self.samples))

    @cached_property
    def embedder(self) -> Extractor:
        """The model itself, which embeds images and sentences, as an extractor."""
        return embedder(self.model)

    @cached_property
    def requested(self) -> Requested:
        """Samples that should show what held-out images show.

        Raises:
            ValueError: if the model takes neither text nor attributes, or the reference does not
                know them.
        """
        reference, count = self.reference, len(self.reference.images)
        rows = np.arange(self.n) % count if self.n > count else spread_rows(count, self.n)
        request = requested_of(self.model, reference, rows)
        how = {"batch_size": self.batch_size, "best": self.best, **self.options}
        samples = sampling.sample(self.model, self.n, self.seed, request.condition, **how)
        return replace(request, images=Images(samples, "conditional samples"))

    @cached_property
    def lpips(self) -> tuple[Distance | None, dict[str, str]]:
        """LPIPS if its weights are available; otherwise None and the reason, as in
        `Part.absent`."""
        try:
            return load_lpips(device=self.device), {}
        except ValueError as error:
            return None, {"lpips": str(error)}

    @property
    def protocol(self) -> Protocol:
        """Protocol of a score of the samples."""
        assert self.samples is not None
        return replace(self.reference.protocol, n=len(self.samples))

    def held_out(self, limit: int | None = None) -> tuple[Images, Protocol]:
        """Return at most `n` real images, or at most `limit`, and the protocol of a score of these
        images alone."""
        images = spread(self.reference.images, min(self.n, limit or self.n))
        number = len(images)
        return images, replace(self.reference.protocol, n=number, n_reference=number, reference=images.fingerprint)

    def batches(self, images: Images, title: str) -> Iterator[Tensor]:
        """Yield `images` as (n, 3, H, W) in [-1, 1] on the model's device, with a progress bar."""
        steps = range(0, len(images), self.batch_size)
        for start in tqdm(steps, title, len(steps), disable=None, leave=False):
            pixels = np.array(images.pixels[start : start + self.batch_size])
            yield to_float(pixels, self.model.device)


@contextmanager
def reasons(absent: dict[str, str], *names: str) -> Iterator[None]:
    """Context manager that turns an error into the reason why the scores `names` are absent.

    It handles input that cannot be measured (ValueError) and insufficient GPU memory.
    """
    try:
        yield
    except (ValueError, torch.OutOfMemoryError) as error:
        absent.update(dict.fromkeys(names, str(error).partition("\n")[0]))
