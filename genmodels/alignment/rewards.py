"""Rewards: functions of images, and of their prompts, that choose between samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from genmodels.evaluation.clip_score import SCALE
from genmodels.evaluation.embedder import embed_texts
from genmodels.evaluation.extractors import Extractor, load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.probe import LEAST, Probe
from genmodels.evaluation.realism import most_realistic
from genmodels.evaluation.reference import Reference
from genmodels.usage import say

KINDS = ("attribute=NAME", "attribute=NAME=no", "clip=RUN", "realism")
"""What `--reward` takes."""


@dataclass(frozen=True)
class Reward:
    """A function that is higher for images that are preferred.

    Attributes:
        score: maps uint8 (N, H, W, 3), and their N prompts, to one number each, (N,).
        rule: what it is, in words.
        judge: hash of the weights of the network that it looks at images with.
        reads_prompts: whether every image needs a prompt.
        decides: whether images with a positive reward are those that are wanted.
    """

    score: Callable[[np.ndarray, Sequence[str]], np.ndarray]
    rule: str
    judge: str
    reads_prompts: bool = False
    decides: bool = False


def check_reward(spec: str) -> tuple[str, str]:
    """Return the kind of a reward, and what follows the equals sign.

    Raises:
        ValueError: if there is no such reward.
    """
    kind, _, rest = spec.partition("=")
    if kind not in ("attribute", "clip", "realism") or (kind == "realism") == bool(rest):
        raise ValueError(f"--reward {spec}: expected one of {', '.join(KINDS)}")
    return kind, rest


def load_reward(spec: str, real: Callable[[], Reference], extractor: str, device: object) -> Reward:
    """Return the reward that `spec` names.

    Args:
        spec: see `KINDS`.
        real: opens real images of the model's size, for attribute and realism.
        extractor: extractor whose features these two look at (`load_extractor`).
        device: device of the network.

    Raises:
        ValueError: if there is no such reward, or the real images do not allow it.
    """
    kind, rest = check_reward(spec)
    if kind == "clip":
        return clip_reward(load_extractor(f"clip={rest}", device))  # type: ignore[arg-type]
    network = load_extractor(extractor, device)  # type: ignore[arg-type]
    if kind == "attribute":
        return attribute_reward(rest, real(), network)
    reference = real()
    best = most_realistic(2, reference.train or reference.images, network)
    return Reward(lambda images, _: best.score(images), best.rule, network.weights)


def attribute_reward(spec: str, real: Reference, extractor: Extractor) -> Reward:
    """Return the output of a linear probe of an attribute, positive where it is more likely than not.

    Args:
        spec: NAME, or NAME=no for images without it.
        real: real images with attributes. The probe is fitted to the training images.
        extractor: the features.

    Raises:
        ValueError: if the images do not have the attribute, or too few with or without it.
    """
    name, _, value = spec.partition("=")
    if value not in ("", "yes", "no"):
        raise ValueError(f"--reward attribute={spec}: write attribute={name}, or attribute={name}=no")
    sign = -1.0 if value == "no" else 1.0
    images, attributes = real.train, real.train_attributes
    if images is None or attributes is None:
        images, attributes = real.images, real.attributes
    if attributes is None or name not in real.attribute_names:
        known = ", ".join(real.attribute_names) or "none"
        raise ValueError(f"--reward attribute={name}: {images.name} has no such attribute; known: {known}")
    column = real.attribute_names.index(name)
    truth = attributes[:, column]
    for word, wanted in (("with", 1), ("without", -1)):
        if (count := int((truth == wanted).sum())) < LEAST:
            raise ValueError(f"{images.name} has {count} images {word} {name}, {LEAST} are needed for a probe")
    probe = Probe(extract(images, extractor)[truth != 0], truth[truth != 0])
    if images is not real.images and real.attributes is not None:
        held = real.attributes[:, column]
        right = np.sign(probe(extract(real.images, extractor))) == held
        if min((held == 1).sum(), (held == -1).sum()) > 0:
            accuracy = (right[held == 1].mean() + right[held == -1].mean()) / 2
            say(f"the probe of {name} has a balanced accuracy of {accuracy:.3f} on {real.images.name}")

    def score(pixels: np.ndarray, _: Sequence[str]) -> np.ndarray:
        features = extract(Images(pixels, "samples"), extractor, progress=False, cached=False)
        return sign * probe(features)

    wanted_as = f"{name}={value or 'yes'}"
    rule = f"attribute {wanted_as} (probe of {extractor.name}, {images.name})"
    return Reward(score, rule, extractor.weights, decides=True)


def clip_reward(extractor: Extractor) -> Reward:
    """Return the CLIP-score of an image with its own prompt (arXiv 2104.08718).

    Raises:
        ValueError: if the extractor does not embed sentences.
    """
    if extractor.sentences is None:
        raise ValueError("--reward clip: give the run folder of a clip, as clip=runs/clip, which embeds sentences too")

    def score(pixels: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        images = extract(Images(pixels, "samples"), extractor, progress=False, cached=False)
        return SCALE * (images * embed_texts(list(prompts), extractor)).sum(1)

    return Reward(score, f"CLIP-score ({extractor.name})", extractor.weights, reads_prompts=True)
