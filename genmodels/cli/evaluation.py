"""The subcommands that measure: evaluate and compare."""

from __future__ import annotations

import json as json_library
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from genmodels.cli.arguments import check_free, chosen_options, load
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from genmodels.evaluation.extractors import Extractor
    from genmodels.evaluation.reference import Reference
    from genmodels.evaluation.results import Evaluation, Subject

BUILT_IN = ("toyfaces", "celeba", "folder")


def evaluate(
    run: Positional[str],
    data: str | None = None,
    root: Path | None = None,
    crop: str | None = None,
    split: str = "valid",
    size: int | None = None,
    n: int | None = None,
    seed: int = 0,
    extractors: tuple[str, ...] = ("faces",),
    options: tuple[str, ...] = (),
    batch_size: int = 64,
    json: Path | None = None,
    force: bool = False,
) -> None:
    """Score a model, or anyone's images, against real images.

    A model is scored by all it can do: samples (Frechet and kernel distance, precision, recall, density, coverage,
    copies, diversity), reconstructions, likelihood, cost. The family's sampling options are given by name, such as
    --temperature 0.9. What each number means, and when it lies: docs/evaluation.md.

    Args:
        run: run or model folder, or an id on the Hub; or images: a folder, .zip, .npy or .npz.
        data: the real images: toyfaces, celeba, folder, a packed directory, or images as above. By default what the
            model was trained on, where its run folder says it.
        root: where celeba or the folder lies.
        crop: the named crop; by default the data set's own.
        split: which images to compare with: train, valid, test or all. The others serve for the real-versus-real floor.
        size: resize given images to this many pixels a side; a model has its own size.
        n: how many images; by default 2,048 samples of a model, and all of given images. At least 256.
        seed: of the samples.
        extractors: whose features are compared: faces, inception (FID), dinov2, clip; NAME=PATH for weights of your
            own. The first also looks for copies of training images.
        options: sampling options as NAME=VALUE; --NAME VALUE is short for it.
        batch_size: images at a time.
        json: also write the numbers and their protocols to this file.
        force: overwrite an existing file.
    """
    _check_numbers(n, batch_size, split)
    if json:
        check_free(json, force, ".json")

    from rich.console import Console

    from genmodels.evaluation.columns import terminal_table

    real = RealImages([run], data, root, crop, split, size)
    result = _measure(run, real, _load_extractors(extractors), size, n, seed, batch_size, options)
    console = Console()
    console.print(terminal_table(result))
    if any(score.protocol.small for score in result.scores.values()):
        print("* fewer than 2,048 images on one side: comparable at equal n only, and not worth quoting")
    for name, reason in result.absent.items():
        print(f"not measured: {name}: {reason}")
    for protocol in dict.fromkeys(
        score.protocol.in_words() for score in result.scores.values() if score.protocol.extractor
    ):
        print(f"protocol: {protocol}")
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(result.to_json())
        print(f"numbers and protocols in {json}")


def compare(
    runs: Positional[tuple[str, ...]],
    out: Path = Path("report"),
    data: str | None = None,
    root: Path | None = None,
    crop: str | None = None,
    split: str = "valid",
    size: int | None = None,
    n: int | None = None,
    seed: int = 0,
    extractors: tuple[str, ...] = ("faces",),
    batch_size: int = 64,
) -> None:
    """Score several models or sets of images under one protocol and write a page that compares them.

    The folder gets index.html (one self-contained page), results.json, results.csv and figures/*.png.

    Args:
        runs: as for evaluate; also .json files that evaluate wrote, and folders with such a metrics.json.
        out: a new or empty folder for the report.
        data, root, crop, split, size, seed, extractors, batch_size: as for evaluate.
        n: how many images of each; by default 2,048, fewer of given images when there are fewer.
    """
    if not runs:
        raise UsageError("nothing to compare. Usage: genmodels compare RUN... --out FOLDER")
    _check_numbers(n, batch_size, split)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another --out")

    from genmodels.evaluation.compare import write_report
    from genmodels.evaluation.protocol import FULL_N
    from genmodels.evaluation.results import comparable

    kept = {run: path for run in runs if (path := _kept_result(run))}
    fresh = [run for run in runs if run not in kept]
    results = {run: _read_kept(path) for run, path in kept.items()}
    comparable(list(results.values()))  # before any work
    if fresh:
        real = RealImages(fresh, data, root, crop, split, size)
        networks = _load_extractors(extractors)
        for place, run in enumerate(fresh, start=1):
            print(f"{place}/{len(fresh)}  {run}", flush=True)
            results[run] = _measure(run, real, networks, size, n or FULL_N, seed, batch_size, ())
            comparable(list(results.values()))  # not only after the last one
    command = shlex.join(["genmodels", "compare", *sys.argv[2:]])
    print(f"\nOpen {write_report([results[run] for run in runs], out, command)} in a browser.")


class RealImages:
    """The real images that a command line asks for, opened once the size is known.

    Args:
        runs: whose training data is the default.
        data, root, crop, split, size: of the command line.
    """

    def __init__(
        self, runs: Sequence[str], data: str | None, root: Path | None, crop: str | None, split: str, size: int | None
    ):
        if data is None:
            data, root, crop = self._trained_on(runs, root, crop)
        self.data, self.root, self.crop, self.split, self.size = data, root, crop, split, size
        self._opened: Reference | None = None

    def of_size(self, size: int) -> Reference:
        """The real images at `size` pixels.

        Raises:
            ValueError: when they cannot be had at that size.
        """
        from genmodels.data import open_data
        from genmodels.data.packed import is_packed
        from genmodels.evaluation.images import read_images
        from genmodels.evaluation.reference import reference_from, reference_from_images

        if self._opened is None or self._opened.images.size != size:
            path = Path(self.data)
            if self.data in BUILT_IN or is_packed(path):
                self._opened = reference_from(open_data(self.data, self.root, size, self.crop), self.split)
            elif path.exists():
                self._opened = reference_from_images(read_images(path, self.size))
                _say(self._opened.images.notes, self.data)
            else:
                raise ValueError(f"--data {self.data}: expected {', '.join(BUILT_IN)}, or the path of real images")
        return self._opened

    @staticmethod
    def _trained_on(runs: Sequence[str], root: Path | None, crop: str | None) -> tuple[str, Path | None, str | None]:
        """Data, root and crop in the recipes of `runs`, which must agree; flags come first."""
        import yaml

        found: dict[tuple[str, str | None, str | None], str] = {}
        for run in runs:
            recipe = Path(run) / "config.yaml"
            if recipe.is_file():
                settings = yaml.safe_load(recipe.read_text())
                found.setdefault((settings.get("data", ""), settings.get("root"), settings.get("crop")), run)
        if not found:
            raise UsageError(
                f"compared with which real images? {runs[0]} does not say what it was trained on: give --data"
            )
        if len(found) > 1:
            (first, one), (second, other) = list(found.items())[:2]
            raise UsageError(
                f"{one} was trained on {first[0]} and {other} on {second[0]}, with other settings: "
                "say with --data which real images to compare with"
            )
        data, known_root, known_crop = next(iter(found))
        return data, root or (Path(known_root) if known_root else None), crop or known_crop


def _measure(
    run: str,
    real: RealImages,
    extractors: Callable[[], list[Extractor]],
    size: int | None,
    n: int | None,
    seed: int,
    batch_size: int,
    options: tuple[str, ...],
) -> Evaluation:
    """All scores of one model or set of images."""
    from dataclasses import replace

    from genmodels.evaluation.evaluate import evaluate as evaluate_model
    from genmodels.evaluation.evaluate import evaluate_images
    from genmodels.evaluation.images import holds_images, read_images
    from genmodels.evaluation.protocol import FULL_N
    from genmodels.evaluation.reference import spread

    if holds_images(Path(run)):
        if options:
            raise UsageError(f"{run} holds images: sampling options such as --options {options[0]} are for models")
        images = read_images(Path(run), size)
        _say(images.notes, run)
        images = images if n is None else spread(images, n)
        result = evaluate_images(images, real.of_size(images.size), extractors(), batch_size=batch_size)
        return replace(result, subject=replace(result.subject, name=run))
    model = load(run)
    reference = real.of_size(model.config.size)
    return evaluate_model(
        model,
        reference,
        extractors(),
        n=n or FULL_N,
        seed=seed,
        batch_size=batch_size,
        options=chosen_options(model, options),
        subject=_subject(run, model.family),
    )


def _subject(run: str, family: str) -> Subject:
    """What the run folder says of a model."""
    import yaml

    from genmodels.evaluation.results import Subject

    folder, weights = Path(run), ""
    training: dict[str, float] = {}
    if (recipe := folder / "config.yaml").is_file():
        weights = "EMA" if yaml.safe_load(recipe.read_text()).get("ema") else "raw"
    if (log := folder / "metrics.jsonl").is_file() and (lines := log.read_text().splitlines()):
        last = json_library.loads(lines[-1])
        training = {name: last[key] for name, key in (("images", "images"), ("steps", "step")) if key in last}
        training |= {"minutes": last["elapsed"] / 60} if "elapsed" in last else {}
    return Subject(run, family, weights, training=training)


def _load_extractors(specs: tuple[str, ...]) -> Callable[[], list[Extractor]]:
    """Loads the extractors once, when they are first needed: after everything else has been checked."""
    from functools import cache

    from genmodels.evaluation.extractors import load_extractor
    from genmodels.sampling import processes

    if not specs:
        raise UsageError("--extractors needs at least one name: faces, inception, dinov2 or clip")

    @cache
    def loaded() -> list[Extractor]:
        return [load_extractor(spec, processes().device) for spec in specs]

    return loaded


def _kept_result(run: str) -> Path | None:
    """The file of numbers that `run` is or holds; None when it is a model or images."""
    path = Path(run)
    if path.suffix == ".json":
        return path
    a_model = (path / "config.json").exists()  # is measured anew
    return path / "metrics.json" if (path / "metrics.json").is_file() and not a_model else None


def _read_kept(path: Path) -> Evaluation:
    """Numbers measured earlier, with the grid of samples beside them if there is one."""
    from dataclasses import replace

    import numpy as np
    from PIL import Image

    from genmodels.evaluation.results import read_evaluation

    result = read_evaluation(path)
    grid = path.with_name("samples.png")
    sizes = {score.protocol.size for score in result.scores.values() if score.protocol.size}
    if not grid.is_file() or len(sizes) != 1:
        return result
    (size,) = sizes
    with Image.open(grid) as image:
        pixels = np.asarray(image.convert("RGB"))
    places = [range(2, length - size, size + 2) for length in pixels.shape[:2]]  # as `sampling.grid` lays them out
    tiles: Any = [pixels[y : y + size, x : x + size] for y in places[0] for x in places[1]]
    return replace(result, pictures={"samples": np.stack(tiles)}) if tiles else result


def _check_numbers(n: int | None, batch_size: int, split: str) -> None:
    if batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {batch_size}")
    if split not in ("train", "valid", "test", "all"):
        raise UsageError(f"--split {split}: expected train, valid, test or all")
    if n is not None:
        from genmodels.evaluation.protocol import check_count

        try:
            check_count(n, f"--n {n}")
        except ValueError as error:
            raise UsageError(str(error)) from None


def _say(notes: tuple[str, ...], name: str) -> None:
    for note in notes:
        print(f"{name}: {note}")
