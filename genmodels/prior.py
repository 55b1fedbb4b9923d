"""Prior: a generator that can be trained on the latents of a codec instead of on pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from genmodels.base import Generator


class Prior(Generator, ABC):
    """A generator of images or of their latents.

    Over a codec, its "images" are latents (N, *latent_shape), and it samples images only as part of
    a `genmodels.latent.Latent`.
    """

    learns_codes: ClassVar[bool] = False
    """Whether it learns the codes of a codec that quantises; otherwise continuous latents."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.codec_weights = ""
        """Hash of the weights of the codec whose latents it learns; `Latent` sets it."""

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

    def check_complete(self) -> None:
        if self.over_latents:
            raise ValueError(
                f"this {self.family} is a prior over a codec's latents and makes no images without that codec: sample "
                "the whole model, Latent.over(codec, prior), that it was trained in"
            )
