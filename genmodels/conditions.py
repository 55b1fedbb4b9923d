"""Conditions of samples: attributes, labels and texts, and the config of what a model takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor

from genmodels.saving import Derived

SHOWN_CLASSES = 20
"""Largest number of classes that a message, or a description of a model, lists."""


@dataclass(frozen=True)
class Text:
    """Tokenized sentences, padded to one length.

    Attributes:
        ids: (N, L) int64.
        mask: (N, L) bool, True where a token is real and False where it is padding.
        learned: (N, L) bool, True at the tokens that a language model learns to predict, such as
            those of answers. None: the sentences are conditions.
    """

    ids: Tensor
    mask: Tensor
    learned: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Text:
        """Apply `function` to each tensor."""
        return Text(function(self.ids), function(self.mask), None if self.learned is None else function(self.learned))


@dataclass(frozen=True)
class Condition:
    """Conditions of N samples, one row each. A field that is None is not conditioned on.

    Attributes:
        attributes: (N, K) in {-1, 0, +1}: no, unknown, yes.
        labels: (N,) int64; -1 is unknown.
        text: N sentences.
    """

    attributes: Tensor | None = None
    labels: Tensor | None = None
    text: Text | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is conditioned on."""
        return self.attributes is None and self.labels is None and self.text is None

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Apply `function` to every tensor. It must treat the first axis, N, of all alike."""
        return Condition(
            None if self.attributes is None else function(self.attributes),
            None if self.labels is None else function(self.labels),
            None if self.text is None else self.text.map(function),
        )

    def __getitem__(self, rows: slice) -> Condition:
        return self.map(lambda tensor: tensor[rows])

    def repeat(self, n: int) -> Condition:
        """Repeat every row `n` times, one after another."""
        return self.map(lambda tensor: tensor.repeat_interleave(n, 0))

    def to(self, device: torch.device | str) -> Condition:
        """Move every tensor to `device`."""
        return self.map(lambda tensor: tensor.to(device))


def condition_of(model: Any, value: Condition | Mapping[str, Any] | None, n: int) -> Condition:
    """Return a condition of `n` samples of `model`, as `ConditionConfig.condition` does."""
    made: Condition = model.conditions.condition(value, n, model.tokenize if model.can("tokenize") else None)
    return made


def check_condition(value: Any) -> None:
    """Raise TypeError if `value` is not a Condition, such as a dict; the message says what to do."""
    if not isinstance(value, Condition):
        raise TypeError(
            f"expected a Condition, got {type(value).__name__}: condition_of(model, {{'Smiling': 1}}, n) makes "
            "the Condition of n images from a dict (model.generate accepts the dict itself)"
        )


@dataclass(frozen=True)
class TextConfig:
    """Token sequences that a model can be conditioned on."""

    vocabulary: int = 0
    """Number of tokens in the vocabulary, set by --text. 0 disables text."""
    length: int = 64
    """Largest number of tokens in a sentence, set by --text."""
    encoder: Derived[dict[str, Any]] = field(default_factory=dict)
    """Config of the frozen text encoder, from --text. {}: a learned vector for each token."""
    start: Derived[int] = 0
    """Id of the token that starts a sentence, from --text."""
    tokenizer: Derived[str] = ""
    """Hash of the tokenizer, from --text."""
    weights: Derived[str] = ""
    """Hash of the weights of the model that the text encoder is from, which evaluation compares with
    those of its extractors."""

    def __post_init__(self) -> None:
        # As JSON returns it (lists for tuples), so that a config equals itself after a round trip.
        object.__setattr__(self, "encoder", json.loads(json.dumps(self.encoder)))


@dataclass(frozen=True)
class ConditionConfig:
    """What a model can be conditioned on, and how often training hides it."""

    attributes: tuple[str, ...] = ()
    """Names of attributes of the data that samples can be conditioned on."""
    classes: int = 0
    """Number of classes that samples can be conditioned on. 0 disables labels."""
    class_names: Derived[tuple[str, ...]] = ()
    """Names of the classes, from the data. (): the classes have only numbers."""
    text: TextConfig = TextConfig()
    """Text that samples can be conditioned on."""
    drop: float = 0.1
    """Fraction of the training images whose condition is hidden, for classifier-free guidance."""
    drop_each: float = 0.5
    """Fraction of the other images in which each attribute is hidden with probability 1/2, so that
    samples can be conditioned on any subset of the attributes."""

    def __post_init__(self) -> None:
        if self.classes < 0 or self.text.vocabulary < 0 or self.text.length < 1:
            raise ValueError(
                "condition: classes and text.vocabulary must not be negative and text.length must be at least 1, got "
                f"{self.classes}, {self.text.vocabulary} and {self.text.length}"
            )
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(
                f"condition: class_names must name all {self.classes} classes, or none, got {len(self.class_names)}"
            )
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError(f"condition: each attribute can be named once, got {', '.join(self.attributes)}")
        if not (0 <= self.drop <= 1 and 0 <= self.drop_each <= 1):
            raise ValueError(f"condition: drop and drop_each must be in [0, 1], got {self.drop} and {self.drop_each}")

    @property
    def is_empty(self) -> bool:
        """Whether the model is unconditional."""
        return not (self.attributes or self.classes or self.text.vocabulary)

    def condition(
        self,
        value: Condition | Mapping[str, Any] | None,
        n: int,
        tokenize: Callable[[Sequence[str]], Text] | None = None,
    ) -> Condition:
        """Return the condition of `n` samples.

        Args:
            value: a condition of `n` rows, which is returned as it is; a dict, the same for all
                samples; or None for no condition. The dict has values by attribute name: True, 1 or
                "yes"; False, -1 or "no"; None or 0 for unknown. Its key "label" takes the name or
                the number of a class, and its key "prompt" a sentence, or one for each sample.
            n: number of samples.
            tokenize: turns sentences into tokens; None for a model without text.

        Raises:
            ValueError: if the model has no such attribute or label, or takes no text; or if a value
                is none of these.
            TypeError: if the condition itself is none of these.
        """
        if value is None:
            return Condition()
        if not isinstance(value, Mapping):
            check_condition(value)
            return value
        given = {name: _plain(item) for name, item in value.items()}
        text = _tokenized(given.pop("prompt", None), n, tokenize)
        labels = None
        label = given.pop("label", None)
        if label is not None:
            labels = torch.full((n,), self.class_number(label))
        if unknown := [name for name in given if name not in self.attributes]:
            names = ", ".join(self.attributes)
            known = f"this model knows: {names}" if names else "this model was trained without attributes"
            raise ValueError(f"unknown attribute {unknown[0]!r}; {known}")
        attributes = None
        if given:
            signs = [_sign(name, given.get(name)) for name in self.attributes]
            attributes = torch.tensor(signs).expand(n, -1).clone()  # (N, K)
        return Condition(attributes, labels, text)

    def in_turn(self, n: int) -> Condition:
        """Return the condition of `n` samples that show all classes in turn: image i has class
        i % classes. A model without classes gets no condition."""
        return Condition(labels=torch.arange(n) % self.classes) if self.classes else Condition()

    def class_number(self, label: Any) -> int:
        """Return the number of a class, given its name or its number (an integer or its digits).

        A name takes precedence. Upper and lower case, and composed and decomposed characters,
        make no difference.

        Raises:
            ValueError: if the model does not know the class; lists the classes, or the most
                similar ones.
        """
        if isinstance(label, str):
            folded = [normalize("NFC", name).casefold() for name in [*self.class_names, label]]
            if (number := folded.index(folded[-1])) < len(self.class_names):
                return number
            number = int(label) if label.isdecimal() and len(label) < 10 else -1
        else:
            number = label if isinstance(label, int) and not isinstance(label, bool) else -1
        if 0 <= number < self.classes:
            return number
        raise ValueError(f"label {label!r}: this model does not know it; {self._known_classes(str(label))}")

    def _known_classes(self, label: str) -> str:
        """Return a phrase that names the classes: all of a few, or those most similar to `label`."""
        if not self.classes:
            return "it was trained without labels"
        if not self.class_names:
            return f"it has labels 0 to {self.classes - 1}"
        if self.classes <= SHOWN_CLASSES:
            return f"its classes are {self.list_classes()}"
        similar = get_close_matches(label, self.class_names, n=3)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        return f"it has {self.classes:,} classes ({self.list_classes()}){hint}"

    def list_classes(self) -> str:
        """Return the names of the classes, separated by commas; of more than SHOWN_CLASSES, the
        first ones and "..."."""
        more = ["..."] * (self.classes > SHOWN_CLASSES)
        return ", ".join([*self.class_names[:SHOWN_CLASSES], *more]) if self.class_names else ""


UNCONDITIONAL = ConditionConfig()
"""The config of models without conditions."""


def _tokenized(prompt: Any, n: int, tokenize: Callable[[Sequence[str]], Text] | None) -> Text | None:
    """Return the tokens of a sentence for all `n` samples, or of one sentence for each."""
    if prompt is None:
        return None
    if tokenize is None:
        raise ValueError("a prompt was given, and this model was trained without text")
    if isinstance(prompt, str):
        return tokenize([prompt]).map(lambda tensor: tensor.expand(n, -1).clone())
    if len(prompt) != n:
        raise ValueError(f"there are {len(prompt)} prompts for {n} samples: give one, or one for each")
    return tokenize(list(prompt))


def _plain(value: Any) -> Any:
    """Convert a scalar of NumPy or torch to Python's: np.False_ means no, although it equals 0."""
    item = getattr(value, "item", None)
    return value if item is None else item()


def _sign(name: str, value: Any) -> float:
    """Return the value of one attribute as -1, 0 or +1."""
    if isinstance(value, bool):
        return 1.0 if value else -1.0
    signs = {"yes": 1.0, "no": -1.0, None: 0.0, 1: 1.0, -1: -1.0, 0: 0.0}
    if value in signs:
        return signs[value]
    raise ValueError(f"{name}={value!r}: use True, False or None, or 1, -1 or 0")
