"""A model that embeds images and sentences by rule, and images in which four attributes are visible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.conditions import Text
from genmodels.data.captions import parse
from genmodels.data.packed import Packed
from genmodels.types import Batch

NAMES = ("Male", "Smiling", "Eyeglasses", "Young")


@dataclass(frozen=True)
class OracleConfig:
    size: int = 16
    believes: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    """What the model takes each attribute of an image for: 1 as it is, -1 for its opposite."""


class Characters:
    """Tokenizer of characters."""

    length = 200

    def __call__(self, texts: Sequence[str]) -> Text:
        if any(not text.strip() for text in texts):
            raise ValueError("an empty prompt says nothing: write a sentence")
        if longest := max((text for text in texts if len(text) > self.length), key=len, default=""):
            raise ValueError(f"the prompt has {len(longest)} tokens, at most {self.length} fit: shorten it")
        ids = torch.tensor([[ord(c) for c in text.ljust(self.length, "\0")] for text in texts])
        return Text(ids, ids > 0)

    def decode(self, ids: Tensor) -> list[str]:
        return ["".join(map(chr, row)).rstrip("\0") for row in ids.tolist()]


class Oracle(Model):
    """Embeds an image as the brightness of its quarters, and a sentence as the facts that it states."""

    family = "oracle"
    Config = OracleConfig
    whole_batch = True

    def __init__(self, config: OracleConfig):
        super().__init__(config)
        self.gain = nn.Parameter(torch.tensor(config.believes))
        self.text_gain = nn.Parameter(torch.ones(len(NAMES)))

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.condition.text is None:  # data without captions
            return (self.gain + self.text_gain).square().mean(), {}
        scores = self.embed_images(batch.images) @ self.embed_texts(batch.condition.text).T
        return nn.functional.cross_entropy(scores, torch.arange(len(scores))), {}

    def embed_images(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(nn.functional.avg_pool2d(images[:, 0], 8).flatten(1) * self.gain, dim=1)

    def embed_texts(self, text: Text) -> Tensor:
        facts = [parse(words) for words in self.tokenizer.decode(text.ids)]
        rows = torch.tensor([[float(stated.get(name, 0)) for name in NAMES] for stated in facts])
        # A sentence that states nothing is near to none.
        return nn.functional.normalize((rows + 1e-6) * self.text_gain, dim=1)

    @property
    def tokenizer(self) -> Characters:
        return Characters()

    def tokenize(self, texts: Sequence[str]) -> Text:
        return self.tokenizer(texts)

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        losses = [self.loss(batch, "model")[0] / np.log(len(batch.images)) for batch in batches]
        return {"loss_over_ln_batch": float(torch.stack(losses).mean())}


def quarters(count: int = 900, seed: int = 0, **columns: object) -> Packed:
    """Make images of which quarter k is bright if they have attribute k; two thirds are for training."""
    rng = np.random.default_rng(seed)
    attributes = rng.choice(np.array([-1, 1], np.int8), (count, len(NAMES)))
    levels = 128 + 80 * attributes.reshape(count, 2, 2, 1).astype(int) + rng.integers(-30, 31, (count, 2, 2, 1))
    settings = dict(
        images=levels.astype(np.uint8).repeat(8, 1).repeat(8, 2).repeat(3, 3),  # (N, 16, 16, 3)
        attributes=attributes,
        attribute_names=NAMES,
        names=[f"{i:04d}.jpg" for i in range(count)],
        splits=(np.arange(count) >= count * 2 // 3).astype(np.uint8),
        manifest={"source": "quarters", "crop": "none"},
    )
    return Packed(**(settings | columns))  # type: ignore[arg-type]
