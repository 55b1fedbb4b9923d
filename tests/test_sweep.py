"""Sweeps: counts against closed forms, held-out losses, plans, and runs that are killed and continued."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.cli import main
from genmodels.data import draw_toyfaces, load_packed
from genmodels.dit import DiT, DiTConfig
from genmodels.gan import GAN, GANConfig
from genmodels.latent import Latent
from genmodels.nn.transformer import TransformerConfig
from genmodels.scaling import plan as planning
from genmodels.scaling import sweep as sweeping
from genmodels.scaling.counting import count
from genmodels.scaling.held_out import TIMES, held_out_loss
from genmodels.scaling.plan import PlannedRun, describe, read_plan
from genmodels.scaling.runs import MEASURED, effective_images, run_folders, table_of
from genmodels.training import fit as fitting
from genmodels.training import show
from genmodels.vqvae import VQVAE, VQVAEConfig

SMALL = TransformerConfig(width=32, depth=2, heads=1, hidden=88)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_toyfaces(tmp_path_factory.mktemp("faces") / "toy", 16, train=48, valid=24)


def test_any_number_of_toy_faces_can_be_drawn(faces: Path) -> None:
    data, other = load_packed(faces), draw_toyfaces(faces.parent / "other", 16, train=8, valid=2)
    assert data.counts() == {"train": 48, "valid": 24}
    assert np.array_equal(load_packed(other).images[:8], data.images[:8])
    assert not np.array_equal(load_packed(other).images[8], data.split("valid").images[0])


# ---- counting ----


def test_counts_of_a_dit_are_those_of_its_closed_form() -> None:
    """12 tokens' worth of products: 4 D^2 of attention, 3 D F of the MLP, and what is applied once per image."""
    c = DiTConfig(size=16, patch=4, transformer=SMALL)
    model = DiT(c)
    width, depth, hidden, tokens = 32, 2, 88, 16
    values = 3 * 4**2
    per_token = depth * (4 * width**2 + 3 * width * hidden) + 2 * values * width
    per_image = depth * 6 * width**2 + 2 * width**2 + 256 * width + width**2  # modulations, time embedding
    found = count(model)
    assert found.tokens == tokens
    assert found.parameters == pytest.approx(per_token + per_image / tokens)
    attention = depth * 2 * 2 * tokens**2 * width
    first = 2 * (values * width * tokens + 256 * width)  # the inputs need no gradients
    assert found.flops == pytest.approx(3 * (2 * found.parameters * tokens + attention) - first)


def test_a_frozen_codec_is_not_counted() -> None:
    codec = VQVAE(
        VQVAEConfig(size=16, patch=4, channels=(8,), encoder_blocks=(0,), decoder_blocks=(0,), codebook_size=8)
    )
    config = Autoregressive.config_over(AutoregressiveConfig(size=16, transformer=SMALL), codec)
    prior = Autoregressive(config)
    rows, columns = codec.latent_shape[:2]
    whole, alone = count(Latent.over(codec, prior)), prior.config
    assert whole.tokens == rows * columns and alone.codes is not None
    blocks = 2 * (4 * 32**2 + 3 * 32 * 88)
    assert whole.parameters == pytest.approx(blocks + 32 * alone.codebook_size)  # the logits, from the embedding


def test_repeated_data_are_worth_less() -> None:
    assert effective_images(500, 1_000) == 500
    assert 3_500 < effective_images(4_000, 1_000) < 4_000
    assert effective_images(1e9, 1_000) == pytest.approx(1_000 * 16.4)


# ---- held-out losses ----


def test_the_denoising_error_is_the_expected_training_loss(faces: Path) -> None:
    """Of a network that predicts 0, it is the mean square of the target, for every time."""
    data = load_packed(faces)
    model = DiT(DiTConfig(size=16, patch=4, transformer=SMALL))  # its head begins at 0
    found = held_out_loss(model, data, batch_size=10)
    images = torch.from_numpy(data.split("valid").images[:]).float() / 127.5 - 1
    expected = float(images.square().mean()) + 1  # E (eps - x_0)^2
    assert found.metric == "weighted denoising error" and found.images == 24
    assert found.value == pytest.approx(expected, rel=0.02)
    assert found.error is not None and 0 < found.error < 0.1
    assert held_out_loss(model, data, batch_size=24).value == pytest.approx(found.value, rel=1e-5)


def test_the_times_of_all_images_are_stratified(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    monkeypatch.setattr(
        DiT, "denoising_error", lambda self, images, noise, at: levels.append(at) or torch.ones(len(images))
    )
    held_out_loss(DiT(DiTConfig(size=16, patch=4, transformer=SMALL)), load_packed(faces), batch_size=7)
    every = torch.cat(levels).sort().values
    assert every == pytest.approx((torch.arange(24 * TIMES) + 0.5) / (24 * TIMES), abs=1e-6)


def test_an_autoregressive_model_has_bits_and_a_gan_nothing(faces: Path) -> None:
    data = load_packed(faces)
    model = Autoregressive(AutoregressiveConfig(size=16, levels=2, transformer=SMALL))
    assert held_out_loss(model, data).metric == "bits per dimension"
    gan = GAN(GANConfig(size=16))
    with pytest.raises(ValueError, match="gan models have no held-out loss"):
        held_out_loss(gan, data)


# ---- plans and runs ----

HOW = ["--model.patch", "8", "--model.gaussian", "0", "--mixed-precision", "no", "--size", "16"]


@pytest.fixture
def sweep(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that plans a tiny sweep into tmp_path/sweep."""
    monkeypatch.setattr(planning, "FEWEST_STEPS", 2)
    monkeypatch.setattr(planning, "WIDTHS", (16, 24, 32))
    budgets = ["--budgets", "4e7", "8e7", "1.6e8", "--sizes", "3"]
    return ["sweep", "dit", *budgets, "--out", str(tmp_path / "sweep"), "--data", str(faces), *HOW]


def test_a_plan_pays_for_whole_steps_of_its_budgets(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*sweep, "--plan"]) == 0
    plan = read_plan(tmp_path / "sweep")
    assert len(plan.runs) + len(plan.left_out) == 9 and len(plan.runs) >= 3
    for run in plan.runs:
        batch = int(run.arguments[run.arguments.index("--batch-size") + 1])
        assert abs(run.flops - run.budget) <= run.flops / run.images * batch / 2 * (1 + 1e-9)
    out = capsys.readouterr().out
    assert (
        f"{plan.flops:.3g} FLOPs in all" in out and "rule: depth" in out and out.splitlines()[:1] == describe(plan)[:1]
    )
    assert main(["sweep", "--out", str(tmp_path / "sweep"), "--list"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[-1] for line in commands) == sorted(run.name for run in plan.runs)
    other = [{"4e7": "5e7"}.get(word, word) for word in sweep]
    assert main([*other, "--plan"]) == 1
    assert "holds a sweep with budgets [40000000.0," in capsys.readouterr().err


def test_a_run_that_is_killed_and_continued_equals_an_uninterrupted_one(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "GRID", 1)  # which takes most of the time of such short runs
    first, second = tmp_path / "sweep", tmp_path / "second"
    assert main([*sweep, "--plan"]) == 0
    assert main([*(str(second) if word == str(first) else word for word in sweep), "--plan"]) == 0
    run = min(read_plan(first).runs, key=lambda run: run.images)
    assert main(["sweep", "--out", str(first), "--run", run.name]) == 0

    step, taken = fitting.train_step, []

    def killed(*args: object) -> None:
        taken.append(1)
        if len(taken) == 3:
            raise KeyboardInterrupt
        step(*args)

    monkeypatch.setattr(fitting, "train_step", killed)
    assert main(["sweep", "--out", str(second), "--run", run.name]) == 1
    assert not (second / run.name / MEASURED).exists()
    monkeypatch.setattr(fitting, "train_step", step)
    assert main(["sweep", "--out", str(second), "--run", run.name]) == 0
    results = [json.loads((out / run.name / MEASURED).read_text()) for out in (first, second)]
    assert results[0] == results[1] and results[0]["loss"]["value"] > 0

    monkeypatch.setattr(fitting, "train_step", None)  # a finished run is not trained again
    assert main(["sweep", "--out", str(second), "--run", run.name]) == 0
    assert [r.name for r in sweeping.unfinished(read_plan(second), second)].count(run.name) == 0
    assert run_folders([second]) == [second / run.name]
    with pytest.raises(ValueError, match="1 runs of 1 sizes"):
        table_of([second / run.name], print)
    assert main(["scaling", str(first), "--out", str(tmp_path / "law")]) == 1
    assert "add runs" in capsys.readouterr().err


def runs(count: int) -> list[PlannedRun]:
    return [PlannedRun(f"run{i}", 1e9, 1e9, 1e3, 1e6, 100, ()) for i in range(count)]


def test_local_runs_share_the_cores_and_failures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit(sys.argv[-1] == 'run1')")
    monkeypatch.setattr(sweeping, "cores", lambda: 4)
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sweeping.sys, "executable", str(program))
    said: list[str] = []
    assert sweeping.run_local(runs(3), tmp_path, 2, said.append) == ["run1"]
    assert len(said) == 3 and any("run1: failed with status 1" in line for line in said)
    assert (tmp_path / "logs" / "run0.txt").read_text() == "2\n"


def test_slurm_gets_one_command_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="pip install 'genmodels\\[slurm\\]'"):
        sweeping.submit(runs(1), tmp_path, 1, 60, None)

    class Executor:
        def __init__(self, folder: Path):
            self.parameters: dict[str, object] = {}

        def update_parameters(self, **settings: object) -> None:
            self.parameters |= settings

        def batch(self) -> Executor:
            return self

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

        def submit(self, function: list[str]) -> tuple[list[str], dict[str, object]]:
            return function, self.parameters

    fake = types.SimpleNamespace(AutoExecutor=Executor, helpers=types.SimpleNamespace(CommandFunction=list))
    monkeypatch.setitem(sys.modules, "submitit", fake)
    jobs = sweeping.submit(runs(2), tmp_path, 5, 60, "gpu")
    assert [job[0][-1] for job in jobs] == ["run0", "run1"]
    assert jobs[0][1]["slurm_partition"] == "gpu" and jobs[0][1]["slurm_array_parallelism"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown family 'nothing'"),
        (["gan", "--budgets", "1e9", "2e9", "3e9"], "sizes are planned for models with a transformer"),
        (["dit", "--budgets", "1e9", "2e9"], "a law needs at least 3 budgets and sizes, got 2 and 6"),
        (["dit", "--budgets", "1e9", "2e9", "3e9", "--sizes", "2"], "got 3 and 2"),
        (["dit", "--budgets", "1e9", "-1", "3e9"], "must be above 0"),
        (["dit", "--budgets", "1e9", "2e9", "3e9", "--steps", "5"], "--steps follows from the plan of a sweep"),
        (
            ["dit", "--budgets", "1e9", "2e9", "3e9", "--model.transformer.width", "64"],
            "--model.transformer.width follows from the plan of a sweep",
        ),
        (["--budgets", "1e9"], "Usage: genmodels sweep FAMILY"),
        ([], "holds no sweep: there is no plan.json"),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *arguments, "--out", str(tmp_path / "sweep")]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toyfaces", "--root", "x"], "toyfaces are drawn, not read from files"),
        (["toyfaces", "--count", "0"], "the number of faces must be at least 1, got 0"),
        (["folder", "--root", "x", "--count", "3"], "--count 3: the number of images of folder is that of its files"),
        (["folder"], "--data folder needs --root"),
    ],
)
def test_wrong_data_to_pack_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "pack", *arguments, "--out", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
