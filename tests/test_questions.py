"""Questions from attributes: balance, phrasings that are held out, true answers, and their grammar."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from genmodels.data.captions import captions, parse
from genmodels.data.conversations import IMAGE
from genmodels.data.grammar import CAPTIONED
from genmodels.data.questions import (
    ASKED,
    CANNOT_TELL,
    CHOICES,
    COLOUR,
    DESCRIBE,
    UNKNOWN,
    WORN,
    conversations,
    converse,
    parse_yes_no,
    shares_of,
)
from genmodels.data.sentences import Draws
from genmodels.data.toyfaces import ATTRIBUTES, face_traits
from genmodels.data.wellformed import is_sentence, split_sentences

FACES = 3_000


@pytest.fixture(scope="module")
def attributes() -> np.ndarray:
    flags = face_traits(7, np.arange(FACES)).flags[: len(ATTRIBUTES), :, 0, 0].T
    return (2 * flags - 1).astype(np.int8)


@pytest.fixture(scope="module")
def asked(attributes):
    shares = shares_of(attributes, ATTRIBUTES)
    return conversations(attributes, ATTRIBUTES, range(FACES), [0] * FACES, 0, shares)


def test_a_conversation_is_a_function_of_its_arguments(attributes, asked):
    values = dict(zip(ATTRIBUTES, attributes[5].tolist(), strict=True))
    key = dict(seed=0, index=5, view=0, shares=shares_of(attributes, ATTRIBUTES))
    assert converse(values, **key) == asked[5] and len(asked[5]) == 3
    assert converse(values, **key | dict(view=1)) != asked[5]
    assert [turn.question.count(IMAGE) for turn in asked[5]] == [1, 0, 0]


def test_a_value_that_the_shares_say_never_occurs_is_asked_for():
    """As of held-out images, with the shares of training images."""
    values = {"Male": 1, "Smiling": 1, "Eyeglasses": -1}
    for index in range(20):
        converse(values, seed=0, index=index, view=0, shares={"Male": 0.0, "Smiling": 0.0, "Eyeglasses": 1.0})


def test_yes_and_no_are_balanced_for_every_attribute(asked, attributes):
    """An attribute whose presence is as often asked for as its absence cannot be guessed."""
    said = Counter(parse_yes_no(turn.answer) for turns in asked for turn in turns)
    assert abs(said[1] / (said[1] + said[-1]) - 0.5) < 0.05
    for name in ("Eyeglasses", "Smiling", "Wearing_Hat", "Bald"):
        values = Counter[int]()
        for row, turns in zip(attributes, asked, strict=True):
            for turn in turns:
                question = turn.question.removeprefix(f"{IMAGE}\n")
                if parse_yes_no(turn.answer) and name in parse(question):
                    values[int(row[ATTRIBUTES.index(name)])] += 1
        share = values[1] / (values[1] + values[-1])
        assert abs(share - 0.5) < 0.12, (name, values)


def test_answers_are_true(asked, attributes):
    """What an answer states is what the attributes say."""
    checked = 0
    for row, turns in zip(attributes, asked, strict=True):
        truth = dict(zip(ATTRIBUTES, row.tolist(), strict=True))
        for turn in turns:
            for name, value in parse(turn.answer).items():
                if name in truth:
                    assert truth[name] == value, turn
                    checked += 1
    assert checked > FACES


def test_yes_and_no_are_right(attributes):
    names = list(ATTRIBUTES)
    for seed in range(300):
        values = dict(zip(names, attributes[seed].tolist(), strict=True))
        for turn in converse(values, seed=seed, index=0, view=0):
            stated = parse(turn.question)
            if (said := parse_yes_no(turn.answer)) and len(stated) == 1:
                ((name, value),) = stated.items()
                assert (values[name] == value) == (said == 1), turn


def test_phrasings_of_tests_do_not_occur_in_training(attributes, asked):
    tested = conversations(attributes[:500], ATTRIBUTES, range(500), [0] * 500, 0, split="test")
    for forms in (ASKED, CHOICES, COLOUR, WORN, DESCRIBE, UNKNOWN):
        assert not set(forms["train"]) & set(forms["test"])
    seen = {turn.question.removeprefix(f"{IMAGE}\n") for turns in asked for turn in turns}
    held_out = {turn.question.removeprefix(f"{IMAGE}\n") for turns in tested for turn in turns}
    assert not seen & held_out and len(held_out) > 200


def test_the_words_of_tests_occur_in_training(attributes, asked):
    tested = conversations(attributes[:500], ATTRIBUTES, range(500), [0] * 500, 0, split="test")

    def words(those) -> set[str]:
        return {word for turns in those for turn in turns for word in re.findall(r"[a-z'-]+", turn.question.lower())}

    assert words(tested) - words(asked) <= {"lives"}


def test_every_kind_is_asked(asked):
    questions = [turn.question for turns in asked for turn in turns]
    answers = [turn.answer for turns in asked for turn in turns]
    for part in ("(a)", "colour", "wearing", "one sentence", "three sentences"):
        assert sum(part in question for question in questions) > 50, part
    assert sum(answer in CANNOT_TELL for answer in answers) > 200


def test_descriptions_have_the_sentences_that_were_asked_for(asked):
    count = 0
    for turn in (turn for turns in asked for turn in turns):
        if "sentence" in turn.question:
            sentences = split_sentences(turn.answer)
            assert all(map(is_sentence, sentences)), turn.answer
            if "one sentence" in turn.question:
                count += 1
                assert len(sentences) == 1, turn.answer
            else:
                assert 2 <= len(sentences) <= 3, turn.answer
    assert count > 100


def test_captions_are_sentences_and_shuffled_words_are_not(attributes):
    texts = captions(attributes[:300], ATTRIBUTES, range(300), [1] * 300, 0, "test")
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    assert all(map(is_sentence, sentences))
    shuffled = []
    for number, sentence in enumerate(sentences):
        words = sentence.rstrip(".").split()
        Draws(number).shuffle(words)
        shuffled.append(is_sentence(" ".join(words)))
    assert np.mean(shuffled) < 0.1


def test_a_face_of_which_nothing_is_known():
    turns = converse({}, seed=0, index=0, view=0)
    assert all(turn.answer in CANNOT_TELL for turn in turns)
    turns = converse({"Smiling": 0, "another": 1}, seed=0, index=0, view=0)
    assert all(turn.answer in CANNOT_TELL for turn in turns)
    (turn,) = converse({"Smiling": 1}, seed=3, index=0, view=0, turns=1)
    assert turn.answer and set(parse(turn.answer)) <= {"Smiling"} <= set(CAPTIONED)


@pytest.mark.parametrize(
    ("answer", "value"), [("Yes.", 1), ("no, he is not", -1), ("A man.", 0), ("", 0), ("Nobody", 0), ("'Yes'", 1)]
)
def test_answers_of_yes_and_no(answer, value):
    assert parse_yes_no(answer) == value
