"""Measure the caption grammar on the attributes of a data set.

    python benchmarks/captions.py --data packed/celeba64

Prints captions per second of processor time, how many of 10,000 long captions differ, how many
facts read back from captions are wrong (of every image, for both splits of the grammar), what
training captions use that is held out, and for each attribute how often a caption states that a
face has it or does not have it.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from genmodels.data import open_data
from genmodels.data.captions import CAPTIONED, LENGTHS, captions, held_out, parse
from genmodels.data.grammar import FACTS
from genmodels.data.packed import Packed

LONG = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="toyfaces")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--views", type=int, default=2, help="captions per image and split")
    arguments = parser.parse_args()
    data = open_data(arguments.data, arguments.root)
    print(data.describe())
    began = time.process_time()
    written = captions(data.attributes, data.attribute_names, range(len(data)), range(len(data)), 0)
    print(f"{len(written) / (time.process_time() - began):,.0f} captions per second of processor time")
    few = data.attributes[:LONG]
    for length in LENGTHS:
        drawn = captions(few, data.attribute_names, range(len(few)), range(len(few)), 0, "train", length)
        words, facts = (sum(len(part(text)) for text in drawn) / len(drawn) for part in (str.split, parse))
        differ = len(set(drawn)) / len(drawn)
        print(f"{length:6}  {differ:.3f} of {len(drawn):,} differ, {words:.1f} words, {facts:.1f} facts")
    check(data, arguments.views)


def check(data: Packed, views: int) -> None:
    """Read the facts of captions of all images back, and print errors and frequencies."""
    columns = {name: data.attribute_names.index(name) for name in CAPTIONED if name in data.attribute_names}
    wrong, stated = 0, Counter[tuple[str, int]]()
    for split in ("train", "test"):
        held = Counter[str]()
        for view in range(views):
            numbers = range(len(data))
            drawn = captions(data.attributes, data.attribute_names, numbers, [view] * len(data), 0, split)
            for i, text in enumerate(drawn):
                facts = parse(text)
                wrong += sum(data.attributes[i, columns[name]] != value for name, value in facts.items())
                held.update(held_out(text))
                stated.update(facts.items() if split == "train" else ())
        print(f"held out, in {views * len(data):,} captions of {split}: {dict(held)}")
    print(f"{wrong} wrong facts")
    print(f"{'attribute':20}  P(yes|+1)  P(no|-1)   times yes   times no   (yes: has it, no: does not)")
    for name, column in columns.items():
        sign = FACTS[name].sign if name in FACTS else 1
        has, lacks = (views * int((data.attributes[:, column] == value).sum()) for value in (sign, -sign))
        yes, no = stated[name, sign], stated[name, -sign]
        print(f"{name:20}  {yes / max(1, has):9.3f}  {no / max(1, lacks):8.3f}  {yes:10,}  {no:9,}")


if __name__ == "__main__":
    main()
