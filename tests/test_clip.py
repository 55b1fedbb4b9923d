"""CLIP: its losses against formulas and transformers, embeddings, refusals, saving and training."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from clip_pairs import CAPTIONS, clip, images, pairs
from ranks import in_two_processes
from test_fit import assert_equal, lines
from tiny import faces, recipe

import genmodels
from genmodels.clip import CLIP, CLIPConfig
from genmodels.conditions import Condition, Text
from genmodels.nn.contrastive import fitting, sigmoid_loss, softmax_loss
from genmodels.nn.image_encoder import ConvConfig, ViTConfig
from genmodels.text import shipped
from genmodels.training.fit import fit
from genmodels.training.optim import OptimConfig
from genmodels.types import Batch, Noise


def vectors(n: int, seed: int) -> torch.Tensor:
    """Random vectors (n, 5) of unit length."""
    return F.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


# ---- losses ----


def test_the_softmax_loss_is_that_of_open_clip() -> None:
    """open_clip's ClipLoss on one process, written out: (CE of rows + CE of columns) / 2."""
    image, text, scale = vectors(6, 0), vectors(6, 1), 9.0
    logits = scale * image @ text.T
    expected = 0.0
    for i in range(6):
        expected -= math.log(math.exp(logits[i, i]) / sum(math.exp(x) for x in logits[i])) / 12
        expected -= math.log(math.exp(logits[i, i]) / sum(math.exp(x) for x in logits[:, i])) / 12
    assert softmax_loss(logits, logits.T, torch.arange(6)).item() == pytest.approx(expected, abs=1e-6)


def test_parts_of_two_processes_average_to_the_whole() -> None:
    """As in ClipLoss with local_loss and gather_with_grad: each process has its own rows."""
    image, text = vectors(6, 0), vectors(6, 1)
    logits = 7 * image @ text.T
    ignored = torch.rand(6, 6, generator=torch.Generator().manual_seed(2)) < 0.3
    for mask in (None, ignored):
        whole = softmax_loss(logits, logits.T, torch.arange(6), None if mask is None else torch.stack([mask, mask.T]))
        both = sigmoid_loss(logits, torch.arange(6), mask)
        parts, halves = [], []
        for rows in (slice(0, 3), slice(3, 6)):
            own = torch.arange(6)[rows]
            part = None if mask is None else torch.stack([mask[rows], mask.T[rows]])
            parts.append(softmax_loss(logits[rows], logits.T[rows], own, part))
            halves.append(sigmoid_loss(logits[rows], own, None if mask is None else mask[rows]))
        torch.testing.assert_close(sum(parts) / 2, whole, atol=1e-6, rtol=0)
        torch.testing.assert_close(sum(halves) / 2, both, atol=1e-6, rtol=0)


def test_the_sigmoid_loss_is_that_of_siglip() -> None:
    """The pseudocode of arXiv 2303.15343: -sum(log_sigmoid(labels * logits)) / n."""
    logits = 4 * vectors(5, 0) @ vectors(5, 1).T - 2
    labels = 2 * torch.eye(5) - 1
    expected = -F.logsigmoid(labels * logits).sum() / 5
    torch.testing.assert_close(sigmoid_loss(logits, torch.arange(5)), expected, atol=1e-6, rtol=0)


def test_captions_that_also_fit_are_no_negatives() -> None:
    """Their scores do not matter, and their own image counts even if it is listed."""
    logits = torch.tensor([[2.0, 9.0, 1.0], [0.5, 3.0, -1.0], [1.0, 0.0, 2.0]])
    ignored = torch.zeros(3, 3, dtype=torch.bool)
    ignored[0, 1] = ignored[0, 0] = True
    rows = -math.log(math.exp(2) / (math.exp(2) + math.exp(1)))  # without the second caption
    rows += sum(-F.log_softmax(logits[i], 0)[i].item() for i in (1, 2))
    columns = -math.log(math.exp(3) / (math.exp(3) + 1))  # without the first image
    columns += sum(-F.log_softmax(logits[:, i], 0)[i].item() for i in (0, 2))
    loss = softmax_loss(logits, logits.T, torch.arange(3), torch.stack([ignored, ignored.T]))
    assert loss.item() == pytest.approx((rows + columns) / 6, abs=1e-6)
    every = F.softplus(torch.where(torch.eye(3, dtype=torch.bool), -logits, logits))
    expected = (every.sum() - every[0, 1]) / 3
    torch.testing.assert_close(sigmoid_loss(logits, torch.arange(3), ignored), expected)


def test_which_captions_fit() -> None:
    attributes = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
    facts = torch.tensor([[1.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert fitting(attributes, facts).tolist() == [[True, True, False, False], [True, False, True, False]]


def test_the_loss_of_a_batch_recognises_captions_that_fit() -> None:
    """Image 0 is a smiling woman and image 1 a man: "a man" fits image 2 as well."""
    attributes = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, 0.0], [-1.0, 1.0]])
    model = clip(fitting=("Male", "Smiling")).eval()
    with torch.no_grad():
        batch = pairs(model, attributes=attributes)
        ignored = model._ignored(batch, torch.arange(6), gathered=False)
        image, text = model.embed_images(batch.images), model.embed_texts(batch.condition.text)
        logits = model.scale * image @ text.T
        expected = softmax_loss(logits, logits.T, torch.arange(6), ignored)
        assert torch.equal(model.loss(batch, "model")[0], expected)
        assert expected < softmax_loss(logits, logits.T, torch.arange(6))
    fits = ignored[0].tolist()
    assert [row[1] for row in fits] == [False, True, True, False, True, False]  # "a man"
    assert [row[5] for row in fits] == [True, False, False, True, False, True]  # "a photo of a woman"
    assert not any(row[2] for row in fits)  # of glasses, nothing is known
    assert torch.equal(ignored[1], ignored[0].T)


# ---- embeddings ----


@pytest.mark.parametrize("image", ["conv", "vit"])
def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(image: str) -> None:
    model = clip(image=image).eval()
    with torch.no_grad():
        whole, alone = model.embed_images(images(4)), model.embed_images(images(4)[1:2])
        texts, one = model.embed_texts(model.tokenize(CAPTIONS)), model.embed_texts(model.tokenize(CAPTIONS[3:4]))
    assert whole.shape == (4, 16) and texts.shape == (6, 16) and whole.dtype == texts.dtype == torch.float32
    for embedding in (whole, texts):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)))
    torch.testing.assert_close(alone, whole[1:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(one, texts[3:4], atol=1e-6, rtol=0)


def test_a_text_is_pooled_at_its_first_end_token() -> None:
    """Neither what stands behind it matters, nor how long the padding is."""
    model = clip().eval()
    text = model.tokenize(["a man"])
    end = int(text.mask.sum()) - 1
    assert text.ids[0, end] == model.config.text.end
    junk = text.ids.clone()
    junk[0, end + 1 :] = 5
    with torch.no_grad():
        whole = model.embed_texts(text)
        for ids in (junk, text.ids[:, : end + 1]):
            torch.testing.assert_close(model.embed_texts(Text(ids, ids == ids)), whole, atol=1e-6, rtol=0)
        states = model.text_encoder.states(text.ids)[:, end]
        expected = F.normalize(model.text_projection(states), dim=1)
    torch.testing.assert_close(whole, expected, atol=1e-6, rtol=0)


def test_bad_ids_are_refused() -> None:
    model = clip()
    vocabulary, length, end = model.config.text.vocabulary, model.config.text.length, model.config.text.end
    for ids, message in (
        ([[1, vocabulary, end]], f"token {vocabulary} is outside the vocabulary of {vocabulary}"),
        ([[1, -1, end]], "token -1 is outside"),
        ([[1, 2, end], [1, 2, 3]], f"text 1 has no end token \\({end}\\)"),
        ([[end] * (length + 1)], f"{length + 1} tokens, and this model takes 1 to {length}"),
    ):
        text = torch.tensor(ids)
        with pytest.raises(ValueError, match=message):
            model.embed_texts(Text(text, text >= 0))
    with pytest.raises(ValueError, match="embeds images of shape"):
        model.embed_images(images(2, size=16))


def test_the_temperature_is_bounded() -> None:
    model = clip(scale=5.0, largest_scale=50.0)
    assert model.scale.item() == pytest.approx(5.0)
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert model.scale.item() == pytest.approx(50.0)
    model.after_step()
    assert model.log_scale.item() == pytest.approx(math.log(50.0))


# ---- refusals ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "resnet"}, "image must be 'conv' or 'vit'"),
        ({"loss": "triplet"}, "loss must be 'softmax' or 'sigmoid'"),
        ({"scale": 200.0}, "scale must be from 1 to largest_scale, got 200"),
        ({"vit": ViTConfig(patch=4)}, "vit.patch applies to image vit only"),
        ({"image": "vit", "conv": ConvConfig(patch=2)}, "conv.patch applies to image conv only"),
        ({"width": 0}, "size and width must be at least 1"),
    ],
)
def test_impossible_configs_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPConfig(**settings)


def test_networks_that_do_not_fit_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match="patch 3 does not divide the size 8"):
        CLIP(CLIPConfig(size=8, image="vit", vit=ViTConfig(patch=3)))
    with pytest.raises(ValueError, match="one number of at least 1 for each level"):
        CLIP(CLIPConfig(size=8, conv=ConvConfig(2, (8, 16), (1,))))
    with pytest.raises(ValueError, match="multiples of 8"):
        CLIP(CLIPConfig(size=8, conv=ConvConfig(2, (8, 12), (1, 1))))


def test_batches_without_text_or_company_are_refused() -> None:
    model = clip()
    with pytest.raises(ValueError, match="one text per image, and this batch has none"):
        model(Batch(images(2), Noise.for_images(0, range(2)), Condition()))
    with pytest.raises(ValueError, match="at least 2"):
        model(pairs(model, n=1))


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="remove --accumulate 2"):
        fit(clip(), faces(), recipe(tmp_path / "run", accumulate=2))
    with pytest.raises(ValueError, match="--batch-size of at least 2, got 1"):
        fit(clip(), faces(), recipe(tmp_path / "run", batch_size=1))
    with pytest.raises(ValueError, match="no attribute .*Bald"):
        fit(clip(fitting=("Bald",)), faces(), recipe(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# ---- files ----


def test_the_tokenizer_is_saved_and_belongs_to_the_weights(tmp_path: Path) -> None:
    model = clip()
    model.save_pretrained(tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "README.md",
    }  # fmt: skip
    loaded = genmodels.load(tmp_path / "m")
    assert torch.equal(loaded.tokenize(CAPTIONS).ids, model.tokenize(CAPTIONS).ids)
    config = tmp_path / "m" / "config.json"
    header = json.loads(config.read_text())
    header["model"]["tokenizer"] = "0123456789abcdef"
    config.write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"tokenizer.json is not the tokenizer that these weights were trained with"):
        genmodels.load(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        genmodels.load(tmp_path / "m")
    other = replace(model.config, tokenizer="0123456789abcdef")
    with pytest.raises(ValueError, match="the tokenizer is not the tokenizer that these weights"):
        CLIP(other, shipped())


# ---- training ----


def test_it_trains_and_is_measured(tmp_path: Path) -> None:
    optim = OptimConfig(lr=3e-3, warmup=0)
    run = fit(clip(), faces(), recipe(tmp_path / "run", steps=40, batch_size=16, optim=optim, log_every=1))
    logged = lines(run)
    assert sum(line["loss"] for line in logged[-5:]) < 0.97 * sum(line["loss"] for line in logged[:5])
    for line in logged:
        assert line["loss_over_ln_batch"] == pytest.approx(line["loss"] / math.log(16), rel=1e-5)
    model = genmodels.load(run)
    batch = pairs(model)
    measured = model.measure([batch, batch])
    assert measured["loss_over_ln_batch"] == pytest.approx(model.loss(batch, "model")[0].item() / math.log(6), rel=1e-6)
    shutil.copytree(run, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_two_processes(Path(__file__).parent / "clip_pairs.py", tmp_path / "two")
    for loss in ("softmax", "sigmoid"):
        one = fit(
            clip(loss=loss, fitting=("Male", "Smiling")),
            faces(),
            recipe(tmp_path / "one" / loss, log_every=1, sample_every=50),
        )
        assert_equal(one, tmp_path / "two" / loss, tolerance=5e-5)
        for ours, theirs in zip(lines(one), lines(tmp_path / "two" / loss), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        first = lines(one)[0]["loss"], lines(tmp_path / "two" / loss)[0]["loss"]
        assert first[0] == pytest.approx(first[1], abs=1e-6)
