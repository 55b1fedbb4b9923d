"""Configs of networks in folders of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genmodels.pretrained import CodecSettings, class_name
from genmodels.reading import read_json
from genmodels.saving import from_settings


def network_settings(folder: Path, kind: str) -> dict[str, Any]:
    """Read config.json of a network of class `kind`. A square sample_size becomes one number.

    Raises:
        ValueError: when the file is missing or damaged, is of another class, or is not for squares.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: the pipeline is incomplete")
    if class_name(file) != kind:
        raise ValueError(f"{folder} holds a {class_name(file)}, not a {kind}: that is not supported")
    settings = dict(read_json(file))
    side = settings.get("sample_size")
    if isinstance(side, list) and len(side) == 2:
        if side[0] != side[1]:
            raise ValueError(f"{file}: sample_size {side} is not square: that is not supported")
        settings["sample_size"] = side[0]
    return settings


def downsampling(folder: Path) -> int:
    """Return the factor by which an autoencoder downsamples."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: the pipeline is incomplete")
    return 2 ** (len(from_settings(CodecSettings, read_json(file), str(file)).block_out_channels) - 1)
