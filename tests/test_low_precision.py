"""Layers in 8 bits: training in FP8, emulated, and sampling with rounded weights."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from ranks import run_together
from safetensors.torch import load_file
from test_fit import lines
from tiny import faces, recipe, tiny
from torch import nn

import genmodels
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.cli import main
from genmodels.dit import DiT, DiTConfig
from genmodels.nn import low_precision
from genmodels.nn.low_precision import block_layers, quantize, use_fp8, without_fp8
from genmodels.nn.transformer import TransformerConfig
from genmodels.training import show
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig

BLOCKS = TransformerConfig(width=32, depth=2, heads=2, hidden=64)
CPU = torch.device("cpu")


def dit(blocks: TransformerConfig = BLOCKS) -> DiT:
    torch.manual_seed(0)
    return DiT(DiTConfig(size=8, patch=2, transformer=blocks))


def autoregressive() -> Autoregressive:
    torch.manual_seed(0)
    return Autoregressive(AutoregressiveConfig(size=8, levels=8, transformer=BLOCKS))


@pytest.fixture
def torchao():
    pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """An autoregressive model of toy faces."""
    output = tmp_path_factory.mktemp("run") / "no"
    return train(output, "no")


def train(output: Path, precision: str, **changes: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "GRID", 1)
        optim = OptimConfig(lr=3e-3, warmup=10)
        settings = {"steps": 90, "batch_size": 32, "log_every": 18, "sample_every": 1000, "optim": optim}
        return fit(autoregressive(), faces(), recipe(output, mixed_precision=precision, **(settings | changes)))


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
def test_training_in_fp8_reaches_the_loss_of_bf16(tmp_path, trained):
    rough, half = train(tmp_path / "fp8", "fp8"), train(tmp_path / "bf16", "bf16")
    losses = [[line["loss"] for line in lines(run)] for run in (rough, half, trained)]
    assert losses[1][-1] < 0.8 * losses[1][0]  # there is something to learn
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.01)
    assert losses[0] != losses[1]  # it is not bf16
    weights = load_file(rough / "model.safetensors")
    plain = load_file(trained / "model.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in weights.items()} == {
        name: (t.dtype, t.shape) for name, t in plain.items()
    }
    assert genmodels.load(rough).generate(2).shape == (2, 3, 8, 8)


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize(
    ("stages", "environment"), [("1", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}), ("2", {})]
)
def test_fp8_in_shards_and_in_stages(tmp_path, stages, environment):
    run_together(2, Path(__file__), str(tmp_path / "two"), stages, **environment)
    few = {"steps": 6, "accumulate": 2, "log_every": 1}
    one, two = train(tmp_path / "one", "fp8", **few), tmp_path / "two"
    for ours, theirs in zip(lines(one), lines(two), strict=True):  # scales differ, because tensors are divided
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=5e-3)
    assert load_file(one / "model.safetensors").keys() == load_file(two / "model.safetensors").keys()


@pytest.mark.usefixtures("torchao")
def test_a_layer_rounds_its_inputs_and_weights():
    model = dit()
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    layer = model.transformer.blocks[0].mlp.down
    plain = layer(torch.cat([x, x], 1))
    said = use_fp8(model, CPU)
    rounded = model.transformer.blocks[0].mlp.down(torch.cat([x, x], 1))
    error = ((rounded - plain).norm() / plain.norm()).item()
    assert 0.01 < error < 0.06  # e4m3 has 3 bits after the leading one: a relative error of at most 1/16
    assert said.startswith("fp8: 8 linear layers of the blocks (qkv, out, gate_up, down), emulated")
    assert said.endswith("not in fp8: patches, time.linear_1, time.linear_2, modulations, last_modulation, head")
    weight = model.transformer.blocks[0].mlp.down.weight
    without_fp8(model)
    assert {type(layer) for layer in block_layers(model).values()} == {nn.Linear}
    assert model.transformer.blocks[0].mlp.down.weight is weight and weight.dtype == torch.float32
    assert torch.equal(model.transformer.blocks[0].mlp.down(torch.cat([x, x], 1)), plain)


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_sampling_with_weights_of_eight_bits(tmp_path, trained, kind, capsys):
    plain = genmodels.load(trained)
    tokens = plain.alphabet.tokenize(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    empty = genmodels.Condition()
    with torch.inference_mode():
        expected = plain.nats(tokens, empty)
        said = quantize(plain, kind)
        rounded = plain.nats(tokens, empty)
    assert said.startswith(f"8 linear layers in {kind}: weights of ")
    assert not torch.equal(rounded, expected)
    assert rounded.mean().item() == pytest.approx(expected.mean().item(), rel=0.02)
    out = tmp_path / "samples.npy"
    main(["sample", str(trained), "--n", "2", "--quantize", kind, "--out", str(out)])
    assert said in capsys.readouterr().out and out.is_file()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(dit, TransformerConfig(width=24, depth=1, heads=2, hidden=64)), "qkv 24 -> 72, out 24 -> 24, gate_up"),
        (partial(dit, TransformerConfig(width=32, depth=1, heads=2, hidden=40)), "of 16, got down 40 -> 32"),
        (tiny, "is for transformers, and this model has no such blocks"),
    ],
)
def test_what_does_not_fit_fp8_is_refused(tmp_path, monkeypatch, build, message):
    monkeypatch.setattr(low_precision, "check_installed", lambda what: None)
    with pytest.raises(ValueError, match=message):
        fit(build(), faces(), recipe(tmp_path / "run", mixed_precision="fp8"))
    assert not (tmp_path / "run").exists()


def test_without_torchao(tmp_path, monkeypatch):
    monkeypatch.setattr(low_precision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^--mixed-precision fp8 needs torchao: pip install 'genmodels\\[fp8\\]'$"):
        fit(dit(), faces(), recipe(tmp_path / "run", mixed_precision="fp8"))
    with pytest.raises(ValueError, match="^--quantize int8 needs torchao: pip install 'genmodels\\[fp8\\]'$"):
        quantize(dit(), "int8")


if __name__ == "__main__":
    train(Path(sys.argv[1]), "fp8", steps=6, accumulate=2, log_every=1, pipeline_stages=int(sys.argv[2]))
