"""Commands that evaluate: evaluate and compare.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes, Positional

from genmodels.cli.arguments import check_free, chosen_options, load
from genmodels.cli.real_images import EvaluationFlags, RealImages, real_images, say_notes
from genmodels.cli.run_folder import read_subject, read_trained
from genmodels.usage import UsageError, console, say
from genmodels.writing import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from genmodels.evaluation.extractors import Extractor
    from genmodels.evaluation.images import Images
    from genmodels.evaluation.results import Evaluation

DEFAULTS = EvaluationFlags()


def evaluate(
    run: Positional[str],
    settings: OmitArgPrefixes[EvaluationFlags] = DEFAULTS,
    options: tuple[str, ...] = (),
    json: Path | None = None,
    force: bool = False,
) -> None:
    """Score a model, or a set of images, against real images.

    A model is scored on everything that it can do: samples (Frechet and kernel distance, precision,
    recall, density, coverage, copies, diversity), reconstructions, likelihood and cost. Sampling
    options of the family are given by name, such as --temperature 0.9. docs/evaluation.md explains
    each metric and its limits.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub; or a set of images: a folder,
            .zip, .npy or .npz.
        settings: options shared by evaluate and compare.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        json: file to which the metrics and their protocols are also written.
        force: overwrite an existing file.
    """
    settings.check()
    if json:
        check_free(json, force, ".json")

    from genmodels.evaluation.columns import terminal_table

    networks = _load_extractors(settings.extractors)
    real = real_images([run], settings)
    images = _given(run, settings, options)
    if images is None and settings.size and not real.are_given:
        raise UsageError(f"--size {settings.size}: a model has its own size; --size is for given images")
    result = _measure(run, images, real, networks, settings, options)
    console().print(terminal_table(result))
    if any(score.protocol.small for score in result.scores.values()):
        print("* fewer than 2,048 images on one side: comparable only at equal n, and too few to quote")
    for name, reason in result.absent.items():
        print(f"not measured: {name}: {reason}")
    if result.subject.choice:
        print(f"samples: each the {result.subject.choice}")
    for note in result.subject.notes if images is None else ():  # of images, they were printed before
        print(f"note: {note}")
    for protocol in dict.fromkeys(
        score.protocol.in_words() for score in result.scores.values() if score.protocol.extractor
    ):
        print(f"protocol: {protocol}")
    if json:
        write_text(json, result.to_json())
        print(f"metrics and protocols in {json}")


def compare(
    runs: Positional[tuple[str, ...]],
    settings: OmitArgPrefixes[EvaluationFlags] = DEFAULTS,
    out: Path = Path("report"),
    force: bool = False,
) -> None:
    """Score several models or sets of images and write a page that compares them.

    The folder gets index.html (one self-contained page), results.json, results.csv and
    figures/*.png. All runs are checked before the first one is measured, and those without a model
    yet are left out.

    Args:
        runs: models or sets of images as for evaluate; .json files that evaluate wrote; or folders
            with such a metrics.json.
        settings: options shared by evaluate and compare.
        out: new or empty folder for the report.
        force: replace an earlier report.
    """
    if not runs:
        raise UsageError("nothing to compare. Usage: genmodels compare RUN... --out FOLDER")
    settings.check()
    from genmodels.evaluation.compare import check_place, write_report
    from genmodels.evaluation.results import comparable

    check_place(out, force)
    check_free(out / "index.html", force)
    kept = {run: path for run in runs if (path := _saved_result(run))}
    results = {run: _read_saved(path) for run, path in kept.items()}
    comparable(list(results.values()))  # before any work
    fresh = _with_models([run for run in dict.fromkeys(runs) if run not in kept])
    if not fresh and not kept:
        raise ValueError("nothing to compare: none of these runs has a model yet")
    failure: BaseException | None = None
    if fresh:
        failure = _measure_all(fresh, settings, results)
    elif settings.flags():
        raise UsageError(f"all of these have been evaluated already: {' '.join(settings.flags())} has no effect")
    shown = [run for run in runs if run in results]
    if failure is not None and not shown:
        raise failure
    command = shlex.join(["genmodels", "compare", *shown, *settings.flags(), "--out", str(out)])
    page = write_report([results[run] for run in shown], out, command, force)
    print(f"\nOpen {page} in a browser.")
    if isinstance(failure, KeyboardInterrupt):
        raise failure
    if failure is not None:
        missing = ", ".join(run for run in fresh if run not in results)
        raise ValueError(f"the report leaves out {missing}, whose evaluation failed: {failure}") from failure


def _with_models(runs: list[str]) -> list[str]:
    """Return `runs` without the run folders that have no model yet, which are named."""
    folders = [(run, Path(run)) for run in runs]
    unfinished = [run for run, at in folders if (at / "config.yaml").is_file() and not (at / "config.json").exists()]
    for run in unfinished:
        say(f"{run} is left out: it has no model yet; --resume continues its training")
    return [run for run in runs if run not in unfinished]


def _measure_all(runs: list[str], settings: EvaluationFlags, results: dict[str, Evaluation]) -> BaseException | None:
    """Evaluate `runs` with the same number of images, and add their evaluations to `results`.

    All are opened first, so that what cannot work fails before anything is measured. A failure
    after that, or Ctrl-C, does not cost the evaluations of the others.

    Returns:
        the last failure, or None.
    """
    from genmodels.evaluation.protocol import FULL_N
    from genmodels.evaluation.results import comparable

    networks = _load_extractors(settings.extractors)
    real = real_images(runs, settings)
    given = {run: _given(run, settings, ()) for run in runs}
    sizes = {run: _model_size(run) if images is None else images.size for run, images in given.items()}
    sizes |= {
        run: score.protocol.size for run, e in results.items() for score in e.scores.values() if score.protocol.size
    }
    if other := next((run for run in sizes if sizes[run] != sizes[runs[0]]), None):
        raise ValueError(
            f"{runs[0]} has {sizes[runs[0]]} px and {other} {sizes[other]}: their scores cannot be compared; compare "
            "images of one size (--size resizes sets of images)"
        )
    real.of_size(sizes[runs[0]])
    # The same n for all: as many as the smallest of the given sets has.
    count = settings.n or min([FULL_N, *(len(images) for images in given.values() if images is not None)])
    failure: BaseException | None = None
    for place, run in enumerate(runs, start=1):
        print(f"{place}/{len(runs)}  {run}, {count:,} images", flush=True)
        result = None
        try:
            result = _measure(run, given[run], real, networks, replace(settings, n=count), ())
            comparable([*results.values(), result])  # not only after the last one
            results[run] = result
        except KeyboardInterrupt as stopped:
            return stopped
        except Exception as error:
            if result is not None and place == 1:  # earlier scores of another protocol: so would be all others
                raise
            failure = error
            say(f"{run} is left out: {error}")
    return failure


def _model_size(run: str) -> int:
    """Return the side of the images of a model. Only a model of another library is loaded for it.

    Raises:
        ValueError: if there is no such model, or its config or weights are damaged.
    """
    import genmodels
    from genmodels.hub import folder_of
    from genmodels.saving import from_dict, is_foreign, read_header
    from genmodels.weights import read_shapes

    folder = folder_of(run)
    if is_foreign(folder):
        return genmodels.load(folder).config.size
    file = folder / "config.json"
    header = read_header(file)
    read_shapes(folder / "model.safetensors")
    return from_dict(genmodels.family(header["family"]).Config, header["model"], str(file)).size


def _given(run: str, settings: EvaluationFlags, options: tuple[str, ...]) -> Images | None:
    """Return the images at `run`, at most --n of them; None if `run` is a model."""
    from genmodels.evaluation.images import holds_images, read_images
    from genmodels.evaluation.reference import spread

    if not holds_images(Path(run)):
        return None
    if options:
        raise UsageError(f"{run} holds images: sampling options such as --options {options[0]} are for models")
    if settings.best_of > 1:
        raise UsageError(f"{run} holds images: --best-of {settings.best_of} is for models")
    images = read_images(Path(run), settings.size)
    say_notes(images, run)
    if settings.n is not None and settings.n > len(images):
        raise UsageError(
            f"--n {settings.n}: {run} holds {len(images):,} images; choose --n {len(images)}, or leave it out"
        )
    return images if settings.n is None else spread(images, settings.n)


def _measure(
    run: str,
    images: Images | None,
    real: RealImages,
    extractors: Callable[[], list[Extractor]],
    settings: EvaluationFlags,
    options: tuple[str, ...],
) -> Evaluation:
    """Evaluate one model, or `images`."""
    from genmodels.evaluation.evaluate import evaluate as evaluate_model
    from genmodels.evaluation.evaluate import evaluate_images
    from genmodels.evaluation.protocol import FULL_N
    from genmodels.evaluation.reference import spread
    from genmodels.sampling import processes

    if images is not None:
        images = images if settings.n is None else spread(images, settings.n)
        result = evaluate_images(
            images, real.of_size(images.size), extractors(), batch_size=settings.batch_size, device=processes().device
        )
        return replace(result, subject=replace(result.subject, name=run))
    model = load(run)
    chosen = chosen_options(model, options)
    networks, subject = extractors(), read_subject(run, model.family)
    notes = subject.notes + chosen_by(run, networks)
    return evaluate_model(
        model,
        real.of_size(model.config.size),
        networks,
        n=settings.n or FULL_N,
        seed=settings.seed,
        batch_size=settings.batch_size,
        options=chosen,
        best_of=settings.best_of,
        subject=replace(subject, notes=notes),
    )


def chosen_by(run: str, extractors: Sequence[Extractor]) -> tuple[str, ...]:
    """Return a note for each extractor that chose the preference pairs of a run (genmodels prefer)."""
    judges = read_trained(run).judges
    return tuple(
        f"{extractor.name} chose the preference pairs that the model was trained on: its scores do not judge it "
        "independently"
        for extractor in extractors
        if extractor.weights in judges
    )


def _load_extractors(specs: tuple[str, ...]) -> Callable[[], list[Extractor]]:
    """Return a function that loads the extractors at its first call, after all checks."""
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


def _saved_result(run: str) -> Path | None:
    """Return the file of metrics that `run` is or holds; None if it is a model or images."""
    path = Path(run)
    if path.suffix == ".json":
        return path
    a_model = (path / "config.json").exists()  # it is evaluated again
    return path / "metrics.json" if (path / "metrics.json").is_file() and not a_model else None


def _read_saved(path: Path) -> Evaluation:
    """Read metrics of an earlier evaluation, with the grid of samples if there is one."""
    from genmodels import pictures
    from genmodels.evaluation.results import read_evaluation

    result = read_evaluation(path)
    grid = path.with_name("samples.png")
    sizes = {score.protocol.size for score in result.scores.values() if score.protocol.size}
    if path.name != "metrics.json" or not grid.is_file() or len(sizes) != 1:
        return result
    try:
        return replace(result, pictures={"samples": pictures.cut_grid(grid, sizes.pop())})
    except ValueError as error:
        print(f"left out: {error}")
        return result
