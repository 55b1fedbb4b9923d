"""BatchReader: order, shares of processes, flips, pixels and labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from genmodels.data.batches import BatchReader, image_batches
from genmodels.data.packed import Packed
from genmodels.types import mix_seed

SIZE = 4


def make_data(n: int, attributes: int = 2) -> Packed:
    """Make images: image i has the value i at its top left, and 200 in its right half."""
    images = np.zeros((n, SIZE, SIZE, 3), np.uint8)
    images[..., 0] = np.arange(n)[:, None, None]
    images[:, :, SIZE // 2 :, 1] = 200
    rows = np.arange(n)[:, None] % np.array([2, 3])[:attributes] - 1  # (n, K)
    names = [f"{i}.png" for i in range(n)]
    splits = np.array([0] * (n - 2) + [1, 2], np.uint8)
    return Packed(images, rows.astype(np.int8), ("A", "B")[:attributes], names, splits)


def which(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def mirrored(images: torch.Tensor) -> list[bool]:
    return (images[:, 1, 0, 0] > 0).tolist()


def test_images_are_the_right_floats_in_channels_last_memory():
    data = make_data(40)
    (batch,) = BatchReader(data, 16, seed=3, flip=False).read(0, 0.25)
    reference = (torch.from_numpy(data.images[which(batch.images)]).double() / 127.5 - 1).permute(0, 3, 1, 2)
    torch.testing.assert_close(batch.images.double(), reference, rtol=0, atol=1e-7)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.step, batch.progress) == (0, 0.25)
    extremes = Packed(
        np.array([0, 255], np.uint8).repeat(12).reshape(2, 2, 2, 3), data.attributes[:2], ("A", "B"), ["", ""],
        np.zeros(2, np.uint8),
    )  # fmt: skip
    black, white = next(iter(image_batches(extremes)))
    assert (black == -1).all()
    assert (white == 1).all()


def test_every_epoch_shows_every_image_once_in_another_order():
    reader = BatchReader(make_data(30), 12, seed=0)
    stream = list(itertools.chain.from_iterable(which(reader.read(step, 0)[0].images) for step in range(5)))
    first, second = stream[:30], stream[30:]
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    assert first != sorted(first)


def test_a_batch_larger_than_the_data_runs_through_epochs():
    reader = BatchReader(make_data(5), 13, seed=0)
    stream = [i for step in range(2) for i in which(reader.read(step, 0)[0].images)]
    for epoch in range(5):
        assert sorted(stream[epoch * 5 : epoch * 5 + 5]) == list(range(5))


def test_the_order_is_a_pure_function_of_seed_and_step():
    reader = BatchReader(make_data(50), 16, seed=7)
    there = [reader.read(step, 0)[0] for step in range(12)]
    for step in (11, 0, 5, 4, 9):
        again = reader.read(step, 0)[0]
        assert torch.equal(again.images, there[step].images)
        assert again.noise.seeds == there[step].noise.seeds == [mix_seed(7, step, j) for j in range(16)]
        assert torch.equal(BatchReader(make_data(50), 16, seed=7).read(step, 0)[0].images, there[step].images)
    other = BatchReader(make_data(50), 16, seed=8).read(0, 0)[0]
    assert which(other.images) != which(there[0].images)


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 4), (2, 2), (4, 2)])
def test_ranks_and_micro_batches_share_the_global_batch(world_size: int, accumulate: int):
    data = make_data(50)
    (whole,) = BatchReader(data, 16, seed=1).read(6, 0)
    parts = [
        part
        for rank in range(world_size)
        for part in BatchReader(data, 16, 1, rank=rank, world_size=world_size, accumulate=accumulate).read(6, 0)
    ]
    assert [len(part.images) for part in parts] == [16 // world_size // accumulate] * (world_size * accumulate)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert [seed for part in parts for seed in part.noise.seeds] == whole.noise.seeds
    attributes = [part.condition.attributes for part in parts if part.condition.attributes is not None]
    assert whole.condition.attributes is not None
    assert torch.equal(torch.cat(attributes), whole.condition.attributes)


def test_flips_mirror_about_half_the_images_and_nothing_else():
    data = make_data(200)
    reader, straight = BatchReader(data, 200, seed=2), BatchReader(data, 200, seed=2, flip=False)
    a, b = reader.read(0, 0)[0].images, straight.read(0, 0)[0].images
    assert which(a) == which(b)
    flips = torch.tensor(mirrored(a))
    assert 80 <= int(flips.sum()) <= 120
    assert not any(mirrored(b))
    assert torch.equal(a[flips], b[flips].flip(3))
    assert torch.equal(a[~flips], b[~flips])
    other = BatchReader(data, 200, seed=2).read(1, 0)[0].images
    assert [m for _, m in sorted(zip(which(a), mirrored(a), strict=True))] != [
        m for _, m in sorted(zip(which(other), mirrored(other), strict=True))
    ]


def test_attributes_stay_with_their_images():
    data = make_data(60)
    (batch,) = BatchReader(data, 32, seed=5).read(3, 0)
    expected = torch.from_numpy(data.attributes[which(batch.images)]).float()
    assert batch.condition.attributes is not None
    assert torch.equal(batch.condition.attributes, expected)
    assert batch.condition.attributes.dtype == torch.float32
    assert BatchReader(make_data(60, attributes=0), 32, seed=5).read(3, 0)[0].condition.attributes is None


def test_reading_leaves_the_data_as_it_was():
    data = make_data(40)
    before = data.images.copy()
    reader = BatchReader(data, 40, seed=0)
    reader.read(0, 0)[0].images.zero_()
    next(iter(image_batches(data))).zero_()
    np.testing.assert_array_equal(data.images, before)


def test_image_batches_come_in_order():
    batches = list(image_batches(make_data(50), batch_size=20, limit=45))
    assert [len(batch) for batch in batches] == [20, 20, 5]
    assert [i for batch in batches for i in which(batch)] == list(range(45))
    assert not any(flag for batch in batches for flag in mirrored(batch))


def test_batch_sizes_that_do_not_divide_are_refused():
    for batch_size, world_size, accumulate in ((10, 4, 1), (10, 1, 3), (12, 4, 2), (0, 1, 1)):
        with pytest.raises(ValueError, match=f"batch size {batch_size} does not divide by {world_size} processes"):
            BatchReader(make_data(20), batch_size, 0, world_size=world_size, accumulate=accumulate)


def test_splits_are_views_and_change_the_fingerprint():
    data = make_data(20)
    train = data.split("train")
    assert len(train) == 18
    assert np.shares_memory(train.images, data.images)
    assert data.split("all") is data
    prints = {data.fingerprint, train.fingerprint, data.split("valid").fingerprint, make_data(21).fingerprint}
    assert len(prints) == 4
    assert make_data(20).split("train").fingerprint == train.fingerprint
    changed = make_data(20)
    changed.images[0, 0, 0, 0] = 9
    assert changed.fingerprint != data.fingerprint
    with pytest.raises(ValueError, match="the 'test' split of images is empty: it holds 18 train"):
        train.split("test")
    with pytest.raises(ValueError, match="unknown split 'val'; known: train, valid, test, all"):
        data.split("val")  # type: ignore[arg-type]
