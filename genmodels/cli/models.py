"""The command that lists the models of the package.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from typing import Any

from genmodels.abilities import ABILITIES
from genmodels.shipped import FOLDER, names, read_scores
from genmodels.usage import console

COLUMNS = {"fd_faces": "FD-faces", "images_per_s": "images/s", "seconds_per_image": "s/image", "minutes": "min"}
"""Measured values that are listed, with their headings."""


def models(json: bool = False) -> None:
    """List the models that come with the package.

    They are small models of toyfaces, the procedural faces, whose names every command takes in
    place of a run: genmodels sample toyfaces/gan. docs/models.md shows their samples, and how they
    were trained and measured.

    Args:
        json: print JSON, with the abilities of each model.
    """
    facts = {name: facts_of(name) for name in names()}
    if json:
        from json import dumps

        print(dumps(facts, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("model", "parameters", "MB", *COLUMNS.values()):  # 80 characters wide
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for name, row in facts.items():
        measured = ["" if row.get(key) is None else f"{float(f'{row[key]:.3g}'):g}" for key in COLUMNS]
        table.add_row(name, f"{row['parameters']:,}", f"{row['megabytes']:.1f}", *measured)
    console().print(table)
    print()
    for name, row in facts.items():
        print(f"{name}: {row['family']}; {', '.join(dict.fromkeys(row['commands']))}")
    print("\nFD-faces: lower is better. images/s and s/image: one CPU core. min: minutes of training on one core.")


def facts_of(name: str) -> dict[str, Any]:
    """Return family, size, abilities, commands and measured values of a model of the package."""
    import genmodels

    model = genmodels.load(name)
    abilities = [row for row in ABILITIES if model.can(row.name)]
    return {
        "family": model.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "megabytes": sum(file.stat().st_size for file in (FOLDER / name).rglob("*") if file.is_file()) / 1e6,
        "abilities": [row.name for row in abilities],
        "commands": [row.command.split()[0] for row in abilities if row.command],
        "conditions": list(model.conditions.attributes)
        + (["prompt"] if model.can("tokenize") and model.can("sample") else []),
        **read_scores().get(name, {}),
    }
