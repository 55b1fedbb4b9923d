"""LPIPS, the learned perceptual distance, for losses and for scores."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def load_lpips(net: Literal["alex", "vgg", "squeeze"] = "alex") -> nn.Module:
    """LPIPS v0.1 (arXiv 1801.03924) from the `lpips` package, frozen; its backbone must be on this machine.

    Call it with two batches (N, 3, H, W) in [-1, 1] for one distance per pair, (N, 1, 1, 1); lower is closer.
    Nothing is downloaded: torchvision's ImageNet weights are looked for where torch.hub keeps its files.

    Raises:
        ValueError: when the package or the weights are absent; the message says how to get them.
    """
    if importlib.util.find_spec("lpips") is None:
        raise ValueError("LPIPS needs the lpips package: pip install 'genmodels[lpips]'")
    import torchvision

    name = BACKBONES[net]
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise ValueError(
            f"LPIPS needs torchvision's {name} weights at {file}: copy the file there, or with internet run "
            f"python -c \"import torchvision; torchvision.models.get_model('{name}', weights='IMAGENET1K_V1')\""
        )
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips still uses torchvision's old spelling of `weights`
        return lpips.LPIPS(net=net, verbose=False).requires_grad_(False).eval()


class PerceptualLoss:
    """Mean LPIPS between images and their reconstructions. Not a module: its frozen network is no part of the model."""

    def __init__(self, net: Literal["alex", "vgg", "squeeze"] = "vgg"):
        self._distance = load_lpips(net)

    def __call__(self, images: Tensor, decoded: Tensor) -> Tensor:
        self._distance.to(images.device)
        return self._distance(images, decoded).mean()
