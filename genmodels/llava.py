"""LLaVA: answers questions about an image (arXiv 2304.08485, 2310.03744).

A frozen image encoder turns the image into features, a projector turns these into vectors of the
language model, and the language model reads them in place of `<image>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from genmodels.answering import Answering
from genmodels.chat import ChatTokenizer
from genmodels.clip import CLIP, CLIPConfig, build_image_encoder
from genmodels.lm import LM, LMConfig, conversations_in
from genmodels.nn.lora import add_lora
from genmodels.saving import Derived
from genmodels.text import TOKENIZER
from genmodels.types import Batch


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
    """projector: stage 1, which trains the projector only. all: stage 2 (--projector), which also trains
    the language model. The image encoder is never trained."""
    lora: int = 0
    """Rank of the low-rank updates (LoRA, arXiv 2106.09685) that stage 2 trains in place of the
    language model's matrices, through the package peft. 0: the matrices themselves are trained."""

    def __post_init__(self) -> None:
        if self.train not in ("projector", "all"):
            raise ValueError(f"train must be 'projector' or 'all', got {self.train!r}")
        if self.lora < 0:
            raise ValueError(f"lora must not be negative, got {self.lora}")


class LLaVA(Answering):
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
    def image_tokens(self) -> int:
        """Number of tokens of an image: of the features of the image encoder."""
        return int(self.image_encoder.feature_count)

    def image_vectors(self, images: Tensor) -> Tensor:
        """Vectors (N, T, D) that the language model reads for images (N, 3, H, W) in [-1, 1]."""
        size = self.config.size
        if images.shape[1:] != (3, size, size):
            raise ValueError(f"this llava takes images of shape (N, 3, {size}, {size}), got {tuple(images.shape)}")
        with torch.no_grad():
            features = self.image_encoder.features(images.to(self.language.embedding.weight.dtype))
        return self.projector(features)

    # ---- training ----

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean over images of the mean cross-entropy of the tokens of answers, in nats.

        Raises:
            ValueError: if the batch has no conversations, or one is longer than the context.
        """
        text = conversations_in(batch, self.family)
        self.language.check_length(text.ids.shape[1])
        return self.language.token_loss(self.language.hidden(self.vectors(batch.images, text.ids), text.mask), text)
