"""What values on a command line stand for: a model, a condition, sampling options, a file to write."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import genmodels
from genmodels.abilities import ABILITIES
from genmodels.cli.run_folder import last_metrics, read_recipe
from genmodels.usage import UsageError, one_line_refusals

if TYPE_CHECKING:
    import numpy as np

    from genmodels.base import Generator
    from genmodels.types import Condition


def check_free(path: Path, force: bool, *endings: str) -> None:
    """Refuse, before any work, a file that cannot or must not be written.

    Args:
        path: the file to write.
        force: it may exist.
        endings: those it may have, such as ".png"; none for any.
    """
    if endings and path.suffix not in endings:
        raise UsageError(f"{path}: the name of this file must end in {' or '.join(endings)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file in it")
    if path.exists() and not force:
        raise ValueError(f"{path} exists: choose another name, or overwrite it with --force")
    place = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(place, os.W_OK) or (place != path and not place.is_dir()):
        raise PermissionError(f"cannot write {path}: {place} does not allow it")


def check_empty(folder: Path) -> None:
    """Refuse, before any work, a folder to write that holds something, or is none."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: choose another")


def read_face(path: Path, size: int) -> np.ndarray:
    """The centre square of an image file, uint8 (size, size, 3). For aligned CelebA images that is the crop "178".

    Raises:
        ValueError: when the file is no image or smaller than `size`; the message says which.
    """
    from genmodels.data.decode import RefusedError, decode, known_formats

    try:
        with open(path, "rb") as file:
            return decode(file, "centre", size, aligned=False, formats=known_formats())[0]
    except RefusedError as reason:
        raise ValueError(f"{path}: {reason}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def read_mask(path: Path, size: int) -> np.ndarray:
    """Where a mask leaves an image visible: bool (size, size), True where the picture `path` is dark.

    Raises:
        ValueError: when the file is no picture, of another size, or leaves nothing to make up.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
    except UnidentifiedImageError:
        raise ValueError(f"--mask {path} is no picture") from None
    except OSError as error:
        raise ValueError(f"--mask {path}: {error.strerror or error}") from None
    if pixels.shape != (size, size):
        raise ValueError(
            f"--mask {path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, the model's images are {size} x {size}"
        )
    visible = pixels < 128
    if visible.all():
        raise ValueError(f"--mask {path} is black: paint white what shall be made up")
    return visible


def load(run: str) -> Generator:
    """The model of folder or Hub id `run`, on this process's device."""
    from genmodels.sampling import processes

    return genmodels.load(run).to(processes().device)


def chosen_options(model: Generator, settings: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE settings as the keyword arguments that `model.options` takes, read by the types of its fields."""
    import tyro

    given = dict(_name_and_value(setting, "--options") for setting in settings)
    known = [field.name for field in dataclasses.fields(model.options_class)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(
            f"unknown option {unknown[0]!r} for sampling {model.family}; known: {', '.join(known) or 'none'}"
        )
    flags = [f"--{name}={value}" for name, value in given.items()]
    with one_line_refusals():
        options: Any = tyro.cli(
            model.options_class,
            args=flags,
            prog="genmodels sample",
            add_help=False,
            config=(tyro.conf.FlagConversionOff,),
        )
    return {name: getattr(options, name) for name in given}


def condition_for(model: Generator, n: int, attributes: str, label: int | None) -> Condition:
    """The condition that --attributes and --label ask for, the same for each of `n` images."""
    import torch

    from genmodels.types import Condition

    wanted, labels = None, None
    if attributes:
        names = model.conditions.attributes
        if not names:
            raise UsageError(f"--attributes: this {model.family} was trained without attributes")
        wanted = torch.zeros(n, len(names))
        for part in attributes.split(","):
            name, value = _name_and_value(part, "--attributes")
            if name not in names:
                raise UsageError(f"unknown attribute {name!r}; this model knows: {', '.join(names)}")
            if value not in ("yes", "no"):
                raise UsageError(f"--attributes {part}: write yes or no, and leave out what is open")
            wanted[:, names.index(name)] = 1 if value == "yes" else -1
    if label is not None:
        classes = model.conditions.classes
        if not 0 <= label < classes:
            known = f"has classes 0 to {classes - 1}" if classes else "was trained without labels"
            raise UsageError(f"--label {label}: this {model.family} {known}")
        labels = torch.full((n,), label)
    return Condition(wanted, labels)


def _name_and_value(setting: str, flag: str) -> tuple[str, str]:
    name, equals, value = setting.strip().partition("=")
    if not (name and equals and value):
        raise UsageError(f"{flag} {setting}: write NAME=VALUE")
    return name.replace("-", "_") if flag == "--options" else name, value


def describe(run: str, model: Generator) -> dict[str, str]:
    """What there is to say of a saved model, by topic."""
    from genmodels.saving import to_dict

    facts = {
        "family": model.family,
        "capabilities": "; ".join(row.description for row in ABILITIES if model.can(row.name)),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "config": _listed(to_dict(model.config)),
        "sampling options": _listed(dataclasses.asdict(model.options_class())) or "none",
    }
    folder = Path(run)
    if folder.is_dir():
        weights = sum(
            path.stat().st_size for path in folder.glob("**/*.safetensors") if "checkpoints" not in path.parts
        )
        whole = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        facts["on disk"] = f"{weights / 1e6:.1f} MB of weights, {whole / 1e6:.1f} MB with checkpoints and samples"
        facts |= _training(run)
    return facts


def _training(run: str) -> dict[str, str]:
    """The recipe and the last line of the log, where the run folder has them."""
    found = {"recipe": _listed(read_recipe(run)), "last logged": _listed(last_metrics(run))}
    return {topic: text for topic, text in found.items() if text}


def _listed(values: dict[str, Any], prefix: str = "") -> str:
    """{"a": {"b": 1}, "c": 2} -> "a.b=1, c=2"."""
    parts = []
    for name, value in values.items():
        if isinstance(value, dict):
            parts.append(_listed(value, f"{prefix}{name}."))
        else:
            parts.append(f"{prefix}{name}={value:.5g}" if isinstance(value, float) else f"{prefix}{name}={value}")
    return ", ".join(parts)
