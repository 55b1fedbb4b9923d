"""LLaVA: answers questions about an image (arXiv 2304.08485, 2310.03744).

A frozen image encoder turns the image into features, a projector turns these into vectors of the
language model, and the language model reads them in place of `<image>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.chat import ChatTokenizer
from genmodels.clip import CLIP, CLIPConfig, build_image_encoder
from genmodels.conditions import Text
from genmodels.data.conversations import Conversation, Turn, check_conversation, with_image
from genmodels.lm import LM, AnswerOptions, LMConfig, conversations_in
from genmodels.nn.lora import add_lora
from genmodels.saving import Derived
from genmodels.text import TOKENIZER
from genmodels.types import Batch, Noise


@dataclass(frozen=True)
class LLaVAConfig:
    """The parts of a LLaVA, and which of them are trained."""

    size: Derived[int] = 64
    """Side of the images in pixels, that of the CLIP."""
    clip: Derived[CLIPConfig] = CLIPConfig()
    """Config of the CLIP whose image encoder is used, from --clip."""
    lm: Derived[LMConfig] = LMConfig()
    """Config of the language model, from --lm."""
    train: Derived[Literal["projector", "all"]] = "projector"
    """projector: stage 1, which trains the projector only. all: stage 2 (--start), which also trains
    the language model. The image encoder is never trained."""
    lora: int = 0
    """Rank of the low-rank updates (LoRA, arXiv 2106.09685) that stage 2 trains in place of the
    language model's matrices, through the package peft. 0: the matrices themselves are trained."""

    def __post_init__(self) -> None:
        if self.train not in ("projector", "all"):
            raise ValueError(f"train must be 'projector' or 'all', got {self.train!r}")
        if self.lora < 0:
            raise ValueError(f"lora must not be negative, got {self.lora}")


class LLaVA(Model):
    """Answers questions about images.

    Example::

        >>> from genmodels import load
        >>> model = load("runs/llava")
        >>> model.answer(images, ["Is this person smiling?"] * len(images))
        ["Yes, she is smiling.", ...]

    Args:
        config: of its parts.
        tokenizer: that of the language model. None: the one that ships with the package.

    Raises:
        ValueError: if the config belongs to another tokenizer, or does not fit together.
    """

    family = "llava"
    Config = LLaVAConfig
    further_files: ClassVar[tuple[str, ...]] = (TOKENIZER,)

    def __init__(self, config: LLaVAConfig | None = None, tokenizer: ChatTokenizer | None = None):
        config = config or LLaVAConfig()
        if config.lora and config.train == "projector":
            raise ValueError("lora trains the language model, and stage 1 only the projector: leave lora out")
        if config.size != config.clip.size:
            raise ValueError(f"the image encoder takes images of {config.clip.size} px, and the size is {config.size}")
        language = LM(config.lm, tokenizer)
        super().__init__(replace(config, lm=language.config))
        self.image_encoder = build_image_encoder(config.clip)
        self.language = language
        width = language.config.transformer.width
        features = self.image_encoder.feature_width
        self.projector = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))
        self.image_encoder.requires_grad_(False).eval()
        if config.train == "projector":
            self.language.requires_grad_(False)
        if config.lora:
            add_lora(self.language, config.lora)

    @classmethod
    def of(cls, clip: CLIP, language: LM, config: LLaVAConfig | None = None) -> Self:
        """Return an untrained LLaVA of a CLIP and a language model, whose weights are copied."""
        c = config or LLaVAConfig()
        made = cls(replace(c, size=clip.config.size, clip=clip.config, lm=language.config, lora=0), language.tokens)
        made.image_encoder.load_state_dict(clip.image_encoder.state_dict())
        made.language.load_state_dict(language.state_dict())
        return made.with_stage(c.train, c.lora)

    def with_stage(self, train: Literal["projector", "all"], lora: int = 0) -> Self:
        """Return a copy of this model, for another stage of training.

        Raises:
            ValueError: if this model has low-rank updates already.
        """
        c = self.config
        if c.lora:
            raise ValueError("this llava was trained with LoRA: start from the run of stage 1")
        made = type(self)(replace(c, train=train, lora=lora), self.language.tokens)
        # Low-rank updates are new, and the matrices below them have other names.
        missing, unknown = made.load_state_dict(
            {made.language_name(name): value for name, value in self.state_dict().items()}, strict=False
        )
        assert not unknown and all("lora_" in name for name in missing)
        return made

    def language_name(self, name: str) -> str:
        """Return the name that a weight of a LLaVA without LoRA has in this one."""
        if not self.config.lora or name in self.state_dict():
            return name
        layer, _, kind = name.rpartition(".")
        return f"{layer}.base_layer.{kind}"

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """Return the parameters that are trained in this stage."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def train(self, mode: bool = True) -> Self:
        """Set the mode. The image encoder stays in eval mode."""
        super().train(mode)
        self.image_encoder.eval()
        return self

    # ---- images and text ----

    @property
    def tokens(self) -> ChatTokenizer:
        """The tokenizer of the language model."""
        return self.language.tokens

    @property
    def image_tokens(self) -> int:
        """Number of tokens of an image: of the features of the image encoder."""
        return int(self.image_encoder.feature_count)

    def image_vectors(self, images: Tensor) -> Tensor:
        """Vectors (N, T, D) that the language model reads for images (N, 3, H, W) in [-1, 1].

        Raises:
            ValueError: for images of another size.
        """
        size = self.config.size
        if images.shape[1:] != (3, size, size):
            raise ValueError(f"this llava takes images of shape (N, 3, {size}, {size}), got {tuple(images.shape)}")
        with torch.no_grad():
            features = self.image_encoder.features(images.to(self.projector[0].weight.dtype))
        return self.projector(features)

    def vectors(self, images: Tensor, ids: Tensor) -> Tensor:
        """Token vectors (N, L, D): those of ids (N, L), and those of the images at the image tokens.

        Raises:
            ValueError: if a row has not exactly the tokens of one image.
        """
        places = ids == self.tokens.image  # (N, L)
        counts = places.sum(1)
        if len(ids) != len(images) or not bool((counts == self.image_tokens).all()):
            raise ValueError(
                f"each text needs {self.image_tokens} image tokens for its image, got {counts.tolist()[:8]} for "
                f"{len(images)} images"
            )
        x = self.language.embedding(ids)
        return x.masked_scatter(places.unsqueeze(2), self.image_vectors(images).to(x.dtype))

    # ---- training ----

    def read_conversations(self, conversations: Sequence[Conversation]) -> Text:
        """Tokenize conversations about images. The tokens of answers are learned.

        Raises:
            ValueError: for a conversation without an image, or with several.
        """
        for turns in conversations:
            check_conversation(turns)
        return self.tokens.encode(conversations, self.image_tokens)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean over images of the mean cross-entropy of the tokens of answers, in nats.

        Raises:
            ValueError: if the batch has no conversations, or one is longer than the context.
        """
        text = conversations_in(batch, self.family)
        self.language.check_length(text.ids.shape[1])
        return self.language.token_loss(self.language.hidden(self.vectors(batch.images, text.ids)), text)

    @torch.no_grad()
    def measure(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return bits per token and accuracy of answers on held-out images, means over `batches`."""
        rows = [self.loss(batch, "model")[1] for batch in batches]
        return {name: sum(float(row[name]) for row in rows) / len(rows) for name in ("bits_per_token", "accuracy")}

    # ---- answers ----

    @torch.inference_mode()
    def answer(
        self,
        images: Tensor,
        questions: Sequence[str | Conversation],
        seed: int = 0,
        *,
        batch_size: int = 64,
        **options: object,
    ) -> list[str]:
        """Answer one question about each image.

        Args:
            images: (N, 3, H, W) in [-1, 1].
            questions: N questions. A conversation asks the question of its last turn, and the
                answers of the earlier ones are given.
            seed: seed of the tokens that are drawn, for a temperature above 0.
            batch_size: questions that are answered at a time.
            **options: fields of `AnswerOptions`: temperature, top_p, max_tokens.

        Returns:
            N answers. Answer i does not depend on the others, up to rounding.

        Raises:
            ValueError: if the numbers of images and questions differ, a question is empty, or too
                long for the context.
        """
        settings = AnswerOptions(**options)  # type: ignore[arg-type]
        if len(images) != len(questions):
            raise ValueError(f"there are {len(images)} images and {len(questions)} questions: give one for each image")
        answers = []
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            parts = list(self._tokens(images[rows], questions[rows], settings, range(len(images))[rows], seed))
            answers += [self.tokens.decode(ids) for ids in torch.stack(parts, 1)]
        return answers

    @torch.inference_mode()
    def stream(self, image: Tensor, question: str | Conversation, seed: int = 0, **options: object) -> Iterator[str]:
        """Yield the answer to a question about an image (3, H, W) as far as it is known, after each
        token. Arguments as for `answer`."""
        settings = AnswerOptions(**options)  # type: ignore[arg-type]
        ids: list[int] = []
        for token in self._tokens(image.unsqueeze(0), [question], settings, range(1), seed):
            ids.append(int(token))
            yield self.tokens.decode(ids)

    def _tokens(
        self,
        images: Tensor,
        questions: Sequence[str | Conversation],
        options: AnswerOptions,
        numbers: range,
        seed: int,
    ) -> Iterator[Tensor]:
        """Yield the tokens of the answers to questions about images, (N,) at a time."""
        vectors = self.image_vectors(images.to(self.device))  # (N, T, D)
        rows = []
        for question, vector in zip(questions, vectors, strict=True):
            turns = (Turn(question),) if isinstance(question, str) else question
            turns = (Turn(with_image(turns[0].question), turns[0].answer), *turns[1:])
            check_conversation(turns)
            ids = torch.tensor(self.tokens.prompt(turns, self.image_tokens), device=self.device)
            row = self.language.embedding(ids)
            rows.append(row.masked_scatter((ids == self.tokens.image).unsqueeze(1), vector.to(row.dtype)))
        return self.language.continued(rows, options, Noise.for_images(seed, numbers, self.device))

    # ---- files ----

    def save_files(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.language.save_files(folder)

    def load_files(self, folder: Path) -> None:
        """Read tokenizer.json.

        Raises:
            ValueError: if it is missing, or is not that of the weights.
        """
        self.language.load_files(folder)
