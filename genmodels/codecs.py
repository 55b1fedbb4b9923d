"""Loading of codecs: models of genmodels that encode, and autoencoders of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import genmodels
from genmodels.data.packed import IN_MEMORY
from genmodels.pretrained import is_pretrained, load_pretrained


def load_codec(path: Path, size: int, codes: bool = False, resize: bool = False) -> Any:
    """Load a codec.

    Args:
        path: a run or model folder, or the folder of a diffusers AutoencoderKL,
            AutoencoderTiny or VQModel.
        size: side of the images in pixels.
        codes: whether its latents must be codes of a finite codebook.
        resize: use it at this size even if it was trained on images of another one.

    Raises:
        ValueError: if it is missing or damaged, is not such a codec, or is for another image size.
    """
    if str(path) == IN_MEMORY:
        raise ValueError("this run was trained from Python, over a codec whose folder is not recorded: give --codec")
    if not path.is_dir():
        raise ValueError(f"--codec {path}: no such folder; train a codec first: genmodels train vqvae --output {path}")
    codec: Any = load_pretrained(path, size) if is_pretrained(path) else genmodels.load(path)
    family, trained_on = codec.family, codec.config.size
    if not codec.can("encode"):
        raise ValueError(f"--codec {path}: {family} is not a codec: it does not encode and decode")
    if codes and not codec.can("quantise"):
        raise ValueError(f"--codec {path}: the latents of this {family} are not codes: give a vqvae, or a VQModel")
    if trained_on != size and resize and codec.can("resize"):
        try:
            return codec.at_size(size)
        except ValueError as error:
            raise ValueError(f"--codec {path} cannot be used for images of {size} px: {error}") from None
    if trained_on != size:
        raise ValueError(
            f"--codec {path}: it was trained on images of {trained_on} px, --size is {size}: set --size {trained_on}, "
            "or train another codec"
        )
    return codec


def load_trained(run: Path) -> Any:
    """Load the part of a saved model that was trained: the model, or the prior of one over a codec."""
    model: Any = genmodels.load(run)
    return model.trained


def prior_shape(codec: Any, codes: bool) -> tuple[int, ...]:
    """Return the shape of the codes or latents of one image that a prior over `codec` learns.

    Args:
        codec: as `load_codec` returns it.
        codes: whether the prior learns codes. Otherwise it learns continuous latents, or the
            vectors that a codec quantises.
    """
    return tuple(codec.vector_shape if not codes and codec.can("vectors") else codec.latent_shape)


def prior_grid(codec: Any, codes: bool) -> tuple[int, int] | None:
    """Return the rows and columns of what a prior learns, each of which covers a part of the image.
    None if it describes the whole image. Arguments as for `prior_shape`."""
    shape = prior_shape(codec, codes)
    rows, columns = (*(shape[:2] if codes else shape[1:]), 0, 0)[:2]
    return (rows, columns) if rows == columns > 0 else None
