"""The parametric law L(N, D) = E + A / N^a + B / D^b (approach 3 of Chinchilla, arXiv 2203.15556).

N is the number of parameters and D the number of training tokens. Laws are fitted in batches, so
that a thousand bootstrap samples of a few hundred runs take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NAMES = ("E", "A", "B", "a", "b")
"""Constants of the law, in the order of `Law.constants`."""
DELTA = 1e-3
"""Residual in log space beyond which the Huber loss is linear, as in Chinchilla."""
EXPONENTS = np.geomspace(0.03, 3.0, 32)
"""Exponents of the grid on which the fit looks for its start."""
STARTS = 8
"""Number of points of that grid from which the fit is continued."""
STEPS = 400
"""Largest number of steps of a fit."""
TOLERANCE = 1e-12
"""A fit ends when its objective falls by less than this fraction in `PATIENCE` steps."""
PATIENCE = 8


@dataclass(frozen=True)
class Cost:
    """Training FLOPs as a function of parameters and tokens: C = k N^m D.

    With k = 6 and m = 1 this is the common 6 N D. Counted FLOPs of small models differ from it, and
    a fit to them has another k and m.
    """

    k: float = 6.0
    m: float = 1.0

    def flops(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Return the training FLOPs."""
        return np.asarray(self.k * np.asarray(parameters) ** self.m * tokens)

    def tokens(self, parameters: np.ndarray | float, flops: np.ndarray | float) -> np.ndarray:
        """Return the number of tokens that `flops` pay for."""
        return np.asarray(flops / (self.k * np.asarray(parameters) ** self.m))


def fit_cost(parameters: np.ndarray, tokens: np.ndarray, flops: np.ndarray) -> Cost:
    """Fit C = k N^m D to the FLOPs of runs, by least squares in log space.

    Args:
        parameters: (n,), of at least two sizes.
        tokens: (n,).
        flops: (n,).
    """
    m, log_k = np.polyfit(np.log(parameters), np.log(flops / tokens), 1)
    return Cost(float(np.exp(log_k)), float(m))


@dataclass(frozen=True)
class Law:
    """One or several laws. Each constant is a number or an array (..., 1) for several laws.

    Attributes:
        E: loss that no model and no data can remove.
        A: size of the term of the parameters.
        B: size of the term of the data.
        a: exponent of the parameters.
        b: exponent of the tokens.
    """

    E: np.ndarray | float
    A: np.ndarray | float
    B: np.ndarray | float
    a: np.ndarray | float
    b: np.ndarray | float

    @property
    def constants(self) -> dict[str, float]:
        """The constants of a single law by name."""
        return {name: float(getattr(self, name)) for name in NAMES}

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Return the loss of models with `parameters` after `tokens`."""
        by_size = self.A * np.asarray(parameters, float) ** -np.asarray(self.a)
        return np.asarray(self.E + by_size + self.B * np.asarray(tokens, float) ** -np.asarray(self.b))

    def exponents(self, cost: Cost) -> tuple[np.ndarray, np.ndarray]:
        """Return the exponents of C in N*(C) and in D*(C)."""
        whole = self.a + cost.m * np.asarray(self.b)
        return np.asarray(self.b / whole), np.asarray(self.a / whole)

    def optimum(self, flops: np.ndarray | float, cost: Cost) -> tuple[np.ndarray, np.ndarray]:
        """Return N*(C) and D*(C): the parameters and the tokens with the least loss for `flops`.

        At the minimum of the loss along C = k N^m D, a A / N^a = m b B / D^b. Laws of bootstrap
        samples that do not determine their constants can have none: infinite numbers or NaN.
        """
        per_token = np.asarray(flops, float) / cost.k
        with np.errstate(all="ignore"):
            ratio = self.a * self.A / (cost.m * self.b * np.asarray(self.B))
            size = (ratio * per_token**self.b) ** (1 / (self.a + cost.m * np.asarray(self.b)))
            return np.asarray(size), np.asarray(per_token / size**cost.m)


def fit(
    parameters: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    weights: np.ndarray | None = None,
    delta: float = DELTA,
) -> Law:
    """Fit a law: the least sum of Huber losses of log L - log L(N, D).

    The law is linear in E, A and B. Variable projection therefore needs a grid of the two exponents
    only: at each of its points the three others follow from a linear least-squares problem. The
    fit continues from the best points with `refine`.

    Args:
        parameters: (n,).
        tokens: (n,).
        loss: (n,), positive.
        weights: weight of each run (n,). None: all are equal.
        delta: residual in log space beyond which the Huber loss is linear.
    """
    starts = projected_starts(parameters, tokens, loss, weights)
    each = np.ones((1, len(loss))) if weights is None else np.asarray(weights, float)[None]
    theta, objective = refine(starts, parameters, tokens, loss, np.repeat(each, len(starts), 0), delta)
    return _laws(theta[np.argmin(objective)])


def projected_starts(
    parameters: np.ndarray, tokens: np.ndarray, loss: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return starts (STARTS, 5) of a fit by variable projection on a grid of exponents.

    E, A and B minimise the squared relative residuals. Points at which one of them is not positive
    are used only if there are no others, with that constant close to 0.
    """
    a, b = (grid.ravel()[:, None] for grid in np.meshgrid(EXPONENTS, EXPONENTS, indexing="ij"))  # (G, 1)
    # Powers relative to the smallest model and data set, so that the three columns have one scale.
    first, second = parameters.min(), tokens.min()
    columns = np.stack([np.ones((len(a), len(loss))), (parameters / first) ** -a, (tokens / second) ** -b], axis=2)
    scale = np.sqrt(np.ones_like(loss) if weights is None else weights) / loss
    design = columns * scale[:, None]  # (G, n, 3)
    gram = np.einsum("gni,gnj->gij", design, design)
    right = np.einsum("gni,n->gi", design, scale * loss)
    ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    linear = np.linalg.solve(gram + ridge, right[..., None])[..., 0]  # (G, 3)
    positive = (linear > 0).all(1)
    linear = np.maximum(linear, 1e-6 * loss.min())
    misfit = ((np.einsum("gni,gi->gn", design, linear) - scale * loss) ** 2).sum(1)
    order = np.lexsort((misfit, ~positive))[:STARTS]
    a, b, linear = a[order, 0], b[order, 0], linear[order]
    logs = np.log(linear) + np.stack([np.zeros_like(a), a * np.log(first), b * np.log(second)], axis=1)
    return np.column_stack([logs, a, b])


def refine(
    theta: np.ndarray,
    parameters: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    weights: np.ndarray,
    delta: float = DELTA,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the Huber loss in log space for several laws at once.

    Each step solves a damped, weighted least-squares problem (Levenberg-Marquardt), in which a run
    with residual r has the weight min(1, delta / |r|). A step is taken only if the objective falls.
    Unlike a quasi-Newton method it does not depend on the scale of the objective, by which the fit of
    the original paper ended early (arXiv 2404.10102).

    Args:
        theta: starts (S, 5): log E, log A, log B, a, b.
        parameters: (n,).
        tokens: (n,).
        loss: (n,).
        weights: weight of each run in each fit (S, n).
        delta: residual beyond which the Huber loss is linear.

    Returns:
        The minima (S, 5) and their objectives (S,).
    """
    theta = theta.copy()
    # Powers relative to the geometric means, which hardly changes an exponent with its factor.
    log_n, log_d, log_loss = np.log(parameters), np.log(tokens), np.log(loss)
    n_mean, d_mean = log_n.mean(), log_d.mean()
    log_n, log_d = log_n - n_mean, log_d - d_mean
    theta[:, 1] -= theta[:, 3] * n_mean
    theta[:, 2] -= theta[:, 4] * d_mean
    objective = _objective(theta, log_n, log_d, log_loss, weights, delta)
    damping, quiet = np.full(len(theta), 1e-3), np.zeros(len(theta), int)
    for _ in range(STEPS):
        active = np.flatnonzero(quiet < PATIENCE)
        if not len(active):
            break
        now = theta[active]
        residual, jacobian = _linearised(now, log_n, log_d, log_loss)
        scaled = jacobian * (weights[active] * np.minimum(1, delta / np.maximum(np.abs(residual), 1e-300)))[..., None]
        transposed = scaled.transpose(0, 2, 1)  # (S, 5, n)
        hessian = transposed @ jacobian
        diagonal = np.maximum(np.einsum("sii->si", hessian), 1e-12)
        hessian += (damping[active, None] * diagonal)[..., None] * np.eye(5)
        step = np.linalg.solve(hessian, transposed @ residual[..., None])[..., 0]
        trial = now + np.clip(step, -1, 1)
        value = _objective(trial, log_n, log_d, log_loss, weights[active], delta)
        before = objective[active]
        better = value < before
        theta[active[better]], objective[active[better]] = trial[better], value[better]
        damping[active] = np.clip(np.where(better, damping[active] / 3, damping[active] * 4), 1e-12, 1e12)
        small = (before - value) <= TOLERANCE * np.abs(before)
        quiet[active] = np.where(small, quiet[active] + 1, 0)
    theta[:, 1] += theta[:, 3] * n_mean
    theta[:, 2] += theta[:, 4] * d_mean
    return theta, objective


def _terms(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three terms of the law, each (S, n), for theta (S, 5)."""
    e, a_log, b_log, a, b = theta.T[:, :, None]
    with np.errstate(over="ignore"):
        return np.exp(e) + 0 * log_n, np.exp(a_log - a * log_n), np.exp(b_log - b * log_d)


def _linearised(
    theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return log L - log L(N, D), (S, n), and the gradient of log L(N, D), (S, n, 5)."""
    constant, by_size, by_data = _terms(theta, log_n, log_d)
    whole = constant + by_size + by_data
    shares = np.stack([constant, by_size, by_data, -by_size * log_n, -by_data * log_d], axis=2) / whole[..., None]
    return log_loss - np.log(whole), shares


def _objective(
    theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray, weights: np.ndarray, delta: float
) -> np.ndarray:
    """Return the weighted sum of Huber losses (S,)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.abs(log_loss - np.log(sum(_terms(theta, log_n, log_d))))
        huber = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
        total = (weights * huber).sum(1)
    return np.where(np.isfinite(total), total, np.inf)


def _laws(theta: np.ndarray) -> Law:
    """Return the law of theta (5,), or the laws of (S, 5) with constants of shape (S, 1)."""
    e, a_log, b_log, a, b = theta if theta.ndim == 1 else theta.T[:, :, None]
    return Law(np.exp(e), np.exp(a_log), np.exp(b_log), a, b)


def bootstrap(
    law: Law, parameters: np.ndarray, tokens: np.ndarray, loss: np.ndarray, count: int, seed: int, delta: float = DELTA
) -> Law:
    """Fit laws to `count` samples of the runs with replacement. Every fit starts from `law`.

    Args:
        law: the fit to all runs.
        parameters: (n,).
        tokens: (n,).
        loss: (n,).
        count: number of samples.
        seed: seed of the samples.
        delta: as in `fit`.

    Returns:
        Laws with constants of shape (count, 1).
    """
    drawn = np.random.default_rng(seed).multinomial(len(loss), np.full(len(loss), 1 / len(loss)), count).astype(float)
    start = np.array([np.log(law.E), np.log(law.A), np.log(law.B), law.a, law.b])
    return _laws(refine(np.tile(start, (count, 1)), parameters, tokens, loss, drawn, delta)[0])
