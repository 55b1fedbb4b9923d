"""Arguments that several commands share: model, condition, sampling options, files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import genmodels
from genmodels.usage import UsageError, one_line_refusals
from genmodels.writing import is_free

if TYPE_CHECKING:
    import numpy as np

    from genmodels.base import Model
    from genmodels.conditions import Condition
    from genmodels.pictures import Mark


@dataclass(frozen=True)
class ShownFlags:
    """How generated images are checked and marked: flags shared by all commands that show them."""

    safety_checker: bool = True
    """Images that the model's safety checker flags are black. Only some imported models have one."""
    image_filter: Path | None = None
    """Images that an image classifier of yours flags are black: the folder of one of transformers, whose
    class 0 is allowed."""
    watermark: bool = False
    """Also mark PNG files by an invisible watermark, which needs the extra watermark and pictures of
    at least 256 x 256 pixels."""

    def mark(self, model: Model, path: Path | None, count: int, columns: int | None = None) -> Mark:
        """Return the marks of the picture of `count` images that a command will write at `path`, or of
        each of them in a folder (None).

        Raises:
            UsageError: if it cannot have a watermark.
        """
        from genmodels import pictures

        if self.watermark:
            try:
                pictures.check_watermark(path, count, model.config.size, columns)
            except ValueError as error:
                raise UsageError(str(error)) from None
        return pictures.Mark(model.kind, self.watermark)


SHOWN = ShownFlags()
"""The default: images are checked, and marked in the metadata of PNG files."""


def load(run: str, shown: ShownFlags = SHOWN) -> Any:
    """Load the model of folder or Hub id `run`, with its filters, onto the device of this process."""
    from genmodels.sampling import processes

    model = genmodels.load(run, safety_checker=shown.safety_checker).to(processes().device)
    if shown.image_filter is not None:
        from genmodels.image_filter import image_filter

        model.image_filter = image_filter(shown.image_filter)
    return model


def open_model(run: str, ability: str, shown: ShownFlags = SHOWN) -> Any:
    """Load the model of a command that needs an ability, before it reads other files.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        ability: a name in `genmodels.abilities`.
        shown: how the images of the command are checked.

    Raises:
        ValueError: if there is no such model, or it lacks the ability.
    """
    from genmodels import sampling

    model = load(run, shown)
    sampling.require(model, ability)
    return model


@dataclass(frozen=True)
class ConditionFlags:
    """Condition of the samples: flags shared by all commands that sample conditionally."""

    attributes: str = ""
    """Attributes that the images should have or should not have, such as Smiling=yes,Eyeglasses=no.
    Attributes that are not named can have any value."""
    label: str | None = None
    """Name or number of the class that the images should belong to, such as "sea lion"."""
    prompt: str | None = None
    """Sentence that describes the images, such as "an old man with glasses"."""

    def as_dict(self) -> dict[str, Any]:
        """Return the flags as `ConditionConfig.condition` takes them."""
        values: dict[str, Any] = {}
        for part in filter(None, self.attributes.split(",")):
            name, value = name_and_value(part, "--attributes")
            if value not in ("yes", "no"):
                raise UsageError(f"--attributes {part.strip()}: write yes or no, or leave the attribute out")
            values[name] = value
        if self.label is not None:
            values["label"] = self.label
        if self.prompt is not None:
            values["prompt"] = self.prompt
        return values

    def of(self, model: Model, n: int) -> Condition:
        """Return the condition of `n` images, the same for each.

        Raises:
            UsageError: if the model was not trained with it.
        """
        from genmodels.conditions import condition_of

        try:
            return condition_of(model, self.as_dict(), n)
        except ValueError as error:
            raise UsageError(str(error)) from None


NO_CONDITION = ConditionFlags()
"""The default: no condition."""


def chosen_options(model: Model, settings: tuple[str, ...]) -> dict[str, Any]:
    """Convert NAME=VALUE settings to typed keyword arguments of `Generator.options`.

    Raises:
        UsageError: if the model has no such option, or a value does not fit.
    """
    import tyro

    if not settings:
        return {}
    given = dict(name_and_value(setting, "--options") for setting in settings)
    kind: Any = model.options_class if model.can("sample") else None  # type: ignore[attr-defined]
    known = [field.name for field in dataclasses.fields(kind)] if kind else []
    for name in given:
        if name not in known:
            raise UsageError(f"unknown option {name!r} for sampling {model.kind}; known: {', '.join(known) or 'none'}")
    with one_line_refusals():
        options: Any = tyro.cli(
            kind,
            args=[f"--{name}={value}" for name, value in given.items()],
            prog="genmodels sample",
            add_help=False,
            config=(tyro.conf.FlagConversionOff,),
        )
    return {name: getattr(options, name) for name in given}


def name_and_value(setting: str, flag: str) -> tuple[str, str]:
    """Split NAME=VALUE.

    Raises:
        UsageError: if it is not of this form; names the flag.
    """
    name, equals, value = setting.strip().partition("=")
    if not (name and equals and value):
        raise UsageError(f"{flag} {setting}: write NAME=VALUE")
    return name.replace("-", "_") if flag == "--options" else name, value


def check_free(path: Path, force: bool, *endings: str) -> None:
    """Refuse a file that cannot be written or must not be overwritten, before any work.

    Args:
        path: file to write.
        force: whether it may be overwritten.
        endings: endings that it may have, such as ".png"; none for any.
    """
    if endings and path.suffix not in endings:
        raise UsageError(f"{path}: the name of this file must end in {' or '.join(endings)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file in it")
    if path.exists() and not force:
        raise ValueError(f"{path} exists: choose another name, or overwrite it with --force")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"cannot write {path}: the file is read-only")
    _check_writable(path, path.absolute().parent)  # an atomic write creates a file there


def check_empty(folder: Path, hint: str = "choose another") -> None:
    """Refuse a folder that is not empty or cannot be written to, or a file, before any work."""
    if not is_free(folder):
        raise ValueError(f"{folder} is not an empty folder: {hint}")
    _check_writable(folder, folder.absolute())


def _check_writable(path: Path, folder: Path) -> None:
    """Refuse to write `path` if `folder`, or the one that it would be created in, does not allow it."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise PermissionError(f"cannot write {path}: {place} does not allow it")


def check_images_given(images: Sequence[Path], command: str) -> None:
    """Refuse a command line without image files."""
    if not images:
        raise UsageError(f"no images given. Usage: genmodels {command} RUN IMAGE...")


def is_image(item: str) -> bool:
    """Return whether an argument names an image file, which may be missing, and is no sentence and no
    text file."""
    from genmodels.image_files import SUFFIXES

    a_file = os.path.isfile(item) and not item.endswith(".txt")  # Path.is_file fails on long sentences
    return a_file or item.lower().endswith(SUFFIXES)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not empty.

    Raises:
        ValueError: if there is none; names the file.
    """
    from genmodels.reading import read_text

    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: write one prompt on each line")
    return lines


def read_images(paths: Sequence[Path], size: int) -> np.ndarray:
    """Read the centre square of image files, resized: uint8 (N, size, size, 3).

    For aligned CelebA images this is the crop "178".

    Raises:
        ValueError: if a file is not an image or is smaller than `size`; names the file.
    """
    import numpy as np

    from genmodels.data.decode import decode
    from genmodels.image_files import image_file

    images = []
    for path in paths:
        with image_file(path) as file:
            images.append(decode(file, "centre", size, aligned=False)[0])
    return np.stack(images)


def read_mask(path: Path, size: int) -> np.ndarray:
    """Read a mask of known pixels: bool (size, size), True where the picture is dark or
    transparent.

    Raises:
        ValueError: if the file is not an image, has another size, or marks every pixel as known.
    """
    import numpy as np

    from genmodels.image_files import image_file, open_image, to_rgb

    with image_file(path) as file:
        pixels = np.asarray(to_rgb(open_image(file)[0], background="black")[0].convert("L"))
    if pixels.shape != (size, size):
        raise ValueError(
            f"--mask {path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, the model's images are {size} x {size}"
        )
    known = pixels < 128
    if known.all():
        raise ValueError(
            f"--mask {path} is black: make the region white that the model should complete "
            "(transparent pixels count as black)"
        )
    return known
