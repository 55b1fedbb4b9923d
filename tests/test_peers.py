"""The second loop of benchmarks/vs_diffusers.py, in which nothing but a new U-Net is trained."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_exchange_stable_diffusion import SIZE, latent
from tiny import faces
from torch import nn

import genmodels
from genmodels import sampling
from genmodels.evaluation import protocol
from genmodels.evaluation.extractors import Extractor
from genmodels.exchange.autoencoder import autoencoder_for_diffusers
from genmodels.exchange.stable_diffusion import text_encoder_for_transformers

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from vs_diffusers import CaptionedImages, plain_loop, score

STEPS = 30
SETTINGS = argparse.Namespace(batch_size=8, lr=3e-3, warmup=2, flip=False, mixed_precision="no", seed=0)
COLOURS = Extractor("colours", lambda images: F.adaptive_avg_pool2d(images.float(), 2).flatten(1))


def test_the_second_loop_of_the_comparison_with_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = latent(tmp_path), faces(48, SIZE)
    pipeline, speed = plain_loop(model, data.split("train"), SETTINGS, lambda step: step < STEPS)
    assert speed["images"] == 8 * STEPS and speed["images_per_second"] > 0
    network = model.prior.network
    assert shapes(pipeline.unet) == shapes(network)
    assert same(pipeline.vae, autoencoder_for_diffusers(model.codec))
    assert same(pipeline.text_encoder, text_encoder_for_transformers(model.prior))
    fresh = type(network).from_config(network.config)
    assert noise_error(pipeline, pipeline.unet, data) < 0.9 * noise_error(pipeline, fresh, data)

    pipeline.save_pretrained(tmp_path / "plain")
    again: Any = genmodels.load(tmp_path / "plain")
    assert again.prior.process.prediction == "eps" and again.tokenizer.hash == model.tokenizer.hash
    settings = argparse.Namespace(n=4, seed=0, guidance=3.0)
    monkeypatch.setattr(protocol, "LEAST_N", 4)  # distances are measured of few images too
    found = score(again, data, [COLOURS], settings)
    assert found["scores"]["fd-colours"]["value"] > 0
    other = sampling.sample(again, 4, 0, {"prompt": "a man"}, guidance=3.0, progress=False)
    assert found["samples"].shape == other.shape and (found["samples"] != other).any(), "captions have no effect"


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


@torch.no_grad()
def noise_error(pipeline: Any, unet: Any, data: Any) -> float:
    """Return the mean squared error of the predicted noise of 16 images at a high noise level."""
    images = CaptionedImages(data, pipeline.tokenizer, False, 0)
    pixels, ids = (torch.stack(parts) for parts in zip(*(images[i] for i in range(16)), strict=True))
    assert np.allclose(pixels[0].permute(1, 2, 0).numpy(), data.images[0] / 127.5 - 1, atol=1e-6)
    assert ids.shape == (16, pipeline.tokenizer.model_max_length) and not (ids == ids[0]).all()
    latents = pipeline.vae.encode(pixels).latent_dist.mean
    noise, t = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)), torch.full((16,), 800)
    noisy = pipeline.scheduler.add_noise(latents, noise, t)
    return F.mse_loss(unet(noisy, t, pipeline.text_encoder(ids)[0]).sample, noise).item()
