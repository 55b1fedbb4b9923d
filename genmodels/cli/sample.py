"""Commands that sample images: sample and trajectory.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

from genmodels.cli.arguments import (
    NO_CONDITION,
    SHOWN,
    ConditionFlags,
    ShownFlags,
    check_empty,
    check_free,
    chosen_options,
    open_model,
    read_lines,
)
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from genmodels.candidates import BestOf
    from genmodels.conditions import Condition


def sample(
    run: Positional[str],
    n: int | None = None,
    seed: int = 0,
    out: str = "samples.png",
    condition: OmitArgPrefixes[ConditionFlags] = NO_CONDITION,
    prompts: Path | None = None,
    options: tuple[str, ...] = (),
    batch_size: int = 64,
    best_of: int = 1,
    data: str | None = None,
    root: Path | None = None,
    extractor: str = "faces",
    prompt_filter: Path | None = None,
    quantize: Literal["int8", "fp8"] | None = None,
    shown: OmitArgPrefixes[ShownFlags] = SHOWN,
    force: bool = False,
) -> None:
    """Sample images from a saved model.

    Options of the family are given by name, such as --temperature 0.9. `genmodels info RUN` lists
    them.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub (user/name).
        n: number of images, 64 by default; with --prompts, of each prompt, 8 by default.
        seed: seed of the images. Image i of a seed is always the same, up to rounding.
        out: NAME.png for a grid, NAME.npy for uint8 (N, H, W, 3), or a new or empty folder for one
            file per image.
        condition: condition of the samples.
        prompts: text file with a prompt on each line. Each gives a row of samples, all rows from
            the same noise.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        batch_size: number of images computed at a time.
        best_of: number of candidates per image, of which the most realistic one is kept. Sampling
            takes that many times as long.
        data: real images to compare candidates with: a data set by name or a packed directory, of
            which the train split is used, or a set of images (a folder, .zip, .npy or .npz). By
            default, what the run was trained on.
        root: where the files of the data set are. By default, that of the run.
        extractor: extractor whose features candidates are compared by, as for evaluate.
        prompt_filter: refuse prompts by a text file with a word or phrase on each line, or by the
            folder of a sequence classifier of transformers, whose class 0 is allowed.
        quantize: round the weights of the linear layers of transformer blocks to 8 bits, which needs
            the extra fp8. Images change slightly.
        shown: how images are checked and marked.
        force: overwrite an existing file.
    """
    if best_of < 1:
        raise UsageError(f"--best-of must be at least 1, got {best_of}")
    if best_of == 1 and (data or root or extractor != "faces"):
        raise UsageError("--data, --root and --extractor are for --best-of: leave them out, or give --best-of")
    if prompts is not None and condition.prompt is not None:
        raise UsageError("--prompt and --prompts both say what the images should show: give one of them")
    count = n if n is not None else 64 if prompts is None else 8
    target = Path(out)
    as_folder = out.endswith("/") or target.is_dir() or not target.suffix
    if not as_folder and target.suffix not in (".png", ".npy"):
        raise UsageError(f"--out {out}: end it in .png or .npy, or in / for a folder of files")

    import numpy as np

    from genmodels import pictures, sampling
    from genmodels.nn.low_precision import quantize as quantize_blocks

    model = open_model(run, "sample", shown)
    if as_folder:
        check_empty(target, "choose another --out")
    else:
        check_free(target, force)
    chosen = chosen_options(model, options)
    rows = [condition] if prompts is None else [replace(condition, prompt=text) for text in read_lines(prompts)]
    if prompt_filter is not None:
        from genmodels.prompt_filter import check_prompts

        check_prompts([row.prompt for row in rows if row.prompt is not None], prompt_filter)
    conditions = [row.of(model, count) for row in rows]
    quantized = quantize_blocks(model, quantize) if quantize else ""
    columns = None if prompts is None else count
    mark = shown.mark(model, None if as_folder else target, count * len(rows), columns)
    best = _best(run, model, best_of, data, root, extractor, batch_size) if best_of > 1 else None
    parts = [
        sampling.sample(model, count, seed, given, batch_size=batch_size, best=best, **chosen) for given in conditions
    ]
    if sampling.processes().is_main_process:
        pictures.save_images(target, np.concatenate(parts), columns, mark)
        of_each = "" if prompts is None else f" of each of {len(parts)} prompts"
        print(f"{count} images{of_each} of seed {seed} in {target}")
        if quantized:
            print(quantized)
        if best:
            print(f"each image is the {best}; {_cost(model, best, conditions[0], chosen)}")


def _best(
    run: str, model: Any, count: int, data: str | None, root: Path | None, extractor: str, batch_size: int
) -> BestOf:
    """Return the choice of the most realistic of `count` candidates, compared with training images."""
    from genmodels.cli.real_images import EvaluationFlags, real_images
    from genmodels.evaluation.extractors import load_extractor
    from genmodels.evaluation.realism import most_realistic

    size = model.config.size
    real = real_images([run], EvaluationFlags(data=data, root=root, size=size))
    if not real.are_given:
        real.split = "train"
    return most_realistic(count, real.of_size(size).images, load_extractor(extractor, model.device), batch_size)


def _cost(model: Any, best: BestOf, conditions: Condition, options: dict[str, Any]) -> str:
    """Return what one image costs, candidates and their scores included."""
    from genmodels import sampling
    from genmodels.evaluation.columns import amount
    from genmodels.evaluation.cost import sampling_operations

    first = conditions[slice(0, 1)]
    operations, calls = sampling_operations(
        model, lambda: sampling.sample(model, 1, condition=first, best=best, progress=False, **options)
    )
    return f"an image takes {calls} network evaluations and {amount(operations, 'FLOPs')}, scores included"


def trajectory(
    run: Positional[str],
    n: int = 4,
    seed: int = 0,
    frames: int = 10,
    out: Path = Path("trajectory.png"),
    condition: OmitArgPrefixes[ConditionFlags] = NO_CONDITION,
    options: tuple[str, ...] = (),
    shown: OmitArgPrefixes[ShownFlags] = SHOWN,
    force: bool = False,
) -> None:
    """Show the steps by which noise becomes images.

    Each image has two rows: the image at that step, and the model's prediction of the final image
    there.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        n: number of images (image i of a seed is that of `genmodels sample`).
        seed: seed of the images.
        frames: number of steps to show, evenly spaced, with the first and the last.
        out: NAME.png for rows of images, or NAME.gif for an animation.
        condition: condition of the samples.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        shown: how images are checked and marked.
        force: overwrite an existing file.
    """
    if n < 1 or frames < 2:
        raise UsageError(f"--n must be at least 1 and --frames at least 2, got {n} and {frames}")

    import numpy as np

    from genmodels import pictures, sampling

    model = open_model(run, "trajectory", shown)
    check_free(out, force, ".png", ".gif")
    chosen = chosen_options(model, options)
    mark = shown.mark(model, out, 2 * n * frames, frames)
    steps = sampling.trajectory(model, n, seed, condition.of(model, n), **chosen)
    rows = np.linspace(0, steps.shape[2] - 1, min(frames, steps.shape[2])).round().astype(int)
    steps = steps[:, :, rows]  # (N, 2, frames, H, W, 3)
    if out.suffix == ".gif":
        every = steps.transpose(2, 1, 0, 3, 4, 5).reshape(len(rows), -1, *steps.shape[3:])  # (frames, 2 N, H, W, 3)
        pictures.save_animation(out, np.stack([np.asarray(pictures.grid(frame, n)) for frame in every]), 150)
    else:
        pictures.save_grid(out, steps.reshape(-1, *steps.shape[3:]), len(rows), mark)
    print(f"{n} images of seed {seed}, {len(rows)} steps of each, in {out}")
