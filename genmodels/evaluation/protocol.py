"""How a number came to be, and which numbers may stand side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from genmodels import __version__

DEFINITIONS = 1
"""Raised whenever a metric of this package is computed in another way."""
FULL_N = 2_048
"""Distances between fewer images are marked: they say more of n, and less of the images."""
LEAST_N = 256
"""Distances between fewer images are refused."""


@dataclass(frozen=True)
class Protocol:
    """All that a number depends on beside what is measured. Numbers are comparable when their protocols are equal.

    A field that means nothing for a number is None.

    Attributes:
        data: the real images, such as "celeba (18,022 of 202,599 images)".
        split: which of them.
        crop: the named crop of the source images.
        size: side of the compared images in pixels.
        filter: how the source images were resized to it.
        reference: fingerprint of the real images that are compared with.
        n_reference: how many they are.
        n: how many images are measured.
        extractor: the network whose features are compared.
        weights: the first 16 hex digits of the SHA-256 of its weights.
        resize: how it brings images to its own size.
        train: fingerprint and number of the training images that copies are looked for among, or a probe learnt from.
        attributes: those that were measured.
        machine: what a speed was measured on.
        alphabet: of whose symbols a probability is: the weights of the codec that codes are of.
        definitions: version of the metrics' definitions.
    """

    data: str | None = None
    split: str | None = None
    crop: str | None = None
    size: int | None = None
    filter: str | None = None
    reference: str | None = None
    n_reference: int | None = None
    n: int | None = None
    extractor: str | None = None
    weights: str | None = None
    resize: str | None = None
    train: str | None = None
    attributes: str | None = None
    machine: str | None = None
    alphabet: str | None = None
    definitions: int = DEFINITIONS

    @property
    def small(self) -> bool:
        """Whether features of fewer than FULL_N images were compared, on either side."""
        return self.extractor is not None and min(self.n or 0, self.n_reference or self.n or 0) < FULL_N

    def in_words(self) -> str:
        """The fields that are set: "data toyfaces, split valid, ..."."""
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value is not None)


def differences(first: Protocol, second: Protocol) -> dict[str, tuple[Any, Any]]:
    """The fields in which two protocols differ, with both values."""
    one, two = asdict(first), asdict(second)
    return {name: (one[name], two[name]) for name in one if one[name] != two[name]}


def check_equal(measure: str, names: Sequence[str], protocols: Sequence[Protocol]) -> None:
    """Refuse to put numbers of different protocols side by side.

    Args:
        measure: what the numbers are called.
        names: whose numbers they are.
        protocols: theirs, in the same order.

    Raises:
        ValueError: naming the measure, the two and how their protocols differ.
    """
    for name, protocol in zip(names[1:], protocols[1:], strict=True):
        if found := differences(protocols[0], protocol):
            how = "; ".join(f"{field}: {one} and {two}" for field, (one, two) in found.items())
            raise ValueError(
                f"{measure} of {names[0]} and of {name} cannot be compared, their protocols differ ({how}): "
                "evaluate both under one protocol"
            )


def check_count(count: int, what: str) -> None:
    """Refuse a distance between too few images.

    Raises:
        ValueError: when `count` is under LEAST_N.
    """
    if count < LEAST_N:
        raise ValueError(
            f"{what}: {count:,} images are too few, a distance between sets of images needs at least {LEAST_N} "
            f"(and {FULL_N:,} to be worth quoting)"
        )


@cache
def code_version() -> str:
    """Version of this package and 8 hex digits of its source, so that work on the code does not go unnoticed."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"
