"""Train the embedded feature extractor behind FD-faces, on procedural faces alone.

python recipes/extractors/faces.py --output faces.safetensors
genmodels evaluate RUN --extractors faces=faces.safetensors        (in place of the weights in the package)

Three lessons at once, all from pictures that formulas drew: which attributes a face has; which two views show the same
face, however they were cut, coloured and damaged (SimCLR, arXiv 2002.05709); and how much each view was blurred,
speckled, coarsened and compressed, so that the features notice what metrics of images must notice. The views are
roughened with random colours and textures, since the faces that the network will be asked about were not painted.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torchvision.io import decode_jpeg, encode_jpeg

from genmodels.cli.arguments import check_free
from genmodels.data.toyfaces import ATTRIBUTES, draw
from genmodels.evaluation.facenet import SIZE, WIDTHS, FaceNet, save_facenet

DAMAGES = 4
"""Blur, coarse pixels, noise, compression."""


@dataclass(frozen=True)
class Training:
    """How the extractor is trained."""

    output: Path = Path("faces.safetensors")
    """The weights to write."""
    force: bool = False
    """Overwrite an existing file."""
    minutes: float = 27.0
    """Wall-clock time of the training."""
    faces: int = 65_536
    """How many procedural faces are drawn."""
    batch_size: int = 128
    """Faces per step, each seen in two views."""
    lr: float = 3e-3
    """Highest learning rate; it rises over 5 % of the time and falls along a cosine."""
    seed: int = 1
    """Of everything random. The faces are of another world than the data set's, which has seed 0."""


class Lessons(nn.Module):
    """The network with its three heads. Only the network is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.net = FaceNet()
        self.normalise = nn.BatchNorm1d(sum(WIDTHS), affine=False)
        self.attributes = nn.Linear(sum(WIDTHS), len(ATTRIBUTES))
        self.damages = nn.Linear(sum(WIDTHS), DAMAGES)
        self.project = nn.Sequential(
            nn.Linear(WIDTHS[-1] + WIDTHS[-2], 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64)
        )

    def loss(self, views: Tensor, attributes: Tensor, strengths: Tensor) -> dict[str, Tensor]:
        """The three losses on (2N, 3, 64, 64): first all first views, then all second ones."""
        features = self.normalise(self.net.raw(views).float())  # (2N, D)
        z = F.normalize(self.project(features[:, -(WIDTHS[-1] + WIDTHS[-2]) :]), dim=1)  # (2N, 64)
        similar = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
        partner = torch.arange(len(z)).roll(len(z) // 2)
        return {
            "same face": F.cross_entropy(similar, partner),
            "attributes": F.binary_cross_entropy_with_logits(self.attributes(features), attributes.repeat(2, 1)),
            "damage": F.mse_loss(self.damages(features), strengths),
        }


def roughen(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """One random view of each image, and how much of each damage it got, in [0, 1]: (N, 3, 64, 64), (N, 4)."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=rng)

    def some(probability: float) -> Tensor:
        return (torch.rand(n, generator=rng) < probability).float()

    # Cut: turned, scaled, shifted, mirrored.
    angle, scale = uniform(-0.3, 0.3, n), uniform(0.7, 1.15, n)
    mirror = some(0.5) * 2 - 1
    rows = [torch.stack([mirror * scale * angle.cos(), -scale * angle.sin(), uniform(-0.2, 0.2, n)], 1)]
    rows.append(torch.stack([mirror * scale * angle.sin(), scale * angle.cos(), uniform(-0.2, 0.2, n)], 1))
    grid = F.affine_grid(torch.stack(rows, 1), [n, 3, SIZE, SIZE], align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    # Coloured: every channel a mixture of the others, with its own brightness and contrast.
    mixing = torch.eye(3) + some(0.8)[:, None, None] * 0.25 * torch.randn(n, 3, 3, generator=rng)
    x = torch.einsum("nij,njhw->nihw", mixing, x) + 0.25 * torch.randn(n, 3, 1, 1, generator=rng)
    # Textured: noise of a random spectrum, as strong as the picture at most.
    texture = fractal(n, uniform(0.3, 2.2, n), rng)
    x = x + (some(0.6) * uniform(0.0, 0.5, n))[:, None, None, None] * texture
    # Damaged, in a fixed order, slightly more often than strongly.
    seen = uniform(0, 1, n, DAMAGES) * torch.stack([some(0.35) for _ in range(DAMAGES)], 1)  # (N, 4)
    x = blur(x, 2.5 * seen[:, 0] ** 2)
    x = torch.where((seen[:, 1] > 0)[:, None, None, None], coarse(x, rng), x)
    seen[:, 1] = (seen[:, 1] > 0).float()
    x = x + 0.3 * seen[:, 2, None, None, None] ** 2 * torch.randn(x.shape, generator=rng)
    x = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    x = compress(x, 95 - 90 * seen[:, 3] ** 2)
    return x / 127.5 - 1, seen


def fractal(n: int, slope: Tensor, rng: torch.Generator) -> Tensor:
    """Coloured noise with amplitude 1 / frequency^slope, of unit variance: (N, 3, 64, 64)."""
    down, across = torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None]
    frequency = (down**2 + across**2).sqrt().clamp(min=1 / SIZE)
    spectrum = torch.fft.rfft2(torch.randn(n, 3, SIZE, SIZE, generator=rng))
    noise = torch.fft.irfft2(spectrum * frequency ** -slope[:, None, None, None], s=(SIZE, SIZE))
    return noise / noise.std((1, 2, 3), keepdim=True)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a sigma in pixels of its own for each image, in the frequency domain."""
    down, across = torch.fft.fftfreq(2 * SIZE)[:, None], torch.fft.rfftfreq(2 * SIZE)[None]
    response = torch.exp(-2 * (math.pi * sigma[:, None, None, None]) ** 2 * (down**2 + across**2))
    mirrored = torch.cat([images, images.flip(3)], 3)
    mirrored = torch.cat([mirrored, mirrored.flip(2)], 2)  # (N, 3, 128, 128): no seam at the border
    return torch.fft.irfft2(torch.fft.rfft2(mirrored) * response, s=(2 * SIZE, 2 * SIZE))[:, :, :SIZE, :SIZE]


def coarse(images: Tensor, rng: torch.Generator) -> Tensor:
    """Half the resolution, enlarged again: by repetition for some, smoothly for the others."""
    half = F.avg_pool2d(images, 2)
    smooth = F.interpolate(half, size=SIZE, mode="bilinear", align_corners=False)
    blocky = F.interpolate(half, size=SIZE, mode="nearest")
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5, smooth, blocky)


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """uint8 (N, 3, 64, 64) through JPEG; those of quality 95 stay as they are."""
    for i in (quality < 95).nonzero().flatten():
        images[i] = decode_jpeg(encode_jpeg(images[i].contiguous(), int(quality[i])))
    return images


def main(training: Training) -> None:
    try:
        check_free(training.output, training.force, ".safetensors")
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    if training.minutes <= 0:
        raise SystemExit(f"--minutes must be above 0, got {training.minutes}")
    torch.manual_seed(training.seed)
    rng = torch.Generator().manual_seed(training.seed)
    pixels, attributes = draw(training.seed, np.arange(training.faces), SIZE)
    lessons = Lessons().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(lessons.parameters(), lr=training.lr, weight_decay=0.02, betas=(0.9, 0.98))
    began, step, news = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - began) / (60 * training.minutes)) < 1:
        rows = torch.randint(training.faces, (training.batch_size,), generator=rng).numpy()
        images = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2) / 127.5 - 1  # (N, 3, 64, 64)
        (first, one), (second, two) = roughen(images, rng), roughen(images, rng)
        for group in optimizer.param_groups:
            group["lr"] = training.lr * min(done / 0.05, 0.5 + 0.5 * math.cos(math.pi * done))
        views = torch.cat([first, second]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            losses = lessons.loss(views, (torch.from_numpy(attributes[rows]) > 0).float(), torch.cat([one, two]))
        loss = losses["same face"] + 2 * losses["attributes"] + 8 * losses["damage"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lessons.parameters(), 5.0)
        optimizer.step()
        step += 1
        if done > news:
            news += 0.05
            said = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
            print(f"{done:4.0%} step {step:,}: {said}", flush=True)
    save_facenet(settle(lessons.net, pixels[:8192], rng), training.output)
    print(f"{training.output}: {training.output.stat().st_size / 1e6:.2f} MB after {step:,} steps")


@torch.inference_mode()
def settle(net: FaceNet, pixels: np.ndarray, rng: torch.Generator) -> FaceNet:
    """Scale the features by their spread over roughened views, so that every resolution weighs the same in a distance.

    Over plain faces, what only damage excites would hardly vary, and a little blur would outweigh everything else.
    """
    net.eval()
    parts = []
    for part in torch.from_numpy(pixels).split(256):
        parts.append(net.raw(roughen(part.permute(0, 3, 1, 2) / 127.5 - 1, rng)[0]))
    features = torch.cat(parts)
    share = torch.cat([torch.full((width,), float(width)) for width in WIDTHS])  # (D,)
    net.mean.copy_(features.mean(0))
    net.std.copy_(features.std(0).clamp(min=1e-3) * share.sqrt())
    return net


if __name__ == "__main__":
    main(tyro.cli(Training, description=__doc__))
