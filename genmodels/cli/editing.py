"""Commands that work on given images or between samples: reconstruct, inpaint,
interpolate, edit, variations.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from genmodels.cli.arguments import (
    NO_CONDITION,
    SHOWN,
    ConditionFlags,
    ShownFlags,
    check_free,
    check_images_given,
    chosen_options,
    load,
    open_model,
    read_images,
    read_mask,
)
from genmodels.usage import UsageError


def reconstruct(
    run: Positional[str], images: Positional[tuple[Path, ...]], out: Path = Path("pairs.png"), force: bool = False
) -> None:
    """Show images above their reconstructions by a model.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        images: image files. Aligned CelebA images (178 x 218) get the default crop, others their
            centre square.
        out: picture to write.
        force: overwrite an existing file.
    """
    check_images_given(images, "reconstruct")

    from genmodels import pictures, sampling

    model = open_model(run, "reconstruct")
    check_free(out, force, ".png")
    originals = read_images(images, model.config.size)
    columns = min(len(originals), 16)
    pairs = pictures.in_pairs(originals, sampling.reconstruct(model, originals), columns)
    pictures.save_grid(out, pairs, columns)
    print(f"{len(originals)} images, each above its reconstruction, in {out}")


def inpaint(
    run: Positional[str],
    images: Positional[tuple[Path, ...]],
    known: float = 0.5,
    mask: Path | None = None,
    n: int = 6,
    seed: int = 0,
    out: Path = Path("completed.png"),
    condition: OmitArgPrefixes[ConditionFlags] = NO_CONDITION,
    options: tuple[str, ...] = (),
    shown: OmitArgPrefixes[ShownFlags] = SHOWN,
    force: bool = False,
) -> None:
    """Complete images of which a part is known: the upper rows, or what a mask leaves.

    Each row of the picture shows the whole image, its known part, and N completions.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        images: image files. Aligned CelebA images (178 x 218) get the default crop, others their
            centre square.
        known: fraction of the rows that are known, from the top.
        mask: picture of the model's size to use instead of --known: black or transparent where
            pixels are known, white where the model completes the image.
        n: number of completions of each image.
        seed: seed of the completions.
        out: picture to write.
        condition: condition of the samples.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        shown: how images are checked and marked.
        force: overwrite an existing file.
    """
    check_images_given(images, "inpaint")
    if not 0 <= known < 1 or n < 1:
        raise UsageError(f"--known must be a fraction in [0, 1) and --n at least 1, got {known} and {n}")

    import numpy as np

    from genmodels import pictures, sampling

    model = open_model(run, "inpaint", shown)
    check_free(out, force, ".png")
    chosen = chosen_options(model, options)
    conditions = condition.of(model, len(images))
    mark = shown.mark(model, out, (2 + n) * len(images), 2 + n)
    size = model.config.size
    originals = read_images(images, size)  # (N, H, W, 3)
    visible = pictures.upper_rows(size, known) if mask is None else read_mask(mask, size)
    completions = sampling.inpaint(model, originals, visible, n, seed, conditions, **chosen)
    masked = np.where(visible[:, :, None], originals, np.uint8(127))
    rows = np.concatenate([originals[:, None], masked[:, None], completions], axis=1)  # (N, 2 + n, H, W, 3)
    pictures.save_grid(out, rows.reshape(-1, *rows.shape[2:]), rows.shape[1], mark)
    print(f"{len(originals)} images, each completed in {n} ways, in {out}")


def interpolate(
    run: Positional[str],
    seeds: tuple[int, ...] = (1, 2),
    images: tuple[Path, ...] = (),
    prompts: tuple[str, ...] = (),
    frames: int = 16,
    walks: int = 1,
    out: Path = Path("interpolation.png"),
    options: tuple[str, ...] = (),
    shown: OmitArgPrefixes[ShownFlags] = SHOWN,
    force: bool = False,
) -> None:
    """Interpolate between samples, between given images (--images) or between prompts (--prompts).

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        seeds: seeds of the samples (image 0 of each, as of `genmodels sample`). Three or more give
            a closed path.
        images: image files to interpolate between instead.
        prompts: sentences to interpolate between instead, from the noise of each seed in turn.
        frames: number of images from one to the next, both included.
        walks: number of walks that an animation shows side by side: walk i leads through image i of
            each seed.
        out: NAME.png for rows of images, one for each leg; NAME.gif or NAME.webp for an animation.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        shown: how images are checked and marked.
        force: overwrite an existing file.
    """
    if images and prompts:
        raise UsageError("--images and --prompts both say what to interpolate between: give one of them")
    given = images or prompts or seeds
    if len(given) < 2 or frames < 2 or not seeds:
        raise UsageError(
            f"an interpolation needs at least 2 --seeds or --images or --prompts, and 2 --frames, got "
            f"{len(given)} and {frames}"
        )

    animated = out.suffix in (".gif", ".webp")
    if walks < 1 or (walks > 1 and (images or prompts or not animated)):
        raise UsageError(f"--walks {walks} needs --seeds, and an animation: --out NAME.gif or NAME.webp")

    import numpy as np

    from genmodels import pictures, sampling

    model = open_model(run, "morph" if images else "interpolate", shown)
    check_free(out, force, ".png", ".gif", ".webp")
    chosen = chosen_options(model, options)
    rows = (len(given) if len(given) > 2 else 1) * (len(seeds) if prompts else 1)
    mark = shown.mark(model, out, frames * rows, frames)
    if images:
        tours = [sampling.morph(model, read_images(images, model.config.size), frames, **chosen)]
    elif prompts:
        tours = [sampling.interpolate(model, [seed], frames, prompts=prompts, **chosen) for seed in seeds]
    else:
        tours = [sampling.interpolate(model, seeds, frames, image, **chosen) for image in range(walks)]
    legs = np.concatenate(tours)
    if animated:
        loops = np.stack([pictures.animation_frames(tour) for tour in tours])  # (walks, F, H, W, 3)
        pictures.save_animation(out, pictures.side_by_side(loops))
    else:
        pictures.save_grid(out, legs.reshape(-1, *legs.shape[2:]), frames, mark)
    through = f"{len(given)} {'images' if images else 'prompts'}" if images or prompts else "seeds"
    of = "" if images else f"{' of seeds' if prompts else ''} {', '.join(map(str, seeds))}"
    print(f"{len(legs)} x {frames} images through {through}{of} in {out}")


def edit(
    run: Positional[str],
    images: Positional[tuple[Path, ...]],
    strength: tuple[float, ...] = (0.3, 0.5, 0.7),
    seed: int = 0,
    out: Path = Path("edited.png"),
    condition: OmitArgPrefixes[ConditionFlags] = NO_CONDITION,
    options: tuple[str, ...] = (),
    shown: OmitArgPrefixes[ShownFlags] = SHOWN,
    force: bool = False,
) -> None:
    """Edit images by adding noise and removing it again (SDEdit).

    Each row of the picture shows the image and its edits, one for each strength.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        images: image files. Aligned CelebA images (178 x 218) get the default crop, others their
            centre square.
        strength: how much of the image changes, above 0 and at most 1 (everything). Several
            strengths give several columns.
        seed: seed of the noise.
        out: picture to write.
        condition: condition of the samples.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        shown: how images are checked and marked.
        force: overwrite an existing file.
    """
    check_images_given(images, "edit")
    if wrong := [each for each in strength if not 0 < each <= 1]:
        raise UsageError(f"--strength must be above 0 and at most 1, got {wrong[0]:g}")

    import numpy as np

    from genmodels import pictures, sampling

    model = open_model(run, "edit", shown)
    check_free(out, force, ".png")
    chosen = chosen_options(model, options)
    conditions = condition.of(model, len(images))
    mark = shown.mark(model, out, (1 + len(strength)) * len(images), 1 + len(strength))
    originals = read_images(images, model.config.size)  # (N, H, W, 3)
    edits = [sampling.edit(model, originals, each, seed, conditions, **chosen) for each in strength]
    rows = np.stack([originals, *edits], axis=1)  # (N, 1 + strengths, H, W, 3)
    pictures.save_grid(out, rows.reshape(-1, *rows.shape[2:]), rows.shape[1], mark)
    strengths = ", ".join(f"{each:g}" for each in strength)
    print(f"{len(originals)} images, each edited with strength {strengths}, in {out}")


def variations(
    run: Positional[str],
    images: Positional[tuple[Path, ...]],
    n: int = 8,
    strength: float = 0.5,
    seed: int = 0,
    out: Path = Path("variations.png"),
    condition: OmitArgPrefixes[ConditionFlags] = NO_CONDITION,
    options: tuple[str, ...] = (),
    shown: OmitArgPrefixes[ShownFlags] = SHOWN,
    force: bool = False,
) -> None:
    """Make images that resemble given images.

    A model that edits adds noise and removes it again. Others move the latent vector of the image
    towards those of samples. Each row of the picture shows the image and its variations.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        images: image files. Aligned CelebA images (178 x 218) get the default crop, others their
            centre square.
        n: number of variations of each image.
        strength: how much they differ from it, above 0 and at most 1 (everything).
        seed: seed of the variations.
        out: picture to write.
        condition: condition of the samples, for models that edit.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        shown: how images are checked and marked.
        force: overwrite an existing file.
    """
    check_images_given(images, "variations")
    if not 0 < strength <= 1 or n < 1:
        raise UsageError(f"--strength must be above 0 and at most 1, and --n at least 1, got {strength:g} and {n}")

    import numpy as np

    from genmodels import pictures
    from genmodels.variations import check_varies
    from genmodels.variations import variations as vary

    model = load(run, shown)
    check_varies(model)
    check_free(out, force, ".png")
    chosen = chosen_options(model, options)
    given = condition.of(model, len(images))
    mark = shown.mark(model, out, (1 + n) * len(images), 1 + n)
    originals = read_images(images, model.config.size)
    rows = np.concatenate([originals[:, None], vary(model, originals, n, strength, seed, given, **chosen)], axis=1)
    pictures.save_grid(out, rows.reshape(-1, *rows.shape[2:]), n + 1, mark)
    print(f"{len(originals)} images, each with {n} variations of seed {seed}, in {out}")
