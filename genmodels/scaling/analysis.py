"""From a table of runs to laws with intervals: what `genmodels scaling` computes and stores as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from genmodels.scaling.approaches import MEASURED, LossCurve, Minimum, PowerLaw, envelope, minima, replicates
from genmodels.scaling.law import DELTA, NAMES, Law, bootstrap, fit
from genmodels.scaling.table import Table

FORMAT = 1
"""Format of the JSON file."""
SAMPLES = 1_000
"""Default number of bootstrap samples."""
LEVEL = 95
"""Confidence of the intervals in percent."""
APPROACHES = {
    "envelope": "1: envelope of the curves of each size",
    "minimum": "2: minimum over the sizes at each budget",
    "parametric": "3: parametric law",
}
"""Names of the approaches in JSON, and in words."""


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap interval.

    Attributes:
        value: the estimate; None if there is none.
        error: standard error: the standard deviation over bootstrap samples; None if it is infinite.
        low: lower end of the interval.
        high: upper end of the interval.
        failed: fraction of the bootstrap samples that have no such number.
    """

    value: float | None
    error: float | None
    low: float | None
    high: float | None
    failed: float = 0.0

    def __str__(self) -> str:
        if self.value is None:
            return "none"
        return f"{self.value:.4g} [{_text(self.low)}, {_text(self.high)}]"


def _text(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def estimate(value: Any, samples: np.ndarray) -> Estimate:
    """Return `value` with the percentile interval of `samples`, of which those that are NaN failed."""
    number = float(value)
    if not np.isfinite(number):
        return Estimate(None, None, None, None, 1.0)
    kept = samples[np.isfinite(samples)]
    failed = 1 - len(kept) / len(samples) if len(samples) else 0.0
    if len(kept) < 2:
        return Estimate(number, None, None, None, failed)
    low, high = np.percentile(kept, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    with np.errstate(over="ignore"):  # of a constant that the runs do not determine
        error = float(kept.std(ddof=1))
    return Estimate(number, error if np.isfinite(error) else None, float(low), float(high), failed)


@dataclass(frozen=True)
class Prediction:
    """The loss of a run that is not in the table.

    Attributes:
        name: name of the run.
        parameters: its parameters.
        tokens: its tokens.
        flops: its training FLOPs.
        loss: the predicted loss. Its interval is for the result of a single run: it includes the
            scatter of runs around the law.
        approach: name of the approach, in `APPROACHES`.
        optimal: whether the parameters and tokens are N*(C) and D*(C) of that approach.
    """

    name: str
    parameters: float
    tokens: float
    flops: float
    loss: Estimate
    approach: str
    optimal: bool


@dataclass(frozen=True)
class Request:
    """A run whose loss is to be predicted: parameters and tokens, or the FLOPs of the best run.

    Attributes:
        name: name of the run.
        parameters: None with `flops`.
        tokens: None with `flops`.
        flops: None with `parameters` and `tokens`.
    """

    name: str
    parameters: float | None = None
    tokens: float | None = None
    flops: float | None = None


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything that follows from a table.

    Attributes:
        table: the runs.
        law: the parametric law.
        samples: laws of the bootstrap samples, with constants (B, 1).
        residuals: log L - log L(N, D) of each run (n,).
        powers: power laws N*(C) of approaches 1 and 2, by name.
        minima: minima of approach 2, one for each budget.
        envelope: budgets (G,) and best sizes (G,) of approach 1.
        predictions: predicted runs.
    """

    table: Table
    law: Law
    samples: Law
    residuals: np.ndarray
    powers: dict[str, PowerLaw]
    minima: list[Minimum]
    envelope: tuple[np.ndarray, np.ndarray]
    predictions: list[Prediction]

    def constants(self) -> dict[str, Estimate]:
        """The constants of the parametric law."""
        return {name: estimate(getattr(self.law, name), getattr(self.samples, name)[:, 0]) for name in NAMES}

    def exponents(self) -> dict[str, tuple[Estimate, Estimate]]:
        """Exponents of N*(C) and of D*(C) by each approach."""
        cost, found = self.table.cost, {}
        for name, power in self.powers.items():
            both = power.exponent, power.data_exponent(cost)
            found[name] = tuple(estimate(e[MEASURED], e[1:]) for e in both)
        ours, theirs = self.law.exponents(cost), self.samples.exponents(cost)
        found["parametric"] = tuple(estimate(x, y[:, 0]) for x, y in zip(ours, theirs, strict=True))
        return found  # type: ignore[return-value]

    def plain(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        table, cost = self.table, self.table.cost
        exponents = {
            name: {"N": vars(n), "D": vars(d), "in-words": APPROACHES[name]}
            for name, (n, d) in self.exponents().items()
        }
        return {
            "format": FORMAT,
            "runs": len(table),
            "sizes": len(np.unique(table.parameters)),
            "budgets": [float(budget) for budget in table.budgets],
            "shared": dict(table.shared),
            "notes": list(table.notes),
            "flops": {"k": cost.k, "m": cost.m, "in-words": "C = k N^m D"},
            "law": {
                "in-words": "L(N, D) = E + A / N^a + B / D^b",
                "huber-delta": DELTA,
                "constants": {name: vars(value) for name, value in self.constants().items()},
                "scatter": float(self.residuals.std()),
            },
            "exponents": exponents,
            "confidence-percent": LEVEL,
            "bootstrap-samples": len(self.samples.a),  # type: ignore[arg-type]
            "minima": [
                {"budget": m.budget, "parameters": m.parameters, "loss": m.loss, "left-out": m.left_out}
                for m in self.minima
            ],
            "predictions": [vars(p) | {"loss": vars(p.loss)} for p in self.predictions],
        }


@np.errstate(over="ignore", invalid="ignore")  # of bootstrap samples that do not determine their law
def analyse(table: Table, requests: list[Request] | None = None, samples: int = SAMPLES, seed: int = 0) -> Analysis:
    """Fit the parametric law and the power laws of all three approaches, and predict runs.

    Args:
        table: the runs.
        requests: runs to predict.
        samples: number of bootstrap samples.
        seed: seed of all random draws.

    Raises:
        ValueError: if the runs determine no law, or the best run for a budget is requested and the
            law has none.
    """
    n, d, loss = table.parameters, table.tokens, table.loss
    law = fit(n, d, loss)
    residuals = np.log(loss / law.loss(n, d))
    if not np.isfinite(residuals).all():
        raise ValueError(
            f"these {len(table)} runs determine no law, since their losses hardly depend on parameters and tokens: "
            "add runs of other sizes and budgets"
        )
    laws = bootstrap(law, n, d, loss, samples, seed)
    losses = replicates(loss, residuals, samples, seed)
    by_minimum, curve, found = minima(table, losses)
    by_envelope, budgets, best = envelope(table, losses)
    scatter = np.random.default_rng(seed + 1).choice(residuals, samples)
    predictions = []
    for request in requests or []:
        predictions.append(_predict(request, table, law, laws, scatter))
        if request.flops is not None:
            predictions += _predict_best(request.name, request.flops, table, by_minimum, curve, scatter)
    powers = {"envelope": by_envelope, "minimum": by_minimum}
    return Analysis(table, law, laws, residuals, powers, found, (budgets, best), predictions)


def _predict(request: Request, table: Table, law: Law, laws: Law, scatter: np.ndarray) -> Prediction:
    """Predict one run. Its interval covers the uncertainty of the law and the scatter of runs."""
    if request.flops is not None:
        size, tokens = (float(x) for x in law.optimum(request.flops, table.cost))
        flops = request.flops
        if not np.isfinite([size, tokens]).all():
            raise ValueError(
                f"--predict {request.name}: these runs determine no best size for {flops:.3g} FLOPs: add runs of other "
                "sizes and budgets, or give the parameters and tokens of the run"
            )
    else:
        assert request.parameters is not None and request.tokens is not None
        size, tokens = request.parameters, request.tokens
        flops = float(table.cost.flops(size, tokens))
    loss = estimate(law.loss(size, tokens), laws.loss(size, tokens)[:, 0] * np.exp(scatter))
    return Prediction(request.name, size, tokens, flops, loss, "parametric", request.flops is not None)


def _predict_best(
    name: str, flops: float, table: Table, power: PowerLaw, curve: LossCurve, scatter: np.ndarray
) -> list[Prediction]:
    """Predict the best run for a budget by approach 2, if it has enough minima."""
    losses = curve.loss(flops)
    if not np.isfinite(losses[MEASURED]):
        return []
    size = float(power.size(flops))
    tokens = flops / float(table.cost.flops(size, 1.0))
    loss = estimate(losses[MEASURED], losses[1:] * np.exp(scatter))
    return [Prediction(name, size, tokens, flops, loss, "minimum", True)]
