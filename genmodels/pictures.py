"""Conversion of images to arrays, grids and files.

Images are uint8 (N, H, W, 3) in files, and float (N, 3, H, W) in [-1, 1] in models.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from genmodels.image_files import image_file, open_image, to_rgb
from genmodels.writing import create_array, replacing, replacing_folder

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>'
)
"""XMP metadata of images that a model generated."""


def to_float(images: Tensor | np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Convert uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1] on `device`.

    The result uses channels_last memory, so the permutation copies nothing. Bytes are moved to the
    device and converted there.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    images = images.to(device)
    if images.device.type == "cpu":
        # NumPy asks the system for large pages of memory, and torch does not: a batch of 256 px takes a
        # third of the time.
        floats = torch.from_numpy(np.empty(images.shape, np.float32)).copy_(images)
    else:
        floats = images.float()
    return floats.sub_(127.5).mul_(1 / 127.5).permute(0, 3, 1, 2)  # (N, 3, H, W)


def to_uint8(images: Tensor) -> np.ndarray:
    """Convert float (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3), rounded and clamped."""
    levels = images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().contiguous().numpy()  # (N, H, W, 3)


class ImageList(list[Image.Image]):
    """A list of PIL images of one size that a notebook displays as a grid."""

    @classmethod
    def from_arrays(cls, images: Iterable[np.ndarray]) -> ImageList:
        """Build the list from uint8 images (H, W, 3)."""
        return cls(Image.fromarray(image) for image in images)

    def grid(self, columns: int | None = None) -> Image.Image:
        """Return one image with all of them, row by row; as square as possible by default."""
        return grid(np.stack([np.asarray(image) for image in self]), columns)

    def _repr_png_(self) -> bytes | None:
        if not self:
            return None
        file = io.BytesIO()
        self.grid().save(file, "PNG")
        return file.getvalue()


def animation_frames(legs: np.ndarray) -> np.ndarray:
    """Arrange legs of `sampling.interpolate` as frames of a loop. One leg goes back and forth."""
    if len(legs) == 1:
        return np.concatenate([legs[0], legs[0][-2:0:-1]])
    return legs[:, :-1].reshape(-1, *legs.shape[2:])  # the last frame of a leg is the first of the next one


def side_by_side(walks: np.ndarray) -> np.ndarray:
    """Arrange walks (W, F, H, W, 3) as one animation (F, ..., 3): rows of at most 12 walks, with 2
    pixels of grey between them, which suits light and dark pages."""
    columns = math.ceil(len(walks) / math.ceil(len(walks) / 12))
    missing = -len(walks) % columns
    tiles = np.pad(walks, ((0, missing), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=128)
    tiles = tiles.reshape(-1, columns, *tiles.shape[1:]).transpose(2, 0, 3, 1, 4, 5)  # (F, rows, H, columns, W, 3)
    frames, rows, height, _, width, _ = tiles.shape
    return tiles.reshape(frames, rows * height, columns * width, 3)[:, 1:-1, 1:-1]


def in_pairs(above: np.ndarray, below: np.ndarray, columns: int = 16) -> np.ndarray:
    """Interleave two sets of N images: in a grid, each row of `above` is over its row of `below`.

    The last pair of rows is padded with white images if `columns` does not divide N.
    """
    missing = -len(above) % columns
    white = np.full((missing, *above.shape[1:]), 255, np.uint8)
    rows = [np.concatenate([part, white]).reshape(-1, columns, *above.shape[1:]) for part in (above, below)]
    # (rows, 2, columns, H, W, 3) -> (2 * rows * columns, H, W, 3)
    return np.stack(rows, axis=1).reshape(-1, *above.shape[1:])


def grid(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """Draw uint8 images (N, H, W, 3) into one image on white, as square as possible by default.

    This is torchvision.utils.make_grid, which takes seconds to import.
    """
    if len(images) == 1:
        return Image.fromarray(images[0])
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    tiles = np.pad(images, ((0, -len(images) % columns), (2, 0), (2, 0), (0, 0)), constant_values=255)
    tiles = tiles.reshape(-1, columns, *tiles.shape[1:]).swapaxes(1, 2)  # (rows, H + 2, columns, W + 2, 3)
    rows, height, _, width, _ = tiles.shape
    sheet = tiles.reshape(rows * height, columns * width, 3)
    return Image.fromarray(np.pad(sheet, ((0, 2), (0, 2), (0, 0)), constant_values=255))


def cut_grid(path: str | Path, size: int) -> np.ndarray:
    """Cut a grid that `save_grid` wrote into its images, uint8 (N, size, size, 3).

    Args:
        path: the file.
        size: side of each image in pixels.

    Raises:
        ValueError: if it is not an image file, is not a grid of such images, or holds none.
    """
    with image_file(Path(path)) as file:
        pixels = np.asarray(to_rgb(open_image(file)[0])[0])
    step = size + 2  # 2 pixels before, between and after
    if any(side % step != 2 for side in pixels.shape[:2]):
        raise ValueError(f"{path} is not a grid of images of {size} px")
    rows, columns = (side // step for side in pixels.shape[:2])
    cells = pixels[2:, 2:].reshape(rows, step, columns, step, 3).swapaxes(1, 2)  # (rows, columns, step, step, 3)
    images = cells.reshape(-1, step, step, 3)[:, :size, :size]
    images = images[(images != 255).any(axis=(1, 2, 3))]  # the last row is padded with white
    if len(images) == 0:
        raise ValueError(f"{path} is blank: it holds no images")
    return images


def save_grid(path: str | Path, images: np.ndarray, columns: int | None = None, mark: PngInfo | None = None) -> None:
    """Save `grid(images, columns)` in the format of `path`, atomically, with metadata `mark` in a PNG.
    Missing folders are created."""
    with replacing(Path(path)) as draft:
        grid(images, columns).save(draft, pnginfo=mark)


def generated_by(model: str) -> PngInfo:
    """Return metadata that marks a PNG as generated by a model: IPTC's digital source type "trained
    algorithmic media", which viewers and platforms read, and a description."""
    mark = PngInfo()
    mark.add_text("Description", f"Generated by a {model} model of genmodels")
    mark.add_itxt("XML:com.adobe.xmp", XMP)
    return mark


def save_animation(path: str | Path, images: np.ndarray, milliseconds: int = 80) -> None:
    """Save uint8 images (N, H, W, 3) as a looping animation: a .gif with one palette per frame, or a
    .webp, which is smaller and has all colours."""
    first, *rest = (Image.fromarray(image) for image in images)
    quality = {"quality": 80} if Path(path).suffix == ".webp" else {}
    with replacing(Path(path)) as draft:
        first.save(draft, save_all=True, append_images=rest, duration=milliseconds, loop=0, **quality)


def save_images(path: str | Path, images: np.ndarray, columns: int | None = None, mark: PngInfo | None = None) -> None:
    """Save uint8 images (N, H, W, 3) as an array (.npy), a grid (.png) or a folder of PNG files.

    The file or folder is written as a whole: after a failure, an earlier one is still there.
    `columns` is the number of images in a row of the grid; None: as square as possible. PNG files
    get the metadata `mark`.
    """
    path = Path(path)
    if path.suffix == ".npy":
        with replacing(path) as draft:  # np.save's error on a full disk does not say so
            array = create_array(draft, images.dtype, images.shape)
            array[:] = images
            array.flush()
    elif path.suffix == ".png":
        save_grid(path, images, columns, mark)
    else:
        with replacing_folder(path) as draft:
            for index, image in enumerate(images):
                Image.fromarray(image).save(draft / f"{index:06d}.png", pnginfo=mark)
