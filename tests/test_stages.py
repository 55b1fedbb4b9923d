"""Runs in stages: resumed after every kind of stop, longer contexts, and stages that cannot follow each other."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from clip_pairs import clip
from PIL import Image
from test_pipeline import recipe_class
from tiny import faces, recipe, tiny

import genmodels
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.cli import main
from genmodels.nn.rope import rope
from genmodels.nn.transformer import TransformerConfig
from genmodels.training import fit as fitting
from genmodels.training.command_line import from_yaml
from genmodels.training.fit import fit
from genmodels.vqvae import VQVAE, VQVAEConfig

CODEC = VQVAEConfig(
    size=16, patch=2, channels=(16, 16), encoder_blocks=(0, 0), decoder_blocks=(0, 0), codebook_size=16, code_dim=4
)
BASE: dict[str, Any] = {
    "family": "autoregressive",
    "data": "folder",
    "track": "none",
    "mixed_precision": "no",
    "batch_size": 8,
    "save_every": 2,
    "log_every": 2,
    "sample_every": 100,
    "optim": {"warmup": 0, "lr": 0.01},
    "model": {"transformer": {"width": 32, "depth": 1, "heads": 2}},
}
SHORT, LONG = {"size": 16, "steps": 4, "optim": {"schedule": "constant"}}, {"size": 32, "steps": 4, "batch_size": 4}
ANNEALING = LONG | {"optim": {"lr": 1e-3, "schedule": "linear"}, "ema": 0.2}


@pytest.fixture(autouse=True)
def large(data: list[str], tmp_path: Path) -> None:
    """Enlarge the images of the fixture `data` to 32 px."""
    for file in (tmp_path / "faces").glob("*.png"):
        Image.open(file).resize((32, 32), Image.Resampling.NEAREST).save(file)


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    """Save a codec with 4 x 4 codes of images of 16 px."""
    torch.manual_seed(0)
    model = VQVAE(CODEC)
    model.initialise([torch.rand(32, 3, 16, 16) * 2 - 1])
    model.save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def settings(tmp_path: Path, stages: list[Any], **changes: Any) -> str:
    """Write a file of settings and return its path."""
    file = tmp_path / "stages.yaml"
    file.write_text(yaml.safe_dump(BASE | {"root": str(tmp_path / "faces")} | changes | {"stages": stages}))
    return str(file)


def train(*arguments: str, family: str = "autoregressive") -> int:
    return main(["train", family, *arguments])


def content(run: Path) -> dict[str, Any]:
    """Weights and metrics of all stages of a run, without what depends on the time."""
    found: dict[str, Any] = {}
    for file in run.rglob("*"):
        name = str(file.relative_to(run))
        if file.suffix == ".safetensors":
            found[name] = file.read_bytes()
        if file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [{k: v for k, v in line.items() if k in ("step", "loss", "lr")} for line in lines]
    return found


def stopping(monkeypatch: pytest.MonkeyPatch, at: int, how: Callable[[], None]) -> None:
    """Call `how` during the optimiser step number `at` from now on, whatever its stage."""
    calls = 0
    step = getattr(fitting.train_step, "original", fitting.train_step)

    def counted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            how()
        step(*arguments)

    counted.original = step  # type: ignore[attr-defined]
    monkeypatch.setattr(fitting, "train_step", counted)


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill() -> None:
    raise KeyboardInterrupt


def test_a_run_stopped_in_every_stage_equals_an_uninterrupted_one(
    data: list[str], tmp_path: Path, codec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = settings(tmp_path, [SHORT, LONG, ANNEALING], codec=str(codec))
    assert train("--config", file, "--output", "whole") == 0
    # Steps of each launch: 1.1-1.3 | 1.4, 2.1 (no checkpoint yet) | 2.1-2.3 | 2.3-2.4, 3.1-3.2 | the rest.
    # A signal saves a checkpoint; a run that is killed continues from an earlier one.
    for launch, (at, how) in enumerate([(3, ask), (2, kill), (3, kill), (4, ask)]):
        stopping(monkeypatch, at, how)
        arguments = ["--config", file] if launch == 0 else ["--resume"]
        assert train(*arguments, "--output", "parts") != 0
    stopping(monkeypatch, -1, kill)
    assert train("--resume", "--output", "parts") == 0
    whole, parts = content(Path("whole")), content(Path("parts"))
    last = [f"checkpoints/step_00000004/{name}.safetensors" for name in ("model", "ema", "optimizer")]
    names = [s + name for s in ("", "stages/1/", "stages/2/") for name in ("model.safetensors", "metrics.jsonl", *last)]
    assert [name for name in names if whole[name] != parts[name]] == []
    # Weights differ between stages, so that equal ones show something.
    assert len({whole[f"{stage}model.safetensors"] for stage in ("", "stages/1/", "stages/2/")}) == 3

    model = genmodels.load("parts")
    assert model.codec.latent_shape == (8, 8) and model.codec.config.size == 32
    assert model.generate(2, seed=0).shape == (2, 3, 32, 32)
    # The sides are twice as long, and 8 channels of a head turn by the row.
    assert model.prior.config.transformer.rope_theta == pytest.approx(10_000 * 2 ** (8 / 6))
    kept = yaml.safe_load(Path("parts/config.yaml").read_text())
    assert kept["stage"] == 3 and kept["parent"] == str(Path("parts/stages/2").absolute())
    assert kept["ema"] == 0.2 and kept["optim"]["lr"] == 1e-3 and kept["parent_minutes"] > 0
    assert yaml.safe_load(Path("parts/stages/1/config.yaml").read_text())["optim"]["schedule"] == "constant"


def test_each_stage_begins_with_the_model_of_the_one_before(data: list[str], tmp_path: Path, codec: Path) -> None:
    still = {"steps": 1, "optim": {"lr": 1e-30, "weight_decay": 0.0}}
    file = settings(tmp_path, [SHORT, still | {"size": 32}], codec=str(codec))
    assert train("--config", file, "--output", "run") == 0
    first, second = (genmodels.load(path).prior.state_dict() for path in ("run/stages/1", "run"))
    places = first.pop("decoder.places").T.view(1, -1, 4, 4)
    wider = torch.nn.functional.interpolate(places, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(second.pop("decoder.places"), wider[0].flatten(1).T, atol=1e-7, rtol=0)
    assert all(torch.equal(first[name], second[name]) for name in second) and first.keys() == second.keys()


def test_experts_and_text_survive_a_longer_context(data: list[str], tmp_path: Path, codec: Path) -> None:
    clip().save_pretrained(tmp_path / "clip")
    still = {"size": 32, "steps": 1, "optim": {"lr": 1e-30, "weight_decay": 0.0}}
    experts = {"count": 3, "top_k": 1, "rate": 1e-30}  # the bias hardly moves
    blocks = {"width": 32, "depth": 1, "heads": 2, "experts": experts}
    also = {"codec": str(codec), "text": str(tmp_path / "clip"), "model": {"transformer": blocks}}
    assert train("--config", settings(tmp_path, [SHORT, still], **also), "--output", "run") == 0
    first, second = (genmodels.load(path).prior.state_dict() for path in ("run/stages/1", "run"))
    assert sum("experts" in name or "router" in name for name in second) >= 3
    assert first.keys() == second.keys()
    for name in second.keys() - {"decoder.places"}:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-20)
    assert genmodels.load("run").generate(2, condition={"prompt": "a smiling woman"}).shape == (2, 3, 32, 32)


def test_text_and_images_in_one_sequence_are_trained_in_stages_and_packed(
    data: list[str], tmp_path: Path, codec: Path
) -> None:
    blocks = {"lm": {"documents": 3, "transformer": {"width": 32, "depth": 1, "heads": 2}}}
    stages = [{"size": 16, "steps": 2}, {"size": 32, "steps": 2, "batch_size": 4}]
    file = settings(tmp_path, stages, family="multimodal", codec=str(codec), model=blocks)
    assert train("--config", file, "--output", "run", family="multimodal") == 0
    model = genmodels.load("run").prior
    assert model.config.codes == (8, 8) and model.config.lm.documents == 3
    assert model.config.lm.transformer.rope_theta == pytest.approx(10_000 * 4 ** (16 / 14))


def test_data_initialise_the_first_stage_only(data: list[str], tmp_path: Path) -> None:
    """A VAE begins with the principal components of its images, and those of stage 2 are other ones."""
    small = {"channels": [16, 16], "encoder_blocks": [0, 0], "decoder_blocks": [0, 0], "latent_dim": 4}
    file = settings(
        tmp_path,
        [{"size": 16, "steps": 2}, {"size": 16, "steps": 1, "crop": "16", "optim": {"lr": 1e-30, "weight_decay": 0.0}}],
        family="vae",
        model=small,
    )
    assert train("--config", file, "--output", "run", family="vae") == 0
    first, second = (dict(genmodels.load(path).named_parameters()) for path in ("run/stages/1", "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    basis = [genmodels.load(path).state_dict()["principal.basis"] for path in ("run/stages/1", "run")]
    assert basis[0].any() and torch.equal(*basis)


def test_the_rotary_base_keeps_the_angle_across_the_grid_and_between_neighbours() -> None:
    short = Autoregressive(AutoregressiveConfig(codes=(4, 4), codebook_size=5, transformer=TransformerConfig(64, 1, 2)))
    config = AutoregressiveConfig(codes=(12, 12), codebook_size=5, transformer=TransformerConfig(64, 1, 2))
    theta = short.extended_config(config, {}).transformer.rope_theta
    at = lambda rows, base: rope(torch.tensor([[rows, 0]]), 32, base)[1][0, :8]  # noqa: E731  # sines of 8 pairs by row
    before, after = at(3, 10_000.0), at(9, theta)
    torch.testing.assert_close(before[-1], after[-1], atol=1e-7, rtol=1e-5)  # the slowest pair
    assert at(1, theta)[0] == at(1, 10_000.0)[0]  # the fastest pair
    given = short.extended_config(config, {"transformer": {"rope_theta": 10_000.0}})
    assert given.transformer.rope_theta == 10_000
    same = AutoregressiveConfig(codes=(4, 4), codebook_size=5, transformer=TransformerConfig(64, 1, 2))
    assert short.extended_config(same, {}) == same


def test_a_model_of_the_same_size_continues_as_it_is() -> None:
    config = AutoregressiveConfig(codes=(3, 4), codebook_size=5, transformer=TransformerConfig(16, 1, 2))
    first, second = Autoregressive(config), Autoregressive(config)
    second.extend_from(first)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_codec_at_another_size() -> None:
    codec = VQVAE(CODEC)
    codec.initialise([torch.rand(32, 3, 16, 16) * 2 - 1])
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    assert torch.equal(codec.at_size(16).encode(images), codec.eval().encode(images))
    large = codec.at_size(32)
    assert large.latent_shape == (8, 8) and torch.equal(large.encoder.head[2].weight, codec.encoder.head[2].weight)
    assert large.decode(large.encode(torch.rand(2, 3, 32, 32))).shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="size 30 is not divisible by 4"):
        codec.at_size(30)
    with pytest.raises(ValueError, match="its 4 codes describe images of 16 px as a whole"):
        VQVAE(VQVAEConfig(size=16, patch=2, channels=(16, 16), encoder_blocks=(0, 0), decoder_blocks=(0, 0), tokens=4,
                          codebook_size=16, code_dim=4)).at_size(32)  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([SHORT, LONG | {"size": 30}], "stage 2: --codec CODEC cannot be used for images of 30 px: size 30 is not div"),
        ([SHORT, {"size": 32}], "stage 2: give either steps or minutes"),
        ([SHORT | {"minutes": 1}], "stage 1: give either steps or minutes"),
        ([SHORT, LONG | {"output": "elsewhere"}], "stage 2: output is a setting of the whole run: remove it from"),
        ([SHORT, LONG | {"speed": 3}], "stage 2: settings: unknown setting 'speed'; known: "),
        ([SHORT, LONG | {"codec": None}], "stage 2: the model has 3 x 32 symbols at a position, and that of the stage"),
        ([SHORT, LONG | {"model": {"transformer": {"depth": 2}}}], "decoder.transformer.blocks.1.attention_norm"),
        (
            [SHORT, LONG | {"model": {"transformer": {"width": 64}}}],
            "stage 2: decoder.start differs in shape from",
        ),
        ([SHORT, LONG | {"optim": {"lr": -1}}], "stage 2: --optim.lr must be above 0, got -1"),
        ([SHORT, 3], "stages: expected a group of settings, got 3"),
        ([SHORT, LONG | {"codec": "nowhere"}], "stage 2: --codec nowhere: no such folder"),
    ],
)
def test_stages_that_cannot_follow_each_other_are_refused_before_the_first(
    data: list[str],
    tmp_path: Path,
    codec: Path,
    capsys: pytest.CaptureFixture[str],
    stages: list[Any],
    message: str,
) -> None:
    file = settings(tmp_path, stages, codec=str(codec))
    assert train("--config", file, "--output", "run") != 0
    error = capsys.readouterr().err.strip()
    assert message.replace("CODEC", str(codec)) in error and "\n" not in error
    assert not Path("run").exists()


def test_a_changed_stage_is_not_resumed(
    data: list[str], tmp_path: Path, codec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str, status: int = 1) -> str:
        capsys.readouterr()
        assert train(*arguments, "--output", "run") == status
        return capsys.readouterr().err.strip().splitlines()[-1]

    file = settings(tmp_path, [SHORT, LONG], codec=str(codec))
    assert "nothing to resume: there is no run in run" in refused("--config", file, "--resume")
    stopping(monkeypatch, 3, kill)
    assert train("--config", file, "--output", "run") != 0
    before = content(Path("run"))
    assert "run/stages/1 is not empty: give another --output, or --resume" in refused("--config", file)
    plain = ["--codec", str(codec), *data, "--size", "16", "--steps", "2", "--track", "none"]
    assert "run is not empty: give another --output" in refused(*plain)
    assert "there is no run in run" in refused(*plain, "--config", "run/stages/1/config.yaml", "--resume")
    file = settings(tmp_path, [SHORT | {"steps": 6}, LONG], codec=str(codec))
    error = refused("--config", file, "--resume")
    assert "cannot resume run: steps of stage 1 is 6 here and 4 in the run; use the stages of that run, or" in error
    file = settings(tmp_path, [SHORT, LONG, ANNEALING], codec=str(codec))
    assert "cannot resume run: it has 2 stages, and here are 3" in refused("--config", file, "--resume")
    assert content(Path("run")) == before
    stopping(monkeypatch, -1, kill)
    assert train("--resume", "--output", "run") == 0


def test_settings_that_lie_in_the_run_folder_do_not_end_a_stage(
    data: list[str], tmp_path: Path, codec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config.yaml that is written by hand is not that of a stage that has begun."""
    file = settings(tmp_path, [SHORT, LONG], codec=str(codec))
    Path("run").mkdir()
    (Path("run") / "config.yaml").write_text(Path(file).read_text())
    stopping(monkeypatch, 3, ask)
    assert train("--config", file, "--output", "run") == 1
    stopping(monkeypatch, -1, kill)
    assert train("--resume", "--output", "run") == 0
    assert (Path("run") / "stages" / "1" / "checkpoints" / "step_00000004").is_dir()
    assert (Path("run") / "config.1.yaml").read_text() == Path(file).read_text()


def test_a_folder_that_the_last_stage_cannot_use_is_refused_before_the_first(
    data: list[str], tmp_path: Path, codec: Path
) -> None:
    from genmodels.training.pipeline import train as run_pipeline

    file = Path(settings(tmp_path, [SHORT, LONG], codec=str(codec), output=str(tmp_path / "run")))
    made = from_yaml(recipe_class("autoregressive"), "autoregressive", file)
    made.output.mkdir()
    (made.output / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="run is not empty: give another --output"):
        run_pipeline(Autoregressive, made)
    assert [path.name for path in made.output.iterdir()] == ["notes.txt"]


def test_stages_are_only_for_training_from_nothing(data: list[str], tmp_path: Path, codec: Path) -> None:
    with pytest.raises(ValueError, match="this run cannot have stages"):
        fit(tiny(), faces(), recipe(tmp_path / "run", stages=({"steps": 2},)))
    made = from_yaml(recipe_class("autoregressive"), "autoregressive", Path(settings(tmp_path, [SHORT, LONG])))
    from genmodels.training.pipeline import train as run_pipeline

    with pytest.raises(ValueError, match="models of family autoregressive begin with others"):
        run_pipeline(Autoregressive, made, Autoregressive)


def test_a_dry_run_measures_every_stage(
    data: list[str], tmp_path: Path, codec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings(tmp_path, [SHORT, LONG], codec=str(codec))
    assert train("--config", file, "--output", "run", "--dry-run") == 0
    assert capsys.readouterr().out.count("FLOP") >= 2
    assert not Path("run").exists()
