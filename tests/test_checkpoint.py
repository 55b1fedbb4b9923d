"""Checkpoints: atomic writes, damaged checkpoints are skipped, optimisers are restored exactly."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genmodels.nn.mixer import Branch
from genmodels.training import checkpoint
from genmodels.training.checkpoint import (
    State,
    load_checkpoint,
    load_optimizers,
    newest_checkpoint,
    problem_with,
    save_checkpoint,
    training_tensors,
)
from genmodels.training.optim import (
    OptimConfig,
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
)

IDENTITY = {"family": "net", "model": {"width": 4, "shape": (1, 2)}, "seed": 0}


def net(seed: int = 0) -> tuple[nn.Module, dict[str, Optimizer]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3))
    model = model.to(memory_format=torch.channels_last)
    return model, {"model": build_optimizer(model.parameters(), OptimConfig(), model)}


def step(model: nn.Module, optimizers: dict[str, Optimizer], seed: int) -> None:
    images = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    model(images).square().mean().backward()
    optimizers["model"].step()
    optimizers["model"].zero_grad()


def save(folder: Path, steps: int, keep: int = 5) -> Path:
    model, optimizers = net()
    for s in range(steps):
        step(model, optimizers, s)
    path = folder / f"step_{steps:08d}"
    save_checkpoint(path, State(step=steps, elapsed=1.5), IDENTITY, training_tensors(model, model, optimizers), keep)
    return path


def test_everything_comes_back_also_in_another_memory_format(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    model, optimizers = net(seed=1)
    ema = copy.deepcopy(model)
    state = load_checkpoint(path, IDENTITY, model, ema)
    load_optimizers(path, optimizers)
    assert (state.step, state.elapsed) == (3, 1.5)
    # The convolution is channels_last in memory, but its moments were saved as contiguous tensors.
    # One more step shows whether they are restored correctly.
    expected, theirs = net()
    for s in range(4):
        step(expected, theirs, s)
    step(model, optimizers, 3)
    for ours, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, other)
    assert not torch.equal(ema.state_dict()["0.weight"], model.state_dict()["0.weight"])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for steps in (1, 2, 3, 4):
        save(tmp_path, steps, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]
    assert newest_checkpoint(tmp_path, print).name == "step_00000004"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "state.json").unlink(), "state.json is missing"),
        (lambda path: (path / "state.json").write_text('{"format": 1, "st'), "state.json is damaged"),
        (lambda path: (path / "state.json").write_text('{"format": 3}'), "newer genmodels"),
        (lambda path: (path / "ema.safetensors").unlink(), "ema.safetensors is missing"),
        (lambda path: (path / "optimizer.safetensors").write_bytes(b"x"), "optimizer.safetensors is damaged"),
        (lambda path: _flip_last_byte(path / "model.safetensors"), "model.safetensors is damaged"),
    ],
)
def test_damaged_ones_are_passed_over(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    damage(bad)
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == good
    assert len(said) == 1
    assert str(bad) in said[0]
    assert reason in said[0]
    # Training that resumes from the older checkpoint replaces the damaged one.
    assert problem_with(save(tmp_path, 2)) is None
    assert newest_checkpoint(tmp_path, said.append) == bad


def test_none_that_is_whole_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no checkpoint"):
        newest_checkpoint(tmp_path, print)
    for steps in (1, 2):
        (save(tmp_path, steps) / "state.json").unlink()
    with pytest.raises(ValueError, match=r"none of the 2 checkpoints .* is complete"):
        newest_checkpoint(tmp_path, print)


def test_a_crash_while_saving_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path, 1, keep=1)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="the disk is full"):
        save(tmp_path, 2, keep=1)
    assert newest_checkpoint(tmp_path, print) == good
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path, print) == good
    save(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_differences_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    model, _ = net()
    other = IDENTITY | {"model": {"width": 8, "shape": (1, 2), "depth": 1}}
    with pytest.raises(
        ValueError, match=r"model\.width is 8 here and 4 in the checkpoint; model\.depth is 1 here and None"
    ):
        load_checkpoint(path, other, model, model)
    wider = nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3))
    with pytest.raises(ValueError, match="weights do not fit this version of the model"):
        load_checkpoint(path, IDENTITY, wider, wider)
    with pytest.raises(ValueError, match="weights do not fit this version of the model"):
        load_optimizers(path, {"model": build_optimizer(wider.parameters(), OptimConfig(), wider)})


def test_a_run_of_an_earlier_version_has_no_settings_that_were_added_since(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    model, _ = net()
    newer = IDENTITY | {"model": IDENTITY["model"] | {"class_names": (), "dropout": 0.0, "extra": False}}
    assert load_checkpoint(path, newer, model, model).step == 1
    with pytest.raises(ValueError, match="model.classes is 3 here and None in the checkpoint; use"):
        load_checkpoint(path, newer | {"model": newer["model"] | {"classes": 3}}, model, model)
    with pytest.raises(ValueError, match="model.width is 0 here and 4 in the checkpoint; use"):
        load_checkpoint(path, newer | {"model": newer["model"] | {"width": 0}}, model, model)


def test_no_pickle_is_written(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    record = json.loads((path / "state.json").read_text())
    assert set(record["files"]) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    shutil.rmtree(path)


class Hidden(nn.Linear, Branch):
    """A layer whose matrix Muon may train."""

    def residual(self) -> Iterable[Tensor]:
        return ()

    def muon(self) -> Iterable[Tensor]:
        return (self.weight,)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), Hidden(8, 8), nn.Linear(8, 2))


def train_mlp(model: nn.Sequential, optimizers: list[Optimizer], steps: range) -> None:
    for s in steps:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = 0.01 * (s + 1)  # as the loop sets it
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(s))).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()


def test_muon_trains_what_is_hidden_and_adamw_the_rest() -> None:
    config = OptimConfig(name="muon", weight_decay=0.1)
    ours, theirs = mlp(), mlp()
    train_mlp(ours, [build_optimizer(ours.parameters(), config, ours)], range(3))
    rest = [p for p in theirs.parameters() if p is not theirs[1].weight]
    matrices, vectors = [p for p in rest if p.ndim == 2], [p for p in rest if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=config.betas, weight_decay=0.1, fused=True)
    muon = torch.optim.Muon([theirs[1].weight], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    train_mlp(theirs, [muon, adamw], range(3))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_goes_on_from_a_checkpoint_as_if_uninterrupted(tmp_path: Path) -> None:
    config = OptimConfig(name="muon")
    whole, half, rest = mlp(), mlp(), mlp(seed=1)
    build = [build_optimizer(model.parameters(), config, model) for model in (whole, half, rest)]
    train_mlp(whole, [build[0]], range(4))
    train_mlp(half, [build[1]], range(2))
    path = tmp_path / "step_00000002"
    save_checkpoint(path, State(step=2), IDENTITY, training_tensors(half, half, {"model": build[1]}), 1)
    load_checkpoint(path, IDENTITY, rest, copy.deepcopy(rest))
    load_optimizers(path, {"model": build[2]})
    train_mlp(rest, [build[2]], range(2, 4))
    for one, other in zip(rest.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_without_hidden_matrices_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="no hidden matrices for it; it is for transformers"):
        build_optimizer(model.parameters(), OptimConfig(name="muon"), model)
    with pytest.raises(ValueError, match="must be adamw or muon, got 'sgd'"):
        OptimConfig(name="sgd").check()  # type: ignore[arg-type]


def test_weight_decay_is_for_matrices_and_kernels() -> None:
    model, _ = net()
    groups = build_optimizer(model.parameters(), OptimConfig(weight_decay=0.5), model).param_groups
    decayed = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decayed[id(p)] for p in model.parameters()] == [0.5, 0, 0, 0, 0.5, 0]


@pytest.mark.parametrize(
    ("schedule", "step_", "progress", "expected"),
    [
        ("constant", 0, 0.0, 0.1),
        ("constant", 9, 1.0, 1.0),
        ("linear", 20, 0.25, 0.75),
        ("linear", 4, 0.5, 0.25),
        ("cosine", 20, 0.5, 0.5),
        ("cosine", 20, 1 / 3, 0.75),
        ("cosine", 20, 1.0, 0.0),
    ],
)
def test_learning_rate(
    schedule: Literal["constant", "linear", "cosine"], step_: int, progress: float, expected: float
) -> None:
    config = OptimConfig(lr=1.0, warmup=10, schedule=schedule)
    assert learning_rate(config, step_, progress) == pytest.approx(expected, abs=1e-12)


def _flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"/dev/zero": {"bytes": 0, "sha256": ""}}},
        {"files": {"../../x": {"bytes": 0, "sha256": ""}}},
        {"files": {}},
        {"files": None},
        {"files": {name: {"bytes": -1, "sha256": 5} for name in checkpoint.TENSORS}},
        {"format": "x"},
        {"format": None},
        {"identity": []},
        {"state": {"step": -3}},
        {"state": {"step": 3, "elapsed": -1.0}},
        {"state": {"step": 3, "elapsed": "x"}},
        {"state": {"step": 3, "costs": {"save": None}}},
        {"state": None},
    ],
)
def test_a_state_of_other_types_or_other_files_is_damaged(change: dict, tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert problem_with(path) is None
    file = path / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert "state.json is damaged" in str(problem_with(path))


def test_a_link_to_a_device_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    record = json.loads((path / "state.json").read_text())
    record["files"]["model.safetensors"]["bytes"] = 0
    (path / "state.json").write_text(json.dumps(record))
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("/dev/zero")
    assert "model.safetensors is damaged" in str(problem_with(path))
    (path / "state.json").write_text("[" * 10_000)
    assert "state.json is damaged" in str(problem_with(path))


def test_a_run_killed_before_it_removed_older_checkpoints_removes_them_later(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 6):
        save_checkpoint(folder / f"step_{step:08d}", State(step), {}, {}, keep=3)
    save_checkpoint(folder / "step_00000006", State(6), {}, {}, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000004", "step_00000006"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"0.step": torch.ones(8)}, r"'0.step' of shape \(8,\) does not belong"),
        ({"0.exp_avg": torch.tensor(1.0)}, r"'0.exp_avg' of shape \(\) does not belong"),
        ({"x.step": torch.tensor(1.0)}, "'x.step' .* does not belong"),
        ({"0.other": torch.ones(4, 2, 3, 3)}, "parameter 0 is incomplete|of parameter 0"),
        ({"0.exp_avg": None}, "parameter 0 is incomplete: it has exp_avg_sq, step"),
    ],
)
def test_a_damaged_state_of_an_optimizer_is_refused(change: dict[str, Tensor | None], reason: str) -> None:
    model, optimizers = net()
    step(model, optimizers, 0)
    tensors: dict[str, Tensor | None] = {**optimizer_tensors(optimizers["model"]), **change}
    with pytest.raises(ValueError, match=reason):
        load_optimizer_tensors(net()[1]["model"], {name: t for name, t in tensors.items() if t is not None})
