"""The parts that a LLaVA is trained from: a CLIP with a language model, or the run of stage 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from genmodels.clip import CLIP
from genmodels.llava import LLaVA, LLaVAConfig
from genmodels.lm import LM
from genmodels.saving import trained_minutes


def llava_parts(recipe: Any) -> tuple[Any, Callable[[LLaVAConfig], LLaVA]]:
    """Load what a recipe of a LLaVA starts from.

    Args:
        recipe: with clip and lm (stage 1), or projector (stage 2).

    Returns:
        The recipe with the size of the images and the minutes of the parts filled in, and
        a function that builds the model from its config.

    Raises:
        ValueError: if parts are missing, too many, of another kind, or do not fit together.
    """
    if recipe.projector is not None:
        if recipe.clip is not None or recipe.lm is not None:
            raise ValueError(f"--projector {recipe.projector} has its own clip and lm: leave --clip and --lm out")
        first = load_part(recipe.projector, LLaVA, "--projector")
        ready = replace(recipe, parent_minutes=trained_minutes(recipe.projector))
        return _sized(ready, first.config.size, f"--projector {recipe.projector}"), partial(_second_stage, first)
    if recipe.clip is None or recipe.lm is None:
        raise ValueError(
            "stage 1 needs --clip RUN and --lm RUN (genmodels train clip, genmodels train lm), and stage 2 needs "
            "--projector RUN, the run of stage 1"
        )
    clip, language = load_part(recipe.clip, CLIP, "--clip"), load_part(recipe.lm, LM, "--lm")
    minutes = trained_minutes(recipe.clip) + trained_minutes(recipe.lm)
    ready = replace(recipe, parent_minutes=minutes)
    return _sized(ready, clip.config.size, f"--clip {recipe.clip}"), partial(LLaVA.of, clip, language)


def _sized(recipe: Any, size: int, part: str) -> Any:
    """Return the recipe with the size of the images of its image encoder.

    Raises:
        ValueError: if it has another size.
    """
    if recipe.size not in (None, size):
        raise ValueError(f"{part} was trained on images of {size} px, and --size is {recipe.size}: use --size {size}")
    return replace(recipe, size=size)


def _second_stage(first: LLaVA, config: LLaVAConfig) -> LLaVA:
    return first.with_stage("all", config.lora)


def load_part(path: Path, kind: type[Any], flag: str) -> Any:
    """Load a model of one kind.

    Raises:
        ValueError: if there is none, or it is of another kind; names the flag.
    """
    from genmodels import load
    from genmodels.shipped import locate

    model = load(locate(path))
    if not isinstance(model, kind):
        raise ValueError(f"{flag} {path} is a {model.kind}, and a model of family {kind.family} is needed")
    return model
