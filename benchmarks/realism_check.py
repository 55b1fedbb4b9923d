"""Check whether a score of single images finds damaged faces among real ones.

    python benchmarks/realism_check.py --root PATH --out sheets/

Held-out real faces and damaged copies of them are scored by three definitions of realism, compared
with training faces. The table shows the AUC: the probability that a damaged face has a lower score
than a real one, 0.5 by chance. `--samples` adds generated faces: grids that `genmodels sample`
wrote, or sets of images. `--out` writes the faces of each kind with the 16 lowest and the 16
highest scores, for looking at them. They show faces of the data set: do not publish them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import mannwhitneyu

from genmodels.data import open_data
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images, read_images
from genmodels.evaluation.neighbours import Realism
from genmodels.evaluation.reference import spread
from genmodels.pictures import cut_grid, save_grid

RESULTS = Path(__file__).parent.parent / "docs/results"
K = 3


@dataclass(frozen=True)
class Check:
    """Settings of the check."""

    data: str = "celeba"
    """celeba, or the path of a packed directory."""
    root: Path | None = None
    """Folder of celeba."""
    size: int = 64
    """Side of the images in pixels."""
    n: int = 1000
    """Number of held-out faces, and of faces of each kind of damage."""
    reference: int = 5000
    """Number of training faces that they are compared with."""
    extractor: str = "faces"
    """Extractor, as in genmodels evaluate."""
    samples: tuple[Path, ...] = (RESULTS / "gan-30/samples.png", RESULTS / "gan-30/dcgan.png")
    """Generated faces: grids that genmodels sample wrote (.png), or sets of images."""
    out: Path | None = None
    """Folder to write the faces with the lowest and the highest scores to."""


def main(check: Check) -> None:
    data = open_data(check.data, check.root, check.size)
    held_out = data.split("valid")
    rows = np.random.default_rng(0).permutation(len(held_out))[: check.n]
    sets = damaged(np.asarray(held_out.images)[rows])
    for path in check.samples:
        name = f"{path.parent.name}/{path.stem}"
        grid = path.suffix == ".png"
        sets[name] = cut_grid(path, check.size) if grid else np.asarray(read_images(path, check.size).pixels)
    extractor = load_extractor(check.extractor)
    reference = extract(spread(Images(data.split("train").images, "train"), check.reference), extractor)
    features = {name: extract(Images(pixels, name), extractor) for name, pixels in sets.items()}
    realism = Realism(reference, K)
    definitions = {
        "whitened": {name: realism(x) for name, x in features.items()},
        "published": {name: published(x, reference) for name, x in features.items()},
        "ratio": {name: ratio(x, reference) for name, x in features.items()},
    }
    print(f"extractor {extractor.name} {extractor.weights}, {len(reference):,} training faces")
    print(f"{'kind':24}" + "".join(f"{name:>12}" for name in definitions))
    for kind in list(sets)[1:]:
        areas = [auc(scores["real"], scores[kind]) for scores in definitions.values()]
        print(f"{kind:24}" + "".join(f"{area:12.3f}" for area in areas) + f"   ({len(sets[kind]):,} faces)")
    if check.out:
        for name, scores in definitions["whitened"].items():
            order = np.argsort(scores)
            place = check.out / name.replace("/", "-")
            save_grid(f"{place}-lowest.png", sets[name][order[:16]], 8)
            save_grid(f"{place}-highest.png", sets[name][order[::-1][:16]], 8)


def auc(real: np.ndarray, damaged: np.ndarray) -> float:
    """Return the probability that a damaged face scores lower than a real one."""
    return float(mannwhitneyu(real, damaged).statistic / len(real) / len(damaged))


def published(features: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Compute the realism of arXiv 1904.06991, section 5: the largest ratio of radius and distance,
    over the half of the real images with the smaller radii."""
    radii, distances = measured(features, real)
    kept = radii <= radii.median()
    return (radii[kept] / distances[:, kept]).amax(1).numpy()


def ratio(features: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Compute the radius of the k-th nearest real image, divided by the distance from it."""
    radii, distances = measured(features, real)
    nearest = distances.topk(K, largest=False)
    return (radii[nearest.indices[:, -1]] / nearest.values[:, -1]).numpy()


def measured(features: np.ndarray, real: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the radii of real images, (M,), and the distances of images from them, (N, M)."""
    x, y = (torch.from_numpy(part - real.mean(0)) for part in (features, real))
    between = torch.cdist(y, y).fill_diagonal_(math.inf)
    return between.topk(K, largest=False).values[:, -1], torch.cdist(x, y)


def damaged(real: np.ndarray) -> dict[str, np.ndarray]:
    """Return `real`, uint8 (n, S, S, 3), and damaged copies, by kind of damage."""
    rng = np.random.default_rng(1)
    size, half, quarter = real.shape[1], real.shape[1] // 2, real.shape[1] // 4
    levels, others = real.astype(np.float64), np.roll(real, 1, axis=0)
    sets = {"real": real}
    sets["blur, 1 px"] = eight_bit(gaussian_filter(levels, (0, 1, 1, 0)))
    sets["noise, sigma 15"] = eight_bit(levels + rng.normal(0, 15, levels.shape))
    sets["lower half of another"] = np.concatenate([real[:, :half], others[:, half:]], axis=1)
    sets["right half of another"] = np.concatenate([real[:, :, :half], others[:, :, half:]], axis=2)
    sets["halves exchanged"] = np.concatenate([real[:, half:], real[:, :half]], axis=1)
    upper, lower = slice(quarter, half), slice(half, half + quarter)
    middle = slice(quarter, size - quarter)
    swapped = real.copy()
    swapped[:, upper, middle], swapped[:, lower, middle] = real[:, lower, middle], real[:, upper, middle]
    sets["eyes and mouth swapped"] = swapped
    sets["two tiles swapped"] = np.stack([swap_tiles(image, quarter, rng) for image in real])
    sets["warped by up to 4 px"] = np.stack([warp(image, 4 * size / 64, rng) for image in real])
    sets["mean of two faces"] = eight_bit((levels + others) / 2)
    return sets


def swap_tiles(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Exchange two of the 16 tiles of an image, uint8 (S, S, 3)."""
    result = image.copy()
    corners = [divmod(int(tile), 4) for tile in rng.choice(16, 2, replace=False)]
    one, two = (np.s_[y * side : (y + 1) * side, x * side : (x + 1) * side] for y, x in corners)
    result[one], result[two] = image[two], image[one]
    return result


def warp(image: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Move the pixels of an image, uint8 (S, S, 3), smoothly by up to `reach` in each direction."""
    size = len(image)
    shifts = [gaussian_filter(rng.normal(size=(size, size)), size / 10) for _ in range(2)]
    places = [at + reach * s / np.abs(s).max() for at, s in zip(np.mgrid[:size, :size], shifts, strict=True)]
    colours = [map_coordinates(image[..., c].astype(float), places, order=1, mode="nearest") for c in range(3)]
    return eight_bit(np.stack(colours, axis=-1))


def eight_bit(levels: np.ndarray) -> np.ndarray:
    """Round and clip levels to uint8."""
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main(tyro.cli(Check, description=__doc__))
