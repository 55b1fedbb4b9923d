"""Captions from attributes: determinism, truth, variety, balance, and what is held out for tests."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from genmodels.data.captions import CAPTIONED, LENGTHS, caption, captions, held_out, parse, prompts
from genmodels.data.grammar import FACTS, FRAMES, HAIR
from genmodels.data.toyfaces import ATTRIBUTES, face_traits

N = 3_000
SHARES = {"Male": 0.42, "Young": 0.77, **{name: fact.share for name, fact in FACTS.items()}}


def sign(name: str) -> int:
    return FACTS[name].sign if name in FACTS else 1


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """Return attributes (N, K) in the order of CAPTIONED, each with its frequency in CelebA."""
    return make_table(N)


def make_table(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    signs = np.array([sign(name) for name in CAPTIONED])
    has = rng.random((n, len(CAPTIONED))) < np.array([SHARES[name] for name in CAPTIONED])
    return np.where(has, signs, -signs).astype(np.int8)


@pytest.fixture(scope="module")
def training(table: np.ndarray) -> list[str]:
    return captions(table, CAPTIONED, range(N), range(N), 0)


@pytest.fixture(scope="module")
def held(table: np.ndarray) -> list[str]:
    return captions(table, CAPTIONED, range(N), range(N), 0, "test")


def test_another_process_writes_the_same_bytes(table: np.ndarray) -> None:
    code = """if True:
        import sys, numpy as np
        from genmodels.data.captions import *
        assert "torch" not in sys.modules
        rows = np.frombuffer(sys.stdin.buffer.read(), np.int8).reshape(-1, len(CAPTIONED))
        for split in ("train", "test"):
            sys.stdout.write("\\n".join(captions(rows, CAPTIONED, range(len(rows)), range(len(rows)), 3, split)))
    """
    rows = table[:1000]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONHASHSEED": "5"}
    other = subprocess.run([sys.executable, "-c", code], env=env, input=rows.tobytes(), capture_output=True, check=True)
    own = "".join("\n".join(captions(rows, CAPTIONED, range(1000), range(1000), 3, s)) for s in ("train", "test"))
    assert hashlib.sha256(own.encode()).hexdigest() == hashlib.sha256(other.stdout).hexdigest()


def test_a_caption_depends_on_its_arguments_alone(table: np.ndarray, training: list[str]) -> None:
    one = dict(zip(CAPTIONED, table[7].tolist(), strict=True))
    assert caption(one, seed=0, index=7, view=7) == training[7]
    assert caption(dict(reversed(one.items())), seed=0, index=7, view=7) == training[7]
    assert caption({**one, "Attractive": 1}, seed=0, index=7, view=7) == training[7]
    keys = [(seed, index, view) for seed in range(4) for index in range(4) for view in range(4)]
    assert len({caption(one, seed=s, index=i, view=v, length="long") for s, i, v in keys}) == len(keys)
    large = caption(one, seed=2**62, index=2**40, view=2**63 - 1)
    assert large == caption(one, seed=2**62, index=2**40, view=2**63 - 1) != caption(one, seed=0, index=0, view=0)


def test_long_captions_differ() -> None:
    drawn = captions(make_table(10_000), CAPTIONED, range(10_000), [0] * 10_000, 0, "train", "long")
    assert len(set(drawn)) >= 9_500


@pytest.mark.parametrize("length", LENGTHS)
def test_captions_are_true_and_longer_ones_say_more(table: np.ndarray, length: str) -> None:
    facts = []
    for split in ("train", "test"):
        rows = table[: N // 2]
        drawn = captions(rows, CAPTIONED, range(N // 2), range(N // 2), 1, split, length)
        for row, text in zip(rows, drawn, strict=True):
            stated = parse(text)
            values = dict(zip(CAPTIONED, row.tolist(), strict=True))
            assert all(values[name] == value for name, value in stated.items()), text
            facts.append(len(stated))
    low, high = {"short": (1.5, 2.5), "middle": (4, 5.5), "long": (7, 9)}[length]
    assert low < np.mean(facts) < high and max(facts) <= {"short": 4, "middle": 14, "long": 14}[length]
    assert min(facts) >= (1 if length == "short" else 0)


def test_every_statement_is_read_as_its_fact() -> None:
    for name, fact in FACTS.items():
        for phrases, value in ((fact.present, fact.sign), (fact.absent, -fact.sign)):
            for phrase in phrases:
                text = f"a person who has {phrase} hair" if name in HAIR and value == 1 else f"a person who {phrase}"
                assert parse(text) == {name: value}, text
    assert parse("An elderly lady without glasses, with hair that is not blond. She has a BEARD.") == {
        "Young": -1, "Male": -1, "Eyeglasses": -1, "Blond_Hair": -1, "No_Beard": -1,
    }  # fmt: skip
    assert parse("a photo of a person") == parse("") == {}


def test_unknown_attributes_are_never_mentioned(table: np.ndarray) -> None:
    known = np.random.default_rng(1).random(table.shape) < 0.5
    for row, text in zip(table * known, captions(table * known, CAPTIONED, range(N), range(N), 0), strict=True):
        values = dict(zip(CAPTIONED, row.tolist(), strict=True))
        assert all(values[name] == value != 0 for name, value in parse(text).items())
    nothing = dict.fromkeys(CAPTIONED, 0)
    assert {re.sub("individual", "person", caption(nothing, seed=0, index=i, view=0)) for i in range(200)} >= {
        "a person",
        "a photo of a person",
    }


def test_absence_is_stated_less_often_than_presence(table: np.ndarray, training: list[str]) -> None:
    present, absent = Counter[str](), Counter[str]()
    drawn = [text for seed in range(1, 5) for text in captions(table, CAPTIONED, range(N), range(N), seed)]
    for text in training + drawn:
        for name, value in parse(text).items():
            (present if value == sign(name) else absent)[name] += 1
    assert all(0 < absent[name] <= present[name] for name in FACTS)
    # The sex and the age have a word for each value, which is stated equally often.
    for name in ("Male", "Young"):
        share = (table[:, CAPTIONED.index(name)] > 0).mean()
        assert present[name] / share == pytest.approx(absent[name] / (1 - share), rel=0.05)


def test_how_often_a_fact_is_stated_does_not_depend_on_the_sex(table: np.ndarray) -> None:
    """The same face with the other sex has the same caption, except for nouns and pronouns."""
    unshaven = [CAPTIONED.index(name) for name, fact in FACTS.items() if fact.slot == "beard"]
    rows = table[:N].copy()
    rows[:, unshaven] = 0  # nothing is said of the beard that a woman does not have
    sexes = []
    for value in (1, -1):
        rows[:, CAPTIONED.index("Male")] = value
        sexes.append(captions(rows, CAPTIONED, range(N), range(N), 0))
    words = {"man": "woman", "gentleman": "lady", "he": "she", "He": "She"}
    for male, female in zip(*sexes, strict=True):
        assert re.sub(r"\b(man|gentleman|he|He)\b", lambda match: words[match[0]], male) == female
    assert sum(male != female for male, female in zip(*sexes, strict=True)) > N / 2


def test_pronouns_agree_with_the_sex_and_their_verbs(training: list[str]) -> None:
    number = Counter[str]()
    for text in training:
        for pronoun, verb in re.findall(r"\b(he|she|they) (\w+)", text.lower()):
            number[pronoun] += 1
            assert verb in (("are", "have", "wear") if pronoun == "they" else ("is", "has", "wears")), text
            assert ("Male" in parse(text)) == (pronoun != "they")
        assert not re.search(r"\bshe\b", text.lower()) or not re.search(r"\b(he|man|gentleman)\b", text.lower())
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |,,|\.\.", text), text
    assert min(number.values()) > 60 and len(number) == 3


def test_training_has_nothing_that_is_held_out(training: list[str], held: list[str]) -> None:
    assert {held_out(text) for text in training} == {()}
    assert not any(frame.strip() in text.lower() for text in training for frame in FRAMES["test"])
    kinds = Counter(kind for text in held for kind in held_out(text))
    assert kinds["template"] == N and kinds["order"] > 0.1 * N and kinds["pair"] > 0.01 * N
    assert not set(training) & set(held)


def test_no_word_is_held_out(training: list[str], held: list[str]) -> None:
    first, second = (set(re.findall(r"[a-z]+", " ".join(texts).lower())) for texts in (training, held))
    assert second <= first


def test_prompts_are_sentences_of_the_grammar(training: list[str]) -> None:
    pairs = {pair for text in training for pair in pairwise(re.findall(r"[a-z']+", text.lower()))}
    for name in CAPTIONED:
        for value, sentences in zip((1, -1), prompts(name), strict=True):
            assert len(set(sentences)) == len(sentences) >= len(FRAMES["test"])
            for prompt in sentences:
                assert parse(prompt) == {name: value} and held_out(prompt) == ("template",), prompt
                statement = prompt[max(len(frame) for frame in FRAMES["test"] if prompt.startswith(frame)) :]
                assert set(pairwise(re.findall(r"[a-z']+", statement))) <= pairs, prompt
    assert prompts("Male")[0][:2] == ("this portrait shows a man", "this portrait shows a gentleman")
    assert prompts("Young")[1][0] == "this portrait shows an old person"
    yes, no = prompts("Eyeglasses")
    assert "the image shows a person wearing glasses" in yes and "the image shows a person without glasses" in no
    yes, no = prompts("No_Beard")
    assert "here is a picture of a person without a beard" in yes and "this portrait shows a person with a beard" in no
    assert "this is a photo of a person with blond hair" in prompts("Blond_Hair")[0]
    with pytest.raises(ValueError, match="captions say nothing of 'Attractive'; known: Male, Young"):
        prompts("Attractive")


def test_toyfaces_are_captioned() -> None:
    flags = face_traits(0, np.arange(2000)).flags[: len(ATTRIBUTES), :, 0, 0].T
    rows = (2 * flags - 1).astype(np.int8)
    assert set(ATTRIBUTES) <= set(CAPTIONED)
    for row, text in zip(rows, captions(rows, ATTRIBUTES, range(2000), range(2000), 0), strict=True):
        values = dict(zip(ATTRIBUTES, row.tolist(), strict=True))
        assert all(values[name] == value for name, value in parse(text).items()), text


def test_unknown_splits_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="a split .train or test. and a length, got 'valid' and None"):
        caption({"Male": 1}, seed=0, index=0, view=0, split="valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'train' and 'huge'"):
        caption({"Male": 1}, seed=0, index=0, view=0, length="huge")  # type: ignore[arg-type]
