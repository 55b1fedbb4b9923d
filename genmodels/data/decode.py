"""Decoding of image files into squares of uint8 pixels: crops, conversions, refusals."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FILTER = "lanczos"
"""Name of the resize filter, as recorded in manifests."""

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

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112
# Exceptions that Pillow's readers raise on damaged files.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    MemoryError,
)


class RefusedError(Exception):
    """The file cannot be decoded unambiguously; the message is the reason."""


def known_formats() -> list[str]:
    """Return the accepted formats that this Pillow reads.

    Other formats run programs (EPS) or have no pixels (PDF).
    """
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def decode(file: BinaryIO, crop: str, size: int, aligned: bool, formats: list[str]) -> tuple[np.ndarray, list[str]]:
    """Decode, crop and resize one image.

    Args:
        file: file open for reading.
        crop: name of a crop, see `crop_box`.
        size: side of the result in pixels.
        aligned: whether this is an aligned CelebA image, which has its own crops.
        formats: accepted formats, from `known_formats`.

    Returns:
        uint8 (size, size, 3), and the names of the conversions made ("grey", "palette", "alpha",
        ...).

    Raises:
        RefusedError: if the image cannot be used; the message is the reason.
    """
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 1 << 62):
                raise RefusedError(f"decompression bomb: {image.width} x {image.height} pixels")
            kinds = ["16-bit"] if ";16" in str(image.tile) or image.mode.startswith("I;16") else []
            if getattr(image, "is_animated", False):
                kinds.append("first frame")
            image.load()
            upright: Image.Image = image
            if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
                upright = ImageOps.exif_transpose(image)
                kinds.append("orientation")
            box = crop_box(crop, upright.size, aligned)
            if box[2] - box[0] < size:
                raise RefusedError(
                    f"smaller than the size: its square has {box[2] - box[0]} pixels, the size is {size}"
                )
            picture, converted = to_rgb(upright.crop(box))
    except Image.DecompressionBombError:
        raise RefusedError("decompression bomb") from None
    except UnidentifiedImageError:
        file.seek(0)
        raise RefusedError("not an image" if file.read(1) else "empty file") from None
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:120]
        raise RefusedError(f"truncated or damaged: {reason or type(error).__name__}") from None
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
    elif crop == "centre":
        return
    elif crop.isascii() and crop.isdecimal():
        side = int(crop)
    else:
        raise ValueError(f'unknown crop {crop!r} for a folder: "centre" or a number of pixels, such as "256"')
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


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert an image of any mode to RGB; also return the conversions made.

    Transparent pixels are composited over white, and 16 bits are scaled to 8.

    Raises:
        RefusedError: for floating-point and 32-bit pixels, whose range is unknown.
    """
    kinds = []
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)  # (H, W)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise RefusedError("32-bit pixels have no obvious range")
        # Pillow's own conversion clips at 255 or drops bits, depending on its version.
        image = Image.fromarray(((wide * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))
    if image.mode == "F":
        raise RefusedError("floating-point pixels have no obvious range")
    if image.mode in ("P", "PA"):
        kinds.append("palette")
    if image.mode in ("1", "L", "LA", "La"):
        kinds.append("grey")
    if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        kinds.append(image.mode)
    if image.has_transparency_data:
        kinds.append("alpha")
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return (image if image.mode == "RGB" else image.convert("RGB")), kinds
