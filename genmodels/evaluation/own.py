"""Metrics that a model reports about itself on held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmodels.conditions import Condition
from genmodels.data.rows import spread_rows
from genmodels.evaluation.captions import held_out_captions
from genmodels.evaluation.classes import known_classes
from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.conversations import held_out_conversations
from genmodels.evaluation.results import Score
from genmodels.modes import evaluating
from genmodels.types import Batch, Noise


def part(context: Context) -> Part:
    """Report `model.measure(batches)` on held-out images, under the names that the model gives.

    Whether a higher or a lower value is better is not known.
    """
    model = context.model
    absent: dict[str, str] = {}
    images, protocol = context.held_out()
    with reasons(absent, f"metrics of {model.kind}"), evaluating(model), torch.inference_mode():
        how, texts = f"reported by {model.kind} itself on held-out images", list[Any]()
        if model.can("converse"):
            texts, origin = held_out_conversations(context.reference, len(images))
        elif model.can("tokenize"):
            captioned = held_out_captions(context.reference, len(images))
            texts, origin = captioned.texts, captioned.origin
        if texts:
            protocol = replace(protocol, text=f"{origin}, in batches of {context.batch_size}")
        values = model.measure(_batches(context, texts))
        return Part({name: Score(float(v), "neither", how, protocol, group="own") for name, v in values.items()})
    return Part(absent=absent)


def _batches(context: Context, texts: Sequence[Any]) -> Iterator[Batch]:
    """Yield held-out images with the attributes and labels that the model is conditioned on, and
    with tokens of their captions or conversations."""
    model, (images, _) = context.model, context.held_out()
    read = model.read_conversations if model.can("converse") else model.tokenize if model.can("tokenize") else None
    columns = _attributes(context, len(images)), _labels(context, len(images))
    start = 0
    for part in context.batches(images, "held-out images"):
        if len(part) == 1 < len(images) and context.model.whole_batch:
            return  # a rest that cannot be compared with anything
        rows = range(start, start + len(part))
        attributes, labels = (None if column is None else column[start : rows.stop] for column in columns)
        text = read(texts[start : rows.stop]) if texts and read else None
        condition = Condition(attributes, labels, text).to(part.device)
        yield Batch(part, Noise.for_images(context.seed, rows, part.device), condition, progress=1.0)
        start = rows.stop


def _labels(context: Context, n: int) -> Tensor | None:
    """Return the classes (n,) of the held-out images in the model's order, if they are known."""
    try:
        held_out = known_classes(context.reference, context.model.conditions).held_out
    except ValueError:
        return None
    return torch.from_numpy(held_out[spread_rows(len(held_out), n)].astype(np.int64))


def _attributes(context: Context, n: int) -> Tensor | None:
    """Return the attributes (n, K) of the held-out images in the model's order; 0 where unknown."""
    reference, names = context.reference, context.model.conditions.attributes
    if not names:
        return None
    values = np.zeros((n, len(names)), np.int8)
    for column, name in enumerate(names):
        if reference.attributes is not None and name in reference.attribute_names:
            known = reference.attributes[:, reference.attribute_names.index(name)]
            values[:, column] = known[spread_rows(len(known), n)]
    return torch.from_numpy(values).float()
