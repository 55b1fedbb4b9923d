"""Check that the distance of an extractor increases with damage to real faces.

    python benchmarks/extractor_check.py --root PATH --out sets/
    python benchmarks/extractor_check.py --root PATH --samples runs/a.npy --against scores.json

The sets are real faces that are increasingly blurred, noisy, compressed or tinted, whose parts are
increasingly warped, moved, swapped, upside down or of another person, or that show few people or
one attribute only. Each has n images of the training split and is compared with the validation
split. `--out` writes the sets as .npy files for other scorers. `--against` is a JSON
file {"name of set": value} with values of another metric, such as the FD of another network. The
rank correlation of both is then printed.
"""

from __future__ import annotations

import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import spearmanr

from genmodels.data import Packed, open_data
from genmodels.evaluation.distances import frechet_distance, kernel_distance
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images, read_images

SERIES = {
    "blur": ("real", "blur-0.5", "blur-1", "blur-2"),
    "noise": ("real", "noise-5", "noise-15", "noise-40"),
    "JPEG": ("real", "jpeg-75", "jpeg-30", "jpeg-10"),
    "colour shift": ("real", "colour-8", "colour-20", "colour-45"),
    "warped": ("real", "warped-1", "warped-2", "warped-4"),
    "parts moved": ("real", "moved-3", "moved-6", "moved-12"),
    "parts swapped": ("real", "swapped-1", "swapped-2", "swapped-4"),
    "a part upside down": ("real", "flipped-16", "flipped-26", "flipped-40"),
    "halves of two faces": ("real", "mixed-25", "mixed-50", "mixed-100"),
    "few identities": ("real", "identities-100", "identities-10", "identities-1"),
    "one attribute only: Male": ("real", "only-Male"),
    "Smiling": ("real", "only-Smiling"),
    "Eyeglasses": ("real", "only-Eyeglasses"),
    "Blond_Hair": ("real", "only-Blond_Hair"),
}
"""Series of sets. Within a series, the distance to real faces must increase from set to set."""


@dataclass(frozen=True)
class Check:
    """Settings of the check."""

    data: str = "celeba"
    """celeba, or the path of a packed directory with attributes and identities."""
    root: Path | None = None
    """Folder of celeba."""
    size: int = 64
    """Side of the images in pixels."""
    n: int = 1000
    """Number of images in each set."""
    extractor: str = "faces"
    """Extractor, as in genmodels evaluate."""
    samples: tuple[Path, ...] = ()
    """Additional sets, such as samples of models. The first n images of each are used."""
    against: Path | None = None
    """JSON file with values of another metric for the same sets."""
    out: Path | None = None
    """Folder to write the sets to."""
    json: Path | None = None
    """File to write the distances to."""


def main(check: Check) -> None:
    data = open_data(check.data, check.root, check.size)
    sets = damaged(data.split("train"), check.n)
    for path in check.samples:
        sets[path.stem] = np.asarray(read_images(path).pixels[: check.n])
    if check.out:
        check.out.mkdir(parents=True, exist_ok=True)
        for name, pixels in sets.items():
            np.save(check.out / f"{name}.npy", pixels)
    extractor = load_extractor(check.extractor)
    real = extract(Images(data.split("valid").images, "valid"), extractor)
    distances = {}
    print(f"{'set':20} {'FD-' + check.extractor:>10} {'over real':>10} {'KD x 1000':>10}")
    for name, pixels in sets.items():
        features = extract(Images(pixels, name), extractor, progress=False)
        distances[name] = frechet_distance(features, real)
        kernel = 1000 * kernel_distance(features, real)[0]
        ratio = distances[name] / distances["real"]
        print(f"{name:20} {distances[name]:10.4f} {ratio:10.2f} {kernel:10.3f}", flush=True)
    for title, names in SERIES.items():
        values = [distances[name] for name in names]
        print(f"{title}: {'in order' if values == sorted(set(values)) else 'NOT IN ORDER'}")
    if check.json:
        check.json.write_text(json.dumps(distances, indent=2) + "\n")
    if check.against:
        others = json.loads(check.against.read_text())
        both = sorted(distances.keys() & others.keys())
        correlation = spearmanr([distances[name] for name in both], [others[name] for name in both]).statistic
        print(f"rank correlation with {check.against.name} over {len(both)} sets: {correlation:.3f}")


def damaged(faces: Packed, n: int) -> dict[str, np.ndarray]:
    """Build sets of n images each, uint8 (n, S, S, 3), by name.

    They are real faces, the same faces damaged, and other faces of few people or one attribute.

    Raises:
        ValueError: if the data has no identities.
    """
    rng = np.random.default_rng(0)
    images = np.asarray(faces.images)
    real = images[rng.permutation(len(images))[:n]]
    levels = real.astype(np.float64)
    sets = {"real": real}
    for sigma in (0.5, 1, 2):
        sets[f"blur-{sigma}"] = eight_bit(gaussian_filter(levels, (0, sigma, sigma, 0)))
    for sigma in (5, 15, 40):
        sets[f"noise-{sigma}"] = eight_bit(levels + rng.normal(0, sigma, levels.shape))
    for quality in (75, 30, 10):
        sets[f"jpeg-{quality}"] = np.stack([jpeg(image, quality) for image in real])
    for shift in (8, 20, 45):
        sets[f"colour-{shift}"] = eight_bit(levels + np.array([shift, 0, -shift]))

    # A copy, so that the sets below are those of measurements before there were these.
    parts = copy.deepcopy(rng)
    for pixels in (1, 2, 4):
        sets[f"warped-{pixels}"] = np.stack([warp(image, pixels, parts) for image in real])
    for pixels in (3, 6, 12):
        sets[f"moved-{pixels}"] = np.stack([move(image, pixels, parts) for image in real])
    for pairs in (1, 2, 4):
        sets[f"swapped-{pairs}"] = np.stack([swap(image, pairs, parts) for image in real])
    for side in (16, 26, 40):
        sets[f"flipped-{side}"] = np.stack([flip(image, side, parts) for image in real])
    for percent in (25, 50, 100):
        mixed = round(n * percent / 100)
        halves = [mix(*pair, parts) for pair in zip(real[:mixed], np.roll(real, 1, axis=0), strict=False)]
        sets[f"mixed-{percent}"] = np.concatenate([np.stack(halves), real[mixed:]])

    def choose(mask: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(mask)
        return images[rng.choice(rows, n, replace=len(rows) < n)]

    for name in ("Male", "Smiling", "Eyeglasses", "Blond_Hair"):
        sets[f"only-{name}"] = choose(faces.attributes[:, faces.attribute_names.index(name)] == 1)
    if faces.identities is None:
        raise ValueError(f"{faces.source} has no identities: identity_CelebA.txt is missing")
    people, counts = np.unique(faces.identities, return_counts=True)
    most_shown = people[np.argsort(-counts)]
    for count in (1, 10, 100):
        sets[f"identities-{count}"] = choose(np.isin(faces.identities, most_shown[:count]))
    return sets


def warp(image: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Displace the pixels of an image smoothly, by `pixels` of 64 on average (root mean square)."""
    size = len(image)
    shift = gaussian_filter(rng.normal(size=(2, size, size)), (0, size / 13, size / 13), mode="reflect")
    places = np.mgrid[:size, :size] + shift * (pixels * size / 64 / shift.std())  # (2, S, S)
    channels = [map_coordinates(image[..., c].astype(float), places, order=3, mode="reflect") for c in range(3)]
    return eight_bit(np.stack(channels, axis=-1))


def move(image: np.ndarray, pixels: float, rng: np.random.Generator, side: int = 20) -> np.ndarray:
    """Copy a square part of the face, `side` of 64 pixels wide, to a place `pixels` of 64 away."""
    side = side * len(image) // 64
    start, angle = corner(len(image), side, rng), rng.uniform(0, 2 * np.pi)
    step = pixels * len(image) / 64 * np.array([np.sin(angle), np.cos(angle)])
    end = np.clip(np.round(start + step).astype(int), 0, len(image) - side)
    return paste(image, part(image, start, side), end)


def swap(image: np.ndarray, pairs: int, rng: np.random.Generator, side: int = 14) -> np.ndarray:
    """Exchange two square parts of the face, `side` of 64 pixels wide, `pairs` times."""
    side = side * len(image) // 64
    for _ in range(pairs):
        one, two = corner(len(image), side, rng), corner(len(image), side, rng)
        before = image
        image = paste(paste(before, part(before, two, side), one), part(before, one, side), two)
    return image


def flip(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Turn a square part of the face, `side` of 64 pixels wide, upside down."""
    size = len(image)
    side = side * size // 64
    start = np.clip((size - side) // 2 + np.array([size // 16, 0]) + rng.integers(-4, 5, 2), 0, size - side)
    return paste(image, part(image, start, side)[::-1], start)


def mix(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Join the left or upper half of one face and the other half of another, with a seam of 4
    pixels."""
    ramp = np.clip((np.arange(len(first)) - len(first) / 2 + 2) / 4, 0, 1)
    weight = (ramp[:, None, None], ramp[None, :, None])[rng.integers(2)]
    return eight_bit(first * (1 - weight) + second * weight)


def corner(size: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Choose the upper left corner (2,) of a part in the middle three fifths of an image."""
    return rng.integers(size // 5, size - size // 5 - side + 1, 2)


def part(image: np.ndarray, start: np.ndarray, side: int) -> np.ndarray:
    """Return the square part (side, side, 3) at `start`."""
    return image[start[0] : start[0] + side, start[1] : start[1] + side]


def paste(image: np.ndarray, pixels: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return a copy of an image with a square part replaced, blended over 2 pixels at its border."""
    side = len(pixels)
    ramp = np.clip((np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / 2, 0, 1)
    weight = (ramp[:, None] * ramp[None])[..., None]  # (side, side, 1)
    image = image.copy()
    part(image, start, side)[:] = eight_bit(part(image, start, side) * (1 - weight) + pixels * weight)
    return image


def eight_bit(levels: np.ndarray) -> np.ndarray:
    """Round and clip levels to uint8."""
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress an image, uint8 (S, S, 3), as JPEG and decode it again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


if __name__ == "__main__":
    main(tyro.cli(Check, description=__doc__))
