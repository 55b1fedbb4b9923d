"""LPIPS, a learned perceptual distance, for losses and metrics."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""Maps two batches (N, 3, H, W) in [-1, 1] to one distance per pair, (N,)."""
Net = Literal["alex", "vgg", "squeeze"]
BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def load_lpips(net: Net = "alex", device: torch.device | str = "cpu") -> Distance:
    """Return LPIPS v0.1 (arXiv 1801.03924), frozen and differentiable; lower is closer.

    Nothing is downloaded: torchvision's ImageNet weights must be in the folder of torch.hub.

    Raises:
        ValueError: if the package or the weights are absent; the message says how to get them.
    """
    if importlib.util.find_spec("lpips") is None:
        raise ValueError("LPIPS needs the lpips package: pip install 'genmodels[lpips]'")
    import torchvision

    name = BACKBONES[net]
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        shown = str(file).replace(str(Path.home()), "~")  # the message is stored with results, which may be published
        raise ValueError(
            f"LPIPS needs torchvision's {name} weights at {shown}: copy the file there, or with internet run "
            f"python -c \"import torchvision; torchvision.models.get_model('{name}', weights='IMAGENET1K_V1')\""
        )
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips still uses the deprecated argument of torchvision
        network = lpips.LPIPS(net=net, verbose=False).requires_grad_(False).eval().to(device)

    def distance(images: Tensor, others: Tensor) -> Tensor:
        return network(images.to(device), others.to(device)).flatten()

    return distance


class PerceptualLoss:
    """Mean LPIPS between images and their reconstructions.

    This is not a module, because its frozen network is not part of the model. The network is loaded
    on first use, on the device of the images, so that a trained model can be loaded without it.
    """

    def __init__(self, net: Net = "vgg"):
        self._net = net
        self._distance: Distance | None = None

    def __call__(self, images: Tensor, decoded: Tensor) -> Tensor:
        if self._distance is None:
            self._distance = load_lpips(self._net, images.device)
        return self._distance(images, decoded).mean()
