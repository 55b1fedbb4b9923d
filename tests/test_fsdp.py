"""Two processes with a shard each train to what one does, to rounding.

Run as a script, `test_fsdp.py OUTPUT`, it is what each process does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_contract import make
from test_fit import assert_equal, lines
from test_fit_processes import in_two_processes
from tiny import TinyPair, faces, recipe, tiny
from torch.distributed.tensor import DTensor

from genmodels.dit import DiT, DiTConfig
from genmodels.nn.transformer import TransformerConfig
from genmodels.training import fit as loop
from genmodels.training import setup
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig

ROOT = Path(__file__).parent.parent
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What accelerate's launcher makes of configs/fsdp.yaml."""
RUNS = {
    "adamw": {"ema_snapshots": 2, "optim": OptimConfig(clip=1.0)},
    "muon": {"optim": OptimConfig(name="muon")},
    "accumulated": {"accumulate": 2},
}
STEADY = OptimConfig(schedule="constant")
"""Learning rates that do not depend on how long a run will be."""


FAMILIES = ("vae", "autoregressive", "unet", "latent", "latent:dit")
"""Entries of the contract's SMALL that have one optimiser."""


def train_family(name: str, output: Path) -> Path:
    """Five steps of a family's smallest model."""
    model = make(name)
    settings = {"steps": 5, "log_every": 1, "size": model.config.size, "ema": 0.1}
    return fit(model, faces(size=model.config.size), recipe(output / name, **settings))


def train(output: Path, **settings) -> Path:
    """Twenty steps of a transformer of two blocks."""
    torch.manual_seed(0)
    blocks = TransformerConfig(width=12, depth=2, heads=3, causal=False)
    model = DiT(DiTConfig(size=8, patch=4, transformer=blocks, gaussian=16))
    return fit(model, faces(), recipe(output, **({"ema": 0.1} | settings)))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    train(folder / "continued", steps=10, optim=STEADY)
    in_two_processes(Path(__file__), folder, **SHARDED)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_shards_train_to_what_one_process_does(two, tmp_path, name):
    one = train(tmp_path / name, **RUNS[name])
    assert_equal(one, two / name, tolerance=2e-4)
    for ours, theirs in zip(lines(one), lines(two / name), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_train_in_shards(two, tmp_path, name):
    one = train_family(name, tmp_path)
    assert_equal(one, two / name, tolerance=1e-3, step=5)


@pytest.mark.slow
def test_what_is_shown_and_kept_is_whole(two, tmp_path):
    one = train(tmp_path / "adamw", **RUNS["adamw"])
    for file in ("model.safetensors", "ema/step_00000010.safetensors"):
        ours, theirs = load_file(one / file), load_file(two / "adamw" / file)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_a_run_goes_on_in_shards_and_back(two, tmp_path):
    whole = train(tmp_path / "whole", steps=30, optim=STEADY)
    again = two / "continued"  # 10 steps by one process, to step 20 by two
    train(again, steps=30, optim=STEADY, resume=True)
    assert_equal(whole, again, tolerance=2e-4, step=30)


def test_the_config_for_accelerate_says_so():
    config = yaml.safe_load((ROOT / "configs" / "fsdp.yaml").read_text())
    assert config["distributed_type"] == "FSDP"
    assert config["fsdp_config"]["fsdp_version"] == 2


@pytest.mark.parametrize(
    ("version", "message"),
    [("1", "set fsdp_version to 2"), ("2", "FSDP trains models of one optimiser.*critic, generator")],
)
def test_what_cannot_be_sharded_is_refused(tmp_path, monkeypatch, version, message):
    monkeypatch.setenv("FSDP_VERSION", version)
    monkeypatch.setattr(setup, "sharding_wanted", lambda processes: True)
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
    for name, settings in RUNS.items():
        train(Path(sys.argv[1]) / name, **settings)
    for name in FAMILIES:
        train_family(name, Path(sys.argv[1]))
    train(Path(sys.argv[1]) / "continued", optim=STEADY, resume=True)
