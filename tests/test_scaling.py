"""Scaling laws: known answers, parity with L-BFGS, intervals, and tables that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from genmodels.cli import main
from genmodels.scaling.analysis import Request, analyse, estimate
from genmodels.scaling.approaches import _loss_curve, envelope, minima
from genmodels.scaling.law import DELTA, NAMES, Cost, Law, bootstrap, fit, fit_cost
from genmodels.scaling.table import Table, grouped, make_table, read_table

LAW = Law(E=1.8, A=480.0, B=2100.0, a=0.35, b=0.37)
LADDER = np.geomspace(1e5, 1e13, 101)
SIX = Cost()


def isoflop(budgets: np.ndarray, sizes: int = 9, cost: Cost = SIX, law: Law = LAW) -> Table:
    """Make a table of `sizes` sizes of a ladder around the best one of each budget, without noise."""
    rows = []
    for budget in budgets:
        best = float(law.optimum(budget, cost)[0])
        middle = int(np.argmin(np.abs(np.log(LADDER / best))))
        for size in LADDER[np.arange(middle - sizes // 2, middle + sizes // 2 + 1)]:
            tokens = float(cost.tokens(size, budget))
            numbers = {"parameters": size, "tokens": tokens, "flops": budget, "loss": float(law.loss(size, tokens))}
            rows.append({"name": f"{budget:g} {size:g}"} | {k: str(v) for k, v in numbers.items()})
    return make_table(rows, "the test")


BUDGETS = np.geomspace(1e18, 1e20, 5)


def noisy(table: Table, seed: int) -> Table:
    noise = 0.003 * np.random.default_rng(seed).normal(size=len(table))
    return replace(table, loss=table.loss * np.exp(noise))


@pytest.mark.parametrize("law", [LAW, Law(0.2, 30.0, 5.0, 0.6, 0.2), Law(5.0, 10.0, 1e5, 0.2, 0.8)])
def test_a_law_without_noise_is_recovered(law: Law) -> None:
    table = isoflop(np.geomspace(1e17, 1e21, 6), law=law)
    found = fit(table.parameters, table.tokens, table.loss)
    for name in NAMES:
        assert found.constants[name] == pytest.approx(law.constants[name], rel=1e-3)


def test_noise_of_a_third_of_a_percent_leaves_the_exponent() -> None:
    table = isoflop(np.geomspace(1e17, 1e21, 9))
    expected = float(LAW.exponents(table.cost)[0])
    for seed in range(4):
        some = noisy(table, seed)
        found = fit(some.parameters, some.tokens, some.loss)
        assert float(found.exponents(table.cost)[0]) == pytest.approx(expected, abs=0.01)


def test_all_approaches_find_the_exponent_that_made_the_losses() -> None:
    table = isoflop(np.geomspace(1e17, 1e21, 9), sizes=13)
    expected = float(LAW.exponents(table.cost)[0])
    losses = table.loss[None]
    power, curve, found = minima(table, losses)
    larger = 1e22
    assert curve.loss(larger)[0] == pytest.approx(float(LAW.loss(*LAW.optimum(larger, table.cost))), rel=2e-3)
    assert power.exponent[0] == pytest.approx(expected, abs=0.005)
    assert not any(minimum.left_out for minimum in found)
    assert envelope(table, losses)[0].exponent[0] == pytest.approx(expected, abs=0.05)


def test_losses_far_above_the_minimum_do_not_bend_the_parabola() -> None:
    table = isoflop(BUDGETS)
    _, _, found = minima(table, table.loss[None])
    far = table.parameters == table.parameters.max()  # of the largest budget only
    worse = replace(table, loss=np.where(far, 1.5 * table.loss, table.loss))
    assert far.sum() == 1
    _, _, bent = minima(worse, worse.loss[None])
    without = make_table([_row(table, i) for i in np.flatnonzero(~far)], "the test")
    _, _, expected = minima(without, without.loss[None])
    assert bent[-1].parameters == pytest.approx(expected[-1].parameters, rel=1e-9)
    assert [m.parameters for m in bent[:-1]] == [m.parameters for m in found[:-1]]


@pytest.mark.parametrize("floor", [0.0, 2.0])
def test_the_loss_at_the_minima_recovers_its_floor_and_exponent(floor: float) -> None:
    x = np.log(np.geomspace(1e10, 1e13, 5))
    losses = floor + 40 * np.exp(-0.12 * x)
    some = np.where(np.arange(5)[:, None] < [[5, 4, 3]], losses[:, None], np.nan)  # 5, 4 and 3 minima
    curve = _loss_curve(x, some)
    for number in range(2):
        assert curve.exponent[number] == pytest.approx(0.12, abs=0.004)
        assert curve.floor[number] == pytest.approx(floor, abs=0.05)
        assert curve.loss(1e14)[number] == pytest.approx(floor + 40 * 1e14**-0.12, rel=0.01)
    assert np.isnan(curve.loss(1e14)[2])


def test_the_fit_is_at_least_as_good_as_l_bfgs() -> None:
    table = noisy(isoflop(BUDGETS), 3)
    log_n, log_d, log_loss = np.log(table.parameters), np.log(table.tokens), np.log(table.loss)

    def objective(theta: np.ndarray) -> float:
        terms = theta[0] + 0 * log_n, theta[1] - theta[3] * log_n, theta[2] - theta[4] * log_d
        size = np.abs(log_loss - np.logaddexp.reduce(terms))
        return float(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum())

    def theta(law: Law) -> np.ndarray:
        return np.array([np.log(law.E), np.log(law.A), np.log(law.B), law.a, law.b])

    found = theta(fit(table.parameters, table.tokens, table.loss))
    best = min((minimize(objective, start, method="L-BFGS-B") for start in (theta(LAW), found)), key=lambda r: r.fun)
    assert objective(found) <= best.fun * (1 + 1e-6)


def test_the_optimum_is_the_least_loss_along_a_budget() -> None:
    cost = Cost(k=40.0, m=0.9)
    size, tokens = LAW.optimum(1e18, cost)
    sizes = size * np.geomspace(0.9, 1.1, 2001)
    losses = LAW.loss(sizes, cost.tokens(sizes, 1e18))
    assert sizes[np.argmin(losses)] == pytest.approx(float(size), rel=1e-3)
    assert float(cost.flops(size, tokens)) == pytest.approx(1e18)
    larger = LAW.optimum(1e20, cost)
    for ratio, exponent in zip((larger[0] / size, larger[1] / tokens), LAW.exponents(cost), strict=True):
        assert float(np.log(ratio) / np.log(100)) == pytest.approx(float(exponent))


def test_the_cost_of_counted_flops_is_recovered() -> None:
    n, d = np.array([1e5, 1e6, 1e7]), np.array([1e6, 3e6, 2e6])
    found = fit_cost(n, d, Cost(33.0, 0.87).flops(n, d))
    assert (found.k, found.m) == pytest.approx((33.0, 0.87))


def test_bootstrap_laws_scatter_around_the_law_by_its_error() -> None:
    table = isoflop(BUDGETS)
    found = np.array([float(fit(t.parameters, t.tokens, t.loss).b) for t in (noisy(table, s) for s in range(12))])
    some = noisy(table, 0)
    law = fit(some.parameters, some.tokens, some.loss)
    samples = bootstrap(law, some.parameters, some.tokens, some.loss, 60, 0)
    spread = float(np.std(samples.b))
    assert found.std() / 2.5 < spread < found.std() * 2.5


def test_a_larger_run_is_predicted() -> None:
    table = noisy(isoflop(BUDGETS), 1)
    requests = [Request("best", flops=1e21), Request("named", 1e9, 2e10)]
    best, at_minimum, named = analyse(table, requests, samples=100).predictions
    assert [p.approach for p in (best, at_minimum, named)] == ["parametric", "minimum", "parametric"]
    size, tokens = LAW.optimum(1e21, SIX)
    assert best.optimal and best.parameters == pytest.approx(float(size), rel=0.2)
    assert best.loss.low < float(LAW.loss(size, tokens)) < best.loss.high
    assert best.loss.value == pytest.approx(float(LAW.loss(size, tokens)), rel=0.01)
    for value in (at_minimum.loss.value, best.loss.value):
        assert value == pytest.approx(float(LAW.loss(size, tokens)), rel=0.01)
    assert at_minimum.loss.low < float(LAW.loss(size, tokens)) < at_minimum.loss.high
    assert at_minimum.parameters == pytest.approx(float(size), rel=0.3)
    assert float(table.cost.flops(at_minimum.parameters, at_minimum.tokens)) == pytest.approx(1e21)
    assert named.loss.value == pytest.approx(float(LAW.loss(1e9, 2e10)), rel=0.01)


def test_runs_that_determine_no_law_are_refused() -> None:
    """Losses that depend on nothing but noise."""
    flat = noisy(replace(isoflop(BUDGETS[:3], sizes=3), loss=np.full(9, 0.146)), 0)
    with pytest.raises(ValueError, match="these 9 runs determine no law, since their losses hardly depend on"):
        analyse(flat, samples=10)


def test_constants_that_bootstrap_samples_do_not_determine_have_no_standard_error() -> None:
    large = estimate(1.0, np.array([1.0, 1e200]))  # the square of which overflows
    assert large.error is None and large.low is not None and large.high is not None
    json.dumps(vars(large), allow_nan=False)


def test_a_minimum_at_the_edge_is_reported_and_left_out() -> None:
    table = isoflop(BUDGETS)
    edge = (table.flops > 1.5 * BUDGETS[0]) | (table.parameters < LAW.optimum(BUDGETS[0], SIX)[0])
    kept = make_table([_row(table, i) for i in np.flatnonzero(edge)], "the test")
    power, _, found = minima(kept, kept.loss[None])
    assert found[0].left_out == "its largest model has the least loss: add larger ones"
    assert [minimum.left_out for minimum in found[1:]] == [""] * 4
    assert power.exponent[0] == pytest.approx(float(LAW.exponents(SIX)[0]), abs=0.02)


def _row(table: Table, i: int) -> dict[str, str]:
    numbers = {name: getattr(table, name)[i] for name in ("parameters", "tokens", "flops", "loss", "budget")}
    return {"name": table.names[i]} | {name: str(float(value)) for name, value in numbers.items()}


def test_runs_whose_flops_hardly_differ_have_one_budget() -> None:
    assert len(np.unique(grouped(np.array([1.0, 1.2, 3.0, 3.3, 10.0])))) == 3


# ---- the command ----


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    table = isoflop(BUDGETS)
    rows = [f"{table.parameters[i]},{table.tokens[i]},{table.loss[i]}" for i in range(len(table))]
    return write(tmp_path / "table.csv", ["parameters,tokens,loss", *rows])


def test_the_command_writes_a_page_and_json(csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, law = tmp_path / "out", tmp_path / "law.json"
    how = ["--samples", "20", "--predict", "big=1e21"]
    assert main(["scaling", str(csv), "--out", str(out), "--json", str(law), *how]) == 0
    result = json.loads(law.read_text())
    assert result["law"]["constants"]["a"]["value"] == pytest.approx(0.35, rel=1e-3)
    assert result["exponents"]["minimum"]["N"]["value"] == pytest.approx(0.37 / 0.72, abs=0.01)
    assert result["predictions"][0]["name"] == "big"
    assert {p.name for p in (out / "figures").iterdir()} == {
        f"{name}.png" for name in ("isoflop", "frontier", "curves", "residuals")
    }
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 4 and "IsoFLOP" in page and "http" not in page.replace("http://www.w3.org", "")
    assert "approach 3" in capsys.readouterr().out
    assert read_table(out / "runs.csv").loss == pytest.approx(read_table(csv).loss)
    assert main(["scaling", str(csv), "--out", str(out)]) == 1  # not without --force
    assert "--force" in capsys.readouterr().err


GOOD = [f"{n},{d},{1 + 1e3 / n + 1e3 / d}" for n, d in zip((1e3, 2e3, 4e3), (9e3, 9.5e3, 2e4), strict=True)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["parameters,loss", "1,2"], "has no column tokens or flops"),
        (["tokens,loss", "1,2"], "has no column parameters"),
        ([], "has no column parameters, loss"),
        (["parameters,tokens,loss", *GOOD, "1e4,1e5,nan"], "line 5: loss must be a number above 0, got 'nan'"),
        (["parameters,tokens,loss", *GOOD, "1e4,,1"], "line 5: tokens must be a number above 0, got 'nothing'"),
        (["parameters,tokens,loss", *GOOD, "1e4,1e5"], "line 5: 2 columns, the header has 3"),
        (["parameters,tokens,loss", *GOOD[:2]], "2 runs of 2 sizes"),
        (["parameters,tokens,loss", "1e3,1e5,3", "2e3,1e5,2", "4e3,1e5,1"], "1 numbers of tokens: 1e+05"),
        (["parameters,flops,loss", *(f"{n},1e9,{n}" for n in (1, 2, 3))], "1 budgets (FLOPs): 1e+09"),
        (
            ["parameters,tokens,loss,metric", *(f"{row},bits" for row in GOOD), "1e4,1e5,1,mse"],
            "line 2 has the metric 'bits' and line 5 'mse'; their losses cannot be compared",
        ),
        (["parameters,tokens,loss,protocol", *(f"{r},{i}" for i, r in enumerate(GOOD))], "has the protocol '0'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(
    lines: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "table.csv", lines)
    assert main(["scaling", str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error and str(path) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["big", "big=", "big=-1", "big=1,2,3", "big=x"])
def test_a_wrong_prediction_is_refused(value: str, csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", str(csv), "--predict", value]) == 2
    assert "--predict" in capsys.readouterr().err
