"""How a score was measured, and which scores may be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from genmodels import __version__

DEFINITIONS = 1
"""Version of the definitions of the metrics. It is raised when a metric is computed in another
way."""
FULL_N = 2_048
"""Distances between fewer images are marked, since they depend strongly on n."""
LEAST_N = 256
"""Distances between fewer images are refused."""


@dataclass(frozen=True)
class Protocol:
    """Everything that a score depends on in addition to what is measured.

    Scores are comparable if their protocols are equal. A field that does not apply to a score is
    None.

    Attributes:
        data: the real images, such as "celeba (18,022 of 202,599 images)".
        split: split of the real images.
        crop: name of the crop of the source images.
        size: side of the compared images in pixels.
        filter: filter by which the source images were resized.
        reference: fingerprint of the real images that are compared with.
        n_reference: number of these images.
        n: number of images that are measured.
        extractor: network whose features are compared.
        weights: first 16 hex digits of the SHA-256 of its weights.
        resize: how it resizes images.
        train: fingerprint and number of the training images, for copies and for probes.
        attributes: attributes that were measured.
        classes: classes that were measured.
        text: prompts, or origin and fingerprint of captions, that images were compared with.
        machine: machine on which a speed was measured.
        alphabet: hash of the codec's weights, for a likelihood of its codes.
        definitions: version of the definitions of the metrics.
        version: version of the extractor, if it has several.
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
    classes: str | None = None
    text: str | None = None
    machine: str | None = None
    alphabet: str | None = None
    definitions: int = DEFINITIONS
    version: int | None = None

    @property
    def small(self) -> bool:
        """Whether features of fewer than FULL_N images are compared, on either side."""
        return self.extractor is not None and min(self.n or 0, self.n_reference or self.n or 0) < FULL_N

    def in_words(self) -> str:
        """Return the fields that are set: "data toyfaces, split valid, ..."."""
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value is not None)


def differences(first: Protocol, second: Protocol) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two protocols differ, with both values."""
    one, two = asdict(first), asdict(second)
    return {name: (one[name], two[name]) for name in one if one[name] != two[name]}


def check_equal(measure: str, names: Sequence[str], protocols: Sequence[Protocol]) -> None:
    """Check that scores have the same protocol.

    Args:
        measure: name of the metric.
        names: names of the subjects.
        protocols: protocols of their scores, in the same order.

    Raises:
        ValueError: if they differ; names the metric, the two subjects and the difference.
    """
    for name, protocol in zip(names[1:], protocols[1:], strict=True):
        if different := differences(protocols[0], protocol):
            how = "; ".join(f"{field}: {one} and {two}" for field, (one, two) in different.items())
            raise ValueError(
                f"{measure} of {names[0]} and of {name} cannot be compared, their protocols differ ({how}): "
                "evaluate both under one protocol"
            )


def check_count(count: int, what: str) -> None:
    """Check that there are enough images for a distance between sets.

    Raises:
        ValueError: if `count` is less than LEAST_N.
    """
    if count < LEAST_N:
        raise ValueError(
            f"{what}: {count:,} images are too few, a distance between sets of images needs at least {LEAST_N} "
            f"(and {FULL_N:,} to be worth quoting)"
        )


@cache
def code_version() -> str:
    """Return the version of this package with 8 hex digits of a hash of its source, which show
    local changes."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"
