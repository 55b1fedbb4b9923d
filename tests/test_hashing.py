"""Checksums of files and weights."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from genmodels.ae import AE, AEConfig
from genmodels.hashing import file_sha256, weights_hash

TINY = AEConfig(size=8, channels=(8,), encoder_blocks=(1,), decoder_blocks=(1,), latent_dim=2)


def test_file_checksum_is_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "absent")


def test_the_hash_of_a_model_includes_config_names_weights_and_buffers() -> None:
    model = AE(TINY)
    before = weights_hash(model)
    assert before == weights_hash(model) and len(before) == 16
    assert before != weights_hash(model.state_dict()), "the config is part of a model"
    other = AE(TINY)
    other.load_state_dict(model.state_dict())
    assert weights_hash(other) == before
    name, buffer = next(iter(model.named_buffers()))
    buffer.add_(1)
    assert weights_hash(model) != before, name


def test_names_count_unless_they_are_left_out() -> None:
    tensors = {"a": torch.ones(2), "b": torch.zeros(2)}
    swapped = {"b": torch.ones(2), "a": torch.zeros(2)}
    assert weights_hash(tensors) == weights_hash(dict(reversed(tensors.items())))
    assert weights_hash(tensors) != weights_hash(swapped)
    assert weights_hash(tensors, names=False) == weights_hash(swapped, names=False)


def test_a_module_without_a_config_is_hashed_by_its_tensors() -> None:
    layer = nn.Linear(2, 3)
    assert weights_hash(layer) == weights_hash(layer.state_dict())


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, genmodels.hashing, genmodels.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
