"""Train a codec and then a prior by their commands, and use the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import genmodels
from genmodels.cli import main
from genmodels.hashing import weights_hash
from genmodels.latent import Latent

QUICK = ["--size", "16", "--batch-size", "8", "--track", "none", "--mixed-precision", "no"]
CODEC = ["--model.patch", "2", "--model.channels", "16", "16", "--model.encoder-blocks", "1", "0"]
CODEC += ["--model.decoder-blocks", "1", "0", "--model.codebook-size", "16", "--model.code-dim", "4"]
PRIOR = ["--model.transformer.width", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2"]


def train(*arguments: str) -> int:
    return main(["train", *arguments])


def test_codec_then_prior(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("vqvae", *data, *QUICK, *CODEC, "--steps", "6", "--output", "runs/vq") == 0
    asked = ["--model.condition.attributes", "Smiling", "--codec", "runs/vq"]
    assert train("autoregressive", *data, *QUICK, *PRIOR, *asked, "--steps", "8", "--output", "runs/ar") == 0
    assert "encoding" in capsys.readouterr().err

    model = genmodels.load("runs/ar")
    assert isinstance(model, Latent) and model.conditions.attributes == ("Smiling",)
    assert weights_hash(model.codec) == weights_hash(genmodels.load("runs/vq")) == model.config.codec_weights
    settings = yaml.safe_load(Path("runs/ar/config.yaml").read_text())
    assert settings["family"] == "autoregressive" and settings["codec"] == str(Path("runs/vq").absolute())
    card = Path("runs/ar/README.md").read_text()
    assert "genmodels train autoregressive --config" in card and "runs/vq" not in card

    asked = ["--attributes", "Smiling=yes", "--guidance", "2", "--top-p", ".9"]
    assert main(["sample", "runs/ar", "--n", "4", *asked]) == 0
    assert main(["reconstruct", "runs/ar", "faces/00.png", "faces/01.png"]) == 0
    assert main(["inpaint", "runs/ar", "faces/00.png", "--n", "2"]) == 0
    assert main(["info", "runs/ar"]) == 0
    assert "complete images of which a part is known (genmodels inpaint)" in " ".join(capsys.readouterr().out.split())

    # The same settings, from the config.yaml of the run. The codes are not computed again.
    assert train("autoregressive", "--config", "runs/ar/config.yaml", "--output", "runs/again") == 0
    assert "encoding" not in capsys.readouterr().err
    assert weights_hash(genmodels.load("runs/again")) == weights_hash(model)
    # Training without the cached codes gives the same model.
    assert train("autoregressive", "--config", "runs/ar/config.yaml", "--no-cache", "--output", "runs/plain") == 0
    assert weights_hash(genmodels.load("runs/plain")) == weights_hash(model)


def test_a_codec_trained_again_is_not_taken_for_the_old_one(
    data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in (("0", "runs/vq"), ("1", "runs/other")):
        assert train("vqvae", *data, *QUICK, *CODEC, "--steps", "3", "--seed", seed, "--output", name) == 0
    prior = ["autoregressive", *data, *QUICK, *PRIOR, "--codec", "runs/vq", "--output", "runs/ar"]
    assert train(*prior, "--steps", "4") == 0
    Path("runs/vq").rename("runs/old")
    Path("runs/other").rename("runs/vq")
    capsys.readouterr()
    assert train("autoregressive", "--resume", "--steps", "8", "--output", "runs/ar") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot resume" in error and "model.codec_weights is" in error
    Path("runs/vq").rename("runs/other")
    assert train("autoregressive", "--resume", "--steps", "8", "--output", "runs/ar") == 1
    assert f"--codec {Path('runs/vq').absolute()}: no such folder" in capsys.readouterr().err
    Path("runs/old").rename("runs/vq")
    assert train("autoregressive", "--resume", "--steps", "8", "--output", "runs/ar") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--codec", "nowhere"], "--codec nowhere: no such folder; train a codec first: genmodels train vqvae"),
        (["--model.levels", "1"], "levels must be 2 to 256"),
        (["--model.condition.attributes", "Beard"], "has no attribute 'Beard'; known: Smiling"),
    ],
)
def test_what_cannot_work_is_one_line(
    data: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("autoregressive", *data, *QUICK, *PRIOR, "--steps", "2", "--output", "runs/x", *arguments) > 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("genmodels: error: ") and message in error
    assert not Path("runs/x").exists()


def test_pixels(data: list[str]) -> None:
    arguments = [*QUICK, *PRIOR, "--model.levels", "8", "--steps", "4", "--output", "runs/pixels"]
    assert train("autoregressive", *data, *arguments) == 0
    model = genmodels.load("runs/pixels")
    assert model.family == "autoregressive" and model.likelihood_kind.levels == 8
    assert main(["sample", "runs/pixels", "--n", "2", "--out", "pixels.npy"]) == 0
    assert len(np.unique(np.load("pixels.npy"))) <= 8
