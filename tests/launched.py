"""Script that the tests of several processes run in each of them: `launched.py OUTPUT`."""

from __future__ import annotations

import sys
from pathlib import Path

from tiny import Tiny, TinyPair, faces, recipe, tiny, tiny_experts

from genmodels.training.fit import fit

if __name__ == "__main__":
    output = Path(sys.argv[1])
    for kind, accumulate in ((Tiny, 1), (TinyPair, 2)):
        fit(tiny(kind), faces(), recipe(output / kind.family, accumulate=accumulate, sample_every=20))
    for choice in ("tokens", "experts"):
        fit(tiny_experts(choice), faces(), recipe(output / choice, sample_every=20))
