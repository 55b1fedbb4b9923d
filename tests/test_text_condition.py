"""Text as a condition, read by the frozen text encoder of a CLIP: training, sampling and files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from clip_pairs import clip
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from test_pipeline import CODEC, PRIOR
from torch import Tensor

import genmodels
from genmodels import sampling
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.cli import main
from genmodels.clip import CLIP
from genmodels.conditions import Condition, condition_of
from genmodels.data import load_packed, pack
from genmodels.data.captions import held_out, parse
from genmodels.diffusion import sampler
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.dit import DiT, DiTConfig
from genmodels.evaluation.embedder import embedder
from genmodels.evaluation.evaluate import evaluate
from genmodels.evaluation.reference import reference_from
from genmodels.evaluation.requests import requested_of
from genmodels.hashing import weights_hash
from genmodels.nn.transformer import TransformerConfig
from genmodels.pictures import to_uint8
from genmodels.prior import Prior
from genmodels.text_conditions import TextSource, conditioned_on_text
from genmodels.types import Batch, Noise

UNET = ["--model.channels", "16", "16", "--model.attention", "False", "True", "--model.head", "8"]
UNET += ["--model.groups", "8", "--model.patch", "1", "--model.gaussian", "0", "--model.blocks", "1"]
BLOCKS = TransformerConfig(width=16, depth=2, heads=2)
CONFIGS: dict[str, Any] = {
    "unet": UNetConfig(size=8, channels=(16, 16), blocks=1, attention=(False, True), head=8, groups=8),
    "dit": DiTConfig(size=8, patch=4, transformer=BLOCKS),
    "autoregressive": AutoregressiveConfig(size=8, levels=8, transformer=replace(BLOCKS, qk_norm=True)),
}
KINDS: dict[str, type[Prior]] = {"unet": UNet, "dit": DiT, "autoregressive": Autoregressive}
FEW: dict[str, dict[str, Any]] = {"unet": {"steps": 3}, "dit": {"steps": 3}, "autoregressive": {}}
"""Sampling options that save time."""


def model_of(family: str, source: CLIP | None = None, scale: float = 0.1) -> Prior:
    """Build a model with text and random weights, also where networks begin with zeros."""
    text = TextSource.of(source or clip())
    torch.manual_seed(0)
    model = KINDS[family](conditioned_on_text(CONFIGS[family], text))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))
    model.use_text_encoder(text)
    return model.eval()


def batch(model: Prior, texts: list[str]) -> Batch:
    images = torch.rand(len(texts), 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, Noise.for_images(0, range(len(texts))), Condition(text=model.tokenize(texts)))


@pytest.mark.parametrize("family", KINDS)
def test_prompts_change_the_samples_and_guidance_leads_away_from_the_negative_one(family: str) -> None:
    model = model_of(family)

    def sample(**condition_and_options: Any) -> Tensor:
        prompt = condition_and_options.pop("prompt", None)
        condition = None if prompt is None else {"prompt": prompt}
        return model.generate(4, condition=condition, **(FEW[family] | condition_and_options))

    man, woman = sample(prompt="a man"), sample(prompt="a smiling woman with glasses")
    assert not torch.allclose(man, woman)
    assert torch.equal(sample(prompt=["a man"] * 4), man)
    strong = sample(prompt="a man", guidance=3.0)
    assert not torch.allclose(strong, man)
    assert not torch.allclose(sample(prompt="a man", guidance=3.0, negative="a hat"), strong)
    # What is led away from is what is led to, so guidance has no effect.
    torch.testing.assert_close(sample(prompt="a man", guidance=3.0, negative="a man"), man, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", KINDS)
def test_a_dropped_caption_is_the_empty_text_padded_with_end_tokens(family: str) -> None:
    """Stable Diffusion's convention: no mask, and the encoding of "" as the null condition."""
    source = clip()
    model = model_of(family, source)
    conditioner: Any = model.condition
    tokenizer, cpu = source.tokenizer, torch.device("cpu")
    ids = torch.full((1, tokenizer.length), tokenizer.end)
    ids[0, 0] = tokenizer.start
    states = source.text_encoder.states(ids)
    nothing = conditioner.nothing(2, cpu)
    torch.testing.assert_close(nothing.tokens, conditioner.text.project(states).expand(2, -1, -1))
    assert nothing.mask.all()
    hidden = model.tokenize(["a man", "a woman"])
    hidden = replace(hidden, mask=hidden.mask & torch.tensor([[True], [False]]))
    embedded = conditioner(Condition(text=hidden), 2, cpu)
    torch.testing.assert_close(embedded.tokens[1], nothing.tokens[1])
    assert not torch.allclose(embedded.tokens[0], nothing.tokens[0])
    torch.testing.assert_close(embedded.pooled[1], nothing.pooled[1])


@pytest.mark.parametrize("family", KINDS)
def test_the_text_encoder_is_not_trained(family: str) -> None:
    model = model_of(family).train()
    conditioner: Any = model.condition
    loss, _ = model.loss(batch(model, ["a man", "a woman", "a smiling woman"]), "model")
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in conditioner.text.encoder.parameters())
    assert not conditioner.text.encoder.training
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("family", KINDS)
def test_saved_models_keep_encoder_and_tokenizer(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    model.save_pretrained(tmp_path / "model")
    loaded: Any = genmodels.load(tmp_path / "model")
    condition = {"prompt": "an old man with glasses"}
    assert torch.equal(
        loaded.generate(2, condition=condition, **FEW[family]), model.generate(2, condition=condition, **FEW[family])
    )
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        genmodels.load(tmp_path / "model")


def test_a_model_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    model_of("dit").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    settings = json.loads(file.read_text())
    settings["model"]["condition"]["text"]["tokenizer"] = "0" * 16
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer that these weights were trained with"):
        genmodels.load(tmp_path / "model")


def test_the_unet_is_that_of_stable_diffusion() -> None:
    """It reads the text through cross-attention alone, with the vectors of the text encoder."""
    model: Any = model_of("unet")
    assert isinstance(model.network, UNet2DConditionModel)
    assert model.network.config.class_embed_type is None
    assert model.network.config.cross_attention_dim == clip().config.text.transformer.width
    x, t = torch.randn(2, 3, 8, 8), torch.full((2,), 0.3)
    embedded = model.embed(condition_of(model, {"prompt": "a man"}, 2), 2, torch.device("cpu"))
    expected = model.network(x, t, encoder_hidden_states=embedded.tokens).sample
    torch.testing.assert_close(model.predict(x, t, embedded), expected)
    assert all(n == 2 for n in (m.heads for m in model.network.modules() if hasattr(m, "heads")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate(2, condition={"prompt": ["a man"]}), "1 prompts for 2 samples"),
        (lambda m: m.generate(2, condition={"prompt": " "}), "a text is empty"),
        (lambda m: m.generate(2, condition={"prompt": "man " * 99}), "the context is 62"),
        (lambda m: m.generate(2, condition={"Smiling": 1}), "this model was trained without attributes"),
        (lambda m: m.generate(2, negative="hat"), "negative 'hat' has no effect at guidance 1"),
        (lambda m: UNet(CONFIGS["unet"]).generate(2, condition={"prompt": "a man"}), "trained without text"),
    ],
)
def test_prompts_that_cannot_be_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(model_of("dit"))
    assert "\n" not in str(caught.value)


def test_prompts_change_the_unknown_part_of_completions_and_edits() -> None:
    model = model_of("unet", scale=0.2)
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    known = np.zeros((8, 8), bool)
    known[:3] = True

    def inpaint(prompt: str, **options: Any) -> np.ndarray:
        return sampling.inpaint(model, images, known, 2, 0, {"prompt": prompt}, steps=3, **options).astype(int)

    def edit(prompt: str, strength: float = 0.7, **options: Any) -> np.ndarray:
        return sampling.edit(model, images, strength, 0, {"prompt": prompt}, steps=4, **options).astype(int)

    man, woman = inpaint("a man"), inpaint("a smiling woman with glasses")
    for completions in (man, woman):
        assert (completions[:, :, known] == images[:, None, known]).all()
    assert np.abs(man - woman)[:, :, ~known].max() > 5
    for make in (inpaint, edit):
        plain, guided = make("a man"), make("a man", guidance=4.0, negative="a hat")
        assert np.abs(guided - plain).max() > 5
        assert np.abs(make("a man", guidance=4.0, negative="a man") - plain).max() <= 1  # it cancels guidance
        assert np.abs(make("a man", guidance=4.0) - guided).max() > 1  # not the null condition
    assert np.abs(edit("a man") - edit("a smiling woman with glasses")).max() > 5
    # At strength 1 nothing of the image is left: a sample of the prompt.
    sample = sampling.sample(model, 1, 0, {"prompt": "a man"}, steps=4)
    assert np.abs(edit("a man", strength=1.0) - sample).max() <= 1


def test_interpolation_between_prompts_starts_from_the_noise_of_each_seed(tmp_path: Path) -> None:
    model, texts = model_of("unet", scale=0.2), ["a man", "a smiling woman with glasses", "a bald man"]
    legs = sampling.interpolate(model, [1, 2], 3, prompts=texts[:2], steps=3).astype(int)
    assert legs.shape == (2, 3, 8, 8, 3)
    for frames, seed in zip(legs, (1, 2), strict=True):
        ends = [sampling.sample(model, 1, seed, {"prompt": text}, steps=3)[0] for text in texts[:2]]
        assert np.abs(frames[[0, 2]] - np.stack(ends)).max() <= 1
        cpu = torch.device("cpu")
        first, second = (model.embed(condition_of(model, {"prompt": text}, 1), 1, cpu) for text in texts[:2])
        middle = replace(first, tokens=(first.tokens + second.tokens) / 2)
        with torch.no_grad():
            sample = sampler.sample(model, Noise.for_images(seed, [0]), middle, model.options(steps=3))
        assert np.abs(frames[1] - to_uint8(sample)[0]).max() <= 1
    assert np.abs(legs[0, 0] - legs[0, 2]).max() > 5 and np.abs(legs[0, 0] - legs[1, 0]).max() > 5
    closed = sampling.interpolate(model, [1], 2, prompts=texts, steps=3, guidance=3.0, negative="a hat").astype(int)
    assert closed.shape == (3, 2, 8, 8, 3) and np.abs(closed[2, 1] - closed[0, 0]).max() <= 1
    assert model.can("interpolate_prompts") and not UNet(CONFIGS["unet"]).can("interpolate_prompts")
    with pytest.raises(ValueError, match=r"--guide other does not work between prompts"):
        sampling.interpolate(model, [1], 2, prompts=texts, guidance=2.0, guide=Path("other"))
    model.save_pretrained(tmp_path / "run")
    command = ["interpolate", str(tmp_path / "run"), "--prompts", *texts[:2], "--seeds", "1", "--steps", "3"]
    assert main([*command, "--frames", "3", "--out", str(tmp_path / "row.png")]) == 0
    with Image.open(tmp_path / "row.png") as image:
        found = np.asarray(image)
    for i, frame in enumerate(legs[0]):
        assert np.abs(found[2:10, 2 + 10 * i : 10 + 10 * i] - frame).max() <= 1


def test_a_negative_prompt_for_a_model_without_text_is_refused() -> None:
    attributes = replace(CONFIGS["dit"], condition=replace(CONFIGS["dit"].condition, attributes=("Smiling",)))
    with pytest.raises(ValueError, match="negative 'hat' was given, and this dit was trained without text"):
        DiT(attributes).generate(2, condition={"Smiling": 1}, guidance=2.0, negative="hat", steps=1)


# ---- training, commands and evaluation ----


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned images of 8 px, a CLIP, and a U-Net and a transformer over a codec with its text."""
    place = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    rows = ["name,Smiling,Male"]
    for i in range(360):
        file = place / "faces" / ("val" if i >= 80 else "train") / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
        rows.append(f"{i:03d}.png,{1 if i % 2 else -1},{1 if i % 3 else -1}")
    (place / "faces" / "attributes.csv").write_text("\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("GENMODELS_CACHE", str(place / "cache"))
        patch.setattr("genmodels.training.show.GRID", 4)
        pack("folder", place / "faces", place / "data", 8)
        clip().save_pretrained(place / "clip")
        quick = ["--data", "data", "--text", "clip", "--steps", "4", "--batch-size", "4", "--track", "none"]
        quick += ["--mixed-precision", "no"]
        main(["train", "unet", "--output", "unet", *quick, *UNET])
        main(["train", "vqvae", "--output", "codec", *quick[:2], *quick[4:], *CODEC])
        main(["train", "dit", "--codec", "codec", "--output", "dit", *quick, *PRIOR, "--model.patch", "1"])
    return place


@pytest.fixture
def place(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    monkeypatch.setenv("GENMODELS_CACHE", str(runs / "cache"))
    monkeypatch.setattr("genmodels.training.show.GRID", 4)
    return runs


def test_a_run_records_its_text_encoder_and_keeps_its_weights(place: Path) -> None:
    settings = yaml.safe_load((place / "unet" / "config.yaml").read_text())
    assert Path(settings["text"]).name == "clip"
    source: Any = genmodels.load(place / "clip")
    for run in ("unet", "dit"):
        model: Any = genmodels.load(place / run)
        assert model.can("tokenize") and model.tokenizer.hash == source.tokenizer.hash
        encoder = model.trained.condition.text.encoder.state_dict()
        assert all(torch.equal(encoder[name], value) for name, value in source.text_encoder.state_dict().items())
        assert model.conditions.text.weights == weights_hash(source)
    card = (place / "unet" / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in card and "## Limits" in card and 'condition = {"prompt": "a smiling' in card
    assert "The prompts, in turn: (1) " in card and held_out(card.partition("(1) ")[2].partition(";")[0])


def test_training_with_text_resumes_bit_for_bit(place: Path) -> None:
    flags = ["--data", "data", "--text", "clip", "--batch-size", "4", "--track", "none", "--mixed-precision", "no"]
    main(["train", "unet", "--output", "half", *flags, *UNET, "--steps", "4", "--save-every", "2"])
    shutil.rmtree(place / "half" / "checkpoints" / "step_00000004")
    main(["train", "unet", "--output", "half", *flags, *UNET, "--steps", "4", "--save-every", "2", "--resume"])
    ours, theirs = (load_file(place / run / "model.safetensors") for run in ("half", "unet"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_commands_take_prompts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--steps", "2", "--guidance", "2"]
    main(["sample", "dit", "--prompt", "a smiling man", "--n", "2", "--out", "one.npy", *flags])
    (place / "prompts.txt").write_text("a smiling man\n\na woman who is not smiling\n")
    main(["sample", "dit", "--prompts", "prompts.txt", "--n", "2", "--out", "rows.npy", *flags])
    one, rows = np.load(place / "one.npy"), np.load(place / "rows.npy")
    assert rows.shape == (4, 8, 8, 3) and np.array_equal(rows[:2], one)
    main(["sample", "dit", "--prompts", "prompts.txt", "--out", "rows.png", "--negative", "a hat", *flags])
    assert "8 images of each of 2 prompts" in capsys.readouterr().out
    with Image.open(place / "rows.png") as image:
        assert image.size == (8 * 10 + 2, 2 * 10 + 2)
        assert image.info["Description"] == "Generated by a dit (over a codec) model of genmodels"
        assert "digitalsourcetype/trainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]
    model: Any = genmodels.load("dit")
    images = to_uint8(model.generate(2, condition={"prompt": "a smiling man"}, steps=2, guidance=2.0))
    assert np.abs(images.astype(int) - one).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "codec", "--prompt", "a man"], "this model was trained without text"),
        (["sample", "dit", "--prompt", "a man", "--negative", "hat"], "error: negative 'hat' has no effect"),
        (["sample", "dit", "--prompt", "a man", "--prompts", "x.txt"], "--prompt and --prompts"),
        (["sample", "dit", "--prompt", ""], "a text is empty"),
        (["interpolate", "codec", "--prompts", "a", "b"], "do not interpolate between samples"),
        (["interpolate", "dit", "--prompts", "a man"], "at least 2 --seeds or --images or --prompts"),
        (["interpolate", "dit", "--prompts", "a", "b", "--images", "x.png", "y.png"], "--images and --prompts both"),
        (["interpolate", "dit", "--prompts", "a man", " "], "a text is empty"),
        (["sample", "dit", "--prompts", "empty.txt"], "empty.txt is empty"),
        (["sample", "dit", "--prompt", "a man", "--attributes", "Smiling=yes"], "trained without attributes"),
        (["train", "gan", "--data", "data", "--text", "clip"], "gan models are not conditioned on text"),
        (["train", "unet", "--data", "data", "--text", "codec"], "a vqvae has no text encoder"),
        (["train", "unet", "--data", "data", "--text", "nowhere"], "--text nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "empty.txt").write_text("\n")
    code = main([*arguments, *(["--output", "new"] if arguments[0] == "train" else ["--out", "new.png"])])
    error = capsys.readouterr().err.strip()
    assert code and message in error and "\n" not in error
    assert not (place / "new").exists()


def test_evaluation_asks_for_what_captions_state(place: Path) -> None:
    """The probe is asked for the facts of held-out captions, and the score is that of these captions."""
    data = load_packed(place / "data")
    judge = embedder(genmodels.load("clip"), "clip")
    result = evaluate(genmodels.load("unet"), data, [judge], n=256, options={"steps": 1})
    assert "also trained, guided or conditioned the model" in " ".join(result.subject.notes)
    score = result.scores[judge.measure("attributes")]
    assert set(score.each) <= {"Smiling", "Male"} and score.protocol.text.startswith("generated, long, test split")
    assert result.scores[judge.measure("clip-score")].protocol.text == score.protocol.text
    reference = reference_from(data, "valid")
    request = requested_of(genmodels.load("dit"), reference, np.arange(len(reference.images)))
    for text, facts, known in zip(request.captions.texts, request.attributes, reference.attributes, strict=True):
        assert {name: v for name, v in zip(request.names, facts.tolist(), strict=True) if v} == parse(text)
        assert all(fact in (0, value) for fact, value in zip(facts, known, strict=True))
