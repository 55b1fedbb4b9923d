"""Invisible watermark of generated pictures, by the library invisible-watermark (extra watermark).

The 72 bits of `MARK` are repeated over the picture, in singular values of blocks of its wavelet
transform (method dwtDctSvd). It survives PNG and JPEG, but no crop and no resize, and a white
picture cannot hold it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

MARK = b"genmodels"
METHOD = "dwtDctSvd"
"""Method of the library. Of its default, dwtDct, the mark of most pictures cannot be read back."""
LEAST_PIXELS = 256 * 256
"""Number of pixels that the library needs."""
LEAST_BITS = 60
"""Bits of `MARK` that a marked picture has at least. Of random bits 36 agree on average, and 60 with a
probability of 1e-9; those of smooth pictures vary more (docs/text-to-image.md)."""


def check_size(width: int, height: int) -> None:
    """Raise ValueError if a picture is too small for a watermark, or the library is not installed."""
    _library()
    if width * height < LEAST_PIXELS:
        raise ValueError(
            f"--watermark needs pictures of at least 256 x 256 pixels, and this one has {width} x {height}: write "
            "more or larger images into one PNG grid, or rely on the metadata of the PNG files, which mark them anyway"
        )


def add_watermark(picture: Image.Image) -> Image.Image:
    """Return an RGB picture with the watermark.

    Raises:
        ValueError: if it is too small, or the library is not installed.
    """
    check_size(*picture.size)
    encoder = _library().WatermarkEncoder()
    encoder.set_watermark("bytes", MARK)
    return Image.fromarray(encoder.encode(_bgr(picture), METHOD)[:, :, ::-1])


def has_watermark(picture: Image.Image) -> bool:
    """Return whether a picture has the watermark.

    Raises:
        ValueError: if the library is not installed.
    """
    library = _library()
    if picture.width * picture.height < LEAST_PIXELS:
        return False
    decoder = library.WatermarkDecoder("bits", 8 * len(MARK))
    expected = np.unpackbits(np.frombuffer(MARK, np.uint8))
    return int((decoder.decode(_bgr(picture), METHOD) == expected).sum()) >= LEAST_BITS


def _bgr(picture: Image.Image) -> np.ndarray:
    """Return the pixels (H, W, 3) in the order of OpenCV, which the library uses."""
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:, :, ::-1])


def _library() -> Any:
    try:
        import imwatermark
    except ImportError:
        raise ValueError("a watermark needs invisible-watermark: pip install 'genmodels[watermark]'") from None
    return imwatermark
