"""CelebA in its official layout (Liu et al., arXiv 1411.7766), complete or a subset of its images.

The layout is ROOT/img_align_celeba/ (or img_align_celeba.zip), ROOT/list_attr_celeba.txt,
ROOT/list_eval_partition.txt and, optionally, ROOT/identity_CelebA.txt. CelebA is for non-commercial
research; its images may not be redistributed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from genmodels.data.source import Files, Source, fingerprint

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


def celeba_source(root: Path) -> Source:
    """Return the images of CelebA that are in `root`, sorted by name.

    Raises:
        FileNotFoundError: if images or labels are missing; the message says how to place them.
        ValueError: if a label file is malformed.
    """
    root = _find_root(root)
    where = root / IMAGES if (root / IMAGES).is_dir() else root / f"{IMAGES}.zip"
    partition = _read_rows(root / PARTITION, _read_text(root / PARTITION), columns=1)
    attribute_text = _read_text(root / ATTRIBUTES)
    attribute_names = tuple(attribute_text.split("\n", 2)[1].split()) if attribute_text.count("\n") > 1 else ()
    if not attribute_names:
        raise ValueError(f"{root / ATTRIBUTES}: the second line must hold the attributes' names; download it again")
    attributes = _read_rows(root / ATTRIBUTES, attribute_text, columns=len(attribute_names), skip=2)
    identity_text = _read_text(root / IDENTITY) if (root / IDENTITY).exists() else ""
    identities = _read_rows(root / IDENTITY, identity_text, columns=1)

    # Archives contain a folder; the label files list bare file names.
    entries = {entry.name.rsplit("/", 1)[-1]: entry for entry in Files(where).entries()}
    known = sorted(name for name in entries if name in partition)
    if not known:
        raise FileNotFoundError(f"{where} holds none of the images that {PARTITION} lists: {BY_HAND} in {root}")
    for name in known:
        if partition[name][0] not in (0, 1, 2):
            raise ValueError(f"{root / PARTITION}: {name} has partition {partition[name][0]}, expected 0, 1 or 2")
    unknown = [0] * len(attribute_names)
    table = np.array([attributes.get(name, unknown) for name in known])  # (N, K)
    if not np.isin(table, (-1, 0, 1)).all():
        raise ValueError(f"{root / ATTRIBUTES}: an attribute is neither -1 nor 1; download it again")
    files = [entries[name] for name in known]
    return Source(
        title=f"celeba ({len(known):,} of {COUNT:,} images)",
        where=where,
        names=known,
        paths=[entry.name for entry in files],
        attributes=table.astype(np.int8),
        attribute_names=attribute_names,
        splits=np.array([partition[name][0] for name in known], np.uint8),
        identities=np.array([identities.get(name, [-1])[0] for name in known], np.int32) if identities else None,
        stamp=fingerprint(files, attribute_text, identity_text, (root / PARTITION).read_text()),
        left_out=[(name, f"not in {PARTITION}") for name in sorted(entries.keys() - partition.keys())],
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
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise OSError(f"download via {via} failed ({reason}); instead, {BY_HAND} in {root}") from None
    return complete


def _find_root(root: Path) -> Path:
    """Return `root`, or root/celeba (as torchvision names it), if it is complete."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; make it and {BY_HAND} in it")
    for folder in (root, root / "celeba"):
        if (folder / IMAGES).is_dir() or (folder / f"{IMAGES}.zip").is_file():
            missing = [name for name in (ATTRIBUTES, PARTITION) if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(f"{folder} lacks {' and '.join(missing)}: {BY_HAND} in it")
            return folder
    raise FileNotFoundError(f"{root} holds neither {IMAGES}/ nor {IMAGES}.zip: {BY_HAND} in it")


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text; download it again") from None


def _read_rows(path: Path, text: str, columns: int, skip: int = 0) -> dict[str, list[int]]:
    """Parse the rows "name integer ..." of a label file."""
    rows = {}
    for number, line in enumerate(text.splitlines()[skip:], start=skip + 1):
        name, *values = line.split() or [""]
        if not name:
            continue
        try:
            rows[name] = [int(value) for value in values]
        except ValueError:
            values = []
        if len(values) != columns:
            raise ValueError(f"{path}, line {number}: expected a file name and {columns} integers; download it again")
    return rows
