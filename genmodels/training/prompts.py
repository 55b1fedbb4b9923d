"""What the samples of a run are conditioned on while it is trained."""

from __future__ import annotations

from genmodels.conditions import Condition, condition_of
from genmodels.data.rows import spread_rows
from genmodels.training.setup import Run

PROMPTS = 8
"""Number of prompts of a sample grid."""


def shown_prompts(run: Run) -> list[str]:
    """Return the prompts of sample grids: captions of evenly spread held-out images, which begin
    with templates that do not occur in training; none for a model without text."""
    if not run.ema.can("tokenize"):
        return []
    from genmodels.evaluation.captions import captions_of

    data = run.held_out or run.data
    rows = spread_rows(len(data), min(PROMPTS, len(data)))
    text = None if data.text is None else [data.text[row] for row in rows]
    return captions_of(data.attributes[rows], data.attribute_names, text).texts


def shown_condition(run: Run, n: int) -> Condition:
    """Return the condition of the `n` images of a sample grid: all prompts in turn, or all classes
    in turn (`ConditionConfig.in_turn`)."""
    if prompts := shown_prompts(run):
        return condition_of(run.ema, {"prompt": [prompts[i % len(prompts)] for i in range(n)]}, n)
    return run.ema.conditions.in_turn(n)


def sample_caption(run: Run) -> str:
    """Return a description of a sample grid in the model card: its seed, and what it shows."""
    which = "of all classes in turn, " if run.ema.conditions.classes else ""
    prompts = "; ".join(f"({number}) {prompt}" for number, prompt in enumerate(shown_prompts(run), 1))
    columns = f". The prompts, in turn: {prompts}" if prompts else ""
    return f"Samples of seed {run.recipe.seed}, {which}not selected{columns}"
