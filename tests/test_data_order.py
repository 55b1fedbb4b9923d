"""The order of training images: permutations, computed place by place."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from genmodels.data.order import BLOCK, Order, permuted


@pytest.mark.parametrize("count", [*range(1, 20), 127, 1000, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 65_537])
def test_every_epoch_is_a_permutation(count: int) -> None:
    order = Order(count, 7, flip=True, keyed=True)
    index, _ = order.at(np.arange(3 * count))
    epochs = index.reshape(3, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    if count > 100:
        assert (epochs[0] != epochs[1]).mean() > 0.9 and (epochs[1] != epochs[2]).mean() > 0.9


@pytest.mark.parametrize("keyed", [True, False])
def test_a_place_does_not_depend_on_what_was_read_before(keyed: bool) -> None:
    count = 2 * BLOCK + 17
    places = np.random.default_rng(0).integers(0, 40 * count, 300)
    whole = Order(count, 3, flip=True, keyed=keyed)
    some = [np.array([whole.at(places[i : i + 1])[part][0] for i in range(0, 300, 50)]) for part in (0, 1)]
    fresh = Order(count, 3, flip=True, keyed=keyed).at(places)
    for part in (0, 1):
        np.testing.assert_array_equal(some[part], fresh[part][::50])
    assert (Order(count, 4, flip=True, keyed=keyed).at(places)[0] != fresh[0]).mean() > 0.9


def test_all_orders_of_four_images_are_about_as_frequent() -> None:
    seen = Counter(tuple(Order(4, seed, flip=False, keyed=True).at(np.arange(4))[0].tolist()) for seed in range(4800))
    assert len(seen) == 24
    # Chi-squared with 23 degrees of freedom: above 49.7 once in a thousand.
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 49.7


def test_neighbours_are_unrelated_and_half_of_the_images_are_mirrored() -> None:
    count = 50_000
    index, flips = Order(count, 1, flip=True, keyed=True).at(np.arange(count))
    steps = np.bincount(np.diff(index) % count * 50 // count, minlength=50)
    assert ((steps - count / 50) ** 2 / (count / 50)).sum() < 85.4  # 49 degrees of freedom, once in a thousand
    assert abs(np.corrcoef(index, np.arange(count))[0, 1]) < 0.015
    assert abs(flips.mean() - 0.5) < 0.01 and abs(np.corrcoef(flips[1:], flips[:-1])[0, 1]) < 0.015
    assert not Order(count, 1, flip=False, keyed=True).at(np.arange(100))[1].any()
    other = Order(count, 1, flip=True, keyed=True).at(np.arange(count) + count)[1]
    assert 0.45 < (other[np.argsort(index)] != flips[np.argsort(index)]).mean() < 0.55


def test_numbers_beyond_32_bits_are_permuted() -> None:
    count = (1 << 40) + 12_345
    places = np.arange(count - 1000, count)
    out = permuted(places, count, list(range(8)))
    assert len(set(out.tolist())) == 1000 and 0 <= out.min() <= out.max() < count
    assert out.std() > count / 5
