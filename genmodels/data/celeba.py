"""CelebA in its official layout (Liu et al., arXiv 1411.7766), complete or a subset of its images.

The layout is ROOT/img_align_celeba/ (or img_align_celeba.zip), ROOT/list_attr_celeba.txt,
ROOT/list_eval_partition.txt and, optionally, ROOT/identity_CelebA.txt. CelebA is for non-commercial
research; its images may not be redistributed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genmodels.data.source import LARGEST_TABLE, Entry, Files, FilesReader, Source, fingerprint
from genmodels.data.tables import ALLOW, compare_names, decide_zeros, decode_text
from genmodels.reading import in_one_line, read_bytes

COUNT = 202_599
"""Number of images in CelebA."""
IMAGES, ATTRIBUTES, PARTITION, IDENTITY = (
    "img_align_celeba",
    "list_attr_celeba.txt",
    "list_eval_partition.txt",
    "identity_CelebA.txt",
)
BY_HAND = (
    f"place {IMAGES}.zip (or the unpacked folder {IMAGES}), {ATTRIBUTES} and {PARTITION} from CelebA's own page "
    "(mmlab.ie.cuhk.edu.hk/projects/CelebA.html, Align&Cropped Images and Anno)"
)


def celeba_source(root: Path, allow_unmatched: bool = False) -> Source:
    """Return the images of CelebA that are in `root`, sorted by name.

    Args:
        root: folder with the official layout, or the folder above it.
        allow_unmatched: accept that most images have no attributes.

    Raises:
        FileNotFoundError: if images or labels are missing; the message says how to place them.
        ValueError: if a label file is malformed or incomplete.
    """
    root, notes = _find_root(root), list[str]()
    where = root / IMAGES if (root / IMAGES).is_dir() else root / f"{IMAGES}.zip"
    partition = _read_list(root / PARTITION, _lines(root / PARTITION, notes), columns=1)
    attribute_names, attributes = _read_attributes(root / ATTRIBUTES, notes)
    identities = {}
    if (root / IDENTITY).exists():
        identities = _read_list(root / IDENTITY, _lines(root / IDENTITY, notes), columns=1)

    # Archives contain a folder; the label files list bare file names.
    files, entries, left_out = Files(where), dict[str, Entry](), []
    for entry in sorted(files.entries(), key=lambda entry: entry.name):
        if entries.setdefault(entry.name.rpartition("/")[2], entry) is not entry:
            left_out.append((entry.name, "another file has the same name"))
    known = sorted(name for name in entries if name in partition)
    if not known:
        lost = compare_names(list(partition), list(entries), (len(partition), len(entries)))
        raise FileNotFoundError(
            f"{where} holds none of the images that {PARTITION} lists: {BY_HAND} in {root} ({lost})"
        )
    for name in known:
        if partition[name][0] not in (0, 1, 2):
            raise ValueError(f"{root / PARTITION}: {name} has partition {partition[name][0]}, expected 0, 1 or 2")
    unlabelled = [name for name in known if name not in attributes]
    if unlabelled:
        sentence = compare_names((), unlabelled, (len(attributes), len(known)))
        if 2 * len(unlabelled) > len(known) and not allow_unmatched:
            raise ValueError(f"{root / ATTRIBUTES}: {sentence}; {ALLOW}")
        notes.append(f"{ATTRIBUTES}: {sentence}")
    unknown = [0] * len(attribute_names)
    of_known = [entries[name] for name in known]
    columns: dict[str, Any] = {
        "attributes": np.array([attributes.get(name, unknown) for name in known], np.int8),  # (N, K)
        "splits": np.array([partition[name][0] for name in known], np.uint8),
        "identities": np.array([identities.get(name, [-1])[0] for name in known], np.int32) if identities else None,
    }
    left_out += [(name, f"not in {PARTITION}") for name in sorted(entries.keys() - partition.keys())]
    return Source(
        title=f"celeba ({len(known):,} of {COUNT:,} images)",
        where=where,
        names=known,
        reader=FilesReader(where, [entry.path for entry in of_known]),
        attribute_names=attribute_names,
        stamp=fingerprint(of_known, repr(attribute_names), *columns.values()),
        left_out=files.left_out + left_out,
        notes=notes,
        **columns,
    )


def download_celeba(via: Literal["torchvision", "hub"], root: Path, repo_id: str | None = None) -> Path:
    """Download CelebA in its official layout and return the folder to pass as --root.

    Args:
        via: "torchvision" uses torchvision's downloader; "hub" uses a data set repository with the
            official files.
        root: folder to download into.
        repo_id: repository on the Hub (user/name), for via="hub".

    Raises:
        OSError: if the download fails; the message says how to place the files by hand.
        ValueError: if via="hub" and no repository is given.
    """
    root.mkdir(parents=True, exist_ok=True)
    if via == "hub" and repo_id is None:
        raise ValueError("name the data set repository that holds the official files: --repo user/name")
    try:
        if via == "torchvision":
            from torchvision.datasets import CelebA

            CelebA(str(root), split="all", target_type=["attr", "identity"], download=True)
        else:
            from huggingface_hub import snapshot_download

            wanted = [f"*{name}*" for name in (IMAGES, ATTRIBUTES, PARTITION, IDENTITY)]
            snapshot_download(str(repo_id), repo_type="dataset", local_dir=root, allow_patterns=wanted)
        complete = _find_root(root)
    except Exception as error:  # whatever the cause, the download failed
        reason = in_one_line(error, 160) or type(error).__name__
        if "gdown" in reason and find_spec("gdown") is None:
            reason = "torchvision needs gdown for it: pip install 'genmodels[celeba]'"
        raise OSError(f"download via {via} failed ({reason}); instead, {BY_HAND} in {root}") from None
    return complete


def _find_root(root: Path) -> Path:
    """Return `root`, or the folder in it that holds the official layout, if it is complete."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; make it and {BY_HAND} in it")
    inside = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for folder in (root, root / "celeba", *inside):  # torchvision calls it celeba
        if (folder / IMAGES).is_dir() or (folder / f"{IMAGES}.zip").is_file():
            missing = [name for name in (ATTRIBUTES, PARTITION) if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(f"{folder} lacks {' and '.join(missing)}: {BY_HAND} in it")
            return folder
    raise FileNotFoundError(f"{root} holds neither {IMAGES}/ nor {IMAGES}.zip: {BY_HAND} in it")


def _lines(path: Path, notes: list[str]) -> list[str]:
    own: list[str] = []
    lines = decode_text(read_bytes(path, LARGEST_TABLE), str(path), own).split("\n")
    notes += [f"{path.name}: {note}" for note in own]
    return lines


def _read_attributes(path: Path, notes: list[str]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Return the names of the attributes, and their values for each image."""
    announced, header, *lines = [*_lines(path, notes), "", ""]
    names = tuple(header.split())
    if not names:
        raise ValueError(f"{path}: the second line must hold the attributes' names; download it again")
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: a name occurs twice in the second line; download it again")
    rows = _read_list(path, lines, len(names), first=3)
    if announced.strip() != str(len(rows)):
        raise ValueError(
            f"{path} lists {len(rows):,} images, and its first line announces {announced.strip()[:20] or 'none'}: "
            "the file is incomplete; download it again"
        )
    values = np.array(list(rows.values())).reshape(len(rows), len(names))  # (R, K)
    if not np.isin(values, (-1, 0, 1)).all():
        raise ValueError(f"{path}: an attribute is neither -1 nor 1; download it again")
    zeros: list[str] = []
    values = decide_zeros(values.astype(np.int8), names, zeros)
    notes += [f"{path.name}: {note}" for note in zeros]
    return names, dict(zip(rows, values.tolist(), strict=True))


def _read_list(path: Path, lines: list[str], columns: int, first: int = 1) -> dict[str, list[int]]:
    """Parse the rows "name integer ..." of a label file.

    Args:
        path: the file, for messages.
        lines: its rows.
        columns: number of integers in each.
        first: number of the first of these lines in the file.
    """
    rows: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=first):
        name, *values = line.split() or [""]
        if not name:
            continue
        if name in rows:
            raise ValueError(f"{path}, line {number}: {name} is listed twice; download it again")
        try:
            rows[name] = [int(value) for value in values] if max(map(len, values), default=0) < 10 else []
        except ValueError:
            rows[name] = []
        if len(rows[name]) != columns:
            raise ValueError(f"{path}, line {number}: expected a file name and {columns} integers; download it again")
    return rows
