"""Tokenizers: sentences as sequences of integers, by byte-level BPE with CLIP's conventions.

    tokenizer = shipped()
    text = tokenizer(["a smiling woman with glasses"])    # ids and mask, both (1, 64)

CLIP's conventions (arXiv 2103.00020): Unicode is normalised (NFC) and lower-cased; words, digits
and runs of other characters are separate pieces; the UTF-8 bytes of each piece are merged by BPE,
where the last symbol of a piece has the mark </w>; and a text is put between <|startoftext|> and
<|endoftext|>. The ids equal those of transformers' CLIPTokenizer on the same vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from genmodels.conditions import Text
from genmodels.reading import in_one_line, parse_json, read_json, read_text
from genmodels.writing import write_text

TOKENIZER = "tokenizer.json"
"""Name of the file of a tokenizer, beside the weights of its model."""
VOCABULARY, MERGES = "vocab.json", "merges.txt"
"""Names of the two files of CLIP's older layout."""
START, END = "<|startoftext|>", "<|endoftext|>"
MARK = "</w>"
"""Mark of the end of a word."""
CLIP_LENGTH = 77
"""Context of CLIP's text encoders, in tokens, which their files do not name."""
_SHIPPED = Path(__file__).parent / TOKENIZER
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_PROBE = "Its  ÉTÉ 2,048: naïve's \u65e5\u672c don't <|endoftext|>"
"""A text on which tokenizers differ if they normalise or split texts in other ways."""


class Tokenizer:
    """Turns sentences into token ids of one length, and ids into sentences.

    Attributes:
        length: largest number of tokens of a text, with start and end: the context.
        vocabulary: number of tokens; all ids are smaller.
        start, end: ids of the tokens that start and end each text. Texts are padded with `end`.

    Args:
        backend: tokenizer of the `tokenizers` library.
        length: the context. None: the length to which the backend pads, or else that of CLIP.

    Raises:
        ValueError: if the backend does not start and end texts with CLIP's tokens, or lacks a byte,
            with or without the mark of the end of a word. Texts with this byte could then not be
            told apart.
    """

    def __init__(self, backend: tokenizers.Tokenizer, length: int | None = None):
        padding = backend.padding or {}
        self.length: int = length or padding.get("length") or CLIP_LENGTH
        self.vocabulary = backend.get_vocab_size()
        self.start, self.end = (_id(backend, token) for token in (START, END))
        backend.no_truncation()
        backend.enable_padding(length=self.length, pad_id=self.end, pad_token=END)
        self._backend = backend
        mark = getattr(backend.model, "end_of_word_suffix", None) or ""
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        missing = [form for letter in letters for form in {letter, letter + mark} if backend.token_to_id(form) is None]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {len(missing)} of the {512 if mark else 256} forms of bytes, such as "
                f"{min(missing)!r}: texts with them would all become the same tokens"
            )
        ids = backend.encode("a").ids
        if ids[0] != self.start or ids[2] != self.end:
            raise ValueError(f"the tokenizer does not put texts between {START} and {END}")

    def __call__(self, texts: Sequence[str]) -> Text:
        """Tokenize N texts: ids and mask (N, length). The mask is True up to the first end token.

        Raises:
            ValueError: for an empty text, or one with more than `length` tokens. Nothing is cut
                off.
        """
        for text in texts:
            if not text.strip():
                raise ValueError("a text is empty: describe the image in words")
        try:
            rows = [encoding.ids for encoding in self._backend.encode_batch(list(texts))]
        except (TypeError, UnicodeEncodeError):
            raise ValueError("a text is not valid Unicode: it has half of a pair of surrogates") from None
        for text, row in zip(texts, rows, strict=True):
            if row[1] == self.end:
                raise ValueError(f"the text {text[:40]!r} has no tokens: describe the image in words")
            if len(row) > self.length:
                raise ValueError(
                    f"the text {text[:40]!r}... has {len(row) - 2:,} tokens, and the context is {self.length - 2} "
                    "besides the start and the end: shorten it"
                )
        ids = torch.tensor(rows).reshape(len(rows), self.length)  # (N, L)
        ends = ids == self.end
        return Text(ids, ends.cumsum(1) - ends.long() == 0)

    def decode(self, ids: Tensor) -> list[str]:
        """Return the texts of ids (N, L), each up to its first end token; in lower case, with a
        space between the pieces.

        Raises:
            ValueError: for an id outside the vocabulary, or a row without an end token.
        """
        texts = []
        for row in ids.tolist():
            if outside := [i for i in row if not 0 <= i < self.vocabulary]:
                raise ValueError(f"{outside[0]} is not the id of a token: there are {self.vocabulary:,}")
            if self.end not in row:
                raise ValueError(f"a row of ids has no end token ({self.end})")
            tokens = [i for i in row[: row.index(self.end)] if i != self.start]
            texts.append(self._backend.decode(tokens, skip_special_tokens=False).replace(MARK, " ").strip())
        return texts

    @cached_property
    def hash(self) -> str:
        """16 hex digits that identify the tokens, their merges, the context, and how texts are
        normalised. They do not depend on the version of the library."""
        return content_hash(self._backend, self.length)

    def to_json(self) -> str:
        """Return the content of tokenizer.json."""
        return str(self._backend.to_str(pretty=False))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into a folder, atomically."""
        write_text(folder / TOKENIZER, self.to_json() + "\n")

    @classmethod
    def beside_weights(cls, folder: Path, expected: str) -> Tokenizer:
        """Read tokenizer.json of a model folder.

        Args:
            folder: the folder.
            expected: hash of the tokenizer that the weights were trained with.

        Raises:
            ValueError: if it is missing, or is another tokenizer.
        """
        file = folder / TOKENIZER
        if not file.is_file():
            raise ValueError(f"{folder} has no {TOKENIZER}, the tokenizer of this model: save the model again")
        tokenizer = cls.load(file)
        tokenizer.check(expected, str(file))
        return tokenizer

    def check(self, expected: str, where: str) -> None:
        """Raise ValueError if the hash is not `expected`; the message says `where` it is from."""
        if self.hash != expected:
            raise ValueError(
                f"{where} is not the tokenizer that these weights were trained with (hash {self.hash}, not {expected})"
            )

    @classmethod
    def load(cls, path: str | Path, length: int | None = None) -> Tokenizer:
        """Read a tokenizer: a tokenizer.json, or a folder with one or with vocab.json and merges.txt.

        Args:
            path: file or folder.
            length: the context. None: that of the file, or else of CLIP.

        Raises:
            FileNotFoundError: if it does not exist.
            ValueError: if it is no tokenizer, or not one with CLIP's conventions; names the file.
        """
        path = Path(path)
        file = path / TOKENIZER if path.is_dir() else path
        if path.is_dir() and not file.is_file() and (path / VOCABULARY).is_file():
            file = path / VOCABULARY
        try:
            return cls(_read(file), length)
        except OSError:
            raise
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"{file} is not a tokenizer with CLIP's conventions: {in_one_line(error)}") from None


def content_hash(backend: tokenizers.Tokenizer, *more: int) -> str:
    """Return 16 hex digits that identify what a tokenizer does, and `more` numbers. They do not
    depend on the version of the library."""
    model = parse_json(backend.to_str())["model"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])]
    content = [sorted(backend.get_vocab().items()), merges, *more, backend.encode(_PROBE).tokens]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    number = backend.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return int(number)


def _read(file: Path) -> tokenizers.Tokenizer:
    """Read a tokenizer.json, or a vocab.json and the merges.txt beside it."""
    if file.name != VOCABULARY:
        return tokenizers.Tokenizer.from_str(read_text(file))
    lines = read_text(file.parent / MERGES).splitlines()
    pairs = (line.partition(" ") for line in lines if line and not line.startswith("#version"))
    return build(read_json(file), [(first, second) for first, _, second in pairs])


def build(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Return the byte-level BPE tokenizer with CLIP's conventions of a vocabulary and its merges."""
    model = models.BPE(
        vocab=dict(vocabulary), merges=list(merges), unk_token=END, end_of_word_suffix=MARK, fuse_unk=False
    )
    backend = tokenizers.Tokenizer(model)
    prepare(backend)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in (START, END)])
    backend.post_processor = processors.RobertaProcessing(
        (END, _id(backend, END)), (START, _id(backend, START)), trim_offsets=False, add_prefix_space=False
    )
    return backend


def prepare(backend: tokenizers.Tokenizer) -> None:
    """Let a tokenizer normalise texts and split them into pieces as CLIP does."""
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


@cache
def shipped() -> Tokenizer:
    """Return the tokenizer of the package, which recipes/text/tokenizer.py trained."""
    return Tokenizer.load(_SHIPPED)
