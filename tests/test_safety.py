"""The safety checker of a folder of Stable Diffusion: its decisions, what it is asked about, and its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from test_exchange_stable_diffusion import SIZE, edit, only_pickles, stable_diffusion
from torch import Tensor

import genmodels
from genmodels import sampling
from genmodels.cli import main
from genmodels.exchange.export import export_to_diffusers
from genmodels.exchange.importing import import_folder
from genmodels.safety import SafetyChecker

PROMPT = {"prompt": "a man"}
FEW: dict[str, Any] = {"condition": PROMPT, "solver": "ddim", "steps": 2}
N = 6


def network() -> StableDiffusionSafetyChecker:
    """Build a tiny checker with random weights, which flags nothing yet."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    text |= {"bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config).eval()
    for parameter in checker.vision_model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    checker.concept_embeds.data.normal_()
    checker.special_care_embeds.data.normal_()
    return checker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a pipeline whose checker flags some of the images of seed 0, and not all."""
    place = stable_diffusion(tmp_path_factory.mktemp("safety") / "sd", 1)
    checker = network()
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    images = genmodels.load(place).generate(N, **FEW)
    pixels = processor([Image.fromarray(image) for image in pictures_of(images)], return_tensors="pt").pixel_values
    with torch.no_grad():
        embeddings = checker.visual_projection(checker.vision_model(pixels)[1])
    cosines = torch.nn.functional.cosine_similarity(embeddings, checker.concept_embeds[:1]).sort().values
    checker.concept_embeds_weights.data[0] = cosines[N // 2 - 1 : N // 2 + 1].mean()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(place, requires_safety_checker=False)
    pipeline.register_modules(safety_checker=checker, feature_extractor=processor)
    pipeline.save_pretrained(place)
    return place


def pictures_of(images: Tensor) -> np.ndarray:
    return ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def black(images: Any) -> list[bool]:
    """Return which images (N, ...) are the lowest value everywhere."""
    values = torch.as_tensor(images).flatten(1)
    return (values == (0 if values.dtype == torch.uint8 else -1)).all(1).tolist()


def test_images_that_the_pipeline_flags_are_black(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = genmodels.load(folder)
    free: Any = genmodels.load(folder, safety_checker=False)
    images = free.generate(N, **FEW)
    assert capsys.readouterr().err == "" and not any(black(images))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs, flagged = pipeline.run_safety_checker(images.clone(), torch.device("cpu"), torch.float32)
    assert 0 < sum(flagged) < N
    assert model.safety_checker(images).tolist() == flagged
    capsys.readouterr()
    checked = model.generate(N, **FEW)
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"the safety checker flagged {sum(flagged)} of {N} images, which are black")
    assert "\n" not in error and "Potential NSFW" not in error
    assert black(checked) == flagged
    kept = [not flag for flag in flagged]
    assert torch.equal(checked[kept], images[kept]) and torch.equal(checked[kept], theirs[kept])
    assert [np.asarray(image).any() for image in model.images(N, **FEW)] == kept


def test_everything_that_shows_generated_images_asks_it(folder: Path) -> None:
    model: Any = genmodels.load(folder)
    rng = np.random.default_rng(0)
    given = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    known = np.zeros((SIZE, SIZE), bool)
    known[: SIZE // 2] = True
    how = {"solver": "ddim", "steps": 2}
    calls = {
        "sample": lambda m: sampling.sample(m, 3, condition=PROMPT, progress=False, **how),
        "inpaint": lambda m: sampling.inpaint(m, given, known, 2, condition=PROMPT, steps=2),
        "edit": lambda m: sampling.edit(m, given, 0.5, condition=PROMPT, **how),
        "interpolate": lambda m: sampling.interpolate(m, [0, 1], 3, **how),
        "morph": lambda m: sampling.morph(m, given, 3, **how),
        "trajectory": lambda m: sampling.trajectory(m, 2, condition=PROMPT, **how),
    }
    shown = {name: call(genmodels.load(folder, safety_checker=False)) for name, call in calls.items()}
    model.safety_checker.network.concept_embeds_weights.data.fill_(-1)  # flags everything
    for name, call in calls.items():
        assert shown[name].any() and not call(model).any(), name
    assert sampling.reconstruct(model, given).any()  # these are the user's images


def test_it_is_saved_with_the_model_and_exported(folder: Path, tmp_path: Path) -> None:
    model: Any = genmodels.load(folder)
    model.save_pretrained(tmp_path / "run")
    model.save_pretrained(tmp_path / "run")  # over itself
    again: Any = genmodels.load(tmp_path / "run")
    expected = model.generate(N, **FEW)
    assert any(black(expected)) and torch.equal(again.generate(N, **FEW), expected)
    assert again.config == model.config
    free: Any = genmodels.load(tmp_path / "run", safety_checker=False)
    assert free.safety_checker is None and not any(black(free.generate(N, **FEW)))
    free.save_pretrained(tmp_path / "free")
    assert not list((tmp_path / "free").glob("safety*")) and genmodels.load(tmp_path / "free").safety_checker is None
    export_to_diffusers(again, tmp_path / "out")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    images = free.generate(N, **FEW)
    _, flagged = pipeline.run_safety_checker(images.clone(), torch.device("cpu"), torch.float32)
    assert flagged == black(expected)
    (tmp_path / "run" / "safety_checker.json").unlink()
    with pytest.raises(ValueError, match=r"has no safety_checker\.json: copy it there, or leave it out"):
        genmodels.load(tmp_path / "run")
    assert genmodels.load(tmp_path / "run", safety_checker=False).safety_checker is None


def test_names_of_earlier_files_are_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "sd")
    file = tmp_path / "sd" / "safety_checker" / "model.safetensors"
    earlier = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: value
        for name, value in load_file(file).items()
    }
    earlier["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(earlier, file)
    settings = tmp_path / "sd" / "feature_extractor" / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"crop_size": 16, "size": 16}))
    # Such a name makes transformers fetch code: it is not read.
    edit(tmp_path / "sd" / "safety_checker", attn_implementation="kernels-community/flash-attn")
    ours, theirs = (SafetyChecker.of_pipeline(place) for place in (folder, tmp_path / "sd"))
    assert ours is not None and theirs is not None
    images = torch.rand(64, 3, SIZE, SIZE) * 2 - 1
    assert torch.equal(ours(images), theirs(images))
    weights = ours.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in theirs.network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f / "safety_checker"), "has a safety checker and no safety_checker/config.json"),
        (lambda f: shutil.rmtree(f / "feature_extractor"), "no feature_extractor/preprocessor_config.json: add it"),
        (
            lambda f: only_pickles(f / "safety_checker"),
            "the weights of this StableDiffusionSafetyChecker",
        ),
        (lambda f: edit(f / "safety_checker", projection_dim=9), "not the weights of this config"),
        (lambda f: edit(f / "safety_checker", vision_config=[1]), "not the settings of a StableDiffusionSafetyChecker"),
        (lambda f: processor(f, crop_size={"height": 8, "width": 8}), "the safety checker cannot be used"),
        (lambda f: processor(f, size={"shortest_edge": 10**6}), "makes images of 1,000,000 pixels a side"),
        (lambda f: index(f, ["other", "Other"]), "a safety checker Other is not supported: leave it out"),
    ],
)
def test_one_that_cannot_be_used_is_refused_unless_left_out(
    change: Any, message: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "sd")
    change(tmp_path / "sd")
    with pytest.raises(ValueError, match=message) as caught:
        import_folder(tmp_path / "sd")
    assert "\n" not in str(caught.value)
    assert import_folder(tmp_path / "sd", safety_checker=False).safety_checker is None  # type: ignore[attr-defined]


def processor(folder: Path, **settings: Any) -> None:
    file = folder / "feature_extractor" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def index(folder: Path, entry: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"safety_checker": entry}))


def test_commands_run_it_unless_it_is_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--prompt", "a man", "--steps", "2", "--solver", "ddim"]
    assert main(["import", str(folder), "run"]) == 0
    assert main(["import", str(folder), "free", "--no-safety-checker"]) == 0
    for run, leaves_out in ((str(folder), False), ("run", False), ("run", True), (str(folder), True), ("free", False)):
        out = f"{Path(run).name}-{leaves_out}.npy"
        left = ["--no-safety-checker"] if leaves_out else []
        assert main(["sample", run, "--n", str(N), "--out", out, *flags, *left]) == 0
        error = capsys.readouterr().err
        runs = run != "free" and not leaves_out
        assert any(black(np.load(out))) == runs == ("the safety checker flagged" in error)
    Image.fromarray(np.full((SIZE, SIZE, 3), 99, np.uint8)).save("face.png")
    for command in ("edit", "inpaint"):
        assert main([command, "run", "face.png", "--no-safety-checker", "--out", f"{command}.png", *flags[:4]]) == 0
    assert main(["interpolate", "run", "--no-safety-checker", "--steps", "2", "--frames", "2"]) == 0
    assert "flagged" not in capsys.readouterr().err
    assert main(["export", "run", "kept"]) == main(["export", "run", "left", "--no-safety-checker"]) == 0
    assert genmodels.load("kept").safety_checker is not None and genmodels.load("left").safety_checker is None
