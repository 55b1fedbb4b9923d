"""Check the fit of scaling laws on the points of Chinchilla's figure, and time it.

    python benchmarks/chinchilla.py svg_extracted_data.csv --out chinchilla

The file is data/svg_extracted_data.csv of github.com/epoch-research/analyzing-chinchilla, which has
no licence and is therefore not part of this repository ("Chinchilla Scaling: A replication
attempt", arXiv 2404.10102). As there, the five runs with the highest losses are dropped. The
constants must agree with the published ones within their standard errors, and the standard errors
must be as small, up to the noise of the bootstrap.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path

import tyro
from tyro.conf import Positional

from genmodels.reading import read_text
from genmodels.scaling.analysis import Request, analyse
from genmodels.scaling.report import summary, write_report
from genmodels.scaling.table import make_table

PUBLISHED = {"E": (1.82, 0.03), "A": (482.0, 124.0), "B": (2085.0, 1293.0), "a": (0.348, 0.02), "b": (0.366, 0.02)}
"""Constants and standard errors of the refit."""
DROPPED = 5
SLACK = 1.15
"""Factor by which a standard error may be larger: both are estimates from bootstrap samples."""


def main(points: Positional[Path], out: Path | None = None, samples: int = 1_000) -> None:
    """Compare constants and standard errors with the published ones.

    Args:
        points: the file svg_extracted_data.csv.
        out: new or empty folder for the page. None: no page.
        samples: number of bootstrap samples.
    """
    rows = list(csv.DictReader(read_text(points).splitlines()))
    rows = sorted(rows, key=lambda row: float(row["loss"]))[:-DROPPED]
    columns = {"parameters": "Model Size", "flops": "Training FLOP", "loss": "loss"}
    named = [{"name": f"run {i}"} | {k: row[v] for k, v in columns.items()} for i, row in enumerate(rows)]
    table = make_table(named, str(points))
    began = time.perf_counter()
    analysis = analyse(table, [Request("chinchilla", 70e9, 1.4e12)], samples)
    seconds = time.perf_counter() - began
    print("\n".join(summary(analysis)))
    failures = []
    for name, found in analysis.constants().items():
        value, error = PUBLISHED[name]
        assert found.value is not None and found.error is not None
        agrees = abs(found.value - value) <= error and found.error <= SLACK * error
        failures += [] if agrees else [name]
        print(f"{name}: {found.value:.4g} ({found.error:.3g}), published {value:g} ({error:g})")
    print(f"{len(table)} runs, {samples:,} bootstrap samples: {seconds:.1f} s")
    if out is not None:
        print(write_report(analysis, out))
    if failures:
        raise SystemExit(f"does not agree with the published refit: {', '.join(failures)}")


if __name__ == "__main__":
    tyro.cli(main)
