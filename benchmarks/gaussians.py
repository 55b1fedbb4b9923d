"""Mode coverage of GANs on 25 Gaussians: the losses of R3GAN and of the original GAN.

    python benchmarks/gaussians.py --out docs/results/gaussians.png

The Gaussians lie on a 5 x 5 grid in the plane. All settings use the same networks, the same initial
weights and the losses of genmodels/gan.py. A sample is good if it is within four standard
deviations of a mode. A mode is covered if it has at least a quarter of the good samples that an
even split of all samples would give it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from genmodels.nn.adversarial import AdversarialLoss, critic_loss, generator_loss, squared_slope
from genmodels.nn.r3gan import GAIN, SLOPE, variance_preserving

SPACING, SPREAD = 2.0, 0.05


def grid(side: int) -> Tensor:
    """Return the means of side x side Gaussians on a grid, (side^2, 2)."""
    return (torch.cartesian_prod(torch.arange(side), torch.arange(side)) - (side - 1) / 2) * SPACING


MODES = grid(5)


@dataclass(frozen=True)
class Setting:
    """Loss, gradient penalty and optimiser of a GAN."""

    name: str
    game: AdversarialLoss
    """Loss of critic and generator."""
    gamma: float
    """Weight of the gradient penalties."""
    betas: tuple[float, float]
    """Betas of Adam."""


SETTINGS = (
    Setting("R3GAN", "relativistic", 0.2, (0.0, 0.99)),
    Setting("R3GAN without penalties", "relativistic", 0.0, (0.0, 0.99)),
    Setting("textbook with penalties", "non-saturating", 0.2, (0.0, 0.99)),
    Setting("textbook", "non-saturating", 0.0, (0.5, 0.999)),
)


class Points(nn.Module):
    """Residual MLP without normalisation, as in R3GAN: (N, inputs) -> (N, outputs)."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.inside, self.outside = nn.ModuleList(), nn.ModuleList()
        for layer in (self.first, self.last):
            variance_preserving(layer)
        for _ in range(depth):
            inside, outside = nn.Linear(width, width), nn.Linear(width, width)
            variance_preserving(inside, GAIN)
            variance_preserving(outside, 0.0)
            self.inside.append(inside)
            self.outside.append(outside)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for inside, outside in zip(self.inside, self.outside, strict=True):
            h = nn.functional.leaky_relu(inside(nn.functional.leaky_relu(x, SLOPE)), SLOPE)
            x = x + outside(h)
        return self.last(nn.functional.leaky_relu(x, SLOPE))


def draw(n: int, modes: Tensor = MODES) -> Tensor:
    """Draw real points (n, 2), divided by the standard deviation of the modes."""
    return (modes[torch.randint(len(modes), (n,))] + SPREAD * torch.randn(n, 2)) / modes.std()


def score(points: Tensor, modes: Tensor = MODES) -> tuple[int, float]:
    """Count the modes that `points` (n, 2) cover, and compute the fraction of good points."""
    distance, mode = torch.cdist(points * modes.std(), modes).min(1)
    good = distance < 4 * SPREAD
    counts = torch.bincount(mode[good], minlength=len(modes))
    return int((counts >= len(points) / len(modes) / 4).sum()), good.float().mean().item()


def train(setting: Setting, steps: int, modes: Tensor = MODES) -> Tensor:
    """Train a generator from seed 0, and return 10,000 samples (N, 2) of its averaged weights."""
    batch, width, depth, lr = 256, 96, 2, 2e-3
    torch.manual_seed(0)
    generator, critic = Points(2, 2, width, depth), Points(2, 1, width, depth)
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimizers = [torch.optim.Adam(network.parameters(), lr, setting.betas) for network in (critic, generator)]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) for optimizer in optimizers]
    for _ in range(steps):
        real, fake = draw(batch, modes).requires_grad_(), generator(torch.randn(batch, 2)).detach().requires_grad_()
        real_score, fake_score = critic(real)[:, 0], critic(fake)[:, 0]
        loss = critic_loss(setting.game, real_score, fake_score)
        if setting.gamma:
            slopes = squared_slope(real, real_score) + squared_slope(fake, fake_score)
            loss = loss + setting.gamma / 2 * slopes.mean()
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()

        fake_score = critic(generator(torch.randn(batch, 2)))[:, 0]
        loss = generator_loss(setting.game, critic(draw(batch, modes))[:, 0].detach(), fake_score)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        average.update_parameters(generator)
        for schedule in schedules:
            schedule.step()
    with torch.no_grad():
        return average(torch.randn(10_000, 2))


def plot(samples: dict[str, Tensor], out: Path) -> None:
    """Draw a panel of real points and one panel for each entry of `samples`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"real": draw(10_000)} | samples
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.5), sharex=True, sharey=True)
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        axis.scatter(*(points[:5000] * MODES.std()).T, s=2, alpha=0.4, linewidths=0)
        modes, good = score(points)
        axis.set_title(f"{name}\n{modes} of 25 modes, {good:.0%} good", fontsize=11)
        axis.set(xlim=(-5.5, 5.5), ylim=(-5.5, 5.5), aspect="equal", xticks=[], yticks=[])
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # more threads do not speed up such small matrices
    samples = {}
    for setting in SETTINGS:
        began = time.monotonic()
        samples[setting.name] = train(setting, args.steps)
        modes, good = score(samples[setting.name])
        print(
            f"{setting.name:24} {modes:2} of 25 modes, {good:6.1%} good, {time.monotonic() - began:.0f} s", flush=True
        )
    if args.out:
        plot(samples, args.out)


if __name__ == "__main__":
    main()
