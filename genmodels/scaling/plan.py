"""The plan of a sweep: sizes around the expected minimum of each budget, and the settings of each run."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from genmodels.base import Model
from genmodels.latent import Latent
from genmodels.nn.transformer import TransformerConfig
from genmodels.reading import read_json
from genmodels.saving import from_dict
from genmodels.scaling.counting import CONVENTION, Count, count
from genmodels.scaling.table import LEAST
from genmodels.training.pipeline import derived_config, open_codec, with_located_parts
from genmodels.training.recipe import Recipe
from genmodels.weights import build
from genmodels.writing import write_json

PLAN = "plan.json"
"""File of a sweep folder that holds its plan."""
FORMAT = 1
WIDTHS = (8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
"""Widths of the ladder of sizes. All budgets use the same sizes, as approach 1 needs."""
FEWEST_STEPS = 50
"""Runs with fewer steps are left out of a plan: their loss is that of the warm-up."""
WARMUP = 0.05
"""Fraction of the steps over which the learning rate rises."""
BATCH_AT, BATCH = 1e5, 16.0
"""Batch size at this number of parameters, before it is rounded to a power of two."""
RULE = (
    "depth: width / 32, at least 2; heads of about 32 channels; inner width of the MLP: 8 / 3 of the width; "
    "batch size: 16 (N / 100,000)^(1/3), rounded to a power of two from 8 to 512; learning rate: --optim.lr times "
    "(width of the recipe / width)^(1/2); warm-up: 5 % of the steps"
)
"""How the settings of a run follow from its size. It is printed with the plan."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: name of its folder.
        budget: FLOPs that it was planned for.
        flops: FLOPs that it takes, in whole steps.
        parameters: parameters applied per token.
        tokens: training tokens, repeated ones included.
        images: training images, repeated ones included.
        arguments: arguments of `genmodels train FAMILY`, without --output.
    """

    name: str
    budget: float
    flops: float
    parameters: float
    tokens: float
    images: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        family: family of the models.
        request: what the plan was made from, by which a continued sweep is recognised.
        rule: how the settings of a run follow from its size.
        convention: how FLOPs, parameters and tokens are counted.
        runs: the runs, in ascending order of FLOPs.
        left_out: sizes that were left out, and why.
    """

    family: str
    request: dict[str, Any]
    rule: str
    convention: str
    runs: tuple[PlannedRun, ...]
    left_out: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        """FLOPs of all runs."""
        return sum(run.flops for run in self.runs)


def make_plan(kind: type[Model], recipe: Any, request: dict[str, Any], say: Callable[[str], object]) -> Plan:
    """Plan a sweep.

    At each budget C the expected best size has r tokens per parameter: N = sqrt(C / (6 r)). The sizes
    of the ladder that are closest to it are trained, each for as many steps as the budget pays for
    by its counted FLOPs.

    Args:
        kind: class of the model, whose config has a field `transformer`.
        recipe: settings that all runs share.
        request: `family`; `arguments`, those of the command line that `recipe` was parsed from;
            `budgets`, FLOPs of a run; `sizes`, the number of sizes at each budget; `seeds`, the
            number of runs of each; `tokens-per-parameter`, r.
        say: called with a line for each size that is counted.

    Raises:
        ValueError: if there are too few budgets or sizes, or the family has no transformer.
    """
    family, budgets, sizes = request["family"], request["budgets"], request["sizes"]
    if len(budgets) < LEAST or sizes < LEAST:
        raise ValueError(f"a law needs at least {LEAST} budgets and sizes, got {len(budgets)} and {sizes}")
    if not isinstance(getattr(recipe.model, "transformer", None), TransformerConfig):
        raise ValueError(
            f"{family}: sizes are planned for models with a transformer (dit, autoregressive); train runs of other "
            "families yourself, and give their folders to genmodels scaling"
        )
    counted: dict[int, Count] = {}
    runs, left_out = [], []
    for budget in budgets:
        expected = math.sqrt(budget / (6 * request["tokens-per-parameter"]))
        nearest = sorted(WIDTHS, key=lambda width: abs(math.log(_blocks(width) / expected)))[:sizes]
        for width in sorted(nearest):
            if width not in counted:
                counted[width] = count(_model(kind, recipe, width))
                c = counted[width]
                say(f"width {width}: {c.parameters:,.0f} parameters, {c.flops:.3g} FLOPs per image")
            for seed in range(request["seeds"]):
                run = _run(recipe, request["arguments"], width, counted[width], budget, seed)
                if run is None:
                    steps = budget / counted[width].flops / _batch_size(counted[width].parameters)
                    left_out.append(f"width {width} at {budget:.3g} FLOPs: {steps:.0f} steps, at least {FEWEST_STEPS}")
                else:
                    runs.append(run)
    ordered = tuple(sorted(runs, key=lambda run: (run.budget, run.parameters)))
    return Plan(family, request, RULE, CONVENTION, ordered, tuple(dict.fromkeys(left_out)))


def _run(
    recipe: Recipe, arguments: Sequence[str], width: int, counts: Count, budget: float, seed: int
) -> PlannedRun | None:
    """Return the run of one size at one budget; None if it would have too few steps."""
    batch = _batch_size(counts.parameters)
    steps = round(budget / counts.flops / batch)
    if steps < FEWEST_STEPS:
        return None
    model: Any = recipe.model  # type: ignore[attr-defined]
    lr = recipe.optim.lr * math.sqrt(model.transformer.width / width)
    shape = _shape(model.transformer, width)
    settings = {
        "--model.transformer.width": shape.width,
        "--model.transformer.depth": shape.depth,
        "--model.transformer.heads": shape.heads,
        "--model.transformer.hidden": shape.hidden,
        "--batch-size": batch,
        "--optim.lr": f"{lr:.4g}",
        "--optim.warmup": max(1, round(WARMUP * steps)),
        "--steps": steps,
        "--seed": seed,
        "--sample-every": steps,  # only at the end
        "--log-every": max(1, steps // 100),
        "--keep": 1,
        "--track": "none",
    }
    flags = [str(part) for pair in settings.items() for part in pair]
    images = steps * batch
    name = f"{budget:.3g}-w{width}-d{shape.depth}-s{seed}".replace("+", "")
    whole = (*arguments, *flags)
    tokens = float(images * counts.tokens)
    return PlannedRun(name, budget, images * counts.flops, counts.parameters, tokens, images, whole)


def _blocks(width: int) -> float:
    """Return about how many parameters the blocks of a size have."""
    return 12 * width**2 * _depth(width)


def _depth(width: int) -> int:
    return max(2, width // 32)


def _shape(transformer: TransformerConfig, width: int) -> TransformerConfig:
    """Return the transformer of one size of the ladder."""
    return replace(
        transformer, width=width, depth=_depth(width), heads=max(1, width // 32), hidden=8 * round(width / 3)
    )


def _batch_size(parameters: float) -> int:
    exponent = round(math.log2(BATCH * (parameters / BATCH_AT) ** (1 / 3)))
    return 2 ** min(9, max(3, exponent))


def _model(kind: Any, recipe: Any, width: int) -> Any:
    """Build a model of one size, to count its operations."""
    recipe = with_located_parts(recipe)
    recipe = replace(recipe, model=replace(recipe.model, transformer=_shape(recipe.model.transformer, width)))
    codec = open_codec(kind, recipe)
    config = derived_config(kind, recipe, codec)
    model = build(lambda: kind(config), "model")
    return model if codec is None else Latent.over(codec, model)


def write_plan(plan: Plan, out: Path) -> None:
    """Write the plan into the folder of a sweep."""
    write_json(out / PLAN, {"format": FORMAT} | asdict(plan), indent=2)


def read_plan(out: Path) -> Plan:
    """Read the plan of a sweep.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    try:
        stored = read_json(out / PLAN)
    except FileNotFoundError:
        raise ValueError(f"{out} holds no sweep: there is no {PLAN}") from None
    if not isinstance(stored, dict) or stored.pop("format", None) != FORMAT:
        raise ValueError(f"{out / PLAN} is not a plan of this version: plan the sweep again in another folder")
    return from_dict(Plan, stored, str(out / PLAN))


def check_same(plan: Plan, request: dict[str, Any], out: Path) -> None:
    """Refuse to continue a sweep by a command that asks for another one.

    Raises:
        ValueError: if a part of the request differs; names it.
    """
    for name, value in request.items():
        if plan.request.get(name) != value:
            raise ValueError(
                f"{out} holds a sweep with {name} {plan.request.get(name)}, not {value}: continue it by genmodels "
                f"sweep --out {out}, or choose another --out"
            )


def describe(plan: Plan) -> list[str]:
    """Return the plan as lines of text, ending with its cost."""
    lines = [f"  {'run':24} {'FLOPs':>9} {'parameters':>12} {'tokens':>9} {'images':>11}"]
    lines += [
        f"  {run.name:24} {run.flops:9.3g} {run.parameters:12,.0f} {run.tokens:9.3g} {run.images:11,}"
        for run in plan.runs
    ]
    lines += [f"left out: {reason}" for reason in plan.left_out]
    for text in (f"rule: {plan.rule}", plan.convention):
        lines += textwrap.wrap(text, 100, subsequent_indent="  ")
    return [*lines, f"{len(plan.runs)} runs, {plan.flops:.3g} FLOPs in all"]
