"""Chat tokenizers and conversations: template, spans of answers, round trips, and files."""

from __future__ import annotations

import json
import re

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from genmodels.chat import ChatTokenizer, shipped_chat, tidy
from genmodels.data.conversations import (
    IMAGE,
    Turn,
    check_conversation,
    from_line,
    parse_conversation,
    read_conversations,
    to_line,
    with_image,
)
from genmodels.text import shipped

SMILING = Turn(f"{IMAGE}\nIs this person smiling?", "Yes, she's happy.")
HAIR = Turn("What colour is the hair?", "Blond.")


def pieces(ids) -> list[str]:
    return [shipped_chat()._backend.id_to_token(i) for i in ids]


def test_the_template_and_the_tokens_that_are_learned():
    text = shipped_chat().encode([(SMILING, HAIR)], image_tokens=2)
    words = pieces(text.ids[0].tolist())
    assert words[:4] == ["<|startoftext|>", "USER:", "<image>", "<image>"]
    learned = [word for word, is_learned in zip(words, text.learned[0].tolist(), strict=True) if is_learned]
    answer = ["yes</w>", ",</w>", "she</w>", "'s</w>", "happy</w>", ".</w>", "<|endoftext|>"]
    assert learned == [*answer, "blond</w>", ".</w>", "<|endoftext|>"]
    assert words.count("ASSISTANT:") == 2 and not {"<image>", "ASSISTANT:"} & set(learned)


def test_padding_is_neither_real_nor_learned():
    text = shipped_chat().encode([(SMILING, HAIR), (Turn(f"{IMAGE}\nHi?", "No."),)])
    length = int(text.mask[1].sum())
    assert not text.mask[1, length:].any() and not text.learned[1, length:].any()
    assert (text.ids[1, length:] == shipped_chat().end).all() and text.mask[0].all()


def test_a_prompt_ends_where_the_answer_begins():
    whole = shipped_chat().encode([(SMILING, HAIR)], 3)
    first = int(whole.learned[0].nonzero()[-3])
    assert shipped_chat().prompt((SMILING, Turn(HAIR.question, "ignored")), 3) == whole.ids[0, :first].tolist()


def test_answers_come_back():
    text = shipped_chat().encode([(Turn(f"{IMAGE}\nWho?", "A clean-shaven man, not old (young). He isn't old."),)])
    answer = "A clean-shaven man, not old (young). He isn't old."
    assert shipped_chat().decode(text.ids[0][text.learned[0]]) == answer
    assert tidy("yes</w>,</w>she</w>is</w>.</w>") == "Yes, she is."


def test_the_tokens_of_sentences_are_those_of_the_package():
    text = shipped_chat().sentences(["a smiling woman"])
    ids = shipped()(["a smiling woman"]).ids[0]
    assert text.ids[0].tolist() == ids[: text.ids.shape[1]].tolist()
    assert text.learned[0].tolist() == [False] + [True] * 4


def llama_like(end: str = "</s>") -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer without merges, as those of Llama."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", end])
    return backend


def test_another_tokenizer_learns_the_same_characters():
    tokenizer = ChatTokenizer(llama_like())
    assert tokenizer.added == 1 and tokenizer.vocabulary == 259 and tokenizer.start == 256
    text = tokenizer.encode([(SMILING, HAIR)], 2)
    assert (text.ids == tokenizer.image).sum() == 2
    spans = text.ids[0][text.learned[0]].tolist()
    assert spans.count(tokenizer.end) == 2
    assert tokenizer.decode(spans) == "Yes, she's happy."  # as it was written: this tokenizer keeps the case


def test_the_tokenizer_is_saved_and_checked(tmp_path):
    shipped_chat().save(tmp_path)
    assert ChatTokenizer.load(tmp_path).hash == shipped_chat().hash
    with pytest.raises(ValueError, match="is not the tokenizer that these weights were trained with"):
        ChatTokenizer(llama_like()).check(shipped_chat().hash, "it")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer of a language model"):
        ChatTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        ChatTokenizer.load(tmp_path / "none")


def test_bad_tokens_and_tokenizers_are_refused():
    with pytest.raises(ValueError, match="2051 is not the id of a token: there are 2,051"):
        shipped_chat().decode([2051])
    with pytest.raises(ValueError, match="has no end token"):
        ChatTokenizer(llama_like("<stop>"))
    with pytest.raises(ValueError, match="not valid Unicode"):
        shipped_chat().sentences(["\ud800"])


# ---- conversations ----


def test_a_question_gets_its_image_once():
    assert with_image("Who?") == f"{IMAGE}\nWho?" and with_image(f"Who? {IMAGE}") == f"Who? {IMAGE}"
    with pytest.raises(ValueError, match="contains <image> 2 times"):
        with_image(f"{IMAGE}{IMAGE} Who?")
    with pytest.raises(ValueError, match="the question is empty"):
        with_image(f" {IMAGE}\n")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((), "no turns"),
        ((Turn("Who?", "He."),), "once, in its first question, and this one has it 0 times"),
        ((SMILING, Turn(f"{IMAGE} again?", "No.")), "has it 2 times"),
        ((SMILING, Turn("Again?", IMAGE)), "an answer contains <image>"),
    ],
)
def test_conversations_need_one_image(turns, reason):
    with pytest.raises(ValueError, match=reason):
        check_conversation(turns)


MESSAGES = [{"from": "human", "value": f"{IMAGE}\nWho?"}, {"from": "gpt", "value": "A man."}]


def test_llavas_format_comes_back():
    turns = parse_conversation(MESSAGES)
    assert turns == (Turn(f"{IMAGE}\nWho?", "A man."),) and from_line(to_line(turns)) == turns
    assert json.loads(to_line(turns)) == MESSAGES


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hi", "must be a list of pairs"),
        (MESSAGES[:1], "must be a list of pairs"),
        ([{"from": "system", "value": "x"}, MESSAGES[1]], "message 1 is from 'system', expected human or gpt"),
        ([*MESSAGES, MESSAGES[1], MESSAGES[1]], "message 3 is from gpt, and human and gpt must take turns"),
        ([MESSAGES[0], {"from": "gpt", "value": " "}], "message 2 is empty"),
        ([{"from": "human", "value": "Who?"}, MESSAGES[1]], "has it 0 times"),
    ],
)
def test_wrong_messages_are_refused(messages, reason):
    with pytest.raises(ValueError, match=reason):
        parse_conversation(messages)


def test_a_file_counts_and_names_what_cannot_be_used():
    good = {"image": "a.png", "conversations": MESSAGES}
    lines = [good, {"conversations": MESSAGES}, {**good, "conversations": [{"from": "bot", "value": "x"}] * 2}]
    content = "\n".join(map(json.dumps, lines)).encode()
    message = 'f.jsonl: 2 of 3 conversations cannot be used, such as line 2: it has no "image", the name of a file'
    with pytest.raises(ValueError, match=re.escape(message)):
        read_conversations(content, "f.jsonl", [])
    for whole in (json.dumps(good).encode(), json.dumps([good]).encode()):
        columns, (row,) = read_conversations(whole, "f.jsonl", [])
        assert columns == ["conversations"] and row.file == "a.png" and from_line(row.cells[0])[0].answer == "A man."


def test_a_line_may_hold_any_separator_of_lines():
    """JSON allows U+2028 and U+0085 in strings, at which str.splitlines divides."""
    messages = [{"from": "human", "value": f"{IMAGE}\nWho\u2028is\x85this?"}, MESSAGES[1]]
    line = json.dumps({"image": "a.png", "conversations": messages}, ensure_ascii=False)
    _, rows = read_conversations(f"{line}\r\n\n{line}\n".encode(), "f.jsonl", [])
    assert [row.line for row in rows] == [1, 3]
    assert from_line(rows[0].cells[0])[0].question == f"{IMAGE}\nWho\u2028is\x85this?"


def test_a_list_that_is_damaged_is_named():
    with pytest.raises(ValueError, match="f.json is not a list of conversations in JSON: Expecting"):
        read_conversations(b'[{"image": ', "f.json", [])
    with pytest.raises(ValueError, match="2 of 2 conversations cannot be used, such as entry 1: it has no"):
        read_conversations(b"[{}, 3]", "f.json", [])
