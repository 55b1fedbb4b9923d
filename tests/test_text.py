"""The tokenizer: parity with transformers, bytes, the end of texts, saving, and bad input."""

from __future__ import annotations

import copy
import json
import runpy
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from genmodels.data.captions import CAPTIONED, captions
from genmodels.data.grammar import FACTS
from genmodels.text import END, MARK, START, Tokenizer, shipped

ROOT = Path(__file__).parent.parent
ODD = [
    "A smiling WOMAN, with glasses!",
    "don't they've she's I'm we'll he'd you're",
    "a\tman \n with   a hat ",
    "a café, naïve façade, ÉTÉ and e\u0301te\u0301",
    "😀 👩‍🦰🏽 smiling 😀😀",
    "born in 1984, aged 36.5 years",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "日本語の顔 лицо Gesichtßtraße ﬁ İstanbul",
    "@#$%^&*() -- ... ?!?! <|> </w>",
    "\x00\x01\x7f\u00a0\u200b\ufeff x",
    "five o'clock shadow's 's '' ' \" `",
]
"""Texts on which tokenizers often differ."""


def texts() -> list[str]:
    rows = np.random.default_rng(0).integers(-1, 2, (300, len(CAPTIONED)))
    return [*captions(rows, CAPTIONED, range(300), range(300), 0), *ODD]


def rows(ids: torch.Tensor, end: int) -> list[list[int]]:
    """Return the ids of each text up to its first end token."""
    return [row[: row.index(end) + 1] for row in ids.tolist()]


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json"])
def test_against_transformers(tmp_path: Path, layout: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = shipped()
    tokenizer.save(tmp_path)
    if layout == "vocab.json":
        model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    own = rows(tokenizer(texts()).ids, tokenizer.end)
    assert [reference(text)["input_ids"] for text in texts()] == own
    assert (reference.bos_token_id, reference.eos_token_id) == (tokenizer.start, tokenizer.end)
    assert len(reference) == tokenizer.vocabulary
    loaded = Tokenizer.load(tmp_path, tokenizer.length)
    assert torch.equal(loaded(texts()).ids, tokenizer(texts()).ids) and loaded.hash == tokenizer.hash
    assert Tokenizer.load(tmp_path).length == (77 if layout == "vocab.json" else 64)


def test_every_byte_has_a_form_with_and_without_the_mark() -> None:
    tokenizer = shipped()
    letters = pre_tokenizers.ByteLevel.alphabet()
    assert len(letters) == 256
    vocabulary = json.loads((ROOT / "genmodels" / "tokenizer.json").read_text())["model"]["vocab"]
    assert all(letter in vocabulary and letter + MARK in vocabulary for letter in letters)
    # So any text comes back, and none of it becomes the token for the unknown, which is the end.
    every = [chr(i) for i in [*range(0x61, 0x250), *range(0x2C00, 0x10000, 97)]]
    words = [f"x{character}y" for character in every if character.isalpha() and character == character.lower()]
    words = [word for word in words if word == unicodedata.normalize("NFC", word)]
    assert len(words) > 400
    assert tokenizer.decode(tokenizer(words).ids) == words
    assert tokenizer.decode(tokenizer([word[1] for word in words]).ids) == [word[1] for word in words]


def test_a_tokenizer_that_lacks_a_byte_is_refused(tmp_path: Path) -> None:
    """Such a tokenizer turns different texts into the same ids, and ends them in the middle."""
    shipped().save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    unused = next(iter(sorted(set(content["model"]["vocab"]) & {"Ā", "ÿ", "þ"})))
    content["model"]["vocab"] = {
        "missing" if token == unused + MARK else token: number for token, number in content["model"]["vocab"].items()
    }
    content["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"lacks 1 of the 512 forms of bytes, such as '{unused}</w>'"):
        Tokenizer.load(tmp_path)


def test_texts_are_padded_with_the_end_and_masked_up_to_the_first() -> None:
    tokenizer = shipped()
    text = tokenizer(["a man", "a smiling woman with glasses"])
    assert text.ids.shape == text.mask.shape == (2, tokenizer.length) and text.ids.dtype == torch.int64
    assert text.mask.sum(1).tolist() == [4, 7]
    assert (text.ids[:, 0] == tokenizer.start).all() and (text.ids[~text.mask] == tokenizer.end).all()
    for ids, mask in zip(text.ids, text.mask, strict=True):
        assert (ids[mask] == tokenizer.end).sum() == 1 and ids[mask][-1] == tokenizer.end
    inner = tokenizer([f"a man {END} and a woman"])
    assert inner.mask.sum() == 4  # start, a, man, end
    assert tokenizer([]).ids.shape == (0, tokenizer.length)


def test_texts_come_back() -> None:
    tokenizer = shipped()
    sentences = ["a smiling woman with glasses", "an old man, wearing a hat, who is not smiling", "日本 café 😀"]
    assert tokenizer.decode(tokenizer(sentences).ids) == [text.replace(",", " ,") for text in sentences]


def test_words_of_the_grammar_are_single_tokens_and_captions_fit() -> None:
    tokenizer = shipped()
    words = {word for fact in FACTS.values() for text in (*fact.present, *fact.absent) for word in text.split()}
    plain = sorted(word for word in words if word.isalpha())
    assert len(plain) > 80 and (tokenizer(plain).mask.sum(1) == 3).all()
    faces = np.random.default_rng(1).integers(-1, 2, (1000, len(CAPTIONED)))
    faces[faces == 0] = 1
    faces[::2] = [FACTS[name].sign if name in FACTS else 1 for name in CAPTIONED]  # all that can be stated
    for split in ("train", "test"):
        drawn = captions(faces, CAPTIONED, range(1000), range(1000), 0, split, "long")
        assert tokenizer(drawn).mask.sum(1).max() <= 60  # of 64


def test_the_file_is_small_and_has_what_models_rely_on() -> None:
    assert (ROOT / "genmodels" / "tokenizer.json").stat().st_size <= 100_000
    tokenizer = shipped()
    assert (tokenizer.vocabulary, tokenizer.start, tokenizer.end, tokenizer.length) == (2048, 2046, 2047, 64)


def test_the_end_has_to_be_given_to_transformers() -> None:
    """A vocabulary that is smaller than CLIP's lacks the default eos id, 49407: transformers then
    pools the first position of every text, whatever it says."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokenizer = shipped()
    text = tokenizer(["a man", "a smiling woman with glasses"])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    known = {"vocab_size": tokenizer.vocabulary, "max_position_embeddings": tokenizer.length}
    default = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, **known, eos_token_id=49407)).eval()
    own = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, **known, eos_token_id=tokenizer.end)).eval()
    with torch.no_grad():
        wrong, right = default(text.ids), own(text.ids)
    assert torch.equal(wrong.pooler_output, wrong.last_hidden_state[:, 0])
    assert torch.equal(right.pooler_output, right.last_hidden_state[[0, 1], text.mask.sum(1) - 1])


def test_a_copy_is_the_same() -> None:
    tokenizer = shipped()
    twin = copy.deepcopy(tokenizer)  # as training copies a model for its averaged weights
    assert twin.hash == tokenizer.hash and torch.equal(twin(texts()).ids, tokenizer(texts()).ids)


def test_saving_is_complete(tmp_path: Path) -> None:
    tokenizer = shipped()
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert torch.equal(loaded(texts()).ids, tokenizer(texts()).ids)
        assert loaded.length == 64 and loaded.hash == tokenizer.hash
    assert Tokenizer.load(tmp_path, 32).hash != tokenizer.hash
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).hash != tokenizer.hash  # the same tokens, but upper case is kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a text is empty"),
        (" \n", "a text is empty"),
        ("\ud800", "not valid Unicode"),
        (END, "has no tokens"),
        ("a " * 63, "'a a a a .*has 63 tokens, and the context is 62 besides the start and the end: shorten it"),
    ],
)
def test_texts_that_cannot_be_tokenized_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        shipped()(["a man", text])
    assert "\n" not in str(caught.value)
    assert shipped()(["a " * 62]).mask.all()


def test_ids_that_are_no_text_are_refused() -> None:
    tokenizer = shipped()
    ids = tokenizer(["a man"]).ids
    for wrong in (tokenizer.vocabulary, -1):
        ids[0, 1] = wrong
        with pytest.raises(ValueError, match=f"{wrong} is not the id of a token: there are 2,048"):
            tokenizer.decode(ids)
    with pytest.raises(ValueError, match="a row of ids has no end token .2047."):
        tokenizer.decode(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: "{", "not a tokenizer with CLIP's conventions"),
        (lambda content: "{}", "not a tokenizer with CLIP's conventions"),
        (lambda content: json.dumps(content | {"post_processor": None}), f"does not put texts between {START[:2]}"),
        (lambda content: json.dumps(content).replace(START, "<s>"), "has no token <.startoftext"),
    ],
)
def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path, change, message: str) -> None:
    shipped().save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(change(content))
    with pytest.raises(ValueError, match=message.replace("|", ".")) as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "nowhere")


def test_the_recipe_trains_a_tokenizer(tmp_path: Path) -> None:
    recipe = runpy.run_path(str(ROOT / "recipes" / "text" / "tokenizer.py"))
    settings = recipe["TokenizerRecipe"](vocabulary=1024, length=48, captions=500)
    trained = recipe["train"](settings)
    assert trained.hash == recipe["train"](settings).hash
    assert (trained.vocabulary, trained.end, trained.length) == (1024, 1023, 48)
    assert trained(["a woman wearing glasses"]).mask.sum() == 6
    trained.save(tmp_path)
    assert Tokenizer.load(tmp_path).hash == trained.hash


def test_the_shipped_tokenizer_is_what_the_recipe_trains() -> None:
    recipe = runpy.run_path(str(ROOT / "recipes" / "text" / "tokenizer.py"))
    assert recipe["train"](recipe["TokenizerRecipe"]()).hash == shipped().hash
