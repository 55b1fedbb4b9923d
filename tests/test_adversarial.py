"""Adversarial losses and penalties against closed forms, and the augmentation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from genmodels.nn.adversarial import between, critic_loss, generator_loss, squared_slope
from genmodels.nn.augment import augment
from genmodels.types import Noise

REAL, FAKE = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])


def log1pexp(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("game", "critic", "generator"),
    [
        ("relativistic", (log1pexp(-1.5) + log1pexp(4)) / 2, (log1pexp(1.5) + log1pexp(-4)) / 2),
        (
            "non-saturating",
            (log1pexp(-2) + log1pexp(1) + log1pexp(0.5) + log1pexp(3)) / 2,
            (log1pexp(-0.5) + log1pexp(-3)) / 2,
        ),
        ("hinge", ((0 + 2) / 2 + (1.5 + 4) / 2) / 2, -1.75),
        ("wasserstein", 1.75 - 0.5, -1.75),
    ],
)
def test_losses(game, critic: float, generator: float) -> None:
    assert critic_loss(game, REAL, FAKE).item() == pytest.approx(critic)
    assert generator_loss(game, REAL, FAKE).item() == pytest.approx(generator)


def test_the_relativistic_game_sees_differences_only() -> None:
    for loss in (critic_loss, generator_loss):
        torch.testing.assert_close(loss("relativistic", REAL + 7, FAKE + 7), loss("relativistic", REAL, FAKE))


def test_slopes_of_a_linear_critic() -> None:
    """D(x) = w . x + b has gradient w at every image, and d |w|^2 / d w = 2 w."""
    critic = nn.Linear(12, 1)
    images = torch.randn(5, 3, 2, 2, requires_grad=True)
    slopes = squared_slope(images, critic(images.flatten(1))[:, 0])
    torch.testing.assert_close(slopes, critic.weight.square().sum().expand(5))
    slopes.mean().backward()
    torch.testing.assert_close(critic.weight.grad, 2 * critic.weight.detach())


def test_slopes_of_a_quadratic_critic() -> None:
    """D(x) = |x|^2 / 2 has gradient x, different for each image."""
    images = torch.randn(4, 3, 2, 2, requires_grad=True)
    slopes = squared_slope(images, images.square().flatten(1).sum(1) / 2)
    torch.testing.assert_close(slopes, images.square().flatten(1).sum(1))


def test_between() -> None:
    real, fake = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert between(real, fake, torch.tensor([0.25, 0.75])).flatten().tolist() == [0.25, 0.75]


# ---- augmentation ----


def faces(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def noise(n: int = 6, first: int = 0) -> Noise:
    return Noise.for_images(3, range(first, first + n))


def test_no_chance_no_change() -> None:
    assert torch.equal(augment(faces(), noise(), 0.0), faces())


def test_an_image_is_changed_by_itself() -> None:
    whole = augment(faces(), noise(), 1.0)
    assert (whole - faces()).abs().amax((1, 2, 3)).min() > 0.1
    torch.testing.assert_close(augment(faces()[2:4], noise(2, first=2), 1.0), whole[2:4])


def test_each_kind_happens_as_often_as_asked() -> None:
    """A white image is unchanged by saturation. Cutout and shifts replace parts of it by zeros."""
    n = 2000
    images = torch.ones(n, 3, 16, 16)
    changed = augment(images, noise(n), 0.3)
    untouched = (changed == 1).all((1, 2, 3)).float().mean().item()
    assert untouched == pytest.approx(0.7**3, abs=0.04)


def test_translation_moves_whole_pixels_and_cutout_hides_a_square() -> None:
    """Without colour changes, the result consists of shifted pixels of the image, or zeros."""
    images, n = faces(1).expand(400, -1, -1, -1), 400
    u = noise(n).uniform(3, 4)
    chance = 0.4
    only_shift = (u[:, 0, 0] >= chance) & (u[:, 1, 0] < chance) & (u[:, 2, 0] >= chance)
    only_hole = (u[:, 0, 0] >= chance) & (u[:, 1, 0] >= chance) & (u[:, 2, 0] < chance)
    found = augment(images, noise(n), chance)
    shifts = set()
    for image in found[only_shift]:
        rolled = {(i, j): torch.roll(images[0], (i, j), (1, 2)) for i in range(-2, 3) for j in range(-2, 3)}
        inside = image[:, 2:-2, 2:-2]
        (by,) = [by for by, x in rolled.items() if torch.equal(x[:, 2:-2, 2:-2], inside)]
        shifts.add(by)
    assert len(shifts) > 15
    for image in found[only_hole]:
        kept = image == images[0]
        hidden = (~kept).all(0)
        rows, columns = hidden.any(1), hidden.any(0)
        assert torch.equal(hidden, rows[:, None] & columns[None, :]) and (image[:, hidden] == 0).all()
        assert 4 <= rows.sum() <= 8 and 4 <= columns.sum() <= 8  # half of the side, less what is outside
        if not (rows[0] or rows[-1]):
            assert rows.sum() == 8


def test_gradients_pass() -> None:
    images = faces().requires_grad_()
    augment(images, noise(), 1.0).sum().backward()
    assert (images.grad != 0).float().mean() > 0.4
