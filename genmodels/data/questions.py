"""Questions about faces and their answers, from attributes; and the facts that answers state.

    converse({"Male": -1, "Smiling": 1}, seed=0, index=7, view=0)    # three turns

A conversation is a pure function of its arguments, as a caption is. Its questions are of these kinds:

- yes or no, about one attribute. A fact and its opposite are equally often true, so that a model
  that always says yes is right in half of the cases.
- choice: which of three statements is true.
- colour of the hair, and what the person wears.
- descriptions, in one sentence or in three.
- what an image does not tell, such as a name; the answer is "I cannot tell."

Each kind has several phrasings. Those of the split "test" never occur in training. Nothing here
imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from genmodels.data.captions import CAPTIONED, Length, caption
from genmodels.data.conversations import IMAGE, Conversation, Turn
from genmodels.data.grammar import AGES, COLOURS, FACTS, HAIR, NOUNS, PRONOUNS
from genmodels.data.sentences import Draws, Statement, after_noun, clause, in_list, predicate
from genmodels.data.wellformed import split_sentences

Split = Literal["train", "test"]
TURNS = 3
"""Number of turns of a conversation."""
_KINDS = ("yes or no",) * 6 + ("choice", "colour", "worn", "describe", "describe", "unknown")
"""Kinds of questions, as often as they are asked."""
_TRIES = 6
"""Attributes that are tried for a question of yes or no."""

_STATED = (0, 0.1, 0.35, 0.75, 0.95)
"""Probability that a description states the presence of something, by its salience. Annotators agree
least on what is least salient."""

ASKED: dict[Split, tuple[str, ...]] = {
    "train": (
        *("{direct}", "{direct}", "Do you think that this person {clause}?", "Is it true that this person {clause}?"),
        "Look at this person. {direct} Answer with yes or no.",
    ),
    "test": ("Would you say that this person {clause}?",),
}
"""Phrasings of questions of yes or no."""
CHOICES: dict[Split, tuple[str, ...]] = {
    "train": ("Which of these is true: {options}?", "What is true of this person: {options}?"),
    "test": ("Which of these do you think is true: {options}?",),
}
COLOUR: dict[Split, tuple[str, ...]] = {
    "train": ("What colour is the hair?", "What is the colour of this person's hair?", "Which colour is the hair?"),
    "test": ("What colour of hair is this?",),
}
WORN: dict[Split, tuple[str, ...]] = {
    "train": ("What is this person wearing?", "What does this person wear?", "What is {pronoun} wearing?"),
    "test": ("What is this person wearing in this picture?",),
}
DESCRIBE: dict[Split, tuple[str, ...]] = {
    "train": ("Describe this person{length}.", "What would you say about this person{length}?", "Who is this{length}?"),
    "test": ("What do you think about this person{length}?", "Describe what is in this picture{length}."),
}
UNKNOWN: dict[Split, tuple[str, ...]] = {
    "train": (
        *("What is this person's name?", "Where was this picture taken?", "What does this person do for a living?"),
        *("Is this person married?", "What is the age of this person in years?", "What is behind the camera?"),
    ),
    "test": ("What would you say is the name of this person?", "Where do you think that this person lives?"),
}
CANNOT_TELL = ("I cannot tell.", "I cannot tell from this picture.", "The picture does not show that.")
ONE, THREE = " in one sentence", " in three sentences"
NOTHING = "Nothing that stands out."
LETTERS = ("a", "b", "c")


def converse(
    values: Mapping[str, int],
    *,
    seed: int,
    index: int,
    view: int,
    split: Split = "train",
    turns: int = TURNS,
    shares: Mapping[str, float] | None = None,
) -> Conversation:
    """Write a conversation about a face.

    Args:
        values: -1, 0 or +1 by name of attribute: no, unknown, yes. Unknown attributes, and those
            that the grammar does not know, are not asked for.
        seed: seed of the data.
        index: number of the image.
        view: number of the conversation about this image.
        split: "test" uses phrasings that never occur in "train".
        turns: number of questions.
        shares: fraction of the images of the data whose attribute is +1, by which questions of yes
            or no are balanced. None: those of CelebA.

    Returns:
        The turns; the first question begins with `<image>`.
    """
    known = {name: values[name] for name in CAPTIONED if values.get(name)}
    result: list[Turn] = []
    asked: set[str] = set()
    attempt = 0
    for _ in range(turns):
        turn = None
        while turn is None:  # not every kind of question suits every face
            draws = Draws("questions", seed, index, view, split, attempt)
            kind = draws.pick(_KINDS) if known else "unknown"
            turn = _ask(kind, known, asked, draws, split, (seed, index, view), shares)
            attempt += 1
        question = turn.question if result else f"{IMAGE}\n{turn.question}"
        result.append(Turn(question, turn.answer))
    return tuple(result)


def conversations(
    attributes: np.ndarray,
    names: Sequence[str],
    indices: Iterable[int],
    views: Iterable[int],
    seed: int,
    shares: Mapping[str, float] | None = None,
    split: Split = "train",
) -> list[Conversation]:
    """Write a conversation about each row of attributes, int8 (N, K): `converse` in bulk."""
    columns = [k for k, name in enumerate(names) if name in CAPTIONED]
    known = [names[k] for k in columns]
    return [
        converse(dict(zip(known, row, strict=True)), seed=seed, index=index, view=view, split=split, shares=shares)
        for row, index, view in zip(attributes[:, columns].tolist(), indices, views, strict=True)
    ]


def shares_of(attributes: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return the fraction of known values of each attribute, int8 (N, K), that are +1."""
    positive, known = (attributes > 0).sum(0), (attributes != 0).sum(0)
    return {name: float(p / k) for name, p, k in zip(names, positive, known, strict=True) if k}


def yes_no_question(name: str, draws: Draws, split: Split) -> tuple[str, int]:
    """Return a question about an attribute, and the value of the attribute whose answer is yes."""
    words, value = _claim(name, draws)
    form = draws.pick(ASKED[split])
    return form.format(direct=_direct(words), clause=words), value


def parse_yes_no(answer: str) -> int:
    """Return +1 for an answer that begins with yes, -1 for no, and 0 for another."""
    word = re.match(r"\W*(\w+)", answer.lower())
    return {"yes": 1, "no": -1}.get(word[1], 0) if word else 0


def _ask(
    kind: str,
    known: Mapping[str, int],
    asked: set[str],
    draws: Draws,
    split: Split,
    key: tuple[int, int, int],
    shares: Mapping[str, float] | None,
) -> Turn | None:
    """Return a question of one kind, or None if this face does not allow one."""
    if kind == "unknown":
        return Turn(draws.pick(UNKNOWN[split]), draws.pick(CANNOT_TELL))
    if kind == "yes or no":
        return _ask_yes_no(known, asked, draws, split, shares)
    if kind == "choice":
        return _ask_choice(known, draws, split)
    if kind == "colour":
        colours = [name for name in COLOURS if known.get(name, 0) > 0]
        if len(colours) != 1:
            return None
        word = FACTS[colours[0]].present[0]
        answers = f"{word}.", f"The hair is {word}.", f"{_who(known)} has {word} hair."
        return Turn(draws.pick(COLOUR[split]), _sentence(draws.pick(answers)))
    if kind == "worn":
        worn = [name for name, fact in FACTS.items() if fact.slot == "wearing" and known.get(name, 0) > 0]
        draws.shuffle(worn)
        things = [draws.pick(FACTS[name].present[:1]).partition(" ")[2] for name in worn]
        answer = f"{_who(known)} is wearing {in_list(things)}." if things else NOTHING
        question = draws.pick(WORN[split]).format(pronoun=_who(known))
        return Turn(question, _sentence(answer))
    length = draws.pick((ONE, THREE))
    question = draws.pick(DESCRIBE[split]).format(length=length)
    if length == THREE:
        return Turn(question, describe(known, draws))
    return Turn(question, _one_sentence(known, draws, key))


def _ask_yes_no(
    known: Mapping[str, int], asked: set[str], draws: Draws, split: Split, shares: Mapping[str, float] | None
) -> Turn | None:
    names = list(known)
    for _ in range(_TRIES):
        name = draws.pick(names)
        share = _share(name) if shares is None else shares.get(name, 0.5)
        # The more frequent value is asked for as often as the rarer one.
        own, other = (share, 1 - share) if known[name] > 0 else (1 - share, share)
        if name in asked or not draws.chance(1 if own <= other else other / own):
            continue
        asked.add(name)
        question, yes = yes_no_question(name, draws, split)
        true = known[name] == yes
        word = "yes" if true else "no"
        if draws.chance(0.5):
            return Turn(question, f"{word.capitalize()}.")
        return Turn(question, _sentence(f"{word}, {_who(known)} {_statement(name, known[name], draws)}."))
    return None


def _ask_choice(known: Mapping[str, int], draws: Draws, split: Split) -> Turn | None:
    present = [name for name in FACTS if known.get(name, 0) == FACTS[name].sign]
    absent = [name for name in FACTS if known.get(name, 0) == -FACTS[name].sign]
    if not present or len(absent) < 2:
        return None
    draws.shuffle(absent)
    right = draws.pick(present)
    options = [right, *absent[:2]]
    draws.shuffle(options)
    texts = [f"({letter}) {_present(name)}" for letter, name in zip(LETTERS, options, strict=True)]
    answer = f"{texts[options.index(right)]}."
    return Turn(draws.pick(CHOICES[split]).format(options=f"{texts[0]}, {texts[1]} or {texts[2]}"), answer)


def _one_sentence(known: Mapping[str, int], draws: Draws, key: tuple[int, int, int]) -> str:
    """Write a caption that is a single sentence."""
    seed, index, view = key
    lengths: tuple[Length, ...] = ("middle", "long")
    length = draws.pick(lengths)
    for extra in range(_TRIES):
        text = caption(known, seed=seed, index=index, view=view + (extra << 20), length=length)
        if len(split_sentences(text)) == 1:
            break
    return _sentence(text.rstrip(".") + ".")


def describe(known: Mapping[str, int], draws: Draws) -> str:
    """Write three sentences about a face: who it is with the hair, the face, and what is worn."""
    sex = known.get("Male", 0)
    groups = {slot: list[Statement]() for slot in ("hair", "face", "wearing")}
    for name in FACTS:
        if known.get(name, 0) == FACTS[name].sign and draws.chance(_STATED[FACTS[name].salience]):
            slot = FACTS[name].slot
            groups[slot if slot in groups else "face"].append(clause(slot, _present(name)))
    for slot, names in (("face", ("Smiling", "Mouth_Slightly_Open")), ("wearing", ("Eyeglasses", "Wearing_Hat"))):
        if not groups[slot]:  # what is absent is stated where nothing else can be
            name = draws.pick(names)
            words = [words for words in FACTS[name].absent if not words.startswith("without")]
            if known.get(name, 0) == -FACTS[name].sign:
                groups[slot].append(clause(slot, words[0]))
    age = draws.pick(AGES[known["Young"]]) + " " if "Young" in known else ""
    noun = draws.pick(NOUNS[sex])
    article = "an" if (age or noun)[0] in "aeiou" else "a"
    first = " ".join(filter(None, [f"this is {article} {age}{noun}", after_noun(groups["hair"])]))
    sentences = [first]
    for slot in ("face", "wearing"):
        if groups[slot]:
            sentences.append(f"{PRONOUNS[sex]} {predicate(groups[slot], sex == 0)}")
    return " ".join(_sentence(f"{text}.") for text in sentences)


# ---- words ----


def _share(name: str) -> float:
    """Return the fraction of CelebA's faces with the attribute +1."""
    if name in FACTS:
        fact = FACTS[name]
        return fact.share if fact.sign > 0 else 1 - fact.share
    return {"Male": 0.42, "Young": 0.77}[name]


def _claim(name: str, draws: Draws) -> tuple[str, int]:
    """Return a clause about "this person" that states an attribute, and the value that it states."""
    if name == "Male":
        value = draws.pick((1, -1))
        return f"is a {draws.pick(NOUNS[value])}", value
    if name == "Young":
        value = draws.pick((1, -1))
        return f"is {draws.pick(AGES[value])}", value
    return _present(name, draws), FACTS[name].sign


def _present(name: str, draws: Draws | None = None) -> str:
    """Return a clause that states the presence of something: "has black hair", "wears a hat"."""
    fact = FACTS[name]
    words = fact.present[0] if draws is None else draws.pick(fact.present)
    return f"has {words} hair" if name in HAIR else words


def _statement(name: str, value: int, draws: Draws) -> str:
    """Return a clause that states the value of an attribute."""
    if name == "Male":
        return f"is a {NOUNS[value][0]}"
    if name == "Young":
        return f"is {AGES[value][0]}"
    fact = FACTS[name]
    if value == fact.sign:
        return _present(name, draws)
    words = [words for words in fact.absent if not words.startswith("without")]
    return words[0] if words else f"is {fact.absent[0]}"


def _direct(words: str) -> str:
    """Return a clause about this person as a question: "wears a hat" -> "Is this person wearing ..."."""
    verb, _, rest = words.partition(" ")
    if verb == "is":
        return f"Is this person {rest}?"
    return f"Is this person wearing {rest}?" if verb == "wears" else f"Does this person have {rest}?"


def _who(known: Mapping[str, int]) -> str:
    return PRONOUNS[known["Male"]] if "Male" in known else "this person"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
