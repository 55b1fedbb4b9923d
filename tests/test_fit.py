"""Training loop: files written, bit-for-bit resuming, and handling of failures."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.repocard import metadata_load
from PIL import Image
from safetensors.torch import load_file
from tiny import Tiny, TinyPair, TinyRecipe, faces, recipe, tiny
from torch import Tensor

from genmodels.training.checkpoint import STATE
from genmodels.training.command_line import from_yaml
from genmodels.training.fit import fit
from genmodels.training.optim import OptimConfig
from genmodels.types import Batch

TENSORS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


class Stopped(Tiny):
    """Model that sends its process a signal to stop during the tenth step."""

    signal = signal.SIGTERM
    steps = 0

    def after_step(self) -> None:
        super().after_step()
        self.steps += 1
        if self.steps == 10:
            os.kill(os.getpid(), self.signal)


class Slow(Tiny):
    """Model whose calibration exceeds a time budget unless the clock reserves time for it."""

    def calibrate(self, images: Iterable[Tensor]) -> None:
        time.sleep(0.4)
        super().calibrate(images)


def tensors(run: Path, step: int = 20) -> dict[str, dict[str, Tensor]]:
    return {name: load_file(run / "checkpoints" / f"step_{step:08d}" / name) for name in TENSORS}


def assert_equal(first: Path, second: Path, tolerance: float = 0.0, step: int = 20) -> None:
    ours, theirs = tensors(first, step), tensors(second, step)
    for name in TENSORS:
        assert ours[name].keys() == theirs[name].keys()
        assert len(ours[name]) > 4
        for key, value in ours[name].items():
            torch.testing.assert_close(value, theirs[name][key], rtol=tolerance, atol=tolerance, msg=f"{name}: {key}")


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": True}, "this model has none: leave it out"),
        ({"optim": OptimConfig(name="muon")}, "no hidden matrices"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_the_folder_is_touched(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fit(tiny(), faces(), recipe(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_writes_a_whole_run_folder(tmp_path: Path) -> None:
    model, data = tiny(), faces()
    run = fit(model, data, recipe(tmp_path / "run", track="tensorboard", ema=0.1))

    names = {path.name for path in run.iterdir()}
    expected = {"config.json", "model.safetensors", "README.md", "config.yaml", "metrics.jsonl"}
    assert names == expected | {"samples", "checkpoints", "tensorboard"}
    assert [p.name for p in sorted((run / "samples").iterdir())] == [f"step_{s:08d}.png" for s in (1, 5, 10, 15, 20)]
    assert Image.open(run / "samples" / "step_00000020.png").size == (8 * 10 + 2, 8 * 10 + 2)
    assert any((run / "tensorboard").iterdir())

    # load() reads the EMA weights, calibrated on the training images, and not the raw weights.
    saved, checkpoint = Tiny.from_pretrained(str(run)), tensors(run)
    for name, value in saved.named_parameters():
        assert torch.equal(value, checkpoint["ema.safetensors"][name])
    assert not torch.equal(saved.encoder.weight, model.encoder.weight)
    train = torch.from_numpy(data.split("train").images).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(saved.latent_mean, saved.encode(train).mean((0, 1, 2)))
    assert model.encoder.weight.requires_grad
    assert not model.frozen.weight.requires_grad
    assert not model.training

    card = (run / "README.md").read_text()
    front = metadata_load(run / "README.md") or {}
    assert front["library_name"] == "genmodels"
    assert front["license"]
    assert "tiny" in front["tags"]
    assert "](samples/step_00000020.png)" in card
    assert "72 images of noise, crop none" in card
    assert str(tmp_path) not in card
    saved.save_pretrained(tmp_path / "copy")  # without the samples, so that its card must not show them
    copied = (tmp_path / "copy" / "README.md").read_text()
    assert "![" not in copied and "72 images of noise, crop none" in copied
    # The data were made in memory, and the recipe is not called by its name: both are recorded as they were.
    expected = recipe(run, track="tensorboard", ema=0.1, data="in-memory")
    assert from_yaml(TinyRecipe, "tiny", run / "config.yaml") == expected


def test_metrics_are_means_over_the_interval(tmp_path: Path) -> None:
    each = lines(fit(tiny(), faces(), recipe(tmp_path / "each", log_every=1)))
    fifths = lines(fit(tiny(), faces(), recipe(tmp_path / "fifths")))
    assert [line["step"] for line in fifths] == [5, 10, 15, 20]
    assert [line["images"] for line in fifths] == [40, 80, 120, 160]
    for name in ("loss", "twice", "lr", "grad_norm"):
        assert fifths[1][name] == pytest.approx(sum(line[name] for line in each[5:10]) / 5, rel=1e-5)
    assert fifths[1]["twice"] == pytest.approx(2 * fifths[1]["loss"], rel=1e-5)
    assert fifths[-1]["loss"] < fifths[0]["loss"] + 0.1


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, kind: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(tiny(dropout=0.2), faces(), recipe(tmp_path / "whole", log_every=4))
    before = signal.getsignal(kind)
    stopped = tiny(Stopped, dropout=0.2)
    stopped.signal = kind
    with pytest.raises(SystemExit) as end:
        fit(stopped, faces(), recipe(tmp_path / "parts", log_every=4))
    assert end.value.code == 1
    assert signal.getsignal(kind) is before
    said = capsys.readouterr().err
    assert "stopped by a signal at step 10" in said
    assert str(tmp_path / "parts" / "checkpoints" / "step_00000010") in said
    assert "--resume" in said
    assert [line["step"] for line in lines(tmp_path / "parts")] == [4, 8, 10]  # the last one for those who read it now
    assert (tmp_path / "parts" / "model.safetensors").exists()

    torch.manual_seed(7)  # a resumed run depends neither on initial weights nor on the generator
    other = Tiny(stopped.config)
    parts = fit(other, faces(), recipe(tmp_path / "parts", log_every=4, resume=True))
    assert_equal(whole, parts)
    assert [line["step"] for line in lines(parts)] == [4, 8, 12, 16, 20]


def test_resume_drops_metrics_of_steps_it_repeats(tmp_path: Path) -> None:
    run = fit(tiny(TinyPair), faces(), recipe(tmp_path / "run", save_every=10, keep=2))
    whole = tensors(run)
    (run / "checkpoints" / "step_00000020" / STATE).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "lo')  # as if killed while writing
    fit(tiny(TinyPair), faces(), recipe(run, resume=True))
    assert [line["step"] for line in lines(run)] == [5, 10, 15, 20]
    for name, values in tensors(run).items():
        assert all(torch.equal(value, whole[name][key]) for key, value in values.items())


@pytest.mark.parametrize("kind", [Tiny, TinyPair])
def test_micro_batches_change_nothing(tmp_path: Path, kind: type[Tiny]) -> None:
    one = fit(tiny(kind), faces(), recipe(tmp_path / "one"))
    four = fit(tiny(kind), faces(), recipe(tmp_path / "four", accumulate=4))
    assert_equal(one, four, tolerance=2e-5)
    assert lines(four)[-1].keys() == lines(one)[-1].keys()
    name = "critic/loss" if kind is TinyPair else "loss"
    assert lines(four)[-1][name] == pytest.approx(lines(one)[-1][name], rel=1e-4)


def test_each_turn_moves_its_own_parameters_only(tmp_path: Path) -> None:
    class Generating(TinyPair):  # the critic's loss has zero gradients
        def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
            error, metrics = super().loss(batch, turn)
            return (error * 0 if turn == "critic" else error), metrics

    fresh, model = tiny(Generating), tiny(Generating)
    optim = recipe(tmp_path).optim.__class__(weight_decay=0.0)
    fit(model, faces(), recipe(tmp_path / "run", optim=optim))
    assert torch.equal(model.encoder.weight, fresh.encoder.weight)
    assert not torch.equal(model.decoder.weight, fresh.decoder.weight)
    assert torch.equal(model.frozen.weight, fresh.frozen.weight)


def test_steps_that_are_not_finite_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny(bad_from=5, bad_until=8)
    run = fit(model, faces(), recipe(tmp_path / "run", log_every=10))
    assert "skipped step 5, turn 'model': loss nan" in capsys.readouterr().err
    assert [line["skipped"] for line in lines(run)] == [3, 3]
    assert all(line["loss"] > 0 for line in lines(run))
    for values in tensors(run).values():
        assert all(value.isfinite().all() for value in values.values())
    # Seventeen steps were good. The other three changed neither weights nor statistics.
    assert tensors(run)["optimizer.safetensors"]["model.0.step"] == 17
    assert model.mean.isfinite().all()


def test_too_many_in_a_row_are_fatal(tmp_path: Path) -> None:
    settings = recipe(tmp_path / "run", steps=50, save_every=5, sample_every=50)
    with pytest.raises(FloatingPointError, match=r"step 25, turn 'model': loss nan.*20 steps in a row.*--optim\.lr"):
        fit(tiny(bad_from=6, bad_until=99), faces(), settings)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert all(value.isfinite().all() for value in load_file(newest / "model.safetensors").values())


def test_a_time_budget_includes_its_end(tmp_path: Path) -> None:
    start = time.monotonic()
    settings = recipe(tmp_path / "run", steps=None, minutes=4 / 60, startup=1.0)
    fit(tiny(Slow), faces(), settings)
    # A budget of four seconds: one is spent on start-up, 0.4 are needed after the last step.
    assert 2.2 < time.monotonic() - start < 3.4
    last = lines(tmp_path / "run")[-1]
    assert 2.7 < last["elapsed"] < 3.6
    state = json.loads((sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / STATE).read_text())["state"]
    assert state["costs"]["calibrate"] * 72 == pytest.approx(0.4, abs=0.1)


def test_precision_can_change_from_run_to_run(tmp_path: Path) -> None:
    exact = fit(tiny(), faces(), recipe(tmp_path / "no"))
    model = tiny()
    rough = fit(model, faces(), recipe(tmp_path / "bf16", mixed_precision="bf16"))
    difference = (tensors(rough)["model.safetensors"]["encoder.weight"] - model.encoder.weight).abs().max()
    assert difference == 0
    assert tensors(rough)["optimizer.safetensors"]["model.0.exp_avg"].dtype == torch.float32
    ratio = lines(rough)[-1]["loss"] / lines(exact)[-1]["loss"]
    assert ratio != 1
    assert ratio == pytest.approx(1, rel=0.02)
    assert model.encode(torch.zeros(1, 3, 8, 8)).dtype == torch.float32
    fit(model, faces(), recipe(tmp_path / "again"))


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bf16"), (False, "no")])
def test_auto_is_the_precision_that_is_fast_here_and_is_recorded(
    supported: bool, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmodels.training.setup.computes_bf16", lambda device: supported)
    automatic = fit(tiny(), faces(), recipe(tmp_path / "auto", mixed_precision="auto"))
    given = fit(tiny(), faces(), recipe(tmp_path / "given", mixed_precision=chosen))
    assert from_yaml(TinyRecipe, "tiny", automatic / "config.yaml").mixed_precision == chosen
    assert lines(automatic)[-1]["loss"] == lines(given)[-1]["loss"]


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    run = fit(tiny(), faces(), recipe(tmp_path / "run"))
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="is not empty: give another --output, or --resume"):
        fit(tiny(), faces(), recipe(run))
    again = recipe(run, resume=True)
    with pytest.raises(ValueError, match=r"model\.width is 8 here and 16 in the checkpoint"):
        fit(tiny(width=8), faces(), again)
    with pytest.raises(ValueError, match=r"seed is 1 here and 0.*batch_size is 4 here and 8"):
        fit(tiny(), faces(), recipe(run, resume=True, seed=1, batch_size=4))
    with pytest.raises(ValueError, match=r"cannot resume .*data is '"):
        fit(tiny(), faces(seed=1), again)
    with pytest.raises(ValueError, match="family is 'tinypair' here and 'tiny'"):
        fit(tiny(TinyPair), faces(), again)
    with pytest.raises(ValueError, match="8 px a side and the model 16"):
        fit(tiny(size=16), faces(), recipe(tmp_path / "other"))
    encoded = replace(faces(), latents=np.zeros((96, 2, 4), np.float32))
    with pytest.raises(ValueError, match="the data have latents of a codec, and this tiny is trained on images"):
        fit(tiny(), encoded, recipe(tmp_path / "other"))
    with pytest.raises(ValueError, match="start-up alone took 60 seconds"):
        fit(tiny(), faces(), recipe(tmp_path / "other", steps=None, minutes=1, startup=60.0))
    with pytest.raises(ValueError, match="is not divisible by"):
        fit(tiny(), faces(), recipe(tmp_path / "other", batch_size=9, accumulate=2))
    assert not (tmp_path / "other").exists()
    assert files == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
