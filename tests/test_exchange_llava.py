"""Exchange of language models and LLaVA with transformers: logits, greedy tokens, and refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from tokenizers import models, pre_tokenizers

import genmodels
from genmodels.cli import main
from genmodels.clip import CLIP, CLIPConfig
from genmodels.conditions import Condition
from genmodels.data.conversations import IMAGE, Turn
from genmodels.exchange.transformers import export_to_transformers, import_from_transformers
from genmodels.llava import LLaVA, LLaVAConfig
from genmodels.llava_parts import load_part
from genmodels.lm import LM, LMConfig
from genmodels.nn.image_encoder import ConvConfig, ViTConfig
from genmodels.nn.text_encoder import CLIP_BLOCKS
from genmodels.nn.transformer import TransformerConfig
from genmodels.types import Batch, Noise

transformers = pytest.importorskip("transformers")

SIZE = 16
QUESTIONS = ["Is this person smiling?", "What would you say that this person is wearing, and what colour is it?"]


def lm(seed: int = 0, **settings) -> LM:
    torch.manual_seed(seed)
    blocks = TransformerConfig(width=32, depth=2, heads=4, kv_heads=2, rope_theta=500.0)
    model = LM(LMConfig(transformer=blocks, **settings))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model.eval()


def llava(**settings) -> LLaVA:
    torch.manual_seed(1)
    vit = ViTConfig(8, dataclasses.replace(CLIP_BLOCKS, width=24, depth=3, heads=2), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    clip = CLIP(CLIPConfig(size=SIZE, width=8, image="vit", vit=vit))
    for parameter in clip.image_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return LLaVA.of(clip, lm(), LLaVAConfig(**settings)).eval()


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)


def as_floats(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_is_a_llama_in_both_directions(tmp_path, tied):
    model = lm(tied=tied)
    assert "LlamaForCausalLM" in export_to_transformers(model, tmp_path / "out")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(0, 2_000, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.logits(model.hidden(model.embedding(ids)))
        torch.testing.assert_close(theirs(ids).logits, ours, atol=1e-4, rtol=0)
        back = genmodels.load(tmp_path / "out")
        torch.testing.assert_close(back.logits(back.hidden(back.embedding(ids))), ours, atol=1e-4, rtol=0)
    assert type(back) is LM and back.config.tied == tied and back.tokens.hash == model.tokens.hash
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokens(f"USER: {IMAGE}\nWho? ASSISTANT:").input_ids == model.tokens.prompt((Turn(f"{IMAGE}\nWho?"),))


def test_llava_answers_as_transformers_does(tmp_path):
    """Logits, and the tokens of greedy answers in a batch, from the pixels on."""
    model = llava()
    assert "LlavaForConditionalGeneration" in export_to_transformers(model, tmp_path / "out")
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    images = pixels(2)
    inputs = processor(
        images=[Image.fromarray(image) for image in images],
        text=[f"USER: {IMAGE}\n{question} ASSISTANT:" for question in QUESTIONS],
        return_tensors="pt",
        padding=True,
    )
    written = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs.input_ids.shape[1] :]
    ours = model.answer(as_floats(images), QUESTIONS, max_tokens=12)
    assert ours == [model.tokens.decode(row) for row in written] and len(set(ours)) == 2
    text = model.read_conversations([(Turn(f"{IMAGE}\n{QUESTIONS[0]}", "Yes."),)])
    with torch.no_grad():
        hidden = model.language.hidden(model.vectors(as_floats(images[:1]), text.ids))
        logits = theirs(input_ids=text.ids, pixel_values=inputs.pixel_values[:1]).logits
        torch.testing.assert_close(logits, model.language.logits(hidden), atol=1e-4, rtol=0)
    back = genmodels.load(tmp_path / "out")
    assert back.answer(as_floats(images), QUESTIONS, max_tokens=12) == ours and back.config.train == "all"


def test_another_model_of_transformers_comes_and_goes(tmp_path):
    """A random LLaVA of transformers, with the tokenizer of ours, answers the same here."""
    seed = llava()
    export_to_transformers(seed, tmp_path / "seed")
    config = transformers.LlavaConfig.from_pretrained(tmp_path / "seed")
    config.text_config.num_hidden_layers = 1
    torch.manual_seed(5)
    theirs = transformers.LlavaForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "processor_config.json"):
        (tmp_path / "other" / name).write_bytes((tmp_path / "seed" / name).read_bytes())
    model = genmodels.load(tmp_path / "other")
    text = model.read_conversations([(Turn(f"{IMAGE}\n{QUESTIONS[1]}", "No."),)])
    image = as_floats(pixels(1))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.config.clip.vit.mean, model.config.clip.vit.std))
    with torch.no_grad():
        logits = theirs(input_ids=text.ids, pixel_values=((image + 1) / 2 - mean) / std).logits
        ours = model.language.logits(model.language.hidden(model.vectors(image, text.ids)))
    torch.testing.assert_close(logits, ours, atol=1e-4, rtol=0)


def test_commands_export_and_import(tmp_path, capsys):
    lm().save_pretrained(tmp_path / "lm")
    assert main(["export", str(tmp_path / "lm"), str(tmp_path / "out"), "--to", "transformers"]) == 0
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    assert genmodels.load(tmp_path / "back").complete(["a man"], max_tokens=4) == lm().complete(["a man"], max_tokens=4)
    assert main(["export", str(tmp_path / "lm"), str(tmp_path / "out"), "--to", "transformers"]) == 1
    assert "is not an empty folder" in capsys.readouterr().err


def test_a_llama_of_transformers_becomes_a_part_of_llava(tmp_path):
    """A folder of a LlamaForCausalLM, whose tokenizer lacks `<image>`, is what --lm takes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<s>", "</s>"])
    config = transformers.LlamaConfig(
        vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    backend.save(str(tmp_path / "llama" / "tokenizer.json"))
    clip = CLIP(CLIPConfig(size=SIZE, conv=ConvConfig(channels=(16, 24), blocks=(1, 1))))
    model = LLaVA.of(clip, load_part(tmp_path / "llama", LM, "--lm"))
    assert model.tokens.vocabulary == model.language.config.vocabulary == 259 and model.tokens.image == 258
    assert not model.language.config.tied
    text = model.read_conversations([(Turn(f"{IMAGE}\nWho is this?", "A man."),)])
    loss, _ = model(Batch(as_floats(pixels(1)), Noise([0]), Condition(text=text)))
    assert loss.isfinite() and text.ids.max() == 258


def test_what_transformers_does_not_have_is_refused(tmp_path):
    blocks = TransformerConfig(width=32, depth=1, heads=4, qk_norm=True)
    with pytest.raises(ValueError, match="it normalises queries and keys"):
        export_to_transformers(LM(LMConfig(transformer=blocks)), tmp_path / "out")
    conv = ConvConfig(channels=(16, 24), blocks=(1, 1))
    model = LLaVA.of(CLIP(CLIPConfig(size=SIZE, conv=conv)), lm())
    with pytest.raises(ValueError, match="no convolutional image encoder"):
        export_to_transformers(model, tmp_path / "out")
    with pytest.raises(ValueError, match="no counterpart of vae models here; clip, lm, llava can be exported"):
        export_to_transformers(genmodels.load("toyfaces/vae"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("text_config", dict(hidden_act="gelu"), "hidden_act 'gelu'"),
        ("text_config", dict(attention_bias=True), "biases"),
        ("text_config", dict(rope_parameters=dict(rope_type="llama3", rope_theta=1.0)), "rope_type 'llama3'"),
        ("text_config", dict(model_type="mistral"), "a LLaVA of clip_vision_model and mistral is not supported"),
        ("text_config", dict(vocab_size=64), "they do not belong together"),
        ("", dict(vision_feature_layer=-1), "vision_feature_layer '-1' is not supported; -2 is"),
        ("", dict(vision_feature_select_strategy="full"), "'full' is not supported; 'default' is"),
    ],
)
def test_folders_that_have_no_counterpart(tmp_path, part, changes, reason):
    export_to_transformers(llava(), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    settings = json.loads(file.read_text())
    (settings[part] if part else settings).update(changes)
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=reason):
        genmodels.load(tmp_path / "out")


def test_a_model_without_a_counterpart_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="a model of type 'gpt2' cannot be imported; clip, llama, llava can"):
        import_from_transformers(tmp_path)
