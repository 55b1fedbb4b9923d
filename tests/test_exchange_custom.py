"""Custom pipelines of diffusers: the same images as ours, from programs and without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_pairs import clip
from test_exchange import ours, unet
from test_latent import diffusers_kl
from test_latent_diffusion import codec, over
from torch import Tensor

import genmodels
from genmodels.cli import main
from genmodels.conditions import Condition, ConditionConfig, condition_of
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import EDM, Flow
from genmodels.dit import DiT, DiTConfig, vanilla
from genmodels.exchange.custom import Decode, Denoise, Embed, settings_of, write_program
from genmodels.exchange.export import export_to_diffusers, export_to_stable_diffusion, standard_pipeline
from genmodels.exchange.pipeline import GenmodelsPipeline
from genmodels.exchange.program import FILE, Program
from genmodels.latent import Latent
from genmodels.nn.transformer import TransformerConfig
from genmodels.pretrained import load_pretrained
from genmodels.text_conditions import TextSource, conditioned_on_text

BLOCKS = TransformerConfig(width=16, depth=1, heads=2)
NAMED = ConditionConfig(("Smiling", "Male"), classes=3, class_names=("cat", "Sea lion", "7"))
TEXTS, NEGATIVE = ["a smiling woman with glasses", "a man wearing a hat"], "blond hair"
ALONE = """
import sys
import torch
sys.modules["genmodels"] = None
import diffusers
folder, latents, out, *texts, negative = sys.argv[1:]
pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
call = dict(latents=torch.load(latents), num_inference_steps=3, attributes={"Smiling": True, "Male": "no"})
both = [pipeline(texts, negative_prompt=negative, guidance_scale=3.0, output_type=kind, **call).images
        for kind in ("latent", "pt")]
torch.save([*both, list(pipeline.decoder.program.state_dict)], out)
"""


def scattered(model: Any) -> Any:
    """Add random numbers to all weights that are trained, also where networks begin with zeros."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def noise(model: Any, n: int = 2) -> Tensor:
    return torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(3))


def eager(model: Any) -> GenmodelsPipeline:
    """Return the pipeline with modules in place of programs, which takes no time to build."""
    prior = model.prior if isinstance(model, Latent) else model
    parts = {
        "denoiser": Denoise(prior),
        "conditioner": None if prior.condition is None else Embed(prior.condition),
        "decoder": Decode(model) if isinstance(model, Latent) else None,
    }
    for part in filter(None, parts.values()):
        part.device = torch.device("cpu")
    pipeline = GenmodelsPipeline(**parts, settings=settings_of(prior))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    "settings",
    [
        dict(process="flow", patch=2, gaussian=20, conditional_mean=True, flow=Flow(shift=2.0)),
        dict(process="meanflow", gaussian=20, conditional_mean=True),
        dict(process="edm", patch=2, gaussian=20, edm=EDM(data=0.7)),
        dict(process="ddpm", gaussian=20, ddpm=DDPM(prediction="eps", learned_variance=True)),
        dict(process="ddpm", ddpm=DDPM(clip=True, spacing="leading", offset=1, final="first")),
    ],
    ids=["flow", "mean flow", "edm", "ddpm", "ddpm, clipped"],
)
def test_it_samples_as_we_do(settings: dict[str, Any]) -> None:
    """With our default solver and steps, and with others; with attributes and labels, and without."""
    model = unet(condition=NAMED, channels=(16,), attention=(True,), **settings)
    pipeline, x = eager(model), noise(model)
    for change, ask in (({}, {}), ({"solver": "heun", "steps": 4}, {"solver": "heun", "num_inference_steps": 4})):
        free = pipeline(batch_size=2, generator=torch.Generator().manual_seed(3), output_type="pt", **ask).images
        torch.testing.assert_close(free, ours(model, x, **change).clamp(-1, 1) / 2 + 0.5, rtol=0, atol=1e-5)
    given = Condition(torch.tensor([[1.0, -1.0]] * 2), torch.tensor([1, 2]))
    asked: Any = dict(attributes={"Smiling": True, "Male": -1}, label=["SEA LION", "7"], guidance_scale=2.5)
    found = pipeline(latents=x, num_inference_steps=4, output_type="np", **asked).images
    expected = ours(model, x, given, steps=4, guidance=2.5).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(torch.from_numpy(found).permute(0, 3, 1, 2), expected, rtol=0, atol=1e-5)


def transformer(tmp_path: Path) -> Latent:
    """Build a DiT with text, attributes and the closed-form denoiser over an AutoencoderKL."""
    diffusers_kl().save_pretrained(tmp_path / "kl")
    kl = load_pretrained(tmp_path / "kl", 16)
    kl.prepare([torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1])
    source = TextSource.of(clip())
    conditions = replace(NAMED, classes=0, class_names=())
    config = DiTConfig(size=16, transformer=BLOCKS, gaussian=8, conditional_mean=True, condition=conditions)
    prior = scattered(DiT(conditioned_on_text(DiT.config_over(config, kl), source)))
    prior.use_text_encoder(source)
    prior.gaussian.fit([torch.randn(40, *prior.shape, generator=torch.Generator().manual_seed(0))])
    return Latent.over(kl, prior).eval()


@pytest.mark.slow
def test_a_transformer_with_text_runs_without_genmodels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = transformer(tmp_path)
    model.save_pretrained("run")
    assert main(["export", "run", "out"]) == 0
    line = capsys.readouterr().out
    assert "out is a custom pipeline, since DiTPipeline does not support this model (" in line
    assert "it takes text" in line and "from_pretrained('out', trust_remote_code=True)" in line
    torch.save(noise(model.prior), "latents.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", ALONE, "out", "latents.pt", "found.pt", *TEXTS, NEGATIVE]
    subprocess.run(command, check=True, env=environment, timeout=300)
    latents, images, weights = torch.load("found.pt")
    given = condition_of(model, {"prompt": TEXTS, "Smiling": True, "Male": False}, 2)
    settings = model.options(steps=3, guidance=3.0, negative=NEGATIVE)
    with torch.no_grad():
        expected = model.prior.generate_from(noise(model.prior), given, settings)
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(images, model.decode(expected).clamp(-1, 1) / 2 + 0.5, rtol=0, atol=1e-4)
    assert any(".decoder." in name for name in weights) and not any(".encoder." in name for name in weights)
    readme = Path("out/README.md").read_text()
    assert "trust_remote_code=True" in readme and "it takes text" in readme and "Load only folders that you" in readme
    with pytest.raises(ValueError, match="custom pipeline of diffusers, whose code is not run: load the model it was"):
        genmodels.load("out")


def test_a_program_computes_any_number_of_rows(tmp_path: Path) -> None:
    """The denoiser of a U-Net, whose tables are constants of the program and whose file has no pickles."""
    model = unet(process="ddpm", gaussian=4, channels=(8, 8), attention=(False, False), size=8, groups=4)
    x, t = noise(model), torch.full((2, 1, 1, 1), 500.0)
    write_program(Denoise(model), (x, t, None, None, None), tmp_path / "denoiser")
    denoise = Program.from_pretrained(str(tmp_path / "denoiser"))
    for n in (1, 3, 40):
        x, t = noise(model, n), torch.linspace(0, 999, n).round().view(-1, 1, 1, 1)
        with torch.no_grad():
            expected = Denoise(model)(x, t, None, None, None)
            torch.testing.assert_close(denoise(x, t, None, None, None), expected, rtol=1e-4, atol=1e-4)
    with zipfile.ZipFile(tmp_path / "denoiser" / FILE) as archive:
        configs = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith("s_config.json")]
    payloads = [payload for config in configs for payload in config["config"].values()]
    assert len(payloads) > 20 and not any(payload["use_pickle"] for payload in payloads)
    with pytest.raises(ValueError, match=r"computes in float32, got torch.float16: leave out torch_dtype"):
        denoise.to(torch.float16)
    on_meta = denoise.to("meta")(x.to("meta"), t.to("meta"), None, None, None)  # no constant is left on the CPU
    assert on_meta.device.type == "meta" and on_meta.shape == x.shape


@pytest.mark.parametrize("kind", ["vector", "vqvae"])
def test_codecs_that_diffusers_lacks_become_programs(kind: str, tmp_path: Path) -> None:
    latents = codec(kind)
    shape = latents.vector_shape if kind == "vqvae" else latents.latent_shape
    prior = DiT(DiTConfig(size=16, latents=tuple(shape), patch=1, transformer=BLOCKS))
    model = Latent.over(latents, prior).eval()
    x = noise(model.prior, 3)
    write_program(Decode(model), (x,), tmp_path / "decoder")
    expected = model.decode(model.prior.as_latents(x)).clamp(-1, 1)
    torch.testing.assert_close(Program.from_pretrained(str(tmp_path / "decoder"))(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(eager(model).finished(x, "pt"), expected / 2 + 0.5, rtol=0, atol=1e-5)


def test_a_safety_checker_is_not_left_out_silently(tmp_path: Path) -> None:
    checked: Any = over(codec("map"))
    checked.safety_checker = object()
    with pytest.raises(ValueError, match=r"a custom pipeline has no safety checker, .* leave it out by --no-safety-ch"):
        export_to_diffusers(checked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_standard_pipeline_does_not_support_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for settings, kind, reasons in (
        (dict(process="ddpm"), "DDIMPipeline", []),
        (dict(patch=2, gaussian=8), "DDIMPipeline", ["the process flow", "patches of 2", "the closed-form denoiser"]),
        (dict(process="ddpm", condition=NAMED), "DDIMPipeline", ["attributes", "classes"]),
    ):
        assert standard_pipeline(unet(**settings), None) == (kind, reasons)
    assert standard_pipeline(unet(process="ddpm"), codec("map")) == ("LDMPipeline", ["a codec vae"])
    published = DiT(vanilla(size=16, transformer=BLOCKS, condition=ConditionConfig(classes=1001)))
    assert standard_pipeline(published, None)[1] == [
        "its latents are not those of a kl or AutoencoderKL",
        "it has more than 1,000 classes",
    ]
    unet(gaussian=8).save_pretrained("run")
    assert main(["export", "run", "out", "--to", "stable-diffusion"]) == 1
    with pytest.raises(ValueError, match=r"does not support this unet: a model without text .*; pixels .*closed-form"):
        export_to_stable_diffusion(genmodels.load("run"), Path("out"))
    assert not Path("out").exists()
    text = replace(NAMED, text=replace(NAMED.text, vocabulary=9))
    with pytest.raises(ValueError, match="has text without a text encoder, so that no tokenizer can be exported"):
        export_to_diffusers(unet(condition=text), Path("out"))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(prompt="a man"), "this model was trained without text"),
        (dict(attributes={"Hat": True}), "unknown attribute 'Hat'; this model knows: Smiling, Male"),
        (dict(attributes={"Male": 2}), "Male=2: use True, False or None, or 1, -1 or 0"),
        (dict(attributes={"Male": 0.5}), "Male=0.5: use True"),
        (dict(attributes={"Male": [1]}), r"Male=\[1\]: use True"),
        (dict(label="dog"), "label 'dog': this model does not know it; it has cat, Sea lion, 7"),
        (dict(label=3), "label 3: this model does not know it"),
        (dict(negative_prompt="hat"), "no effect at guidance_scale 1"),
        (dict(negative_prompt="hat", guidance_scale=2.0), "this model was trained without text"),
        (dict(solver="jump"), "solver 'jump': choose one of unipc, dpm, heun, euler"),
        (dict(latents=torch.zeros(1, 3, 8, 8)), r"latents must be \(1, 3, 16, 16\), got \(1, 3, 8, 8\)"),
        (dict(output_type="jpg"), "output_type 'jpg': choose one of pil, np, pt, latent"),
    ],
)
def test_calls_that_cannot_be_are_refused(call: dict[str, Any], message: str) -> None:
    pipeline = eager(unet(condition=NAMED))
    with pytest.raises(ValueError, match=message):
        pipeline(**call)


def test_attributes_are_compared_as_numbers() -> None:
    """A float means the same as its integer, and no is not taken for unknown, which is 0."""
    pipeline = eager(unet(condition=NAMED))
    for yes in (True, 1, 1.0, "1", "yes", np.float32(1), np.True_, torch.tensor(1)):
        assert pipeline._signs({"Male": yes}) == [0, 1]
    for no in (False, -1, -1.0, "no", np.int64(-1), np.False_, torch.tensor(False)):
        assert pipeline._signs({"Smiling": no, "Male": None}) == [-1, 0]
    assert pipeline._signs({"Smiling": 0.0}) == [0, 0]


def test_guidance_of_an_unconditional_model_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance_scale 2 needs a condition, and this model was trained without"):
        eager(unet())(guidance_scale=2.0)


def test_images_are_returned_as_pictures() -> None:
    images = eager(unet())(batch_size=2, num_inference_steps=1).images
    assert [image.size for image in images] == [(16, 16)] * 2
