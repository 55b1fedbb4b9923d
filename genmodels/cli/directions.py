"""The command that changes attributes of images.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes, Positional

from genmodels.cli.arguments import SHOWN, ShownFlags, check_free, name_and_value, open_model, read_images
from genmodels.cli.real_images import EvaluationFlags, real_images
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from genmodels.data import Packed

ENOUGH = 10_000
"""Labelled images that directions are computed from. More of them hardly change a mean."""
ATTRIBUTES = ("Smiling", "Male", "Eyeglasses")
"""Attributes that `traverse` changes by default."""
REACH, FRAMES = 2.0, 7
"""Largest change, and images in a row, by default."""


def traverse(
    run: Positional[str],
    images: Positional[tuple[Path, ...]] = (),
    attributes: tuple[str, ...] = ATTRIBUTES,
    change: str = "",
    reach: float = REACH,
    frames: int = FRAMES,
    n: int = 2,
    seed: int = 0,
    data: str | None = None,
    root: Path | None = None,
    out: Path = Path("directions.png"),
    shown: OmitArgPrefixes[ShownFlags] = SHOWN,
    force: bool = False,
) -> None:
    """Change one attribute of faces, along a direction in the latent space.

    A direction leads from the mean latents of the training faces without the attribute to those of
    the faces with it. The model need not have been trained with attributes. The picture has one row
    for each face and attribute, with the face in the middle.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        images: image files to change. Without any, samples of the model are changed.
        attributes: names of attributes of the data.
        change: amounts of several attributes, such as Smiling=1.5,Male=-1, that are changed together.
            The picture then shows each face before and after. It replaces --attributes, --reach
            and --frames.
        reach: largest change in either direction, in distances between the two means.
        frames: number of images in a row.
        n: number of samples to change.
        seed: seed of the samples.
        data: labelled images from which the directions are computed: a data set by name
            or a packed directory. By default, what the run was trained on.
        root: where the files of the data set are. By default, that of the run.
        out: picture to write.
        shown: how images are checked and marked.
        force: overwrite an existing file.
    """
    if not attributes or frames < 3 or frames % 2 == 0 or n < 1 or not reach > 0:
        raise UsageError(
            "traverse needs --attributes, an odd number of --frames from 3, --n from 1 and --reach above 0"
        )

    if change and (attributes, reach, frames) != (ATTRIBUTES, REACH, FRAMES):
        raise UsageError("--change says what changes, and how far: leave out --attributes, --reach and --frames")

    amounts = _amounts(change)
    attributes = tuple(amounts) or attributes

    import numpy as np
    import torch

    from genmodels import pictures
    from genmodels.directions import attribute_directions, changed
    from genmodels.directions import traverse as along

    model = open_model(run, "latent_directions", shown)
    check_free(out, force, ".png")
    size, columns = model.config.size, 2 if amounts else frames
    faces = len(images) or n
    mark = shown.mark(model, out, faces * columns * (1 if amounts else len(attributes)), columns)
    labelled = labelled_images(run, size, attributes, data, root)
    directions = attribute_directions(model, np.asarray(labelled.images), labelled.attributes, attributes)
    starts = read_images(images, size) if images else None
    if amounts:
        pairs = changed(model, starts, dict(zip(attributes, directions, strict=True)), amounts, n, seed)
        pictures.save_grid(out, pairs.reshape(-1, *pairs.shape[2:]), columns, mark)
        print(f"{len(pairs)} faces, each before and after {change}, in {out}")
        return
    steps = torch.linspace(-reach, reach, frames)
    rows = along(model, starts, directions, steps, n, seed)  # (N, K, frames, H, W, 3)
    pictures.save_grid(out, rows.reshape(-1, *rows.shape[3:]), columns, mark)
    print(f"{len(rows)} faces, each with {', '.join(attributes)} from less to more, one below the other, in {out}")


def _amounts(change: str) -> dict[str, float]:
    """Return the numbers of --change, by attribute."""
    amounts = {}
    for part in filter(None, change.split(",")):
        name, text = name_and_value(part, "--change")
        try:
            amounts[name] = float(text)
        except ValueError:
            raise UsageError(f"--change {part.strip()}: {text!r} is not a number") from None
        if not math.isfinite(amounts[name]):
            raise UsageError(f"--change {part.strip()}: the number must be finite")
    return amounts


def labelled_images(
    run: str, size: int, attributes: tuple[str, ...], data: str | None = None, root: Path | None = None
) -> Packed:
    """Open training images with these attributes, at most `ENOUGH` of them.

    Args:
        run: the run folder.
        size: side of the images in pixels.
        attributes: names of attributes.
        data: a data set by name or a packed directory. None: the data of the run.
        root: where the files of the data set are.

    Raises:
        UsageError: if the data do not have an attribute.
    """
    from genmodels.data import open_data
    from genmodels.data.rows import spread_rows

    real = real_images([run], EvaluationFlags(data=data, root=root))
    opened = open_data(real.data, real.root, size, real.crop).split("train")
    if unknown := [name for name in attributes if name not in opened.attribute_names]:
        known = ", ".join(opened.attribute_names) or "none"
        raise UsageError(f"--attributes {unknown[0]}: {opened.source} does not have it; it has: {known}")
    return opened.take(spread_rows(len(opened), min(len(opened), ENOUGH))).with_attributes(attributes)
