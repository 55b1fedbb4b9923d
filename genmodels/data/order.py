"""The random order of training images: which image has which place, and which are mirrored."""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch

from genmodels.types import mix_seed

ROUNDS = 8
BLOCK = 4096
"""Places that are computed at once, since NumPy has a cost per call."""
_KEPT = 4
"""Blocks that are kept. A batch rarely touches more."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFT = (np.uint64(30), np.uint64(27), np.uint64(31))


class Order:
    """An endless stream of images. Each epoch is a permutation of all of them.

    The image at a place depends only on the seed, the number of images and the place.

    Args:
        count: number of images.
        seed: seed of the order and of the flips.
        flip: mirror each image with probability 1/2.
        keyed: compute the permutation of an epoch place by place, in constant memory. Otherwise it
            is drawn as a whole, as for data in memory and for packs of format 1.
    """

    def __init__(self, count: int, seed: int, flip: bool, keyed: bool):
        self.count = count
        self.seed = seed
        self.flip = flip
        self.keyed = keyed
        self._length = BLOCK if keyed else count
        self._blocks: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the index of the image at each place of the stream, and whether it is mirrored."""
        epochs, offsets = np.divmod(places, self.count)
        numbers, within = np.divmod(offsets, self._length)
        index, flips = np.empty(len(places), np.int64), np.empty(len(places), bool)
        for epoch, number in dict.fromkeys(zip(epochs.tolist(), numbers.tolist(), strict=True)):
            here = (epochs == epoch) & (numbers == number)
            order, mirrored = self._block(epoch, number)
            index[here], flips[here] = order[within[here]], mirrored[within[here]]
        return index, flips

    def _block(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images and flips of places `number * length` and following ones of an epoch."""
        if (epoch, number) not in self._blocks:
            while len(self._blocks) >= _KEPT:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[epoch, number] = self._keyed(epoch, number) if self.keyed else self._drawn(epoch)
        return self._blocks[epoch, number]

    def _keyed(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        places = np.arange(number * BLOCK, min((number + 1) * BLOCK, self.count))
        mirrored = _hash(places.astype(np.uint64), mix_seed(self.seed, epoch, ROUNDS)) >> np.uint64(63)
        keys = [mix_seed(self.seed, epoch, part) for part in range(ROUNDS)]
        return permuted(places, self.count, keys), mirrored.astype(bool) & self.flip

    def _drawn(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator).numpy()
        flips = (torch.rand(self.count, generator=generator) < 0.5).numpy() & self.flip
        return order, flips


def permuted(places: np.ndarray, count: int, keys: list[int]) -> np.ndarray:
    """Return where a keyed permutation of 0 ... count - 1 takes `places`, as int64.

    A Feistel network over numbers of two digits, of which each round shifts one digit by a hash of
    the other. The digits have the bases a and b with a b >= count; a result that is not below
    `count` goes through the network again (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002). Since a b - count < a, that is rare.

    Args:
        places: numbers below `count`.
        count: number of elements that are permuted.
        keys: an even number of keys, one per round.
    """
    a = isqrt(count - 1) + 1
    b = -(-count // a)
    out = places.astype(np.uint64)
    walking = np.arange(len(out))
    while len(walking):
        left, right = np.divmod(out[walking], np.uint64(b))  # below a, below b
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left = (left + _hash(right, even) % np.uint64(a)) % np.uint64(a)
            right = (right + _hash(left, odd) % np.uint64(b)) % np.uint64(b)
        out[walking] = left * np.uint64(b) + right
        walking = walking[out[walking] >= count]
    return out.astype(np.int64)


def _hash(values: np.ndarray, key: int) -> np.ndarray:
    """Return a 64-bit hash of each value (uint64) under a key: the splitmix64 finaliser."""
    state = (values ^ np.uint64(key)) + _ODD
    for shift, factor in zip(_SHIFT, _MULTIPLY, strict=False):
        state = (state ^ (state >> shift)) * factor
    return state ^ (state >> _SHIFT[2])
