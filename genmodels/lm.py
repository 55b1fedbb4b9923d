"""Language models: a causal transformer over the tokens of sentences and conversations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.chat import ChatTokenizer, shipped_chat
from genmodels.conditions import Text
from genmodels.data.conversations import IMAGE, Conversation, Turn
from genmodels.nn.documents import packed
from genmodels.nn.mixer import INIT_STD
from genmodels.nn.transformer import Transformer, TransformerConfig
from genmodels.saving import Derived
from genmodels.text import TOKENIZER
from genmodels.token_sampling import draw, filtered
from genmodels.types import Batch, Noise


@dataclass(frozen=True)
class LMConfig:
    """Architecture of a language model. What depends on the tokenizer is filled in from it."""

    size: Derived[int] = 64
    """Side of the images of the data, which are not read, from --size."""
    transformer: TransformerConfig = TransformerConfig(width=192, depth=4, heads=4)
    """Blocks of the transformer, which is causal."""
    context: int = 512
    """Largest number of tokens of a conversation, those of its image included."""
    documents: int = 1
    """Number of conversations that share a sequence in training, so that short ones are not padded to
    the longest. None sees another."""
    tied: bool = True
    """Whether the matrix of the token embeddings also computes the logits."""
    extra: Derived[int] = 0
    """Further tokens behind those of the tokenizer, such as the codes of images."""
    vocabulary: Derived[int] = 0
    """Number of tokens in the vocabulary, further ones included."""
    tokenizer: Derived[str] = ""
    """Hash of the tokenizer."""

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ValueError(f"context must be at least 2 tokens, got {self.context}")
        if self.documents < 1:
            raise ValueError(f"documents must be at least 1 conversation in a sequence, got {self.documents}")

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """Fields without effect, which are not recorded."""
        return ("documents",) if self.documents == 1 else ()


@dataclass(frozen=True)
class AnswerOptions:
    """How the tokens of an answer are chosen."""

    temperature: float = 0.0
    """0: the most likely token. Otherwise tokens are drawn, and logits are divided by it."""
    top_p: float = 1.0
    """Draw among the fewest tokens whose probabilities add up to this."""
    max_tokens: int = 96
    """Largest number of tokens of an answer."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


class LM(Model):
    """A language model: p(tokens) = prod_t p(token t | tokens before t).

    It is trained on the conversations that LLaVA is trained on, without their images, so that it
    knows the language before it sees an image.

    Args:
        config: architecture. What depends on the tokenizer is filled in.
        tokenizer: turns sentences into tokens. None: the one that ships with the package.

    Raises:
        ValueError: if the config belongs to another tokenizer, or does not fit together.
    """

    family = "lm"
    Config = LMConfig
    further_files: ClassVar[tuple[str, ...]] = (TOKENIZER,)

    def __init__(self, config: LMConfig | None = None, tokenizer: ChatTokenizer | None = None):
        config = config or LMConfig()
        given, tokenizer = tokenizer, tokenizer or shipped_chat()
        if not config.tokenizer:
            config = replace(config, vocabulary=tokenizer.vocabulary + config.extra, tokenizer=tokenizer.hash)
        super().__init__(config)
        self.tokens = tokenizer
        if given is not None:
            given.check(config.tokenizer, "the tokenizer")
        width = config.transformer.width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.transformer = Transformer(config.transformer, causal=True)
        self.head = None if config.tied else nn.Linear(width, config.vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=INIT_STD)

    # ---- training ----

    def read_conversations(self, conversations: Sequence[Conversation]) -> Text:
        """Tokenize conversations without their images. All tokens but the first are learned."""
        text = self.tokens.encode([without_image(turns) for turns in conversations])
        learned = text.mask.clone()
        learned[:, 0] = False
        return Text(text.ids, text.mask, learned)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean over images of the mean cross-entropy of their learned tokens, in nats.

        Raises:
            ValueError: if the batch has no conversations, or one is longer than the context.
        """
        text = conversations_in(batch, self.family)
        self.check_length(text.ids.shape[1])
        return self.token_loss(self.hidden(self.embedding(text.ids), text.mask), text)

    def token_loss(self, hidden: Tensor, text: Text) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of the learned tokens from the outputs (N, L, D) of the transformer."""
        assert text.learned is not None
        learned = text.learned[:, 1:]
        logits = self.logits(hidden[:, :-1][learned]).float()  # (M, V): of learned tokens only
        nats = F.cross_entropy(logits, text.ids[:, 1:][learned], reduction="none")  # (M,)
        row = learned.nonzero()[:, 0]
        counts = learned.sum(1).clamp(min=1)  # (N,)
        loss = (nats / counts[row]).sum() / len(counts)
        right = (logits.detach().argmax(-1) == text.ids[:, 1:][learned]).float()
        return loss, {
            "bits_per_token": loss.detach() / math.log(2),
            "accuracy": (right / counts[row]).sum() / len(counts),
        }

    @torch.no_grad()
    def measure(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return bits per token and accuracy on held-out conversations, means over `batches`."""
        rows = [self.loss(batch, "model")[1] for batch in batches]
        return {name: sum(float(row[name]) for row in rows) / len(rows) for name in ("bits_per_token", "accuracy")}

    # ---- generation ----

    def hidden(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs (N, L, D) of the transformer for token vectors (N, L, D), in sequences of several
        documents if the config says so.

        Args:
            x: token vectors, padded at the end.
            mask: bool (N, L), False at padding, whose outputs mean nothing. None: there is none.
        """
        if mask is None or self.config.documents == 1:
            return self.transformer(x)
        return packed(self.transformer, x, mask, self.config.documents)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the next token, from outputs of the transformer (..., D)."""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def check_length(self, tokens: int) -> None:
        """Raise ValueError if a sequence of so many tokens is longer than the context."""
        if tokens > self.config.context:
            raise ValueError(
                f"a conversation has {tokens:,} tokens, and the context of this {self.family} is "
                f"{self.config.context:,}: shorten the question"
            )

    def continued(self, rows: Sequence[Tensor], most: int, choose: Callable[[Tensor, int], Tensor]) -> Iterator[Tensor]:
        """Generate the next tokens of N sequences, with a cache, until all have ended.

        Args:
            rows: vectors of the tokens of each sequence, (L_i, D). They are padded on the left, and
                padding is masked, so that a row does not depend on the others.
            most: largest number of tokens.
            choose: logits (N, V) and the number of the step -> tokens (N,).

        Yields:
            The next token of each row, (N,); that of a row that has ended is the end token.

        Raises:
            ValueError: for a sequence longer than the context.
        """
        longest, device = max(map(len, rows)), rows[0].device
        self.check_length(longest)
        new = min(most, self.config.context - longest + 1)
        valid = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows], device=device)
        x = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])  # (N, L, D)
        positions = (valid.cumsum(1) - 1).clamp(min=0).unsqueeze(2)  # (N, L, 1)
        cache = self.transformer.make_cache(len(rows), longest + new)
        ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        # Rows of one length need no mask: the attention is then the fastest.
        padded = not bool(valid.all())
        for step in range(new):
            hidden = self.transformer(x, positions if padded else None, cache, valid=valid if padded else None)[:, -1]
            token = torch.where(ended, self.tokens.end, choose(self.logits(hidden), step))
            yield token
            ended = ended | (token == self.tokens.end)
            if bool(ended.all()):
                return
            x = self.embedding(token).unsqueeze(1)
            positions, valid = positions[:, -1:] + 1, torch.ones_like(valid[:, :1])

    @torch.inference_mode()
    def complete(self, texts: Sequence[str], seed: int = 0, **options: object) -> list[str]:
        """Continue sentences.

        Args:
            texts: the beginnings of N sentences.
            seed: seed of the tokens that are drawn.
            **options: fields of `AnswerOptions`.

        Returns:
            What follows each text.

        Raises:
            ValueError: for a text without tokens, or longer than the context.
        """
        settings = AnswerOptions(**options)  # type: ignore[arg-type]
        if not texts:
            return []
        text = self.tokens.sentences(texts)
        lengths = (text.mask.sum(1) - 1).tolist()  # without the end token
        if not all(lengths):
            raise ValueError("a text is empty, and this tokenizer has no token that starts one: give its first word")
        rows = [self.embedding(ids[:n].to(self.device)) for ids, n in zip(text.ids, lengths, strict=True)]
        choose = chooser(settings, Noise.for_images(seed, range(len(rows)), self.device), self.tokens.vocabulary)
        tokens = torch.stack(list(self.continued(rows, settings.max_tokens, choose)), 1)  # (N, T)
        return [self.tokens.decode(row) for row in tokens]

    # ---- files ----

    def save_files(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.tokens.save(folder)

    def load_files(self, folder: Path) -> None:
        """Read tokenizer.json.

        Raises:
            ValueError: if it is missing, or is not that of the weights.
        """
        self.tokens = ChatTokenizer.load(folder)
        self.tokens.check(self.config.tokenizer, str(folder / TOKENIZER))


def conversations_in(batch: Batch, family: str) -> Text:
    """Return the conversations of a batch.

    Raises:
        ValueError: if it has none.
    """
    text = batch.condition.text
    if text is None or text.learned is None:
        raise ValueError(f"{family} needs conversations, and this batch has none: use data with captions or attributes")
    return text


def without_image(turns: Conversation) -> Conversation:
    """Return a conversation without the mark of its image."""
    return tuple(Turn(turn.question.replace(IMAGE, "").strip(), turn.answer) for turn in turns)


def chooser(options: AnswerOptions, noise: Noise, vocabulary: int) -> Callable[[Tensor, int], Tensor]:
    """Return a function that chooses one token per row of logits (N, V), among the first
    `vocabulary` ones.

    Args:
        options: how tokens are chosen.
        noise: N streams, from which one number is drawn per row and step.
        vocabulary: number of tokens of text.
    """
    if options.temperature == 0:
        return lambda logits, step: logits[:, :vocabulary].argmax(-1)
    uniform = noise.uniform(options.max_tokens)  # (N, T)

    def choose(logits: Tensor, step: int) -> Tensor:
        likely = filtered(logits[:, :vocabulary], temperature=options.temperature, top_p=options.top_p)
        return draw(likely, uniform[:, step])

    return choose
