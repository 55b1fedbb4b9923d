"""Whether sentences about faces follow the grammar of captions and answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from genmodels.data.grammar import AGES, FACTS, FRAMES, HAIR, NOUNS, PRONOUNS


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    return [part for part in re.split(r"(?<=[.?!])\s+", text.strip()) if part]


def is_sentence(text: str) -> bool:
    """Return whether a text is one sentence that describes a person as captions and answers do.

    Only its structure counts, and not whether it contradicts itself or is true.
    """
    return bool(_pattern().fullmatch(text.strip().rstrip(".").lower()))


def _any(words: Iterable[str]) -> str:
    """Return a pattern of any of some phrases, longer ones first."""
    return f"(?:{'|'.join(map(re.escape, sorted(set(words), key=len, reverse=True)))})"


@cache
def _pattern() -> re.Pattern[str]:
    items, adjectives = set[str](), {word for words in AGES.values() for word in words}
    hair: set[str] = set()
    for name, fact in FACTS.items():
        if name in HAIR:
            hair |= set(fact.present)
        for words in (*(() if name in HAIR else fact.present), *fact.absent):
            verb, _, rest = words.partition(" ")
            items |= {rest, f"without {rest}"} if verb == "without" else {rest}
            if verb == "is" and " " not in rest:
                adjectives.add(rest)
    colour = _any(hair)
    adjectives |= {f"{word}-haired" for word in hair if " " not in word}
    styles = rf"(?:{colour} )+hair|hair that is {colour}(?:, {colour})*(?: and {colour})?|{colour}-haired"
    item = rf"(?:{styles}|{_any(items | {word for words in AGES.values() for word in words})})"
    listed = rf"{item}(?:(?:, {item})* and {item})?"
    nouns = _any(word for words in NOUNS.values() for word in words)
    person = rf"an? (?:{_any(adjectives)} )*{nouns}"
    link = rf"(?:who is|with|wearing|without) {listed}"
    verb = r"(?:is|are|has|have|wears|wear|is wearing|are wearing|is without|are without)"
    finite = rf"{verb} {listed}(?:(?:,| and|, and) {verb} {listed})*"
    frame = _any(frame for frames in FRAMES.values() for frame in frames if frame)
    subject = rf"(?:{_any(PRONOUNS.values())}|the {nouns}|this person)"
    kinds = (
        rf"{frame}?{person}(?: {link}(?:, {link})*)?",
        rf"{frame}?{person} (?:who )?{finite}",
        rf"{subject} {finite}",
        rf"(?:{_any(adjectives)} )*{nouns}(?:, (?:{item}|{listed}))+",
    )
    return re.compile("|".join(f"(?:{kind})" for kind in kinds))
