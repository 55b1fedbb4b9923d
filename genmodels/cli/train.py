"""Commands that train or derive models: train, demo and average.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

import ast
import importlib.util
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tyro.conf import Positional

import genmodels
from genmodels.cli.arguments import check_empty, load
from genmodels.cli.run_folder import read_trained
from genmodels.usage import UsageError


def train(family: Positional[str] = "", arguments: Positional[tuple[str, ...]] = ()) -> None:
    """Train a model of one family.

    `genmodels train` lists the families, and `genmodels train FAMILY --help` the common flags.

    This runs recipes/FAMILY.py in one process. For several, use accelerate launch recipes/FAMILY.py
    ARGUMENTS.

    Args:
        family: recipe to run.
        arguments: arguments of the recipe, such as --data celeba --root PATH --output runs/vae
            --minutes 10.
    """
    known = recipes()
    if not family:
        print(families_table())
    elif family in known:
        before = sys.argv
        sys.argv = [str(known[family]), *arguments]
        try:
            runpy.run_path(str(known[family]), run_name="__main__")
        finally:
            sys.argv = before
    elif family in other_families():
        train_family(family, list(arguments))
    else:
        raise UsageError(
            f"unknown family {family!r}; known: {', '.join([*known, *other_families()])}. "
            "Usage: genmodels train FAMILY ARGUMENTS"
        )


def train_family(name: str, arguments: list[str]) -> None:
    """Train a family that has no recipe, such as one of another package, with default settings."""
    from genmodels.training.command_line import run
    from genmodels.training.pipeline import recipe_for
    from genmodels.training.pipeline import train as run_pipeline

    kind = genmodels.family(name)
    command = ["-m", "genmodels", "train", name, *arguments]
    run(partial(run_pipeline, kind), recipe_for(kind), name, arguments, command)


def recipes() -> dict[str, Path]:
    """Return the recipes by name: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent.parent
    folders = [package / "recipes", package.parent / "recipes"]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def recipe_of(family: str) -> tuple[Any, Any]:
    """Return the class of the models of a family, and the dataclass of its recipe.

    Raises:
        UsageError: if there is no such family.
    """
    from genmodels.training.pipeline import recipe_for
    from genmodels.training.recipe import Recipe

    known = recipes()
    if family not in genmodels.FAMILIES and family not in other_families():
        raise UsageError(f"unknown family {family!r}; known: {', '.join([*genmodels.FAMILIES, *other_families()])}")
    kind = genmodels.family(family)
    if family not in known:
        return kind, recipe_for(kind)
    name = f"genmodels_recipe_{family}"
    spec = importlib.util.spec_from_file_location(name, known[family])
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where the types of its fields are looked up
    spec.loader.exec_module(module)
    own = (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == name)
    return kind, next(value for value in own if issubclass(value, Recipe))


def other_families() -> list[str]:
    """Return the names of families that other packages register."""
    return sorted(set(genmodels.families()) - set(genmodels.FAMILIES) - set(genmodels.EXTRACTORS))


def families_table() -> str:
    """Return the list of families, one line each: name and what it is."""
    rows = {name: _first_line(ast.get_docstring(ast.parse(path.read_text()))) for name, path in recipes().items()}
    for name in other_families():
        try:
            rows[name] = _first_line(genmodels.family(name).__doc__)
        except ValueError as error:
            rows[name] = f"not available: {error}"
    width = max(map(len, rows))
    lines = [f"  {name:{width}}  {text}" for name, text in rows.items()]
    usage = [
        "Train one of these families:",
        "",
        *lines,
        "",
        "  genmodels train vae --minutes 10 --output runs/vae",
        "  genmodels train vae --help              lists the common flags; --help-all lists all of them",
        "  accelerate launch recipes/vae.py ...    trains on several processes or GPUs",
    ]
    return "\n".join(usage)


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def demo(out: Path = Path("demo-faces"), minutes: float = 1.5, force: bool = False) -> None:
    """Train a VAE on procedural faces and write a page that shows the results.

    It takes at most 4 minutes on 2 cores.

    Args:
        out: folder for the page, its pictures and the models.
        minutes: training time of the VAE. The autoencoder beside it gets a third of that.
        force: replace an earlier demo in that folder.
    """
    from genmodels.demo import demo as run_demo

    print(f"\nDone. Open {run_demo(out, minutes, force)} in a browser.")


def average(run: Positional[Path], out: Positional[Path], ema: float = 0.1, at: float = 1.0) -> None:
    """Make a model with another average of its weights, from a run with --ema-snapshots (EDM2).

    An average of the beginning (--at 0.25) is a weaker model, which can guide that of the whole
    run: genmodels sample RUN --guide OUT.

    Args:
        run: run folder.
        out: new or empty folder for the model.
        ema: width of the average, relative to the length of the run.
        at: fraction of the run at which the average ends.
    """
    import torch

    from genmodels.data import open_data
    from genmodels.data.batches import image_batches
    from genmodels.training.ema import SNAPSHOTS, average_of
    from genmodels.training.limits import AT_THE_END

    check_empty(out)
    trained = read_trained(str(run))
    if not trained.data:
        raise ValueError(f"{run} is not a run folder: it has no config.yaml that names its data")
    weights, miss = average_of(run / SNAPSHOTS, ema, at)
    model = load(str(run))
    data = open_data(trained.data, trained.root, model.config.size, trained.crop)
    parameters = dict(model.named_parameters())
    most = AT_THE_END.images(model.config.size)
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
        model.calibrate(image_batches(data.split("train"), limit=most, spread=True))
    model.save_pretrained(out)
    when = "" if at == 1 else f" after {at:.0%}"
    print(f"average of width {ema:g} of {run}{when} (its profile differs from the exact one by {miss:.1%}) in {out}")
