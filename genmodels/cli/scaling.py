"""Commands of scaling laws: sweep and scaling.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes, Positional

from genmodels.cli.arguments import check_empty, check_free, name_and_value
from genmodels.cli.real_images import EvaluationFlags, real_images
from genmodels.usage import UsageError, say
from genmodels.writing import write_json

if TYPE_CHECKING:
    from genmodels.scaling.analysis import Request
    from genmodels.scaling.plan import Plan
    from genmodels.scaling.table import Table


@dataclass(frozen=True)
class InferenceFlags:
    """Options of `genmodels scaling --inference RUN...`."""

    inference: bool = False
    """Measure the quality of the samples of RUN... against their FLOPs, instead of fitting laws."""
    n: int = 2048
    """Number of samples of each setting."""
    steps: tuple[int, ...] = (2, 4, 8, 16, 32, 50)
    """Numbers of solver steps, of models that have them."""
    guidance: tuple[float, ...] = (1.0,)
    """Guidance scales, of conditional models."""
    candidates: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of candidates per sample, of which the verifier keeps the best. From 5 on, they are also
    used for a search over noises."""
    judge: str = "faces"
    """Extractor whose Frechet distance is the quality."""
    verifier: str = "clip=toyfaces/clip"
    """Extractor by which candidates are chosen; not the judge."""
    save: Path | None = None
    """Folder for the samples as .npy, for another judge."""


NO_INFERENCE = InferenceFlags()


def scaling(
    runs: Positional[tuple[str, ...]],
    out: Path = Path("scaling"),
    json: Path | None = None,
    predict: tuple[str, ...] = (),
    samples: int = 1_000,
    seed: int = 0,
    force: bool = False,
    inference: OmitArgPrefixes[InferenceFlags] = NO_INFERENCE,
) -> None:
    """Fit scaling laws to training runs and write a page about them.

    The laws say how the held-out loss falls with parameters N, data D and compute C, and which N
    and D are best for a budget, by the three approaches of Chinchilla. The folder gets index.html
    (one self-contained page), results.json, runs.csv and figures/*.png. docs/scaling.md explains
    the method.

    Args:
        runs: run folders, and folders that contain some, such as that of a sweep; or a .csv file
            with the columns parameters, tokens or flops (or both), and loss.
        out: new or empty folder for the page.
        json: file to which the results are also written.
        predict: runs to predict, as NAME=PARAMETERS,TOKENS or NAME=FLOPS. The latter is the best run
            for that budget.
        samples: number of bootstrap samples for the intervals.
        seed: seed of the bootstrap samples.
        force: replace an earlier report, or the file of --json.
        inference: options of --inference, which measures what compute at sampling time buys.
    """
    if inference.inference:
        _scale_inference(runs, out, json, seed, force, inference)
        return
    tables = [run for run in runs if Path(run).suffix == ".csv"]
    if not runs or (tables and len(runs) > 1):
        raise UsageError("give run folders, or one .csv file. Usage: genmodels scaling RUN... --out FOLDER")
    if samples < 2:
        raise UsageError(f"--samples must be at least 2, got {samples}")
    requests = [_request(text) for text in predict]
    from genmodels.evaluation.report_folder import check_place
    from genmodels.scaling.analysis import analyse
    from genmodels.scaling.report import summary, write_report
    from genmodels.scaling.table import read_table

    check_place(out, force)
    check_free(out / "index.html", force)
    if json:
        check_free(json, force, ".json")
    table = read_table(Path(tables[0])) if tables else _table_of(runs)
    analysis = analyse(table, requests, samples, seed)
    for line in summary(analysis):
        print(line)
    chosen = [*(["--predict", *predict] if predict else []), "--samples", str(samples), "--seed", str(seed)]
    page = write_report(analysis, out, shlex.join(["genmodels", "scaling", *runs, *chosen, "--out", str(out)]), force)
    if json:
        write_json(json, analysis.plain(), indent=2)
    print(f"\nOpen {page} in a browser.")


def _scale_inference(
    runs: tuple[str, ...], out: Path, json: Path | None, seed: int, force: bool, how: InferenceFlags
) -> None:
    """Measure what compute at sampling time buys, and write a page about it."""
    if not runs:
        raise UsageError("give models. Usage: genmodels scaling --inference RUN... --out FOLDER")
    if min([how.n, *how.steps, *how.candidates]) < 1:
        raise UsageError("--n, --steps and --candidates must be at least 1")
    from genmodels.cli.arguments import open_model
    from genmodels.evaluation.extractors import load_extractor
    from genmodels.evaluation.protocol import check_count
    from genmodels.evaluation.report_folder import check_place
    from genmodels.sampling import processes
    from genmodels.scaling.inference import check_independent, measure, settings_of
    from genmodels.scaling.inference_report import plain, summary, write_report

    check_count(how.n, f"--n {how.n}")
    check_place(out, force)
    check_free(out / "index.html", force)
    if json:
        check_free(json, force, ".json")
    device = processes().device
    judge = load_extractor(how.judge, device)
    verifier = load_extractor(how.verifier, device) if max(how.candidates) > 1 else None
    if verifier is not None:
        check_independent(judge, verifier)
    models = {run: open_model(run, "sample") for run in runs}
    real = real_images(runs, EvaluationFlags())
    points = []
    for run, model in models.items():
        settings = settings_of(model, how.steps, how.guidance, how.candidates)
        reference = real.of_size(model.config.size)
        points += measure(run, model, settings, reference, judge, verifier, n=how.n, seed=seed, save=how.save, say=say)
    for line in summary(points, judge, verifier):
        print(line)
    page = write_report(points, judge, verifier, how.n, out, force)
    if json:
        write_json(json, plain(points, judge, verifier, how.n), indent=2)
    print(f"\nOpen {page} in a browser.")


def _table_of(runs: tuple[str, ...]) -> Table:
    """Return the table of run folders, whose losses are measured if they are not known."""
    from genmodels.scaling.runs import run_folders, table_of

    return table_of(run_folders([Path(run) for run in runs]), say)


def sweep(
    family: Positional[str] = "",
    budgets: tuple[float, ...] = (),
    sizes: int = 6,
    seeds: int = 1,
    jobs: int = 1,
    out: Path = Path("sweep"),
    tokens_per_parameter: float = 20.0,
    options: tuple[str, ...] = (),
    plan: bool = False,
    list: bool = False,
    run: str = "",
    slurm: bool = False,
    partition: str | None = None,
    minutes: int = 600,
) -> None:
    """Train models of several sizes for several budgets, for `genmodels scaling`.

    It prints the plan with its cost, and then trains each run in a folder of its own, as genmodels
    train does. A sweep that was interrupted continues with the same command, or with --out alone.
    Settings of the recipe that all runs share are given by name, such as --data packed/faces
    --size 32. docs/scaling.md explains how the settings of a run follow from its size.

    Args:
        family: a family with a transformer: dit or autoregressive.
        budgets: training FLOPs of a run, at least three.
        sizes: number of sizes at each budget, around the expected best one.
        seeds: number of runs of each size at each budget.
        jobs: number of runs at a time. Each gets its share of the cores and, if there are GPUs, one.
        out: new or empty folder for the runs, or that of the sweep to continue.
        tokens_per_parameter: expected ratio of tokens and parameters at the best size.
        options: settings of the recipe as NAME=VALUE. --NAME VALUE is short for it.
        plan: only print and write the plan.
        list: only print the commands of the runs that are not finished, one on each line. Each can
            be repeated until it succeeds.
        run: execute only the run of this name.
        slurm: submit the runs to SLURM, each with one GPU, instead of running them here.
        partition: partition of SLURM.
        minutes: time limit of a run on SLURM.
    """
    from genmodels.scaling.plan import describe, read_plan, write_plan
    from genmodels.scaling.sweep import command, run_local, submit, unfinished

    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    if family:
        made = _planned(family, budgets, sizes, seeds, tokens_per_parameter, options, out)
    elif budgets or options:
        raise UsageError("--budgets and settings are for a new sweep. Usage: genmodels sweep FAMILY --budgets FLOPS...")
    else:
        made = read_plan(out)
    if run:
        _execute(made, run, out)
        return
    left = unfinished(made, out)
    if list:
        for each in left:
            print(shlex.join(["genmodels", *command(out, each)]))
        return
    for line in describe(made):
        print(line)
    write_plan(made, out)
    print(f"{len(made.runs) - len(left)} of them are finished", flush=True)
    if plan:
        return
    if slurm:
        submitted = submit(left, out, jobs, minutes, partition)
        print(f"submitted {len(submitted)} runs")
        return
    failed = run_local(left, out, jobs, say)
    if failed:
        raise ValueError(f"{len(failed)} runs failed: {', '.join(failed)}; their messages are in {out / 'logs'}")
    print(f"all runs are finished: genmodels scaling {shlex.quote(str(out))} --out FOLDER")


SET_BY_SWEEP = (
    *("output", "steps", "minutes", "seed", "batch_size", "optim.warmup", "resume", "dry_run"),
    *(f"model.transformer.{name}" for name in ("width", "depth", "heads", "hidden")),
)
"""Settings of a recipe that follow from the plan."""
PATHS = ("data", "root", "codec", "text", "config")
"""Settings of a recipe that may be paths."""


def _planned(
    family: str,
    budgets: tuple[float, ...],
    sizes: int,
    seeds: int,
    tokens_per_parameter: float,
    options: tuple[str, ...],
    out: Path,
) -> Plan:
    """Plan a sweep, or read the plan of the same sweep in `out`."""
    from genmodels.cli.train import recipe_of
    from genmodels.scaling.plan import PLAN, check_same, make_plan, read_plan
    from genmodels.training.command_line import parse

    if min(budgets, default=1) <= 0 or seeds < 1 or tokens_per_parameter <= 0:
        raise UsageError("--budgets, --seeds and --tokens-per-parameter must be above 0")
    arguments = []
    for option in options:
        name, value = name_and_value(option, "--options")
        if name in SET_BY_SWEEP:
            raise UsageError(f"--{name.replace('_', '-')} follows from the plan of a sweep: leave it out")
        value = str(Path(value).absolute()) if name in PATHS and Path(value).exists() else value
        arguments += [f"--{name.replace('_', '-')}", value]
    kind, recipe = recipe_of(family)
    request = {
        "family": family,
        "arguments": arguments,
        "budgets": sorted(set(budgets)),
        "sizes": sizes,
        "seeds": seeds,
        "tokens-per-parameter": tokens_per_parameter,
    }
    if (out / PLAN).is_file():
        made = read_plan(out)
        check_same(made, request, out)
        return made
    check_empty(out)
    return make_plan(kind, parse(recipe, family, arguments), request, say)


def _execute(plan: Plan, name: str, out: Path) -> None:
    """Start or continue one run, and measure its loss; nothing if it is finished."""
    from genmodels.cli.train import train
    from genmodels.scaling.runs import MEASURED, measured
    from genmodels.training.folder import CHECKPOINTS
    from genmodels.training.steps import list_checkpoints

    run = next((run for run in plan.runs if run.name == name), None)
    if run is None:
        raise UsageError(f"--run {name}: {out} has no such run; genmodels sweep --out {out} --list prints them")
    folder = out / name
    if not (folder / MEASURED).is_file():
        resumed = ("--resume",) if list_checkpoints(folder / CHECKPOINTS) else ()
        train(plan.family, (*run.arguments, "--output", str(folder), *resumed))
    loss = measured(folder)["loss"]
    print(f"{name}: {loss['metric']} {loss['value']:.6g}")


def _request(text: str) -> Request:
    """Parse a value of --predict."""
    from genmodels.scaling.analysis import Request

    name, value = name_and_value(text, "--predict")
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(0 < number < float("inf") for number in numbers):
        raise UsageError(f"--predict {text}: write NAME=PARAMETERS,TOKENS or NAME=FLOPS, with numbers above 0")
    return Request(name, *numbers) if len(numbers) == 2 else Request(name, flops=numbers[0])
