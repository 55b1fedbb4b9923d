"""Folders of Stable Diffusion: exported ones in diffusers alone, and imported ones against their pipeline."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from clip_pairs import clip
from test_latent import diffusers_kl
from torch import Tensor

import genmodels
from genmodels.conditions import condition_of
from genmodels.diffusion import sampler
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import Flow
from genmodels.diffusion.solvers import Schedule, through
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.exchange.export import export_to_diffusers, export_to_stable_diffusion
from genmodels.exchange.text_encoder import load_text_encoder
from genmodels.latent import Latent
from genmodels.pretrained import load_pretrained
from genmodels.text import shipped
from genmodels.text_conditions import TextSource, conditioned_on_text
from genmodels.types import Noise

SIZE, GRID = 16, 8
TEXT = "a smiling woman with glasses", "a man wearing a hat"
NEGATIVE, GUIDANCE = "blond hair", 3.0
ALONE = """
import json, sys
import torch, diffusers
assert "genmodels" not in sys.modules
folder, latents, out, steps, prompts, negative, guidance = sys.argv[1:]
pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
prompts = json.loads(prompts)
call = dict(prompt=prompts, negative_prompt=[negative] * len(prompts), guidance_scale=float(guidance),
            num_inference_steps=int(steps), latents=torch.load(latents))
torch.save([pipeline(**call, output_type="latent").images,
            torch.from_numpy(pipeline(**call, output_type="np").images)], out)
"""


def unet(codec: Any, **settings: Any) -> UNet:
    """Build a U-Net with text over the latents of `codec`, with random weights everywhere."""
    source = TextSource.of(clip())
    config = UNetConfig(channels=(16, 16), blocks=1, attention=(True, False), head=8, groups=8, **settings)
    config = UNet.config_over(replace(config, size=SIZE), codec)
    torch.manual_seed(0)
    model = UNet(conditioned_on_text(config, source))
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.use_text_encoder(source)
    return model.eval()


def latent(tmp_path: Path, **settings: Any) -> Latent:
    """Build a text-to-image model over an AutoencoderKL with whitened latents."""
    diffusers_kl().save_pretrained(tmp_path / "kl")
    codec = load_pretrained(tmp_path / "kl", SIZE)
    codec.prepare([torch.rand(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1])
    return Latent.over(codec, unet(codec, **settings)).eval()


def start() -> Tensor:
    return torch.randn(len(TEXT), 4, GRID, GRID, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def ours(model: Latent, schedule: Schedule | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Sample latents and images (N, H, W, 3) in [0, 1] from `start`."""
    given = condition_of(model, {"prompt": list(TEXT)}, len(TEXT))
    settings = model.options(guidance=GUIDANCE, negative=NEGATIVE, **options)
    noise = Noise.for_images(0, range(len(TEXT)))
    latents = sampler.sample(model.prior, noise, given, settings, start=start(), schedule=schedule)
    return latents, (model.decode(latents).permute(0, 2, 3, 1) + 1) / 2


def alone(folder: Path, tmp_path: Path, steps: int) -> tuple[Tensor, Tensor]:
    """Run the pipeline in a process without genmodels."""
    torch.save(start(), tmp_path / "latents.pt")
    arguments = [folder, tmp_path / "latents.pt", tmp_path / "out.pt", steps, json.dumps(TEXT), NEGATIVE, GUIDANCE]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *map(str, arguments)], check=True, cwd=tmp_path, timeout=120)
    latents, images = torch.load(tmp_path / "out.pt")
    return latents, images


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_an_exported_ddpm_gives_the_same_latents_and_images(prediction: Any, tmp_path: Path) -> None:
    process = DDPM(prediction=prediction, schedule="scaled-linear", spacing="trailing", clip=False)
    model = latent(tmp_path, process="ddpm", ddpm=process)
    assert "a StableDiffusionPipeline" in export_to_diffusers(model, tmp_path / "out")
    for mine, theirs in zip(ours(model, solver="ddim", steps=4), alone(tmp_path / "out", tmp_path, 4), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_an_exported_flow_gives_the_same_latents_and_images(tmp_path: Path) -> None:
    """At three steps the times of its scheduler, which it rounds down, are nearly whole numbers."""
    model = latent(tmp_path)
    export_to_diffusers(model, tmp_path / "out")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [999, 666, 332]
    schedule = through(model.prior.process, scheduler.sigmas.double().tolist())
    model.prior.process = RoundedFlow()  # the network is given the rounded times, and the solver the exact ones
    mine = ours(model, schedule, solver="dpm")
    for own, theirs in zip(mine, alone(tmp_path / "out", tmp_path, 3), strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4)


class RoundedFlow(Flow):
    """Flow matching whose network is given the times to which a scheduler rounds."""

    def time_input(self, t: Tensor) -> Tensor:
        rounded = torch.tensor([999.0, 666.0, 332.0])
        return rounded[(1000 * t.view(-1, 1) - rounded).abs().argmin(1)].view(t.shape)


@pytest.mark.parametrize("version", [1, 2])
def test_an_imported_folder_gives_the_images_of_its_pipeline(version: int, tmp_path: Path) -> None:
    folder = stable_diffusion(tmp_path / "sd", version)
    model: Any = genmodels.load(folder)
    assert model.can("tokenize") and model.tokenizer.length == 77
    assert model.prior.process.prediction == ("eps" if version == 1 else "v")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)  # a solver that we have too
    pipeline.save_pretrained(folder)
    mine = ours(model, solver="ddim", steps=4)
    for own, theirs in zip(mine, alone(folder, tmp_path, 4), strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    again: Any = genmodels.load(tmp_path / "saved")
    assert torch.equal(ours(again, solver="ddim", steps=2)[0], ours(model, solver="ddim", steps=2)[0])


def stable_diffusion(folder: Path, version: int) -> Path:
    """Write a tiny pipeline with random weights in the layout of Stable Diffusion 1.x or 2.x."""
    torch.manual_seed(version)
    tokens = shipped()
    tokens.save(folder.parent)
    file = json.loads((folder.parent / "tokenizer.json").read_text())["model"]
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in file["merges"]]
    tokenizer = transformers.CLIPTokenizer(vocab=file["vocab"], merges=merges)
    tokenizer.model_max_length = 77
    width = 32
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=tokens.vocabulary,
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act="quick_gelu" if version == 1 else "gelu",
            bos_token_id=tokens.start,
            eos_token_id=2 if version == 1 else tokens.end,
            pad_token_id=tokens.end,
        )
    )
    network = diffusers.UNet2DConditionModel(
        sample_size=GRID,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=width,
        attention_head_dim=2 if version == 1 else (2, 4),
        use_linear_projection=version == 2,
    )
    training = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if version == 1:
        scheduler: Any = diffusers.PNDMScheduler(**training, skip_prk_steps=True, steps_offset=1)
    else:
        scheduler = diffusers.DDIMScheduler(
            **training, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
    kl = diffusers_kl()
    kl.register_to_config(scaling_factor=0.18215)
    pipeline: Any = diffusers.StableDiffusionPipeline(
        vae=kl,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def test_a_text_encoder_of_transformers_conditions_a_model(tmp_path: Path) -> None:
    folder = stable_diffusion(tmp_path / "sd", 1)
    source = load_text_encoder(folder / "text_encoder")
    ids = source.tokenizer(TEXT).ids
    expected = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(ids)[0]
    torch.testing.assert_close(source.encoder.states(ids), expected, atol=1e-5, rtol=1e-5)
    shutil.copytree(folder / "text_encoder", tmp_path / "alone")
    shutil.copy(folder / "tokenizer" / "tokenizer.json", tmp_path / "alone")
    assert load_text_encoder(tmp_path / "alone").tokenizer.hash == source.tokenizer.hash


def test_an_imported_folder_can_be_exported_again(tmp_path: Path) -> None:
    model: Any = genmodels.load(stable_diffusion(tmp_path / "sd", 2))
    export_to_diffusers(model, tmp_path / "out")
    again: Any = genmodels.load(tmp_path / "out")
    assert torch.allclose(ours(again, solver="ddim", steps=2)[1], ours(model, solver="ddim", steps=2)[1], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f / "tokenizer"), "has no tokenizer/: the pipeline is incomplete"),
        (lambda f: [p.unlink() for p in (f / "tokenizer").iterdir()], "has no tokenizer/tokenizer.json and no token"),
        (lambda f: shutil.rmtree(f / "vae"), "has no vae/config.json: the pipeline is incomplete"),
        (lambda f: (f / "text_encoder_2").mkdir(), "it is a Stable Diffusion XL, which is not supported"),
        (lambda f: edit(f / "unet", in_channels=9), "9 channels in and 4 out"),
        (lambda f: edit(f / "unet", cross_attention_dim=48), "the text encoder has width 32 and the U-Net reads 48"),
        (lambda f: edit(f / "unet", block_out_channels=[4096, 8192]), "but its weights are"),
        (lambda f: only_pickles(f / "text_encoder"), "does not hold the weights of this CLIPTextModel as safetensors"),
        (lambda f: only_pickles(f / "unet"), "does not hold the weights of this UNet2DConditionModel as safetensors"),
        (lambda f: edit(f / "text_encoder", hidden_act="swish"), "hidden_act 'swish' is not supported"),
        (lambda f: edit(f / "text_encoder", vocab_size=99), "they do not belong together"),
        (lambda f: edit(f / "unet", _class_name="UNet2DModel"), "holds a UNet2DModel, not a UNet2DConditionModel"),
        (lambda f: (f / "vae" / "config.json").write_text("[]"), "config.json"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").write_text("[]"), "a None is not supported"),
    ],
)
def test_folders_that_cannot_be_imported_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    folder = stable_diffusion(tmp_path / "sd", 1)
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        genmodels.load(folder)
    assert "\n" not in str(caught.value)


def edit(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def only_pickles(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        torch.save({"weight": torch.zeros(1)}, file.with_suffix(".bin"))
        file.unlink()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gaussian": 8}, "closed-form denoiser"),
        ({"patch": 2}, "patches of 2 latents"),
        ({"process": "edm"}, "the process edm"),
    ],
)
def test_models_that_the_pipeline_does_not_support_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_to_stable_diffusion(latent(tmp_path, **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_exported_text_encoder_gives_our_vectors(tmp_path: Path) -> None:
    model = latent(tmp_path)
    export_to_diffusers(model, tmp_path / "out")
    encoder = transformers.CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    ids = tokenizer(list(TEXT), padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, model.tokenize(TEXT).ids)
    conditioner: Any = model.prior.condition
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids)[0], conditioner.text.encoder.states(ids), atol=1e-5, rtol=1e-5)
    assert np.isclose(diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae").config.scaling_factor, 1.0)
