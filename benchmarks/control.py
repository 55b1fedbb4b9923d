"""Measure latent spaces: reconstruction of held-out faces, and control along attribute directions.

    python benchmarks/control.py runs/ae runs/vae runs/gan --data celeba --root PATH > control.jsonl

For each run it prints one line of JSON. "psnr" is that of held-out faces after mapping them to the
input of the model ("by way of": one vector, noise, or the latents of the codec) and back. The
"directions" are the accuracies of a linear probe on samples that are moved along directions of
attributes on which the model was not trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from genmodels.cli.arguments import load
from genmodels.data import open_data
from genmodels.data.packed import Packed
from genmodels.data.rows import spread_rows
from genmodels.directions import attribute_directions
from genmodels.evaluation.conditional import attribute_accuracy
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.pairs import psnr
from genmodels.modes import evaluating
from genmodels.pictures import to_uint8
from genmodels.sampling import to_floats
from genmodels.types import Noise


@dataclass(frozen=True)
class Settings:
    runs: Positional[tuple[str, ...]]
    """Run folders."""
    data: str = "toyfaces"
    """toyfaces, celeba, folder, or the path of a packed directory."""
    root: Path | None = None
    """Folder with the images of celeba or folder."""
    copies: int = 64
    """Number of validation faces to reconstruct."""
    n: int = 500
    """Number of samples, of seed 0, to move along the directions."""
    attributes: tuple[str, ...] = ("Smiling", "Male", "Eyeglasses", "Blond_Hair")
    """Attributes to compute directions for."""
    reach: tuple[float, ...] = (1.0, 2.0)
    """Step sizes in both directions. 1 is the distance between the mean latents of faces with and
    without an attribute."""


def main(settings: Settings) -> None:
    for run in settings.runs:
        try:
            model = load(run)
            data = open_data(settings.data, settings.root, model.config.size).with_attributes(settings.attributes)
            results = reconstruction_scores(model, data.split("valid"), settings.copies)
            if model.can("latent_directions"):
                results |= direction_scores(model, data, settings)
        except (ValueError, OSError) as error:
            raise SystemExit(f"{run}: {error}") from None
        print(json.dumps({"run": Path(run).name, **results}), flush=True)


@torch.no_grad()
def reconstruction_scores(model: Any, held_out: Packed, count: int) -> dict[str, Any]:
    """Compute the PSNR of `count` held-out faces that are mapped to the model's input and back."""
    with evaluating(model):
        faces = to_floats(model, held_out.images[spread_rows(len(held_out), count)])
        if model.can("latent_directions"):
            space, decoded = "one vector", model.from_latents(model.find_latents(faces))
        elif model.can("morph"):  # at weight 0, a morph is the reconstruction of its first image
            options, zero = model.options(), torch.zeros(1)
            space, decoded = "noise", torch.cat([model.morph(one, one, zero, options) for one in faces.split(1)])
        elif model.can("reconstruct"):
            space, decoded = "the codec alone", model.reconstruct(faces)
        else:
            return {}
    rounded = to_floats(model, to_uint8(decoded))
    return {"by way of": space, "psnr": round(psnr(rounded, faces).mean().item(), 2)}


@torch.inference_mode()
def direction_scores(model: Any, data: Packed, settings: Settings) -> dict[str, Any]:
    """Compute whether a linear probe detects that samples were moved along attribute directions.

    Half of the samples are moved towards the attribute and half away from it. The scores are
    balanced accuracies of a probe that was trained on real faces.
    """
    names, extractor = settings.attributes, load_extractor("faces")
    train, valid = data.split("train"), data.split("valid")
    seen, real = (extract(Images(part.images, name), extractor) for part, name in ((train, "train"), (valid, "valid")))
    directions = attribute_directions(model, np.asarray(train.images), train.attributes, names)  # (K, D)
    sign = np.where(np.arange(settings.n) % 2, -1, 1)
    requested = np.kron(np.eye(len(names), dtype=int), sign[:, None])  # (K n, K), one attribute per sample
    result: dict[str, Any] = {}
    with evaluating(model):
        z = model.draw_latents(Noise.for_images(0, range(settings.n), directions.device), model.options())
        for reach in settings.reach:
            moved = [z + reach * torch.from_numpy(sign).to(z)[:, None] * direction for direction in directions]
            images = np.concatenate([to_uint8(model.from_latents(part)) for part in torch.cat(moved).split(64)])
            features = extract(Images(images, f"reach {reach}"), extractor, progress=False, cached=False)
            accuracy = attribute_accuracy(features, requested, seen, train.attributes, real, valid.attributes, names)
            result[f"directions, reach {reach:g}"] = {name: round(v, 3) for name, v in accuracy.samples.items()}
    return result


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
