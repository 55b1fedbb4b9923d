"""What a visitor can choose for a model, from its sampling options and its conditions."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from genmodels.conditions import ConditionConfig

RANGES = {
    "temperature": (0.0, 1.5, 0.05),
    "guidance": (0.0, 10.0, 0.25),
    "steps": (1, 100, 1),
    "eta": (0.0, 1.0, 0.05),
    "top_p": (0.05, 1.0, 0.05),
    "min_p": (0.0, 1.0, 0.01),
    "guidance_rescale": (0.0, 1.0, 0.05),
    "resample": (1, 10, 1),
}
"""Lowest and highest value of a slider, and its step. Other numbers are typed."""
FIRST = ("temperature", "guidance", "negative", "steps")
"""Options that are always in view, in this order. The others are behind "More options"."""
FOR_CONDITIONS = ("guidance", "guidance_low", "guidance_high", "guidance_rescale", "negative")
"""Options without effect on a model without conditions."""
ONLY = {"resample": "inpaint"}
"""Options of one ability only."""
LARGEST = 2**53
"""Largest whole number of the page: above it, the numbers of browsers are not exact."""
MOST_CLASSES = 2_000
"""Largest number of classes that are listed. Of more, a name or a number is typed."""


@dataclasses.dataclass(frozen=True)
class Control:
    """One thing to choose.

    Attributes:
        name: option of the model.
        kind: "slider", "number", "whole" (a whole number), "choice", "text" or "switch".
        default: its value if nothing is chosen.
        about: what it does, in one sentence.
        choices: values of a "choice".
        range: lowest and highest value and step of a "slider".
        first: whether it is always in view.
    """

    name: str
    kind: Literal["slider", "number", "whole", "choice", "text", "switch"]
    default: Any
    about: str = ""
    choices: tuple[Any, ...] = ()
    range: tuple[float, float, float] = (0, 1, 0.1)
    first: bool = False

    @property
    def title(self) -> str:
        """Its name as a label."""
        return self.name.replace("_", " ").capitalize()

    def value(self, given: Any) -> Any:
        """Return a value of the page as the option takes it, rounded as the command line shows it.

        Raises:
            ValueError: if it is not a number, or no whole number, and the option is.
        """
        if given is None or given == "":
            return "" if self.kind == "text" else self.default
        if self.kind in ("text", "choice", "switch"):
            return given
        try:
            number = float(f"{float(given):.6g}")
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{self.title} must be a number, got {given!r}") from None
        whole = self.kind == "whole" or isinstance(self.default, int)
        return whole_number(number, self.title) if whole else number


def option_controls(model: Any, ability: str = "sample") -> list[Control]:
    """Return a control for each sampling option of a model that has an effect on an ability.

    Paths, such as that of a guiding model, are left to the command line.
    """
    kind = model.options_class
    docs, hints = field_docs(kind), get_type_hints(kind)
    controls = []
    for field in dataclasses.fields(kind):
        without = field.name in FOR_CONDITIONS and model.conditions.is_empty
        textless = field.name == "negative" and not model.can("tokenize")
        if without or textless or ONLY.get(field.name, ability) != ability:
            continue
        default = getattr(kind(), field.name)
        if control := _control(field.name, hints[field.name], default, docs.get(field.name, "")):
            controls.append(control)
    order = {name: place for place, name in enumerate(FIRST)}
    return sorted(controls, key=lambda control: order.get(control.name, len(order)))


def _control(name: str, hint: Any, default: Any, about: str) -> Control | None:
    """Return the control of an option of type `hint`, or None if a page cannot offer it."""
    types = [kind for kind in get_args(hint) if kind is not NoneType]
    optional = NoneType in get_args(hint)
    if optional and len(types) == 1:
        hint = types[0]
    settings: dict[str, Any] = {"name": name, "default": default, "about": about, "first": name in FIRST}
    if get_origin(hint) is Literal:
        return Control(kind="choice", choices=(*([None] if optional else []), *get_args(hint)), **settings)
    if hint is bool:
        return Control(kind="switch", **settings)
    if hint in (int, float):
        if name in RANGES and not optional:
            return Control(kind="slider", range=RANGES[name], **settings)
        return Control(kind="whole" if hint is int else "number", **settings)
    return Control(kind="text", **settings) if hint is str else None


def field_docs(kind: type) -> dict[str, str]:
    """Return the first sentence of the docstring of each field of a dataclass, by name.

    Fields of base classes are included. A class without source has none.
    """
    docs: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                sentence = " ".join(str(text.value.value).split()).partition(". ")[0]
                docs[ast.unparse(field.target)] = sentence.rstrip(".") + "."
    return docs


def class_choices(conditions: ConditionConfig) -> list[str]:
    """Return the names of the classes of a model, or their numbers; [] if there are none, or too
    many to list."""
    if conditions.classes > MOST_CLASSES:
        return []
    return list(conditions.class_names) or [str(number) for number in range(conditions.classes)]


def condition_values(
    present: Sequence[str] = (), absent: Sequence[str] = (), label: str | None = None, prompt: str | None = None
) -> dict[str, Any]:
    """Return what a visitor chose, as `ConditionConfig.condition` takes it.

    Args:
        present: attributes that the images should have.
        absent: attributes that they should not have.
        label: name or number of a class.
        prompt: a sentence.

    Raises:
        ValueError: if an attribute is both.
    """
    if both := set(present) & set(absent):
        raise ValueError(f"{min(both)} is chosen both as present and as absent: choose one of them")
    values: dict[str, Any] = dict.fromkeys(present, "yes") | dict.fromkeys(absent, "no")
    further = {"label": (label or "").strip(), "prompt": (prompt or "").strip()}
    return values | {name: text for name, text in further.items() if text}


def chosen_options(controls: Sequence[Control], given: Sequence[Any]) -> dict[str, Any]:
    """Return the options that differ from their defaults, by name."""
    values = {control.name: control.value(value) for control, value in zip(controls, given, strict=True)}
    return {control.name: values[control.name] for control in controls if values[control.name] != control.default}


def whole_number(given: Any, name: str = "the seed") -> int:
    """Return a number of the page as an int.

    Raises:
        ValueError: if it is not a whole number from -2^53 to 2^53.
    """
    if isinstance(given, (int, float)) and abs(given) > LARGEST:
        raise ValueError(f"{name} must be from {-LARGEST:,} to {LARGEST:,}: choose a smaller number")
    if not isinstance(given, (int, float)) or not float(given).is_integer():
        raise ValueError(f"{name} must be a whole number, got {given}")
    return int(given)


def flags(values: Mapping[str, Any]) -> list[str]:
    """Return flags of a command line, in order. A list gives several words, "" and None no flag."""
    words: list[str] = []
    for name, value in values.items():
        if value is None or value == "":
            continue
        flag = "--" + name.replace("_", "-")
        parts = [_word(part) for part in (value if isinstance(value, (list, tuple)) else [value])]
        # A value that begins with a dash would be read as a flag of its own.
        words += [f"{flag}={parts[0]}"] if len(parts) == 1 and parts[0].startswith("-") else [flag, *parts]
    return words


def condition_flags(values: Mapping[str, Any]) -> list[str]:
    """Return the flags of a condition, as `condition_values` returns it."""
    signs = [f"{name}={sign}" for name, sign in values.items() if name not in ("label", "prompt")]
    return flags({"attributes": ",".join(signs), "label": values.get("label"), "prompt": values.get("prompt")})


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
