"""KL and Tiny: the loss, the scale of latents, and export to AutoencoderKL and AutoencoderTiny."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny as tiny_runs
import torch
from safetensors.torch import load_file
from test_contract import SMALL, faces, train
from test_exchange import noise, ours
from test_fit import STATE, tensors
from test_latent_diffusion import UNET
from test_two_commands import QUICK
from test_two_commands import train as run_recipe
from torch.distributions import Normal, kl_divergence

import genmodels
from genmodels.cli import main
from genmodels.codecs import load_codec
from genmodels.exchange.autoencoder import autoencoder_for_diffusers
from genmodels.kl import KL, KLConfig
from genmodels.nn.density import RunningWhitening
from genmodels.pretrained import PretrainedConfig, PretrainedKL, PretrainedTiny
from genmodels.tiny import Tiny, TinyConfig
from genmodels.training.fit import fit
from genmodels.types import Batch, Noise

SMALL_KL = SMALL["kl"] | dict(size=16)
SMALL_TINY = SMALL["tiny"] | dict(size=16)
FRESH = """
import sys
import torch, diffusers
assert "genmodels" not in sys.modules
kind, folder = sys.argv[1:]
network = getattr(diffusers, kind).from_pretrained(folder)
images = torch.load(folder + "/images.pt")
with torch.no_grad():
    encoded = network.encode(images)
    scale = network.config.scaling_factor
    latents = scale * (encoded.latent_dist.mode() if kind == "AutoencoderKL" else encoded.latents)
    decoded = network.decode(latents / scale).sample
torch.save([latents, decoded], folder + "/found.pt")
"""


ADVERSARIAL = dict(discriminator=0.5, discriminator_channels=(8, 16))


def batch(n: int = 6, progress: float = 0.0) -> Batch:
    return Batch(faces(n, size=16), Noise.for_images(0, range(n)), progress=progress)


def small(kind: type, **changes: Any) -> Any:
    """Build a codec with the same initial weights at every call."""
    torch.manual_seed(0)
    return kind(kind.Config(**(SMALL_KL if kind is KL else SMALL_TINY), **changes))


def trained(kind: type, **changes: Any) -> Any:
    """A codec after a few steps, whose latents have another mean and scale in each channel."""
    model = small(kind, **changes)
    model.initialise([faces(24, seed=3, size=16)])
    train(model, steps=3)
    model.calibrate([faces(16, seed=seed, size=16) for seed in (1, 2)])
    return model.eval()


def test_the_loss_is_that_of_torch_distributions():
    torch.manual_seed(0)
    model, b = KL(KLConfig(**SMALL_KL, kl=0.5)), batch()
    posterior = model.network.encode(b.images).latent_dist
    z = posterior.mean + posterior.std * Noise(b.noise.seeds).normal(*model.latent_shape)
    error = b.images - model.network.decode(z).sample
    kl = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0, 1)).flatten(1).sum(1).mean()
    loss, metrics = model(b)
    torch.testing.assert_close(metrics["kl"], kl, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kl, posterior.kl().mean(), rtol=1e-4, atol=1e-4)  # as diffusers computes it
    torch.testing.assert_close(loss, error.abs().mean() + error.square().mean() + 0.5 * kl / 768, rtol=1e-4, atol=1e-5)


def test_the_posterior_begins_with_little_noise():
    torch.manual_seed(0)
    with torch.no_grad():
        posterior = KL(KLConfig(**SMALL_KL)).network.encode(batch().images).latent_dist
    assert (posterior.logvar + 6).abs().max() < 2


def test_lpips_joins_the_loss(monkeypatch):
    """LPIPS is replaced by a stand-in, because its weights are not available offline."""
    monkeypatch.setattr(
        "genmodels.nn.perceptual.load_lpips", lambda net, device: lambda a, b: (a - b).square().mean((1, 2, 3))
    )
    for model in (KL(KLConfig(**SMALL_KL, kl=0.0, lpips=2.0)), Tiny(TinyConfig(**SMALL_TINY, lpips=2.0))):
        loss, metrics = model(batch())
        torch.testing.assert_close(loss, metrics["l1"] + 3 * metrics["mse"])


# ---- the discriminator ----


@pytest.mark.parametrize("kind", [KL, Tiny])
def test_the_adversarial_loss_starts_late_and_has_the_adaptive_weight(kind):
    """The weight is |d reconstruction / d w| / |d adversarial / d w| at the last layer of the decoder."""
    plain, model = small(kind), small(kind, **ADVERSARIAL, discriminator_start=0.3)
    assert model.turns == ("model", "discriminator") and plain.turns == ("model",)
    assert not any("discriminator" in name or "balance" in name for name in plain.state_dict())
    early, metrics = model(batch(progress=0.29))
    assert torch.equal(early, plain(batch())[0]) and "adversarial" not in metrics
    loss, seen = model(batch(), "discriminator")  # which is trained from the first step on
    scores = [model.discriminator(x) for x in (batch().images, model._remade(batch()))]
    torch.testing.assert_close(loss, 0.5 * ((1 - scores[0]).relu().mean() + (1 + scores[1]).relu().mean()))
    assert set(seen) == {"real", "fake"}
    assert torch.equal(model(batch(progress=0.3))[0], early), "the first step has weight 0"
    model.after_step()
    last = model.network.decoder.conv_out if kind is KL else model.network.decoder.layers[-1]
    made = model._remade(batch())
    error = batch().images - made
    gradients = [
        torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm()
        for loss in (error.square().mean() + error.abs().mean(), -model.discriminator(made).mean())
    ]
    found, metrics = model(batch(progress=0.3))
    expected = gradients[0] / gradients[1]
    torch.testing.assert_close(metrics["adaptive_weight"], expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(found, early + 0.5 * expected * metrics["adversarial"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", [KL, Tiny])
def test_a_resumed_run_with_a_discriminator_equals_an_uninterrupted_one(kind, tmp_path):
    def run(**changes: Any) -> Path:
        model = small(kind, **ADVERSARIAL)
        settings = tiny_runs.recipe(tmp_path / "run", size=16, steps=4, save_every=2, model=model.config, **changes)
        return fit(model, tiny_runs.faces(size=16), settings)

    whole = tensors(run(), 4)
    assert whole["model.safetensors"]["balance.value"] > 0
    (tmp_path / "run" / "checkpoints" / "step_00000004" / STATE).unlink()
    for name, values in tensors(run(resume=True), 4).items():
        for key, value in values.items():
            assert torch.equal(value, whole[name][key]), f"{name}: {key}"


@pytest.mark.parametrize("kind", [KL, Tiny])
def test_an_exported_autoencoder_leaves_the_discriminator_out(kind, tmp_path):
    model, plain = trained(kind, **ADVERSARIAL), small(kind)
    assert len(model.state_dict()) > len(plain.state_dict())
    autoencoder_for_diffusers(model).save_pretrained(tmp_path)
    found = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    expected = plain.network.state_dict()
    assert {name: value.shape for name, value in found.items()} == {n: value.shape for n, value in expected.items()}


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (KLConfig, dict(discriminator=-1.0), "discriminator must not be negative, got -1.0"),
        (
            KLConfig,
            dict(discriminator=1.0, discriminator_start=2.0),
            r"discriminator_start must be in \[0, 1\], got 2.0",
        ),
        (TinyConfig, dict(discriminator_channels=(8,)), r"discriminator_channels has no effect .*, got \(8,\)"),
        (KLConfig, dict(size=60), "kl downsamples by 8, which does not divide 60 px"),
        (TinyConfig, dict(size=60), "tiny downsamples by 8, which does not divide 60 px"),
        (KLConfig, dict(groups=12), r"channels must be multiples of groups, which is 12, got \(16, 16, 32, 64\)"),
        (KLConfig, dict(channels=()), "channels must be multiples of groups"),
        (KLConfig, dict(kl=-1e-6), "kl must not be negative, got -1e-06"),
        (KLConfig, dict(lpips=float("nan")), "lpips must not be negative, got nan"),
        (KLConfig, dict(blocks=0), "blocks must be at least 1, got 0"),
        (KLConfig, dict(size=4, channels=(8, 8, 8)), "feature map of 1 x 1"),
        (TinyConfig, dict(lpips=-1.0), "lpips must not be negative, got -1.0"),
        (TinyConfig, dict(width=0), "width must be at least 1, got 0"),
        (TinyConfig, dict(decoder_blocks=(1, 1)), r"decoder_blocks needs a number of blocks .*, got \(1, 1\)"),
        (TinyConfig, dict(encoder_blocks=(0, 1, 1, -1)), "encoder_blocks needs a number of blocks of at least 0"),
    ],
)
def test_impossible_configs_are_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_running_whitening_is_a_moving_average_of_moments():
    generator = torch.Generator().manual_seed(0)
    running, parts = RunningWhitening(3, momentum=0.25), torch.randn(2, 4, 3, 5, 5, generator=generator) * 2 + 1
    before = running.state_dict()
    running.commit()
    assert all(torch.equal(before[name], value) for name, value in running.state_dict().items())
    running.observe(parts[0])
    running.observe(parts[1])
    running.commit()
    flat = parts.flatten(0, 1).transpose(0, 1).flatten(1)
    mean, square = 0.25 * flat.mean(1), 0.75 + 0.25 * flat.square().mean(1)
    torch.testing.assert_close(running.mean, mean)
    torch.testing.assert_close(running.std, (square - mean.square()).sqrt())
    assert set(running.state_dict()) == {"mean", "std"} and not running.sums.any()


def test_latents_of_tiny_stay_white_in_training():
    """The decoder of training sees latents of about the scale of those after training."""
    torch.manual_seed(0)
    model = Tiny(TinyConfig(**SMALL_TINY))
    images = batch(8).images  # those of `train`
    model.initialise([images])
    first = model.whitening.mean.clone(), model.whitening.std.clone()
    train(model, steps=80)
    with torch.no_grad():
        flat = model.encode(images).transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 0.5 and flat.std(1).min() > 0.7 and flat.std(1).max() < 1.4
    assert ((model.whitening.mean - first[0]) / first[1]).abs().max() > 5, "the latents did not move"


@pytest.mark.parametrize(("kind", "name"), [(KL, "AutoencoderKL"), (Tiny, "AutoencoderTiny")])
@torch.no_grad()
def test_export_to_diffusers_and_back(kind, name, tmp_path, capsys):
    with torch.enable_grad():
        model = trained(kind)
    assert (model.whitening.std - 1).abs().min() > 0.01 and model.whitening.mean.abs().max() > 0.01
    model.save_pretrained(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert f"diffusers.{name}.from_pretrained" in capsys.readouterr().out
    images = faces(4, size=16)
    torch.save(images, tmp_path / "out" / "images.pt")
    subprocess.run([sys.executable, "-I", "-c", FRESH, name, str(tmp_path / "out")], check=True)
    latents, decoded = torch.load(tmp_path / "out" / "found.pt")
    torch.testing.assert_close(latents, model.encode(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded.clamp(-1, 1), model.decode(latents), rtol=0, atol=1e-5)
    again = load_codec(tmp_path / "out", 16)
    again.set_scale(again.network.config.scaling_factor)
    torch.testing.assert_close(again.encode(images), model.encode(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(again.decode(latents), model.decode(latents), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_posterior_of_an_exported_kl_is_scaled_too():
    with torch.enable_grad():
        model = trained(KL)
    images, network = faces(4, size=16), autoencoder_for_diffusers(model)
    ours, theirs = (one.encode(images).latent_dist for one in (model.network, network))
    torch.testing.assert_close(theirs.std, ours.std / model.whitening.std.view(1, -1, 1, 1), rtol=1e-4, atol=1e-6)
    assert network.config.scaling_factor == 1 and model.network is not network


@pytest.mark.parametrize("lacking", [False, True], ids=["", "without 1 x 1 convolutions"])
@torch.no_grad()
def test_an_imported_autoencoderkl_is_exported_with_its_scale(lacking, tmp_path):
    torch.manual_seed(0)
    settings = dict(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        use_quant_conv=not lacking,
        use_post_quant_conv=not lacking,
    )
    codec = PretrainedKL(PretrainedConfig(16, settings)).eval()
    images = faces(12, size=16)
    codec.prepare([images])
    autoencoder_for_diffusers(codec).save_pretrained(tmp_path)
    network = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    latents = network.encode(images).latent_dist.mode()
    torch.testing.assert_close(latents, codec.encode(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(network.decode(latents).sample.clamp(-1, 1), codec.decode(latents), rtol=0, atol=1e-5)


def tiny_network(**settings: Any) -> Any:
    torch.manual_seed(0)
    plain = dict(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return diffusers.AutoencoderTiny(**plain | settings).eval()


@torch.no_grad()
def test_against_diffusers_autoencodertiny(tmp_path):
    network = tiny_network()
    network.save_pretrained(tmp_path / "vae")
    codec = load_codec(tmp_path / "vae", 16)
    assert isinstance(codec, PretrainedTiny)
    images = faces(12, size=16)
    with pytest.raises(ValueError, match=r"AutoencoderTiny's latents are unknown: call prepare\(images\)"):
        codec.encode(images)
    codec.prepare([images[:6], images[6:]])
    latents = codec.encode(images)
    assert latents.shape == (12, 4, 8, 8) == (12, *codec.latent_shape)
    assert abs(latents.std() - 1) < 1e-4  # one scale for all channels, and no mean
    expected = network.decode(network.encode(images).latents).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.decode(latents), expected, atol=1e-5, rtol=0)
    exported = autoencoder_for_diffusers(codec)
    scale = exported.config.scaling_factor
    torch.testing.assert_close(exported.encode(images).latents * scale, latents, atol=1e-5, rtol=0)
    tiny_network(decoder_block_out_channels=(8,), num_decoder_blocks=(1,)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="decodes to images of another size"):
        load_codec(tmp_path / "other", 16)


def test_codecs_without_a_counterpart_are_refused(tmp_path):
    vae = genmodels.VAE(genmodels.VAEConfig(**SMALL["vae"]))
    with pytest.raises(ValueError, match="diffusers cannot decode the latents of a vae"):
        autoencoder_for_diffusers(vae)
    vae.save_pretrained(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 1
    assert not Path(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("kl", ["--model.channels", "8", "16", "--model.groups", "4"]),
        ("tiny", ["--model.width", "8", "--model.encoder-blocks", "0", "1", "--model.decoder-blocks", "0", "1"]),
    ],
)
def test_recipes_and_a_prior_over_the_codec(family, settings, data, tmp_path, capsys):
    """The exported U-Net and codec give our images from the same noise."""
    assert run_recipe(family, *data, *QUICK, *settings, "--steps", "3", "--output", "runs/codec") == 0
    assert run_recipe("ldm", *data, *QUICK, *UNET, "--codec", "runs/codec", "--steps", "3", "--output", "runs/ldm") == 0
    model = genmodels.load("runs/ldm")
    assert model.codec.family == family and model.prior.config.latents == (4, 8, 8)
    assert main(["export", "runs/ldm", "out"]) == 0
    x = noise(model.prior)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(batch_size=len(x), latents=x, solver="euler", num_inference_steps=6, output_type="pt").images
    expected = ours(model, x, solver="euler", steps=6).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    capsys.readouterr()
    assert run_recipe(family, "--data", "toyfaces", *settings, "--size", "19", "--output", "runs/odd") == 2
    assert f"{family} downsamples by 2, which does not divide 19 px" in capsys.readouterr().err
