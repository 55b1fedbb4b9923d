"""The subcommands that measure: evaluate and compare."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from genmodels.cli.arguments import check_free, chosen_options, load
from genmodels.cli.real_images import RealImages, read_subject, real_images, say_notes
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from genmodels.evaluation.extractors import Extractor
    from genmodels.evaluation.images import Images
    from genmodels.evaluation.results import Evaluation


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
    _check_numbers(n, batch_size)
    if json:
        check_free(json, force, ".json")

    from rich.console import Console

    from genmodels.evaluation.columns import terminal_table

    networks = _load_extractors(extractors)
    real = real_images([run], data, root, crop, split, size)
    images = _given(run, size, n, options)
    if images is None and size and not real.are_given:
        raise UsageError(f"--size {size}: a model has its own size; --size is for given images")
    result = _measure(run, images, real, networks, n, seed, batch_size, options)
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
    _check_numbers(n, batch_size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another --out")
    check_free(out / "index.html", force=False)

    from genmodels.evaluation.compare import write_report
    from genmodels.evaluation.protocol import FULL_N
    from genmodels.evaluation.results import comparable

    kept = {run: path for run in runs if (path := _kept_result(run))}
    fresh = [run for run in dict.fromkeys(runs) if run not in kept]
    results = {run: _read_kept(path) for run, path in kept.items()}
    comparable(list(results.values()))  # before any work
    if fresh:
        networks = _load_extractors(extractors)
        real = real_images(fresh, data, root, crop, split, size)
        given = {run: _given(run, size, n, ()) for run in fresh}
        # The same n for all: as many as the smallest of the given sets has.
        count = n or min([FULL_N, *(len(images) for images in given.values() if images is not None)])
        for place, run in enumerate(fresh, start=1):
            print(f"{place}/{len(fresh)}  {run}, {count:,} images", flush=True)
            results[run] = _measure(run, given[run], real, networks, count, seed, batch_size, ())
            comparable(list(results.values()))  # not only after the last one
    elif data or root or crop or n:
        raise UsageError("all of these were measured before: --data, --root, --crop and --n have no effect")
    flags = {"data": data, "root": root, "crop": crop, "split": split, "size": size, "n": n, "seed": seed}
    words = [part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))]
    command = shlex.join(["genmodels", "compare", *runs, *words, "--extractors", *extractors, "--out", str(out)])
    print(f"\nOpen {write_report([results[run] for run in runs], out, command)} in a browser.")


def _given(run: str, size: int | None, n: int | None, options: tuple[str, ...]) -> Images | None:
    """The images at `run`, n of them if n is given; None when `run` is a model."""
    from genmodels.evaluation.images import holds_images, read_images
    from genmodels.evaluation.reference import spread

    if not holds_images(Path(run)):
        return None
    if options:
        raise UsageError(f"{run} holds images: sampling options such as --options {options[0]} are for models")
    images = read_images(Path(run), size)
    say_notes(images, run)
    if n is not None and n > len(images):
        raise UsageError(f"--n {n}: {run} holds {len(images):,} images; choose --n {len(images)}, or leave it out")
    return images if n is None else spread(images, n)


def _measure(
    run: str,
    images: Images | None,
    real: RealImages,
    extractors: Callable[[], list[Extractor]],
    n: int | None,
    seed: int,
    batch_size: int,
    options: tuple[str, ...],
) -> Evaluation:
    """All scores of one model, or of `images`."""
    from dataclasses import replace

    from genmodels.evaluation.evaluate import evaluate as evaluate_model
    from genmodels.evaluation.evaluate import evaluate_images
    from genmodels.evaluation.protocol import FULL_N
    from genmodels.evaluation.reference import spread
    from genmodels.sampling import processes

    if images is not None:
        images = images if n is None else spread(images, n)
        result = evaluate_images(
            images, real.of_size(images.size), extractors(), batch_size=batch_size, device=processes().device
        )
        return replace(result, subject=replace(result.subject, name=run))
    model = load(run)
    chosen = chosen_options(model, options)
    return evaluate_model(
        model,
        real.of_size(model.config.size),
        extractors(),
        n=n or FULL_N,
        seed=seed,
        batch_size=batch_size,
        options=chosen,
        subject=read_subject(run, model.family),
    )


def _load_extractors(specs: tuple[str, ...]) -> Callable[[], list[Extractor]]:
    """Loads the extractors once, when they are first needed: after everything else has been checked."""
    from functools import cache

    from genmodels.evaluation.extractors import check_spec, load_extractor
    from genmodels.sampling import processes

    if not specs:
        raise UsageError("--extractors needs at least one name: faces, inception, dinov2 or clip")
    try:
        for spec in specs:
            check_spec(spec)
    except ValueError as error:
        raise UsageError(str(error)) from None

    @cache
    def loaded() -> list[Extractor]:
        return [load_extractor(spec, processes().device) for spec in dict.fromkeys(specs)]

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
    if path.name != "metrics.json" or not grid.is_file() or len(sizes) != 1:
        return result
    step = sizes.pop() + 2  # as `sampling.grid` lays them out: 2 pixels before, between and after
    try:
        with Image.open(grid) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError:
        print(f"{grid} is no picture: it is left out")
        return result
    if any(side % step != 2 for side in pixels.shape[:2]):
        return result  # a grid of something else
    rows, columns = (side // step for side in pixels.shape[:2])
    tiles = pixels[2:, 2:].reshape(rows, step, columns, step, 3).swapaxes(1, 2).reshape(-1, step, step, 3)[:, :-2, :-2]
    shown = tiles[(tiles != 255).any(axis=(1, 2, 3))]  # the last row is filled up with white
    return replace(result, pictures={"samples": shown}) if len(shown) else result


def _check_numbers(n: int | None, batch_size: int) -> None:
    if batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {batch_size}")
    if n is not None:
        from genmodels.evaluation.protocol import check_count

        try:
            check_count(n, f"--n {n}")
        except ValueError as error:
            raise UsageError(str(error)) from None
