"""The best learning rate far beyond a tuning: by the law of a tuning in several cells, and by one cell's best rate.

The losses are synthetic: a parabola in the log of the rate, skewed in some worlds, whose minimum is a power law of C
and µ, drawn anew for each study. The trials are those that `isoloop tune` would run, one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import FloatDistribution

from benchmarks.results import table
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.plan.axes import LEARNING_RATE as RATE
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.tuning.rate_design import fit_trials, propose_rates
from isoloop.sweeps.tuning.search_space import SearchSpace, Trial, make_search_space, reduce_to_one_point

TRIALS = (12, 24)
SMALL, LARGE, MEANS, MIDDLE = 1e10, 4e10, (2, 8), 4
BEYOND, DEEP = 8.0, 16
DIVERGES, BEYOND_ALL = 12.0, 20.0
RANGE = FloatDistribution(1e-3, 0.064, log=True)


@dataclass(frozen=True)
class World:
    """A world of losses by rate: the noise in nats, the skew, the spread of the exponents, and the law's error.

    `bend` is a term bend (log µ / 4)^2 of log best rate that the law lacks.
    """

    label: str
    noise: float = 0.003
    skew: float = 0.0
    exponents: float = 1.0
    bend: float = 0.0


WORLDS = (
    World("parabola, noise of .003 nats"),
    World("the same, noise of .01", noise=0.01),
    World("steeper above the best rate", skew=0.4),
    World("the best rate is no power law of µ", bend=-0.1),
    World("the best rate is the same everywhere", exponents=0.0),
)


def run(*, studies: int) -> str:
    """Return the section of RESULTS.md."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    cells = _space({"budgets": [SMALL, LARGE], "mean_recurrences": list(MEANS)})
    one = _space({"budgets": [LARGE], "mean_recurrences": [MIDDLE]})
    rows = []
    for world in WORLDS:
        for count in TRIALS:
            for label, space, by_tpe in (
                ("law of 4 cells", cells, False),
                ("parabola of one cell", one, False),
                ("best trial of one cell (TPE)", one, True),
            ):
                ended = [_study(world, seed, space, count, by_tpe=by_tpe) for seed in range(studies)]
                logs, nats, expected, hits = map(np.array, zip(*ended, strict=True))
                fitted = np.isfinite(expected)  # extrapolated intervals
                told = "-", "-"
                if fitted.any():
                    told = f"{100 * hits[fitted].mean():.0f}%", f"{np.median(expected[fitted]):.4f}"
                off, lost = math.exp(np.median(abs(logs))), f"{nats.mean():.4f}"
                missing = int((~fitted).sum()) if space is cells else "-"
                rows.append([world.label, count, label, f"{off:.2f}", lost, f"{np.median(nats):.4f}", *told, missing])
    head = ["losses", "trials", "method", "off by a factor of, median", "nats lost, mean", "median"]
    head += ["intervals that hold the truth", "expected nats, median", "without a law"]
    introduction = (
        f"{studies} studies each. The run to predict has {BEYOND:g} times the largest tuned budget and µ = {DEEP}. The "
        f"law's trials are at two budgets, 4 times apart, and µ = {MEANS[0]} and {MEANS[1]}. The one cell is at the "
        f"larger budget and µ = {MIDDLE}, so that its trials cost 1.6 times as much. Exponents are drawn from -.2 to "
        "0 (C) and -.5 to .1 (µ), the curvature from .04 to .16 nats; runs diverge at 12 times the best rate. Without "
        "a law (no minimum, or too few trials with a loss) the rate of the best trial counts."
    )
    return f"{introduction}\n\n{table(head, rows)}"


def _study(
    world: World, seed: int, space: SearchSpace, count: int, *, by_tpe: bool
) -> tuple[float, float, float, bool]:
    """Return the log error of the rate at the target, the nats lost, those expected, and if the interval holds."""
    best_at, loss_of = _problem(world, seed)
    trials: list[Trial] = []
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(multivariate=True, seed=seed)) if by_tpe else None
    for number in range(count):
        asked = None if study is None else study.ask({RATE: RANGE})
        own = None if asked is None else {**space.grid_cells[0], **asked.params}
        values = own or propose_rates(space, trials, seed * 1000 + number)
        loss = loss_of(values["budget"], values["mean_recurrence"], values[RATE])
        if study is not None and asked is not None:
            study.tell(asked, BEYOND_ALL if loss is None else loss)
        outcome = "finished" if loss is not None else "diverged"
        trials.append(Trial(number=number, values=values, run_id=str(number), outcome=outcome, loss=loss))
    target = {**space.features[0], "flops": BEYOND * LARGE, "mean_recurrence": DEEP}
    truth = best_at(BEYOND * LARGE, DEEP)
    best = min((trial for trial in trials if trial.loss is not None), key=lambda trial: trial.loss)
    rate, expected, holds = best.values[RATE], math.nan, False
    if study is None:
        try:
            law = fit_trials(space, trials).at(target)
        except ValueError:
            law = None
        rate = rate if law is None else law.rates[RATE]
        if law is not None and law.nats is not None:
            expected, (low, high) = law.nats, law.intervals[RATE]
            holds = low <= truth <= high
    off = math.log(rate / truth)
    return off, _excess(off, _curvature(seed), world.skew), expected, holds


def _problem(
    world: World, seed: int
) -> tuple[Callable[[float, int], float], Callable[[float, int, float], float | None]]:
    rng = np.random.default_rng(seed)
    start, of_c, of_mu = rng.uniform(-1, 1), rng.uniform(-0.2, 0), rng.uniform(-0.5, 0.1)
    noise = np.random.default_rng([seed, 1])

    def best_at(budget: float, mean: int) -> float:
        log_mu = math.log(mean / MIDDLE)
        power = of_c * math.log(budget / LARGE) + of_mu * log_mu
        return 0.01 * math.exp(start + world.exponents * power + world.bend * log_mu**2)

    def loss_of(budget: float, mean: int, rate: float) -> float | None:
        off = math.log(rate / best_at(budget, mean))
        if off > math.log(DIVERGES):
            return None
        level = 3 - 0.1 * math.log(budget / SMALL) - 0.02 * math.log(mean)
        return level + _excess(off, _curvature(seed), world.skew) + noise.normal(0, world.noise)

    return best_at, loss_of


def _curvature(seed: int) -> float:
    return math.exp(np.random.default_rng([seed, 2]).uniform(math.log(0.04), math.log(0.16)))


def _excess(off: float, curvature: float, skew: float) -> float:
    """Return the excess loss of a rate exp(off) times the best: a parabola, or steeper above than below."""
    return curvature * ((math.exp(skew * off) - 1 - skew * off) / skew**2 if skew else off**2 / 2)


def _space(tune: dict[str, object]) -> SearchSpace:
    """Return the search space of `isoloop tune` for a small model; only its cells and ranges count here."""
    content = {
        "name": "rates", "budgets": [SMALL], "mean_recurrences": [1], "batch": 4, "minimum_steps": 2,
        "model": {"width": 16, "heads": 2, "context": 16}, "tune": {**tune, "validations": 0, "pruner": "none"},
    }  # fmt: skip
    base, means = reduce_to_one_point(validate_sweep(content, source="rates"))
    (cell,) = plan_sweep(base, simulated_corpus).cells
    return make_search_space(base, means, cell, simulated_corpus)
