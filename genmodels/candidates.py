"""Choice of the best of several candidates for each image. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BestOf:
    """Drawing several candidates for each image and keeping the best one.

    Attributes:
        count: number of candidates, at least 1. Sampling takes `count` times as long, and the
            scores in addition.
        score: maps candidates, uint8 (N, H, W, 3), to one number each, (N,). The highest is kept.
        rule: what `score` is, in words.

    Raises:
        ValueError: if count is less than 1.
    """

    count: int
    score: Callable[[np.ndarray], np.ndarray]
    rule: str = "a score"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"the number of candidates per image must be at least 1, got {self.count}")

    def __str__(self) -> str:
        return f"best of {self.count} by {self.rule}"

    def choose(self, draw: Callable[[int], np.ndarray]) -> np.ndarray:
        """Return the best of the candidates `draw(0)`, ..., `draw(count - 1)` of each image.

        Of candidates with the same score, the first one is kept.
        """
        *_, kept = self.improve(draw)
        return kept

    def improve(self, draw: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the best images among the first candidate, the first two, ..., all `count` of them.

        It is the same array each time, changed in place: copy what should be kept.
        """
        kept = draw(0)
        best = np.array(self.score(kept)) if self.count > 1 else np.zeros(len(kept))
        yield kept
        for candidate in range(1, self.count):
            images = draw(candidate)
            scores = self.score(images)
            better = scores > best
            kept[better], best[better] = images[better], scores[better]
            yield kept
