"""Chat tokenizers: conversations about images as token ids, in the template of LLaVA.

    tokenizer = shipped_chat()
    text = tokenizer.encode([(Turn("<image>\\nIs this person smiling?", "Yes."),)], image_tokens=16)

The template is that of LLaVA 1.5 (arXiv 2310.03744), without a system prompt:

    USER: <image>
    QUESTION ASSISTANT: ANSWER</s>USER: QUESTION ASSISTANT: ANSWER</s>

where </s> is the tokenizer's end token. `<image>` is one token, which stands for the features of a
part of the image, and is repeated once for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, decoders, processors
from torch import Tensor

from genmodels.conditions import Text
from genmodels.data.conversations import IMAGE, Conversation, Turn
from genmodels.reading import in_one_line, read_text
from genmodels.text import END, MARK, START, TOKENIZER, content_hash, shipped
from genmodels.writing import write_text

USER, ASSISTANT = "USER:", "ASSISTANT:"
_ENDS = (END, "</s>", "<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<eos>")
"""End tokens of published tokenizers, in order of precedence."""
_STARTS = (START, "<s>", "<|begin_of_text|>", "<bos>")


class ChatTokenizer:
    """Turns conversations and sentences into token ids, and ids into sentences.

    Attributes:
        vocabulary: number of tokens; all ids are smaller.
        start: id of the token that starts a sequence; None if the tokenizer has none.
        end: id of the token that ends answers and sentences. Rows are padded with it.
        image: id of the token that stands for a part of the image.
        length: number of tokens that prompts of images should not exceed, as captions do not.
        added: number of tokens that were added to those of the backend: 1 if it had no `<image>`.

    Args:
        backend: tokenizer of the `tokenizers` library. `<image>` is added if it is missing.

    Raises:
        ValueError: if it has no end token, or does not encode its end token as one token.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        backend.no_truncation()
        backend.no_padding()
        self.length = shipped().length
        self.added = int(backend.token_to_id(IMAGE) is None)
        if self.added:
            backend.add_special_tokens([AddedToken(IMAGE, normalized=False, special=True)])
        ends = [token for token in _ENDS if backend.token_to_id(token) is not None]
        if not ends:
            raise ValueError(f"the tokenizer has no end token; known: {', '.join(_ENDS)}")
        starts = [token for token in _STARTS if backend.token_to_id(token) is not None]
        self._backend = backend
        self.end_text = ends[0]
        self.vocabulary: int = backend.get_vocab_size()
        self.start: int | None = backend.token_to_id(starts[0]) if starts else None
        self.end, self.image = (int(backend.token_to_id(token) or 0) for token in (self.end_text, IMAGE))
        for token, number in ((self.end_text, self.end), (IMAGE, self.image)):
            if backend.encode(token, add_special_tokens=False).ids != [number]:
                raise ValueError(f"the tokenizer does not encode {token} as one token")

    # ---- conversations ----

    def encode(self, conversations: Sequence[Conversation], image_tokens: int = 1) -> Text:
        """Tokenize N conversations, padded on the right to the longest: ids, mask and learned (N, L).

        `learned` is True at the tokens of answers, with the end token of each. If the last answer
        of a conversation is empty, the row ends where the answer is to begin.

        Args:
            conversations: the conversations.
            image_tokens: number of tokens of an image.
        """
        rows = [self._encode(turns, image_tokens) for turns in conversations]
        return self._padded(rows)

    def prompt(self, conversation: Conversation, image_tokens: int = 1) -> list[int]:
        """Return the ids of a conversation whose last answer is to be generated."""
        return self._encode((*conversation[:-1], Turn(conversation[-1].question)), image_tokens)[0]

    def sentences(self, texts: Sequence[str]) -> Text:
        """Tokenize N plain sentences. All tokens but the first are learned."""
        rows = []
        for text in texts:
            ids = self._ids(text + self.end_text).ids
            rows.append((ids, [False, *[True] * (len(ids) - 1)]))
        return self._padded(rows)

    def _encode(self, turns: Conversation, image_tokens: int) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation, and which of them are learned.

        The whole text is tokenized at once, as transformers does, and answers are found by the
        positions of their characters.
        """
        text, spans = "", []
        for place, turn in enumerate(turns):
            text += f"{USER} {turn.question} {ASSISTANT}".replace(IMAGE, IMAGE * image_tokens)
            if turn.answer or place < len(turns) - 1:
                begin = len(text)
                text += f" {turn.answer}{self.end_text}".replace(IMAGE, IMAGE * image_tokens)
                spans.append((begin, len(text)))
        encoding = self._ids(text)
        learned = [False] * len(encoding.ids)
        for place, (begin, end) in enumerate(encoding.offsets):
            learned[place] = end > begin and any(first <= begin and end <= last for first, last in spans)
        return encoding.ids, learned

    def _ids(self, text: str) -> Any:
        try:
            return self._backend.encode(text)
        except (TypeError, UnicodeEncodeError):
            raise ValueError("a text is not valid Unicode: it has half of a pair of surrogates") from None

    def _padded(self, rows: Sequence[tuple[list[int], list[bool]]]) -> Text:
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), longest), self.end)
        mask, learned = (torch.zeros(len(rows), longest, dtype=torch.bool) for _ in range(2))
        for row, (values, answers) in enumerate(rows):
            ids[row, : len(values)] = torch.tensor(values)
            mask[row, : len(values)] = True
            learned[row, : len(answers)] = torch.tensor(answers)
        return Text(ids, mask, learned)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Return the text of tokens, up to the first end token. Image tokens and other special
        tokens are left out.

        Raises:
            ValueError: for an id outside the vocabulary.
        """
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if outside := [i for i in numbers if not 0 <= i < self.vocabulary]:
            raise ValueError(f"{outside[0]} is not the id of a token: there are {self.vocabulary:,}")
        if self.end in numbers:
            numbers = numbers[: numbers.index(self.end)]
        text = self._backend.decode(numbers, skip_special_tokens=True)
        return tidy(text) if self._splits_words else str(text).strip()

    @cached_property
    def _splits_words(self) -> bool:
        """Whether the tokenizer separates words and punctuation and ignores case, as CLIP's does."""
        return bool(getattr(self._backend.model, "end_of_word_suffix", None))

    # ---- files ----

    @cached_property
    def hash(self) -> str:
        """16 hex digits that identify the tokens, their merges, and how texts are normalised."""
        return content_hash(self._backend)

    def check(self, expected: str, where: str) -> None:
        """Raise ValueError if the hash is not `expected`; the message says `where` it is from."""
        if self.hash != expected:
            raise ValueError(
                f"{where} is not the tokenizer that these weights were trained with (hash {self.hash}, not {expected})"
            )

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into a folder, atomically."""
        write_text(folder / TOKENIZER, self._backend.to_str(pretty=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        """Read tokenizer.json of a folder.

        Raises:
            ValueError: if it is missing, or not a tokenizer; names it.
        """
        file = folder / TOKENIZER
        if not file.is_file():
            raise ValueError(f"{folder} has no {TOKENIZER}, the tokenizer of this model")
        try:
            return cls(tokenizers.Tokenizer.from_str(read_text(file)))
        except OSError:
            raise
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"{file} is not a tokenizer of a language model: {in_one_line(error)}") from None

    def special_tokens(self) -> Mapping[str, str]:
        """Return the special tokens by the names that transformers gives them."""
        start = {} if self.start is None else {"bos_token": str(self._backend.id_to_token(self.start))}
        return start | {"eos_token": self.end_text, "pad_token": self.end_text}


def tidy(text: str) -> str:
    """Write a text of separated, lower-case pieces as sentences: "yes , he is ." -> "Yes, he is."."""
    text = re.sub(r"\s+", " ", text.replace(MARK, " ")).strip()
    text = re.sub(r" ([,.?!:;)])", r"\1", text)
    text = re.sub(r"\( ", "(", text)
    text = re.sub(r"(?<=\w) - (?=\w)", "-", text)
    text = re.sub(r" (') ?(?=(?:s|t|re|ve|m|ll|d)\b)", r"\1", text)
    return re.sub(r"(^|[.?!] )([a-z])", lambda found: found[1] + found[2].upper(), text)


@cache
def shipped_chat() -> ChatTokenizer:
    """Return the chat tokenizer of the package: its tokenizer with tokens for the image and the two
    sides of a conversation."""
    backend = tokenizers.Tokenizer.from_str(shipped().to_json())
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (IMAGE, USER, ASSISTANT)]
    )
    start = backend.token_to_id(START)
    backend.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, start)])
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(MARK, " ")])
    return ChatTokenizer(backend)
