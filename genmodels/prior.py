"""Prior: a generator that can be trained on the latents of a codec instead of on pixels, and can be
conditioned on text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from genmodels.base import Generator
from genmodels.conditions import Condition, Text, condition_of
from genmodels.nn.conditioning import Conditioner
from genmodels.nn.encoded_text import EncodedText
from genmodels.text import TOKENIZER, Tokenizer


def check_negative(negative: str, guidance: float) -> None:
    """Raise ValueError if a negative prompt would have no effect."""
    if negative and guidance == 1:
        raise ValueError(f"negative {negative!r} has no effect at guidance 1: set guidance, for example 4")


def negative_condition(model: Any, negative: str, n: int, device: torch.device) -> Condition:
    """Return what guidance leads away from: a negative prompt or, if it is "", the null condition.

    Raises:
        ValueError: if there is a negative prompt, and the model was trained without text.
    """
    if negative and not model.can("tokenize"):
        raise ValueError(f"negative {negative!r} was given, and this {model.family} was trained without text")
    return condition_of(model, {"prompt": negative} if negative else None, n).to(device)


class Prior(Generator, ABC):
    """A generator of images or of their latents.

    Over a codec, its "images" are latents (N, *latent_shape), and it samples images only as part of
    a `genmodels.latent.Latent`.
    """

    learns_codes: ClassVar[bool] = False
    """Whether it learns the codes of a codec that quantises; otherwise continuous latents."""
    further_files: ClassVar[tuple[str, ...]] = (TOKENIZER,)
    reads_text: ClassVar[bool] = True
    """Whether it can be conditioned on text."""
    condition: Conditioner | None
    """Embeds the condition, for families that can be conditioned on text. It may be absent."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.codec_weights = ""
        """Hash of the weights of the codec whose latents it learns; `Latent` sets it."""
        self._tokenizer: Tokenizer | None = None

    @property
    @abstractmethod
    def over_latents(self) -> bool:
        """Whether it was built for the latents of a codec."""

    @classmethod
    @abstractmethod
    def config_over(cls, config: Any, codec: Any) -> Any:
        """Return `config` with the fields that depend on `codec` filled in."""

    def check_codec(self, codec: nn.Module) -> None:
        """Raise ValueError if the prior was not built for the latents of `codec`."""
        needed = self.config_over(self.config, codec)
        if needed != self.config:
            different = [
                f"{name} is {value} and the codec has {getattr(needed, name)}"
                for name, value in vars(self.config).items()
                if getattr(needed, name) != value
            ]
            raise ValueError(f"this {self.family} was built for another codec: {'; '.join(different)}")

    # ---- text ----

    def can(self, name: str) -> bool:
        return super().can(name) and (name != "tokenize" or self._tokenizer is not None)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text encoder.

        Raises:
            ValueError: if the model was built without text.
        """
        if self._tokenizer is None:
            raise ValueError(f"this {self.family} was trained without text")
        return self._tokenizer

    def tokenize(self, texts: Sequence[str]) -> Text:
        """Turn texts into token ids, on the CPU.

        Raises:
            ValueError: for an empty text, one with too many tokens, or a model without text.
        """
        return self.tokenizer(texts)

    def use_text_encoder(self, source: Any) -> None:
        """Copy the weights of a text encoder, which stay as they are, and take its tokenizer.

        Args:
            source: a `genmodels.text_conditions.TextSource`, from which the config was made by
                `conditioned_on_text`.
        """
        conditioner: Any = self.condition
        assert isinstance(conditioner.text, EncodedText)
        conditioner.text.encoder.load_state_dict(source.encoder.state_dict())
        self._tokenizer = source.tokenizer

    def save_files(self, folder: Path) -> None:
        """Write tokenizer.json, if the model has text."""
        if self._tokenizer is not None:
            self._tokenizer.save(folder)

    def load_files(self, folder: Path) -> None:
        """Read tokenizer.json, if the model has text.

        Raises:
            ValueError: if it is missing, or is not that of the weights.
        """
        text = self.conditions.text
        if text.encoder:
            self._tokenizer = Tokenizer.beside_weights(folder, text.tokenizer)

    def check_complete(self) -> None:
        if self.over_latents:
            raise ValueError(
                f"this {self.family} is a prior over a codec's latents and makes no images without that codec: sample "
                "the whole model, Latent.over(codec, prior), that it was trained in"
            )
