"""Random views of images with known damage, on which feature extractors are trained."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from genmodels.types import Noise

DAMAGES = ("blur", "coarse pixels", "noise", "compression", "warped", "parts exchanged", "part flipped")
"""What a view can suffer from. The last three leave the texture intact and break the structure."""


def random_view(images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Draw one random view of each image: cut, coloured, textured and damaged.

    Args:
        images: float (N, 3, S, S) in [-1, 1].
        noise: N streams. The view of an image depends on no other image.

    Returns:
        The views, (N, 3, S, S) in [-1, 1], and the strength of each damage in [0, 1], (N, 7).
    """
    some = noise.uniform(len(DAMAGES)) < 0.3
    seen = noise.uniform(len(DAMAGES)) * some  # (N, 7)
    x = F.grid_sample(images, _places(images.shape[2], seen, noise), padding_mode="reflection", align_corners=False)
    # Every channel becomes a mixture of the others, with its own brightness and contrast.
    mixing = 0.25 * (noise.uniform(1, 1) < 0.8) * noise.normal(3, 3) + torch.eye(3, device=x.device)  # (N, 3, 3)
    x = torch.einsum("nij,njhw->nihw", mixing, x) + 0.25 * noise.normal(3, 1, 1)
    # Texture is noise of a random spectrum, at most as strong as the image.
    amount = (noise.uniform(1, 1, 1) < 0.6) * 0.5 * noise.uniform(1, 1, 1)
    x = x + amount * _fractal(x.shape[2], 0.3 + 1.9 * noise.uniform(1, 1, 1), noise)
    # Weak damage is drawn more often than strong damage.
    x = _blurred(x, 2.5 * seen[:, 0] ** 2)
    x = torch.where(some[:, 1, None, None, None], _coarse(x, noise), x)
    seen[:, 1] = some[:, 1].float()
    x = x + 0.3 * seen[:, 2, None, None, None] ** 2 * noise.normal(*x.shape[1:])
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return _compressed(levels, 95 - 90 * seen[:, 3] ** 2) / 127.5 - 1, seen


def _places(size: int, seen: Tensor, noise: Noise) -> Tensor:
    """Return where each pixel of a view is read from, (N, S, S, 2) as (x, y) in [-1, 1].

    Damage to the structure is a displacement within the image, so that it is read only once and not
    blurred further.
    """
    line = (torch.arange(size, device=seen.device) + 0.5) * (2 / size) - 1
    base = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)  # (S, S, 2)
    places = base.expand(len(seen), -1, -1, -1)
    field = F.interpolate(noise.normal(2, 8, 8), size=size, mode="bicubic", align_corners=False)
    places = places + 0.15 * (seen[:, 4] ** 2)[:, None, None, None] * field.permute(0, 2, 3, 1)
    # Two squares are exchanged.
    half = 0.12 + 0.2 * seen[:, 5, None]  # (N, 1), of the side
    one, two = (0.55 * (2 * noise.uniform(2) - 1) for _ in range(2))  # centres, (N, 2)
    for centre, other in ((one, two), (two, one)):
        inside = _inside(base, centre, half * (seen[:, 5, None] > 0))
        places = places + inside * (other - centre)[:, None, None, :]
    # A square is mirrored, upside down or sideways.
    half = 0.2 + 0.4 * seen[:, 6, None]
    centre = 0.4 * (2 * noise.uniform(2) - 1)
    axis = F.one_hot((noise.uniform() < 0.5).long(), 2).to(base.dtype)  # (N, 2)
    inside = _inside(base, centre, half * (seen[:, 6, None] > 0))
    places = places + inside * (2 * axis * centre)[:, None, None, :] - inside * 2 * axis[:, None, None, :] * base
    # Cut: turned, scaled, shifted, mirrored.
    angle, scale = 0.6 * noise.uniform() - 0.3, 0.7 + 0.45 * noise.uniform()
    mirror = (noise.uniform() < 0.5) * 2 - 1
    rows = [torch.stack([mirror * angle.cos(), -angle.sin()], 1), torch.stack([mirror * angle.sin(), angle.cos()], 1)]
    turned = torch.einsum("nij,nhwj->nhwi", torch.stack(rows, 1) * scale[:, None, None], places)
    return turned + (0.4 * noise.uniform(2) - 0.2)[:, None, None, :]


def _inside(base: Tensor, centre: Tensor, half: Tensor) -> Tensor:
    """Return 1 where a pixel is within `half` (N, 1) of `centre` (N, 2), else 0: (N, S, S, 1)."""
    near = (base - centre[:, None, None, :]).abs() < half[:, None, None, :]
    return near.all(dim=-1, keepdim=True).to(base.dtype)


def _fractal(size: int, slope: Tensor, noise: Noise) -> Tensor:
    """Draw noise with amplitude 1 / frequency^slope, of unit variance: (N, 3, S, S)."""
    down, across = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    frequency = (down**2 + across**2).sqrt().clamp(min=1 / size).to(slope.device)
    texture = torch.fft.irfft2(torch.fft.rfft2(noise.normal(3, size, size)) * frequency**-slope, s=(size, size))
    return texture / texture.std((1, 2, 3), keepdim=True)


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Apply a Gaussian blur with its own sigma (N,), in pixels, to each image."""
    size = 2 * images.shape[2]
    down, across = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    square = (down**2 + across**2).to(images.device)
    response = torch.exp(-2 * (math.pi * sigma[:, None, None, None]) ** 2 * square)
    mirrored = torch.cat([images, images.flip(3)], 3)
    mirrored = torch.cat([mirrored, mirrored.flip(2)], 2)  # (N, 3, 2S, 2S): no seam at the border
    blurred = torch.fft.irfft2(torch.fft.rfft2(mirrored) * response, s=(size, size))
    return blurred[:, :, : images.shape[2], : images.shape[3]]


def _coarse(images: Tensor, noise: Noise) -> Tensor:
    """Halve the resolution and enlarge the result, by repetition or smoothly."""
    half = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True, align_corners=False)
    smooth = F.interpolate(half, size=images.shape[2:], mode="bilinear", align_corners=False)
    blocky = F.interpolate(half, size=images.shape[2:], mode="nearest")
    return torch.where(noise.uniform(1, 1, 1) < 0.5, smooth, blocky)


def _compressed(images: Tensor, quality: Tensor) -> Tensor:
    """Compress uint8 (N, 3, S, S) as JPEG; images of quality (N,) 95 stay as they are."""
    result = images.cpu()
    for i in (quality < 95).nonzero().flatten().tolist():
        result[i] = decode_jpeg(encode_jpeg(result[i].contiguous(), int(quality[i])))
    return result.to(images.device)
