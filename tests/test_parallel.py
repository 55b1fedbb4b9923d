"""Tensor parallelism and pipeline stages: several processes train to what one process does.

The tests run this file as a script in each process: `test_parallel.py OUTPUT`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import run_together
from safetensors.torch import load_file
from test_fit import lines
from tiny import faces, recipe, tiny
from torch.distributed.tensor import DTensor

from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.dit import DiT, DiTConfig
from genmodels.nn.transformer import TransformerConfig
from genmodels.training import checks, show
from genmodels.training import fit as loop
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig
from genmodels.training.tensor_parallel import row_order

BLOCKS = TransformerConfig(width=16, depth=2, heads=4, kv_heads=2, qk_norm=True, hidden=24)
CLIPPED = OptimConfig(clip=0.1, schedule="constant", warmup=0, lr=3e-3)
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""Environment that accelerate's launcher sets for configs/fsdp.yaml."""


def dit(**blocks: Any) -> DiT:
    return seeded(lambda: DiT(DiTConfig(size=8, patch=2, gaussian=16, transformer=replace(BLOCKS, **blocks))))


def autoregressive(**blocks: Any) -> Autoregressive:
    return seeded(lambda: Autoregressive(AutoregressiveConfig(size=8, levels=4, transformer=replace(BLOCKS, **blocks))))


def seeded(build: Any) -> Any:
    torch.manual_seed(0)
    return build()


RUNS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "dit": (dit, {}, {}),
    "autoregressive": (autoregressive, {}, {}),
    "gelu and biases": (dit, {"mlp": "gelu", "bias": True, "norm": "layer", "kv_heads": None}, {}),
    "muon": (dit, {}, {"optim": OptimConfig(name="muon", clip=0.1)}),
}


LAYOUTS: dict[str, tuple[int, dict[str, Any], tuple[str, ...]]] = {
    "parts": (2, {"tensor_parallel": 2}, tuple(RUNS)),
    "parts in shards": (4, {"tensor_parallel": 2}, ("dit", "muon")),
    "stages": (2, {"pipeline_stages": 2}, tuple(RUNS)),
    "stages of shards": (4, {"pipeline_stages": 2}, ("dit",)),
    "stages of parts": (4, {"pipeline_stages": 2, "tensor_parallel": 2}, ("dit",)),
}
"""Number of processes, settings and runs of each way to divide a model."""
CASES = [(layout, name) for layout, (_, _, names) in LAYOUTS.items() for name in names]


def train(output: Path, name: str, **settings: Any) -> Path:
    """Train one of RUNS for twenty steps, or as many as `settings` say."""
    build, blocks, own = RUNS[name]
    common = {"steps": 20, "batch_size": 8, "ema": 0.1, "sample_every": 100, "optim": CLIPPED, "accumulate": 2}
    return fit(build(**blocks), faces(), recipe(output / name, **(common | own | settings)))


@cache
def trained_together(layout: str, folder: Path) -> Path:
    """Train the runs of a layout in several processes."""
    count, _, _ = LAYOUTS[layout]
    said = run_together(count, Path(__file__), str(folder / layout), layout, **(SHARDED if count == 4 else {}))
    for word in layout.replace("shards", "sharded").split():
        assert word in ("in", "of") or word in re.search(r"x cpu \((.*?)\)", said[0])[1]
    return folder / layout


@cache
def trained_alone(name: str, folder: Path) -> Path:
    """Train a run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "GRID", 1)
        return train(folder / "one", name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("parallel")


def assert_same(one: Path, several: Path, steps: int = 20) -> None:
    """Check that losses, gradient norms and all tensors of the last checkpoints agree."""
    for ours, theirs in zip(lines(one), lines(several), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5)
    for file in ("model", "ema", "optimizer"):
        checkpoints = [run / "checkpoints" / f"step_{steps:08d}" / f"{file}.safetensors" for run in (one, several)]
        ours, theirs = map(load_file, checkpoints)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(
                theirs[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_several_processes_train_to_what_one_does(folder, layout, name):
    assert_same(trained_alone(name, folder), trained_together(layout, folder) / name)


@pytest.mark.slow
def test_a_run_goes_on_in_parts_and_back(folder):
    """Ten steps in two processes, and ten more in one."""
    one = trained_alone("dit", folder)
    assert_same(one, train(trained_together("parts", folder) / "continued", "dit", resume=True))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_process_has_a_part_of_each_fused_matrix(parts):
    queries, keys, values = (torch.arange(count) for count in (8, 4, 4))
    order = row_order((8, 4, 4), parts)
    fused = torch.cat([queries, keys + 100, values + 200])[order]
    for rank, rows in enumerate(fused.chunk(parts)):
        own = [matrix.chunk(parts)[rank] for matrix in (queries, keys + 100, values + 200)]
        assert torch.equal(rows, torch.cat(own))
    assert torch.equal(fused[order.argsort()], torch.cat([queries, keys + 100, values + 200]))


@pytest.mark.parametrize(
    ("build", "settings", "processes", "message"),
    [
        (partial(dit, kv_heads=1), {"tensor_parallel": 2}, 2, "--tensor-parallel 2 must divide kv_heads of the .*, 1$"),
        (partial(dit, hidden=23), {"tensor_parallel": 2}, 2, "--tensor-parallel 2 must divide hidden of the .*, 23$"),
        (
            lambda: tiny(),
            {"tensor_parallel": 2},
            2,
            "divides attention and MLPs of transformers, and this tiny has none",
        ),
        (dit, {"tensor_parallel": 2}, 3, "--tensor-parallel 2 need a multiple of 2 processes, got 3"),
        (dit, {"tensor_parallel": 2}, 4, "make 2 copies .* launch them with configs/fsdp.yaml, or use 2 processes"),
        (dit, {"tensor_parallel": 2, "mixed_precision": "fp16"}, 2, "fp16 does not work with --tensor-parallel"),
        (dit, {"tensor_parallel": 0}, 2, "--tensor-parallel must be a whole number of at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, monkeypatch, build, settings, processes, message):
    monkeypatch.setattr(checks, "processes", lambda: SimpleNamespace(num_processes=processes))
    with pytest.raises(ValueError, match=message):
        fit(build(), faces(), recipe(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


class InParts:
    """The loop's step, looking at what it works on."""

    def __init__(self, layout: str) -> None:
        self.step, self.layout = loop.train_step, layout

    def __call__(self, run, batches, progress) -> None:
        self.step(run, batches, progress)
        count = run.accelerator.num_processes
        for model in (run.model, run.average):
            weights = {name: p for name, p in model.named_parameters() if "transformer.blocks" in name}
            here = {name: p for name, p in weights.items() if not p.is_meta}
            assert len(here) * run.layout.stages == len(weights)
            for layer in ("qkv.weight", "out.weight", "down.weight"):
                held = [p for name, p in here.items() if name.endswith(layer)]
                assert held and all(isinstance(p, DTensor) == ("parts" in self.layout or count == 4) for p in held)
                numbers = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in held)
                assert numbers * count == sum(p.numel() for name, p in weights.items() if name.endswith(layer))


if __name__ == "__main__":
    show.GRID = 1
    output, layout = Path(sys.argv[1]), sys.argv[2]
    loop.train_step = InParts(layout)
    _, settings, names = LAYOUTS[layout]
    for name in names:
        train(output, name, **settings)
    if layout == "parts":
        train(output / "continued", "dit", steps=10, **settings)
