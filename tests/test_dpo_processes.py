"""DPO: training with two processes equals training with one, up to rounding.

The test runs this file as a script in each process: `test_dpo_processes.py OUTPUT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ranks import in_two_processes
from test_autoregressive import randomised
from test_dpo import PIXELS, dpo_recipe, pairs_of
from test_fit import assert_equal, lines

import genmodels
from genmodels.alignment.training import train_dpo


def run(output: Path) -> Path:
    given = {"run": output.parent / "parent", "pairs": (output.parent / "pairs",)}
    return train_dpo(dpo_recipe(output, steps=20, accumulate=2, **given))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    randomised(PIXELS).save_pretrained(tmp_path / "parent")
    pairs_of(genmodels.load(tmp_path / "parent"), tmp_path / "pairs")
    in_two_processes(Path(__file__), tmp_path / "two")
    one = run(tmp_path / "one")
    assert_equal(one, tmp_path / "two", tolerance=1e-4)
    for ours, theirs in zip(lines(one), lines(tmp_path / "two"), strict=True):
        for name in ("loss", "margin", "kl"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
