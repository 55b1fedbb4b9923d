"""How a command line wants things measured, and which real images it compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from genmodels.cli.run_folder import read_recipe
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from genmodels.evaluation.images import Images
    from genmodels.evaluation.reference import Reference

BUILT_IN = ("toyfaces", "celeba", "folder")


@dataclass(frozen=True)
class Measuring:
    """What evaluate and compare are told alike."""

    data: str | None = None
    """The real images: toyfaces, celeba, folder, a packed directory, or images as for RUN. By default what the model
    was trained on, where its run folder says it."""
    root: Path | None = None
    """Where celeba or the folder lies."""
    crop: str | None = None
    """The named crop; by default the data set's own."""
    split: Literal["train", "valid", "test", "all"] = "valid"
    """Which images to compare with. The others serve for the real-versus-real floor."""
    size: int | None = None
    """Resize given images to this many pixels a side; a model has its own size."""
    n: int | None = None
    """How many images, at least 256; by default 2,048 samples of a model and all of given images. compare takes the
    same number of each."""
    seed: int = 0
    """Of the samples."""
    extractors: tuple[str, ...] = ("faces",)
    """Whose features are compared: faces, inception (FID), dinov2, clip; NAME=PATH for weights of your own. The first
    also looks for copies of training images."""
    batch_size: int = 64
    """Images at a time."""

    def check(self) -> None:
        """Refuse, before any work, numbers that cannot be."""
        if self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.n is not None:
            from genmodels.evaluation.protocol import check_count

            try:
                check_count(self.n, f"--n {self.n}")
            except ValueError as error:
                raise UsageError(str(error)) from None

    def flags(self) -> list[str]:
        """What to type for these settings."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        words = []
        for name, value in changed.items():
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
        return words


@dataclass
class RealImages:
    """The real images that a command line asks for, opened once their size is known.

    Attributes:
        data, root, crop: of the command line, or of the recipe of a run.
        split, size: of the command line.
    """

    data: str
    root: Path | None
    crop: str | None
    split: Literal["train", "valid", "test", "all"]
    size: int | None
    _opened: Reference | None = None

    @property
    def are_given(self) -> bool:
        """Whether they are plain images, of which nothing is known, and not a data set."""
        from genmodels.data.packed import is_packed

        return self.data not in BUILT_IN and not is_packed(Path(self.data))

    def check(self) -> None:
        """Refuse, before any work, data that cannot be there and settings without effect."""
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


def real_images(runs: Sequence[str], how: Measuring) -> RealImages:
    """What --data says, or what `runs` were trained on, if they agree; --root and --crop come before their recipes.

    Raises:
        UsageError: when nothing says it, or the runs disagree.
    """
    data, root, crop = how.data, how.root, how.crop
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
    chosen = RealImages(data, root, crop, how.split, how.size)
    chosen.check()
    return chosen


def say_notes(images: Images, name: str) -> None:
    """What was converted to get the images."""
    for note in images.notes:
        print(f"{name}: {note}")
