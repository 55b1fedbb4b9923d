"""What a model's latent space is good for: how well a real face survives the way into it and back, and whether
attributes can be changed along directions found in it.

python benchmarks/control.py runs/ae runs/vae runs/gan runs/ldm --data celeba --root PATH --json control.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tyro.conf import Positional

from genmodels.base import Generator, evaluating
from genmodels.cli.arguments import check_free, load
from genmodels.data import open_data
from genmodels.data.packed import Packed
from genmodels.directions import attribute_directions
from genmodels.evaluation.conditional import attribute_accuracy
from genmodels.evaluation.extractors import Extractor, load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.pairs import psnr
from genmodels.evaluation.reference import spread_rows
from genmodels.sampling import to_floats, to_uint8
from genmodels.types import HasLatents, Morphs, Noise, Reconstructs


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
    json: Path | None = None
    """Write the numbers here."""
    force: bool = False
    """Overwrite it."""


def main(settings: Settings) -> None:
    s = settings
    try:
        if s.json is not None:
            check_free(s.json, s.force, ".json")
        models = {Path(run).name: load(run) for run in s.runs}
        sizes = {model.config.size for model in models.values()}
        if len(sizes) != 1:
            raise ValueError(f"give runs of one size, these have {sorted(sizes)}")
        data = open_data(s.data, s.root, sizes.pop()).with_attributes(s.attributes)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    extractor = load_extractor("faces")
    found: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        found[name] = {**copies(model, data.split("valid"), s.copies), **changes(model, data, extractor, s)}
        print(name, json.dumps(found[name]), flush=True)
    if s.json is not None:
        s.json.parent.mkdir(parents=True, exist_ok=True)
        s.json.write_text(json.dumps(found, indent=2) + "\n")


@torch.no_grad()
def copies(model: Generator, held: Packed, count: int) -> dict[str, Any]:
    """PSNR of faces that were never seen, by way of what the model makes images from."""
    pixels = np.asarray(held.images[spread_rows(len(held), count)])
    with evaluating(model):
        faces = to_floats(model, pixels)
        if isinstance(model, HasLatents):
            way, again = "one vector", model.from_latents(model.find_latents(faces))
        elif isinstance(model, Morphs):
            way, again = "noise", torch.cat([_start(model, face[None]) for face in faces])
        elif isinstance(model, Reconstructs):
            way, again = "the codec alone", model.reconstruct(faces)
        else:
            return {}
    rebuilt = to_floats(model, to_uint8(again))
    return {"by way of": way, "psnr": round(psnr(rebuilt, faces).mean().item(), 2)}


def _start(model: Any, face: Tensor) -> Tensor:
    """Where the way from `face` (1, 3, H, W) to itself begins."""
    return model.morph(face, face, torch.zeros(1), model.options())


@torch.inference_mode()
def changes(model: Generator, data: Packed, extractor: Extractor, s: Settings) -> dict[str, Any]:
    """Balanced accuracy of a linear probe of real faces, for samples moved along directions that the model was never
    told of: half of them towards the attribute, half away."""
    if not isinstance(model, HasLatents):
        return {}
    train, held = data.split("train"), data.split("valid")
    seen, real = (extract(Images(part.images, name), extractor) for part, name in ((train, "train"), (held, "valid")))
    directions = attribute_directions(model, np.asarray(train.images), np.asarray(train.attributes), s.attributes)
    sign = torch.where(torch.arange(s.n) % 2 == 0, 1.0, -1.0)
    with evaluating(model):
        z = model.draw_latents(Noise.for_images(0, range(s.n), directions.device), model.options())
    result: dict[str, Any] = {}
    for reach in s.reach:
        each: dict[str, float] = {}
        for k, name in enumerate(s.attributes):
            with evaluating(model):
                moved = z + reach * sign.to(z)[:, None] * directions[k]
                images = np.concatenate([to_uint8(model.from_latents(part)) for part in moved.split(64)])
            features = extract(Images(images, f"{name} {reach}"), extractor, progress=False, cached=False)
            asked = sign.numpy().astype(np.int8)[:, None]
            labels = np.asarray(train.attributes)[:, [k]], np.asarray(held.attributes)[:, [k]]
            accuracy = attribute_accuracy(features, asked, seen, labels[0], real, labels[1], (name,))
            each[name] = round(accuracy.mean, 3)
        result[f"directions, reach {reach:g}"] = each
    return result


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
