"""CLIP (arXiv 2103.00020): an image encoder and a text encoder that are trained contrastively.

Images and texts become vectors of unit length in one space, where the vectors of an image and of a
sentence that describes it are close.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.conditions import ConditionConfig, Text
from genmodels.data.captions import parse
from genmodels.distributed import all_gather_rows, first_row, gather_with_gradients
from genmodels.nn.contrastive import fitting, sigmoid_loss, softmax_loss
from genmodels.nn.image_encoder import ConvConfig, ConvEncoder, ViT, ViTConfig, conv_encoder
from genmodels.nn.text_encoder import TextEncoder, TextEncoderConfig
from genmodels.saving import Derived
from genmodels.text import TOKENIZER, Tokenizer, shipped
from genmodels.types import Batch

FIRST_BIAS = -10.0
"""Initial bias of the sigmoid loss, at which nearly all pairs count as not matching, as is true."""


@dataclass(frozen=True)
class CLIPConfig:
    """Architecture and loss of a CLIP."""

    size: int = 64
    """Side of the images in pixels."""
    width: int = 128
    """D, the size of the embeddings."""
    image: Literal["conv", "vit"] = "conv"
    """Image encoder: a small convolutional network for short training budgets, or a vision
    transformer, which exchanges with transformers."""
    conv: ConvConfig = ConvConfig()
    """Architecture of the convolutional network."""
    vit: ViTConfig = ViTConfig()
    """Architecture of the vision transformer."""
    text: TextEncoderConfig = TextEncoderConfig()
    """Architecture of the text encoder."""
    tokenizer: Derived[str] = ""
    """Hash of the tokenizer."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: choose the text of an image among those of the batch, and its image for a text.
    sigmoid: decide for every pair whether it matches (SigLIP, arXiv 2303.15343)."""
    fitting: tuple[str, ...] = ()
    """Attributes by which captions of the batch that also fit an image are recognised. They are
    then not negatives for that image. (): all captions of other images are negatives."""
    scale: float = 1 / 0.07
    """Initial factor on the cosine similarities, the inverse of the temperature, which is
    learned."""
    largest_scale: float = 100.0
    """Upper bound of that factor."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.width < 1:
            raise ValueError(f"size and width must be at least 1, got {self.size} and {self.width}")
        if self.image not in ("conv", "vit"):
            raise ValueError(f"image must be 'conv' or 'vit', got {self.image!r}")
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f"loss must be 'softmax' or 'sigmoid', got {self.loss!r}")
        if not 1 <= self.scale <= self.largest_scale < math.inf:
            raise ValueError(f"scale must be from 1 to largest_scale, got {self.scale} and {self.largest_scale}")
        for group in self.unused_fields:
            settings, default = getattr(self, group), ConvConfig() if group == "conv" else ViTConfig()
            for field in fields(settings):
                if (value := getattr(settings, field.name)) != getattr(default, field.name):
                    raise ValueError(
                        f"{group}.{field.name} applies to image {group} only, and the image encoder is {self.image}: "
                        f"got {value!r}; leave it out, or choose --model.image {group}"
                    )

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """Fields without effect: the other image encoder."""
        return ("vit",) if self.image == "conv" else ("conv",)


def build_image_encoder(config: CLIPConfig) -> ConvEncoder | ViT:
    """Build the image encoder of a CLIP: images (N, 3, H, W) in [-1, 1] -> (N, D)."""
    if config.image == "conv":
        return conv_encoder(config.conv, config.size, config.width)
    return ViT(config.vit, config.size, config.width)


class CLIP(Model):
    """Image encoder and text encoder with one space of embeddings.

    Args:
        config: architecture and loss. What depends on the tokenizer is filled in.
        tokenizer: turns texts into tokens. None: the one that ships with the package.

    Raises:
        ValueError: if the config belongs to another tokenizer, or does not fit together.
    """

    family = "clip"
    Config = CLIPConfig
    whole_batch = True
    further_files: ClassVar[tuple[str, ...]] = (TOKENIZER,)

    def __init__(self, config: CLIPConfig | None = None, tokenizer: Tokenizer | None = None):
        config = config or CLIPConfig()
        self_made = not config.tokenizer
        given = tokenizer
        tokenizer = tokenizer or shipped()
        if self_made:
            text = replace(config.text, vocabulary=tokenizer.vocabulary, length=tokenizer.length, end=tokenizer.end)
            config = replace(config, text=text, tokenizer=tokenizer.hash)
        super().__init__(config)
        self._tokenizer = tokenizer
        if given is not None:
            given.check(config.tokenizer, "the tokenizer")
        self.image_encoder = build_image_encoder(config)
        width = config.text.transformer.width
        self.text_encoder = TextEncoder(config.text)
        self.text_projection = nn.Linear(width, config.width, bias=False)
        nn.init.normal_(self.text_projection.weight, std=width**-0.5)
        # Of shape (1,), because FSDP cannot shard scalars.
        self.log_scale = nn.Parameter(torch.full((1,), math.log(config.scale)))
        self.bias = nn.Parameter(torch.full((1,), FIRST_BIAS)) if config.loss == "sigmoid" else None

    # ---- embeddings ----

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, H, W) in [-1, 1]: float32 (N, D) of unit length.

        Raises:
            ValueError: for images of another size.
        """
        size = self.config.size
        if images.shape[1:] != (3, size, size):
            raise ValueError(f"this clip embeds images of shape (N, 3, {size}, {size}), got {tuple(images.shape)}")
        return F.normalize(self.image_encoder(images.to(self.log_scale.dtype)).float(), dim=1)

    def embed_texts(self, text: Text) -> Tensor:
        """Embed N tokenized texts: float32 (N, D) of unit length.

        Raises:
            ValueError: for a text that is too long, has an id outside the vocabulary, or lacks its
                end token.
        """
        return F.normalize(self.text_projection(self.text_encoder(text)).float(), dim=1)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the text encoder was trained with."""
        return self._tokenizer

    def tokenize(self, texts: Sequence[str]) -> Text:
        """Turn texts into token ids, on the CPU.

        Raises:
            ValueError: for an empty text, or one with too many tokens.
        """
        return self._tokenizer(texts)

    @property
    def scale(self) -> Tensor:
        """Factor on the cosine similarities, a scalar: exp of the bounded log temperature."""
        return self.log_scale[0].clamp(0, math.log(self.config.largest_scale)).exp()

    # ---- training ----

    @property
    def conditions(self) -> ConditionConfig:
        """The attributes that batches must have: those that captions are compared by."""
        return ConditionConfig(attributes=self.config.fitting)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the contrastive loss of this process's rows of the global batch.

        Its mean over processes is the loss of the global batch, and so are its gradients.

        Raises:
            ValueError: if the batch has no texts, or is a single pair.
        """
        text = batch.condition.text
        if text is None or len(text.ids) != len(batch.images):
            raise ValueError("clip needs one text per image, and this batch has none: use data with captions")
        images, texts = self.embed_images(batch.images), self.embed_texts(text)
        rows = len(images)
        gathered = self.training  # in eval mode, each process has a batch of its own
        with torch.autocast(images.device.type, enabled=False):
            every_image, every_text = (gather_with_gradients(x) if gathered else x for x in (images, texts))
            if len(every_image) < 2:
                raise ValueError("clip compares the pairs of a batch with each other: use a batch size of at least 2")
            per_image, per_text = self.scale * images @ every_text.T, self.scale * texts @ every_image.T  # (n, N)
            own = torch.arange(rows, device=images.device) + (first_row(rows) if gathered else 0)
            ignored = self._ignored(batch, own, gathered) if self.config.fitting else None
            if self.bias is None:
                loss = softmax_loss(per_image, per_text, own, ignored)
            else:
                loss = sigmoid_loss(per_image + self.bias, own, None if ignored is None else ignored[0])
        right = ((per_image.argmax(1) == own).float().mean() + (per_text.argmax(1) == own).float().mean()) / 2
        return loss, {
            "loss_over_ln_batch": loss.detach() / math.log(len(every_image)),
            "recall": right,
            "scale": self.scale.detach(),
        }

    @torch.no_grad()
    def _ignored(self, batch: Batch, own: Tensor, gathered: bool) -> Tensor:
        """Return which pairs are not negatives because the caption also fits the image: bool
        (2, n, N), rows of images with all captions, and rows of captions with all images."""
        attributes, text = batch.condition.attributes, batch.condition.text
        assert attributes is not None and text is not None
        names = self.config.fitting
        facts = torch.zeros_like(attributes)
        for row, caption in enumerate(self._tokenizer.decode(text.ids)):
            stated = parse(caption)
            if stated.keys() <= set(names):  # otherwise it is not known which other images it fits
                facts[row] = facts.new_tensor([stated.get(name, 0) for name in names])
        every_attribute, every_fact = (all_gather_rows(x) if gathered else x for x in (attributes, facts))
        fits = fitting(every_attribute, every_fact)  # (N, N)
        return torch.stack([fits[own], fits.T[own]])

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the temperature within its bounds."""
        super().after_step()
        self.log_scale.clamp_(0, math.log(self.config.largest_scale))

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the loss divided by ln of the batch size, of which 1 is chance, and the recall
        within batches, both means over `batches`, whose images have texts."""
        rows = [self.loss(batch, "model")[1] for batch in batches]
        return {name: sum(float(row[name]) for row in rows) / len(rows) for name in ("loss_over_ln_batch", "recall")}

    # ---- files ----

    def save_files(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self._tokenizer.save(folder)

    def load_files(self, folder: Path) -> None:
        """Read tokenizer.json.

        Raises:
            ValueError: if it is missing, or is not that of the weights.
        """
        self._tokenizer = Tokenizer.beside_weights(folder, self.config.tokenizer)
