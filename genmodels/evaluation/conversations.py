"""Conversations about real images."""

from __future__ import annotations

import hashlib

from genmodels.data.batches import DESCRIBE
from genmodels.data.captions import CAPTIONED
from genmodels.data.conversations import Conversation, Turn, from_line, to_line
from genmodels.data.questions import conversations, shares_of
from genmodels.data.rows import spread_rows
from genmodels.evaluation.captions import held_out_captions
from genmodels.evaluation.reference import Reference


def held_out_conversations(reference: Reference, count: int) -> tuple[list[Conversation], str]:
    """Return a conversation about each of `count` images of the reference, evenly spread, and where
    they are from.

    They are the first stored ones; or else ones that are written from the attributes, with phrasings
    that do not occur in training; or else ones whose answers are captions.

    Raises:
        ValueError: if an image has none of these.
    """
    rows = spread_rows(len(reference.images), count)
    names, attributes = reference.attribute_names, reference.attributes
    if reference.conversations is not None:
        stored = [reference.conversations[row] for row in rows]
        if missing := sum(not lines for lines in stored):
            raise ValueError(f"{missing:,} of {len(stored):,} images have no conversation")
        turns, words = [from_line(lines[0]) for lines in stored], "first stored conversation of each image"
    elif attributes is not None and not set(CAPTIONED).isdisjoint(names):
        chosen = attributes[rows]
        shares = shares_of(attributes, names)
        turns = conversations(chosen, names, range(count), [0] * count, 0, shares, "test")
        words = "generated conversations, test split, seed 0"
    else:
        turns = [(Turn(DESCRIBE, text),) for text in held_out_captions(reference, count).texts]
        words = "captions as answers"
    digest = hashlib.sha256("\n".join(map(to_line, turns)).encode()).hexdigest()[:16]
    return turns, f"{words}, {digest} ({count:,})"
