"""Checksums of files and of weights. PyTorch is imported only when weights are hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from genmodels.reading import check_regular

if TYPE_CHECKING:
    from torch import Tensor, nn


def file_sha256(path: Path) -> str:
    """Return the SHA-256 checksum of the file `path` in hexadecimal.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a regular file.
    """
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(weights: nn.Module | Mapping[str, Tensor], names: bool = True) -> str:
    """Return 16 hex digits that identify weights: a hash of types, shapes and values.

    Args:
        weights: tensors by name, or a module, whose `config` (a dataclass, where there is one) and
            buffers are included.
        names: include the names of the tensors. Pass False for weights from another library, which
            may rename its layers between versions.
    """
    import torch

    config = None
    if not isinstance(weights, Mapping):
        config, weights = getattr(weights, "config", None), weights.state_dict()
    digests = []
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        digests.append(hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode()).digest())
    for name, tensor in weights.items():
        header = f"{tensor.dtype} {tuple(tensor.shape)}"
        digest = hashlib.sha256(f"{name} {header}".encode() if names else header.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]
