"""The native size of images: the side at which they are packed without being scaled."""

from __future__ import annotations

import warnings
from typing import Final

from genmodels.data.decode import CELEBA_CROPS, PAD
from genmodels.data.source import Source
from genmodels.image_files import RefusedError, image_size, may_pass

NATIVE: Final = "native"
"""Name of this size."""


def native_size(source: Source, crop: str, aligned: bool) -> int:
    """Return the side of the squares that `crop` takes from the images, in pixels.

    With the crop "pad" it is the longest side of any image. With "centre" all images must be
    squares of one size. Only the headers of the files are read. Those that are not images are left
    out, as they are in packing.

    Args:
        source: the images.
        crop: name of the crop.
        aligned: whether they are aligned CelebA images, which have their own crops.

    Raises:
        ValueError: if they have several sizes, or there is no image.
    """
    if aligned:
        left, _, right, _ = CELEBA_CROPS[crop]
        return right - left
    if crop.isdecimal():
        return int(crop)
    first: dict[tuple[int, int], str] = {}
    for i, name in enumerate(source.names):
        if (shape := _shape(source, i)) is not None:
            first.setdefault(shape, name)
        if crop != PAD and (len(first) > 1 or any(width != height for width, height in first)):
            held = " and ".join(f"{name} has {width} x {height}" for (width, height), name in first.items())
            raise ValueError(
                f"{source.where}: --size {NATIVE} needs square images of one size, but {held} pixels: "
                f"choose a size, such as --size 64, or --crop {PAD}"
            )
    if not first:
        raise ValueError(f"no usable image in {source.where}: {len(source.names):,} files, none readable")
    return max(map(max, first))


def _shape(source: Source, index: int) -> tuple[int, int] | None:
    """Return width and height of an image, or None if it cannot be read."""
    try:
        # Images with too many pixels are refused; Pillow's warning about them adds nothing.
        with warnings.catch_warnings(), source.reader.open(index) as file:
            warnings.simplefilter("ignore")
            return image_size(file)
    except (RefusedError, OSError) as error:
        if may_pass(error):
            raise
        return None
