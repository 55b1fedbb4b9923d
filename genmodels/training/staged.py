"""Runs in several stages, such as a short context, then a longer one, then annealing.

Every stage is a run of its own, and begins with the averaged weights of the stage before. The last
one is in the run folder, and those before it are in stages/1, stages/2, ... below it. Therefore
every stage is resumed as any run is. stages/config.yaml holds the settings of all stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from genmodels.base import Model
from genmodels.codecs import load_trained
from genmodels.data import default_size, open_data
from genmodels.reading import in_one_line, read_yaml
from genmodels.sampling import processes
from genmodels.saving import from_dict, to_dict
from genmodels.training.command_line import to_yaml
from genmodels.training.folder import STAGES, check_output, put_aside
from genmodels.training.pipeline import derived_config, minutes_of, open_codec, train, with_located_parts
from genmodels.training.recipe import NOT_SAVED, Recipe, Stage, check_recipe
from genmodels.usage import say
from genmodels.weights import copy_weights
from genmodels.writing import write_text

CONFIG = "config.yaml"
OF_THE_RUN = ("output", "stages", "stage", "parent", "parent_minutes", *NOT_SAVED)
"""Settings that a stage cannot have."""
PATHS = ("data", "root", "codec", "text")
"""Settings that may be paths."""


def train_stages(kind: type[Model], recipe: Any, make: Callable[[Any], Model] | None, **parts: Any) -> Path:
    """Train all stages of a recipe, one after another, and return the run folder.

    What cannot work in any stage is refused before the first one. With --resume, stages that are
    complete are left as they are, and the one that was stopped is resumed.

    Args:
        kind: class of the model.
        recipe: with `stages`.
        make: must be None.
        **parts: as for `train`.

    Raises:
        ValueError, OSError: if something does not fit together, or a stage has changed since it
            began; with a message of one line.
        SystemExit: with status 1, if a signal stopped the run before its end.
    """
    if make is not None:
        raise ValueError(f"models of family {kind.family} begin with others here, and cannot be trained in stages")
    recipe = replace(recipe, stages=tuple(map(_with_absolute_paths, recipe.stages)))
    stages = checked_stages(kind, recipe, partial(kind, **parts))
    record, main = recipe.output / STAGES / CONFIG, processes().is_main_process
    if not recipe.dry_run:
        if recipe.resume:
            check_unchanged(record, recipe.stages)
        else:
            for stage in stages:
                check_output(stage)
        text = to_yaml(replace(recipe, output=recipe.output.absolute()), recipe.name or kind.family)
        processes().wait_for_everyone()
        if main and not recipe.resume:
            put_aside(record.parent, text)
            for stage in stages:  # config.yaml there will mean that the stage before is complete
                put_aside(stage.output, "")
        if main:
            write_text(record, text)
    for number, stage in enumerate(stages, 1):  # data that cannot be used are refused before the first stage
        with _in_stage(number):
            open_data(stage.data, stage.root, stage.size, stage.crop)
    minutes, startup = 0.0, recipe.startup
    for number, (stage, after) in enumerate(zip(stages, (*stages[1:], None), strict=True), 1):
        complete = recipe.resume and after is not None and (after.output / CONFIG).is_file()
        if not complete:
            if main:
                say(f"stage {number} of {len(stages)}, in {stage.output}")
            torch.manual_seed(recipe.seed)  # a resumed run draws the same initial weights
            resume = recipe.resume and (stage.output / CONFIG).is_file()
            train(kind, replace(stage, resume=resume, startup=startup, parent_minutes=minutes), **parts)
            processes().wait_for_everyone()  # the first process has written the model
            startup = 0.0
        minutes += minutes_of(stage.output)
    return recipe.output


def checked_stages(kind: Any, recipe: Any, make: Callable[[Any], Any]) -> list[Any]:
    """Return the recipe of every stage, after checking that each can follow the one before.

    Raises:
        ValueError: names the stage.
    """
    stages: list[Any] = []
    before: Any = None
    for number, changes in enumerate(recipe.stages, 1):
        with _in_stage(number):
            stage = stage_of(recipe, number)
            stage = replace(stage, size=stage.size or default_size(stage.data))
            codec = open_codec(kind, with_located_parts(stage))
            config = derived_config(kind, stage, codec)
            if before is not None and before.can("extend"):
                config = before.extended_config(config, changes.get("model", {}))
            with torch.device("meta"):
                model = make(config)
            if before is not None:
                extend(model, before)
            stages.append(replace(stage, model=config))
            before = model
    return stages


def stage_of(recipe: Any, number: int) -> Any:
    """Return the recipe of one stage: the settings of all stages, and its own ones.

    Raises:
        ValueError: for a setting that is unknown or cannot differ between stages, or a stage without
            a length.
    """
    changes = recipe.stages[number - 1]
    if fixed := [name for name in changes if name in OF_THE_RUN]:
        raise ValueError(f"{fixed[0]} is a setting of the whole run: remove it from the stage")
    if ("steps" in changes) == ("minutes" in changes):
        raise ValueError("give either steps or minutes")
    last = number == len(recipe.stages)
    folder = recipe.output / STAGES
    own = {
        "output": recipe.output if last else folder / str(number),
        "stages": (),
        "stage": number,
        "parent": None if number == 1 or recipe.dry_run else folder / str(number - 1),
    }
    settings = {field.name: to_dict(getattr(recipe, field.name)) for field in fields(recipe)}
    length = {"steps": None, "minutes": None}
    made: Recipe = from_dict(type(recipe), _merged(settings, length | changes) | own, "settings")
    return check_recipe(made)


def begin_with(model: Model, run: Path) -> None:
    """Copy the weights of a saved model, which may be one of another size.

    Raises:
        ValueError: if there is none, or its weights do not fit.
    """
    extend(model, load_trained(run))


def extend(model: Any, parent: Any) -> None:
    """Copy the weights of `parent`. A model that can extend another one may be of another size.

    Raises:
        ValueError: if they do not fit.
    """
    if not isinstance(parent, type(model)):
        raise ValueError(f"a {model.family} cannot begin with the weights of a {parent.family}")
    if model.can("extend"):
        model.extend_from(parent)
        return
    copy_weights(model, parent.state_dict())


def check_unchanged(record: Path, stages: tuple[Stage, ...]) -> None:
    """Refuse to resume a run whose stages differ from those that it began with.

    Raises:
        ValueError: names the first difference.
    """
    run = record.parent.parent
    if not record.is_file():
        raise ValueError(f"nothing to resume: {run} holds no run in stages; check --output, or start without --resume")
    settings = read_yaml(record)
    begun = settings.get("stages") if isinstance(settings, dict) else None
    if not isinstance(begun, list):
        raise ValueError(f"{record} is damaged: it has no list of stages")
    advice = "use the stages of that run, or start a new run in another --output"
    if len(begun) != len(stages):
        raise ValueError(f"cannot resume {run}: it has {len(begun)} stages, and here are {len(stages)}; {advice}")
    for number, (then, now) in enumerate(zip(begun, stages, strict=True), 1):
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                raise ValueError(
                    f"cannot resume {run}: {name} of stage {number} is {now.get(name)!r} here and "
                    f"{then.get(name)!r} in the run; {advice}"
                )


def _with_absolute_paths(stage: Stage) -> Stage:
    """Return a stage whose paths mean the same from any folder. Names of data sets stay."""
    paths = {name: Path(str(stage[name])).expanduser() for name in PATHS if stage.get(name) is not None}
    return stage | {name: str(path.absolute()) for name, path in paths.items() if path.exists()}


def _merged(settings: Stage, changes: Stage) -> Stage:
    """Return nested settings with changes."""
    merged = dict(settings)
    for name, value in changes.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


@contextmanager
def _in_stage(number: int) -> Iterator[None]:
    """Name the stage in errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"stage {number}: {in_one_line(error)}") from None
