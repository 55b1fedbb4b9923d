"""One autoregressive model over the tokens of text and the codes of images.

It draws an image for a sentence, describes an image, and answers questions about it: all of them
are sequences of text tokens and codes, as in Chameleon (arXiv 2405.09818).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.answering import Answering
from genmodels.autoregressive import AutoregressiveOptions
from genmodels.chat import ChatTokenizer
from genmodels.conditions import Condition, ConditionConfig, Text, TextConfig
from genmodels.data.conversations import DRAW, Conversation, Turn
from genmodels.lm import LM, LMConfig, conversations_in
from genmodels.nn.rope import stretched
from genmodels.nn.transformer import TransformerConfig
from genmodels.prior import Prior, negative_condition
from genmodels.saving import Derived
from genmodels.text import TOKENIZER
from genmodels.token_sampling import draw, filtered
from genmodels.types import Batch, Noise
from genmodels.weights import copy_weights

NULL = 16
"""Number of end tokens that stand for an unknown prompt when nothing is known."""


@dataclass(frozen=True)
class MultimodalConfig:
    """The codes, the language model, and what is learned."""

    size: Derived[int] = 64
    """Side of the images in pixels, from --size."""
    codes: Derived[tuple[int, ...]] = (8, 8)
    """Shape of an image's codes, (rows, columns) or (rows, columns, levels), from --codec."""
    codebook_size: Derived[int] = 1
    """Number of codes in the codec's codebook, from --codec."""
    lm: LMConfig = LMConfig(transformer=TransformerConfig(width=192, depth=6, heads=4, qk_norm=True))
    """The transformer over both."""
    learn: Derived[Literal["all", "answers"]] = "all"
    """all: pre-training, in which every token is learned. answers: supervised fine-tuning (train
    sft), in which only those of answers are, text or codes."""
    drop: float = 0.1
    """Fraction of the prompts of images that are hidden, for classifier-free guidance."""

    def __post_init__(self) -> None:
        if len(self.codes) not in (2, 3) or min(*self.codes, self.codebook_size) < 1:
            raise ValueError(f"codes must be (rows, columns) or (rows, columns, levels), got {self.codes}")
        if self.learn not in ("all", "answers"):
            raise ValueError(f"learn must be 'all' or 'answers', got {self.learn!r}")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop must be in [0, 1], got {self.drop}")

    @property
    def condition(self) -> ConditionConfig:
        """Prompts."""
        text = TextConfig(vocabulary=self.lm.vocabulary, length=self.lm.context, tokenizer=self.lm.tokenizer)
        return ConditionConfig(text=text)

    @property
    def levels(self) -> int:
        """Codes of a position."""
        return self.codes[2] if len(self.codes) == 3 else 1


class Multimodal(Answering, Prior):
    """A causal transformer over text tokens and image codes, trained over a codec.

    Its vocabulary is that of the chat tokenizer, followed by the codes of each level. In a sequence,
    the codes of an image take the place of `<image>`, row by row.

    Args:
        config: the codes and the transformer. What depends on the tokenizer is filled in.
        tokenizer: turns conversations into tokens. None: the one that ships with the package.

    Raises:
        ValueError: if the context is too short for an image.
    """

    family = "multimodal"
    Config = MultimodalConfig
    Options = AutoregressiveOptions
    learns_codes = True
    reads_text = False
    further_files: ClassVar[tuple[str, ...]] = (TOKENIZER,)
    condition = None

    def __init__(self, config: MultimodalConfig | None = None, tokenizer: ChatTokenizer | None = None):
        config = config or MultimodalConfig()
        count, context = math.prod(config.codes), config.lm.context
        if count >= context:
            raise ValueError(
                f"an image has {count:,} codes, and the context {context:,} tokens: set model.lm.context to more than "
                f"{count:,}"
            )
        extra = config.codebook_size * config.levels
        language = LM(replace(config.lm, extra=extra), tokenizer)
        super().__init__(replace(config, lm=language.config))
        self.language = language
        first = language.tokens.vocabulary + torch.arange(config.levels) * config.codebook_size
        self.register_buffer("first", first.repeat(math.prod(config.codes[:2])), persistent=False)

    first: Tensor
    """The token of code 0 at each of the T places of an image, (T,)."""

    @property
    def over_latents(self) -> bool:
        return True

    @classmethod
    def config_over(cls, config: MultimodalConfig, codec: Any) -> MultimodalConfig:
        if not codec.can("quantise"):
            raise ValueError(f"a multimodal model learns codes, and the latents of this {codec.family} are not codes")
        return replace(config, codes=tuple(codec.latent_shape), codebook_size=codec.codebook_size)

    # ---- text ----

    def can(self, name: str) -> bool:
        return name == "tokenize" or super().can(name)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of prompts."""
        return self.tokens

    def tokenize(self, texts: Sequence[str]) -> Text:
        """Turn prompts into the tokens after which an image follows, on the CPU.

        Raises:
            ValueError: for an empty text.
        """
        if not all(text.strip() for text in texts):
            raise ValueError("a text is empty: describe the image in words")
        return self.tokens.encode([(Turn(DRAW.format(text)),) for text in texts])

    def read_conversations(self, conversations: Sequence[Conversation]) -> Text:
        """Tokenize conversations about an image, which is in the first question, or is an answer."""
        return self.tokens.encode(conversations, self.image_tokens)

    # ---- images ----

    @property
    def image_tokens(self) -> int:
        """T, codes of an image."""
        return len(self.first)

    def image_vectors(self, images: Tensor) -> Tensor:
        """Vectors (N, T, D) of codes (N, *codes)."""
        return self.language.embedding(self._tokens_of(images))

    def _tokens_of(self, codes: Tensor) -> Tensor:
        """Tokens (N, T) of codes (N, *codes)."""
        if codes.shape[1:] != self.config.codes:
            raise ValueError(f"this model takes codes of shape (N, *{self.config.codes}), got {tuple(codes.shape)}")
        return codes.flatten(1).long() + self.first

    # ---- training ----

    def extended_config(self, config: MultimodalConfig, given: Mapping[str, Any]) -> MultimodalConfig:
        """Return the config of a model that goes on with more or fewer codes of an image, with the base
        of its rotary positions (`genmodels.nn.rope.stretched`). One among the settings `given` stays.
        """
        if "rope_theta" in given.get("lm", {}).get("transformer", {}):
            return config
        old = self.config.lm.transformer
        theta = stretched(old.rope_theta, math.prod(config.codes) / self.image_tokens, old.head_dim)
        return replace(config, lm=replace(config.lm, transformer=replace(config.lm.transformer, rope_theta=theta)))

    def extend_from(self, model: Multimodal) -> None:
        """Copy the weights of a model with another number of codes of an image.

        Raises:
            ValueError: if the codebook or the architecture differ.
        """
        copy_weights(self, model.state_dict())

    def learning_answers(self) -> Self:
        """Return a copy of this model that learns answers only (supervised fine-tuning)."""
        made = type(self)(replace(self.config, learn="answers"), self.tokens)
        made.load_state_dict(self.state_dict())
        return made

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean over images of the mean cross-entropy of their learned tokens, in nats.

        Args:
            batch: conversations about images. Its `images` are codes (N, *codes).
            turn: not used.
        """
        text = conversations_in(batch, self.family)
        self.language.check_length(text.ids.shape[1])
        text = self._with_hidden_prompts(text, batch.noise)
        hidden = self.language.hidden(self.vectors(batch.images, text.ids), text.mask)
        targets = text.ids.masked_scatter(text.ids == self.tokens.image, self._tokens_of(batch.images))
        return self.language.token_loss(hidden, replace(text, ids=targets))

    def _with_hidden_prompts(self, text: Text, noise: Noise) -> Text:
        """Replace some prompts of images by end tokens, for guidance, and mark what is learned."""
        assert text.learned is not None
        draws = ((text.ids == self.tokens.image) & text.learned).any(1)  # (N,)
        hidden = draws & (noise.uniform(1)[:, 0] < self.config.drop)
        prompt = text.mask & ~text.learned
        prompt[:, 0] = False  # the start token stays
        gone = hidden.unsqueeze(1) & prompt  # (N, L)
        learned = text.learned
        if self.config.learn == "all":
            learned = text.mask & ~gone
            learned[:, 0] = False
        return Text(text.ids.masked_fill(gone, self.tokens.end), text.mask, learned)

    # ---- sampling ----

    def sample(self, noise: Noise, condition: Condition, options: AutoregressiveOptions) -> Tensor:
        """Sample codes (N, *codes), after the prompts of `condition`, if any.

        Raises:
            ValueError: if a prompt leaves no place for the codes in the context.
        """
        o, n, device = options, len(noise), noise.device
        prompts = self._prompts(condition, n)
        if o.guidance != 1:
            others = self._prompts(negative_condition(self, o.negative, n, device), n)
            hidden = [self._null(len(prompt) - 1) for prompt in prompts]
            prompts += others if o.negative else hidden
        longest, most = max(map(len, prompts)), self.config.lm.context - self.image_tokens + 1  # the last is not read
        if longest > most:
            raise ValueError(
                f"a prompt has {longest:,} tokens, and the context has place for {most:,} before the "
                f"{self.image_tokens:,} codes of an image: shorten the prompt"
            )
        uniform = noise.uniform(self.image_tokens)  # (N, T)
        size = self.config.codebook_size

        def choose(logits: Tensor, step: int) -> Tensor:
            first = int(self.first[step])
            own = logits[:, first : first + size].float()
            if o.guidance != 1:
                with_prompt, without = own.chunk(2)
                own = without + o.guidance * (with_prompt - without)
            likely = filtered(own, temperature=o.temperature, top_k=o.top_k, top_p=o.top_p, min_p=o.min_p)
            tokens = draw(likely, uniform[:, step]) + first
            return tokens if o.guidance == 1 else torch.cat([tokens, tokens])

        rows = [self.language.embedding(prompt.to(device)) for prompt in prompts]
        tokens = torch.stack(list(self.language.continued(rows, self.image_tokens, choose)), 1)[:n]
        return (tokens - self.first).unflatten(1, self.config.codes)

    def _prompts(self, condition: Condition, n: int) -> list[Tensor]:
        """Return the tokens of the prompt of each of `n` samples. A conversation is no prompt."""
        text = condition.text
        if text is None or (text.learned is not None and bool(text.learned.any())):
            return [self._null(NULL)] * n
        return [
            ids[mask] if bool(mask.any()) else self._null(NULL) for ids, mask in zip(text.ids, text.mask, strict=True)
        ]

    def _null(self, length: int) -> Tensor:
        """Return the tokens of a hidden prompt."""
        start = [] if self.tokens.start is None else [self.tokens.start]
        return torch.tensor([*start, *[self.tokens.end] * length], device=self.device)

    def bits_per_token(self, codes: Tensor) -> Tensor:
        """Compute bits per code of `codes` (N, *codes), without a prompt: (N,)."""
        tokens, null = self._tokens_of(codes), self._null(NULL)
        ids = torch.cat([null.expand(len(codes), -1), tokens], 1)
        hidden = self.language.hidden(self.language.embedding(ids))[:, len(null) - 1 : -1]  # (N, T, D)
        logits = self.language.logits(hidden).float()
        places = self.first.unsqueeze(1) + torch.arange(self.config.codebook_size, device=codes.device)  # (T, K)
        own = logits.gather(2, places.expand(len(codes), -1, -1))  # (N, T, K)
        nats = F.cross_entropy(own.flatten(0, 1), (tokens - self.first).flatten(), reduction="none")
        return nats.view(len(codes), -1).mean(1) / math.log(2)
