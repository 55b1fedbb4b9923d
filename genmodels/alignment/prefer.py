"""Sampling pairs of images, choosing by a reward, and measuring how far a model has moved."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genmodels.alignment.page import page
from genmodels.alignment.pairs import (
    PAGE,
    PERSON,
    PREVIEW,
    Pairs,
    Record,
    conditions_of,
    digest,
    identical,
    source_of,
    stored,
)
from genmodels.alignment.rewards import Reward
from genmodels.conditions import Condition, condition_of
from genmodels.pictures import in_pairs, save_grid, to_uint8
from genmodels.safety import checking
from genmodels.sampling import require
from genmodels.stopping import image_progress
from genmodels.types import Noise
from genmodels.writing import replacing_folder, write_text

SHOWN = 32
"""Number of pairs of the preview."""
MOST_CHOSEN = 1_000
"""Largest number of pairs on a page for a person."""
VALUES = 2**27
"""Largest number of values of the samples of one side, which are held in memory."""


@dataclass(frozen=True)
class Request:
    """What is sampled.

    Attributes:
        n: number of images, or of pairs.
        seed: seed of the noise. Image i of `sample` is the first of pair i.
        condition: attributes and label, as `ConditionConfig.condition` takes them.
        prompts: sentences, which the images are conditioned on in turn; none for no text.
        options: sampling options.
        batch_size: number of images computed at a time.
    """

    n: int
    seed: int = 0
    condition: Mapping[str, Any] | None = None
    prompts: Sequence[str] = ()
    options: Mapping[str, Any] | None = None
    batch_size: int = 64

    def of(self, model: Any, rows: range) -> tuple[Condition, list[int] | None, list[str]]:
        """Return the condition of some images, and the numbers and texts of their prompts."""
        given = dict(self.condition or {})
        if not self.prompts:
            return condition_of(model, given, len(rows)), None, []
        numbers = [row % len(self.prompts) for row in rows]
        texts = [self.prompts[number] for number in numbers]
        return condition_of(model, given | {"prompt": texts}, len(rows)), numbers, texts


def draw(
    model: Any, request: Request, candidate: int, rows: range, condition: Condition, checked: Callable[[Tensor], Tensor]
) -> tuple[Tensor, np.ndarray]:
    """Sample images of a request: what `model.trained` samples, (n, *shape), and uint8 pixels."""
    noise = Noise.for_images(request.seed, rows, model.device, candidate)
    options = model.options(**(request.options or {}))
    samples = model.trained.sample(noise, condition.to(model.device), options)
    images = samples if model.trained is model else model.decode(samples)
    return samples, to_uint8(checked(images))


def batches(request: Request) -> Iterator[range]:
    """Yield the images of a request, a batch at a time."""
    for start in range(0, request.n, request.batch_size):
        yield range(start, min(start + request.batch_size, request.n))


@torch.inference_mode()
def make_pairs(model: Any, request: Request, reward: Reward | None, out: Path) -> Pairs:
    """Sample pairs, choose by a reward, and write the folder `out`.

    Pairs whose samples are identical, or have equal rewards, are left out.

    Args:
        model: the model, on the device it should run on.
        request: what is sampled.
        reward: what chooses; None writes a page for a person to choose on.
        out: new or empty folder.

    Raises:
        ValueError: if no pair is left, or the samples are too large to be held in memory.
    """
    require(model, "sample")
    parts: list[Pairs] = []
    shown: list[np.ndarray] = []
    rewards: list[np.ndarray] = []
    record = _record(model, request, reward)
    with checking(model) as checked, image_progress(2 * request.n, "sampling pairs") as bar:
        for rows in batches(request):
            condition, numbers, texts = request.of(model, rows)
            sides = [draw(model, request, candidate, rows, condition, checked) for candidate in (0, 1)]
            if not parts and (values := request.n * sides[0][0][0].numel()) > VALUES:
                raise ValueError(f"{request.n:,} pairs hold {values:,} values a side, at most {VALUES:,}: lower --n")
            samples = torch.stack([stored(samples, model) for samples, _ in sides], 1)  # (n, 2, *shape)
            pixels = np.stack([images for _, images in sides], 1)  # (n, 2, H, W, 3)
            scores = np.stack([reward.score(images, texts) for _, images in sides], 1) if reward else None
            if scores is not None:
                if not np.isfinite(scores).all():
                    raise ValueError(f"{reward.rule if reward else ''}: a reward of images {rows} is not finite")
                order = np.argsort(-scores, 1, kind="stable")  # (n, 2), the chosen one first
                each = np.arange(len(rows))[:, None]
                samples, pixels, scores = samples[each, order], pixels[each, order], scores[each, order]
            pairs = Pairs(record, samples[:, 0], samples[:, 1], **conditions_of(condition, numbers))
            kept = ~identical(pairs)
            if scores is not None:
                kept &= torch.from_numpy(scores[:, 0] > scores[:, 1])
                rewards.append(scores[kept.numpy()])
            parts.append(pairs.take(kept))
            missing = (SHOWN if reward else request.n) - sum(map(len, shown))
            shown.append(pixels[kept.numpy()][: max(0, missing)])
            bar.update(2 * len(rows))
    pairs = joined(parts, request.n, np.concatenate(rewards) if rewards else None)
    _write(pairs, np.concatenate(shown), out)
    return pairs


def _record(model: Any, request: Request, reward: Reward | None) -> Record:
    """Return what pairs record about how they are made."""
    weights, codec = source_of(model)
    options = {
        name: str(value) if isinstance(value, Path) else value for name, value in (request.options or {}).items()
    }
    judges = (reward.judge,) if reward and reward.judge != "unknown" else ()
    rule = reward.rule if reward else PERSON
    return Record(weights, codec, model.kind, rule, judges, request.seed, options, tuple(request.prompts), 0, 0)


def joined(parts: Sequence[Pairs], asked: int, rewards: np.ndarray | None) -> Pairs:
    """Join batches of pairs.

    Args:
        parts: the batches.
        asked: number of pairs that were sampled.
        rewards: of the pairs that are left, (N, 2).

    Raises:
        ValueError: if no pair is left.
    """
    columns: dict[str, Any] = {
        name: None if part is None else torch.cat([pairs.tensors()[name] for pairs in parts])  # type: ignore[misc]
        for name, part in parts[0].tensors().items()
    }
    pairs = replace(parts[0], **columns)
    if not len(pairs):
        raise ValueError(
            f"no pair is left of {asked:,}: the two samples of each are identical or have equal rewards; sample with "
            "other options, such as a higher --temperature"
        )
    means = () if rewards is None else tuple(float(mean) for mean in rewards.mean(0))
    return replace(pairs, record=replace(pairs.record, count=len(pairs), left_out=asked - len(pairs), rewards=means))


def _write(pairs: Pairs, shown: np.ndarray, out: Path) -> None:
    """Write the folder of pairs, as a whole. `shown` are pixels (n, 2, H, W, 3)."""
    with replacing_folder(out) as draft:
        pairs.save(draft)
        if pairs.record.reward == PERSON:
            images = [[_png(side) for side in pair] for pair in shown]
            prompts = [] if pairs.prompt is None else [pairs.record.prompts[i] for i in pairs.prompt.tolist()]
            write_text(draft / PAGE, page(images, prompts, digest(pairs)))
        else:
            columns = min(len(shown), 16)
            save_grid(draft / PREVIEW, in_pairs(shown[:, 0], shown[:, 1], columns), columns)


def _png(pixels: np.ndarray) -> str:
    """Return pixels (H, W, 3) as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class Distance:
    """How a model differs from the one that it started from. Errors are standard errors.

    Attributes:
        reward, before: mean reward of samples of the model, and of the other one.
        reward_error, before_error: their errors.
        positive, positive_before: fraction of samples with a positive reward.
        kl: KL divergence of the model from the other one in nats, log p - log p_ref on samples of the
            model; None for a model without probabilities.
        kl_error: its error.
    """

    reward: float
    reward_error: float
    positive: float
    before: float
    before_error: float
    positive_before: float
    kl: float | None
    kl_error: float | None


@torch.inference_mode()
def distance(model: Any, reference: Any, request: Request, reward: Reward) -> Distance:
    """Compare rewards of samples of two models, and estimate the KL divergence between them.

    Raises:
        ValueError: if they have other codecs, or do not sample images.
    """
    for each in (model, reference):
        require(each, "sample")
    if source_of(model)[1] != source_of(reference)[1]:
        raise ValueError("the two models have different codecs, so that their samples cannot be compared")
    known = all(each.trained.can("log_probability") for each in (model, reference))
    scores: list[list[np.ndarray]] = [[], []]
    ratios: list[Tensor] = []
    with checking(model) as checked, checking(reference) as other:
        for rows in batches(request):
            condition, _, texts = request.of(model, rows)
            samples, images = draw(model, request, 0, rows, condition, checked)
            scores[0].append(reward.score(images, texts))
            scores[1].append(reward.score(draw(reference, request, 0, rows, condition, other)[1], texts))
            if known:
                given = condition.to(model.device)
                both = [each.trained.log_probability(samples, given) for each in (model, reference)]
                ratios.append(both[0] - both[1])
    after, before = (np.concatenate(each) for each in scores)
    kl = torch.cat(ratios).cpu().double().numpy() if known else None
    return Distance(
        *(float(after.mean()), _error(after), float((after > 0).mean())),
        *(float(before.mean()), _error(before), float((before > 0).mean())),
        *((None, None) if kl is None else (float(kl.mean()), _error(kl))),
    )


def _error(values: np.ndarray) -> float:
    """Return the standard error of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
