"""What a run records about itself is what was trained, also when fit() is called from Python."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from test_latent import make, make_codec

import genmodels
from genmodels.base import Generator
from genmodels.cli import main
from genmodels.cli.run_folder import read_subject
from genmodels.data import cache_folder, load_packed, open_data
from genmodels.training.command_line import from_yaml
from genmodels.training.recipe import Recipe, check_recipe
from genmodels.usage import expand_home

NETWORKS = dict(channels=(16, 24), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_dim=4, mixture=1)


def settings(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def quick(output: Path, **changes: object) -> Recipe:
    base = Recipe(output=output, steps=2, batch_size=8, track="none")
    return replace(base, **changes)


def test_the_config_of_the_model_and_the_source_of_the_data(data: list[str], tmp_path: Path) -> None:
    """The recipe says toyfaces of 64 px, and a default model: what is recorded is what was given."""
    faces = open_data("folder", data[3], size=16)
    model = genmodels.VAE(genmodels.VAEConfig(size=16, **NETWORKS))
    run = genmodels.fit(model, faces, quick(tmp_path / "run"))
    recorded = settings(run)
    assert recorded["family"] == "vae" and recorded["data"] == "folder" and recorded["root"] == data[3]
    assert recorded["size"] == recorded["model"]["size"] == 16
    assert recorded["model"]["latent_dim"] == 4 and recorded["fingerprint"] == faces.fingerprint
    card = (run / "README.md").read_text()
    assert "latent_dim: 4" in card and "data: folder" in card and data[3] not in card
    command = [
        "train",
        "vae",
        "--config",
        str(run / "config.yaml"),
        "--steps",
        "1",
        "--output",
        str(tmp_path / "again"),
    ]
    assert main(command) == 0
    again = settings(tmp_path / "again")
    assert again["model"] == recorded["model"] and again["fingerprint"] == faces.fingerprint


def test_data_made_in_memory_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = genmodels.VAE(genmodels.VAEConfig(size=16, **NETWORKS))
    run = genmodels.fit(model, tiny.faces(60, size=16), quick(tmp_path / "run"))
    assert settings(run)["data"] == "in-memory"
    assert main(["evaluate", str(run)]) == 2
    assert "does not record which images it was trained on: give --data" in capsys.readouterr().err


def test_data_that_have_changed_are_refused(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "pack"
    assert main(["data", "pack", "folder", "--root", data[3], "--size", "16", "--out", str(packed)]) == 0
    model = genmodels.VAE(genmodels.VAEConfig(size=16, **NETWORKS))
    run = genmodels.fit(model, load_packed(packed), quick(tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(load_packed(packed).fingerprint, "0123456789abcdef"))
    assert main(["evaluate", str(run), "--n", "256"]) == 1
    assert "was trained on other images than" in capsys.readouterr().err


def test_a_codec_from_python_is_asked_for(tmp_path: Path) -> None:
    """Without it, --config would train a model of pixels."""
    run = genmodels.fit(make(make_codec()), tiny.faces(60, size=16), quick(tmp_path / "run"))
    recorded = settings(run)
    assert recorded["family"] == "autoregressive" and recorded["codec"] == "in-memory"
    assert recorded["model"]["codes"] == [4, 4]


def test_minutes_include_those_of_the_codec(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("family: unet\nema: 0.1\ncodec_minutes: 6.0\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "elapsed": 1260.0, "images": 640}\n')
    assert read_subject(str(tmp_path), "latent").training == {"images": 640, "steps": 10, "minutes": 27.0}


def test_the_training_loop_in_the_docstring_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmodels.data.open_data", lambda *_, **__: tiny.faces(96, size=64))
    example = doctest.DocTestParser().get_doctest(Generator.__doc__, {}, "loop", None, 0)
    assert len(example.examples) >= 8
    torch.manual_seed(0)
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "data: null\nfingerprint: ab",
        "data: ''\nfingerprint: ab",
        "data: toyfaces",
        "data: in-memory\nfingerprint: ab",
    ],
)
def test_evaluate_asks_for_images_that_are_not_identified(
    lines: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    genmodels.VAE(genmodels.VAEConfig(size=16, **NETWORKS)).save_pretrained(run)
    (run / "config.yaml").write_text(f"family: vae\n{lines}\n")
    assert main(["evaluate", str(run)]) == 2
    assert "does not record which images it was trained on: give --data" in capsys.readouterr().err


def test_evaluate_asks_for_images_that_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    genmodels.VAE(genmodels.VAEConfig(size=16, **NETWORKS)).save_pretrained(run)
    (run / "config.yaml").write_text(f"family: vae\ndata: {tmp_path / 'gone'}\nfingerprint: ab\n")
    assert main(["evaluate", str(run)]) == 2
    assert "does not exist: give --data" in capsys.readouterr().err


def test_paths_of_a_run_mean_the_same_from_every_folder(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(data[3])
    monkeypatch.chdir(root.parent)
    faces = open_data("folder", root.name, size=16)
    model = genmodels.VAE(genmodels.VAEConfig(size=16, **NETWORKS))
    run = genmodels.fit(model, faces, quick(tmp_path / "run"))
    assert settings(run)["root"] == str(root.absolute())
    assert main(["data", "pack", "folder", "--root", root.name, "--size", "16", "--out", "packed"]) == 0
    packed = genmodels.fit(model, load_packed(Path("packed")), quick(Path("relative")))
    assert settings(packed)["data"] == str(root.parent.absolute() / "packed")
    assert settings(packed)["output"] == str(root.parent.absolute() / "relative")
    for folder in (run, packed):
        assert str(root.parent) not in (folder / "README.md").read_text()


def test_the_home_folder_is_never_a_folder_called_tilde(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(Path(data[3]).parent))
    name = Path(data[3]).name
    assert expand_home(["--output=~/x", "--root", "~/y", "a~b", "~", "--text=a=~/b", "~user"]) == [
        f"--output={Path.home()}/x",
        "--root",
        f"{Path.home()}/y",
        "a~b",
        str(Path.home()),
        "--text=a=~/b",
        "~user",
    ]
    monkeypatch.setenv("GENMODELS_CACHE", "~/a cache")
    assert cache_folder() == Path.home() / "a cache"
    assert open_data("folder", f"~/{name}", size=16).size == 16
    assert main(["data", "pack", "folder", f"--root=~/{name}", "--size", "16", "--out=~/packed"]) == 0
    assert open_data("~/packed").fingerprint == load_packed(Path.home() / "packed").fingerprint
    assert check_recipe(Recipe(output=Path("~/run"))).output == Path.home() / "run"
    (tmp_path / "config.yaml").write_text("family: vae\nroot: ~/faces\noutput: ~/run\n")
    assert from_yaml(Recipe, "vae", tmp_path / "config.yaml").root == Path.home() / "faces"
    assert not list(tmp_path.glob("~*"))
