"""Multimodal models: sequences of text and codes, what is learned, sampling, and fine-tuning."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_safety import network
from transformers import CLIPImageProcessor

import genmodels
from genmodels.cli import main
from genmodels.conditions import Condition, condition_of
from genmodels.data import open_data
from genmodels.data.batches import BatchReader
from genmodels.data.conversations import DRAW, IMAGE, Turn
from genmodels.latent import Latent
from genmodels.lm import LMConfig
from genmodels.multimodal import Multimodal, MultimodalConfig
from genmodels.nn.transformer import TransformerConfig
from genmodels.safety import SafetyChecker
from genmodels.training.checks import check_conversations
from genmodels.types import Batch, Noise
from genmodels.vqvae import VQVAE, VQVAEConfig

SIZE, K = 16, 8
BLOCKS = TransformerConfig(width=16, depth=2, heads=2)
DRAWN = (Turn(DRAW.format("a smiling woman"), IMAGE),)
ASKED = (Turn(f"{IMAGE}\nIs this person smiling?", "Yes, she is."),)


def model(codes: tuple[int, ...] = (2, 2), **settings) -> Multimodal:
    torch.manual_seed(0)
    made = Multimodal(MultimodalConfig(SIZE, codes, K, LMConfig(transformer=BLOCKS), **settings))
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def codes(n: int, shape: tuple[int, ...] = (2, 2)) -> torch.Tensor:
    return torch.randint(0, K, (n, *shape), generator=torch.Generator().manual_seed(1))


def batch(m: Multimodal, turns, noise: int = 0) -> Batch:
    shape = m.config.codes
    return Batch(
        codes(len(turns), shape),
        Noise([noise + i for i in range(len(turns))]),
        Condition(text=m.read_conversations(turns)),
    )


def logits_of(m: Multimodal, ids: torch.Tensor) -> torch.Tensor:
    return m.language.logits(m.language.hidden(m.language.embedding(ids)))


def sequence(m: Multimodal, turns) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a conversation with the first image of `codes`, and which are answers."""
    text = m.read_conversations([turns])
    ids = text.ids.clone()
    ids[ids == m.tokens.image] = m.tokens.vocabulary + codes(1, m.config.codes).flatten()
    return ids, text.learned[0]


@pytest.mark.parametrize("turns", [DRAWN, ASKED])
@pytest.mark.parametrize("learn", ["all", "answers"])
def test_the_loss_is_that_of_text_and_codes_in_one_sequence(turns, learn):
    """Pre-training learns every token; fine-tuning those of the answer, be they text or codes."""
    m = model(learn=learn, drop=0.0)
    ids, learned = sequence(m, turns)
    nats = F.cross_entropy(logits_of(m, ids)[0, :-1], ids[0, 1:], reduction="none")
    expected = nats.mean() if learn == "all" else nats[learned[1:]].mean()
    torch.testing.assert_close(m(batch(m, [turns]))[0], expected)


def test_hidden_prompts_leave_only_the_image():
    m = model(learn="answers", drop=1.0)
    ids, learned = sequence(m, DRAWN)
    hidden = ids.clone()
    hidden[0, 1:][~learned[1:]] = m.tokens.end
    nats = F.cross_entropy(logits_of(m, hidden)[0, :-1], ids[0, 1:], reduction="none")
    torch.testing.assert_close(m(batch(m, [DRAWN]))[0], nats[learned[1:]].mean())
    shown = model(learn="answers", drop=0.0)
    torch.testing.assert_close(m(batch(m, [ASKED]))[0], shown(batch(shown, [ASKED]))[0])  # questions are never hidden


def test_levels_of_residual_codes_have_tokens_of_their_own():
    m = model((2, 2, 3))
    assert m.image_tokens == 12 and m.language.config.vocabulary == m.tokens.vocabulary + 3 * K
    assert (m.first.view(2, 2, 3)[0, 0] - m.tokens.vocabulary).tolist() == [0, K, 2 * K]
    sampled = m.sample(Noise([1, 2]), Condition(), m.options())
    assert sampled.shape == (2, 2, 2, 3) and sampled.min() >= 0 and sampled.max() < K


def test_samples_are_those_of_the_teacher_forced_probabilities():
    """The likeliest code of every step, without a cache; and guidance in closed form."""
    m = model()
    condition = condition_of(m, {"prompt": "a smiling woman"}, 1)
    prompt = condition.text.ids[0][condition.text.mask[0]]
    null = m._null(len(prompt) - 1)
    for guidance in (1.0, 3.0):
        expected: list[int] = []
        for _ in range(4):
            both = [
                logits_of(m, torch.cat([p, torch.tensor(expected, dtype=torch.int64)])[None])[0, -1]
                for p in (prompt, null)
            ]
            own, without = (part[m.tokens.vocabulary :] for part in both)
            expected.append(int((without + guidance * (own - without)).argmax()) + m.tokens.vocabulary)
        sampled = m.sample(Noise([3]), condition, m.options(top_k=1, guidance=guidance))
        assert (sampled.flatten() + m.tokens.vocabulary).tolist() == expected


def test_samples_do_not_depend_on_the_batch():
    m = model()
    condition = condition_of(m, {"prompt": ["a smiling woman", "an old man who is bald and wears glasses"]}, 2)
    options = m.options(guidance=2.0)
    together = m.sample(Noise([1, 2]), condition, options)
    for row in range(2):
        alone = m.sample(Noise([1 + row]), condition[slice(row, row + 1)], options)
        assert torch.equal(alone[0], together[row])


def test_probabilities_of_codes_add_up():
    m = model((1, 1))
    every = torch.arange(K).view(K, 1, 1)
    assert (2 ** -m.bits_per_token(every).detach()).sum().item() == pytest.approx(1, abs=1e-5)
    assert m.bits_per_token(every).mean().item() > 0.5 * math.log2(K)


def test_answers_are_text():
    m = model()
    answers = m.answer(codes(2), ["Is this person smiling?", "Who?"], max_tokens=6)
    assert answers == [
        m.answer(codes(2)[i : i + 1], [q], max_tokens=6)[0] for i, q in enumerate(["Is this person smiling?", "Who?"])
    ]


def test_what_does_not_fit_is_refused():
    m = model()
    with pytest.raises(ValueError, match=r"takes codes of shape \(N, \*\(2, 2\)\)"):
        m.answer(codes(1, (3, 2)), ["Who?"])
    with pytest.raises(ValueError, match="each text needs 4 image tokens"):
        m(Batch(codes(1), Noise([0]), Condition(text=m.tokens.encode([ASKED], 3))))
    with pytest.raises(ValueError, match="a text is empty"):
        m.tokenize([" "])
    with pytest.raises(ValueError, match="an image has 64 codes, and the context 64 tokens: .* to more than 64"):
        Multimodal(MultimodalConfig(lm=LMConfig(transformer=BLOCKS, context=64)))
    for settings, reason in (
        (dict(codes=(2,)), "codes must be"),
        (dict(learn="some"), "'all' or 'answers'"),
        (dict(drop=2.0), "drop must be"),
    ):
        with pytest.raises(ValueError, match=reason):
            MultimodalConfig(**settings)


def test_a_prompt_leaves_place_for_the_image():
    condition = condition_of(model(), {"prompt": "a smiling woman"}, 1)
    length = condition.text.ids.shape[1]
    for context in (length + 3, length + 2):
        m = Multimodal(MultimodalConfig(SIZE, (2, 2), K, LMConfig(transformer=BLOCKS, context=context))).eval()
        if context == length + 3:  # the prompt and the 3 codes before the last
            assert m.sample(Noise([0]), condition, m.options()).shape == (1, 2, 2)
            continue
        reason = f"a prompt has {length} tokens, and the context has place for {length - 1} before the 4 codes"
        with pytest.raises(ValueError, match=reason):
            m.sample(Noise([0]), condition, m.options())


def test_half_of_the_conversations_ask_for_an_image():
    data = open_data("toyfaces", size=SIZE).split("valid")
    m = model()
    reader = BatchReader(data, 400, seed=0, converse=m.read_conversations, draws=True)
    (read,) = reader.read(0, 0.0)
    text = read.condition.text
    drawn = ((text.ids == m.tokens.image) & text.learned).any(1)
    assert ((text.ids == m.tokens.image).sum(1) == 4).all() and abs(drawn.float().mean() - 0.5) < 0.1


def test_images_without_a_caption_are_not_drawn_and_need_none():
    """Fine-tuning on conversations alone, and on captions of some images."""
    data = open_data("toyfaces", size=SIZE).split("train").take(torch.arange(40).numpy())
    told = json.dumps([{"from": "human", "value": f"{IMAGE}\nWho?"}, {"from": "gpt", "value": "A face."}])
    none = replace(data, attributes=data.attributes[:, :0], attribute_names=(), conversations=[(told,)] * 40)
    check_conversations(none)  # as fit() does
    some = replace(none, text=[("a man",) if i < 20 else () for i in range(40)])
    m = model()
    for each, captioned in ((none, 0), (some, 20)):
        (read,) = BatchReader(each, 40, seed=0, converse=m.read_conversations, draws=True).read(0, 0.0)
        text = read.condition.text
        prompt = m.read_conversations([(Turn(DRAW.format("a man"), IMAGE),)]).ids[0]
        drawn = ((text.ids == m.tokens.image) & text.learned).any(1)
        assert (drawn.sum() > 0) == (captioned > 0) and drawn.sum() <= captioned
        assert all(torch.equal(ids[: len(prompt)], prompt) for ids in text.ids[drawn])


def codec() -> VQVAE:
    torch.manual_seed(2)
    config = VQVAEConfig(
        size=SIZE, patch=4, channels=(16, 24), encoder_blocks=(1, 1), decoder_blocks=(1, 1), codebook_size=K, code_dim=4
    )
    return VQVAE(config).eval()


def test_fine_tuning_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("genmodels.training.answers.SHOWN", 1)
    monkeypatch.setattr("genmodels.training.show.GRID", 4)
    parts = codec()
    prior = Multimodal(Multimodal.config_over(MultimodalConfig(SIZE, lm=LMConfig(transformer=BLOCKS)), parts))
    whole = Latent.over(parts, prior).eval()
    preparation = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    whole.use_safety_checker(SafetyChecker(network(), preparation))
    whole.save_pretrained(tmp_path / "pre")
    command = [
        "train",
        "sft",
        str(tmp_path / "pre"),
        "--steps",
        "1",
        "--batch-size",
        "4",
        "--no-cache",
        "--track",
        "none",
    ]
    assert main([*command, "--output", str(tmp_path / "sft")]) == 0
    tuned = genmodels.load(tmp_path / "sft")
    assert tuned.prior.config.learn == "answers" and tuned.family == "latent" and tuned.safety_checker is not None
    assert any(not torch.equal(a, b) for a, b in zip(tuned.prior.parameters(), prior.parameters(), strict=True))
    Image.fromarray(open_data("toyfaces", size=SIZE).images[0]).save(tmp_path / "face.png")
    capsys.readouterr()
    assert main(["ask", str(tmp_path / "sft"), str(tmp_path / "face.png"), "Who?", "--max-tokens", "3"]) == 0
    out = str(tmp_path / "drawn.png")
    assert main(["sample", str(tmp_path / "sft"), "--prompt", "a smiling woman", "--n", "2", "--out", out]) == 0
    codec().save_pretrained(tmp_path / "codec")
    assert main(["train", "sft", str(tmp_path / "codec"), "--output", str(tmp_path / "x")]) == 1
    assert "does not both draw images and answer questions" in capsys.readouterr().err
    assert main(["train", "sft", "--output", str(tmp_path / "x")]) == 1
    assert "give the run of a multimodal model" in capsys.readouterr().err
