"""Tensor parallelism and pipeline stages: several processes train to what one process does.

The tests run this file as a script in each process: `test_parallel.py OUTPUT`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from ranks import run_together
from safetensors.torch import load_file
from test_contract import make
from test_fit import lines
from tiny import faces, recipe, tiny
from torch.distributed.tensor import DTensor

from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.dit import DiT, DiTConfig
from genmodels.latent import Latent
from genmodels.nn.transformer import TransformerConfig
from genmodels.training import checks, show
from genmodels.training import fit as loop
from genmodels.training.fit import fit
from genmodels.training.pipeline_parallel import first_block
from genmodels.training.recipe import OptimConfig
from genmodels.training.tensor_parallel import row_order
from genmodels.types import Batch, Noise

ROOT = Path(__file__).parent.parent
BLOCKS = TransformerConfig(width=16, depth=2, heads=4, kv_heads=2, qk_norm=True, hidden=24)
STEPS = 12
CLIPPED = OptimConfig(clip=0.1, schedule="constant", warmup=0, lr=3e-3)
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""Environment that accelerate's launcher sets for configs/fsdp.yaml."""


def dit(**blocks: Any) -> DiT:
    return seeded(lambda: DiT(DiTConfig(size=8, patch=2, gaussian=16, transformer=replace(BLOCKS, **blocks))))


def autoregressive(**blocks: Any) -> Autoregressive:
    return seeded(lambda: Autoregressive(AutoregressiveConfig(size=8, levels=4, transformer=replace(BLOCKS, **blocks))))


def meanflow() -> DiT:
    return DiT(DiTConfig(size=8, patch=2, process="meanflow", transformer=BLOCKS))


def over_codec() -> Latent:
    return seeded(lambda: make("latent:dit"))


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
    "stages, all forward passes first": (2, {"pipeline_stages": 2, "pipeline_schedule": "gpipe"}, ("dit",)),
    "stages of shards": (4, {"pipeline_stages": 2}, ("dit",)),
    "stages of parts": (4, {"pipeline_stages": 2, "tensor_parallel": 2}, ("dit",)),
}
"""Number of processes, settings and runs of each way to divide a model."""
CASES = [(layout, name) for layout, (_, _, names) in LAYOUTS.items() for name in names]


def train(output: Path, name: str, **settings: Any) -> Path:
    """Train one of RUNS for STEPS, or as many steps as `settings` say."""
    build, blocks, own = RUNS[name]
    common = {"steps": STEPS, "batch_size": 8, "ema": 0.1, "sample_every": 100, "optim": CLIPPED, "accumulate": 2}
    return fit(build(**blocks), faces(), recipe(output / name, **(common | own | settings)))


@cache
def trained_together(layout: str, folder: Path) -> Path:
    """Train the runs of a layout in several processes."""
    count, _, _ = LAYOUTS[layout]
    said = run_together(count, Path(__file__), str(folder / layout), layout, **(SHARDED if count == 4 else {}))
    described = re.search(r"x cpu \((.*?)\)", said[0])[1]
    for word, said_as in (("shards", "sharded"), ("parts", "2 parts"), ("stages", "2 stages")):
        assert (word in layout) == (said_as in described)
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


def assert_same(one: Path, several: Path) -> None:
    """Check that losses, gradient norms and all tensors of the last checkpoints agree."""
    for ours, theirs in zip(lines(one), lines(several), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-5)
    for file in ("model", "ema", "optimizer"):
        checkpoints = [run / "checkpoints" / f"step_{STEPS:08d}" / f"{file}.safetensors" for run in (one, several)]
        ours, theirs = map(load_file, checkpoints)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            # For tensors of small numbers, such as second moments, 1e-5 would be met by zeros.
            atol = min(1e-5, 1e-4 * value.abs().max().item())
            torch.testing.assert_close(
                theirs[key], value, rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_several_processes_train_to_what_one_does(folder, layout, name):
    assert_same(trained_alone(name, folder), trained_together(layout, folder) / name)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["parts", "stages"])
def test_a_run_goes_on_in_one_process(folder, layout):
    """Six steps in two processes, and six more in one."""
    continued = trained_together(layout, folder) / "continued"
    assert_same(trained_alone("dit", folder), train(continued, "dit", resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["parts", "stages"])
def test_a_run_of_one_process_goes_on_in_two(folder, layout):
    """Six steps in this process, and six more in two."""
    run = folder / f"begun {layout}"
    train(run, "dit", steps=6)
    count, _, _ = LAYOUTS[layout]
    run_together(count, Path(__file__), str(run), layout, "resume")
    assert_same(trained_alone("dit", folder), run / "dit")


@pytest.mark.parametrize("build", [dit, autoregressive, partial(dit, rotary=False), over_codec])
def test_the_loss_in_parts_is_the_loss(build):
    losses, gradients = [], []
    for in_parts in (False, True):
        model = build()
        for parameter in model.trained.parameters():  # zeros, such as those of the head, would hide what comes before
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        size = model.config.size
        images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        batch = Batch(images, Noise.for_images(0, range(4)))
        if in_parts:
            stages = model.stages()
            drawn, depth = stages.prepare(batch), len(stages.blocks)
            carried = stages.through(stages.through(stages.embed(drawn), 0, 1), 1, depth)
            loss, metrics = stages.loss(carried, drawn)
        else:
            loss, metrics = model.loss(batch, "model")
        loss.backward()
        losses.append({"loss": loss} | metrics)
        # No batch has a condition here, so its embeddings have no gradients.
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert value.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("depth", "stages"), [(4, 2), (5, 2), (7, 3), (3, 3)])
def test_every_block_is_in_one_stage(depth, stages):
    starts = [first_block(depth, stages, stage) for stage in range(stages + 1)]
    sizes = [last - first for first, last in pairwise(starts)]
    assert starts[0] == 0 and starts[-1] == depth
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


@pytest.mark.parametrize("name", ["tensor-fsdp", "pipeline-fsdp"])
def test_the_configs_for_accelerate(name):
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    assert config["distributed_type"] == "FSDP" and config["fsdp_config"]["fsdp_version"] == 2
    assert config["num_processes"] == 4


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
        (dit, {"pipeline_stages": 2, "mixed_precision": "fp16", "accumulate": 2}, 2, "fp16 does not work"),
        (
            dit,
            {"pipeline_stages": 2},
            2,
            "--pipeline-stages 2 needs at least as many micro-batches: .* --accumulate 2",
        ),
        (dit, {"pipeline_stages": 3, "accumulate": 3, "batch_size": 9}, 3, "3 is more than the 2 blocks"),
        (tiny, {"pipeline_stages": 2, "accumulate": 2}, 2, "divides transformers, and this tiny is none"),
        (meanflow, {"pipeline_stages": 2, "accumulate": 2}, 2, "does not work with the process meanflow of this dit"),
        (
            dit,
            {"pipeline_stages": 2, "tensor_parallel": 2},
            6,
            "--pipeline-stages 2 and --tensor-parallel 2 need a",
        ),
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
    if sys.argv[3:] == ["resume"]:
        train(output, "dit", resume=True, **settings)
        sys.exit()
    for name in names:
        train(output, name, **settings)
    if layout in ("parts", "stages"):
        train(output / "continued", "dit", steps=6, **settings)
