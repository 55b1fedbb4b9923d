"""Batches whose order is a pure function of (seed, epoch, offset), and image batches in file order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from genmodels.data.packed import Packed
from genmodels.types import Batch, Condition, Noise, mix_seed


class BatchReader:
    """Random batches: the same for the same (seed, step), whatever was read before and however many processes read.

    Image j of step s has stream position s * batch_size + j; epoch e of the stream is a permutation of the data seeded
    by (seed, e), so every image comes once per epoch. Rank r reads rows [r * share, (r + 1) * share) of each global
    batch, share = batch_size / world_size, in `accumulate` equal micro-batches.

    Args:
        data: what to read.
        batch_size: images per optimiser step, over all ranks and micro-batches.
        seed: of order, flips and noise.
        rank: this process.
        world_size: how many processes.
        accumulate: micro-batches per step and process.
        flip: mirror each image with probability 1/2.
        device: where batches are placed; bytes travel, and floats are made there.

    Raises:
        ValueError: when batch_size does not divide by world_size * accumulate, there are no images, or their latents do
            not know the mirrored ones.
    """

    def __init__(
        self,
        data: Packed,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        flip: bool = True,
        device: torch.device | str = "cpu",
    ):
        if batch_size < 1 or accumulate < 1 or batch_size % (world_size * accumulate):
            raise ValueError(
                f"batch size {batch_size} does not divide by {world_size} processes times {accumulate} micro-batches"
            )
        if len(data) == 0:
            raise ValueError(f"no images to train on in {data.source}")
        if flip and data.latents is not None and data.latents.shape[1] < 2:
            raise ValueError(
                "these latents are of the images as they are: compute those of mirrored ones, or use --no-flip"
            )
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.device = torch.device(device)
        share = batch_size // world_size
        micro = share // accumulate
        self._rows = [np.arange(micro) + rank * share + part * micro for part in range(accumulate)]
        self._images = np.asarray(data.images)  # (N, H, W, 3), without the cost of the memmap class at each access
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, step: int, progress: float) -> list[Batch]:
        """This rank's micro-batches of optimiser step `step`: images (n, 3, H, W) in [-1, 1], attributes (n, K)."""
        return [self._micro_batch(rows, step, progress) for rows in self._rows]

    def _micro_batch(self, rows: np.ndarray, step: int, progress: float) -> Batch:
        index, flips = self._lookup(step * self.batch_size + rows)
        noise = Noise([mix_seed(self.seed, step, int(j)) for j in rows], self.device)
        condition = Condition()
        if self.data.attributes.shape[1]:
            attributes = torch.from_numpy(self.data.attributes[index])  # (n, K) int8
            condition = Condition(attributes=attributes.to(self.device).float())
        images = _gather(self._images, index, np.flatnonzero(flips))
        latents = None
        if self.data.latents is not None:
            latents = torch.from_numpy(self.data.latents[index, flips.astype(np.int64)]).to(self.device)
        features = None
        if self.data.features is not None:
            features = torch.from_numpy(self.data.features[index]).to(self.device)
        return Batch(to_float(images, self.device), noise, condition, step, progress, latents, features)

    def _lookup(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which image is at each position of the endless stream, and whether it is mirrored there."""
        epochs, offsets = np.divmod(positions, len(self.data))
        index, flips = np.empty(len(positions), np.int64), np.empty(len(positions), bool)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            order, mirrored = self._epoch(epoch)
            index[here], flips[here] = order[offsets[here]], mirrored[offsets[here]]
        return index, flips

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
            order = torch.randperm(len(self.data), generator=generator).numpy()
            flips = (torch.rand(len(self.data), generator=generator) < 0.5).numpy() & self.flip
            # A batch seldom spans more than two epochs; older ones can be drawn again.
            self._epochs = {e: kept for e, kept in self._epochs.items() if e == epoch - 1} | {epoch: (order, flips)}
        return self._epochs[epoch]


def image_batches(
    data: Packed,
    batch_size: int = 64,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    spread: bool = False,
) -> Iterator[Tensor]:
    """The images of `data` in their order, not mirrored: float (n, 3, H, W) in [-1, 1].

    Args:
        data: what to read.
        batch_size: n; the last batch may be smaller.
        limit: at most this many images.
        device: where they are placed.
        spread: take those evenly from the whole of `data`, which may be sorted by kind; else from its beginning.
    """
    count = len(data) if limit is None else min(limit, len(data))
    rows = np.arange(count) * len(data) // max(1, count) if spread else np.arange(count)
    for start in range(0, count, batch_size):
        yield to_float(torch.from_numpy(np.asarray(data.images)[rows[start : start + batch_size]]), device)


def to_float(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1] on `device`, in channels_last memory (no copy)."""
    return images.to(device).float().sub_(127.5).mul_(1 / 127.5).permute(0, 3, 1, 2)  # (N, 3, H, W)


def _gather(images: np.ndarray, index: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """Rows `index` of uint8 (N, H, W, 3), those at places `mirrored` flipped left to right."""
    # numpy moves whole rows, torch has the vectorised flip for channels_last bytes: 5 times as fast as either alone.
    batch = images[index]  # (n, H, W, 3)
    rows = torch.from_numpy(batch[mirrored]).permute(0, 3, 1, 2)  # (m, 3, H, W)
    batch[mirrored] = rows.flip(3).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(batch)
