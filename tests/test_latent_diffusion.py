"""Latent diffusion over maps, vectors and quantised codecs, with recipes and commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_contract import faces
from test_two_commands import CODEC, QUICK, train
from tiny import faces as noise

import genmodels
from genmodels.cli import main
from genmodels.codecs import load_codec, prior_shape
from genmodels.conditions import Condition
from genmodels.data.packed import Packed
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.hashing import weights_hash
from genmodels.latent import Latent
from genmodels.pretrained import PretrainedConfig, PretrainedKL
from genmodels.training import pipeline
from genmodels.types import Noise
from genmodels.vae import VAE, VAEConfig
from genmodels.vqvae import VQVAE, VQVAEConfig

NETWORKS: dict[str, Any] = dict(size=16, patch=2, channels=(16, 16), encoder_blocks=(1, 0), decoder_blocks=(1, 0))
KL = dict(
    down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
    up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    block_out_channels=(8, 8),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
)
TINY = dict(
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1),
)
UNET = ["--model.channels", "16", "--model.attention", "True", "--model.head", "8", "--model.groups", "8"]
UNET += ["--model.blocks", "1", "--model.gaussian", "8"]


def codec(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "vqvae":
        made: Any = VQVAE(VQVAEConfig(**NETWORKS, codebook_size=16, code_dim=4))
    else:
        made = VAE(VAEConfig(**NETWORKS, latent_dim=4, spatial=kind == "map", mixture=1))
    made.initialise([faces(24, seed=3, size=16)])
    made.calibrate([faces(24, seed=3, size=16)])
    return made.eval()


def over(codec: Any, **settings: Any) -> Latent:
    torch.manual_seed(1)
    shape = prior_shape(codec, codes=False)
    network: dict[str, Any] = dict(channels=(16,), attention=(True,), head=8, groups=8, blocks=1, gaussian=4)
    model = Latent.over(codec, UNet(UNetConfig(**(dict(size=16, latents=shape) | network | settings))))
    model.initialise([faces(24, seed=3, size=16)])
    return model.eval()


@pytest.mark.parametrize("kind", ["map", "vector", "vqvae"])
def test_what_the_prior_sees_has_unit_variance(kind: str) -> None:
    model = over(codec(kind))
    seen = model.scaled(model.encode(faces(24, seed=3, size=16)))
    assert abs(seen.std() - 1) < 0.1
    assert seen.shape[1:] == model.prior.config.latents
    with torch.no_grad():
        assert model.generate(2, steps=3).shape == (2, 3, 16, 16)


def test_vectors_are_learnt_before_they_are_quantised_and_decoded_after() -> None:
    vq = codec("vqvae")
    assert vq.can("quantise")
    model, images = over(vq), faces(4, size=16)
    with torch.no_grad():
        assert torch.equal(model.encode(images), vq.vectors(images))
        assert torch.equal(vq.quantiser.encode(vq.vectors(images)), vq.encode(images))
        torch.testing.assert_close(model.reconstruct(images), vq.reconstruct(images), rtol=0, atol=1e-5)
        # A small error of the prior does not show: the nearest code is the same for nearly all.
        latents = model.scaled(model.encode(images))
        moved = model.decode(latents + 1e-4)
    assert ((moved - vq.reconstruct(images)).abs() < 1e-5).float().mean() > 0.9


def test_vectors_and_codes_of_one_codec_are_cached_apart() -> None:
    model = over(codec("vqvae"))
    assert model.latents_name != (weights := model.config.codec_weights) and model.latents_name.startswith(weights)
    assert over(codec("map")).latents_name == over(codec("map")).config.codec_weights


def test_a_latent_model_can_do_what_its_prior_can() -> None:
    model = over(codec("map"))
    for ability in ("inpaint", "interpolate", "morph", "edit", "trajectory"):
        assert model.can(ability)
    from test_latent import make

    tokens = make()
    assert tokens.can("inpaint")
    for ability in ("interpolate", "morph", "edit", "trajectory"):
        assert not tokens.can(ability)


def test_any_region_is_completed_through_a_map_and_none_through_a_vector() -> None:
    images = faces(2, size=16)
    known = torch.ones(16, 16, dtype=torch.bool)
    known[5:9, 5:9] = False
    model = over(codec("map"))
    noise = Noise.for_images(0, range(2))
    with torch.no_grad():
        found = model.inpaint(images, known, noise, Condition(), model.options(steps=3))
        hidden = torch.where(known, images, 1.0)
        same = model.inpaint(hidden, known, Noise.for_images(0, range(2)), Condition(), model.options(steps=3))
    assert torch.equal(found[..., known], images[..., known])
    assert torch.equal(found, same), "what is unknown was looked at"
    with pytest.raises(ValueError, match="at least one such square must be known"):
        model.inpaint(images, torch.eye(16).bool(), noise, Condition(), model.options())
    vector = over(codec("vector"))
    assert model.can("inpaint") and not vector.can("inpaint")
    with pytest.raises(ValueError, match="describe the whole image, so no part of them can be known"):
        vector.inpaint(images, known, noise, Condition(), vector.options())


def test_a_prior_for_other_latents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"latents is \(4, 8, 8\) and the codec has \(4, 4, 4\)"):
        over(codec("map"), latents=(4, 8, 8))
    with pytest.raises(ValueError, match=r"built for another codec: latents is None and the codec has \(4, 4, 4\)"):
        over(codec("map"), latents=None)


def test_a_kl_autoencoder_is_measured_before_use() -> None:
    torch.manual_seed(0)
    kl = PretrainedKL(PretrainedConfig(16, KL)).requires_grad_(False).eval()
    kl.prepare([faces(24, seed=3, size=16)])
    model = over(kl)
    assert abs(model.encode(faces(24, seed=3, size=16)).std() - 1) < 0.1
    untouched = codec("map")
    before = weights_hash(untouched)
    untouched.prepare([faces(4, size=16)])
    assert weights_hash(untouched) == before


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "VQModel"])
def test_a_folder_of_diffusers_is_a_codec_of_the_recipe(kind: str, data: list[str]) -> None:
    import diffusers

    torch.manual_seed(0)
    settings = {"AutoencoderKL": KL, "AutoencoderTiny": TINY, "VQModel": KL | dict(num_vq_embeddings=16)}[kind]
    getattr(diffusers, kind)(**settings).save_pretrained("codec")
    assert train("ldm", *data, *QUICK, *UNET, "--codec", "codec", "--steps", "3", "--output", "runs/ldm") == 0
    assert main(["sample", "runs/ldm", "--n", "2", "--steps", "2"]) == 0


def test_statistics_of_a_codec_depend_on_the_images_and_not_on_the_time(
    data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is resumed with the same weights only, also on a slower machine or for longer."""
    import diffusers

    torch.manual_seed(0)
    diffusers.AutoencoderKL(**KL).save_pretrained("codec")
    found = []

    def fit(model: Latent, data: Packed, recipe: Any) -> Path:
        found.append(model.config.codec_weights)
        return recipe.output

    monkeypatch.setattr(pipeline, "fit", fit)
    monkeypatch.setattr(pipeline, "open_data", lambda *_: noise(400, 16))
    for length in (["--minutes", "0.001"], ["--minutes", "60"], ["--steps", "3"]):
        assert train("ldm", *data, *QUICK, *UNET, "--codec", "codec", "--no-cache", *length, "--output", "runs/r") == 0
    assert len(found) == 3 and len(set(found)) == 1


# ---- recipes and commands ----


@pytest.mark.parametrize("kind", ["vqvae", "vae"])
def test_codec_then_diffusion(kind: str, data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = CODEC if kind == "vqvae" else [*CODEC[:-4], "--model.spatial", "--model.latent-dim", "4"]
    assert train(kind, *data, *QUICK, *first, "--steps", "4", "--output", "runs/codec") == 0
    asked = ["--model.condition.attributes", "Smiling", "--codec", "runs/codec"]
    assert train("ldm", *data, *QUICK, *UNET, *asked, "--steps", "6", "--output", "runs/ldm") == 0
    # The name of the family, not that of the class.
    assert "training: unet (over a codec), " in " ".join(capsys.readouterr().err.split())
    model = genmodels.load("runs/ldm")
    assert isinstance(model, Latent) and model.conditions.attributes == ("Smiling",) and model.prior.family == "unet"
    assert yaml.safe_load(Path("runs/ldm/config.yaml").read_text())["family"] == "ldm"
    assert "genmodels train ldm --config" in Path("runs/ldm/README.md").read_text()
    quick = ["--steps", "3"]
    assert main(["sample", "runs/ldm", "--n", "2", "--attributes", "Smiling=yes", "--guidance", "2", *quick]) == 0
    assert main(["trajectory", "runs/ldm", "--n", "2", "--out", "walk.gif", *quick]) == 0
    assert main(["interpolate", "runs/ldm", "--frames", "3", *quick]) == 0
    assert main(["edit", "runs/ldm", "faces/00.png", "--strength", "0.5", *quick]) == 0
    # The run goes on where it was, and the same settings give the same model.
    assert train("ldm", "--config", "runs/ldm/config.yaml", "--output", "runs/again") == 0
    assert weights_hash(genmodels.load("runs/again")) == weights_hash(model)
    assert train("ldm", "--output", "runs/ldm", "--resume", "--steps", "8") == 0


def test_pixels_and_every_command(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("unet", *data, *QUICK, *UNET, "--model.patch", "2", "--steps", "4", "--output", "runs/unet") == 0
    quick = ["--steps", "3"]
    run = "runs/unet"
    assert main(["trajectory", run, "--n", "2", "--frames", "3", "--out", "walk.png", *quick]) == 0
    with Image.open("walk.png") as picture:
        assert picture.size == (3 * 18 + 2, 4 * 18 + 2)  # two rows for each of two images
    assert main(["interpolate", run, "--images", "faces/00.png", "faces/01.png", "--frames", "4", *quick]) == 0
    with Image.open("interpolation.png") as picture:
        assert picture.size == (4 * 18 + 2, 18 + 2)
    assert main(["edit", run, "faces/00.png", "faces/01.png", "--strength", "0.2", "0.9", *quick]) == 0
    with Image.open("edited.png") as picture:
        assert picture.size == (3 * 18 + 2, 2 * 18 + 2)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8, 4:8] = 255
    Image.fromarray(mask).save("mask.png")
    assert main(["inpaint", run, "faces/00.png", "--mask", "mask.png", "--n", "2", *quick]) == 0
    with Image.open("completed.png") as picture:
        pixels = np.asarray(picture)
    whole, way = pixels[2:18, 2:18], pixels[2:18, 38:54]
    assert (whole == way)[mask == 0].all() and (whole != way)[mask > 0].any()
    assert main(["info", run]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"(genmodels {command})" in shown for command in ("inpaint", "interpolate", "edit", "trajectory"))
    assert "compute the likelihood of images" in shown and "reconstruct images" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "RUN", "face.png", "--strength", "0"], "strength must be above 0 and at most 1, got 0"),
        (["edit", "RUN"], "no images given"),
        (["edit", "VAE", "face.png"], "vae models do not edit images"),
        (["trajectory", "VAE"], "vae models do not denoise step by step"),
        (["trajectory", "RUN", "--frames", "1"], "--frames at least 2"),
        (["interpolate", "RUN", "--images", "face.png"], "at least 2 --seeds or --images"),
        (["interpolate", "VQVAE", "--images", "face.png", "face.png"], "do not interpolate between given images"),
        (["interpolate", "RUN", "--solver", "dpm-sde"], "interpolation needs a deterministic solver"),
        (["inpaint", "RUN", "face.png", "--mask", "small.png"], "is 8 x 8 pixels, the model's images are 16 x 16"),
        (
            ["inpaint", "RUN", "face.png", "--mask", "black.png"],
            "is black: make the region white that the model should complete",
        ),
        (["inpaint", "RUN", "face.png", "--mask", "nowhere.png"], "No such file"),
        (["inpaint", "RUN", "face.png", "--mask", "text.png"], "text.png: not an image of a known format"),
        (["import", "RUN", "out"], "is neither a pipeline of diffusers"),
        (["export", "VAE", "out"], "diffusers has no counterpart of vae models here"),
        (["export", "RUN", "full"], "full is not an empty folder"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = UNetConfig(size=16, channels=(16,), attention=(False,), blocks=1, groups=8, head=8)
    UNet(config).save_pretrained(tmp_path / "RUN")
    codec("map").save_pretrained(tmp_path / "VAE")
    codec("vqvae").save_pretrained(tmp_path / "VQVAE")
    for name, value, size in (("face", 90, 16), ("small", 255, 8), ("black", 0, 16)):
        Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(f"{name}.png")
    Path("text.png").write_text("no picture")
    Path("full").mkdir()
    Path("full/mine").touch()
    assert main(arguments) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("genmodels: error:") and message in lines[0]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--codec", "nowhere"], "--codec nowhere: no such folder; train a codec first"),
        (["--model.process", "ddpm", "--model.ddpm.timesteps", "0"], "timesteps must be at least 1"),
        (["--model.condition.attributes", "Beard"], "has no attribute 'Beard'"),
    ],
)
def test_training_that_cannot_work_is_one_line(
    data: list[str],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    codec("map").save_pretrained(Path("runs/codec"))
    given = ["ldm", *data, *QUICK, *UNET, "--codec", "runs/codec", "--steps", "2", "--output", "runs/x"]
    assert train(*given, *arguments) > 0
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path("runs/x").exists()


def test_the_size_of_codec_and_images_must_agree(tmp_path: Path) -> None:
    codec("map").save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="it was trained on images of 16 px, --size is 32"):
        load_codec(tmp_path / "codec", 32)
