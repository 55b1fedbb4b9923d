"""The subcommands of `genmodels`. Signatures and docstrings are the command line's; slow imports stay inside."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from tyro.conf import Positional

from genmodels.cli.arguments import (
    check_empty,
    check_free,
    chosen_options,
    condition_for,
    describe,
    load,
    read_face,
    read_mask,
)
from genmodels.usage import UsageError


def train(family: Positional[str], arguments: Positional[tuple[str, ...]] = ()) -> None:
    """Train a model of FAMILY in one process; `genmodels train FAMILY --help` lists its arguments.

    This runs recipes/FAMILY.py. On several processes: accelerate launch recipes/FAMILY.py ARGUMENTS.

    Args:
        family: which recipe to run.
        arguments: what the recipe takes, such as --data celeba --root PATH --output runs/vae --minutes 10.
    """
    package = Path(__file__).parent.parent
    folders = [package / "recipes", package.parent / "recipes"]  # in an installed package; in a checkout
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    known = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    if family not in known:
        problem = f"unknown family {family!r}." if family else "which family?"
        raise UsageError(f"{problem} Known: {', '.join(known)}. Usage: genmodels train FAMILY ARGUMENTS")
    before = sys.argv
    sys.argv = [f"genmodels train {family}", *arguments]
    try:
        runpy.run_path(str(known[family]), run_name="__main__")
    finally:
        sys.argv = before


def sample(
    run: Positional[str],
    n: int = 64,
    seed: int = 0,
    out: str = "samples.png",
    attributes: str = "",
    label: int | None = None,
    options: tuple[str, ...] = (),
    batch_size: int = 64,
    force: bool = False,
) -> None:
    """Draw images from a saved model.

    The family's own options are given by name, such as --temperature 0.9; `genmodels info RUN` lists them.

    Args:
        run: run or model folder, or an id on the Hub (user/name).
        n: how many images.
        seed: which images; image i of a seed is always the same.
        out: NAME.png for a grid, NAME.npy for uint8 (N, H, W, 3), or a new or empty folder for one file per image.
        attributes: what a conditional model is asked for, such as Smiling=yes,Eyeglasses=no; what is not named is open.
        label: the class a class-conditional model is asked for.
        options: the family's own options as NAME=VALUE; --NAME VALUE is short for it.
        batch_size: images at a time.
        force: overwrite an existing file.
    """
    target = Path(out)
    as_folder = out.endswith("/") or target.is_dir() or not target.suffix
    if as_folder and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder: choose another --out")
    if not as_folder:
        if target.suffix not in (".png", ".npy"):
            raise UsageError(f"--out {out}: end it in .png or .npy, or in / for a folder of files")
        check_free(target, force)

    from genmodels import pictures, sampling

    model = load(run)
    images = sampling.sample(
        model,
        n,
        seed,
        condition_for(model, n, attributes, label),
        batch_size=batch_size,
        **chosen_options(model, options),
    )
    if sampling.processes().is_main_process:
        pictures.save_images(target, images)
        print(f"{n} images of seed {seed} in {target}")


def reconstruct(
    run: Positional[str], images: Positional[tuple[Path, ...]], out: Path = Path("pairs.png"), force: bool = False
) -> None:
    """Show images above what the model makes of them.

    Args:
        run: run or model folder, or an id on the Hub.
        images: image files; aligned CelebA faces (178 x 218) get the usual crop, others their centre square.
        out: the picture to write.
        force: overwrite an existing file.
    """
    if not images:
        raise UsageError("no images given. Usage: genmodels reconstruct RUN IMAGE...")
    check_free(out, force, ".png")

    import numpy as np

    from genmodels import pictures, sampling

    model = load(run)
    shown = np.stack([read_face(path, model.config.size) for path in images])  # (N, H, W, 3)
    columns = min(len(shown), 16)
    pictures.save_grid(out, pictures.in_pairs(shown, sampling.reconstruct(model, shown), columns), columns)
    print(f"{len(shown)} images, each above its reconstruction, in {out}")


def inpaint(
    run: Positional[str],
    images: Positional[tuple[Path, ...]],
    known: float = 0.5,
    mask: Path | None = None,
    n: int = 6,
    seed: int = 0,
    out: Path = Path("completed.png"),
    attributes: str = "",
    label: int | None = None,
    options: tuple[str, ...] = (),
    force: bool = False,
) -> None:
    """Complete images of which only a part is shown to the model: the upper one, or what a mask leaves.

    Each row of the picture: the whole image, what the model sees of it, and N ways to go on.

    Args:
        run: run or model folder, or an id on the Hub.
        images: image files; aligned CelebA faces (178 x 218) get the usual crop, others their centre square.
        known: share of the rows that are shown.
        mask: instead, a picture of the model's size, black where images are shown and white where they are made up.
        n: how many ways.
        seed: which.
        out: the picture to write.
        attributes: what a conditional model is asked for, such as Smiling=yes; what is not named is open.
        label: the class a class-conditional model is asked for.
        options: the family's own options as NAME=VALUE; --NAME VALUE is short for it.
        force: overwrite an existing file.
    """
    if not images:
        raise UsageError("no images given. Usage: genmodels inpaint RUN IMAGE...")
    if not 0 <= known < 1 or n < 1:
        raise UsageError(f"--known must be a share in [0, 1) and --n at least 1, got {known} and {n}")
    check_free(out, force, ".png")

    import numpy as np

    from genmodels import pictures, sampling

    model = load(run)
    size = model.config.size
    shown = np.stack([read_face(path, size) for path in images])  # (N, H, W, 3)
    visible = np.zeros((size, size), bool)
    visible[: round(known * size)] = True
    if mask is not None:
        visible = read_mask(mask, size)
    condition = condition_for(model, len(shown), attributes, label)
    ways = sampling.inpaint(model, shown, visible, n, seed, condition, **chosen_options(model, options))
    seen = np.where(visible[:, :, None], shown, np.uint8(127))
    rows = np.concatenate([shown[:, None], seen[:, None], ways], axis=1)  # (N, 2 + n, H, W, 3)
    pictures.save_grid(out, rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1])
    print(f"{len(shown)} images, each completed in {n} ways, in {out}")


def interpolate(
    run: Positional[str],
    seeds: tuple[int, ...] = (1, 2),
    images: tuple[Path, ...] = (),
    frames: int = 16,
    out: Path = Path("interpolation.png"),
    options: tuple[str, ...] = (),
    force: bool = False,
) -> None:
    """Walk from one sample to another, or, with --images, from one face to another.

    Args:
        run: run or model folder, or an id on the Hub.
        seeds: where from and where to (image 0 of these seeds of `genmodels sample`); three or more make a closed tour.
        images: image files to walk through instead, for models that find the vector or noise behind an image.
        frames: pictures from one seed to the next, both included.
        out: NAME.png for a strip, one row for each leg, or NAME.gif for an animation.
        options: the family's own options as NAME=VALUE; --NAME VALUE is short for it.
        force: overwrite an existing file.
    """
    if len(seeds) < 2 or frames < 2 or len(images) == 1:
        raise UsageError(
            "an interpolation needs at least 2 --seeds or --images, and 2 --frames, got "
            f"{len(images or seeds)} and {frames}"
        )
    check_free(out, force, ".png", ".gif")

    import numpy as np

    from genmodels import pictures, sampling

    model = load(run)
    chosen = chosen_options(model, options)
    if images:
        faces = np.stack([read_face(path, model.config.size) for path in images])
        legs = sampling.morph(model, faces, frames, **chosen)
    else:
        legs = sampling.interpolate(model, seeds, frames, **chosen)
    if out.suffix == ".gif":
        pictures.save_animation(out, pictures.animation_frames(legs))
    else:
        pictures.save_grid(out, legs.reshape(-1, *legs.shape[2:]), columns=frames)
    through = f"{len(images)} images" if images else f"seeds {', '.join(map(str, seeds))}"
    print(f"{len(legs)} x {frames} pictures through {through} in {out}")


def edit(
    run: Positional[str],
    images: Positional[tuple[Path, ...]],
    strength: tuple[float, ...] = (0.3, 0.5, 0.7),
    seed: int = 0,
    out: Path = Path("edited.png"),
    attributes: str = "",
    label: int | None = None,
    options: tuple[str, ...] = (),
    force: bool = False,
) -> None:
    """Redraw images: noise is added to them and removed again (SDEdit).

    Each row of the picture: the image, then what becomes of it at each strength.

    Args:
        run: run or model folder, or an id on the Hub.
        images: image files; aligned CelebA faces (178 x 218) get the usual crop, others their centre square.
        strength: how much is redrawn, above 0 and at most 1 (everything); several make several columns.
        seed: of the noise.
        out: the picture to write.
        attributes: what a conditional model is asked for, such as Smiling=yes; what is not named is open.
        label: the class a class-conditional model is asked for.
        options: the family's own options as NAME=VALUE; --NAME VALUE is short for it.
        force: overwrite an existing file.
    """
    if not images:
        raise UsageError("no images given. Usage: genmodels edit RUN IMAGE...")
    if wrong := [each for each in strength if not 0 < each <= 1]:
        raise UsageError(f"--strength must be above 0 and at most 1, got {wrong[0]:g}")
    check_free(out, force, ".png")

    import numpy as np

    from genmodels import pictures, sampling

    model = load(run)
    shown = np.stack([read_face(path, model.config.size) for path in images])  # (N, H, W, 3)
    condition = condition_for(model, len(shown), attributes, label)
    chosen = chosen_options(model, options)
    redrawn = [sampling.edit(model, shown, each, seed, condition, **chosen) for each in strength]
    rows = np.stack([shown, *redrawn], axis=1)  # (N, 1 + strengths, H, W, 3)
    pictures.save_grid(out, rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1])
    print(f"{len(shown)} images, each redrawn with strength {', '.join(f'{each:g}' for each in strength)}, in {out}")


def trajectory(
    run: Positional[str],
    n: int = 4,
    seed: int = 0,
    frames: int = 10,
    out: Path = Path("trajectory.png"),
    attributes: str = "",
    label: int | None = None,
    options: tuple[str, ...] = (),
    force: bool = False,
) -> None:
    """Show how noise becomes images, step by step.

    Two rows for each image: what it is at the step, and what the model expects it to become.

    Args:
        run: run or model folder, or an id on the Hub.
        n: how many images (image i of a seed is that of `genmodels sample`).
        seed: which images.
        frames: how many of the steps are shown, evenly chosen, the first and the last among them.
        out: NAME.png for rows, or NAME.gif for an animation.
        attributes: what a conditional model is asked for, such as Smiling=yes; what is not named is open.
        label: the class a class-conditional model is asked for.
        options: the family's own options as NAME=VALUE; --NAME VALUE is short for it.
        force: overwrite an existing file.
    """
    if n < 1 or frames < 2:
        raise UsageError(f"--n must be at least 1 and --frames at least 2, got {n} and {frames}")
    check_free(out, force, ".png", ".gif")

    import numpy as np

    from genmodels import pictures, sampling

    model = load(run)
    steps = sampling.trajectory(
        model, n, seed, condition_for(model, n, attributes, label), **chosen_options(model, options)
    )
    kept = np.linspace(0, steps.shape[2] - 1, min(frames, steps.shape[2])).round().astype(int)
    steps = steps[:, :, kept]  # (N, 2, frames, H, W, 3)
    if out.suffix == ".gif":
        every = steps.transpose(2, 1, 0, 3, 4, 5).reshape(len(kept), -1, *steps.shape[3:])  # (frames, 2 N, H, W, 3)
        pictures.save_animation(out, np.stack([np.asarray(pictures.grid(frame, n)) for frame in every]), 150)
    else:
        pictures.save_grid(out, steps.reshape(-1, *steps.shape[3:]), columns=len(kept))
    print(f"{n} images of seed {seed}, {len(kept)} pictures of each on its way, in {out}")


def info(run: Positional[str]) -> None:
    """Say what a saved model is: family, config, parameters, training, sampling options, capabilities.

    Args:
        run: run or model folder, or an id on the Hub.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in describe(run, load(run)).items():
        table.add_row(name, value)
    Console().print(table)


def demo(out: Path = Path("demo-faces"), minutes: float = 1.5, force: bool = False) -> None:
    """Train a VAE on toy faces, in at most 4 minutes on 2 cores, and write a page that shows what it learnt.

    Args:
        out: the folder for the page, its pictures and the models.
        minutes: training time of the VAE; the autoencoder beside it gets a third of that.
        force: replace an earlier demo in that folder.
    """
    from genmodels.demo import demo as run_demo

    print(f"\nDone. Open {run_demo(out, minutes, force)} in a browser.")


def average(run: Positional[Path], out: Positional[Path], ema: float = 0.1, at: float = 1.0) -> None:
    """Make a model of a run with --ema-snapshots whose weights are another average over its training (EDM2).

    An early one (--at 0.25) is a weaker model that can guide the run's own: genmodels sample RUN --guide OUT.

    Args:
        run: the run folder.
        out: a new or empty folder for the model.
        ema: width of the average, relative to the length of the run.
        at: share of the run after which the average is taken.
    """
    import torch

    from genmodels.cli.run_folder import read_recipe
    from genmodels.data import open_data
    from genmodels.data.batches import image_batches
    from genmodels.training.ema import SNAPSHOTS, average_of
    from genmodels.training.show import AT_THE_END

    check_empty(out)
    settings = read_recipe(str(run))
    if not settings:
        raise ValueError(f"{run} is no run folder: it has no config.yaml")
    weights, miss = average_of(run / SNAPSHOTS, ema, at)
    model = load(str(run))
    root = settings.get("root")
    data = open_data(settings["data"], root and Path(root), model.config.size, settings.get("crop"))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
        model.calibrate(image_batches(data.split("train"), limit=AT_THE_END.most, spread=True))
    model.save_pretrained(out)
    when = "" if at == 1 else f" after {at:.0%}"
    print(f"the average of width {ema:g} of {run}{when} (its profile misses that width's by {miss:.1%}) in {out}")
