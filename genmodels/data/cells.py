"""Labels and captions as other programs write them: numbers, texts, lists of texts, or nothing."""

from __future__ import annotations

from typing import Any


def class_of(value: Any) -> str | None:
    """Return the name of a class as text, or None if it is unknown: absent, empty or negative.

    Raises:
        ValueError: if it is neither an integer nor a text.
    """
    if isinstance(value, float) and (value != value or value.is_integer()):  # integers with gaps, in pandas
        value = None if value != value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise ValueError(f"the label {str(value)[:40]!r} is neither an integer nor a text")
    text = "" if value is None else str(value).strip()
    return None if not text or (text[0] == "-" and text[1:].isdecimal()) else text


def captions_of(value: Any) -> tuple[str, ...]:
    """Return the captions of an image, of which there may be none.

    Raises:
        ValueError: if they are neither a text nor a list of texts.
    """
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the caption {str(value)[:40]!r} is neither a text nor a list of texts")
    return tuple(text for text in texts if text.strip())
