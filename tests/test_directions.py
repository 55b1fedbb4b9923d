"""Attribute directions in latent space, and the command that moves images along them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_two_commands import CODEC, QUICK, train
from tiny_model import OnlySamples, TinyConfig

import genmodels
from genmodels import sampling
from genmodels.cli import main
from genmodels.directions import attribute_directions, principal_directions, traverse
from genmodels.gan import GAN, GANConfig
from genmodels.latent import Latent
from genmodels.pictures import to_uint8
from genmodels.vae import VAE, VAEConfig

GAN_SMALL = ["--model.channels", "16", "16", "--model.patch", "2", "--model.latent-dim", "8", "--model.group", "8"]
GAN_SMALL += ["--model.principal", "8", "--evaluate-every", "None"]


def linear_gan() -> GAN:
    """GAN whose generator is a PCA, so that the latents of an image are known."""
    torch.manual_seed(0)
    model = GAN(GANConfig(size=8, channels=(16,), patch=2, blocks=1, group=8, latent_dim=6, principal=6)).eval()
    coarse = torch.rand(400, 3, 2, 2) * 1.6 - 0.8
    model.initialise([torch.nn.functional.interpolate(coarse, scale_factor=4)])
    model.calibrate([torch.zeros(64, 3, 8, 8)] * 8)
    return model


def test_the_direction_is_the_difference_of_the_means() -> None:
    model = linear_gan()
    z = 0.5 * torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    z[:150, 0] += 0.5
    z[150:, 0] -= 0.5
    labels = np.stack([np.repeat([1, -1], 150), np.tile([1, -1, 0], 100)], 1).astype(np.int8)
    images = to_uint8(model.from_latents(z))
    found = attribute_directions(model, images, labels, ("First", "Every third"))
    expected = torch.stack([z[:150].mean(0) - z[150:].mean(0), z[0::3].mean(0) - z[1::3].mean(0)])
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    assert found[0, 0] == pytest.approx(1, abs=0.15)


def test_traverse_moves_samples_and_images() -> None:
    model = linear_gan()
    directions = torch.eye(6)[:2]
    amounts = torch.tensor([-1.0, 0.0, 1.0])
    rows = traverse(model, None, directions, amounts, n=3, seed=4)
    assert rows.shape == (3, 2, 3, 8, 8, 3) and rows.dtype == np.uint8
    assert np.array_equal(rows[:, 0, 1], sampling.sample(model, 3, seed=4, progress=False))
    z = model.draw_latents(sampling.Noise.for_images(4, range(3)), model.options())
    assert np.array_equal(rows[:, 1, 2], to_uint8(model.from_latents(z + directions[1])))
    given = traverse(model, rows[:2, 0, 1], directions, amounts)
    assert np.abs(given[:, 0, 1].astype(int) - rows[:2, 0, 1]).mean() < 3  # inverted and generated again


def test_principal_directions_of_a_linear_generator() -> None:
    model = linear_gan()
    found = principal_directions(model, 3, n=4096, seed=1)
    torch.testing.assert_close(found @ found.T, torch.eye(3), atol=0.1, rtol=0)
    with torch.no_grad():
        slopes = (model.from_latents(0.1 * torch.eye(6)) - model.from_latents(torch.zeros(1, 6))).flatten(1) / 0.1
    expected = torch.linalg.svdvals(slopes)[:3]  # standard deviations of the principal components
    torch.testing.assert_close((found @ slopes).norm(dim=1), expected, rtol=0.05, atol=0)
    with pytest.raises(ValueError, match="from 1 to 1023"):
        principal_directions(linear_gan(), 1024)


def test_an_autoencoder_has_directions_too() -> None:
    torch.manual_seed(0)
    networks = dict(size=16, channels=(16,), encoder_blocks=(1,), decoder_blocks=(1,))
    model = VAE(VAEConfig(latent_dim=4, mixture=1, **networks)).eval()
    images = torch.rand(64, 3, 16, 16) * 2 - 1
    model.initialise([images])
    model.calibrate([images])
    pixels = to_uint8(images)
    labels = np.where(np.arange(64) % 2, 1, -1).astype(np.int8)[:, None]
    direction = attribute_directions(model, pixels, labels, ("Odd",))
    rows = traverse(model, pixels[:2], direction, torch.tensor([0.0, 3.0]))
    assert np.array_equal(rows[:, 0, 0], sampling.reconstruct(model, pixels[:2]))
    assert (rows[:, 0, 1] != rows[:, 0, 0]).any()


def test_what_has_no_directions_is_refused() -> None:
    with pytest.raises(ValueError, match="only_samples models do not make an image from one vector"):
        traverse(OnlySamples(TinyConfig()), None, torch.eye(2), torch.zeros(1))
    images, labels = np.zeros((60, 8, 8, 3), np.uint8), np.full((60, 1), -1, np.int8)
    labels[:9] = 1
    with pytest.raises(ValueError, match="Bald: 9 images have it and 51 do not; a direction needs at least 10 of ea"):
        attribute_directions(linear_gan(), images, labels, ("Bald",))


def test_the_commands_of_a_gan(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("gan", *data, *QUICK, *GAN_SMALL, "--steps", "4", "--output", "runs/gan") == 0
    assert main(["info", "runs/gan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "reconstruct images by a search for their latents (genmodels reconstruct) interpolate between samples" in said
    )
    assert main(["traverse", "runs/gan", "--attributes", "Smiling", "--n", "3", "--frames", "5"]) == 0
    assert capsys.readouterr().out == (
        "3 faces, each with Smiling from less to more, one below the other, in directions.png\n"
    )
    with Image.open("directions.png") as picture:
        assert picture.size == (5 * 18 + 2, 3 * 18 + 2)
        assert "trainedAlgorithmicMedia" in picture.info["XML:com.adobe.xmp"]
    assert main(["traverse", "runs/gan", "faces/00.png", "--attributes", "Smiling", "--out", "given.png"]) == 0
    assert main(["reconstruct", "runs/gan", "faces/00.png", "faces/01.png"]) == 0
    assert main(["interpolate", "runs/gan", "--images", "faces/00.png", "faces/01.png", "--frames", "3"]) == 0
    assert main(["sample", "runs/gan", "--n", "2", "--truncation", "0.7", "--out", "close.npy"]) == 0
    capsys.readouterr()
    for arguments, status, message in (
        (
            ["--attributes", "Beard", "--out", "x.png"],
            2,
            "--attributes Beard: folder faces (40 files) does not have it; it has: Smiling",
        ),
        (["--attributes", "Smiling"], 1, "directions.png exists"),
        (["--frames", "4"], 2, "an odd number of --frames"),
    ):
        assert main(["traverse", "runs/gan", *arguments]) == status
        assert message in capsys.readouterr().err
    assert not Path("x.png").exists()


def test_a_gan_of_few_images_trains_without_evaluations(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("gan", *data, *QUICK, *GAN_SMALL[:-2], "--steps", "4", "--output", "runs/gan") == 0
    assert "no evaluation during training: folder faces" in capsys.readouterr().err
    given = ["--evaluate-every", "2"]
    assert train("gan", *data, *QUICK, *GAN_SMALL[:-2], *given, "--steps", "4", "--output", "runs/other") == 1
    assert "--evaluate-every (None disables it), train split of" in capsys.readouterr().err


def test_the_commands_of_a_gan_over_a_codec(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("vqvae", *data, *QUICK, *CODEC, "--steps", "4", "--output", "runs/vq") == 0
    over = ["--codec", "runs/vq", *GAN_SMALL, "--steps", "4", "--output", "runs/gan"]
    assert train("gan", *data, *QUICK, *over, "--model.patch", "1") == 0
    model = genmodels.load("runs/gan")
    assert isinstance(model, Latent) and model.turns == ("critic", "generator")
    assert main(["sample", "runs/gan", "--n", "3", "--truncation", "1"]) == 0
    assert main(["traverse", "runs/gan", "faces/00.png", "--attributes", "Smiling"]) == 0
    assert main(["interpolate", "runs/gan", "--images", "faces/00.png", "faces/01.png", "--frames", "3"]) == 0
    capsys.readouterr()
    other = ["--codec", "runs/vq", "--model.network", "dcgan", "--model.channels", "16", "--model.principal", "0"]
    assert train("gan", *data, *QUICK, *other, "--steps", "4", "--output", "runs/other") > 0
    assert "latents must be (channels, side, side), for network 'r3gan'" in capsys.readouterr().err
