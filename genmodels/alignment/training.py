"""Preference pairs as training data, and the run that trains on them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import genmodels
from genmodels.alignment.dpo import DPO
from genmodels.alignment.pairs import (
    Pairs,
    as_array,
    as_input,
    check_source,
    digest,
    read_pairs,
    source_of,
    together,
)
from genmodels.array_files import map_array
from genmodels.conditions import Condition
from genmodels.data import cache_folder
from genmodels.data.packed import IN_MEMORY, Origin, Packed
from genmodels.hashing import weights_hash
from genmodels.modes import evaluating, full_precision
from genmodels.reading import read_yaml
from genmodels.sampling import processes
from genmodels.saving import from_settings, trained_minutes
from genmodels.shipped import locate
from genmodels.training.fit import fit
from genmodels.training.tracking import check_tracker
from genmodels.usage import say
from genmodels.writing import create_array, replacing

BATCH = 64
"""Number of pairs whose reference log-probabilities are computed at a time."""


@dataclass(frozen=True)
class Parent:
    """What config.yaml of the run that is trained further says about its data and training."""

    data: str = IN_MEMORY
    root: Path | None = None
    crop: str | None = None
    fingerprint: str | None = None
    judges: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Path) -> Parent:
        """Read it; the defaults, if there is no such file."""
        file = run / "config.yaml"
        return from_settings(cls, read_yaml(file), str(file)) if file.is_file() else cls()


def train_dpo(recipe: Any) -> Path:
    """Train a saved model further on preference pairs, and return the run folder.

    The folder is that of an ordinary model of the same family.

    Args:
        recipe: a `Recipe` with the fields run, pairs, beta and judges.

    Raises:
        ValueError: if the pairs are not of this model, or something else does not fit together.
    """
    began = time.monotonic()
    check_tracker(recipe.track)
    if recipe.run is None or not recipe.pairs:
        raise ValueError("give a run and pairs of its samples: genmodels train dpo RUN --pairs PAIRS")
    if recipe.beta is not None and not recipe.beta > 0:
        raise ValueError(f"--beta must be above 0, got {recipe.beta:g}")
    run = locate(recipe.run)
    if not run.is_dir():
        raise ValueError(f"{run}: no such run folder")
    folders = {folder: read_pairs(folder) for folder in recipe.pairs}
    model = genmodels.load(str(run))
    source = source_of(model)
    model.trained.float()
    policy = DPO(model.to(processes().device), recipe.beta, prompts=all(p.prompt is not None for p in folders.values()))
    for folder, each in folders.items():
        check_source(each, source, folder, run)
    pairs, parent = together(list(folders.values()), model), Parent.of(run)
    data = as_data(pairs, model, ", ".join(map(str, folders)), parent)
    if policy.exact:
        data = replace(data, features=reference_log_probabilities(model, pairs, cache_folder()))
    judges = tuple(dict.fromkeys([*parent.judges, *pairs.record.judges]))
    if judges and processes().is_main_process:
        say(f"the pairs were chosen by: {pairs.record.reward}; judge the result by something else")
    startup = recipe.startup + time.monotonic() - began
    made = {"run": run, "judges": judges, "parent_minutes": trained_minutes(run), "beta": policy.beta}
    return fit(policy, data, replace(recipe, **made, size=data.size, startup=startup))


def as_data(pairs: Pairs, model: Any, where: str | Path, parent: Parent) -> Packed:
    """Return pairs as data: `latents` are the chosen and the rejected samples, (N, 1, 2, *shape).

    The images are empty: nothing looks at them.
    """
    n, size, conditions = len(pairs), model.config.size, model.conditions
    unknown = np.zeros((n, len(conditions.attributes)), np.int8)
    names = conditions.class_names or tuple(map(str, range(conditions.classes)))
    prompts = None if pairs.prompt is None else [(pairs.record.prompts[i],) for i in pairs.prompt.tolist()]
    return Packed(
        images=np.broadcast_to(np.zeros((1, size, size, 3), np.uint8), (n, size, size, 3)),
        attributes=as_array(pairs.attributes, unknown),
        attribute_names=conditions.attributes,
        names=[f"pair {i}" for i in range(n)],
        splits=np.zeros(n, np.uint8),
        manifest={"source": f"preference pairs in {where}", "checksums": {"pairs": digest(pairs)}, "format": 2},
        latents=torch.stack([pairs.chosen, pairs.rejected], 1)[:, None].numpy(),
        text=prompts,
        labels=as_array(pairs.labels, np.full(n, -1, np.int32)) if conditions.classes else None,
        class_names=names,
        origin=Origin(parent.data, parent.root, parent.crop, parent.fingerprint),
    )


@torch.inference_mode()
def reference_log_probabilities(model: Any, pairs: Pairs, cache: Path) -> np.ndarray:
    """Return log p of the chosen and the rejected samples under the reference model, float32 (N, 2).

    They are computed once, and then read from `cache`.

    Args:
        model: the reference model, on the device it should run on.
        pairs: its pairs.
        cache: folder of the file.
    """
    prompts = "\n".join(pairs.record.prompts)
    key = hashlib.sha256(f"{weights_hash(model.trained)} {digest(pairs)} {prompts}".encode()).hexdigest()[:16]
    file = cache / f"reference-{key}.npy"
    if file.is_file():
        kept = map_array(file)
        if kept.shape == (len(pairs), 2):
            return kept
    parts = []
    with evaluating(model), full_precision(model.device):
        for start in range(0, len(pairs), BATCH):
            few = pairs.take(torch.arange(start, min(start + BATCH, len(pairs))))
            condition = condition_of_pairs(few, model).to(model.device)
            sides = [as_input(side.to(model.device)) for side in (few.chosen, few.rejected)]
            parts.append(torch.stack([model.trained.log_probability(side, condition) for side in sides], 1))
    values = torch.cat(parts).float().cpu().numpy()
    with replacing(file) as draft:
        array = create_array(draft, np.float32, values.shape)
        array[:] = values
        array.flush()
    return values


def condition_of_pairs(pairs: Pairs, model: Any) -> Condition:
    """Return the condition of the samples of pairs, on the CPU."""
    prompts = None if pairs.prompt is None else [pairs.record.prompts[i] for i in pairs.prompt.tolist()]
    return Condition(
        None if pairs.attributes is None else pairs.attributes.float(),
        None if pairs.labels is None else pairs.labels.long(),
        None if prompts is None else model.tokenize(prompts),
    )
