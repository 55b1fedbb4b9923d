"""Commands that sample images: sample and trajectory.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from genmodels.cli.arguments import NO_CONDITION, ConditionFlags, check_empty, check_free, chosen_options, open_model
from genmodels.usage import UsageError


def sample(
    run: Positional[str],
    n: int = 64,
    seed: int = 0,
    out: str = "samples.png",
    condition: OmitArgPrefixes[ConditionFlags] = NO_CONDITION,
    options: tuple[str, ...] = (),
    batch_size: int = 64,
    force: bool = False,
) -> None:
    """Sample images from a saved model.

    Options of the family are given by name, such as --temperature 0.9. `genmodels info RUN` lists
    them.

    Args:
        run: run or model folder, or an id on the Hub (user/name).
        n: number of images.
        seed: seed of the images. Image i of a seed is always the same, up to rounding.
        out: NAME.png for a grid, NAME.npy for uint8 (N, H, W, 3), or a new or empty folder for one
            file per image.
        condition: condition of the samples.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        batch_size: number of images computed at a time.
        force: overwrite an existing file.
    """
    target = Path(out)
    as_folder = out.endswith("/") or target.is_dir() or not target.suffix
    if not as_folder and target.suffix not in (".png", ".npy"):
        raise UsageError(f"--out {out}: end it in .png or .npy, or in / for a folder of files")

    from genmodels import pictures, sampling

    model = open_model(run, "sample")
    if as_folder:
        check_empty(target, "choose another --out")
    else:
        check_free(target, force)
    chosen = chosen_options(model, options)
    images = sampling.sample(model, n, seed, condition.of(model, n), batch_size=batch_size, **chosen)
    if sampling.processes().is_main_process:
        pictures.save_images(target, images)
        print(f"{n} images of seed {seed} in {target}")


def trajectory(
    run: Positional[str],
    n: int = 4,
    seed: int = 0,
    frames: int = 10,
    out: Path = Path("trajectory.png"),
    condition: OmitArgPrefixes[ConditionFlags] = NO_CONDITION,
    options: tuple[str, ...] = (),
    force: bool = False,
) -> None:
    """Show the steps by which noise becomes images.

    Each image has two rows: the image at that step, and the model's prediction of the final image
    there.

    Args:
        run: run or model folder, or an id on the Hub.
        n: number of images (image i of a seed is that of `genmodels sample`).
        seed: seed of the images.
        frames: number of steps to show, evenly spaced, with the first and the last.
        out: NAME.png for rows of images, or NAME.gif for an animation.
        condition: condition of the samples.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        force: overwrite an existing file.
    """
    if n < 1 or frames < 2:
        raise UsageError(f"--n must be at least 1 and --frames at least 2, got {n} and {frames}")

    import numpy as np

    from genmodels import pictures, sampling

    model = open_model(run, "trajectory")
    check_free(out, force, ".png", ".gif")
    chosen = chosen_options(model, options)
    steps = sampling.trajectory(model, n, seed, condition.of(model, n), **chosen)
    shown = np.linspace(0, steps.shape[2] - 1, min(frames, steps.shape[2])).round().astype(int)
    steps = steps[:, :, shown]  # (N, 2, frames, H, W, 3)
    if out.suffix == ".gif":
        every = steps.transpose(2, 1, 0, 3, 4, 5).reshape(len(shown), -1, *steps.shape[3:])  # (frames, 2 N, H, W, 3)
        pictures.save_animation(out, np.stack([np.asarray(pictures.grid(frame, n)) for frame in every]), 150)
    else:
        pictures.save_grid(out, steps.reshape(-1, *steps.shape[3:]), columns=len(shown))
    print(f"{n} images of seed {seed}, {len(shown)} steps of each, in {out}")
