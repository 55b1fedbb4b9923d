"""Write labels for CelebA as classes: hair colour by sex, 8 classes.

    python benchmarks/celeba_classes.py PATH celeba-classes
    genmodels data pack folder --root celeba-classes --size 64 --out packed/classes

PATH is CelebA in its official layout. The folder that this writes holds labels.csv, attributes.csv
(only the column `split`) and a link to the images; none is copied. Images with no hair colour, or
with several, have no label.
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
    rows, counts = [], Counter[str]()
    for i, name in enumerate(source.names):
        colours = [colour for attribute, colour in COLOURS.items() if column[attribute][i] > 0]
        if len(colours) == 1:
            label = f"{colours[0]}-haired {'man' if column['Male'][i] > 0 else 'woman'}"
            rows.append((name, label))
            counts[label] += 1
    with replacing_folder(settings.out) as draft:
        (draft / source.where.name).symlink_to(source.where.absolute())
        for file, header, lines in (
            ("labels.csv", ("file", "label"), rows),
            ("attributes.csv", ("file", "split"), zip(source.names, (SPLITS[s] for s in source.splits), strict=True)),
        ):
            with open(draft / file, "w", newline="") as table:
                csv.writer(table).writerows([header, *lines])
    for label, count in sorted(counts.items()):
        print(f"{count:7,} {label}")
    print(f"{len(source.names) - len(rows):7,} without a label")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
