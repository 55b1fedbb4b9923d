"""Decoding of image files into squares of uint8 pixels: crops, conversions, refusals."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image

from genmodels.image_files import RefusedError, open_image, to_rgb

FILTER = "lanczos"
"""Name of the resize filter, as recorded in manifests."""

PAD = "pad"
"""Name of the crop that keeps the whole image."""

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive."""

CELEBA_SIZE = (178, 218)
"""Width and height of every aligned CelebA image."""
CELEBA_CROPS: dict[str, Box] = {
    "178": (0, 20, 178, 198),
    "148": (15, 35, 163, 183),
    "140": (19, 39, 159, 179),
    "128": (25, 57, 153, 185),
}
"""Named crops of aligned CelebA images, as used in the literature.

"178": the largest centred square; keeps most of the background. The default.
"148": the centred 148 x 148 of DFC-VAE (arXiv 1610.00291) and later VAE libraries.
"140": the centred 140 x 140 of WAE (arXiv 1711.01558), RAE (arXiv 1903.12436) and score SDE (arXiv
2011.13456).
"128": 128 x 128 about (89, 121), from progressive GAN (arXiv 1710.10196) and DDIM (arXiv
2010.02502).
"""


def decode(file: BinaryIO, crop: str, size: int, aligned: bool) -> tuple[np.ndarray, list[str]]:
    """Decode, crop and resize one image.

    Args:
        file: file open for reading and seeking.
        crop: name of a crop, see `crop_box`; or "pad", which makes the image square by a black
            border, and does not enlarge it.
        size: side of the result in pixels.
        aligned: whether this is an aligned CelebA image, which has its own crops.

    Returns:
        uint8 (size, size, 3), and the names of the conversions made ("grey", "palette", "alpha",
        ...).

    Raises:
        RefusedError: if the image cannot be used; the message is the reason.
    """
    upright, kinds = open_image(file)
    if crop == PAD:
        picture, converted = to_rgb(upright)
        return np.asarray(_pad(picture, size)), kinds + converted
    box = crop_box(crop, upright.size, aligned)
    if box[2] - box[0] < size:
        raise RefusedError(f"smaller than the size: its square has {box[2] - box[0]} pixels, the size is {size}")
    picture, converted = to_rgb(upright.crop(box))
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)), kinds + converted


def check_crop(crop: str, size: int, aligned: bool) -> None:
    """Check that the crop is known and at least as large as `size`.

    Raises:
        ValueError: if it is not; the message lists the known crops, or the largest size.
    """
    if size < 8:
        raise ValueError(f"size {size} is too small: images have at least 8 pixels a side")
    if aligned:
        if crop not in CELEBA_CROPS:
            raise ValueError(f"unknown crop {crop!r} for celeba; known: {', '.join(CELEBA_CROPS)}")
        side = CELEBA_CROPS[crop][2] - CELEBA_CROPS[crop][0]
    elif crop in ("centre", PAD):
        return
    elif crop.isascii() and crop.isdecimal():
        side = int(crop)
    else:
        raise ValueError(f'unknown crop {crop!r} for images: "centre", "{PAD}" or a number of pixels, such as "256"')
    if size > side:
        raise ValueError(f"size {size} is larger than the crop {crop!r} ({side} pixels): choose at most --size {side}")


def crop_box(crop: str, shape: tuple[int, int], aligned: bool) -> Box:
    """Return the square that crop `crop` takes from an image of `shape` (width, height).

    Raises:
        RefusedError: if the image is smaller than the crop.
    """
    width, height = shape
    if aligned:
        if shape != CELEBA_SIZE:
            smaller = width < CELEBA_CROPS[crop][2] or height < CELEBA_CROPS[crop][3]
            why = "smaller than the crop: " if smaller else ""
            raise RefusedError(f"{why}{width} x {height} pixels, an aligned CelebA image has 178 x 218")
        return CELEBA_CROPS[crop]
    side = min(shape) if crop == "centre" else int(crop)
    if side > min(shape):
        raise RefusedError(f"smaller than the crop: {width} x {height} pixels, the crop is {side}")
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _pad(image: Image.Image, size: int) -> Image.Image:
    """Return an image in the middle of a black square. It is made smaller if it does not fit."""
    scale = min(1, size / max(image.size))
    shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (size, size))
    place = ((size - shape[0]) // 2, (size - shape[1]) // 2)
    square.paste(image.resize(shape, Image.Resampling.LANCZOS), place)
    return square
