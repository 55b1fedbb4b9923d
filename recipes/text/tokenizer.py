"""Tokenizer of captions: byte-level BPE of the caption grammar and of plain English words.

python recipes/text/tokenizer.py --output genmodels    # writes the tokenizer.json of the package
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import tyro
from tokenizers import models, pre_tokenizers, trainers

from genmodels.data.captions import CAPTIONED, captions
from genmodels.text import END, MARK, START, Tokenizer, build, prepare


@dataclass(frozen=True)
class TokenizerRecipe:
    """How the tokenizer is trained."""

    output: Path = Path("runs/tokenizer")
    """Folder that receives tokenizer.json."""
    vocabulary: int = 2048
    """Number of tokens, of which 512 are the bytes, and two start and end a text."""
    length: int = 64
    """Largest number of tokens of a text, the context."""
    captions: int = 20_000
    """Number of captions of random faces that it is trained on."""
    words: Path = Path(__file__).parent / "words.txt"
    """Text with further words that captions and questions may have."""
    repeats: int = 5
    """How often each of these words counts."""


def train(recipe: TokenizerRecipe) -> Tokenizer:
    """Train the tokenizer."""
    faces = np.random.default_rng(0).integers(-1, 2, (recipe.captions, len(CAPTIONED)))
    numbers = range(recipe.captions)
    texts = captions(faces, CAPTIONED, numbers, numbers, 0)
    texts += recipe.words.read_text(encoding="utf-8").split() * recipe.repeats
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=MARK))
    prepare(backend)
    # The trainer would keep only the bytes that it has met, and number them at random.
    letters = [letter + mark for mark in ("", MARK) for letter in sorted(pre_tokenizers.ByteLevel.alphabet())]
    size = recipe.vocabulary - 2
    trainer = trainers.BpeTrainer(vocab_size=size, end_of_word_suffix=MARK, special_tokens=letters, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    merges = [(first, second) for first, second in json.loads(backend.to_str())["model"]["merges"]]
    tokens = [*letters, *map("".join, merges), START, END]
    return Tokenizer(build({token: i for i, token in enumerate(tokens)}, merges), recipe.length)


if __name__ == "__main__":
    settings = tyro.cli(TokenizerRecipe)
    settings.output.mkdir(parents=True, exist_ok=True)
    train(settings).save(settings.output)
