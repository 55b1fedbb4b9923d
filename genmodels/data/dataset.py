"""A view of packed data for `torch.utils.data.DataLoader`, to use them outside genmodels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genmodels.pictures import to_float

if TYPE_CHECKING:
    from genmodels.data.packed import Packed


class PackedDataset(Dataset[dict[str, Any]]):
    """Returns dicts that the default collate function can batch. See `Packed.dataset`.

    Each item has these keys:

    - image: float32 (3, H, W) in [-1, 1], or what `transform` returns.
    - attributes: float32 (K,) in {-1, 0, +1}, in the order of `Packed.attribute_names`.
    - label: int, if the data have labels; -1 if it is unknown.
    - name: name of the source file.
    - identity: int, if the data have identities.
    - text: one caption, if the data have captions. If the image has several, one is drawn with
      torch's generator; if it has none, the caption is empty.
    - latents, features: float tensors, if the data have them. Latents are those of the image as it
      is.

    Args:
        data: packed data, usually one split.
        transform: applied to the image.
    """

    def __init__(self, data: Packed, transform: Callable[[Tensor], Any] | None = None):
        self.data = data
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        data = self.data
        if not -len(data) <= index < len(data):
            raise IndexError(f"index {index} is out of range for {len(data):,} images")
        image: Any = to_float(np.asarray(data.images[index])[None])[0].contiguous()  # (3, H, W)
        item = {
            "image": image if self.transform is None else self.transform(image),
            "attributes": torch.from_numpy(data.attributes[index].astype(np.float32)),
            "name": data.names[index],
        }
        if data.labels is not None:
            item["label"] = int(data.labels[index])
        if data.identities is not None:
            item["identity"] = int(data.identities[index])
        if data.text is not None:
            item["text"] = _draw(data.text[index])
        if data.latents is not None:
            item["latents"] = torch.from_numpy(np.array(data.latents[index, 0]))
        if data.features is not None:
            item["features"] = torch.from_numpy(np.array(data.features[index]))
        return item


def _draw(captions: tuple[str, ...]) -> str:
    if len(captions) < 2:
        return captions[0] if captions else ""
    return captions[int(torch.randint(len(captions), ()))]
