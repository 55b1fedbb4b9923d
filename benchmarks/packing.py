"""Measure tokens and seconds of a training step with several documents in one sequence.

OMP_NUM_THREADS=1 python benchmarks/packing.py
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro

from genmodels.data import open_data
from genmodels.data.batches import BatchReader
from genmodels.lm import LMConfig
from genmodels.multimodal import Multimodal, MultimodalConfig
from genmodels.nn.documents import arrange
from genmodels.nn.transformer import TransformerConfig

CODES, CODEBOOK = (8, 8, 2), 256
BLOCKS = TransformerConfig(width=192, depth=6, heads=4, qk_norm=True)


@dataclass
class Settings:
    """What is measured."""

    data: str = "toyfaces"
    size: int = 64
    batch_size: int = 32
    batches: int = 4
    documents: tuple[int, ...] = (1, 2, 4, 8)


def model_of(s: Settings, documents: int) -> Multimodal:
    """A model with random weights; its codes are random too."""
    torch.manual_seed(0)
    return Multimodal(MultimodalConfig(s.size, CODES, CODEBOOK, LMConfig(transformer=BLOCKS, documents=documents)))


def run(s: Settings) -> None:
    """Print a line per number of documents."""
    data = open_data(s.data, size=s.size).split("train")
    reader = BatchReader(data, s.batch_size, 0, converse=model_of(s, 1).read_conversations)
    batches: list[Any] = [reader.read(i, 0.0)[0] for i in range(s.batches)]
    masks = [batch.condition.text.mask for batch in batches]
    print(f"tokens of all documents: {sum(int(mask.sum()) for mask in masks):,}")
    codes = torch.randint(CODEBOOK, (s.batch_size, *CODES))
    for documents in s.documents:
        model, seconds = model_of(s, documents), []
        for batch in batches:
            began = time.perf_counter()
            model(replace(batch, images=codes, latents=None))[0].backward()
            seconds.append(time.perf_counter() - began)
        rows, length = zip(*(arrange(mask, documents).shape for mask in masks), strict=True)
        tokens = sum(r * n for r, n in zip(rows, length, strict=True))
        print(f"{documents} documents: {tokens:,} tokens with padding, {statistics.median(seconds):.2f} s per step")


if __name__ == "__main__":
    run(tyro.cli(Settings, description=__doc__))
