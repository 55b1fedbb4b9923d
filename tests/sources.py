"""Small data sets in the layouts of other libraries, made by the tests."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(root: Path, each: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Write six files of `each` images, and return the images (6 * each, 32, 32, 3) and labels."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    labels = np.arange(6 * each) % 10
    images = (labels[:, None, None, None] * 20 + rng.integers(0, 60, (6 * each, 32, 32, 3))).astype(np.uint8)
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        own = slice(k * each, (k + 1) * each)
        content = {
            b"batch_label": name.encode(),
            b"labels": labels[own].tolist(),
            b"data": images[own].transpose(0, 3, 1, 2).reshape(each, -1),
            b"filenames": [f"{i}.png".encode() for i in range(each)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2 + k % 4))
    meta = {"num_cases_per_batch": each, "label_names": CIFAR10, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return images, labels


def write_mnist(root: Path, name: str = "MNIST", counts: tuple[int, int] = (120, 40)) -> tuple[np.ndarray, np.ndarray]:
    """Write training and test images, and return the images (N, 28, 28) and labels."""
    rng = np.random.default_rng(0)
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    images, labels = rng.integers(0, 256, (sum(counts), 28, 28), np.uint8), np.arange(sum(counts), dtype=np.uint8) % 10
    for part, own in (("train", slice(0, counts[0])), ("t10k", slice(counts[0], None))):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, len(images[own]), 28, 28) + images[own].tobytes()
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, len(labels[own])) + labels[own].tobytes()
        )
    return images, labels


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def pictures(n: int, size: int = 16) -> list[bytes]:
    """Return `n` different images as PNG."""
    return [png(np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)) for i in range(n)]


def write_shard(path: Path, members: Mapping[str, bytes | str]) -> Path:
    """Write a tar archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any], rows: int = 7) -> Path:
    """Write a parquet file with the types of the library datasets, with `rows` rows in each group."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns), schema=Features(features).arrow_schema), path, row_group_size=rows)
    return path


def to_json(**values: Any) -> str:
    return json.dumps(values)
