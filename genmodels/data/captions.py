"""Captions of faces from their attributes, and the attributes of captions.

    caption({"Male": -1, "Smiling": 1}, seed=0, index=7, view=0)    # a photo of a smiling woman

A caption is a pure function of its arguments. Its random numbers are a hash of (seed, index, view,
split), so nothing depends on what was captioned before, on the process or on the machine. The words
are in grammar.py. Nothing here imports torch.

How a caption is written: facts are drawn, in middle and long captions each independently of the
others, so that how often a fact is stated says nothing about the rest of the face. They become
statements in random order, and sentences.py makes one of five kinds of sentences of these.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Literal

import numpy as np

from genmodels.data.grammar import (
    AGES,
    CAPTIONED,
    COLOURS,
    FACTS,
    FRAMES,
    HAIR,
    HELD_OUT_ORDERS,
    HELD_OUT_PAIRS,
    NOUNS,
    PRONOUNS,
    TEXTURES,
)
from genmodels.data.sentences import Draws, Statement, after_noun, clause, in_list, take_adjectives, write

__all__ = ["CAPTIONED", "LENGTHS", "caption", "captions", "held_out", "parse", "prompts"]

Length = Literal["short", "middle", "long"]
LENGTHS: tuple[Length, ...] = ("short", "middle", "long")
"""Kinds of captions: one or two facts, about three to five, and more. They are equally frequent."""

_PERSON = {"short": (0.4, 0.2), "middle": (0.7, 0.4), "long": (0.85, 0.6)}
"""Probabilities that the sex and the age are stated."""
_CHANCES = {"middle": (0, 0.12, 0.3, 0.45, 0.6), "long": (0, 0.4, 0.65, 0.8, 0.9)}
"""Probability that a fact is stated, by its salience."""
_WEIGHTS = tuple(accumulate((1, 3, 6, 10)[fact.salience - 1] for fact in FACTS.values()))
"""Cumulative weights of the facts of short captions."""
_NAMES = tuple(FACTS)
_TRIES = 40
"""Attributes that are tried for the facts of a short caption."""
_LARGEST = 47
"""Largest number of words and signs that the statements of a caption may need at worst, so that it
always fits into the 64 tokens of the shipped tokenizer."""


def caption(
    values: Mapping[str, int],
    *,
    seed: int,
    index: int,
    view: int,
    split: Literal["train", "test"] = "train",
    length: Length | None = None,
) -> str:
    """Write a caption of a face.

    Args:
        values: -1, 0 or +1 by name of attribute: no, unknown, yes. Unknown attributes, and those
            that the grammar does not know, are never mentioned.
        seed: seed of the data.
        index: number of the image.
        view: number of the caption of this image.
        split: "test" uses templates, and sometimes orders and pairs of attributes, that never occur
            in captions of "train".
        length: kind of the caption. None: drawn, all with the same probability.

    Returns:
        One line of text. A face of which nothing is known is "a photo of a person", or similar.

    Raises:
        ValueError: if the split or the length is none of these.
    """
    if split not in FRAMES or length not in (None, *LENGTHS):
        raise ValueError(f"captions have a split (train or test) and a length, got {split!r} and {length!r}")
    draws = Draws(seed, index, view, split)
    facts = _choose(values, draws.pick(LENGTHS) if length is None else length, draws)
    test = split == "test"
    if not test:
        _drop_held_out_pairs(facts, draws)
    sex, age = facts.pop("Male", 0), facts.pop("Young", 0)
    statements = _state(facts, draws)
    if age and draws.chance(0.2):
        statements.append(Statement("person", "is", draws.pick(AGES[age])))
        age = 0
    draws.shuffle(statements)
    while sum(map(_size, statements)) > _LARGEST:
        statements.pop()
    adjectives = take_adjectives(statements, draws)
    order = [s.slot for s in (*adjectives, *statements) if s.slot != "person"]
    if order and _is_held_out(order[::-1] if test else order) and (not test or draws.chance(0.5)):
        statements[:0] = adjectives
        statements.reverse()
        adjectives = []
    words = [*(s.text for s in adjectives), *([draws.pick(AGES[age])] if age else [])]
    return write(sex, words, statements, FRAMES[split], draws)


def captions(
    attributes: np.ndarray,
    names: Sequence[str],
    indices: Iterable[int],
    views: Iterable[int],
    seed: int,
    split: Literal["train", "test"] = "train",
    length: Length | None = None,
) -> list[str]:
    """Write a caption of each row: `caption` in bulk.

    Args:
        attributes: int8 (N, K) in {-1, 0, +1}.
        names: K names of attributes.
        indices: N numbers of images.
        views: N numbers of captions.
        seed, split, length: as in `caption`.
    """
    columns = [k for k, name in enumerate(names) if name in _KNOWN]
    known = [names[k] for k in columns]
    return [
        caption(dict(zip(known, row, strict=True)), seed=seed, index=index, view=view, split=split, length=length)
        for row, index, view in zip(attributes[:, columns].tolist(), indices, views, strict=True)
    ]


def parse(text: str) -> dict[str, int]:
    """Return the facts that a caption states: -1 or +1 by name of attribute, in their order."""
    phrases, pattern = _phrases()
    facts: dict[str, int] = {}
    for match in pattern.finditer(text.lower()):
        name, value = phrases[match[0]]
        facts.setdefault(name, value)
    return facts


def held_out(text: str) -> tuple[str, ...]:
    """Return what a caption uses that never occurs in training: some of "template" (how it begins),
    "order" (of its first and last statement) and "pair" (of attributes)."""
    facts = parse(text)
    order = [FACTS[name].slot for name in facts if name in FACTS]
    found = {
        "template": text.lower().startswith(FRAMES["test"]),
        "order": bool(order) and _is_held_out(order),
        "pair": any(_has(facts, first) and _has(facts, second) for first, second in HELD_OUT_PAIRS),
    }
    return tuple(kind for kind, used in found.items() if used)


def prompts(attribute: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the prompts of zero-shot classification: sentences that the value of `attribute` is
    +1, and sentences that it is -1.

    They are all wordings of the fact in all templates that training captions never use. As in
    CLIP, the mean of their embeddings represents the value, so that no result depends on a word.

    Raises:
        ValueError: if the grammar does not know the attribute.
    """
    if attribute not in _KNOWN:
        raise ValueError(f"captions say nothing of {attribute!r}; known: {', '.join(CAPTIONED)}")
    people: tuple[tuple[str, ...], ...]
    if attribute == "Male":
        people = NOUNS[1], NOUNS[-1]
    elif attribute == "Young":
        people = tuple(tuple(f"{word} {NOUNS[0][0]}" for word in AGES[value]) for value in (1, -1))
    else:
        fact = FACTS[attribute]
        present = tuple(f"has {word} hair" for word in fact.present) if attribute in HAIR else fact.present
        people = tuple(
            tuple(f"{NOUNS[0][0]} {after_noun([clause('', words)])}" for words in wordings)
            for wordings in (present, fact.absent)[:: fact.sign]
        )
    yes, no = (
        tuple(
            f"{frame}{'an' if words[0] in 'aeiou' else 'a'} {words}" for frame in FRAMES["test"] for words in wordings
        )
        for wordings in people
    )
    return yes, no


def _choose(values: Mapping[str, int], length: Length, draws: Draws) -> dict[str, int]:
    """Draw the facts that a caption states, without those that contradict each other."""
    facts = {}
    for name, probability in zip(("Male", "Young"), _PERSON[length], strict=True):
        if draws.chance(probability) and (value := values.get(name, 0)):
            facts[name] = value
    if length == "short":
        wanted = len(facts) + draws.below(2) + 1
        for _ in range(_TRIES):
            name = _NAMES[bisect_right(_WEIGHTS, draws.below(_WEIGHTS[-1]))]
            value = values.get(name, 0)
            accepted = draws.chance(1.0 if value == FACTS[name].sign else _ABSENT[name])
            if value and accepted and name not in facts:
                facts[name] = value
                if len(facts) == wanted:
                    break
    else:
        for name, (sign, present, absent) in _THRESHOLDS[length].items():
            value, number = values.get(name, 0), draws.below(65536)
            if value and number < (present if value == sign else absent):
                facts[name] = value
    _drop_contradictions(facts, draws)
    return facts


def _drop_contradictions(facts: dict[str, int], draws: Draws) -> None:
    """Drop facts until there is one colour and one texture of hair, and none of a bald head; and
    until nothing is said of the beard of a woman that she does not have."""
    for group in (COLOURS, TEXTURES):
        stated = [name for name in group if name in facts]
        if len(stated) > 1:
            kept = draws.pick([name for name in stated if facts[name] > 0] or stated)
            for name in stated:
                if name != kept:
                    del facts[name]
    if facts.get("Bald") == 1:
        for name in (*HAIR, "Bangs", "Receding_Hairline"):
            facts.pop(name, None)
    if facts.get("Male") == -1:
        for name in [name for name in facts if name in _BEARDS and not _has(facts, name)]:
            del facts[name]


def _drop_held_out_pairs(facts: dict[str, int], draws: Draws) -> None:
    for pair in HELD_OUT_PAIRS:
        if _has(facts, pair[0]) and _has(facts, pair[1]):
            del facts[draws.pick(pair)]


def _state(facts: Mapping[str, int], draws: Draws) -> list[Statement]:
    """Turn facts into statements; adjectives of the hair become one of them."""
    statements, adjectives = [], []
    for name, value in facts.items():
        fact = FACTS[name]
        if value != fact.sign:
            statements.append(clause(fact.slot, draws.pick(fact.absent)))
        elif name in HAIR:
            adjectives.append(draws.pick(fact.present))
        else:
            statements.append(clause(fact.slot, draws.pick(fact.present)))
    if adjectives:
        draws.shuffle(adjectives)
        kinds = [f"has {' '.join(adjectives)} hair"] * 3 + [f"has hair that is {in_list(adjectives)}"]
        if len(adjectives) == 1 and " " not in adjectives[0]:
            kinds.append(f"is {adjectives[0]}-haired")
        statements.append(clause("hair", draws.pick(kinds)))
    return statements


def _has(facts: Mapping[str, int], name: str) -> bool:
    return facts.get(name) == FACTS[name].sign


def _size(statement: Statement) -> int:
    """Return an upper bound of the words and signs of a statement, with two verbs and a comma."""
    return 4 + statement.text.count(" ") + 2 * statement.text.count("-")


def _is_held_out(order: Sequence[str]) -> bool:
    return (order[0], order[-1]) in HELD_OUT_ORDERS


@cache
def _phrases() -> tuple[dict[str, tuple[str, int]], re.Pattern[str]]:
    """Return the fact of each phrase, and a pattern that matches all of them, longer ones first."""
    phrases: dict[str, tuple[str, int]] = {}
    for name, words in (("Male", NOUNS), ("Young", AGES)):
        phrases |= {word: (name, value) for value in (1, -1) for word in words[value]}
    phrases |= {PRONOUNS[value]: ("Male", value) for value in (1, -1)}
    for name, fact in FACTS.items():
        present = fact.present if name in HAIR else (text.partition(" ")[2] for text in fact.present)
        phrases |= {re.sub("^an? ", "", text): (name, fact.sign) for text in present}
        absent = (text if text.startswith("without") else text.partition(" ")[2] for text in fact.absent)
        phrases |= {re.sub("^an? ", "", text): (name, -fact.sign) for text in absent}
    longest = sorted(phrases, key=len, reverse=True)
    return phrases, re.compile(rf"\b(?:{'|'.join(map(re.escape, longest))})\b")


_KNOWN = frozenset(CAPTIONED)
_BEARDS = frozenset(name for name, fact in FACTS.items() if fact.slot == "beard")
_ABSENT = {name: 0.7 * fact.share / (1 - fact.share) for name, fact in FACTS.items()}
"""How often the absence of something is stated, as a fraction of how often its presence is."""
_THRESHOLDS = {
    length: {
        name: (fact.sign, 65536 * chances[fact.salience], 65536 * chances[fact.salience] * _ABSENT[name])
        for name, fact in FACTS.items()
    }
    for length, chances in _CHANCES.items()
}
