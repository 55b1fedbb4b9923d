"""FSDP: training with two processes equals training with one, up to rounding.

The tests run this file as a script in each process: `test_fsdp.py OUTPUT`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from ranks import in_two_processes
from safetensors.torch import load_file
from test_contract import SMALL, make
from test_fit import assert_equal, lines
from test_latent import diffusers_kl
from tiny import TinyPair, faces, recipe, tiny
from torch.distributed.tensor import DTensor

from genmodels.diffusion.meanflow import MeanFlow
from genmodels.dit import DiT, DiTConfig
from genmodels.latent import Latent
from genmodels.nn.experts import ExpertsConfig
from genmodels.nn.transformer import TransformerConfig
from genmodels.pretrained import PretrainedConfig, PretrainedKL
from genmodels.training import checks
from genmodels.training import fit as loop
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig

ROOT = Path(__file__).parent.parent
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""Environment that accelerate's launcher sets for configs/fsdp.yaml."""
RUNS = {
    "adamw": {"ema_snapshots": 2, "optim": OptimConfig(clip=1.0)},
    "muon": {"optim": OptimConfig(name="muon")},
    "accumulated": {"accumulate": 2},
    "meanflow": {"process": "meanflow"},
    "bf16": {"mixed_precision": "bf16"},
    "experts": {"experts": ExpertsConfig(count=3, shared=1), "optim": OptimConfig(name="muon")},
    "balance loss": {"experts": ExpertsConfig(count=4, balance="loss"), "accumulate": 2},
}
STEADY = OptimConfig(schedule="constant")
"""Learning rates that do not depend on the length of the run."""
DENSE = ExpertsConfig()
EVERY_ROW = MeanFlow(share=1.0)
"""Train all images on mean velocities. Otherwise the choice depends on how a batch is divided."""
OTHERS = ("ae", "vqvae", "autoregressive", "unet", "latent:dit", "over a diffusers codec")
"""Models of SMALL with one optimiser, and a codec with parts that must not be sharded."""


def over_diffusers() -> Latent:
    """Build a prior over a codec that has lists of blocks, which must not be sharded."""
    codec = PretrainedKL(PretrainedConfig(size=16, settings=dict(diffusers_kl().config)))
    codec.prepare([torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)).tanh()])
    torch.manual_seed(0)
    blocks = TransformerConfig(width=12, depth=2, heads=3)
    return Latent.over(codec, DiT(DiTConfig(size=16, patch=2, latents=codec.latent_shape, transformer=blocks)))


def train_other(name: str, output: Path) -> Path:
    """Train the smallest model of a family for five steps."""
    model = make(name) if name in SMALL else over_diffusers()
    settings = {"steps": 5, "log_every": 1, "sample_every": 10, "size": model.config.size, "ema": 0.1}
    return fit(model, faces(size=model.config.size), recipe(output / name, **settings))


def train(output: Path, process: str = "flow", experts: ExpertsConfig = DENSE, **settings) -> Path:
    """Train a transformer of two blocks for twenty steps."""
    torch.manual_seed(0)
    blocks = TransformerConfig(width=12, depth=2, heads=3, experts=experts)
    jumps = {"meanflow": EVERY_ROW} if process == "meanflow" else {}
    model = DiT(DiTConfig(size=8, patch=4, transformer=blocks, gaussian=16, process=process, **jumps))
    return fit(model, faces(), recipe(output, **({"ema": 0.1, "sample_every": 50} | settings)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Train RUNS with two processes, and resume a run that one process began."""
    folder = tmp_path_factory.mktemp("two") / "runs"
    train(folder / "continued", steps=10, optim=STEADY)
    in_shards(folder)
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Train OTHERS with two processes."""
    folder = tmp_path_factory.mktemp("two") / "others"
    in_shards(folder)
    return folder


def in_shards(folder: Path) -> None:
    said = in_two_processes(Path(__file__), folder, **SHARDED)
    assert all(line.startswith("2 x cpu (sharded)") for line in re.findall("2 x cpu.*", said[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_shards_train_to_what_one_process_does(runs, tmp_path, name):
    one = train(tmp_path / name, **RUNS[name])
    rounding = 2e-3 if name == "bf16" else 2e-4
    assert_equal(one, runs / name, tolerance=rounding)
    for ours, theirs in zip(lines(one), lines(runs / name), strict=True):
        assert ours.keys() == theirs.keys()
        for key in (key for key in ours if key == "loss" or key.startswith("experts/")):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_families_train_in_shards(others, tmp_path, name):
    one = train_other(name, tmp_path)
    assert_equal(one, others / name, tolerance=1e-3, step=5)


@pytest.mark.slow
def test_what_is_shown_and_kept_is_whole(runs, tmp_path):
    one = train(tmp_path / "adamw", **RUNS["adamw"])
    for file in ("model.safetensors", "ema/step_00000010.safetensors"):
        ours, theirs = load_file(one / file), load_file(runs / "adamw" / file)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_a_run_goes_on_in_shards_and_back(runs, tmp_path):
    whole = train(tmp_path / "whole", steps=30, optim=STEADY)
    again = runs / "continued"  # 10 steps by one process, to step 20 by two
    train(again, steps=30, optim=STEADY, resume=True)
    assert_equal(whole, again, tolerance=2e-4, step=30)


def test_the_config_for_accelerate_says_so():
    config = yaml.safe_load((ROOT / "configs" / "fsdp.yaml").read_text())
    assert config["distributed_type"] == "FSDP"
    assert config["fsdp_config"]["fsdp_version"] == 2


@pytest.mark.parametrize(
    ("version", "offload", "message"),
    [
        ("1", "false", "set fsdp_version to 2"),
        ("2", "true", "fsdp_offload_params has no effect here"),
        ("2", "false", "FSDP trains models with one optimiser.*critic, generator"),
    ],
)
def test_what_cannot_be_sharded_is_refused(tmp_path, monkeypatch, version, offload, message):
    monkeypatch.setenv("FSDP_VERSION", version)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", offload)
    monkeypatch.setattr(checks, "sharding_wanted", lambda processes: True)
    with pytest.raises(ValueError, match=message):
        fit(tiny(TinyPair), faces(), recipe(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class InShards:
    """The loop's step, looking at what it works on."""

    def __init__(self) -> None:
        self.step = loop.train_step

    def __call__(self, run, batches, progress) -> None:
        self.step(run, batches, progress)
        trained = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
        for model in (run.model, run.average):
            parameters = [parameter for name, parameter in model.named_parameters() if name in trained]
            assert all(isinstance(parameter, DTensor) for parameter in parameters)
            held, all_of_it = (sum(p.numel() for p in ps) for ps in ([p.to_local() for p in parameters], parameters))
            assert held < 0.7 * all_of_it
        assert not any(isinstance(parameter, DTensor) for parameter in run.ema.parameters())
        moments = [state["exp_avg"] for state in run.optimizers["model"].state.values() if "exp_avg" in state]
        assert moments and all(isinstance(moment, DTensor) for moment in moments)


if __name__ == "__main__":
    loop.train_step = InShards()
    output = Path(sys.argv[1])
    if output.name == "others":
        for name in OTHERS:
            train_other(name, output)
    else:
        for name, settings in RUNS.items():
            train(output / name, **settings)
        train(output / "continued", optim=STEADY, resume=True)
