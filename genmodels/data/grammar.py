"""The words of captions: what sentences may say of each attribute, and what is held out for tests.

A statement is written as a clause, "has a beard". Its first word is its verb (is, has, wears or
without), and captions.py turns it into "with a beard", "has a beard" or "have a beard". Parsing
looks for the rest of a statement, so no two facts may share it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """What captions may say of one attribute.

    Attributes:
        slot: part of a caption that it belongs to: hair, face, beard, expression or wearing.
        salience: 1 to 4; the more salient, the more often it is mentioned. Rare attributes that
            are visible at 64 pixels have 4.
        share: fraction of CelebA's faces that have it. Per face, its absence is stated at most
            share / (1 - share) times as often as its presence, so it is rarer over all faces.
        present: statements that a face has it; of hair, adjectives of "hair". The first one is
            used by the zero-shot prompts.
        absent: statements that a face does not have it; the first one is used by the prompts.
        sign: value of the attribute on faces that have it; -1 for No_Beard.
    """

    slot: str
    salience: int
    share: float
    present: tuple[str, ...]
    absent: tuple[str, ...]
    sign: int = 1


def _without(*nouns: str, verb: str = "has") -> tuple[str, ...]:
    """Return the statements of the absence of things, such as "a hat"."""
    return tuple(
        statement
        for noun in nouns
        for statement in (f"without {noun}", f"{verb} no {noun.removeprefix('a ').removeprefix('an ')}")
    )


def _not(noun: str, adjective: str, verb: str = "are") -> tuple[str, ...]:
    """Return the statements that a part of the face is not as an adjective says."""
    return f"has {noun} that {verb} not {adjective}", f"without {adjective} {noun}"


COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
TEXTURES = ("Straight_Hair", "Wavy_Hair")
HAIR = (*COLOURS, *TEXTURES)
"""Attributes whose presence is stated by adjectives of one noun, such as "wavy brown hair"."""

FACTS = {
    "Black_Hair": Fact("hair", 3, 0.24, ("black", "jet black", "deep black"), _not("hair", "black", "is")),
    "Blond_Hair": Fact("hair", 4, 0.15, ("blond", "golden", "fair"), (*_not("hair", "blond", "is"), "is not blond")),
    "Brown_Hair": Fact("hair", 3, 0.21, ("brown", "chestnut", "brunette"), _not("hair", "brown", "is")),
    "Gray_Hair": Fact("hair", 4, 0.042, ("gray", "grey", "silver"), _not("hair", "gray", "is")),
    "Straight_Hair": Fact("hair", 2, 0.21, ("straight", "sleek"), _not("hair", "straight", "is")),
    "Wavy_Hair": Fact("hair", 2, 0.32, ("wavy", "curly"), _not("hair", "wavy", "is")),
    "Bald": Fact("hair", 4, 0.022, ("is bald", "has a bald head"), ("is not bald", "has a head that is not bald")),
    "Bangs": Fact("hair", 3, 0.15, ("has bangs", "has a fringe"), _without("bangs", "a fringe")),
    "Receding_Hairline": Fact(
        "hair", 2, 0.08, ("has a receding hairline", "has a high hairline"), _without("a receding hairline")
    ),
    "Smiling": Fact(
        *("expression", 4, 0.48, ("is smiling", "has a smile", "has a smiling face", "is happy")),
        ("is not smiling", "is serious", "has a serious expression", "has no smile"),
    ),
    "Mouth_Slightly_Open": Fact(
        *("expression", 3, 0.48, ("has an open mouth", "has a slightly open mouth", "has parted lips")),
        ("has a closed mouth", "has closed lips"),
    ),
    "Eyeglasses": Fact(
        *("wearing", 4, 0.065, ("wears glasses", "has glasses", "wears eyeglasses", "wears spectacles")),
        (*_without("glasses", "eyeglasses", verb="wears"), "without spectacles"),
    ),
    "Wearing_Hat": Fact("wearing", 4, 0.048, ("wears a hat", "has a hat"), _without("a hat", verb="wears")),
    "Wearing_Earrings": Fact(
        "wearing", 2, 0.19, ("wears earrings", "has earrings"), _without("earrings", verb="wears")
    ),
    "Wearing_Necklace": Fact(
        "wearing", 1, 0.12, ("wears a necklace", "has a necklace"), _without("a necklace", verb="wears")
    ),
    "Wearing_Necktie": Fact(
        "wearing", 3, 0.073, ("wears a tie", "wears a necktie"), _without("a tie", "a necktie", verb="wears")
    ),
    "Wearing_Lipstick": Fact(
        *("wearing", 3, 0.47, ("wears lipstick", "has painted lips", "has lipstick")),
        _without("lipstick", verb="wears"),
    ),
    "Heavy_Makeup": Fact(
        *("wearing", 3, 0.39, ("wears heavy makeup", "has heavy makeup", "wears a lot of makeup")),
        _without("heavy makeup", verb="wears"),
    ),
    "No_Beard": Fact(
        *("beard", 3, 0.165, ("has a beard", "is bearded", "has facial hair")),
        (*_without("a beard", "facial hair"), "is clean-shaven"),
        -1,
    ),
    "Mustache": Fact("beard", 3, 0.042, ("has a mustache", "has a moustache"), _without("a mustache")),
    "Goatee": Fact("beard", 3, 0.063, ("has a goatee", "has a goatee beard"), _without("a goatee")),
    "5_o_Clock_Shadow": Fact("beard", 2, 0.11, ("has stubble", "is unshaven"), _without("stubble")),
    "Sideburns": Fact("beard", 1, 0.057, ("has sideburns", "has side whiskers"), _without("sideburns")),
    "Chubby": Fact("face", 2, 0.058, ("is chubby", "has a chubby face", "has full cheeks"), ("is not chubby",)),
    "Oval_Face": Fact(
        "face", 1, 0.28, ("has an oval face", "has an oval-shaped face"), _not("a face", "oval", "is")[:1]
    ),
    "Pale_Skin": Fact("face", 2, 0.043, ("has pale skin", "is pale"), (*_not("skin", "pale", "is"), "is not pale")),
    "Rosy_Cheeks": Fact("face", 2, 0.066, ("has rosy cheeks", "has pink cheeks"), _without("rosy cheeks")),
    "High_Cheekbones": Fact(
        "face", 1, 0.46, ("has high cheekbones", "has raised cheekbones"), _without("high cheekbones")
    ),
    "Bushy_Eyebrows": Fact("face", 2, 0.14, ("has bushy eyebrows", "has thick eyebrows"), _not("eyebrows", "bushy")),
    "Arched_Eyebrows": Fact(
        "face", 1, 0.27, ("has arched eyebrows", "has curved eyebrows"), _not("eyebrows", "arched")
    ),
    "Narrow_Eyes": Fact("face", 1, 0.12, ("has narrow eyes", "has eyes that are narrow"), _not("eyes", "narrow")),
    "Big_Nose": Fact(
        "face", 1, 0.24, ("has a big nose", "has a large nose"), ("without a big nose", "has a nose that is not big")
    ),
    "Big_Lips": Fact("face", 1, 0.24, ("has full lips", "has big lips"), _not("lips", "full")),
}
"""What captions say of each attribute apart from sex and age, by the attribute's name in CelebA."""

NOUNS = {1: ("man", "gentleman"), -1: ("woman", "lady"), 0: ("person", "individual")}
"""Words for a person by the value of Male; 0: the caption leaves the sex out."""
PRONOUNS = {1: "he", -1: "she", 0: "they"}
AGES = {1: ("young", "youthful"), -1: ("old", "elderly", "older")}
"""Adjectives by the value of Young."""
CAPTIONED = ("Male", "Young", *FACTS)
"""Attributes that the grammar knows."""

FRAMES = {
    "train": (
        *("", "", "", "a photo of ", "a photo of ", "a portrait of ", "a picture of ", "an image of "),
        *("this is ", "this photo shows ", "the picture shows ", "here is "),
    ),
    "test": ("this portrait shows ", "the image shows ", "this is a photo of ", "here is a picture of "),
}
"""What a caption begins with. Those of tests never occur in training, but all of their words do."""
HELD_OUT_ORDERS = frozenset(
    {("wearing", "hair"), ("expression", "face"), ("face", "beard"), ("beard", "hair"), ("expression", "wearing")}
)
"""First and last slot of captions that occur only in tests."""
HELD_OUT_PAIRS = (
    ("Bangs", "Smiling"),
    ("Brown_Hair", "Eyeglasses"),
    ("Mouth_Slightly_Open", "Wearing_Hat"),
    ("Black_Hair", "Wearing_Earrings"),
    ("Mustache", "Wearing_Necktie"),
)
"""Attributes whose presence is stated together only in tests."""
