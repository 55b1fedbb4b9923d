"""Opening image files: known formats, limits, orientation, conversion to RGB. Everything that opens
an image file uses these functions."""

from __future__ import annotations

import errno
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from genmodels.reading import in_one_line, read_bytes

LARGEST_FILE = 1 << 28
"""Largest image file that is read, in bytes."""
LARGEST_IMAGE = 89_478_485
"""Largest number of pixels of an image that is decoded (a square of 9,459 pixels)."""
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Accepted formats. Others run programs (EPS) or have no pixels (PDF)."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"),
)
"""Endings of the names of image files, in lower case. Files are opened whatever their names are;
this is for decisions that are made before they are opened."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its orientation in EXIF."""
_PASSING = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ESTALE)


class RefusedError(Exception):
    """The file cannot be decoded unambiguously; the message is the reason."""


def may_pass(error: BaseException) -> bool:
    """Return whether reading a file failed by an error of the system that a later attempt may not
    meet, such as that of a network disk.

    A file that is damaged or may not be read is left out instead, and so is one whose decoding
    needs too much memory, since damaged sizes look like that.
    """
    return isinstance(error, OSError) and error.errno in _PASSING


def open_image(file: BinaryIO) -> tuple[Image.Image, list[str]]:
    """Decode an image and turn it upright.

    Args:
        file: file open for reading and seeking.

    Returns:
        The first frame, and the names of the conversions made ("16-bit", "first frame",
        "orientation").

    Raises:
        RefusedError: if it is not an image of a known format, is damaged or has too many pixels.
        OSError: if it cannot be read now, see `may_pass`.
    """
    with _header(file) as image:
        kinds = ["16-bit"] if ";16" in str(image.tile) or image.mode.startswith("I;16") else []
        if getattr(image, "is_animated", False):
            kinds.append("first frame")
        if not isinstance(image.info.get("xmp"), bytes):
            image.info.pop("xmp", None)  # Pillow searches it for an orientation
        image.load()
        turn = _TURNS.get(_orientation(image))
        return (image, kinds) if turn is None else (image.transpose(turn), [*kinds, "orientation"])


def stored_pixels(content: bytes) -> np.ndarray:
    """Decode an RGB image that this package has encoded, as it is: uint8 (H, W, 3).

    Raises:
        RefusedError: if it is damaged.
    """
    with _header(io.BytesIO(content)) as image:
        pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise RefusedError(f"it has the mode {image.mode} instead of RGB")
    return pixels


def image_size(file: BinaryIO) -> tuple[int, int]:
    """Return width and height of an image as they are stored, without decoding its pixels.

    Raises:
        RefusedError: see `open_image`.
    """
    with _header(file) as image:
        return image.size


@contextmanager
def image_file(path: Path) -> Iterator[BinaryIO]:
    """Open the file `path` for `open_image`, such that every error in the block names it.

    Raises:
        ValueError: if the file is absent, is not a regular file, or is refused in the block.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about metadata and large images
            yield io.BytesIO(read_bytes(path, LARGEST_FILE))
    except RefusedError as reason:
        raise ValueError(f"{path}: {reason}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def to_rgb(image: Image.Image, background: str = "white") -> tuple[Image.Image, list[str]]:
    """Convert an image of any mode to RGB; also return the conversions made.

    Transparent pixels are composited over `background`, and 16 bits are scaled to 8.

    Raises:
        RefusedError: for floating-point and 32-bit pixels, whose range is unknown.
    """
    kinds = []
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)  # (H, W)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise RefusedError("32-bit pixels have no obvious range")
        # Pillow's own conversion clips at 255 or drops bits, depending on its version.
        image = Image.fromarray(((wide.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))
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
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return (image if image.mode == "RGB" else image.convert("RGB")), kinds


@cache
def _known_formats() -> list[str]:
    """Return the accepted formats that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _header(file: BinaryIO) -> Iterator[ImageFile.ImageFile]:
    """Read the header of an image. Errors of Pillow, also in the block, become refusals."""
    try:
        image = Image.open(file, formats=_known_formats())
        if image.width * image.height > LARGEST_IMAGE:
            raise Image.DecompressionBombError
        yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RefusedError(f"decompression bomb: it has more than {LARGEST_IMAGE:,} pixels") from None
    except UnidentifiedImageError:
        file.seek(0)
        raise RefusedError("not an image of a known format" if file.read(1) else "empty file") from None
    except Exception as error:  # the readers of Pillow raise errors of every kind on damaged files
        if may_pass(error):
            raise
        reason = in_one_line(error, 120)
        raise RefusedError(f"truncated or damaged: {reason or 'it cannot be decoded'}") from None


def _orientation(image: Image.Image) -> int:
    """Return the orientation of a decoded image, 1 (upright) if none is stored.

    No other tag of its EXIF is parsed, as any of them may be damaged.
    """
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception as error:  # what is damaged is the EXIF, not the image
        if may_pass(error):
            raise
        return 1
    return value if type(value) is int else 1
