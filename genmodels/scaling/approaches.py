"""Approaches 1 and 2 of Chinchilla (arXiv 2203.15556): the best size at each budget without a law.

Both end with a power law N*(C) = factor C^exponent. Their intervals come from replicates of the
losses, each of which is the measured loss times a residual drawn from those of the parametric law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genmodels.scaling.law import Cost
from genmodels.scaling.table import LEAST, Table

GRID = 100
"""Number of budgets at which the envelope is read."""
NEAR = 1.1
"""Largest loss that a parabola is fitted to, as a multiple of the least loss of its budget."""
LOSS_EXPONENTS = np.geomspace(1e-3, 2, 200)
"""Values of the exponent g of L*(C) that are tried."""
MEASURED = 0
"""Row of the measured losses among the replicates."""


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """N*(C) = factor C^exponent, for the measured losses and for replicates of them.

    Attributes:
        exponent: (1 + B,), first that of the measured losses. NaN if it could not be determined.
        log_factor: logarithm of the factor (1 + B,).
    """

    exponent: np.ndarray
    log_factor: np.ndarray

    def size(self, flops: np.ndarray | float) -> np.ndarray:
        """Return N*(C) for the measured losses."""
        return np.asarray(np.exp(self.log_factor[MEASURED]) * np.asarray(flops, float) ** self.exponent[MEASURED])

    def data_exponent(self, cost: Cost) -> np.ndarray:
        """Return the exponents of D*(C), (1 + B,): D* = C / (k N*^m)."""
        return 1 - cost.m * self.exponent


@dataclass(frozen=True, eq=False)
class LossCurve:
    """L*(C) = E + k C^-g, the loss of the best size for a budget, for the measured losses and replicates.

    Attributes:
        floor: E, (1 + B,), at least 0.
        log_factor: log k (1 + B,). NaN if there are too few minima.
        exponent: g, (1 + B,).
    """

    floor: np.ndarray
    log_factor: np.ndarray
    exponent: np.ndarray

    def loss(self, flops: float) -> np.ndarray:
        """Return L*(C), (1 + B,)."""
        return np.asarray(self.floor + np.exp(self.log_factor - self.exponent * np.log(flops)))


@dataclass(frozen=True)
class Minimum:
    """The size with the least loss at one budget.

    Attributes:
        budget: FLOPs.
        parameters: size at the minimum of the parabola, or that with the least measured loss if
            the minimum is left out.
        loss: loss there.
        parabola: coefficients of log N^2, log N and 1.
        left_out: why the minimum is not used; "" if it is used.
    """

    budget: float
    parameters: float
    loss: float
    parabola: tuple[float, float, float]
    left_out: str = ""


def replicates(loss: np.ndarray, residuals: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the measured losses (first) and `count` replicates of them: (1 + count, n).

    Args:
        loss: measured losses (n,).
        residuals: residuals of their logarithms (n,).
        count: number of replicates.
        seed: seed of the draws.
    """
    drawn = np.random.default_rng(seed).choice(residuals - residuals.mean(), (count, len(loss)))
    return loss * np.exp(np.concatenate([np.zeros((1, len(loss))), drawn]))


def minima(table: Table, losses: np.ndarray) -> tuple[PowerLaw, LossCurve, list[Minimum]]:
    """Approach 2: fit a parabola in log N to the losses of each budget, a power law to the sizes at the
    minima, and a power law with a floor to the losses there.

    A parabola describes the losses close to their minimum only, so those above `NEAR` times the least
    one are not used. A budget is left out if it has too few sizes, or its minimum is at the edge of
    its sizes or outside of them, where a parabola says nothing.

    Args:
        table: the runs.
        losses: as `replicates` returns them (1 + B, n).
    """
    found, logs, levels, budgets = [], [], [], []
    for budget in table.budgets:
        rows = np.flatnonzero(table.budget == budget)
        log_n = np.log(table.parameters[rows])
        best = rows[np.argmin(table.loss[rows])]
        sizes = np.unique(log_n)
        if len(sizes) < LEAST:
            found.append(_left_out(table, budget, best, f"it has fewer than {LEAST} sizes"))
            continue
        # Whether a replicate's least loss is at the edge is not asked: that is chance if the parabola is flat.
        at_edge = np.log(table.parameters[best]) in (sizes[0], sizes[-1])
        smallest = table.parameters[best] == table.parameters[rows].min()
        near = table.loss[rows] <= NEAR * table.loss[best]
        if len(np.unique(log_n[near])) >= LEAST:
            rows, log_n = rows[near], log_n[near]
        sizes, centre = np.unique(log_n), log_n.mean()
        design = np.stack([(log_n - centre) ** 2, log_n - centre, np.ones(len(rows))], axis=1)
        curvature, slope, level = np.linalg.pinv(design) @ losses[:, rows].T  # each (1 + B,)
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = centre - slope / (2 * curvature)
        inside = (curvature > 0) & (vertex > sizes[0]) & (vertex < sizes[-1])
        if at_edge or not inside[MEASURED]:
            side, add = ("smallest", "smaller") if smallest else ("largest", "larger")
            reason = f"its {side} model has the least loss: add {add} ones"
            found.append(_left_out(table, budget, best, reason if at_edge else "its parabola has no minimum inside"))
            continue
        u, v, w = (float(values[MEASURED]) for values in (curvature, slope, level))
        least = w - v**2 / (4 * u)
        parabola = (u, v - 2 * u * centre, w - v * centre + u * centre**2)
        found.append(Minimum(float(budget), float(np.exp(vertex[MEASURED])), least, parabola))
        logs.append(np.where(inside, vertex, np.nan))
        levels.append(np.where(inside, level - slope**2 / (4 * curvature), np.nan))
        budgets.append(np.log(budget))
    x, shape = np.array(budgets), (len(budgets), len(losses))
    return _power_law(x, np.array(logs).reshape(shape)), _loss_curve(x, np.array(levels).reshape(shape)), found


def _left_out(table: Table, budget: float, best: int, reason: str) -> Minimum:
    nothing = (0.0, 0.0, float(table.loss[best]))
    return Minimum(float(budget), float(table.parameters[best]), float(table.loss[best]), nothing, reason)


def envelope(table: Table, losses: np.ndarray) -> tuple[PowerLaw, np.ndarray, np.ndarray]:
    """Approach 1: the size that has the least loss at each budget, and a power law through them.

    The loss of a size between its runs is interpolated in log C and log L. Budgets at which the
    smallest or largest size with runs on both sides is best are left out.

    Args:
        table: the runs.
        losses: as `replicates` returns them (1 + B, n).

    Returns:
        The power law; the budgets (G,) at which it was read; and the best sizes there (G,), NaN
        where there are none.
    """
    grid = np.linspace(np.log(table.flops.min()), np.log(table.flops.max()), GRID)
    sizes = [size for size in np.unique(table.parameters) if len(np.unique(table.flops[table.parameters == size])) > 1]
    curves = np.full((len(sizes), len(losses), GRID), np.nan)
    for number, size in enumerate(sizes):
        rows = np.flatnonzero(table.parameters == size)
        rows = rows[np.argsort(table.flops[rows], kind="stable")]
        at = np.log(table.flops[rows])
        covered = (grid >= at[0]) & (grid <= at[-1])
        # Interpolation is linear in the values: its weights are its results for unit vectors.
        weights = np.stack([np.interp(grid[covered], at, unit) for unit in np.eye(len(rows))])
        curves[number][:, covered] = np.log(losses[:, rows]) @ weights
    known = np.isfinite(curves[:, MEASURED]) if sizes else np.zeros((0, GRID), bool)
    usable = known.sum(0) >= LEAST
    best = np.full((len(losses), GRID), np.nan)
    for point in np.flatnonzero(usable):
        here = np.flatnonzero(known[:, point])
        least = np.argmin(curves[here, :, point], axis=0)  # (1 + B,)
        inside = (least > 0) & (least < len(here) - 1)
        best[inside, point] = np.log(np.array(sizes)[here[least[inside]]])
    return _power_law(grid, best.T), np.exp(grid), np.exp(best[MEASURED])


def _loss_curve(x: np.ndarray, y: np.ndarray) -> LossCurve:
    """Fit E + k exp(-g x) to the points (x, y[:, r]) that are finite, for each replicate r.

    The squared relative error is minimised: over E >= 0 and k in closed form, over g on a grid.

    Args:
        x: logarithms of budgets (K,).
        y: least losses (K, 1 + B), NaN where there is none.
    """
    known = np.isfinite(y)
    weight = np.where(known, 1 / np.where(known, y, 1.0), 0.0)  # (K, 1 + B)
    best, found = np.full(y.shape[1], np.inf), np.full((3, y.shape[1]), np.nan)
    centre = x.mean() if len(x) else 0.0
    for g in LOSS_EXPONENTS:
        power = np.exp(-g * (x - centre))[:, None] * weight
        one, both, square = (weight**2).sum(0), (weight * power).sum(0), (power**2).sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            determinant = one * square - both**2
            floor = np.maximum((weight.sum(0) * square - power.sum(0) * both) / determinant, 0.0)
            factor = (power.sum(0) - floor * both) / square
            error = ((floor * weight + factor * power - known) ** 2).sum(0)
            better = (error < best) & (factor > 0) & (known.sum(0) >= LEAST + 1)
            values = np.stack([floor, np.log(factor) + g * centre, np.full_like(floor, g)])
        best, found = np.where(better, error, best), np.where(better, values, found)
    return LossCurve(*found)


def _power_law(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    """Fit lines to the points (x, y[:, r]) that are finite, for each replicate r.

    Args:
        x: logarithms of budgets (K,).
        y: logarithms of sizes (K, 1 + B), NaN where there is none.
    """
    known = np.isfinite(y)
    count = known.sum(0)
    y = np.where(known, y, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_mean = (known * x[:, None]).sum(0) / count
        y_mean = y.sum(0) / count
        away = known * (x[:, None] - x_mean)
        spread = (away**2).sum(0)
        exponent = np.where(spread > 0, (away * y).sum(0) / spread, np.nan)
    return PowerLaw(exponent, y_mean - exponent * x_mean)
