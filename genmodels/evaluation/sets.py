"""One set of images against another by the features of one extractor: every measure from features computed once."""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from genmodels.evaluation.distances import check_varied, frechet_distance, kernel_distance
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.features import cache_place, extract, say
from genmodels.evaluation.images import Images
from genmodels.evaluation.neighbours import diversity, manifold
from genmodels.evaluation.protocol import DEFINITIONS
from genmodels.saving import from_dict


@dataclass(frozen=True)
class SetScores:
    """What features say of one set of images beside another; see docs/evaluation.md."""

    fd: float
    kd: float
    kd_error: float
    precision: float
    recall: float
    density: float
    coverage: float
    diversity: float
    diversity_error: float


def compare_sets(images: Images, real: Images, extractor: Extractor, batch_size: int = 64) -> SetScores:
    """All measures of `images` beside `real`.

    They are kept beside the features, under both sets' fingerprints: the floor of real images against real ones is
    computed once and not for every model.

    Raises:
        ValueError: when one of the sets is one image repeated, or features cannot be had; in one line.
    """
    place = cache_place(extractor)
    file = None if place is None else place / f"{images.fingerprint}-{real.fingerprint}-{DEFINITIONS}.json"
    if file is not None and (kept := _read(file)) is not None:
        return kept
    mine = extract(images, extractor, batch_size=batch_size)
    theirs = extract(real, extractor, batch_size=batch_size)
    check_varied(mine, images.name)
    check_varied(theirs, real.name)
    shapes = manifold(theirs, mine)
    scores = SetScores(
        frechet_distance(mine, theirs),
        *kernel_distance(mine, theirs),
        *(shapes.precision, shapes.recall, shapes.density, shapes.coverage),
        *diversity(mine),
    )
    if file is not None:
        with suppress(OSError):  # extract() has said that the folder cannot be written
            draft = file.with_name(f".{uuid.uuid4().hex}.tmp")
            draft.write_text(json.dumps(asdict(scores), allow_nan=False))
            os.replace(draft, file)
    return scores


def _read(file: Path) -> SetScores | None:
    """The numbers kept in `file`; None when there are none, or they are damaged, which is said."""
    try:
        return from_dict(SetScores, json.loads(file.read_text()))
    except OSError:
        return None
    except (ValueError, TypeError):
        say(f"{file} is damaged: computing its numbers again")
        return None
