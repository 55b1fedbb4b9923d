"""Conditions: their embedding, and dropping them in training."""

from __future__ import annotations

import pytest
import torch

from genmodels.nn.conditioning import ConditionEmbedding, drop_condition
from genmodels.types import Condition, Noise

CPU = torch.device("cpu")


def test_the_vector_is_the_signed_sum_of_what_is_known() -> None:
    embedding = ConditionEmbedding(3, 4, 8)
    attributes = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    found = embedding(Condition(attributes, torch.tensor([2, -1])), 2, CPU)
    weight, labels = embedding.attributes.weight, embedding.labels.weight
    torch.testing.assert_close(found[0], weight[:, 0] - weight[:, 1] + labels[2])
    assert not found[1].any()
    assert not embedding(Condition(), 2, CPU).any()
    assert ConditionEmbedding(0, 0, 8)(Condition(), 3, CPU).shape == (3, 8)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition(torch.ones(2, 4)), r"attributes of shape \(2, 4\), this model takes \(2, 3\)"),
        (Condition(labels=torch.tensor([0, 4])), "label 4 is not one of the 4 classes"),
    ],
)
def test_other_conditions_are_refused(condition: Condition, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionEmbedding(3, 4, 8)(condition, 2, CPU)
    with pytest.raises(ValueError, match=r"takes \(2, 0\)|without classes"):
        ConditionEmbedding(0, 0, 8)(condition, 2, CPU)


def test_one_label_is_not_that_of_all() -> None:
    with pytest.raises(ValueError, match=r"labels of shape \(1,\), not \(5,\)"):
        ConditionEmbedding(0, 4, 8)(Condition(labels=torch.tensor([2])), 5, CPU)


def test_the_stated_shares_are_dropped() -> None:
    n = 4000
    full = Condition(torch.ones(n, 4), torch.arange(n) % 7)
    dropped = drop_condition(full, Noise.for_images(0, range(n)), everything=0.2, each=0.5)
    kept = dropped.attributes.sum(1)
    gone = dropped.labels < 0
    assert gone.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert not kept[gone].any() and torch.equal(dropped.labels[~gone], full.labels[~gone])
    # Half of the other conditions are kept whole. The rest drop each of four attributes with
    # probability 1/2: a sixteenth of them keeps all four, and a sixteenth keeps none.
    assert (kept[~gone] == 4).float().mean().item() == pytest.approx(0.5 + 0.5 / 16, abs=0.03)
    assert (kept[~gone] == 0).float().mean().item() == pytest.approx(0.5 / 16, abs=0.015)


def test_nothing_dropped_and_everything_dropped() -> None:
    full = Condition(torch.ones(5, 2), torch.arange(5))
    same = drop_condition(full, Noise.for_images(0, range(5)), 0.0, 0.0)
    assert torch.equal(same.attributes, full.attributes) and torch.equal(same.labels, full.labels)
    nothing = drop_condition(full, Noise.for_images(0, range(5)), 1.0, 0.0)
    assert not nothing.attributes.any() and (nothing.labels == -1).all()
