"""Studies of what can mislead in a fit, on simulated sweeps of a known law, so that every error is known.

Each study returns plain rows; `benchmarks.fitting.misleading` draws them. Sweeps are of the published 140m grid unless
said, `noise` is the relative standard deviation of a run's loss, and the same arguments give the same rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from isoloop.fitting import (
    HUBER,
    PUBLISHED_BUDGETS,
    PUBLISHED_RECURRENCES,
    PUBLISHED_TRUTH,
    SQUARED,
    CostModel,
    TrainingLaw,
    exponent_shift,
    fit_isoflop,
    fit_law,
    law_optima,
    parabola_bias,
    point_estimate,
    published_cost_model,
    simulate_table,
)
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.isoflop.power_law import lines
from isoloop.fitting.tables.runs import law_data
from isoloop.trainer.accounting import Accounting, expected_loops, loop_cost
from isoloop.trainer.config import SIZES, RecurrenceConfig

NOISE = 1e-3
LAW = TrainingLaw()
TRUTH = np.array([getattr(PUBLISHED_TRUTH, name) for name in LAW.parameter_names])
GRID_BUDGETS = tuple(1e18 * 2.0**k for k in range(5))
_QUIET = dataclasses.replace(PUBLISHED_TRUTH, run_noise=0.0, evaluation_noise=0.0)
_COST = published_cost_model()

Span = tuple[float, float]
"""The 2.5 and 97.5% quantiles over repetitions, or a 95% interval."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One fit's optima at `budgets` (FLOPs) under one accounting: best loops and tokens, with their 95% ends."""

    accounting: str
    budgets: np.ndarray
    mean_recurrence: np.ndarray
    mean_recurrence_ends: np.ndarray
    tokens: np.ndarray
    tokens_ends: np.ndarray
    gamma_recurrence: float
    gamma_recurrence_interval: Span
    gamma_tokens: float
    gamma_tokens_interval: Span
    extra_gamma_tokens: float
    extra_gamma_tokens_interval: Span


def accounting(*, noise: float = 3e-4, draws: int = 400, seed: int = 0) -> list[Counted]:
    """Fit the training law to the runs of one sweep, and return its optima under two accountings.

    `extra_gamma_tokens` is how much larger gamma_D is than under `exact`, draw by draw.
    """
    data = law_data(noisy(quiet_table(), noise, seed))
    fit = fit_law(LAW, data, draws=draws, seed=seed)
    rows: list[Counted] = []
    found = {name: law_optima(fit, cost_under(name), PUBLISHED_BUDGETS) for name in ("exact", "parcae-release")}
    for name, optima in found.items():
        best = optima.frame()
        mu_law, tokens_law = optima.mean_recurrence_law, optima.tokens_law
        extra, extra_interval = exponent_shift(found["exact"].tokens_law, tokens_law)
        assert mu_law.interval is not None
        assert tokens_law.interval is not None
        assert extra_interval is not None
        row = Counted(
            accounting=name,
            budgets=np.array(PUBLISHED_BUDGETS),
            mean_recurrence=best["mean_recurrence"].to_numpy(),
            mean_recurrence_ends=np.stack(best["mean_recurrence_interval"].to_list(), axis=-1),
            tokens=best["tokens"].to_numpy(),
            tokens_ends=np.stack(best["tokens_interval"].to_list(), axis=-1),
            gamma_recurrence=mu_law.exponent,
            gamma_recurrence_interval=mu_law.interval,
            gamma_tokens=tokens_law.exponent,
            gamma_tokens_interval=tokens_law.interval,
            extra_gamma_tokens=extra,
            extra_gamma_tokens_interval=extra_interval,
        )
        rows.append(row)
    return rows


def cost_under(name: Accounting) -> CostModel:
    """Return the cost of the published 140m model under an accounting."""
    per_token = loop_cost(SIZES["140m"], name)
    loops = [expected_loops(RecurrenceConfig(mean=int(mu)), name) for mu in PUBLISHED_RECURRENCES]
    return dataclasses.replace(
        _COST,
        flops_per_token_fixed=float(per_token.fixed),
        flops_per_token_forward_loop=float(per_token.per_forward_loop),
        flops_per_token_backward_loop=float(per_token.per_backward_loop),
        forward_loops=tuple(forward for forward, _ in loops),
        backward_loops=tuple(backward for _, backward in loops),
    )


@dataclass(frozen=True, kw_only=True)
class GridResult:
    """gamma_mu by parabolas on one kind of grid, minus the law's own at the same budgets; and corrected for the bias.

    `without_noise` is the parabola's bias, `level` that of mu* itself (mean over budgets, percent). `covered` is the
    share of 95% intervals that hold the law's own exponent, `included` the mean number of budgets (of 5) whose minimum
    counts, `fitted` the sweeps that gave a power law. Spans are of 95% of the sweeps.
    """

    grid: str
    runs: int
    without_noise: float
    level: float
    parabola: Span
    parabola_median: float
    parabola_covered: float
    corrected: Span
    corrected_median: float
    corrected_covered: float
    included: float
    fitted: int


Grid = Callable[[float], Sequence[float]]


def _around(low: float, high: float) -> Grid:
    return lambda best: tuple(best * np.geomspace(low, high, 7))


GRIDS: dict[str, Grid] = {
    "1 to 12 (published)": lambda best: PUBLISHED_RECURRENCES,
    "1 to 32": lambda best: (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 32.0),
    "1, 4, 8, 12": lambda best: (1.0, 4.0, 8.0, 12.0),
    "µ*/3 to 3µ*": _around(1 / 3, 3),
    "µ*/1.5 to 1.5µ*": _around(1 / 1.5, 1.5),
    "µ*/3 to 1.2µ*": _around(1 / 3, 1.2),
    "µ*/1.2 to 3µ*": _around(1 / 1.2, 3),
}
"""Mean recurrences, from a budget's true optimum µ*: seven, evenly in log where they depend on it."""


def grid_width(*, noise: float = NOISE, seeds: int = 60, draws: int = 200) -> list[GridResult]:
    """Return the exponents of mu* by parabolas on grids of several widths and positions, at 5 budgets."""
    return [_on_grid(name, grid, noise, seeds, draws) for name, grid in GRIDS.items()]


def _on_grid(name: str, grid: Grid, noise: float, seeds: int, draws: int) -> GridResult:
    best = {budget: float(LAW.optimum(TRUTH, _COST, budget).at) for budget in GRID_BUDGETS}
    quiet = pd.concat([quiet_table([budget], grid(best[budget])) for budget in GRID_BUDGETS], ignore_index=True)

    def off(exponent: float, budgets: Sequence[float]) -> float:
        return exponent - float(lines(np.log(budgets), np.log([[best[budget] for budget in budgets]]))[0, 0])

    found: dict[str, list[float]] = {"parabola": [], "corrected": []}
    covered: dict[str, list[bool]] = {"parabola": [], "corrected": []}
    included = []
    for seed in range(seeds):
        table = noisy(quiet, noise, seed)
        fit = fit_isoflop(table, _COST, draws=draws, seed=seed)
        included.append(len(fit.included))
        if fit.axis_law is None:
            continue
        law = fit_law(LAW, law_data(table), draws=draws, seed=seed)
        try:
            bias = parabola_bias(fit, table, LAW, law.vector, _COST, law.draw_matrix, widening=law.widening)
        except ValueError:
            continue
        budgets = [minimum.budget for minimum in fit.included]
        for kind, one in (("parabola", fit.axis_law), ("corrected", bias.axis_exponent.corrected)):
            assert one.interval is not None
            found[kind].append(off(one.exponent, budgets))
            covered[kind].append(off(one.interval[0], budgets) <= 0 <= off(one.interval[1], budgets))
    still = fit_isoflop(quiet, _COST, draws=0)
    assert still.axis_law is not None
    level = np.mean([np.log(one.mean_recurrence / best[one.budget]) for one in still.included])
    parabola, corrected = (interval(np.array(found[kind])) for kind in ("parabola", "corrected"))
    return GridResult(
        grid=name,
        without_noise=off(still.axis_law.exponent, [minimum.budget for minimum in still.included]),
        runs=len(quiet),
        level=float(100 * np.expm1(level)),
        parabola=parabola,
        parabola_median=float(np.median(found["parabola"])),
        parabola_covered=float(np.mean(covered["parabola"])),
        corrected=corrected,
        corrected_median=float(np.median(found["corrected"])),
        corrected_covered=float(np.mean(covered["corrected"])),
        included=float(np.mean(included)),
        fitted=len(found["parabola"]),
    )


@dataclass(frozen=True, kw_only=True)
class BudgetsResult:
    """One quantity, from sweeps of so many budgets, each twice the one before.

    `width` is the median width of its 95% interval (percent of the loss for the loss), `widths` how it varies over
    sweeps; `covered` of `sweeps` intervals held the truth.
    """

    quantity: str
    budgets: int
    width: float
    widths: Span
    covered: int
    sweeps: int


def few_budgets(
    *, noise: float = NOISE, counts: Sequence[int] = (2, 3, 4, 5, 6), seeds: int = 100, draws: int = 200
) -> list[BudgetsResult]:
    """Return the intervals of the law's y, its gamma_mu, gamma_mu by parabolas, and its loss one budget beyond."""
    return [row for count in counts for row in _of_budgets(count, noise, seeds, draws)]


def _of_budgets(count: int, noise: float, seeds: int, draws: int) -> list[BudgetsResult]:
    budgets = tuple(1e18 * 2.0**k for k in range(count))
    quiet, beyond = quiet_table(budgets), _best_at(2 * budgets[-1])
    loss, own = float(LAW.loss(TRUTH, beyond)[0]), float(_gamma_mu(TRUTH[None], budgets)[0])
    ends: dict[str, list[Span]] = {"y": [], "gamma_mu": [], "gamma_mu, parabolas": [], "loss": []}
    for seed in range(seeds):
        table = noisy(quiet, noise, seed)
        fit = fit_law(LAW, law_data(table), draws=draws, seed=seed)
        ends["y"].append(interval(fit.draw_matrix[:, 4]))
        ends["gamma_mu"].append(interval(_gamma_mu(fit.draw_matrix, budgets)))
        by_parabola = fit_isoflop(table, _COST, draws=draws, seed=seed).axis_law
        if by_parabola is not None and by_parabola.interval is not None:
            ends["gamma_mu, parabolas"].append(by_parabola.interval)
        bounds = fit.loss_interval(beyond, measured=False)
        assert bounds is not None
        ends["loss"].append((float(bounds[0][0]), float(bounds[1][0])))
    truth = {"y": float(TRUTH[4]), "gamma_mu": own, "gamma_mu, parabolas": own, "loss": loss}
    rows = []
    for name, true in truth.items():
        low, high = np.array(ends[name]).T
        width = (high - low) * (100 / true if name == "loss" else 1)
        row = BudgetsResult(
            quantity=name,
            budgets=count,
            width=float(np.median(width)),
            widths=interval(width),
            covered=int(((low <= true) & (true <= high)).sum()),
            sweeps=len(low),
        )
        rows.append(row)
    return rows


def _gamma_mu(vectors: np.ndarray, budgets: Sequence[float]) -> np.ndarray:
    """Return the law's own exponent of mu* from the least to the largest budget, for each of `vectors` (n, p): (n,)."""
    low, high = (LAW.optimum(vectors, _COST, budget).at for budget in (budgets[0], budgets[-1]))
    return np.asarray(np.log(high / low) / np.log(budgets[-1] / budgets[0]))


@dataclass(frozen=True, kw_only=True)
class OutlierResult:
    """Exponent y and error of the loss at twice the largest budget (percent), over sweeps: median and 95% of them."""

    case: str
    objective: str
    exponent: float
    exponents: Span
    error: float
    errors: Span
    mean_absolute_error: float


OUTLIERS = ("none", "3 of 42 runs with 10x the noise", "1 run 5% too high")


def outliers(*, noise: float = NOISE, seeds: int = 200) -> list[OutlierResult]:
    """Fit the training law by squared error and by Huber's function, on sweeps with and without outliers."""
    quiet, beyond = law_data(quiet_table()), _best_at(2 * PUBLISHED_BUDGETS[-1])
    true = LAW.loss(TRUTH, beyond)[0]
    rows = []
    for case in OUTLIERS:
        for objective in (SQUARED, HUBER):
            fits = np.array(
                [
                    point_estimate(
                        LAW, quiet | {"loss": _with_outliers(quiet["loss"], case, noise, seed)}, objective
                    ).parameters
                    for seed in range(seeds)
                ]
            )
            errors = 100 * (LAW.loss(fits, beyond)[:, 0] / true - 1)
            row = OutlierResult(
                case=case,
                objective="Huber, 1e-3" if objective is HUBER else "squared error",
                exponent=float(np.median(fits[:, 4])),
                exponents=interval(fits[:, 4]),
                error=float(np.median(errors)),
                errors=interval(errors),
                mean_absolute_error=float(np.abs(errors).mean()),
            )
            rows.append(row)
    return rows


def _with_outliers(losses: np.ndarray, case: str, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    found = _scattered(losses, noise, seed)
    if case == OUTLIERS[1]:
        found[rng.choice(len(found), 3, replace=False)] *= np.exp(10 * noise * rng.standard_normal(3))
    elif case == OUTLIERS[2]:
        found[rng.integers(len(found))] *= 1.05
    return found


@dataclass(frozen=True, kw_only=True)
class Overspent:
    """Percentage by which mu* and D* of separately fitted parabolas exceed a budget (FLOPs) together.

    `without_noise` is None where a parabola has no minimum inside the grid; `median` and `span` are over sweeps.
    """

    budget: float
    without_noise: float | None
    median: float
    span: Span
    sweeps: int


def fitted_apart(*, noise: float = NOISE, seeds: int = 100) -> list[Overspent]:
    """Fit parabolas in log mu and in log tokens separately, at the budgets where both have a minimum."""
    quiet = quiet_table()
    alone = _overspent(quiet)
    sweeps = [_overspent(noisy(quiet, noise, seed)) for seed in range(seeds)]
    rows = []
    for budget in GRID_BUDGETS:
        values = np.array([sweep[budget] for sweep in sweeps if budget in sweep])
        row = Overspent(
            budget=budget,
            without_noise=alone.get(budget),
            median=float(np.median(values)),
            span=interval(values),
            sweeps=len(values),
        )
        rows.append(row)
    return rows


def _overspent(table: pd.DataFrame) -> dict[float, float]:
    found = fit_isoflop(table, _COST, draws=0).disagreement
    return dict(zip(found.budgets, found.overspent, strict=True)) if found else {}


def quiet_table(
    budgets: Sequence[float] = PUBLISHED_BUDGETS, mean_recurrences: Sequence[float] = PUBLISHED_RECURRENCES
) -> pd.DataFrame:
    """Return a sweep without noise."""
    return simulate_table(_QUIET, budgets=budgets, mean_recurrences=mean_recurrences, recurrences=())


def _scattered(losses: ArrayLike, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 0])
    return np.asarray(losses, dtype=float) * np.exp(noise * rng.standard_normal(np.shape(losses)))


def noisy(table: pd.DataFrame, noise: float, seed: int) -> pd.DataFrame:
    """Return the same sweep with one draw of noise per run."""
    return table.assign(loss=_scattered(table["loss"], noise, seed))


def _best_at(budget: float) -> dict[str, np.ndarray]:
    """Return the columns of the true law's best model at a budget."""
    return _COST.columns(budget, np.array([float(LAW.optimum(TRUTH, _COST, budget).at)]))
