"""From a recipe to a trained model: derived fields, codecs, families without a recipe."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import genmodels
from genmodels.cli import main
from genmodels.cli.run_folder import read_subject
from genmodels.cli.train import recipes
from genmodels.data import pack
from genmodels.saving import Derived, reset_derived
from genmodels.training.command_line import parse
from genmodels.training.flags import field_help
from genmodels.training.pipeline import derived_config, recipe_for
from genmodels.training.recipe import PriorRecipe, Recipe
from genmodels.vae import VAE, VAEConfig
from genmodels.vqvae import VQVAE, VQVAEConfig

RESULTS = sorted((Path(__file__).parent.parent / "docs" / "results").rglob("*.yaml"))
QUICK = ["--batch-size", "8", "--track", "none", "--mixed-precision", "no", "--steps", "2"]
CODEC = ["--model.patch", "2", "--model.channels", "16", "16", "--model.encoder-blocks", "1", "0"]
CODEC += ["--model.decoder-blocks", "1", "0", "--model.codebook-size", "16", "--model.code-dim", "4"]
PRIOR = ["--model.transformer.width", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]


def recipe_class(name: str) -> Any:
    """The recipe dataclass of a file of recipes/."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", recipes()[name])
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == spec.name)


@dataclass(frozen=True)
class Part:
    features: Derived[int] = 0


@dataclass(frozen=True)
class Net:
    size: Derived[int] = 64
    latents: Derived[tuple[int, ...] | None] = None
    patch: int = 4
    part: Part = Part()

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise ValueError("patch")


@dataclass(frozen=True)
class NetRecipe(Recipe):
    model: Net = Net()


def test_derived_fields_of_another_run_are_not_used() -> None:
    recorded = Net(size=32, latents=(4, 8, 8), part=Part(3))
    assert reset_derived(recorded) == replace(recorded, size=64, latents=None, part=Part(0))
    config = derived_config(VAE, NetRecipe(size=16, model=recorded))
    assert (config.size, config.latents, config.part.features) == (16, None, 0)
    with pytest.raises(ValueError, match="patch"):
        derived_config(VAE, NetRecipe(size=18))


def test_flags_of_the_model_are_checked_against_the_size_of_the_run() -> None:
    chosen = parse(NetRecipe, "net", ["--size", "30", "--model.patch", "3"])  # 3 does not divide the default, 64
    assert (chosen.model.size, chosen.model.patch) == (30, 3)
    with pytest.raises(ValueError, match="Unrecognized options: --model.size.*--help-all"):
        parse(NetRecipe, "net", ["--model.size", "30"])


def test_a_run_records_its_size_everywhere(data: list[str]) -> None:
    assert main(["train", "vqvae", *data, *QUICK, *CODEC, "--size", "16", "--output", "runs/vq"]) == 0
    settings = yaml.safe_load(Path("runs/vq/config.yaml").read_text())
    assert settings["size"] == settings["model"]["size"] == 16
    assert json.loads(Path("runs/vq/config.json").read_text())["model"]["size"] == 16


def test_a_pack_knows_its_size(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pack("folder", Path(data[3]), Path("packed"), 16)
    for flags in (["--data", "packed"], ["--data=packed"], ["--data", "packed", "--size", "None"]):
        chosen = parse(NetRecipe, "net", flags)
        assert chosen.model.size == 16 and chosen.size in (16, None)
    assert parse(NetRecipe, "net", []).size == parse(NetRecipe, "net", ["--data", "nowhere"]).size == 64
    train = ["train", "vqvae", "--data", "packed", *QUICK, *CODEC, "--output", "runs/vq"]
    assert main([*train, "--size", "32"]) == 1
    message = "packed holds images of 16 px, not 32: choose --size 16, or pack the images again"
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
    assert main(train) == 0
    settings = yaml.safe_load(Path("runs/vq/config.yaml").read_text())
    assert settings["size"] == settings["model"]["size"] == 16
    Path("packed/manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a manifest of genmodels"):
        parse(NetRecipe, "net", ["--data", "packed"])


def test_the_minutes_of_a_codec_count(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--size", "16"]
    assert main(["train", "vqvae", *data, *QUICK, *CODEC, *size, "--output", "runs/vq"]) == 0
    with open("runs/vq/metrics.jsonl", "a") as log:
        log.write(json.dumps({"step": 3, "elapsed": 600.0}) + "\n")
    over = ["--codec", "runs/vq", "--output", "runs/ar"]
    assert main(["train", "autoregressive", *data, *QUICK, *PRIOR, *size, *over]) == 0
    settings = yaml.safe_load(Path("runs/ar/config.yaml").read_text())
    assert settings["codec_minutes"] == 10
    last = json.loads(Path("runs/ar/metrics.jsonl").read_text().splitlines()[-1])
    minutes = read_subject("runs/ar", "latent").training["minutes"]
    assert minutes == pytest.approx(10 + last["elapsed"] / 60)


def test_unet_over_a_codec_is_ldm() -> None:
    unet, ldm = recipe_class("unet"), recipe_class("ldm")
    given = ["--codec", "runs/x", "--output", "runs/y"]
    one, other = parse(unet, "unet", given), parse(ldm, "ldm", given)
    assert {f.name: getattr(one, f.name) for f in fields(one)} == {
        f.name: getattr(other, f.name) for f in fields(other)
    }
    assert one.model.channels == (80, 160) and one.batch_size == 64
    assert parse(unet, "unet", []).model.channels == (48, 96, 192)
    assert parse(unet, "unet", [*given, "--model.channels", "32", "64"]).model.channels == (32, 64)


def test_settings_of_a_prior_serve_another_codec_and_pixels(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    model = {"size": 32, "codes": [8, 8], "codebook_size": 16}
    path.write_text(yaml.safe_dump({"family": "autoregressive", "size": 32, "codec": "runs/x", "model": model}))
    kind = genmodels.family("autoregressive")
    pixels = parse(recipe_class("autoregressive"), "autoregressive", ["--config", str(path), "--codec", "None"])
    config = derived_config(kind, pixels)
    assert (config.size, config.codes, config.codebook_size) == (32, None, None)
    codec = VQVAE(VQVAEConfig(size=32, patch=4, codebook_size=7))
    config = derived_config(kind, pixels, codec)
    assert (config.codes, config.codebook_size) == (codec.latent_shape, 7)
    with pytest.raises(ValueError, match="Unrecognized options: --model.codes"):
        parse(recipe_class("autoregressive"), "autoregressive", ["--model.codes", "4", "4"])


def test_settings_of_an_aligned_run_serve_without_alignment(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"family": "dit", "align": "faces", "model": {"align": {"features": 128}}}))
    dit, kind = recipe_class("dit"), genmodels.family("dit")
    given = ["--config", str(path)]
    assert derived_config(kind, parse(dit, "dit", given)).align.features == 0
    assert derived_config(kind, parse(dit, "dit", [*given, "--align", "None"])).align.features == 0


@pytest.mark.parametrize("name", recipes())
def test_flags_that_help_shows_exist_and_are_explained(name: str) -> None:
    recipe = recipe_class(name)()
    assert recipe.shown
    for path in recipe.shown:
        *outer, field = path.split(".")
        owner: Any = recipe
        for part in outer:
            owner = getattr(owner, part)
        assert field in {f.name for f in fields(owner)}
        if outer:
            assert len(field_help(type(owner), field)) > 5


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: str(p.relative_to(RESULTS[0].parents[1])))
def test_settings_of_published_results_can_be_run_again(path: Path) -> None:
    family = yaml.safe_load(path.read_text())["family"]
    chosen = parse(recipe_class(family), family, ["--config", str(path)])
    kind = genmodels.family({"ldm": "unet"}.get(family, family))
    assert derived_config(kind, chosen).size == chosen.size


def test_settings_of_a_family_without_a_recipe() -> None:
    made = recipe_for(VAE)
    assert not issubclass(made, PriorRecipe) and issubclass(recipe_for(genmodels.family("unet")), PriorRecipe)
    assert made().model == VAEConfig()
    assert parse(made, "mine", ["--model.latent-dim", "8", "--size", "32"]).model == VAEConfig(latent_dim=8, size=32)
