"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 in the layout in which torchvision stores them.

The training images are split "train", and the test images, which no model is trained on, are split
"valid": that is the split with which evaluation compares, and there is no other.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from genmodels.data.classes import check_classes
from genmodels.data.pickles import read_pickle
from genmodels.data.source import Entry, Source, fingerprint
from genmodels.reading import in_one_line
from genmodels.usage import say

SETS = {
    "mnist": ("MNIST", 28),
    "fashion-mnist": ("FashionMNIST", 28),
    "cifar10": ("CIFAR10", 32),
    "cifar100": ("CIFAR100", 32),
}
"""Class of torchvision, and side of the images in pixels, of each data set."""
TIMEOUT = 5.0
"""Seconds to wait for the server of a data set to answer."""


@dataclass(frozen=True, eq=False)
class PixelReader:
    """Opens images of an array as files in the format PPM, or PGM if they are grey.

    Attributes:
        images: uint8 (N, H, W, 3) or (N, H, W).
    """

    images: np.ndarray

    @contextmanager
    def open(self, index: int) -> Iterator[BinaryIO]:
        """Open image `index` for reading and seeking."""
        image = self.images[index]
        kind = "P6" if image.ndim == 3 else "P5"
        yield io.BytesIO(f"{kind} {image.shape[1]} {image.shape[0]} 255\n".encode() + image.tobytes())


def torchvision_source(data: str, root: Path) -> Source:
    """Return the images of one of `SETS`, which are downloaded if none of its files is there.

    Args:
        data: name of the data set.
        root: folder in which torchvision stores it, in a folder of its own.

    Raises:
        FileNotFoundError: if a file is missing; the message says where to place it.
        ValueError: if a file is damaged.
    """
    import torchvision.datasets

    kind = getattr(torchvision.datasets, SETS[data][0])
    paths = _find(kind, data, root)
    in_pickles = issubclass(kind, torchvision.datasets.CIFAR10)
    parts, class_names = (_read_cifar if in_pickles else _read_mnist)(kind, paths)
    images = np.concatenate([part[0] for part in parts])  # (N, H, W, 3) or (N, H, W)
    labels = np.concatenate([part[1] for part in parts])  # (N,)
    names = [
        f"{split}/{i:05d}" for split, part in zip(("train", "test"), parts, strict=True) for i in range(len(part[0]))
    ]
    splits = np.repeat(np.array([0, 1], np.uint8), [len(part[0]) for part in parts])
    check_classes(class_names, str(root))
    if labels.size and (labels.min() < 0 or labels.max() >= len(class_names)):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{root}: {data} has {len(class_names)} classes, and a label is {wrong}; download it again")
    entries = [Entry(path.name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return Source(
        title=f"{data} ({len(names):,} images)",
        where=root,
        names=names,
        reader=PixelReader(images),
        attributes=np.zeros((len(names), 0), np.int8),
        attribute_names=(),
        splits=splits,
        identities=None,
        labels=labels,
        class_names=class_names,
        stamp=fingerprint(entries, labels, repr(class_names)),
        notes=["the training images are the split train, the test images the split valid"],
    )


def _files(kind: Any) -> list[str]:
    """Return the files of a data set, relative to its root, in the order in which they are read."""
    import torchvision.datasets

    if issubclass(kind, torchvision.datasets.MNIST):
        return [f"{kind.__name__}/raw/{name.removesuffix('.gz')}" for name, _ in kind.resources]
    names = [name for name, _ in (*kind.train_list, *kind.test_list)]
    return [f"{kind.base_folder}/{name}" for name in (*names, kind.meta["filename"])]


def _find(kind: Any, data: str, root: Path) -> list[Path]:
    """Return the paths of the files of a data set, which are downloaded if none of them is there."""
    paths = [root / name for name in _files(kind)]
    missing = [path for path in paths if not path.is_file()]
    why = f"{len(missing)} of {len(paths)} files of {data} are missing"
    if len(missing) == len(paths):  # never over files that were placed by hand
        try:
            _download(kind, data, root)
            missing = []
        except Exception as error:  # whatever the cause, the files are not there
            why = f"{data} cannot be downloaded ({in_one_line(error, 120) or type(error).__name__})"
    if missing:
        names = ", ".join(path.name for path in missing)
        raise FileNotFoundError(f"{root}: {why}; place {names} in {missing[0].parent}")
    return paths


def _download(kind: Any, data: str, root: Path) -> None:
    """Let torchvision download a data set. It checks what it downloads before it reads it."""
    import urllib.request

    import torchvision.datasets

    if issubclass(kind, torchvision.datasets.MNIST):
        archives = [(root / kind.__name__ / "raw" / name, kind.mirrors[0] + name) for name, _ in kind.resources]
    else:
        archives = [(root / kind.filename, kind.url)]
    if address := next((address for archive, address in archives if not archive.is_file()), None):
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "genmodels"})
        urllib.request.urlopen(request, timeout=TIMEOUT).close()  # torchvision itself waits without a limit
        say(f"downloading {data} into {root}")
    kind(str(root), download=True)


def _read_mnist(kind: Any, paths: list[Path]) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Return images (N, 28, 28) and labels (N,) of both parts, and the names of the classes."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    parts = []
    for images, labels in (paths[:2], paths[2:]):
        try:
            pixels, numbers = read_image_file(str(images)).numpy(), read_label_file(str(labels)).numpy()
        except Exception as error:  # torchvision raises errors of every kind on damaged files
            reason = in_one_line(error, 120) or "the header is not that of MNIST"
            raise ValueError(f"{images} or {labels.name} is damaged ({reason}); download both again") from None
        parts.append((pixels, _fitting(numbers, pixels, labels)))
    return parts, tuple(kind.classes)


def _read_cifar(kind: Any, paths: list[Path]) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Return images (N, 32, 32, 3) and labels (N,) of both parts, and the names of the classes."""
    *batches, meta = paths
    read = [_read_batch(path) for path in batches]
    count = len(kind.train_list)
    parts = [
        (np.concatenate([images for images, _ in part]), np.concatenate([labels for _, labels in part]))
        for part in (read[:count], read[count:])
    ]
    names = read_pickle(meta).get(kind.meta["key"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{meta} does not list the classes ({kind.meta['key']}): it is damaged; download it again")
    return parts, tuple(names)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 32, 32, 3) and labels (N,) of a file of CIFAR."""
    content = read_pickle(path)
    pixels, labels = content.get("data"), content.get("labels", content.get("fine_labels"))
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or not pixels.size or pixels.shape[1] != 3072:
        raise ValueError(f"{path} does not hold images of 32 x 32 pixels: it is damaged; download it again")
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 1 << 31 for label in labels):
        raise ValueError(f"{path} does not hold labels: it is damaged; download it again")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
    return images, _fitting(np.array(labels), images, path)


def _fitting(labels: np.ndarray, images: np.ndarray, path: Path) -> np.ndarray:
    if len(labels) != len(images):
        raise ValueError(f"{path} has {len(labels):,} labels for {len(images):,} images; download it again")
    return labels.astype(np.int32)
