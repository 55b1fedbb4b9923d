"""Options of evaluate and compare, and the real images that they compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from genmodels.cli.run_folder import read_trained
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from genmodels.evaluation.images import Images
    from genmodels.evaluation.reference import Reference


@dataclass(frozen=True)
class EvaluationFlags:
    """Options shared by evaluate and compare."""

    data: str | None = None
    """Real images: a data set by name, such as toyfaces or folder, a packed directory, or a set of
    images as for RUN. By default, the data that the model was trained on."""
    root: Path | None = None
    """Where the files of a data set are, such as the folder of celeba or folder."""
    crop: str | None = None
    """Crop of the images. By default, that of the data set."""
    split: Literal["train", "valid", "test", "all"] | None = None
    """Split to compare with. By default, valid, or train if no image is held out. The others are
    used for the floor, the distance between real images and real images."""
    size: int | None = None
    """Side in pixels that a set of images is resized to. A model has its own size."""
    n: int | None = None
    """Number of images, at least 256. By default, 2,048 samples of a model, or all images of a set.
    compare uses the same number for all."""
    seed: int = 0
    """Seed of the samples."""
    extractors: tuple[str, ...] = ("faces",)
    """Extractors whose features are compared: faces, inception (FID), dinov2 or clip; NAME=PATH for
    your own weights, such as clip=runs/clip. The first one is also used to look for copies of
    training images."""
    batch_size: int = 64
    """Number of images computed at a time."""
    best_of: int = 1
    """Number of candidates per sample of a model, of which the most realistic one is kept. The first
    extractor compares them with the training images."""

    def check(self) -> None:
        """Refuse numbers that cannot work, before any work."""
        if self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.best_of < 1:
            raise UsageError(f"--best-of must be at least 1, got {self.best_of}")
        if self.n is not None:
            from genmodels.evaluation.protocol import check_count

            try:
                check_count(self.n, f"--n {self.n}")
            except ValueError as error:
                raise UsageError(str(error)) from None

    def flags(self) -> list[str]:
        """Return the flags that give these settings."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        words = []
        for name, value in changed.items():
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
        return words


@dataclass
class RealImages:
    """Real images of a command line, opened when their size is known.

    Attributes:
        data, root, crop: from the command line, or from the recipe of a run.
        split, size: from the command line.
    """

    data: str
    root: Path | None
    crop: str | None
    split: Literal["train", "valid", "test", "all"] | None
    size: int | None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the data that runs were trained on, by run, if the data come from their
    recipes."""
    _opened: Reference | None = None

    @property
    def are_given(self) -> bool:
        """Whether they are a plain set of images and not a data set with splits."""
        from genmodels.data import SOURCES
        from genmodels.data.directory import is_packed

        return self.data not in SOURCES and not is_packed(Path(self.data))

    def check(self) -> None:
        """Refuse data that does not exist and settings without effect, before any work."""
        if not self.are_given:
            return
        if not Path(self.data).exists():
            from genmodels.data import SOURCES

            raise ValueError(f"--data {self.data}: expected {', '.join(SOURCES)}, or the path of real images")
        if self.root or self.crop or self.split:
            raise UsageError(f"--data {self.data} is a set of images: leave out --root, --crop and --split")

    def of_size(self, size: int) -> Reference:
        """Open the images at `size` pixels, or, for a plain set of images, at --size.

        Raises:
            ValueError: if they are not available at that size.
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
                data = open_data(self.data, self.root, size, self.crop)
                for run, fingerprint in self.fingerprints.items():
                    if data.size == size and data.fingerprint != fingerprint:
                        raise ValueError(
                            f"{run} was trained on other images than {self.data} holds now (fingerprint {fingerprint}, "
                            f"now {data.fingerprint}): choose the real images to compare with by --data"
                        )
                self._opened = reference_from(data, self.split)
        return self._opened


def real_images(runs: Sequence[str], how: EvaluationFlags) -> RealImages:
    """Return the real images of --data, or those that all `runs` were trained on.

    --root and --crop take precedence over the recipes of the runs.

    Raises:
        UsageError: if neither names any, or the runs were trained on different images.
    """
    from genmodels.data import SOURCES
    from genmodels.data.packed import IN_MEMORY

    data, root, crop = how.data, how.root, how.crop
    if data is None:
        fingerprints: dict[str, str] = {}
        recorded_by: dict[tuple[str, Path | None, str | None], str] = {}
        for run in runs:
            trained = read_trained(run)
            if trained.data and trained.fingerprint and trained.data != IN_MEMORY:
                fingerprints[run] = trained.fingerprint
                place = root or (trained.root and trained.root.resolve())
                recorded_by.setdefault((trained.data, place, crop or trained.crop), run)
        if not recorded_by:
            missing = next((run for run in runs if not Path(run).exists()), None)
            remedy = "give --data, the real images to compare with"
            if missing:
                raise UsageError(f"there is no {missing} here; if it is the id of a model on the Hub, {remedy}")
            raise UsageError(f"{runs[0]} does not record which images it was trained on: {remedy}")
        if len(recorded_by) > 1:
            (first, one), (second, other) = list(recorded_by.items())[:2]
            differing = " and ".join(f"{a} / {b}" for a, b in zip(first, second, strict=True) if a != b)
            raise UsageError(
                f"{one} and {other} were trained on different images ({differing}): choose the real "
                "images to compare with by --data, --root and --crop"
            )
        (data, root, crop), run = next(iter(recorded_by.items()))
        if data not in SOURCES and not Path(data).exists():
            raise UsageError(f"{data}, the training images of {run}, does not exist: give --data, the real images")
        if root is not None and not root.exists():
            raise ValueError(f"{root}, which held the training images of {run}, does not exist: give --root")
    if how.data is not None or how.crop is not None:
        fingerprints = {}  # --data or --crop selects other images than those of the runs
    chosen = RealImages(data, root, crop, how.split, how.size, fingerprints)
    chosen.check()
    return chosen


def say_notes(images: Images, name: str) -> None:
    """Print how images were converted when they were read."""
    for note in images.notes:
        print(f"{name}: {note}")
