"""Classes of images: their names, their numbers, and the folders that they are read from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from genmodels.data.tables import SPLIT_FOLDERS, fold, some
from genmodels.image_files import SUFFIXES


def number_classes(labels: Sequence[str | None], where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Number the classes in the order of their names, or of their values if all are integers.

    Names of which one has composed characters and the other decomposed ones are the same.

    Args:
        labels: name of the class of each image; None if it is unknown.
        where: file or folder that they were read from, for messages.

    Returns:
        Names of the classes, and the number of each image's class, int32 (N,), -1 if unknown.

    Raises:
        ValueError: if two names differ only in upper and lower case.
    """
    labels = [None if label is None else fold(label) for label in labels]
    found = {label for label in labels if label is not None}
    numeric = all(label.removeprefix("-").isdecimal() and len(label) < 19 for label in found)
    names = sorted(found, key=(lambda label: (int(label), label)) if numeric else None)
    check_classes(names, where)
    numbers = {name: number for number, name in enumerate(names)}
    return tuple(names), np.array([-1 if label is None else numbers[label] for label in labels], np.int32)


def check_classes(names: Sequence[str], where: str) -> None:
    """Check that no two classes have the same name, or names that differ only in case.

    Raises:
        ValueError: if two do; names both.
    """
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(fold(name).casefold(), name)) is not name:
            same = fold(other) == fold(name)
            why = "have the same name" if same else "differ only in upper and lower case"
            raise ValueError(f"{where}: the classes {other!r} and {name!r} {why}: rename one, or merge them")


def classes_of_folders(
    names: Sequence[str], folders: Iterable[str], top: str, root: Path, notes: list[str]
) -> list[str | None] | None:
    """Return the class of each image if there is one folder per class, as torchvision's ImageFolder
    expects, or None.

    The folders of classes are directly in the root or in folders of splits, and every image is in
    one of them.

    Args:
        names: relative paths of the files.
        folders: relative paths of the folders, of which some may be empty.
        top: the folder that holds all other folders, or "".
        root: the root, for messages.
        notes: receives a line that lists the classes.

    Raises:
        ValueError: if the folder of a class holds no image.
    """
    labels = [_class_of(name, top) for name in names]
    is_image = [PurePosixPath(name).suffix.lower() in SUFFIXES for name in names]
    of_images = [label for label, image in zip(labels, is_image, strict=True) if image]
    found = {label for label in of_images if label is not None}
    if len(found) < 2:
        holders = {name.split("/")[0] for name, image in zip(names, is_image, strict=True) if image}
        alone = sorted(folder for folder in set(folders) - holders if "/" not in folder)
        alone = [folder for folder in alone if folder.casefold() not in SPLIT_FOLDERS]
        if alone and not holders & set(names):  # no image is directly in the root
            raise _without_images(root, alone[0])
        return None
    if outside := of_images.count(None):
        notes.append(f"folders are not read as classes, because {outside:,} images are in none of them")
        return None
    named = {_class_of(f"{folder}/", top) for folder in folders if folder.startswith(top)}
    if empty := sorted(named - found - {None}, key=str):
        raise _without_images(root, str(empty[0]))
    notes.append(f"classes are the folders {some(sorted(found))}")
    return [label if image else None for label, image in zip(labels, is_image, strict=True)]


def _without_images(root: Path, folder: str) -> ValueError:
    return ValueError(f"{root}: the class folder {folder!r} holds no image: add images to it, or remove it")


def _class_of(path: str, top: str) -> str | None:
    """Return the folder of a class that a path is in, or None."""
    folders = path.removeprefix(top).split("/")[:-1]
    if folders and folders[0].casefold() in SPLIT_FOLDERS:
        folders = folders[1:]
    return fold(folders[0]) if folders and folders[0] else None


def count_classes(labels: np.ndarray, names: Sequence[str]) -> str:
    """Return a line with the number of images of each class: "classes: cat (1,203), dog (7)".

    Args:
        labels: class of each image, (N,), -1 if unknown.
        names: names of the classes. Of more than 100, the first ones are listed.
    """
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    each = some([f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)], 100)
    unknown = int((labels < 0).sum())
    return f"classes: {each}" + (f"; {unknown:,} images without a label" if unknown else "")
