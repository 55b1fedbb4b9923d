"""CLIP against CLIPModel of transformers, in both directions, and in a process without genmodels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_pairs import BLOCKS, CAPTIONS, clip, images
from PIL import Image

import genmodels
from genmodels.cli import main
from genmodels.exchange.clip import check_supported, to_transformers
from genmodels.exchange.transformers import export_to_transformers
from genmodels.nn.text_encoder import TextEncoderConfig
from genmodels.pictures import to_uint8

transformers = pytest.importorskip("transformers")

ALONE = """
import sys
import numpy as np
import transformers
from PIL import Image
model = transformers.CLIPModel.from_pretrained(sys.argv[1]).eval()
processor = transformers.CLIPProcessor.from_pretrained(sys.argv[1])
texts = open("texts.txt").read().splitlines()
inputs = processor(text=texts, images=Image.open("face.png"), return_tensors="pt", padding=True)
out = model(**inputs)
np.savez("out.npz", images=out.image_embeds.detach(), texts=out.text_embeds.detach())
assert "genmodels" not in sys.modules
"""


def trained(**settings: Any) -> Any:
    """Build a small CLIP whose weights are all far from their initial values."""
    model = clip(image="vit", **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "log_scale":
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.mark.parametrize("mlp", ["quick_gelu", "exact_gelu", "gelu"])
def test_embeddings_and_loss_are_those_of_clip_model(mlp: Any) -> None:
    text = TextEncoderConfig(replace(BLOCKS, mlp=mlp))
    ours = trained(text=text, vit=replace(clip(image="vit").config.vit, transformer=replace(BLOCKS, mlp=mlp)))
    theirs = to_transformers(ours)
    batch = ours.tokenize(CAPTIONS)
    pixels = images(len(CAPTIONS))
    with torch.no_grad():
        out = theirs(batch.ids, pixels, attention_mask=batch.mask.long(), return_loss=True)
        embedded = ours.embed_images(pixels), ours.embed_texts(batch)
        loss = ours.loss(pair_batch(pixels, batch), "model")[0]
    torch.testing.assert_close(embedded[0], out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(embedded[1], out.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.scale * embedded[0] @ embedded[1].T, out.logits_per_image, atol=1e-4, rtol=0)
    assert loss.item() == pytest.approx(out.loss.item(), abs=1e-6)
    assert (embedded[0][0] - embedded[0][1]).abs().max() > 1e-2


def pair_batch(pixels: torch.Tensor, text: Any) -> Any:
    """Make a batch of images and texts."""
    from genmodels.conditions import Condition
    from genmodels.types import Batch, Noise

    return Batch(pixels, Noise.for_images(0, range(len(pixels))), Condition(text=text))


@pytest.mark.slow
def test_an_export_works_without_genmodels_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(vit=replace(clip(image="vit").config.vit, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))
    model.save_pretrained(tmp_path / "run")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), str(out), "--to", "transformers"]) == 0
    monkeypatch.chdir(tmp_path)
    face = to_uint8(images(1))[0]
    Image.fromarray(face).save("face.png")
    Path("texts.txt").write_text("\n".join(CAPTIONS))
    subprocess.run([sys.executable, "-I", "-c", ALONE, str(out)], check=True, cwd=tmp_path, timeout=120)
    alone = np.load("out.npz")
    pixels = torch.from_numpy(face).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        for other in (model, genmodels.load(out)):
            np.testing.assert_allclose(other.embed_images(pixels), alone["images"], atol=1e-5)
            np.testing.assert_allclose(other.embed_texts(other.tokenize(CAPTIONS)), alone["texts"], atol=1e-5)
    vit = genmodels.load(out).config.vit
    assert (vit.mean, vit.std) == (model.config.vit.mean, model.config.vit.std)
    assert main(["import", str(out), str(tmp_path / "back")]) == 0
    back, source = genmodels.load(tmp_path / "back").state_dict(), model.state_dict()
    assert back.keys() == source.keys() and all(torch.equal(back[name], source[name]) for name in source)


def test_older_folders_and_damage(tmp_path: Path) -> None:
    """Published folders have vocab.json and merges.txt, position ids, and 2 as the end id."""
    model = trained()
    whole = tmp_path / "whole"
    export_to_transformers(model, whole)
    text = whole / "tokenizer.json"
    vocabulary = json.loads(text.read_text())["model"]
    (whole / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["merges"]]
    (whole / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    text.unlink()
    edit(whole / "config.json", lambda c: c["text_config"].update(eos_token_id=2))
    loaded = genmodels.load(whole)
    with torch.no_grad():
        expected = model.embed_texts(model.tokenize(CAPTIONS))
        torch.testing.assert_close(loaded.embed_texts(loaded.tokenize(CAPTIONS)), expected, atol=1e-5, rtol=0)
    for change, message in (
        (lambda c: c["vision_config"].update(hidden_act="relu"), "hidden_act 'relu' is not supported"),
        (lambda c: c["text_config"].update(vocab_size=9), "they do not belong together"),
        (lambda c: c["vision_config"].update(num_hidden_layers=3), "is missing"),
        (lambda c: c["vision_config"].update(num_hidden_layers=1), "unknown weights"),
        (lambda c: c["vision_config"].update(num_channels=1), "images of 1 channels are not supported"),
        (lambda c: c["vision_config"].update(patch_size=2), "not the weights of this config"),
    ):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        edit(folder / "config.json", change)
        with pytest.raises(ValueError, match=message) as error:
            genmodels.load(folder)
        assert "\n" not in str(error.value)


def edit(path: Path, change: Any) -> None:
    """Change a JSON file in place."""
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def test_what_has_no_counterpart_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no convolutional image encoder: train with --model.image vit"):
        export_to_transformers(clip(), tmp_path / "out")
    config = clip(image="vit").config
    for changes, message in (
        ({"rotary": True}, "its blocks are not those of CLIP"),
        ({"qk_norm": True}, "normalises queries"),
        ({"kv_heads": 1}, "its heads share keys"),
    ):
        with pytest.raises(ValueError, match=message):
            check_supported(replace(config, text=replace(config.text, transformer=replace(BLOCKS, **changes))))
    assert not (tmp_path / "out").exists()
