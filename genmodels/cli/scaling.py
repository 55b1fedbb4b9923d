"""Command of scaling laws: scaling.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from genmodels.cli.arguments import check_free, name_and_value
from genmodels.usage import UsageError
from genmodels.writing import write_json

if TYPE_CHECKING:
    from genmodels.scaling.analysis import Request


def scaling(
    runs: Positional[tuple[str, ...]],
    out: Path = Path("scaling"),
    json: Path | None = None,
    predict: tuple[str, ...] = (),
    samples: int = 1_000,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Fit scaling laws to training runs and write a page about them.

    The laws say how the held-out loss falls with parameters N, data D and compute C, and which N
    and D are best for a budget, by the three approaches of Chinchilla. The folder gets index.html
    (one self-contained page), results.json, runs.csv and figures/*.png. docs/scaling.md explains
    the method.

    Args:
        runs: a .csv file with the columns parameters, tokens or flops (or both), and loss.
        out: new or empty folder for the page.
        json: file to which the results are also written.
        predict: runs to predict, as NAME=PARAMETERS,TOKENS or NAME=FLOPS. The latter is the best run
            for that budget.
        samples: number of bootstrap samples for the intervals.
        seed: seed of the bootstrap samples.
        force: replace an earlier report, or the file of --json.
    """
    if len(runs) != 1 or Path(runs[0]).suffix != ".csv":
        raise UsageError("give one .csv file. Usage: genmodels scaling TABLE.csv --out FOLDER")
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
    analysis = analyse(read_table(Path(runs[0])), requests, samples, seed)
    for line in summary(analysis):
        print(line)
    chosen = [*(["--predict", *predict] if predict else []), "--samples", str(samples), "--seed", str(seed)]
    page = write_report(analysis, out, shlex.join(["genmodels", "scaling", *runs, *chosen, "--out", str(out)]), force)
    if json:
        write_json(json, analysis.plain(), indent=2)
    print(f"\nOpen {page} in a browser.")


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
