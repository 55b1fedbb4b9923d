"""Answering: what models that answer questions about images have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from genmodels.base import Model
from genmodels.chat import ChatTokenizer
from genmodels.conditions import Text
from genmodels.data.conversations import Conversation, Turn, check_conversation, with_image
from genmodels.lm import LM, AnswerOptions, chooser
from genmodels.types import Batch, Noise


class Answering(Model, ABC):
    """A model with a language model that reads vectors of an image in place of `<image>`.

    A family sets `language`, and implements `image_tokens` and `image_vectors`.
    """

    language: LM

    @property
    @abstractmethod
    def image_tokens(self) -> int:
        """Number of tokens of an image."""

    @abstractmethod
    def image_vectors(self, images: Tensor) -> Tensor:
        """Vectors (N, T, D) that the language model reads for images.

        Args:
            images: (N, 3, H, W) in [-1, 1], or codes (N, *codes) of a model over a codec.

        Raises:
            ValueError: for images of another size.
        """

    @property
    def tokens(self) -> ChatTokenizer:
        """The tokenizer of the language model."""
        return self.language.tokens

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

    def read_conversations(self, conversations: Sequence[Conversation]) -> Text:
        """Tokenize conversations about images. The tokens of answers are learned.

        Raises:
            ValueError: for a conversation without an image, or with several.
        """
        for turns in conversations:
            check_conversation(turns)
        return self.tokens.encode(conversations, self.image_tokens)

    @torch.no_grad()
    def measure(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return bits per token and accuracy of answers on held-out images, means over `batches`."""
        rows = [self.loss(batch, "model")[1] for batch in batches]
        return {name: sum(float(row[name]) for row in rows) / len(rows) for name in ("bits_per_token", "accuracy")}

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
        choose = chooser(options, Noise.for_images(seed, numbers, self.device), self.tokens.vocabulary)
        return self.language.continued(rows, options.max_tokens, choose)

    def save_files(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.language.save_files(folder)

    def load_files(self, folder: Path) -> None:
        """Read tokenizer.json.

        Raises:
            ValueError: if it is missing, or is not that of the weights.
        """
        self.language.load_files(folder)
