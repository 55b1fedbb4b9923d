"""Conversations about an image: questions and answers, in the format that LLaVA published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from genmodels.data.tables import Row, decode_text
from genmodels.reading import parse_json

IMAGE = "<image>"
"""Where the image is in the first question of a conversation."""
DRAW = "Draw this: {}"
"""Question whose answer is an image."""
PEOPLE = ("human", "gpt")
"""Roles of the two sides, as in LLaVA's files."""


class Turn(NamedTuple):
    """One question and its answer. The answer is empty where it is to be generated."""

    question: str
    answer: str = ""


Conversation = tuple[Turn, ...]


def with_image(question: str) -> str:
    """Return a question about an image, with `<image>` in front if it is not in the question.

    Raises:
        ValueError: if the question is empty, or contains the image several times.
    """
    if not question.replace(IMAGE, "").strip():
        raise ValueError("the question is empty: ask something about the image")
    if (count := question.count(IMAGE)) > 1:
        raise ValueError(f"the question {question[:40]!r} contains {IMAGE} {count} times: it is about one image")
    return question if count else f"{IMAGE}\n{question}"


def check_conversation(turns: Sequence[Turn]) -> None:
    """Raise ValueError unless a conversation has turns, and the image once, in its first question."""
    if not turns:
        raise ValueError("a conversation has no turns")
    counts = [turn.question.count(IMAGE) for turn in turns]
    if any(IMAGE in turn.answer for turn in turns):
        raise ValueError(f"an answer contains {IMAGE}: only the first question may")
    if counts[0] != 1 or any(counts[1:]):
        raise ValueError(
            f"a conversation needs {IMAGE} once, in its first question, and this one has it {sum(counts)} times: "
            f"{turns[0].question[:40]!r}"
        )


def parse_conversation(messages: Any) -> Conversation:
    """Convert the `conversations` of one line of LLaVA's format: alternating messages of human and
    gpt, such as [{"from": "human", "value": "<image>\\nWho is this?"}, ...].

    Raises:
        ValueError: for another structure, an unknown role, an empty text, or an image that is
            absent or repeated.
    """
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise ValueError("conversations must be a list of pairs of messages, of human and then of gpt")
    texts = []
    for place, message in enumerate(messages):
        role, text = (message.get(key) if isinstance(message, dict) else None for key in ("from", "value"))
        if role not in PEOPLE:
            raise ValueError(f"message {place + 1} is from {str(role)[:40]!r}, expected {' or '.join(PEOPLE)}")
        if role != PEOPLE[place % 2]:
            raise ValueError(f"message {place + 1} is from {role}, and human and gpt must take turns")
        if not isinstance(text, str) or not text.replace(IMAGE, "").strip():
            raise ValueError(f"message {place + 1} is empty")
        texts.append(text)
    turns = tuple(Turn(*texts[start : start + 2]) for start in range(0, len(texts), 2))
    check_conversation(turns)
    return turns


def to_messages(turns: Conversation) -> list[dict[str, str]]:
    """Convert a conversation to LLaVA's format: the inverse of `parse_conversation`."""
    return [{"from": role, "value": text} for turn in turns for role, text in zip(PEOPLE, turn, strict=True)]


def to_line(turns: Conversation) -> str:
    """Return a conversation as one string, as packed data store it."""
    return json.dumps(to_messages(turns), ensure_ascii=False)


def read_conversations(data: bytes, where: str, notes: list[str]) -> tuple[list[str], list[Row]]:
    """Read a file of conversations in LLaVA's format: one JSON object per line, or a list of them,
    each with `image`, the name of a file, and `conversations`.

    Args:
        data: content of the file.
        where: its path, for messages.
        notes: receives a line for each decision that its author should know of.

    Returns:
        The names of the columns, and one row per conversation: its number (of the line, or of the
        entry in the list), image, and the conversation as one string.

    Raises:
        ValueError: if a conversation is malformed; gives their number, and the reason of the first.
    """
    text = decode_text(data, where, notes)
    is_list = text.lstrip().startswith("[")
    if is_list:
        try:
            lines = list(enumerate(map(json.dumps, parse_json(text)), 1))
        except ValueError as error:
            raise ValueError(f"{where} is not a list of conversations in JSON: {error}") from None
    else:
        # Not splitlines, which also divides at characters that JSON allows in a string, such as U+2028.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows, wrong = [], []
    for number, line in lines:
        try:
            record = parse_json(line)
            image = record.get("image") if isinstance(record, dict) else None
            if not isinstance(image, str) or not image.strip():
                raise ValueError('it has no "image", the name of a file')
            rows.append(Row(number, image, [to_line(parse_conversation(record.get("conversations")))]))
        except ValueError as error:
            wrong.append(f"{'entry' if is_list else 'line'} {number}: {error}")
    if wrong:
        raise ValueError(f"{where}: {len(wrong):,} of {len(lines):,} conversations cannot be used, such as {wrong[0]}")
    return ["conversations"], rows


def from_line(line: str) -> Conversation:
    """Return the conversation of a string of `to_line`."""
    return parse_conversation(json.loads(line))
