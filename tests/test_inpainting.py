"""Known part of an image: its number of rows, and the padding of the unknown part."""

from __future__ import annotations

import pytest
import torch

from genmodels.inpainting import continued, known_cells, known_rows


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


def rows(n: int, size: int) -> torch.Tensor:
    return (torch.arange(size) < n).unsqueeze(1).expand(size, size)


def test_the_known_part_mirrored_stands_in_for_the_rest() -> None:
    image = torch.arange(8).view(1, 1, 8, 1).expand(1, 1, 8, 8).float()
    assert continued(image, rows(4, 8), 8)[0, 0, :, 0].tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert continued(image, rows(3, 8), 8)[0, 0, :, 0].tolist() == [0, 1, 2, 2, 1, 0, 2, 2]  # then the nearest row
    assert torch.equal(continued(image, rows(8, 8), 8), image)
    assert not continued(image, rows(0, 8), 8).any()


def test_what_is_unknown_leaves_no_trace() -> None:
    known = torch.ones(8, 8, dtype=torch.bool)
    known[2:5, 3:7] = False
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    other = torch.where(known, image, 7.0)
    assert torch.equal(continued(image, known, 8), continued(other, known, 8))
    assert torch.equal(continued(image, known, 8)[..., known], image[..., known])
    with pytest.raises(ValueError, match=r"must be bool \(8, 8\), got bool \(4, 8\)"):
        continued(image, known[:4], 8)


def test_a_cell_is_known_when_all_its_pixels_are() -> None:
    known = torch.ones(8, 8, dtype=torch.bool)
    known[3, 7] = False
    assert known_cells(known, (2, 2)).tolist() == [[True, False], [True, True]]
    assert known_cells(rows(5, 8), (4, 4))[:, 0].tolist() == [True, True, False, False]
