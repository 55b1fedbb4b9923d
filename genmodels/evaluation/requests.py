"""What conditional samples are asked to show: the attributes of held-out images, or their captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genmodels.conditions import Condition, condition_of
from genmodels.data.captions import CAPTIONED
from genmodels.evaluation.captions import Captioned, captions_of
from genmodels.evaluation.images import Images
from genmodels.evaluation.reference import Reference


@dataclass(frozen=True, eq=False)
class Requested:
    """What n samples should show.

    Attributes:
        rows: numbers (n,) of the held-out images whose attributes or captions were requested.
        names: names of K attributes.
        attributes: what was requested of each sample, int8 (n, K) in {-1, 0, +1}: no, nothing, yes.
            For captions, what they state.
        condition: the condition that was sampled with.
        captions: the captions that were requested, or captions of the attributes.
        images: the samples, once they are drawn.
    """

    rows: np.ndarray
    names: tuple[str, ...]
    attributes: np.ndarray
    condition: Condition
    captions: Captioned
    images: Images | None = None

    @property
    def samples(self) -> Images:
        """The samples."""
        assert self.images is not None
        return self.images


def requested_of(model: Any, reference: Reference, rows: np.ndarray) -> Requested:
    """Request the captions of held-out images, if the model reads text, or their attributes.

    Captions that are written by the grammar are long and begin with templates that do not occur in
    training.

    Raises:
        ValueError: if the model takes neither, or the reference does not know them.
    """
    known, held = reference.attribute_names, reference.attributes
    if model.can("tokenize"):
        text = None if reference.text is None else [reference.text[row] for row in rows]
        captions = captions_of(None if held is None else held[rows], known, text)
        names = tuple(name for name in known if name in CAPTIONED)
        return Requested(
            rows, names, captions.facts(names), condition_of(model, {"prompt": captions.texts}, len(rows)), captions
        )
    names = model.conditions.attributes
    if not names:
        raise ValueError(f"{model.kind} takes neither text nor attributes")
    if held is None or (missing := [name for name in names if name not in known]):
        raise ValueError(f"{reference.images.name} does not know {', '.join(names if held is None else missing)}")
    attributes = held[rows][:, [known.index(name) for name in names]]
    condition = Condition(attributes=torch.from_numpy(attributes).float())
    return Requested(rows, names, attributes, condition, captions_of(attributes, names))
