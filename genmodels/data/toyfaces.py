"""Procedural faces: the built-in data set, a pure function of (seed, index, size).

The attributes of a face, and all other numbers that determine it, come from a counter-based hash of
seed and index (`face_traits`); toypaint.py draws it. Nothing is read from disk and no generator has
a state, so the pixels of a face do not depend on which other faces are drawn, or in which order.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from genmodels.data.toypaint import paint
from genmodels.data.toyshapes import Traits, splitmix, uniforms

ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necktie",
    "Young",
)

_CHUNK_PIXELS = 128 * 64 * 64  # drawn at once: the overhead of Python calls costs more than cache misses
_BLOCK = 512  # faces per task of a thread
_SIZES = range(16, 1025)


def draw(seed: int, indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the faces `indices` of seed `seed`.

    Args:
        seed: any integer; each seed gives a different set of faces.
        indices: non-negative integers (N,).
        size: height and width in pixels, 16 to 1024. The same face is drawn at any size.

    Returns:
        Images uint8 (N, size, size, 3), and attributes int8 (N, K) in {-1, +1} in the order of
        ATTRIBUTES.

    Raises:
        ValueError: if indices is not a vector of non-negative integers, or if size is out of range.
    """
    indices = np.asarray(indices)
    if indices.ndim != 1 or (indices.size and (indices.dtype.kind not in "iu" or indices.min() < 0)):
        raise ValueError(
            f"toyfaces: indices must be a vector of non-negative integers, got {indices.dtype} of shape {indices.shape}"
        )
    if size not in _SIZES:
        raise ValueError(f"toyfaces: size must be a whole number from {_SIZES[0]} to {_SIZES[-1]}, got {size}")
    images = np.empty((len(indices), size, size, 3), np.uint8)
    attributes = np.empty((len(indices), len(ATTRIBUTES)), np.int8)

    def work(start: int) -> None:
        block = slice(start, start + _BLOCK)
        traits = face_traits(seed, indices[block])
        attributes[block] = 2 * traits.flags[: len(ATTRIBUTES), :, 0, 0].T - 1
        chunk = max(1, _CHUNK_PIXELS // size**2)
        for first in range(0, len(traits.tone), chunk):
            paint(traits[first : first + chunk], size, out=images[block][first : first + chunk])

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the GIL
        list(pool.map(work, range(0, len(indices), _BLOCK)))
    return images, attributes


def face_traits(seed: int, indices: np.ndarray) -> Traits:
    """Draw attributes with frequencies similar to CelebA's, and uniform numbers for the rest."""
    world = splitmix(np.zeros(1, np.uint64), np.uint64(seed & (2**64 - 1)))
    state = splitmix(world, indices.astype(np.uint64))  # (N,)
    flags, tone = _draw_flags(uniforms(state, 0, 40))
    names = (*ATTRIBUTES, "full beard")
    numbers = uniforms(state, 64, Traits.LAYERS * Traits.NUMBERS)
    planes = np.stack([flags[name] for name in names]).astype(np.float32)[:, :, None, None]
    return Traits(names, planes, tone, numbers[:, :, None, None])


def _draw_flags(numbers: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return attributes by name, each bool (N,), and skin tones (N,), from numbers (40, N)."""
    draws = iter(numbers)

    def chance(probability: np.ndarray | float) -> np.ndarray:
        return next(draws) < probability

    male, young, smiling, tone = chance(0.42), chance(0.76), chance(0.48), next(draws)
    hat, glasses = chance(0.06), chance(np.where(young, 0.07, 0.22))
    bald = male & ~hat & chance(np.where(young, 0.06, 0.2))
    haired = ~bald & ~hat
    receding = haired & chance(np.where(male, np.where(young, 0.08, 0.35), 0.03))
    bangs = haired & ~receding & chance(np.where(male, 0.09, 0.26))
    wavy = haired & chance(np.where(male, 0.16, 0.46))
    straight = haired & ~wavy & chance(0.45)
    gray = ~bald & chance(np.where(young, 0.01, 0.5))
    black = ~bald & ~gray & chance(0.28 + 0.5 * (tone > 0.6))
    blond = ~bald & ~gray & ~black & (tone < 0.6) & chance(np.where(male, 0.15, 0.34))
    brown = ~bald & ~gray & ~black & ~blond & chance(0.62)
    whiskers = next(draws)  # half of the male faces are shaven; the others have one kind of facial hair
    shadow, moustache, goatee, beard = (
        male & (whiskers >= low) & (whiskers < low + 0.125) for low in (0.5, 0.625, 0.75, 0.875)
    )
    mustache = moustache | (goatee & chance(0.5)) | beard
    bushy = chance(np.where(male, 0.3, 0.06))
    chubby = chance(np.where(young, 0.06, 0.16))
    return {
        "5_o_Clock_Shadow": shadow,
        "Arched_Eyebrows": ~bushy & chance(np.where(male, 0.1, 0.44)),
        "Bald": bald,
        "Bangs": bangs,
        "Big_Lips": chance(np.where(male, 0.14, 0.32)),
        "Big_Nose": chance(np.where(male, 0.4, 0.14)),
        "Black_Hair": black,
        "Blond_Hair": blond,
        "Brown_Hair": brown,
        "Bushy_Eyebrows": bushy,
        "Chubby": chubby,
        "Eyeglasses": glasses,
        "Goatee": goatee | (beard & chance(0.3)),
        "Gray_Hair": gray,
        "Male": male,
        "Mouth_Slightly_Open": chance(np.where(smiling, 0.7, 0.24)),
        "Mustache": mustache,
        "Narrow_Eyes": chance(0.14),
        "No_Beard": ~(shadow | mustache | goatee | beard),
        "Oval_Face": ~chubby & chance(np.where(male, 0.2, 0.36)),
        "Pale_Skin": tone < 0.09,
        "Receding_Hairline": receding,
        "Rosy_Cheeks": chance(np.where(male, 0.02, 0.2)),
        "Smiling": smiling,
        "Straight_Hair": straight,
        "Wavy_Hair": wavy,
        "Wearing_Earrings": chance(np.where(male, 0.03, 0.36)),
        "Wearing_Hat": hat,
        "Wearing_Lipstick": ~male & chance(0.66),
        "Wearing_Necktie": male & chance(0.2),
        "Young": young,
        "full beard": beard,  # not an attribute of CelebA, but needed to draw the face
    }, tone
