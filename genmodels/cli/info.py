"""The command that describes a saved model.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from genmodels.abilities import ABILITIES
from genmodels.cli.arguments import load
from genmodels.cli.run_folder import last_metrics, read_recipe
from genmodels.saving import to_dict
from genmodels.shipped import locate
from genmodels.usage import console

if TYPE_CHECKING:
    from genmodels.base import Model


def info(run: Positional[str]) -> None:
    """Describe a saved model: abilities, config, sampling options and training.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for topic, text in describe(run, load(run)).items():
        table.add_row(topic, Text(text))  # as Text: names may contain brackets
    console().print(table)


def describe(run: str, model: Model) -> dict[str, str]:
    """Return what `info` prints about a model, by topic."""
    from genmodels.nn.router import routers_of

    abilities = [row for row in ABILITIES if model.can(row.name)]
    facts = {
        "family": model.kind,
        "abilities": "\n".join(
            row.description + (f" (genmodels {row.command})" if row.command else "") for row in abilities
        ),
        "parameters": parameters(model),
        "operations": operations(model),
        "config": listed(to_dict(model.config)),
    }
    if routers := routers_of(model):
        facts["load of experts"] = "1 is balanced\n" + "\n".join(
            f"block {i}: {' '.join(f'{load:.2f}' for load in router.load.tolist())}"
            for i, router in enumerate(routers, start=1)
        )
    if groups := head_groups(model):
        facts["head groups"] = groups
    if names := model.conditions.list_classes():
        facts["classes"] = f"{model.conditions.classes:,}: {names}"
    if model.can("sample"):
        options: Any = model.options_class
        facts["sampling options"] = listed(dataclasses.asdict(options())) or "none"
    folder = locate(run)
    if folder.is_dir():
        files = [path for path in folder.rglob("*") if path.is_file()]
        weights = [p for p in files if p.suffix == ".safetensors" and "checkpoints" not in p.relative_to(folder).parts]
        facts["on disk"] = f"{_megabytes(weights)} of weights, {_megabytes(files)} with checkpoints and samples"
        training = {"recipe": listed(read_recipe(run)), "last metrics": listed(last_metrics(run))}
        facts |= {topic: text for topic, text in training.items() if text}
    return facts


def head_groups(model: Model) -> str:
    """Return the groups of heads of each attention that has some, one line each."""
    from genmodels.nn.head_groups import FORMED, grouped, groups_of

    lines = []
    for name, attention in grouped(model).items():
        groups = groups_of(attention)
        heads = ", ".join("+".join(map(str, group)) for group in groups.heads())
        formed = "formed" if groups.cohesion() >= FORMED else f"not formed: that needs {FORMED:g}"
        lines.append(f"{name}: {heads}; mean similarity in a group {groups.cohesion():.2f} ({formed})")
    return "\n".join(lines)


def operations(model: Model) -> str:
    """Return the operations per image of a training step, or why they cannot be counted."""
    from genmodels.evaluation.columns import amount
    from genmodels.evaluation.context import reasons
    from genmodels.evaluation.cost import OPERATIONS, training_operations

    absent: dict[str, str] = {}
    with reasons(absent, "operations"):
        each = amount(training_operations(model), "FLOPs")
        return f"{each} per image of a training step, forward and backward: {OPERATIONS}"
    return f"not counted: {absent['operations']}"


def parameters(model: Model) -> str:
    """Write the number of parameters, and of those that process a token, if experts make it smaller."""
    from genmodels.nn.experts import active_parameters

    count, active = sum(p.numel() for p in model.parameters()), active_parameters(model)
    return f"{count:,}" + (f", {active:,} of them for each token" if active < count else "")


def listed(values: dict[str, Any], prefix: str = "") -> str:
    """Write nested settings on one line: {"a": {"b": 1}, "c": 2} -> "a.b=1, c=2". Of long lists,
    such as names of classes, only the length is written."""
    from genmodels.conditions import SHOWN_CLASSES

    parts = []
    for name, value in values.items():
        if isinstance(value, dict):
            parts.append(listed(value, f"{prefix}{name}."))
        elif isinstance(value, (list, tuple)) and len(value) > SHOWN_CLASSES:
            parts.append(f"{prefix}{name}=({len(value):,} values)")
        else:
            parts.append(f"{prefix}{name}={value:.5g}" if isinstance(value, float) else f"{prefix}{name}={value}")
    return ", ".join(filter(None, parts))


def _megabytes(files: list[Path]) -> str:
    return f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB"
