"""Reading and checking what is saved as JSON: typed configs and headers of saved models."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import sys
import types
import typing
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from genmodels.reading import in_one_line, read_json, read_json_lines, read_yaml
from genmodels.writing import write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
"""Version of config.json. A folder of another version is refused."""
MODEL_FILES = ("model.safetensors", "config.json")
"""Files of a saved model. A folder with a config.json is complete, so the weights come first."""
FOREIGN = ("clip", "llama", "llava")
"""Kinds of models of transformers that are imported, as their config.json names them."""
HALVED = 1024
"""Smallest tensor that `halve` stores in half precision, in numbers."""
LARGEST = 2**63 - 1
"""Largest integer in a config."""

T = TypeVar("T")
Derived = Annotated[T, tyro.conf.Suppress]
"""Type of a config field that is computed from other settings. It is saved, but is not a flag."""


def read_last_line(path: Path, report: Callable[[str], object] | None = None) -> dict[str, int | float]:
    """Return the numbers in the last complete line of metrics.jsonl, or {}.

    Args:
        path: the file.
        report: called with a message for each line that is damaged.
    """
    last: dict[str, Any] = next(iter(deque(read_json_lines(path, report), maxlen=1)), {})
    return {
        name: value for name, value in last.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


@dataclass(frozen=True)
class EarlierMinutes:
    """What config.yaml of a run records about the training of the models that it began with."""

    codec_minutes: float = 0.0
    text_minutes: float = 0.0
    parent_minutes: float = 0.0


def trained_minutes(run: Path) -> float:
    """Return the minutes for which the model of a run folder was trained, with those of its codec, its
    text encoder and the models that it began with; 0 for a folder without a log.

    Raises:
        ValueError: if config.yaml is damaged, or a number in it is of another type.
    """
    file = run / "config.yaml"
    before = from_settings(EarlierMinutes, read_yaml(file) if file.is_file() else {}, str(file))
    return read_last_line(run / "metrics.jsonl").get("elapsed", 0.0) / 60 + sum(dataclasses.astuple(before))


def write_model(folder: Path, family: str, config: Any, weights: Mapping[str, Tensor]) -> None:
    """Write model.safetensors and config.json into an existing folder."""
    from safetensors.torch import save_file

    tensors, header = (folder / name for name in MODEL_FILES)
    save_file({name: value.contiguous() for name, value in weights.items()}, tensors)
    write_json(header, {"format": FORMAT, "family": family, "model": to_dict(config)}, indent=2)
    # safetensors makes the file readable by its owner only: use the permissions of config.json.
    tensors.chmod(header.stat().st_mode)


def halve(folder: Path) -> None:
    """Store the weights of a saved model of float32 in half precision, from which it is loaded as
    float32. Small tensors, such as biases and statistics, stay as they are.

    Raises:
        ValueError: if a weight is too large for half precision.
    """
    import torch
    from safetensors.torch import load_file, save_file

    tensors, header = (folder / name for name in MODEL_FILES)
    weights = load_file(tensors)
    for name, value in weights.items():
        if value.dtype == torch.float32 and value.numel() >= HALVED:
            weights[name] = value.half()
            if not weights[name].isfinite().all():
                raise ValueError(f"{tensors}: {name} is too large for half precision")
    mode = tensors.stat().st_mode
    save_file(weights, tensors)
    tensors.chmod(mode)
    write_json(header, read_json(header) | {"precision": "float32"}, indent=2)


def reset_derived(config: T, **values: Any) -> T:
    """Return a copy of a config with its derived fields at their defaults, or at `values`.

    The copy is not validated, because other fields may still change. The same holds for nested
    configs.
    """
    config = copy.copy(config)
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if tyro.conf.Suppress in getattr(hints[field.name], "__metadata__", ()):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            object.__setattr__(config, field.name, default)  # configs are frozen
        elif dataclasses.is_dataclass(value):
            object.__setattr__(config, field.name, reset_derived(value))
    for name, value in values.items():
        object.__setattr__(config, name, value)
    return config


def read_header(path: Path) -> dict[str, Any]:
    """Read and check config.json of a model folder: {"format", "family", "model"}, and "precision"
    if the weights are loaded in another precision than they are stored in.

    Raises:
        ValueError: if it is missing, damaged, not written by genmodels, or of another version.
    """
    try:
        header = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a saved model: it has no config.json") from None
    if not isinstance(header, dict) or not {"format", "family", "model"} <= header.keys():
        raise ValueError(f"{path} was not written by genmodels: it lacks format, family or model")
    if not isinstance(header["family"], str):
        raise _wrong(f"{path}: family", "text", header["family"])
    version = header["format"]
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        remedy = "upgrade genmodels" if newer else "load it with the genmodels that wrote it, or train it again"
        raise ValueError(f"{path} has format {str(version)[:20]}; this genmodels reads format {FORMAT}: {remedy}")
    if header.setdefault("precision", None) not in (None, "float32"):
        raise _wrong(f"{path}: precision", "float32", header["precision"])
    return header


def is_foreign(folder: Path) -> bool:
    """Return whether a folder holds a model of another library that has a counterpart here: a
    pipeline of diffusers, or a CLIPModel, LlamaForCausalLM or LlavaForConditionalGeneration of
    transformers."""
    if (folder / "model_index.json").is_file():
        return True
    file = folder / "config.json"
    settings = read_json(file) if file.is_file() else None
    return isinstance(settings, dict) and settings.get("model_type") in FOREIGN


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


@dataclass(frozen=True)
class Range:
    """Limits of a number or of the length of a tuple, as metadata of the type of a field:
    Annotated[int, Range(1, 64)]."""

    low: float
    high: float = math.inf


def from_dict(kind: Any, value: Any, where: str = "config") -> Any:
    """Build a typed value from plain JSON or YAML, or from a dataclass that was built in Python.

    Nested dataclasses, tuples, dicts, Path, Literal and Optional are restored. A whole float given
    for an integer is converted, and an integer given for a float too. A path that begins with ~ is
    below the user's home.

    Args:
        kind: the type, such as a dataclass.
        value: what JSON or YAML holds, or a dataclass, whose values are checked in the same way.
        where: what to call the value in an error.

    Raises:
        ValueError: if a field is unknown, absent without a default, or has another type; or a
            number is outside of its `Range` or too large.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        made = from_dict(inner[0], value, where)
        for limits in inner[1:]:
            size = len(made) if isinstance(made, tuple) else made
            if isinstance(limits, Range) and not limits.low <= size <= limits.high:
                most = f" and at most {limits.high:,g}" if limits.high < math.inf else ""
                raise _wrong(where, f"at least {limits.low:g}{most}", value)
        return made
    if origin in (typing.Union, types.UnionType):
        return None if value is None else from_dict(next(k for k in inner if k is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass_from(kind, value, where)
    if origin is tuple or kind is tuple:
        return _tuple_from(inner or (Any, ...), value, where)
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise _wrong(where, "a group of settings", value)
        return {name: from_dict(inner[1] if inner else Any, item, f"{where}: {name}") for name, item in value.items()}
    if origin is typing.Literal:
        if value not in inner:
            raise _wrong(where, f"one of {', '.join(map(repr, inner))}", value)
        return inner[inner.index(value)]
    if kind in (int, float):
        return _number_from(kind, value, where)
    if kind is Path and isinstance(value, (str, Path)) and "\0" not in str(value):
        return Path(os.path.expanduser(value))
    if kind is Path or (kind is str and not isinstance(value, str)):
        raise _wrong(where, "text", value)
    if kind is bool and not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def from_settings(kind: type[T], settings: Any, where: str) -> T:
    """Build a dataclass from the settings of another library, of which it has some.

    Raises:
        ValueError: see `from_dict`. Settings that are not fields are left out.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(settings, dict):
        raise _wrong(where, "a group of settings", settings)
    return from_dict(kind, {name: value for name, value in settings.items() if name in names}, where)


def _wrong(where: str, expected: str, value: Any) -> ValueError:
    given = repr(value)
    return ValueError(f"{where}: expected {expected}, got {given if len(given) <= 80 else given[:77] + '...'}")


def _number_from(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(where, "a number", value)
    if not abs(value) <= (LARGEST if kind is int else sys.float_info.max):
        raise _wrong(where, f"a number of at most {LARGEST:,}" if kind is int else "a finite number", value)
    if kind is int and value != int(value):
        raise _wrong(where, "a whole number", value)
    return kind(value)


def _tuple_from(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    count = None if inner[-1] is ... else len(inner)
    if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
        raise _wrong(where, f"a list{f' of {count}' if count else ''}", value)
    kinds = (inner[0],) * len(value) if count is None else inner
    return tuple(from_dict(kind, item, where) for kind, item in zip(kinds, value, strict=True))


def _dataclass_from(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value):  # its class may be another one
        kind, value = type(value), {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    if not isinstance(value, dict):
        raise _wrong(where, "a group of settings", value)
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for name in value:
        if name not in fields:
            raise ValueError(f"{where}: unknown setting {str(name)[:60]!r}; known: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where} has no {name}")
    made = {name: from_dict(hints[name], item, f"{where}: {name}") for name, item in value.items()}
    try:
        return kind(**made)
    except ValueError as error:
        text = in_one_line(error)
        raise ValueError(text if where in text else f"{where}: {text}") from None
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"{where}: these settings do not go together ({in_one_line(error)})") from error
