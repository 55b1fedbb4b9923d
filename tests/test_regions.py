"""The known part of an image: how many rows it is, and what stands in for the rest."""

from __future__ import annotations

import pytest
import torch

from genmodels.nn.regions import known_rows, mirrored_below


@pytest.mark.parametrize("rows", [0, 1, 3, 4])
def test_rows_from_the_top_are_counted(rows: int) -> None:
    known = torch.arange(4).unsqueeze(1).expand(4, 3) < rows
    assert known_rows(known, 4, 3) == rows


@pytest.mark.parametrize("odd", [(1, 0), (0, 2)])
def test_anything_else_is_refused(odd: tuple[int, int]) -> None:
    known = torch.arange(4).unsqueeze(1).expand(4, 3).clone() < 1
    known[odd] = not known[odd]
    with pytest.raises(ValueError, match="whole rows from the top"):
        known_rows(known, 4, 3)
    with pytest.raises(ValueError, match=r"must be bool \(4, 4\), got bool \(4, 3\)"):
        known_rows(known, 4, 4)


def test_the_known_rows_upside_down_stand_in_for_the_rest() -> None:
    image = torch.arange(8).view(1, 1, 8, 1).float()
    assert mirrored_below(image, 4).flatten().tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert mirrored_below(image, 3).flatten().tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert mirrored_below(image, 8).flatten().tolist() == list(range(8))
