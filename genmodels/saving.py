"""Reading and checking what is saved as JSON: typed configs and headers of saved models."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from genmodels.reading import read_json, read_json_lines
from genmodels.writing import write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
"""Version of config.json. A folder of another version is refused."""
MODEL_FILES = ("model.safetensors", "config.json")
"""Files of a saved model. A folder with a config.json is complete, so the weights come first."""

T = TypeVar("T")
Derived = Annotated[T, tyro.conf.Suppress]
"""Type of a config field that is computed from other settings. It is saved, but is not a flag."""


def read_last_line(path: Path) -> dict[str, Any]:
    """Return the last complete line of a file of JSON lines (metrics.jsonl), or {}."""
    return next(reversed(read_json_lines(path)), {})


def load_weights(model: Any, path: Path) -> None:
    """Load model.safetensors into a model.

    Raises:
        ValueError: if the file is missing or damaged, or holds the weights of another config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: config.json is there but {path.name} is not: save the model again") from None
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: not the weights of this config ({reason}); the file is damaged or mixed up"
        ) from None


def write_model(folder: Path, family: str, config: Any, weights: Mapping[str, Tensor]) -> None:
    """Write model.safetensors and config.json into an existing folder."""
    from safetensors.torch import save_file

    tensors, header = (folder / name for name in MODEL_FILES)
    save_file({name: value.contiguous() for name, value in weights.items()}, tensors)
    write_json(header, {"format": FORMAT, "family": family, "model": to_dict(config)}, indent=2)
    # safetensors makes the file readable by its owner only: use the permissions of config.json.
    tensors.chmod(header.stat().st_mode)


def reset_derived(config: T, **values: Any) -> T:
    """Return a copy of a config with its derived fields at their defaults, or at `values`.

    The copy is not validated, because other fields may still change. Nested configs are not
    changed.
    """
    config = copy.copy(config)
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if tyro.conf.Suppress in getattr(hints[field.name], "__metadata__", ()):
            object.__setattr__(config, field.name, field.default)  # configs are frozen
    for name, value in values.items():
        object.__setattr__(config, name, value)
    return config


def read_header(path: Path) -> dict[str, Any]:
    """Read and check config.json of a model folder: {"format", "family", "model"}.

    Raises:
        ValueError: if it is missing, damaged, not written by genmodels, or of another version.
    """
    try:
        header = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a saved model: it has no config.json") from None
    if not isinstance(header, dict) or not {"format", "family", "model"} <= header.keys():
        raise ValueError(f"{path} was not written by genmodels: it lacks format, family or model")
    version = header["format"]
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        remedy = "upgrade genmodels" if newer else "load it with the genmodels that wrote it, or train it again"
        raise ValueError(f"{path} has format {version}; this genmodels reads format {FORMAT}: {remedy}")
    return header


def to_dict(value: Any) -> Any:
    """Return a config as dicts, tuples and plain values: the inverse of `from_dict`.

    It is `dataclasses.asdict`, except that a dataclass may have a property `unused_fields`: names
    of fields that have no effect, given the values of the others. They are left out, so that only
    settings that were used are recorded; `from_dict` sets them to their defaults.

    Args:
        value: a dataclass, which may contain others.
    """
    if dataclasses.is_dataclass(value):
        unused = getattr(value, "unused_fields", ())
        names = [field.name for field in dataclasses.fields(value) if field.name not in unused]
        return {name: to_dict(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(to_dict(item) for item in value)
    return value


def from_dict(kind: Any, value: Any, where: str = "config") -> Any:
    """Build a typed value from plain JSON or YAML.

    Nested dataclasses, tuples, Path, Literal and Optional are restored. A whole float given for an
    integer is converted, and an integer given for a float too.

    Args:
        kind: the type, such as a dataclass.
        value: what JSON or YAML holds.
        where: what to call the value in an error.

    Raises:
        ValueError: if a field is unknown or a value has another type.
    """
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return from_dict(typing.get_args(kind)[0], value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return from_dict(next(k for k in typing.get_args(kind) if k is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass_from(kind, value, where)
    if origin is tuple or kind is tuple:
        inner = typing.get_args(kind) or (Any, ...)
        count = None if inner[-1] is ... else len(inner)
        if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
            raise ValueError(f"{where}: expected a list{f' of {count}' if count else ''}, got {value!r}")
        return tuple(from_dict(inner[0], item, where) for item in value)
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{where}: expected a number, got {value!r}")
        if kind is int and not float(value).is_integer():
            raise ValueError(f"{where}: expected a whole number, got {value!r}")
        return kind(value)
    if kind in (str, Path) and not isinstance(value, str):
        raise ValueError(f"{where}: expected text, got {value!r}")
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{where}: expected true or false, got {value!r}")
    if origin is typing.Literal and value not in typing.get_args(kind):
        raise ValueError(f"{where}: expected one of {', '.join(map(repr, typing.get_args(kind)))}, got {value!r}")
    return Path(value) if kind is Path else value


def _dataclass_from(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a group of settings, got {value!r}")
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for name in value:
        if name not in known:
            raise ValueError(f"{where}: unknown setting {name!r}; known: {', '.join(known)}")
    return kind(**{name: from_dict(hints[name], item, f"{where}: {name}") for name, item in value.items()})
