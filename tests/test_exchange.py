"""Export to diffusers and import from it: both give the same images from the same noise."""

from __future__ import annotations

import dataclasses
import inspect
import json

import diffusers
import pytest
import torch

import genmodels
from genmodels.cli import main
from genmodels.conditions import Condition, ConditionConfig
from genmodels.diffusion import solvers
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.sampler import make_denoiser
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.dit import DiT, vanilla
from genmodels.exchange.export import export_to_diffusers, export_to_stable_diffusion
from genmodels.latent import Latent
from genmodels.nn.transformer import TransformerConfig
from genmodels.pretrained import PretrainedConfig, PretrainedKL, PretrainedVQ
from genmodels.types import Noise
from genmodels.weights import checked_settings

NETWORK = dict(channels=(16, 32), blocks=1, attention=(False, True), head=8, groups=8)
VQ = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
    up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    block_out_channels=(16, 16),
    layers_per_block=1,
    latent_channels=3,
    num_vq_embeddings=32,
    norm_num_groups=8,
)
KL = {name: value for name, value in VQ.items() if name != "num_vq_embeddings"}


def unet(**settings) -> UNet:
    """A small model whose weights are all random: the output too."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(**(NETWORK | {"size": 16} | settings)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    if model.gaussian is not None:
        model.gaussian.fit([torch.randn(40, *model.config.shape, generator=generator)])
    return model.eval()


def noise(model: UNet, n: int = 2) -> torch.Tensor:
    return torch.randn(n, *model.config.shape, generator=torch.Generator().manual_seed(3))


def ours(model, x: torch.Tensor, condition: Condition | None = None, **options) -> torch.Tensor:
    """Our images from noise x of unit variance."""
    prior = model.prior if isinstance(model, Latent) else model
    with torch.no_grad():
        found = prior.generate_from(x, condition or Condition(), model.options(**options))
        return model.decode(found) if isinstance(model, Latent) else found


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 10), ("leading", 7)])
def test_a_ddpm_becomes_a_ddim_pipeline(prediction, spacing, steps, tmp_path):
    from diffusers import DDIMPipeline

    model = unet(process="ddpm", ddpm=DDPM(prediction=prediction, spacing=spacing))
    assert "DDIMPipeline" in export_to_diffusers(model, tmp_path / "out")
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        2, torch.Generator().manual_seed(3), num_inference_steps=steps, output_type="np"
    ).images  # it draws the noise that noise() draws
    expected = ours(model, noise(model), solver="ddim", steps=steps) / 2 + 0.5
    torch.testing.assert_close(torch.from_numpy(images).permute(0, 3, 1, 2), expected, rtol=0, atol=1e-5)


def test_a_clipped_ddpm_says_how_to_call_its_pipeline(tmp_path):
    from diffusers import DDIMPipeline

    model = unet(process="ddpm", ddpm=DDPM(prediction="eps", schedule="linear", clip=True))
    assert "use_clipped_model_output=True" in export_to_diffusers(model, tmp_path / "out")
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    images = pipeline(2, generator, num_inference_steps=10, output_type="np", use_clipped_model_output=True).images
    expected = ours(model, noise(model), solver="ddim", steps=10) / 2 + 0.5
    torch.testing.assert_close(torch.from_numpy(images).permute(0, 3, 1, 2), expected, rtol=0, atol=1e-4)


def latent_vq(**settings) -> Latent:
    torch.manual_seed(0)
    codec = PretrainedVQ(PretrainedConfig(16, VQ)).requires_grad_(False).eval()
    model = Latent.over(codec, unet(latents=codec.vector_shape, **settings))
    model.initialise([torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1])
    return model.eval()


def test_a_ddpm_over_a_vqmodel_becomes_an_ldm_pipeline(tmp_path):
    from diffusers import LDMPipeline

    model = latent_vq(process="ddpm", ddpm=DDPM(prediction="eps", schedule="linear"))
    assert model.vector_scale != 1
    assert "LDMPipeline" in export_to_diffusers(model, tmp_path / "out")
    pipeline = LDMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(2, torch.Generator().manual_seed(3), num_inference_steps=10, output_type="np").images
    expected = ours(model, noise(model.prior), solver="ddim", steps=10) / 2 + 0.5
    torch.testing.assert_close(torch.from_numpy(images).permute(0, 3, 1, 2), expected, rtol=0, atol=1e-5)


# ---- import ----


def pipeline_folder(tmp_path, old_layout: bool = False):
    """Save a small pipeline with the layout of google/ddpm-celebahq-256 and random weights."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(beta_schedule="linear", clip_sample=True, variance_type="fixed_small")
    folder = tmp_path / "ddpm"
    DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    if old_layout:
        for part in ("unet", "scheduler"):
            for file in (folder / part).iterdir():
                file.rename(folder / file.name)
            (folder / part).rmdir()
    return folder


@pytest.mark.parametrize("old_layout", [False, True], ids=["subfolders", "side by side"])
def test_a_ddpm_pipeline_runs_behind_our_interface(old_layout, tmp_path):
    from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = pipeline_folder(tmp_path, old_layout)
    model = genmodels.load(folder)
    assert model.family == "unet" and model.config.size == 16 and model.config.ddpm.clip
    network = UNet2DModel.from_pretrained(folder if old_layout else folder / "unet")
    theirs = DDPMPipeline(network, DDPMScheduler.from_pretrained(folder, subfolder="" if old_layout else "scheduler"))
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(2, torch.Generator().manual_seed(3), num_inference_steps=20, output_type="np").images
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 16, 16, generator=generator)
    denoise = make_denoiser(model, Condition(), model.options(), 2, x.device)
    with torch.no_grad():
        found = solvers.ddpm(
            denoise, x, solvers.schedule(model.process, 20), lambda: torch.randn(x.shape, generator=generator)
        )
    found = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=2e-5)
    theirs = DDIMPipeline(network, theirs.scheduler)
    theirs.set_progress_bar_config(disable=True)
    # Where DDIM clips the data, the noise is what is left (use_clipped_model_output).
    expected = theirs(
        2, torch.Generator().manual_seed(3), num_inference_steps=10, output_type="np", use_clipped_model_output=True
    ).images
    found = ours(model, noise(model), solver="ddim", steps=10) / 2 + 0.5
    torch.testing.assert_close(found.permute(0, 2, 3, 1), torch.from_numpy(expected), rtol=0, atol=2e-5)


def test_an_ldm_pipeline_runs_behind_our_interface(tmp_path):
    """A small copy of CompVis/ldm-celebahq-256."""
    from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

    torch.manual_seed(0)
    scheduler = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False)
    network = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )
    LDMPipeline(vqvae=VQModel(**VQ), unet=network, scheduler=scheduler).save_pretrained(tmp_path / "ldm")
    model = genmodels.load(tmp_path / "ldm")
    assert model.family == "latent" and model.config.size == 16
    theirs = LDMPipeline.from_pretrained(tmp_path / "ldm")
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(2, torch.Generator().manual_seed(3), num_inference_steps=10, output_type="np").images
    found = ours(model, noise(model.prior), solver="ddim", steps=10) / 2 + 0.5
    torch.testing.assert_close(found.permute(0, 2, 3, 1), torch.from_numpy(expected), rtol=0, atol=1e-5)


def dit_over_kl(classes: int, class_names: tuple[str, ...] = ()) -> Latent:
    """Save a small pipeline like facebook/DiT-XL-2-256, over a codec that centres its latents."""
    torch.manual_seed(0)
    codec = PretrainedKL(PretrainedConfig(16, KL)).requires_grad_(False).eval()
    codec.prepare([torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1])
    blocks = TransformerConfig(width=16, depth=2, heads=2)
    condition = ConditionConfig(classes=classes, class_names=class_names)
    prior = DiT(vanilla(size=16, latents=codec.latent_shape, patch=2, transformer=blocks, condition=condition))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return Latent.over(codec, prior).eval()


@pytest.mark.parametrize(
    ("classes", "class_names", "back"),
    [
        (1000, (), 1000),
        (1000, tuple(f"kind {i}" for i in range(1000)), 1000),
        (3, ("sea lion", "Cat", "a dog"), 3),
        (3, (), 1000),
    ],
    ids=["all", "all, named", "three, named", "three"],
)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_dit_becomes_a_dit_pipeline_and_comes_back(classes, class_names, back, guidance, tmp_path):
    from diffusers import DiTPipeline

    model = dit_over_kl(classes, class_names)
    assert "DiTPipeline" in export_to_diffusers(model, tmp_path / "out")
    again = genmodels.load(tmp_path / "out")
    assert again.conditions.classes == back and again.conditions.class_names == class_names
    pipeline = DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    wanted = [1, classes - 1]
    if class_names:
        assert pipeline.get_label_ids([class_names[i] for i in wanted]) == wanted
        assert again.conditions.condition({"label": class_names[1]}, 2).labels.tolist() == [1, 1]
    generator = torch.Generator().manual_seed(3)
    images = pipeline(wanted, guidance, generator, num_inference_steps=10, output_type="np").images
    labels = Condition(labels=torch.tensor(wanted))
    for one in (model, again):
        found = ours(one, noise(model.prior), labels, solver="ddim", steps=10, guidance=guidance) / 2 + 0.5
        torch.testing.assert_close(found.permute(0, 2, 3, 1), torch.from_numpy(images), rtol=0, atol=2e-5)
    faces = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(again.encode(faces), model.encode(faces), rtol=1e-4, atol=1e-4)


def test_classes_without_weights_of_their_own_sample_as_no_class(tmp_path):
    from diffusers import DiTPipeline

    model = dit_over_kl(classes=3)
    export_to_diffusers(model, tmp_path / "out")
    pipeline = DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([3, 999], 1.0, torch.Generator().manual_seed(3), num_inference_steps=5, output_type="np").images
    found = ours(model, noise(model.prior), solver="ddim", steps=5) / 2 + 0.5
    torch.testing.assert_close(found.permute(0, 2, 3, 1), torch.from_numpy(images), rtol=0, atol=2e-5)


def test_a_named_part_of_the_classes_does_not_hide_the_others(tmp_path):
    export_to_diffusers(dit_over_kl(classes=1000), tmp_path / "out")
    edit_json(tmp_path / "out" / "model_index.json", id2label={"0": "sea lion", "1": "cat"})
    assert genmodels.load(tmp_path / "out").conditions == ConditionConfig(classes=1000)
    edit_json(tmp_path / "out" / "model_index.json", id2label={"0": "sea lion", "5": "cat"})
    assert genmodels.load(tmp_path / "out").conditions == ConditionConfig(classes=1000)
    edit_json(tmp_path / "out" / "model_index.json", id2label={"0": 5})
    with pytest.raises(ValueError, match="id2label.*expected text, got 5"):
        genmodels.load(tmp_path / "out")


def test_commands_take_the_pipeline_itself(tmp_path, monkeypatch, capsys):
    from genmodels.evaluation.images import holds_images

    folder = pipeline_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["info", str(folder)]) == 0
    assert "unet" in capsys.readouterr().out
    assert main(["sample", str(folder), "--n", "2", "--steps", "2"]) == 0
    assert not holds_images(folder), "evaluate would take it for a folder of images"


def test_chains_that_end_at_their_first_timestep_run_on_every_solver():
    """set_alpha_to_one=False with leading timesteps: the last step goes to the current point."""
    model = unet(process="ddpm", ddpm=DDPM(final="first", spacing="leading"))
    for solver in ("euler", "heun", "dpm", "unipc", "ddpm", "dpm-sde"):
        assert model.generate(1, solver=solver, steps=5).isfinite().all()


def test_imported_and_saved_it_is_a_model_like_any_other(tmp_path):
    folder = pipeline_folder(tmp_path)
    assert main(["import", str(folder), str(tmp_path / "run")]) == 0
    first, second = genmodels.load(folder), genmodels.load(tmp_path / "run")
    assert dataclasses.asdict(first.config) == dataclasses.asdict(second.config)
    assert torch.equal(first.generate(2, steps=3), second.generate(2, steps=3))
    assert first.generate(2, steps=3, solver="unipc").shape == (2, 3, 16, 16)
    bits = first.bits_per_dim(torch.zeros(2, 3, 16, 16), Noise.for_images(0, range(2)))
    assert torch.isfinite(bits).all()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    before = json.loads((folder / "unet" / "config.json").read_text())
    after = json.loads((tmp_path / "back" / "unet" / "config.json").read_text())
    assert {k: v for k, v in before.items() if k[0] != "_"} == {k: v for k, v in after.items() if k[0] != "_"}


# ---- what is refused ----


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLPipeline"},
            "a StableDiffusionXLPipeline of diffusers, which is",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "KarrasVeScheduler"},
            "a KarrasVeScheduler is not supported",
        ),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas .* is not supported"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding True is not supported"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not supported"),
        (
            "unet/config.json",
            {"_class_name": "UNet2DConditionModel"},
            "holds a UNet2DConditionModel, not a UNet2DModel",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "HeunDiscreteScheduler"},
            "a HeunDiscreteScheduler is not supported",
        ),
        ("scheduler/scheduler_config.json", {"variance_type": "learned"}, "variance_type 'learned' is not supported"),
        ("unet/config.json", {"num_class_embeds": 10}, "class embeddings of its own"),
        ("unet/config.json", {"sample_size": [16, 8]}, "sample_size .16, 8. is not square"),
        ("unet/config.json", {"sample_size": None}, "sample_size: expected a number, got None"),
        ("unet/config.json", {"out_channels": 6}, "3 channels in and 6 out are not supported"),
    ],
)
def test_foreign_pipelines_are_refused_in_one_line(file, changes, message, tmp_path, capsys):
    folder = pipeline_folder(tmp_path)
    edit_json(folder / file, **changes)
    with pytest.raises(ValueError, match=message):
        genmodels.load(folder)
    capsys.readouterr()
    assert main(["info", str(folder)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_pickled_weights_are_not_read(tmp_path):
    folder = pipeline_folder(tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="as safetensors"):
        genmodels.load(folder)


def test_what_diffusers_cannot_be_given_is_refused(tmp_path):
    from genmodels.vae import VAE, VAEConfig

    vae = VAEConfig(size=16, channels=(8, 8), encoder_blocks=(0, 0), decoder_blocks=(0, 0), spatial=True, latent_dim=4)
    codec = VAE(vae)
    with pytest.raises(ValueError, match="diffusers has no counterpart of vae models here"):
        export_to_diffusers(codec, tmp_path / "out")
    prior = unet(latents=codec.latent_shape, channels=(16,), attention=(False,))
    with pytest.raises(ValueError, match="makes no images without that codec"):
        export_to_diffusers(prior, tmp_path / "out")
    with pytest.raises(ValueError, match="StableDiffusionPipeline of diffusers does not support this unet: .*vae"):
        export_to_stable_diffusion(Latent.over(codec, prior), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ValueError, match="not an empty folder"):
        export_to_diffusers(unet(), tmp_path / "out")


def test_a_square_sample_size_may_be_written_as_two_numbers(tmp_path):
    folder = pipeline_folder(tmp_path)
    edit_json(folder / "unet" / "config.json", sample_size=[16, 16])
    assert genmodels.load(folder).config.size == 16


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("model_index.json", {"_class_name": ["DDPMPipeline"]}),
        ("scheduler/scheduler_config.json", {"beta_start": "x"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 2**62}),
        ("scheduler/scheduler_config.json", {"beta_schedule": []}),
        ("scheduler/scheduler_config.json", {"clip_sample": None}),
        ("unet/config.json", {"in_channels": "3"}),
        ("unet/config.json", {"block_out_channels": 16}),
        ("unet/config.json", {"block_out_channels": [16] * 64}),
        ("unet/config.json", {"down_block_types": {"a": 1}}),
        ("unet/config.json", {"layers_per_block": 2**40}),
        ("unet/config.json", {"layers_per_block": 0}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"act_fn": 5}),
        ("unet/config.json", {"norm_eps": "x"}),
        ("unet/config.json", {"mid_block_scale_factor": None}),
        ("unet/config.json", {"flip_sin_to_cos": "no"}),
        ("unet/config.json", {"attention_head_dim": -1}),
        ("unet/config.json", {"sample_size": [16, None]}),
    ],
)
def test_settings_of_other_types_are_refused_in_one_line(file, changes, tmp_path, capsys):
    folder = pipeline_folder(tmp_path)
    edit_json(folder / file, **changes)
    with pytest.raises(ValueError, match=r"\w") as error:
        genmodels.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    capsys.readouterr()
    assert main(["info", str(folder)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "kind", ["UNet2DModel", "AutoencoderKL", "AutoencoderTiny", "VQModel", "DiTTransformer2DModel"]
)
def test_every_single_setting_of_a_network_of_diffusers_is_checked(kind):
    network = getattr(diffusers, kind)
    defaults = {name: p.default for name, p in inspect.signature(network.__init__).parameters.items() if name != "self"}
    assert checked_settings(network, defaults) == defaults
    numbers = {name for name, value in defaults.items() if type(value) in (int, float)} - {"sample_size"}
    assert len(numbers) >= 6
    for name in numbers:
        with pytest.raises(ValueError, match=f"^{name}: expected a number, got 'x'"):
            checked_settings(network, defaults | {name: "x"})
    assert type(checked_settings(network, {"in_channels": 3.0})["in_channels"]) is int


def test_weights_of_a_pipeline_that_are_not_finite_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = pipeline_folder(tmp_path)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] * float("nan")}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"numbers of {name} are NaN"):
        genmodels.load(folder)
