"""Sentences of captions: statements about a person, and how they are put into words."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import shake_128
from typing import NamedTuple, TypeVar

from genmodels.data.grammar import NOUNS, PRONOUNS

T = TypeVar("T")

_LINKS = {"is": "who is", "has": "with", "wears": "wearing", "without": "without"}
"""What a verb becomes after a noun."""
_NEGATIONS = ("no ", "not ")
"""What statements of absence begin with, apart from the verb "without"."""
_PLURAL = {"is": "are", "has": "have", "wears": "wear", "is without": "are without"}
"""What a verb becomes after "they"."""


class Statement(NamedTuple):
    """One clause of a caption: ("beard", "has", "a beard")."""

    slot: str
    verb: str
    text: str


class Draws:
    """Random numbers that are a hash of `key`, the same on every machine; at most 256 of them."""

    def __init__(self, *key: object):
        digest = shake_128(" ".join(map(str, key)).encode()).digest(512)
        self._next = iter(struct.unpack("<256H", digest)).__next__

    def below(self, n: int) -> int:
        """Draw an integer from 0 to n - 1."""
        return self._next() * n >> 16

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._next() < probability * 65536

    def pick(self, items: Sequence[T]) -> T:
        """Draw one of the items."""
        return items[self._next() * len(items) >> 16]

    def shuffle(self, items: list[T]) -> None:
        """Shuffle a list in place."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]


def clause(slot: str, words: str) -> Statement:
    """Return the statement of a clause such as "has a beard"."""
    verb, _, text = words.partition(" ")
    return Statement(slot, verb, text)


def take_adjectives(statements: list[Statement], draws: Draws) -> list[Statement]:
    """Take a statement that can stand before the noun, such as "is smiling", out of the list;
    sometimes none."""
    places = [i for i, s in enumerate(statements) if s.verb == "is" and " " not in s.text]
    return [statements.pop(draws.pick(places))] if places and draws.chance(0.6) else []


def write(sex: int, adjectives: list[str], statements: list[Statement], frames: Sequence[str], draws: Draws) -> str:
    """Write statements about a person as one of five kinds of sentences.

    Captions of tests always begin with one of their `frames`, and those of training never do.
    """
    unframed = ("clause", "list") if "" in frames else ()
    kind = draws.pick(("noun", "noun", "two", "two", "who", *unframed)) if statements else "noun"
    # A pronoun states the sex as well as the noun does, so the noun may then leave it out.
    person = 0 if kind == "two" and draws.chance(0.15) else sex
    noun = draws.pick(NOUNS[person] if draws.chance(0.25) else NOUNS[person][:1])
    words = " ".join([*adjectives, noun])
    article = "an" if words[0] in "aeiou" else "a"
    frame = draws.pick(frames)
    if kind == "clause":
        return _sentence(f"{article} {words} {predicate(statements, False)}")
    if kind == "list":
        return ", ".join([words, *(f"without {s.text}" if s.verb == "without" else s.text for s in statements)])
    if kind == "who":
        return f"{frame}{article} {words} who {predicate(statements, False)}"
    if kind == "two":
        cut = draws.below(len(statements))  # the second sentence has at least one statement
        first = " ".join(filter(None, [f"{frame}{article} {words}", after_noun(statements[:cut])]))
        name = PRONOUNS[sex] if person != sex or draws.chance(0.75) else f"the {noun}"
        return f"{_sentence(first)} {_sentence(f'{name} {predicate(statements[cut:], name == PRONOUNS[0])}')}"
    return " ".join(filter(None, [f"{frame}{article} {words}", after_noun(statements)]))


def after_noun(statements: Sequence[Statement]) -> str:
    """Write statements after a noun: "with a beard and bangs, wearing a hat"."""
    return ", ".join(f"{_LINKS[verb]} {in_list(texts)}" for verb, texts in _runs(statements))


def predicate(statements: Sequence[Statement], plural: bool) -> str:
    """Write statements after a subject: "has a beard and bangs and wears a hat"."""
    parts = []
    for verb, texts in _runs(statements):
        verb = "is without" if verb == "without" else verb
        parts.append(f"{_PLURAL[verb] if plural else verb} {in_list(texts)}")
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _runs(statements: Sequence[Statement]) -> list[tuple[str, list[str]]]:
    """Join neighbouring statements of the same verb, so that it is clear what "no" refers to."""
    runs: list[tuple[str, list[str]]] = []
    for _, verb, text in statements:
        joined = runs and runs[-1][0] == verb
        if joined and verb == "without":
            runs[-1][1].append(f"without {text}")
        elif joined and (text.startswith(_NEGATIONS) or not runs[-1][1][-1].startswith(_NEGATIONS)):
            runs[-1][1].append(text)
        else:
            runs.append((verb, [text]))
    return runs


def in_list(texts: Sequence[str]) -> str:
    """Join texts: "a, b and c"."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
