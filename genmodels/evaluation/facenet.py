"""FaceNet: the embedded feature extractor, a small network trained on procedural faces only."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from genmodels.evaluation.extractors import Network
from genmodels.reading import in_one_line
from genmodels.writing import replacing

WEIGHTS = Path(__file__).parent / "faces.safetensors"
SIZE = 64
"""Side of the input images in pixels."""
WIDTHS = (32, 64, 128, 256)
"""Channels at resolutions of 32, 16, 8 and 4 pixels."""


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and a shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class FaceNet(nn.Module):
    """Convolutional network whose features are the spatial means at four resolutions, of texture
    and content."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 4, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(WIDTHS[0])
        self.blocks = nn.ModuleList([Block(i, o) for i, o in pairwise(WIDTHS)])
        self.register_buffer("mean", torch.zeros(sum(WIDTHS)))
        self.register_buffer("std", torch.ones(sum(WIDTHS)))

    mean: Tensor
    std: Tensor

    def raw(self, images: Tensor) -> Tensor:
        """Compute features (N, 480) of images (N, 3, 64, 64) in [-1, 1], not normalised."""
        x = F.relu(self.stem_norm(self.stem(images)))
        means = [x.mean((2, 3))]
        for block in self.blocks:
            x = block(F.avg_pool2d(x, 2))
            means.append(x.mean((2, 3)))
        return torch.cat(means, dim=1)  # (N, 480)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (N, 480); on training images, those of each resolution have a total
        variance of 1."""
        return (self.raw(images) - self.mean) / self.std

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Scale the features so that those of each resolution have a total variance of 1 on these,
        (N, 480), which `raw` computed."""
        share = torch.cat([torch.full((width,), float(width)) for width in WIDTHS]).to(features)  # (480,)
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp(min=1e-3) * share.sqrt())


def save_facenet(net: FaceNet, path: Path) -> None:
    """Write the weights in half precision: 2.4 MB."""
    halves = {name: value.half() for name, value in net.state_dict().items() if "num_batches" not in name}
    with replacing(path) as draft:
        save_file({name: value.contiguous() for name, value in halves.items()}, draft)


def load_facenet(path: Path | None = None, device: torch.device | str = "cpu") -> tuple[Network, str, str]:
    """Load the network.

    Args:
        path: weights that `save_facenet` wrote, or None for those in the package.
        device: device of the network.

    Returns:
        A function that maps uint8 (N, 3, H, W) to float (N, 480), the hash of the weights, and how
        it resizes images.

    Raises:
        ValueError: if the weights are absent, damaged or of another network.
    """
    path = path or WEIGHTS
    net = FaceNet().eval().requires_grad_(False)
    try:
        data = path.read_bytes()
        weights = load(data)
        net.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
        expected = {name for name in net.state_dict() if "num_batches" not in name}
        if weights.keys() != expected:
            raise RuntimeError(f"{len(expected ^ weights.keys())} tensors are missing or unknown")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such weights of the faces extractor") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = in_one_line(error, 160)
        raise ValueError(f"{path}: not weights of the faces extractor ({reason})") from None
    features, resize = on_pixels(net, SIZE, device)
    return features, hashlib.sha256(data).hexdigest()[:16], resize


def on_pixels(net: FaceNet, size: int, device: torch.device | str) -> tuple[Network, str]:
    """Return the network as a function of uint8 images (N, 3, H, W) of any size, and how it resizes
    them to `size`."""
    net = net.to(device).to(memory_format=torch.channels_last)

    def features(images: Tensor) -> Tensor:
        x = images.float().div(127.5).sub(1)  # (N, 3, H, W)
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return net(x.contiguous(memory_format=torch.channels_last))

    return features, f"bilinear with antialiasing to {size}"
