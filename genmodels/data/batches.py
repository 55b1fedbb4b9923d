"""Training batches in an order that depends only on the seed, and images in file order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genmodels.conditions import Condition, Text
from genmodels.data.captions import CAPTIONED, captions
from genmodels.data.conversations import DRAW, IMAGE, Conversation, Turn, from_line
from genmodels.data.encoded import EncodedImages, read_ahead
from genmodels.data.order import Order
from genmodels.data.packed import Packed
from genmodels.data.questions import conversations, shares_of
from genmodels.data.rows import spread_rows
from genmodels.pictures import to_float
from genmodels.types import Batch, Noise, mix_seed, mix_seeds

Tokenize = Callable[[Sequence[str]], Text]
"""Turns N captions into token ids (N, L)."""
ReadConversations = Callable[[Sequence[Conversation]], Text]
"""Turns N conversations into token ids (N, L)."""
DESCRIBE = f"{IMAGE}\nDescribe this picture."
"""Question whose answer is a caption of data without attributes and conversations."""


_FLIPPED = 1 << 20
"""Bytes of images that are mirrored at a time, which fit into the cache of a processor."""


class BatchReader:
    """Reads training batches in random order.

    A batch depends only on (seed, step): not on what was read before, and not on the number of
    processes.

    Image j of step s has position s * batch_size + j in an endless stream. Epoch e of the stream is
    a permutation of the data seeded by (seed, e), so each image occurs once per epoch. Rank r reads
    rows [r * share, (r + 1) * share) of each global batch, share = batch_size / world_size, in
    `accumulate` micro-batches of equal size. If the data have latents, no image is read.

    Args:
        data: data to read, usually one split.
        batch_size: images per optimiser step, over all ranks and micro-batches.
        seed: seed of the order, the flips, the choice of captions, and the noise of each batch.
        rank: index of this process.
        world_size: number of processes.
        accumulate: micro-batches per step and process.
        flip: mirror each image with probability 1/2.
        device: device of the batches. Images are moved there as bytes and converted there.
        tokenize: converts captions to token ids, all padded to one length. If it is given, each
            batch has one caption per image, drawn from its seed, in `condition.text`: a stored one,
            or without any, one that the grammar writes from the attributes, if it knows them.
        converse: converts conversations to token ids. If it is given, each batch has one
            conversation per image, drawn from its seed, in place of captions: a stored one, or one
            that is written from the attributes, or else from a stored caption.
        draws: in half of the conversations, the question is a caption and the answer is the image.
            Images without a caption are left out.
        attributes: names of the attributes in `condition.attributes`; None: all of the data.

    Raises:
        ValueError: if batch_size is not divisible by world_size * accumulate, if there are no
            images, if the data lack one of the attributes, or if `flip` is set and the data have no
            latents of mirrored images.
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
        converse: ReadConversations | None = None,
        draws: bool = False,
        attributes: Sequence[str] | None = None,
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
        self.converse = converse
        self.draws = draws and data.has_captions
        self._shares = shares_of(data.attributes, data.attribute_names) if converse is not None else {}
        self._attributes = data.attribute_columns(data.attribute_names if attributes is None else attributes)
        share = batch_size // world_size
        micro = share // accumulate
        self._rows = [np.arange(micro) + rank * share + part * micro for part in range(accumulate)]
        keyed = data.manifest.get("format", 1) > 1  # runs on older packs keep their order
        self._order = Order(len(data), seed, flip, keyed)
        self._read = read_ahead(data.images, self._read_images)

    def read(self, step: int, progress: float) -> list[Batch]:
        """Return this rank's micro-batches of optimiser step `step`.

        Args:
            step: optimiser step, from 0.
            progress: fraction of training completed, in [0, 1]; stored in the batches.
        """
        read = zip(self._rows, self._read(step), strict=True)
        return [self._micro_batch(rows, *images, step, progress) for rows, images in read]

    def _read_images(self, step: int) -> list[tuple[np.ndarray, np.ndarray, Tensor]]:
        """Return indices, flips and pixels of the images of each micro-batch."""
        return [self._with_pixels(*self._order.at(step * self.batch_size + rows)) for rows in self._rows]

    def _with_pixels(self, index: np.ndarray, flips: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor]:
        if self.data.latents is not None:  # they take the place of the images, which need not be decoded
            return index, flips, _gather(self.data.images, index[:0], index[:0])
        return index, flips, _gather(self.data.images, index, np.flatnonzero(flips))

    def _micro_batch(
        self, rows: np.ndarray, index: np.ndarray, flips: np.ndarray, pixels: Tensor, step: int, progress: float
    ) -> Batch:
        noise = Noise(mix_seeds((self.seed, step), rows), self.device)
        images = to_float(pixels, self.device)
        attributes = labels = text = latents = features = None
        if self._attributes:
            values = self.data.attributes[index][:, self._attributes]
            attributes = torch.from_numpy(values).to(self.device).float()  # (n, K)
        if self.data.labels is not None:
            labels = torch.from_numpy(self.data.labels[index]).to(self.device).long()  # (n,)
        if self.converse is not None:
            text = self.converse(self._conversations(index, noise.seeds))
        elif self.tokenize is not None and self.data.has_captions:
            text = self.tokenize(self._captions(index, noise.seeds))
        if text is not None:
            text = text.map(lambda tensor: tensor.to(self.device))
        if self.data.latents is not None:
            latents = torch.from_numpy(self.data.latents[index, flips.astype(np.int64)]).to(self.device)
        if self.data.features is not None:
            features = torch.from_numpy(self.data.features[index]).to(self.device)
        return Batch(images, noise, Condition(attributes, labels, text), step, progress, latents, features)

    def _conversations(self, index: np.ndarray, seeds: Sequence[int]) -> list[Conversation]:
        """Return one conversation about each image."""
        turns = conversations_of(self.data, index, seeds, self.seed, self._shares)
        if not self.draws:
            return turns
        asked = zip(turns, self._captions(index, seeds), seeds, strict=True)
        return [
            (Turn(DRAW.format(caption), IMAGE),) if caption and mix_seed(seed, 1) % 2 else about
            for about, caption, seed in asked
        ]

    def _captions(self, index: np.ndarray, seeds: Sequence[int]) -> list[str]:
        """Return one caption of each image. If others have stored captions, it may be empty."""
        data = self.data
        if data.text is None:
            return captions(data.attributes[index], data.attribute_names, index.tolist(), seeds, self.seed)
        rows = [data.text[i] or ("",) for i in index]
        return [row[mix_seed(seed) % len(row)] for row, seed in zip(rows, seeds, strict=True)]


def conversations_of(
    data: Packed,
    index: np.ndarray,
    seeds: Sequence[int],
    seed: int,
    shares: Mapping[str, float],
    split: Literal["train", "test"] = "train",
) -> list[Conversation]:
    """Return one conversation about each of some images: a stored one, or one that is written from
    the attributes, or else one whose answer is a stored caption.

    Args:
        data: the images.
        index: numbers of the images, (n,).
        seeds: one seed per image, which chooses the conversation.
        seed: seed of the data.
        shares: share of each attribute, by which questions are balanced.
        split: whose phrasings are used.
    """
    if data.conversations is not None:
        stored = [data.conversations[i] for i in index]
        return [from_line(row[mix_seed(number) % len(row)]) for row, number in zip(stored, seeds, strict=True)]
    if not set(CAPTIONED).isdisjoint(data.attribute_names):
        return conversations(data.attributes[index], data.attribute_names, index.tolist(), seeds, seed, shares, split)
    assert data.text is not None
    captioned = [data.text[i] for i in index]
    return [(Turn(DESCRIBE, row[mix_seed(n) % len(row)]),) for row, n in zip(captioned, seeds, strict=True)]


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
    read = read_ahead(data.images, lambda n: data.images[rows[n * batch_size : (n + 1) * batch_size]])
    for number in range(-(-count // batch_size)):
        yield to_float(read(number), device)


def _gather(images: np.ndarray | EncodedImages, index: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """Return rows `index` of uint8 (N, H, W, 3); rows `mirrored` of the result are flipped."""
    # numpy copies whole rows quickly and torch flips channels_last bytes quickly: together they are
    # 5 times as fast as either alone.
    batch = images[index]  # (n, H, W, 3)
    few = max(1, _FLIPPED // max(1, batch[:1].nbytes))
    for part in (mirrored[start : start + few] for start in range(0, len(mirrored), few)):
        rows = torch.from_numpy(batch[part]).permute(0, 3, 1, 2)  # (m, 3, H, W)
        batch[part] = rows.flip(3).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(batch)
