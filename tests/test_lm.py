"""Language models and LLaVA: losses against closed forms, answers, stages, LoRA, and bad input."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import genmodels
from genmodels.chat import shipped_chat
from genmodels.cli import main
from genmodels.cli.ask import _print_stream
from genmodels.clip import CLIP, CLIPConfig
from genmodels.conditions import Condition, Text
from genmodels.data import open_data
from genmodels.data.conversations import IMAGE, Turn
from genmodels.llava import LLaVA, LLaVAConfig
from genmodels.lm import LM, AnswerOptions, LMConfig
from genmodels.nn.image_encoder import ConvConfig, ViTConfig
from genmodels.nn.text_encoder import CLIP_BLOCKS
from genmodels.nn.transformer import TransformerConfig
from genmodels.types import Batch, Noise

SIZE = 16
BLOCKS = TransformerConfig(width=16, depth=2, heads=2, kv_heads=1)
TURNS = [
    (Turn(f"{IMAGE}\nIs this person smiling?", "Yes, she is smiling."),),
    (Turn(f"{IMAGE}\nWho is this?", "A man."), Turn("What colour is the hair?", "Blond.")),
    (Turn(f"{IMAGE}\nIs this person young?", "No."),),
]


def clip(image: str = "conv") -> CLIP:
    torch.manual_seed(0)
    vit = ViTConfig(8, dataclasses.replace(CLIP_BLOCKS, width=16, depth=2, heads=2))
    settings = {"conv": dict(conv=ConvConfig(channels=(16, 24), blocks=(1, 1))), "vit": dict(vit=vit)}[image]
    return CLIP(CLIPConfig(size=SIZE, width=8, image=image, **settings)).eval()


def lm(**settings) -> LM:
    torch.manual_seed(1)
    model = LM(LMConfig(transformer=BLOCKS, **settings))
    for parameter in model.parameters():
        if parameter.ndim > 1:  # of an untrained model, every token is about as likely
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def llava(image: str = "conv", **settings) -> LLaVA:
    return LLaVA.of(clip(image), lm(), LLaVAConfig(**settings)).eval()


def pictures(n: int) -> torch.Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) * 2 - 1


def batch(model, turns=TURNS) -> Batch:
    n = len(turns)
    return Batch(pictures(n), Noise(range(n)), Condition(text=model.read_conversations(turns)))


# ---- loss ----


def test_the_loss_of_a_language_model_is_that_of_each_sentence():
    model = lm()
    nats = []
    for turns in TURNS:
        ids = model.read_conversations([turns]).ids
        logits = model.logits(model.hidden(model.embedding(ids)))[0]
        nats.append(F.cross_entropy(logits[:-1], ids[0, 1:]))  # the mean over all tokens but the first
        assert model.tokens.image not in ids
    torch.testing.assert_close(model(batch(model))[0], torch.stack(nats).mean())


def test_the_loss_of_answers_is_that_of_their_tokens_alone():
    model = llava()
    text = model.read_conversations(TURNS)
    nats = []
    for row in range(3):
        ids, learned = text.ids[row : row + 1], text.learned[row]
        hidden = model.language.hidden(model.vectors(pictures(3)[row : row + 1], ids))
        every = F.cross_entropy(model.language.logits(hidden)[0, :-1], ids[0, 1:], reduction="none")
        nats.append(every[learned[1:]].mean())
    loss, metrics = model(batch(model))
    torch.testing.assert_close(loss, torch.stack(nats).mean())
    torch.testing.assert_close(metrics["bits_per_token"], loss.detach() / np.log(2))
    assert not (text.ids[text.learned] == model.tokens.image).any()


def test_other_questions_change_the_loss_only_through_the_context():
    """The targets are the tokens of answers: replacing those of a question adds no term."""
    model = llava()
    text = model.read_conversations(TURNS[:1])
    none = Text(text.ids, text.mask, torch.zeros_like(text.mask))
    noise, images = Noise([0]), pictures(1)
    assert model(Batch(images, noise, Condition(text=none)))[0].item() == 0
    with pytest.raises(ValueError, match="llava needs conversations, and this batch has none"):
        model(Batch(images, noise))


@pytest.mark.parametrize("image", ["conv", "vit"])
def test_image_tokens_are_the_features_in_order(image):
    model = llava(image)
    assert model.image_tokens == {"conv": 4, "vit": 4}[image]
    text = model.read_conversations(TURNS[:1])
    vectors = model.vectors(pictures(1), text.ids)
    at = text.ids[0] == model.tokens.image
    torch.testing.assert_close(vectors[0, at], model.image_vectors(pictures(1))[0])
    torch.testing.assert_close(vectors[0, ~at], model.language.embedding(text.ids)[0, ~at])
    with pytest.raises(ValueError, match=r"each text needs 4 image tokens for its image, got \[3\]"):
        model.vectors(pictures(1), text.ids[:, int(at.int().argmax()) + 1 :])


def test_features_are_those_before_the_last_layer():
    images = pictures(2)
    encoder = clip("vit").image_encoder
    seen = []
    encoder.transformer.blocks[-1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    encoder(images)
    torch.testing.assert_close(encoder.features(images), seen[0][:, 1:])
    conv = clip("conv").image_encoder
    flat = conv.features(images).transpose(1, 2).flatten(1)
    torch.testing.assert_close(conv.head[-1](flat), conv(images))


# ---- answers ----


def test_answers_do_not_depend_on_the_batch():
    model, images = llava(), pictures(3)
    questions = ["Is this person smiling?", "Who?", "What colour is the hair of this person, would you say?"]
    together = model.answer(images, questions, max_tokens=12)
    alone = [model.answer(images[i : i + 1], questions[i : i + 1], max_tokens=12)[0] for i in range(3)]
    assert together == alone == model.answer(images, questions, batch_size=2, max_tokens=12)
    drawn = model.answer(images, questions, seed=3, temperature=1.0, max_tokens=12)
    assert drawn == model.answer(images, questions, seed=3, temperature=1.0, max_tokens=12, batch_size=2)
    assert drawn != model.answer(images, questions, seed=4, temperature=1.0, max_tokens=12)


def test_greedy_answers_are_the_likeliest_tokens_without_a_cache():
    model, image = llava(), pictures(1)
    ids = model.tokens.prompt((Turn(f"{IMAGE}\nWho is this?"),), model.image_tokens)
    for _ in range(6):
        text = torch.tensor([ids])
        ids.append(int(model.language.logits(model.language.hidden(model.vectors(image, text)))[0, -1].argmax()))
    assert model.answer(image, ["Who is this?"], max_tokens=6) == [model.tokens.decode(ids[-6:])]


def test_streamed_answers_are_the_answer():
    model, image = llava(), pictures(1)
    parts = list(model.stream(image[0], "Who is this?", max_tokens=8))
    assert parts[-1:] == model.answer(image, ["Who is this?"], max_tokens=8)
    assert len(parts) <= 8


@pytest.mark.parametrize("answer", ["A black-haired man, isn't he?", "Voilà 😀 un éclair", "", "Yes."])
def test_a_stream_is_printed_whole(answer, capsys):
    """A token may change the end of what was shown: "black -" becomes "black-haired", and a letter of
    several bytes is a replacement character at first."""
    tokens = shipped_chat()
    ids = tokens.sentences([answer]).ids[0].tolist()
    parts = [tokens.decode(ids[1 : end + 1]) for end in range(1, len(ids))]
    _print_stream(parts)
    assert capsys.readouterr().out == f"{parts[-1]}\n"


def test_earlier_turns_are_context():
    model, image = llava(), pictures(1)
    turns = (Turn("Who is this?", "A man."), Turn("What colour is the hair?", "not read"))
    first = model.answer(image, [turns], max_tokens=6)
    assert first == model.answer(image, [(turns[0], Turn(turns[1].question))], max_tokens=6)
    assert first != model.answer(image, [turns[1].question], max_tokens=6)


def test_what_cannot_be_asked_is_refused():
    model, image = llava(), pictures(1)
    with pytest.raises(ValueError, match="contains <image> 2 times"):
        model.answer(image, [f"{IMAGE} {IMAGE} who?"])
    with pytest.raises(ValueError, match="1 images and 2 questions"):
        model.answer(image, ["a?", "b?"])
    with pytest.raises(ValueError, match="takes images of shape"):
        model.answer(torch.zeros(1, 3, 8, 8), ["a?"])
    with pytest.raises(ValueError, match=r"has \d+ tokens, and the context of this lm is 512: shorten the question"):
        model.answer(image, ["who " * 600])
    with pytest.raises(ValueError, match="needs <image> once"):
        model.read_conversations([(Turn("Who?", "A man."),)])
    for settings, reason in (
        (dict(temperature=-1), "must not be negative"),
        (dict(top_p=0), "must be in"),
        (dict(max_tokens=0), "at least 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            AnswerOptions(**settings)


def test_sentences_are_continued():
    model = lm()
    assert model.complete(["a man", "she"], max_tokens=5) == [
        model.complete([t], max_tokens=5)[0] for t in ("a man", "she")
    ]
    assert model.complete([]) == [] and len(model.complete([""], max_tokens=1)) == 1


# ---- stages ----


def changed(model: LLaVA, steps: int = 2) -> set[str]:
    """Train for a few steps, and return the names of the weights that changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters_for("model"), 1e-2, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch(model))[0].backward()
        optimizer.step()
        model.after_step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_stage_1_changes_only_the_projector():
    names = changed(llava())
    assert names == {f"projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}


def test_stage_2_changes_all_but_the_image_encoder():
    model = llava().with_stage("all")
    names = changed(model)
    expected = {name for name in model.state_dict() if not name.startswith("image_encoder")}
    assert names == expected


def test_a_stage_begins_with_the_weights_of_the_one_before():
    first, image = llava(), pictures(1)
    second = first.with_stage("all").eval()
    assert second.config.train == "all" and second.answer(image, ["a?"]) == first.answer(image, ["a?"])
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


def test_lora_trains_low_rank_updates(tmp_path):
    first = llava()
    model = first.with_stage("all", lora=2).eval()
    text = model.read_conversations(TURNS)
    same = [m.language.hidden(m.vectors(pictures(3), text.ids)) for m in (first, model)]
    torch.testing.assert_close(*same)  # the updates begin at zero
    names = changed(model)
    assert all("lora_" in name or name.startswith("projector") for name in names) and any("lora_" in n for n in names)
    model.eval().save_pretrained(tmp_path / "m")
    loaded = genmodels.load(tmp_path / "m")
    assert loaded.config.lora == 2 and loaded.answer(pictures(1), ["a?"]) == model.answer(pictures(1), ["a?"])
    from genmodels.exchange.llava import merged

    outputs = [m.language.hidden(m.vectors(pictures(3), text.ids)) for m in (model, merged(model).eval())]
    torch.testing.assert_close(*outputs)
    with pytest.raises(ValueError, match="was trained with LoRA"):
        model.with_stage("all")


def test_lora_without_peft_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match=re.escape("LoRA needs the package peft: pip install 'genmodels[lora]'")):
        llava().with_stage("all", lora=2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(train="some"), "'projector' or 'all'"),
        (dict(lora=-1), "must not be negative"),
    ],
)
def test_stages_that_do_not_exist(settings, reason):
    with pytest.raises(ValueError, match=reason):
        LLaVAConfig(**settings)


# ---- files and commands ----


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Saved parts, an image, and a data set."""
    root = tmp_path_factory.mktemp("parts")
    clip().save_pretrained(root / "clip")
    lm().save_pretrained(root / "lm")
    (root / "images").mkdir()
    for i, pixels in enumerate(open_data("toyfaces", size=SIZE).split("valid").images[:3]):
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    return root


def test_two_stages_from_the_command_line(parts, tmp_path, capsys):
    common = ["--size", str(SIZE), "--batch-size", "4", "--track", "none", "--steps", "2"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    with_parts = ["--clip", str(parts / "clip"), "--lm", str(parts / "lm")]
    assert main(["train", "llava", *with_parts, *common, "--output", first]) == 0
    assert main(["train", "llava", "--projector", first, *common, "--output", second]) == 0
    low_rank = [*common, "--model.lora", "2", "--output", str(tmp_path / "lora")]
    assert main(["train", "llava", "--projector", first, *low_rank]) == 0
    assert genmodels.load(tmp_path / "lora").config.lora == 2
    model = genmodels.load(second)
    assert model.config.train == "all" and (tmp_path / "second" / "answers").is_dir()
    for name, value in genmodels.load(parts / "clip").image_encoder.state_dict().items():
        assert torch.equal(model.image_encoder.state_dict()[name], value)
    image, out = str(parts / "images" / "0.png"), str(tmp_path / "captions.csv")
    capsys.readouterr()
    assert main(["ask", second, image, "Who is this?", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert main(["ask", second, image, str(parts / "images" / "1.png"), "A?", "B?", "--json", "--max-tokens", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["image"][-5:], line["question"]) for line in lines] == [
        (name, question) for name in ("0.png", "1.png") for question in ("A?", "B?")
    ]
    assert main(["describe", second, str(parts / "images"), "--out", out, "--max-tokens", "4"]) == 0
    lines = Path(out).read_text().splitlines()
    assert lines[0] == "file,caption" and len(lines) == 4
    assert main(["describe", second, str(parts / "images"), "--out", out]) == 1  # it exists


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "stage 1 needs --clip RUN and --lm RUN"),
        (["--clip", "{lm}", "--lm", "{lm}"], "and a model of family clip is needed"),
        (["--clip", "{clip}", "--lm", "{clip}"], "and a model of family lm is needed"),
        (["--clip", "{clip}", "--lm", "{lm}", "--size", "32"], "was trained on images of 16 px, and --size is 32"),
        (["--projector", "{lm}", "--clip", "{clip}"], "leave --clip and --lm out"),
        (["--projector", "{lm}"], "and a model of family llava is needed"),
        (
            ["--clip", "{clip}", "--lm", "{lm}", "--size", "16", "--model.lora", "2"],
            "and stage 1 only the projector: leave lora out",
        ),
    ],
)
def test_parts_that_do_not_fit(parts, tmp_path, capsys, arguments, reason):
    filled = [argument.format(clip=parts / "clip", lm=parts / "lm") for argument in arguments]
    status = main(["train", "llava", *filled, "--steps", "1", "--output", str(tmp_path / "out")])
    assert status and reason in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{lm}", "{image}", "Who?"], "lm models do not answer questions about images"),
        (["{lm}", "Who?"], "there is no image"),
        (["{lm}", "{image}"], "there is no question"),
        (["{lm}", "{folder}", "Who?"], "images is a folder: give image files, such as "),
        (["{lm}", "{image}", f"{IMAGE} {IMAGE} who?"], "contains <image> 2 times"),
    ],
)
def test_questions_that_cannot_be_asked(parts, capsys, arguments, reason):
    places = {"lm": parts / "lm", "folder": parts / "images", "image": parts / "images" / "0.png"}
    assert main(["ask", *(argument.format(**places) for argument in arguments)])
    assert reason in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(parts, tmp_path):
    shutil.copytree(parts / "lm", tmp_path / "lm")
    settings = json.loads((tmp_path / "lm" / "config.json").read_text())
    settings["model"]["tokenizer"] = "0" * 16
    (tmp_path / "lm" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="is not the tokenizer that these weights were trained with"):
        genmodels.load(tmp_path / "lm")
    with pytest.raises(ValueError, match="the tokenizer is not the tokenizer"):
        LM(LMConfig(tokenizer="0" * 16, vocabulary=8), shipped_chat())


# ---- data ----


def folder_of(root, lines):
    for i in range(4):
        Image.fromarray(np.full((SIZE, SIZE, 3), 60 * i, np.uint8)).save(root / f"{i}.png")
    (root / "conversations.jsonl").write_text("\n".join(map(json.dumps, lines)))


def line(image: str, answer: str = "A man.") -> dict:
    return {
        "image": image,
        "conversations": [{"from": "human", "value": f"{IMAGE}\nWho?"}, {"from": "gpt", "value": answer}],
    }


def test_conversations_of_a_folder_are_packed_and_read(tmp_path):
    folder_of(tmp_path, [line(f"{i}.png", f"Number {i}.") for i in range(4)] + [line("0.png", "Zero again.")])
    pack = tmp_path.parent / f"{tmp_path.name}-packed"
    assert main(["data", "pack", "folder", "--root", str(tmp_path), "--size", str(SIZE), "--out", str(pack)]) == 0
    data = open_data(str(pack))
    assert "5 conversations" in data.describe()
    from genmodels.data.batches import BatchReader

    model = llava()
    reader = BatchReader(data, 4, seed=0, flip=False, converse=model.read_conversations)
    (read,) = reader.read(0, 0.0)
    levels = ((read.images[:, 0, 0, 0] + 1) * 127.5 / 60).round().int().tolist()
    text = read.condition.text
    said = [model.tokens.decode(ids[learned]) for ids, learned in zip(text.ids, text.learned, strict=True)]
    assert all(answer in (f"Number {level}.", "Zero again.") for level, answer in zip(levels, said, strict=True))
    assert (
        sorted(levels) == [0, 1, 2, 3] and data.split("all").fingerprint != open_data("toyfaces", size=SIZE).fingerprint
    )


def test_conversations_without_their_image_are_counted_and_named(tmp_path, capsys):
    folder_of(tmp_path, [line("0.png"), line("9.png")])
    command = ["data", "pack", "folder", "--root", str(tmp_path), "--size", str(SIZE), "--out", str(tmp_path / "p")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "conversations.jsonl" in error and "9.png" in error and "1 of 2" in error


def test_captions_become_conversations():
    from genmodels.data.batches import DESCRIBE, conversations_of
    from genmodels.data.packed import Packed

    data = Packed(
        np.zeros((2, SIZE, SIZE, 3), np.uint8),
        np.zeros((2, 0), np.int8),
        (),
        ["a", "b"],
        np.zeros(2, np.uint8),
        text=[("a cat",), ("a dog", "one dog")],
    )
    turns = conversations_of(data, np.array([0, 1]), [5, 6], 0, {})
    assert turns[0] == (Turn(DESCRIBE, "a cat"),) and turns[1][0].answer in ("a dog", "one dog")
