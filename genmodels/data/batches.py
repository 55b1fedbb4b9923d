"""Training batches in an order that depends only on the seed, and images in file order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from genmodels.data.packed import Packed
from genmodels.data.rows import spread_rows
from genmodels.pictures import to_float
from genmodels.types import Batch, Condition, Noise, Text, mix_seed

Tokenize = Callable[[Sequence[str]], Text]
"""Turns N captions into token ids (N, L)."""


class BatchReader:
    """Reads training batches in random order.

    A batch depends only on (seed, step): not on what was read before, and not on the number of
    processes.

    Image j of step s has position s * batch_size + j in an endless stream. Epoch e of the stream is
    a permutation of the data seeded by (seed, e), so each image occurs once per epoch. Rank r reads
    rows [r * share, (r + 1) * share) of each global batch, share = batch_size / world_size, in
    `accumulate` micro-batches of equal size.

    Args:
        data: data to read, usually one split.
        batch_size: images per optimiser step, over all ranks and micro-batches.
        seed: seed of the order, the flips, the choice of captions, and the noise of each batch.
        rank: index of this process.
        world_size: number of processes.
        accumulate: micro-batches per step and process.
        flip: mirror each image with probability 1/2.
        device: device of the batches. Images are moved there as bytes and converted there.
        tokenize: converts captions to token ids, all padded to one length. If it is given and the
            data have captions, each batch has one caption per image, drawn from its seed, in
            `condition.text`.

    Raises:
        ValueError: if batch_size is not divisible by world_size * accumulate, if there are no
            images, or if `flip` is set and the data have no latents of mirrored images.
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
        tokenize: Tokenize | None = None,
    ):
        if batch_size < 1 or accumulate < 1 or batch_size % (world_size * accumulate):
            raise ValueError(
                f"batch size {batch_size} does not divide by {world_size} processes times {accumulate} micro-batches"
            )
        if len(data) == 0:
            raise ValueError(f"no images to train on in {data.source}")
        if flip and data.latents is not None and data.latents.shape[1] < 2:
            raise ValueError("the latents do not include those of mirrored images: compute them too, or use --no-flip")
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.device = torch.device(device)
        self.tokenize = tokenize
        share = batch_size // world_size
        micro = share // accumulate
        self._rows = [np.arange(micro) + rank * share + part * micro for part in range(accumulate)]
        self._images = np.asarray(data.images)  # (N, H, W, 3), without memmap's cost per access
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, step: int, progress: float) -> list[Batch]:
        """Return this rank's micro-batches of optimiser step `step`.

        Args:
            step: optimiser step, from 0.
            progress: fraction of training completed, in [0, 1]; stored in the batches.
        """
        return [self._micro_batch(rows, step, progress) for rows in self._rows]

    def _micro_batch(self, rows: np.ndarray, step: int, progress: float) -> Batch:
        index, flips = self._lookup(step * self.batch_size + rows)
        noise = Noise([mix_seed(self.seed, step, int(j)) for j in rows], self.device)
        images = to_float(_gather(self._images, index, np.flatnonzero(flips)), self.device)
        attributes = labels = text = latents = features = None
        if self.data.attributes.shape[1]:
            attributes = torch.from_numpy(self.data.attributes[index]).to(self.device).float()  # (n, K)
        if self.data.labels is not None:
            labels = torch.from_numpy(self.data.labels[index]).to(self.device).long()  # (n,)
        if self.data.text is not None and self.tokenize is not None:
            text = self._tokens(self.data.text, self.tokenize, index, noise.seeds)
        if self.data.latents is not None:
            latents = torch.from_numpy(self.data.latents[index, flips.astype(np.int64)]).to(self.device)
        if self.data.features is not None:
            features = torch.from_numpy(self.data.features[index]).to(self.device)
        return Batch(images, noise, Condition(attributes, labels, text), step, progress, latents, features)

    def _tokens(
        self, text: Sequence[tuple[str, ...]], tokenize: Tokenize, index: np.ndarray, seeds: Sequence[int]
    ) -> Text:
        """Tokenize one caption of each image; an image without captions gets the empty string."""
        rows = [text[i] or ("",) for i in index]
        captions = [row[mix_seed(seed) % len(row)] for row, seed in zip(rows, seeds, strict=True)]
        return tokenize(captions).map(lambda tensor: tensor.to(self.device))

    def _lookup(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the image at each position of the stream, and whether it is mirrored."""
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
            # Keep the previous epoch: a batch rarely spans more than two. Older ones can be
            # recomputed.
            self._epochs = {e: kept for e, kept in self._epochs.items() if e == epoch - 1} | {epoch: (order, flips)}
        return self._epochs[epoch]


def image_batches(
    data: Packed,
    batch_size: int = 64,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    spread: bool = False,
) -> Iterator[Tensor]:
    """Yield the images of `data` in order, not mirrored: float (n, 3, H, W) in [-1, 1].

    Args:
        data: data to read.
        batch_size: n; the last batch may be smaller.
        limit: maximum number of images.
        device: device of the images.
        spread: take the images at even intervals from all of `data`, which may be sorted, instead
            of the first ones.
    """
    count = len(data) if limit is None else min(limit, len(data))
    rows = spread_rows(len(data), count) if spread else np.arange(count)
    for start in range(0, count, batch_size):
        yield to_float(np.asarray(data.images)[rows[start : start + batch_size]], device)


def _gather(images: np.ndarray, index: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """Return rows `index` of uint8 (N, H, W, 3); rows `mirrored` of the result are flipped."""
    # numpy copies whole rows quickly and torch flips channels_last bytes quickly: together they are
    # 5 times as fast as either alone.
    batch = images[index]  # (n, H, W, 3)
    rows = torch.from_numpy(batch[mirrored]).permute(0, 3, 1, 2)  # (m, 3, H, W)
    batch[mirrored] = rows.flip(3).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(batch)
