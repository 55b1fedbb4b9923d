"""Measure whether the invisible watermark of pictures is read back from PNG and JPEG files.

    python benchmarks/watermark.py

Pictures are toy faces, enlarged where they are larger than 64 px, grids of them, and noise.
"""

from __future__ import annotations

import io
import time

import numpy as np
from imwatermark import WatermarkDecoder
from PIL import Image

from genmodels.data import open_data
from genmodels.pictures import grid
from genmodels.watermark import LEAST_BITS, MARK, METHOD, add_watermark

QUALITIES = (90, 75)


def bits(picture: Image.Image) -> int:
    """Return how many bits of the mark a picture has."""
    decoder = WatermarkDecoder("bits", 8 * len(MARK))
    decoded = decoder.decode(np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:, :, ::-1]), METHOD)
    return int((decoded == np.unpackbits(np.frombuffer(MARK, np.uint8))).sum())


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """Return what a JPEG file of a picture holds."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def main() -> None:
    faces = np.stack([np.asarray(image) for image in open_data("toyfaces", size=64).split("valid").images[:256]])
    noise = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), np.uint8)

    def enlarged(count: int, size: int) -> list[Image.Image]:
        return [Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC) for face in faces[:count]]

    sets = {
        "256 x 256": enlarged(32, 256),
        "512 x 512": enlarged(8, 512),
        "grids of 4 x 4 at 64 px": [grid(faces[i : i + 16]) for i in range(0, 256, 16)],
        "grids of 8 x 8 at 64 px": [grid(faces[i : i + 64]) for i in range(0, 256, 64)],
        "noise, 256 x 256": [Image.fromarray(pixels) for pixels in noise],
    }
    for name, pictures in sets.items():
        began = time.perf_counter()
        marked = [add_watermark(picture) for picture in pictures]
        seconds = (time.perf_counter() - began) / len(pictures)
        files = {"png": marked} | {f"jpeg {q}": [as_jpeg(each, q) for each in marked] for q in QUALITIES}
        read = {kind: sum(bits(each) >= LEAST_BITS for each in copies) for kind, copies in files.items()}
        pairs = zip(marked, pictures, strict=True)
        change = np.mean([np.abs(np.asarray(one, float) - np.asarray(other)).mean() for one, other in pairs])
        most = max(map(bits, pictures))
        print(f"{len(pictures)} of {name}: {read}, unmarked at most {most} bits, change {change:.2f}, {seconds:.2f} s")


if __name__ == "__main__":
    main()
