"""Prior over codes: training with two processes equals training with one, up to rounding.

The tests run this file as a script in each process: `test_latent_processes.py OUTPUT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
from ranks import in_two_processes
from test_fit import assert_equal, lines
from test_latent import encoded, make, make_codec

from genmodels.training.fit import fit


def run(output: Path, accumulate: int = 1) -> Path:
    """One process computes the codes while the other waits."""
    codec = make_codec()
    model = make(codec, ("Smiling", "Male"))
    data = encoded(output.parent / "cache", codec)
    return fit(model, data, tiny.recipe(output, size=16, steps=20, batch_size=8, accumulate=accumulate))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_two_processes(Path(__file__), tmp_path / "two")
    one = run(tmp_path / "one")
    assert_equal(one, tmp_path / "two", tolerance=1e-4)
    for ours, theirs in zip(lines(one), lines(tmp_path / "two"), strict=True):
        assert ours["bits_per_token"] == pytest.approx(theirs["bits_per_token"], rel=1e-4)


if __name__ == "__main__":
    run(Path(sys.argv[1]), accumulate=2)
