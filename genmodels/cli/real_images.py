"""Which real images a command line compares with, and what a run folder says of its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmodels.usage import UsageError

if TYPE_CHECKING:
    from genmodels.evaluation.images import Images
    from genmodels.evaluation.reference import Reference
    from genmodels.evaluation.results import Subject

BUILT_IN = ("toyfaces", "celeba", "folder")
SPLITS = ("train", "valid", "test", "all")


@dataclass
class RealImages:
    """The real images that a command line asks for, opened once their size is known.

    Attributes:
        data, root, crop, split, size: of the command line.
    """

    data: str
    root: Path | None
    crop: str | None
    split: str
    size: int | None
    _opened: Reference | None = None

    @property
    def are_given(self) -> bool:
        """Whether they are plain images, of which nothing is known, and not a data set."""
        from genmodels.data.packed import is_packed

        return self.data not in BUILT_IN and not is_packed(Path(self.data))

    def check(self) -> None:
        """Refuse, before any work, data that cannot be there and settings without effect."""
        if self.split not in SPLITS:
            raise UsageError(f"--split {self.split}: expected {', '.join(SPLITS[:-1])} or all")
        if not self.are_given:
            return
        if not Path(self.data).exists():
            raise ValueError(f"--data {self.data}: expected {', '.join(BUILT_IN)}, or the path of real images")
        if self.root or self.crop or self.split != "valid":
            raise UsageError(f"--data {self.data} is a set of images: leave out --root, --crop and --split")

    def of_size(self, size: int) -> Reference:
        """The real images at `size` pixels, or at --size, if they are plain images.

        Raises:
            ValueError: when they cannot be had at that size.
        """
        from genmodels.data import open_data
        from genmodels.evaluation.images import read_images
        from genmodels.evaluation.reference import reference_from, reference_from_images

        if self._opened is None or self._opened.images.size != size:
            if self.are_given:
                images = read_images(Path(self.data), self.size)
                say_notes(images, self.data)
                self._opened = reference_from_images(images)
            else:
                self._opened = reference_from(open_data(self.data, self.root, size, self.crop), self.split)
        return self._opened


def real_images(
    runs: Sequence[str], data: str | None, root: Path | None, crop: str | None, split: str, size: int | None
) -> RealImages:
    """What --data says, or what `runs` were trained on, if they agree; --root and --crop come before their recipes.

    Raises:
        UsageError: when nothing says it, or the runs disagree.
    """
    if data is None:
        found: dict[tuple[str, Path | None, str | None], str] = {}
        for run in runs:
            if settings := read_recipe(run):
                recorded = Path(settings["root"]) if settings.get("root") else None
                place = root or (recorded and recorded.resolve())
                found.setdefault((str(settings.get("data")), place, crop or settings.get("crop")), run)
        if not found:
            missing = next((run for run in runs if not Path(run).exists()), None)
            hint = f"; there is no folder {missing} here" if missing else ""
            raise UsageError(
                f"compared with which real images? {runs[0]} does not say what it was trained on: give --data{hint}"
            )
        if len(found) > 1:
            (first, one), (second, other) = list(found.items())[:2]
            differing = " and ".join(f"{a} / {b}" for a, b in zip(first, second, strict=True) if a != b)
            raise UsageError(
                f"{one} and {other} were trained on different images ({differing}): say with --data, --root and --crop "
                "which ones to compare with"
            )
        data, root, crop = next(iter(found))
        if root is not None and not root.exists():
            raise ValueError(f"{root}, where {runs[0]} found its training images, is not there: give --root")
    chosen = RealImages(data, root, crop, split, size)
    chosen.check()
    return chosen


def read_recipe(run: str) -> dict[str, Any]:
    """The settings in RUN/config.yaml; {} when there are none.

    Raises:
        ValueError: when the file is damaged.
    """
    import yaml

    file = Path(run) / "config.yaml"
    if not file.is_file():
        return {}
    try:
        settings = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML ({' '.join(str(error).split())}); the file is damaged") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not a recipe: the file is damaged")
    return settings


def read_subject(run: str, family: str) -> Subject:
    """What the run folder says of a model: which weights it holds, and how long it was trained."""
    from genmodels.evaluation.results import Subject

    recipe, log = read_recipe(run), Path(run) / "metrics.jsonl"
    weights = "" if not recipe else "EMA" if recipe.get("ema") else "raw"
    last: dict[str, Any] = {}
    for line in log.read_text().splitlines() if log.is_file() else ():
        try:
            last = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
    training = {name: last[key] for name, key in (("images", "images"), ("steps", "step")) if key in last}
    training |= {"minutes": last["elapsed"] / 60} if "elapsed" in last else {}
    return Subject(run, family, weights, training=training)


def say_notes(images: Images, name: str) -> None:
    """What was converted to get the images."""
    for note in images.notes:
        print(f"{name}: {note}")
