"""Tables of training runs: parameters, tokens, FLOPs and held-out loss of each."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from genmodels.reading import read_text
from genmodels.scaling.law import Cost, fit_cost

NEEDED = "parameters, loss, and tokens or flops"
SAME_BUDGET = 1.25
"""Runs whose FLOPs differ by at most this factor have the same budget, if the table has none."""
LEAST = 3
"""Smallest number of budgets, of sizes and of numbers of tokens."""
SAME_FOR_ALL = ("metric", "protocol", "data", "convention")
"""Columns of text in which all runs must agree."""
SIX = Cost()
"""C = 6 N D, for tables that lack one of the three."""


@dataclass(frozen=True, eq=False)
class Table:
    """Runs of different sizes and lengths.

    Attributes:
        names: name of each run.
        parameters: parameters applied per token (n,).
        tokens: training tokens (n,).
        flops: training FLOPs (n,).
        loss: held-out loss (n,), positive.
        budget: the budget that each run was planned for (n,), in FLOPs.
        shared: what all runs have in common, such as the metric, by column.
        notes: what was assumed, in sentences.
    """

    names: tuple[str, ...]
    parameters: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    budget: np.ndarray
    shared: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def cost(self) -> Cost:
        """FLOPs as a function of parameters and tokens."""
        return fit_cost(self.parameters, self.tokens, self.flops)

    @property
    def budgets(self) -> np.ndarray:
        """The different budgets in ascending order."""
        return np.unique(self.budget)


def read_table(path: Path) -> Table:
    """Read a CSV file with the columns parameters, tokens or flops (or both), and loss.

    Optional columns are name, budget (in FLOPs), and metric, protocol, data and convention, in each
    of which all rows must agree. Other columns are ignored.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not such a table, with the file, the line and the column.
    """
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    columns = [name.casefold() for name in lines[0][1]] if lines else []
    rows = []
    for number, cells in lines[1:]:
        if len(cells) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(cells)} columns, the header has {len(columns)}")
        rows.append({"name": f"line {number}"} | dict(zip(columns, cells, strict=True)))
    missing = [name for name in ("parameters", "loss") if name not in columns]
    if missing or not {"tokens", "flops"} & set(columns):
        missing = missing or ["tokens or flops"]
        raise ValueError(f"{path} has no column {', '.join(missing)}: its first line must name {NEEDED}")
    return make_table(rows, str(path), lambda row: f"line {lines[1 + row][0]}")


def make_table(rows: list[dict[str, str]], where: str, place: Callable[[int], str] | None = None) -> Table:
    """Check rows of text and turn them into a table.

    Args:
        rows: one dict per run, with the columns of `read_table`.
        where: what the table is, for messages.
        place: returns how messages name the row of an index. None: by the name of the run.

    Raises:
        ValueError: if a number is missing or not positive, the runs do not belong together, or there
            are too few of them.
    """
    named = place or (lambda row: rows[row]["name"])

    def column(name: str) -> np.ndarray | None:
        if not rows or name not in rows[0]:
            return None
        values = []
        for number, row in enumerate(rows):
            try:
                value = float(row[name].replace(",", "").replace("_", ""))
            except ValueError:
                value = math.nan
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{where}, {named(number)}: {name} must be a number above 0, got {row[name] or 'nothing'!r}; "
                    "leave out runs that failed"
                )
            values.append(value)
        return np.array(values)

    shared = {}
    for name in SAME_FOR_ALL:
        found = {row[name]: number for number, row in reversed(list(enumerate(rows))) if row.get(name)}
        if len(found) > 1:
            (one, first), (other, second) = sorted(found.items(), key=lambda item: item[1])[:2]
            raise ValueError(
                f"{where}: {named(first)} has the {name} {one!r} and {named(second)} {other!r}; their losses cannot be "
                "compared: choose runs of one kind"
            )
        if found:
            shared[name] = next(iter(found))
    parameters, loss, tokens, flops = (column(name) for name in ("parameters", "loss", "tokens", "flops"))
    if parameters is None or loss is None or (tokens is None and flops is None):
        raise ValueError(f"{where} holds no runs: it needs {NEEDED}")
    notes = []
    if flops is None:
        assert tokens is not None
        flops = SIX.flops(parameters, tokens)
        notes.append("The table has no FLOPs: they are 6 N D.")
    if tokens is None:
        tokens = SIX.tokens(parameters, flops)
        notes.append("The table has no tokens: they are C / (6 N).")
    budget = column("budget")
    _check_counts(where, parameters, tokens, flops if budget is None else budget)
    return Table(
        tuple(row["name"] for row in rows),
        parameters,
        tokens,
        flops,
        loss,
        grouped(flops) if budget is None else budget,
        shared,
        tuple(notes),
    )


def _check_counts(where: str, parameters: np.ndarray, tokens: np.ndarray, budget: np.ndarray) -> None:
    """Refuse runs from which no law follows."""
    found = {"sizes (parameters)": parameters, "budgets (FLOPs)": grouped(budget), "numbers of tokens": tokens}
    for what, values in found.items():
        count = len(np.unique(values))
        if count < LEAST:
            numbers = ", ".join(f"{value:.4g}" for value in np.unique(values))
            raise ValueError(
                f"{where}: {len(parameters)} runs of {count} {what}: {numbers}; a law needs at least {LEAST} of each: "
                "add runs"
            )


def grouped(flops: np.ndarray) -> np.ndarray:
    """Return the budget of each run (n,): runs whose FLOPs hardly differ get their geometric mean."""
    order = np.argsort(flops, kind="stable")
    group, first = np.zeros(len(flops), int), -math.inf
    number = -1
    for row in order:
        if flops[row] > SAME_BUDGET * first:
            first, number = flops[row], number + 1
        group[row] = number
    means = [np.exp(np.log(flops[group == k]).mean()) for k in range(number + 1)]
    return np.array(means)[group]


def to_csv(rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows with the same columns as the text of a CSV file."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
