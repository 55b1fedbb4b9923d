"""Write labels for CelebA as classes: hair colour by sex, 8 classes.

    python benchmarks/celeba_classes.py PATH celeba-classes
    genmodels data pack folder --root celeba-classes --size 64 --out packed/classes

PATH is CelebA in its official layout. The folder that this writes holds labels.csv, attributes.csv
(only the column `split`) and links to the images; none is copied. Images of which no hair colour is
known, or several, are left out.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional

from genmodels.data.celeba import celeba_source
from genmodels.data.packed import SPLITS
from genmodels.writing import is_free, replacing_folder

COLOURS = {"Black_Hair": "black", "Blond_Hair": "blond", "Brown_Hair": "brown", "Gray_Hair": "gray"}


@dataclass(frozen=True)
class Settings:
    root: Positional[Path]
    """CelebA in its official layout, with the unpacked images."""
    out: Positional[Path]
    """New folder."""


def main(settings: Settings) -> None:
    source = celeba_source(settings.root)
    if not source.where.is_dir():
        raise SystemExit(f"{source.where} is an archive: unpack it first")
    if not is_free(settings.out):
        raise SystemExit(f"{settings.out} is not an empty folder: choose another")
    column = {name: source.attributes[:, k] for k, name in enumerate(source.attribute_names)}
    labels, splits = [("file", "label")], [("file", "split")]
    for i, name in enumerate(source.names):
        colours = [colour for attribute, colour in COLOURS.items() if column[attribute][i] > 0]
        if len(colours) == 1:
            labels.append((name, f"{colours[0]}-haired {'man' if column['Male'][i] > 0 else 'woman'}"))
            splits.append((name, SPLITS[source.splits[i]]))
    with replacing_folder(settings.out) as draft:
        (draft / "images").mkdir()
        for name, _ in labels[1:]:
            (draft / "images" / name).symlink_to((source.where / name).absolute())
        for file, rows in (("labels.csv", labels), ("attributes.csv", splits)):
            with open(draft / file, "w", newline="") as table:
                csv.writer(table).writerows(rows)
    for label, count in sorted(Counter(label for _, label in labels[1:]).items()):
        print(f"{count:7,} {label}")
    print(f"{len(source.names) + 1 - len(labels):7,} left out")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
