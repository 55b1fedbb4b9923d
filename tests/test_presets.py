"""Presets in configs/: they are found by name, build their models, and train; and the script for SLURM."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from test_pipeline import recipe_class

import genmodels
from genmodels.cli import main
from genmodels.training.command_line import parse
from genmodels.training.pipeline import derived_config
from genmodels.training.presets import presets

ROOT = Path(__file__).parent.parent
NAMES = ("celeba-64-codec", "celeba-64", "cifar10-32", "folder-256-codec", "folder-256-dit", "folder-256-unet")
PARAMETERS = {
    "celeba-64": 4_157_584,
    "celeba-64-codec": 1_263_040,
    "cifar10-32": 25_843_715,
    "folder-256-codec": 7_822_656,
    "folder-256-dit": 130_000_000,
    "folder-256-unet": 61_104_784,
}
"""Parameters of each model, without its codec."""


def family_of(name: str) -> str:
    lines = presets()[name].read_text().splitlines()
    return next(line.removeprefix("family: ") for line in lines if line.startswith("family: "))


def built(name: str, codec: Any = None) -> tuple[Any, Any]:
    """Return the settings of a preset, and its model on the meta device."""
    family = family_of(name)
    settings = parse(recipe_class(family), family, ["--config", name])
    kind = genmodels.family(family)
    with torch.device("meta"):
        return settings, kind(derived_config(kind, settings, codec))


def test_presets_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(presets()) == NAMES
    vae = recipe_class("vae")
    with pytest.raises(
        ValueError, match="--config folder-257: no such file; the presets are celeba-64-codec, .*-256-unet"
    ):
        parse(vae, "vae", ["--config", "folder-257"])
    with pytest.raises(ValueError, match="folder-256-dit.yaml is a recipe of family 'dit', not 'vae'"):
        parse(vae, "vae", ["--config", "folder-256-dit"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder-256-dit").write_text("family: vae\nbatch_size: 3\n")  # a file comes first
    assert parse(vae, "vae", ["--config", "folder-256-dit"]).batch_size == 3
    (tmp_path / "celeba-64").mkdir()  # a folder of this name, such as a packed directory, is not a file
    assert parse(recipe_class("dit"), "dit", ["--config", "celeba-64"]).minutes == 21


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_builds_its_model_and_says_how_it_is_used(name: str) -> None:
    text = presets()[name].read_text()
    assert text.startswith("# ") and f"#   genmodels train {family_of(name)} --config {name} --root " in text
    settings, model = built(name, codec_of(name))
    assert settings.output == Path("runs") / name and model.config.size == settings.size == int(name.split("-")[1])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PARAMETERS[name], rel=0.01)
    assert settings.batch_size % (8 * settings.accumulate) == 0  # on eight GPUs
    if name == "cifar10-32":
        assert model.conditions.classes == 10


def codec_of(name: str) -> Any:
    """Return the codec that a preset names, on the meta device, or None."""
    family = family_of(name)
    codec = getattr(parse(recipe_class(family), family, ["--config", name]), "codec", None)
    return None if codec is None else built(codec.name)[1]


@pytest.mark.parametrize(("name", "result"), [("celeba-64", "dit.yaml"), ("celeba-64-codec", "vqvae.yaml")])
def test_the_presets_of_celeba_are_those_of_the_published_results(name: str, result: str) -> None:
    family = family_of(name)
    published, ours = (
        parse(recipe_class(family), family, ["--config", str(path)])
        for path in (ROOT / "docs" / "results" / "dit-27" / result, presets()[name])
    )
    for field in fields(ours):
        if field.name not in ("output", "codec", "root", "seed", "mixed_precision"):
            assert getattr(ours, field.name) == getattr(published, field.name), field.name
    # The published runs had a processor with bf16, for which auto chooses it.
    assert (published.mixed_precision, ours.mixed_precision) == ("bf16", "auto")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ten folders of four smooth images. Runs draw grids of 4 samples, not of 64."""
    monkeypatch.setattr("genmodels.training.show.GRID", 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "photos" / f"class {i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)).save(folder / f"{i}.png")
    return tmp_path / "photos"


SMALL = ["--size", "16", "--batch-size", "8", "--steps", "1", "--track", "none", "--data", "folder"]
CODEC = ["--model.channels", "16", "16", "--model.codebook-size", "16"]
DIT = ["--model.transformer.width", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]
UNET = ["--model.channels", "16", "32", "--model.attention", "False", "True", "--model.head", "8"]
UNET += ["--model.groups", "8", "--model.blocks", "1"]


@pytest.mark.parametrize(
    "commands",
    [
        [("vqvae", "folder-256-codec", CODEC), ("dit", "folder-256-dit", DIT), ("unet", "folder-256-unet", UNET)],
        [("vqvae", "celeba-64-codec", CODEC), ("dit", "celeba-64", DIT)],
        [("unet", "cifar10-32", UNET)],
    ],
    ids=["folder", "celeba", "cifar10"],
)
def test_a_small_copy_of_a_preset_trains(photos: Path, commands: list[tuple[str, str, list[str]]]) -> None:
    for family, name, network in commands:
        prior = ["--model.gaussian", "8"] if family != "vqvae" and name != "cifar10-32" else []
        assert main(["train", family, "--config", name, "--root", str(photos), *SMALL, *network, *prior]) == 0
        model = genmodels.load(Path("runs") / name)
        assert model.config.size == 16
        if name == "cifar10-32":
            assert (
                main(["sample", "runs/cifar10-32", "--n", "1", "--label", "class 3", "--guidance", "2", "--steps", "2"])
                == 0
            )


@pytest.mark.parametrize(("machines", "gpus"), [(2, 8), (1, 4), (1, 1)])
def test_the_script_for_slurm_calls_the_launcher(tmp_path: Path, machines: int, gpus: int) -> None:
    """With stand-ins for the commands of SLURM and accelerate, whose own parser reads the arguments."""
    stubs = {
        "scontrol": 'test "$1 $2 $3" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"',
        "srun": f'shift; for i in $(seq 0 {machines - 1}); do SLURM_NODEID=$i "$@"; done',
        "accelerate": 'printf "%s\\n" "$@" ===',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": str(machines), "SLURM_JOB_ID": "123456"}
    env = os.environ | job | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "configs" / "slurm.sh"), "recipes/dit.py", "--config", "my file", "--compile"]
    refused = subprocess.run(command, env=env, capture_output=True, text=True)
    assert refused.returncode != 0 and "no GPUs: submit with --gpus-per-node" in refused.stderr
    done = subprocess.run(command, env=env | {"SLURM_GPUS_ON_NODE": str(gpus)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    launches = [launch.split("\n") for launch in done.stdout.removesuffix("===\n").split("===\n")]
    assert len(launches) == machines
    for rank, launch in enumerate(launches):
        assert launch.pop(0) == "launch" and launch.pop() == ""
        read = launch_command_parser().parse_args(launch)
        assert (read.num_machines, read.num_processes, read.machine_rank) == (machines, machines * gpus, rank)
        assert (read.main_process_ip, read.main_process_port) == ("node1", 23456)
        assert read.multi_gpu == (machines * gpus > 1)
        assert read.training_script == "recipes/dit.py"
        assert read.training_script_args == ["--config", "my file", "--compile"]
