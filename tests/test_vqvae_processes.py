"""VQ-VAE: training with two processes equals training with one, up to rounding.

This includes codebooks, restarts of dead codes and the adaptive weight. The tests run this file as
a script in each process: `test_vqvae_processes.py OUTPUT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ranks import in_two_processes
from test_fit import assert_equal, lines, tensors
from test_vqvae import KINDS, Restarting, run

TRAINED = {
    "residual-gan": (KINDS["residual"] | KINDS["gan"] | {"discriminator_start": 0.2}, 2),
    "cosine": (KINDS["cosine"] | {"gradient": "rotation"}, 1),
}
"""Models that are trained, and their number of micro-batches in each process."""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_two_processes(Path(__file__), tmp_path / "two")
    for name, (model, _) in TRAINED.items():
        one, two = run(tmp_path / "one" / name, Restarting, model), tmp_path / "two" / name
        assert_equal(one, two, tolerance=1e-4)
        for ours, theirs in zip(lines(one), lines(two), strict=True):
            assert ours.keys() == theirs.keys()
            for metric in {"loss", "perplexity", "model/loss", "model/usage", "discriminator/loss"} & ours.keys():
                assert ours[metric] == pytest.approx(theirs[metric], rel=1e-3), metric
    trained = tensors(tmp_path / "two" / "residual-gan")["model.safetensors"]
    assert trained["balance.value"] > 0
    assert all(trained[f"quantiser.codebooks.{level}.codebook"].abs().max() < 100 for level in range(3))


if __name__ == "__main__":
    for name, (model, accumulate) in TRAINED.items():
        run(Path(sys.argv[1]) / name, Restarting, model, accumulate=accumulate, sample_every=20)
