"""What a model's latent space is good for: how well a real face survives the way into it and back, and whether
attributes can be changed along directions found in it.

python benchmarks/control.py runs/ae runs/vae runs/gan runs/ldm --data celeba --root PATH > control.jsonl
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

from genmodels.base import evaluating
from genmodels.cli.arguments import load
from genmodels.data import open_data
from genmodels.data.packed import Packed
from genmodels.directions import attribute_directions
from genmodels.evaluation.conditional import attribute_accuracy
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.pairs import psnr
from genmodels.evaluation.reference import spread_rows
from genmodels.pictures import to_uint8
from genmodels.sampling import to_floats
from genmodels.types import Noise


@dataclass(frozen=True)
class Settings:
    runs: Positional[tuple[str, ...]]
    """Run folders."""
    data: str = "toyfaces"
    root: Path | None = None
    copies: int = 64
    """Validation faces to find and to paint again."""
    n: int = 500
    """Samples of seed 0 to change."""
    attributes: tuple[str, ...] = ("Smiling", "Male", "Eyeglasses", "Blond_Hair")
    reach: tuple[float, ...] = (1.0, 2.0)
    """How far to go each way, in distances between the means of faces with and without an attribute."""


def main(settings: Settings) -> None:
    for run in settings.runs:
        try:
            model = load(run)
            data = open_data(settings.data, settings.root, model.config.size).with_attributes(settings.attributes)
            found = copies(model, data.split("valid"), settings.copies)
            if model.can("latent_directions"):
                found |= changes(model, data, settings)
        except (ValueError, OSError) as error:
            raise SystemExit(f"{run}: {error}") from None
        print(json.dumps({"run": Path(run).name, **found}), flush=True)


@torch.no_grad()
def copies(model: Any, held: Packed, count: int) -> dict[str, Any]:
    """PSNR of faces that were never seen, by way of what the model makes images from."""
    with evaluating(model):
        faces = to_floats(model, held.images[spread_rows(len(held), count)])
        if model.can("latent_directions"):
            way, again = "one vector", model.from_latents(model.find_latents(faces))
        elif model.can("morph"):  # the way from a face to itself begins at the face
            options, begin = model.options(), torch.zeros(1)
            way, again = "noise", torch.cat([model.morph(one, one, begin, options) for one in faces.split(1)])
        elif model.can("reconstruct"):
            way, again = "the codec alone", model.reconstruct(faces)
        else:
            return {}
    rebuilt = to_floats(model, to_uint8(again))
    return {"by way of": way, "psnr": round(psnr(rebuilt, faces).mean().item(), 2)}


@torch.inference_mode()
def changes(model: Any, data: Packed, settings: Settings) -> dict[str, Any]:
    """Balanced accuracy of a linear probe of real faces, for samples moved along directions that the model was never
    told of: half of them towards the attribute, half away."""
    names, extractor = settings.attributes, load_extractor("faces")
    train, held = data.split("train"), data.split("valid")
    seen, real = (extract(Images(part.images, name), extractor) for part, name in ((train, "train"), (held, "valid")))
    directions = attribute_directions(model, np.asarray(train.images), train.attributes, names)  # (K, D)
    sign = np.where(np.arange(settings.n) % 2, -1, 1)
    asked = np.kron(np.eye(len(names), dtype=int), sign[:, None])  # (K n, K): of each sample, one attribute
    result: dict[str, Any] = {}
    with evaluating(model):
        z = model.draw_latents(Noise.for_images(0, range(settings.n), directions.device), model.options())
        for reach in settings.reach:
            moved = [z + reach * torch.from_numpy(sign).to(z)[:, None] * direction for direction in directions]
            images = np.concatenate([to_uint8(model.from_latents(part)) for part in torch.cat(moved).split(64)])
            features = extract(Images(images, f"reach {reach}"), extractor, progress=False, cached=False)
            found = attribute_accuracy(features, asked, seen, train.attributes, real, held.attributes, names)
            result[f"directions, reach {reach:g}"] = {name: round(v, 3) for name, v in found.samples.items()}
    return result


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
