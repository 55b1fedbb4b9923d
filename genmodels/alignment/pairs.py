"""Preference pairs: two samples of one model under the same condition, and which one is preferred.

A folder of pairs holds pairs.safetensors (what the model itself sampled: codes, latents or pixels),
pairs.json (from which model, chosen how) and preview.png. Pairs for a person to choose from come
with index.html instead of the preview, and choices.csv completes them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from genmodels.conditions import Condition
from genmodels.hashing import file_sha256, weights_hash
from genmodels.pictures import to_float, to_uint8
from genmodels.reading import read_json, read_text
from genmodels.saving import Range, from_dict
from genmodels.weights import read_tensors
from genmodels.writing import write_json

FORMAT = 1
TENSORS, RECORD, PAGE, PREVIEW, CHOICES = (
    "pairs.safetensors",
    "pairs.json",
    "index.html",
    "preview.png",
    "choices.csv",
)
PERSON = "a person"
"""What pairs record as the reward if a person chooses."""
COLUMNS = {"chosen", "rejected", "attributes", "labels", "prompt"}
"""Fields of `Pairs` with a row for each pair."""
SIDES = ("left", "right")
"""The samples of a pair before a person has chosen, and the choices in choices.csv."""


@dataclass(frozen=True)
class Record:
    """Contents of pairs.json."""

    model: str
    """Hash of the weights of the model that sampled, without its codec."""
    codec: str
    """Hash of the codec's weights, "" for a model of pixels."""
    kind: str
    """Kind of the model, such as "autoregressive (over a codec)"."""
    reward: str
    """What chose, in words."""
    judges: tuple[str, ...]
    """Hashes of the weights of the networks that chose. They should not judge the result too."""
    seed: int
    options: dict[str, Any]
    """Sampling options."""
    prompts: tuple[str, ...]
    """The sentences that samples were conditioned on."""
    count: Annotated[int, Range(0)]
    """Number of pairs."""
    left_out: Annotated[int, Range(0)]
    """Number of further pairs whose samples were identical or had equal rewards."""
    rewards: tuple[float, ...] = ()
    """Mean reward of the chosen and of the rejected samples."""
    format: int = FORMAT
    checksum: str = ""
    """SHA-256 of pairs.safetensors."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """N preference pairs.

    Attributes:
        record: which model sampled them, and how they were chosen.
        chosen, rejected: samples (N, *shape): codes, latents, or uint8 pixels (N, H, W, 3).
        attributes: (N, K) in {-1, 0, +1}, labels: (N,), prompt: (N,) indices into the prompts of
            the record. None: the samples were not conditioned on them.
    """

    record: Record
    chosen: Tensor
    rejected: Tensor
    attributes: Tensor | None = None
    labels: Tensor | None = None
    prompt: Tensor | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, rows: Tensor) -> Pairs:
        """Return the pairs `rows`, indices or a mask."""
        parts: dict[str, Any] = {name: None if x is None else x[rows] for name, x in self.tensors().items()}
        return replace(self, **parts)

    def tensors(self) -> dict[str, Tensor | None]:
        """Return what has a row for each pair."""
        return {name: getattr(self, name) for name in sorted(COLUMNS)}

    def save(self, folder: Path) -> None:
        """Write pairs.safetensors and pairs.json into an existing folder."""
        names = dict(zip(("chosen", "rejected"), SIDES, strict=True)) if self.record.reward == PERSON else {}
        parts = {names.get(name, name): part for name, part in self.tensors().items() if part is not None}
        save_file({name: part.contiguous() for name, part in parts.items()}, folder / TENSORS)
        (folder / TENSORS).chmod(0o644)
        record = replace(self.record, count=len(self), checksum=file_sha256(folder / TENSORS))
        write_json(folder / RECORD, asdict(record), indent=2)


def source_of(model: Any) -> tuple[str, str]:
    """Return the hashes of the weights of a model, without its codec, and of the codec."""
    return weights_hash(model.trained), model.latents_name if model.can("prior") else ""


def stored(samples: Tensor, model: Any) -> Tensor:
    """Convert samples of `model.trained` to what a folder of pairs holds."""
    if model.trained is model:  # pixels
        return torch.from_numpy(to_uint8(samples))
    return samples.to(torch.float32 if samples.is_floating_point() else torch.int32).cpu()


def as_input(samples: Tensor) -> Tensor:
    """Convert stored samples to what `model.trained` takes."""
    return to_float(samples, samples.device) if samples.dtype == torch.uint8 else samples


def read_pairs(folder: Path) -> Pairs:
    """Read a folder of pairs. Of those for a person, the pairs that choices.csv decides.

    Raises:
        ValueError: if it is none, is damaged, or holds no pair; with a message of one line.
    """
    try:
        record: Record = from_dict(Record, read_json(folder / RECORD), str(folder / RECORD))
        if record.format != FORMAT:
            raise ValueError(f"{folder} has format {record.format}, and this version reads {FORMAT}")
        if file_sha256(folder / TENSORS) != record.checksum:
            raise ValueError(
                f"{folder / TENSORS} is damaged: its checksum is not that of {RECORD}; make the pairs again"
            )
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} is not a folder of preference pairs: make one with genmodels prefer") from None
    parts = read_tensors(folder / TENSORS)
    if record.reward == PERSON:
        parts |= {
            name: parts.pop(side) for name, side in zip(("chosen", "rejected"), SIDES, strict=True) if side in parts
        }
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    if not {"chosen", "rejected"} <= shapes.keys() <= COLUMNS or shapes["chosen"] != shapes["rejected"]:
        raise ValueError(f"{folder / TENSORS} does not hold pairs: {', '.join(sorted(shapes))}; make the pairs again")
    pairs = Pairs(record, **parts)
    if any(len(part) != len(pairs) for part in parts.values()) or not _known_prompts(pairs):
        raise ValueError(f"{folder / TENSORS} does not belong to {RECORD}: make the pairs again")
    if record.reward == PERSON:
        pairs = decided(pairs, folder)
    same = identical(pairs)
    if not len(pairs):
        raise ValueError(f"{folder} holds no pairs: make more with genmodels prefer, or choose some")
    if same.any():
        raise ValueError(
            f"{folder}: the two samples of {int(same.sum()):,} of {len(pairs):,} pairs are identical, such as pair "
            f"{int(same.nonzero()[0])}: make the pairs again"
        )
    return pairs


def _known_prompts(pairs: Pairs) -> bool:
    """Whether the record has all prompts of the pairs."""
    count = len(pairs.record.prompts)
    return pairs.prompt is None or bool(((pairs.prompt >= 0) & (pairs.prompt < count)).all())


def digest(pairs: Pairs) -> str:
    """Return a hash of samples, choices and conditions."""
    return weights_hash({name: part for name, part in pairs.tensors().items() if part is not None})


def identical(pairs: Pairs) -> Tensor:
    """Return which pairs have equal samples, bool (N,)."""
    return (pairs.chosen == pairs.rejected).flatten(1).all(1)


def decided(pairs: Pairs, folder: Path) -> Pairs:
    """Return the pairs that choices.csv decides, the chosen sample first.

    Raises:
        ValueError: if the file is missing, or a line of it does not decide a pair.
    """
    file = folder / CHOICES
    if not file.is_file():
        raise ValueError(f"{folder} has no {CHOICES}: open {folder / PAGE} in a browser, choose, and save it there")
    choices: dict[int, str] = {}
    for number, row in enumerate(csv.reader(io.StringIO(read_text(file))), start=1):
        if not row or row == ["pair", "choice"]:
            continue
        if len(row) != 2 or not row[0].isdecimal() or row[1] not in SIDES:
            raise ValueError(f"{file}, line {number}: expected a number of a pair and left or right, such as 12,left")
        pair = int(row[0])
        if pair >= len(pairs) or pair in choices:
            why = "is decided twice" if pair in choices else f"does not exist: they are 0 to {len(pairs) - 1}"
            raise ValueError(f"{file}, line {number}: pair {pair} {why}")
        choices[pair] = row[1]
    rows = torch.tensor(sorted(choices), dtype=torch.int64)
    swapped = torch.tensor([choices[pair] == SIDES[1] for pair in sorted(choices)], dtype=torch.bool)
    kept = pairs.take(rows)
    where = swapped.view(-1, *[1] * (kept.chosen.ndim - 1))
    chosen, rejected = (
        torch.where(where, a, b) for a, b in ((kept.rejected, kept.chosen), (kept.chosen, kept.rejected))
    )
    return replace(kept, chosen=chosen, rejected=rejected)


def together(parts: Sequence[Pairs], model: Any) -> Pairs:
    """Join pairs of one model. What the samples of some were not conditioned on is unknown.

    Raises:
        ValueError: if only some have prompts.
    """
    if len(parts) == 1:
        return parts[0]
    if len({part.prompt is None for part in parts}) > 1:
        raise ValueError("some of the folders of pairs have prompts and others have none: train on one kind at a time")
    sizes, count = [len(part) for part in parts], len(model.conditions.attributes)
    prompts = tuple(prompt for part in parts for prompt in part.record.prompts)
    first = np.cumsum([0, *(len(part.record.prompts) for part in parts)])
    columns = {
        "chosen": torch.cat([part.chosen for part in parts]),
        "rejected": torch.cat([part.rejected for part in parts]),
    }
    for name, unknown in (("attributes", torch.zeros(count, dtype=torch.int8)), ("labels", torch.tensor(-1).int())):
        given = [part.tensors()[name] for part in parts]
        if any(column is not None for column in given):
            columns[name] = torch.cat(
                [unknown.expand(size, *unknown.shape) if c is None else c for size, c in zip(sizes, given, strict=True)]
            )
    if parts[0].prompt is not None:
        numbers = [part.prompt for part in parts if part.prompt is not None]
        columns["prompt"] = torch.cat([each + int(k) for each, k in zip(numbers, first, strict=False)])
    rules = "; ".join(dict.fromkeys(part.record.reward for part in parts))
    judges = tuple(dict.fromkeys(judge for part in parts for judge in part.record.judges))
    record = replace(parts[0].record, reward=rules, judges=judges, prompts=prompts, count=sum(sizes))
    return Pairs(record, **columns)


def check_source(pairs: Pairs, source: tuple[str, str], folder: Path, run: Path) -> None:
    """Check that the model of `run`, whose `source_of` is given, sampled the pairs.

    Raises:
        ValueError: if another model or codec did.
    """
    weights, codec = source
    if pairs.record.codec != codec:
        theirs, ours = (name or "none: its pixels" for name in (pairs.record.codec, codec))
        raise ValueError(
            f"{folder} was made with another codec than that of {run} ({theirs}, not {ours}): make pairs with "
            f"genmodels prefer {run}"
        )
    if pairs.record.model != weights:
        raise ValueError(
            f"{folder} was sampled from another {pairs.record.kind} than {run} (weights {pairs.record.model}, not "
            f"{weights}): make pairs with genmodels prefer {run}"
        )


def conditions_of(condition: Condition, prompt: list[int] | None) -> Mapping[str, Tensor | None]:
    """Return the columns of `Pairs` for a condition, and for the prompts of its rows."""
    return {
        "attributes": None if condition.attributes is None else condition.attributes.to(torch.int8).cpu(),
        "labels": None if condition.labels is None else condition.labels.to(torch.int32).cpu(),
        "prompt": None if prompt is None else torch.tensor(prompt, dtype=torch.int32),
    }


def as_array(tensor: Tensor | None, default: np.ndarray) -> np.ndarray:
    """Return a column as an array, or a default if the samples were not conditioned on it."""
    return default if tensor is None else tensor.numpy()
