"""isoFLOP minima as a way of predicting held-out runs, to stand beside the laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, special

from isoloop.fitting.cost import AnyCost, CostModel, DenseCost
from isoloop.fitting.estimation.law_fit import LawFit, estimate_law
from isoloop.fitting.estimation.lbfgs import fit_by_lbfgs
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.isoflop.minima import fit_isoflop, predict_from_minima
from isoloop.fitting.laws.base import Data
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.selection.holdout import By, Comparison, LawMethod, Method, Predicted, check_names, compare, folds
from isoloop.fitting.tables.checks import IMPLAUSIBLE_LOSS, implausible_losses, provenance_caveats, row_caveats
from isoloop.fitting.tables.dense import is_point_table, point_data, read_points
from isoloop.fitting.tables.runs import implausible_rows, law_data, read_table


@dataclass(frozen=True, kw_only=True)
class MinimaMethod:
    """Parabolas per budget, power laws through their minima: see `predict_from_minima`. A `Method` of `compare`.

    A held-out run is taken to spend its budget exactly.
    """

    floor: bool
    cost: AnyCost

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"isoFLOP minima, L* = {'E + ' if self.floor else ''}k C^-g"

    def predict(self, shown: Data, hidden: Data) -> Predicted:
        """See `Method.predict`; without intervals. Raises ValueError as `fit_isoflop` and `predict_from_minima` do."""
        missing = [name for name in ("budget", self.cost.axis) if name not in shown]
        if missing:
            raise ValueError(f"isoFLOP minima need the columns {', '.join(missing)}, but the runs have none; add them")
        columns = {name: shown[name] for name in ("budget", self.cost.axis, "tokens", "loss")}
        fit = fit_isoflop(pd.DataFrame(columns), self.cost, draws=0)
        return predict_from_minima(fit, hidden["budget"], hidden[self.cost.axis], floor=self.floor), None


# MERGED choice
DENSE_LAWS = ("chinchilla", "six-parameter")
LOOPED_LAWS = ("training", "iso-depth", "chinchilla", "six-parameter")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One law's fit to the whole table, with its information criteria (smaller is better; differences count).

    `by_lbfgs` is the objective that `fit_by_lbfgs` reached, None where it wasn't asked or doesn't fit such laws.
    """

    fit: LawFit
    log_likelihood: float
    aic: float
    bic: float
    by_lbfgs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Competing laws on one table; `absent` are (law, why) of those that could not be fitted."""

    rows: int
    objective: str
    candidates: tuple[Candidate, ...]
    absent: tuple[tuple[str, str], ...]
    comparisons: tuple[Comparison, ...]
    doubts: tuple[str, ...]

    def report(self) -> str:
        """All of it as readable text; the least AIC first."""
        lines = [
            f"Competing laws on {self.rows} runs, {self.objective}",
            f"  {'AIC - least':>11}  {'BIC - least':>11}  {'objective':>11}  {'free':>4}  law",
        ]
        least_aic = min((one.aic for one in self.candidates), default=0.0)
        least_bic = min((one.bic for one in self.candidates), default=0.0)
        for one in sorted(self.candidates, key=lambda one: one.aic):
            law = law_named(one.fit.law)
            lines.append(
                f"  {one.aic - least_aic:>11.1f}  {one.bic - least_bic:>11.1f}  {one.fit.objective:>11.5g}  "
                f"{len(one.fit.parameters):>4}  {law.name}: {law.formula}"
            )
        lines += [f"  {law}: not fitted. {why}" for law, why in self.absent]
        for one in self.candidates:
            values = ", ".join(
                f"{p.name} = {p.value:.5g}" + (f" ({p.interval[0]:.4g} to {p.interval[1]:.4g})" if p.interval else "")
                for p in one.fit.parameters
            )
            law = law_named(one.fit.law)
            lines += ["", f"{law.name}: {values}", f"  in effect: {law.effective(one.fit.vector)}"]
            lines += [f"  warning: {reason}" for reason in one.fit.reasons]
            if one.by_lbfgs is not None:
                off = one.by_lbfgs / one.fit.objective - 1
                lines.append(
                    f"  check: the best of many starts of L-BFGS ends {off:+.1e} (relative) from this objective"
                )
        for comparison in self.comparisons:
            lines += ["", comparison.report()]
        if self.doubts:
            lines += ["", "What to doubt", *(f"  - {doubt}" for doubt in self.doubts)]
        return "\n".join(lines) + "\n"


def choose(
    data: Data,
    laws: Sequence[str],
    *,
    others: Sequence[Method] = (),
    by: Sequence[By] = (),
    objective: Objective = HUBER,
    draws: int = 200,
    seed: int = 0,
    check: bool = False,
    doubts: Sequence[str] = (),
) -> Choice:
    """Fit every law to the rows of `data`, and compare their errors on runs held out in each way of `by`.

    `others` are further ways of predicting, for the held-out errors alone. `by` defaults to the largest budget and each
    budget in turn, and where there are not two of them to tenths of the rows. With `check`, each law is fitted the
    papers' way too. Raises ValueError as `LawMethod` and `law_named` do, for two laws of one name, and where no law can
    be fitted.
    """
    by_law = {name: LawMethod(law=name, objective=objective, draws=draws, seed=seed) for name in laws}
    check_names([*(f"{law_named(name).name} law" for name in laws), *(other.name for other in others)])
    candidates: list[Candidate] = []
    absent: list[tuple[str, str]] = []
    for name in laws:
        try:
            fit = estimate_law(law_named(name), data, draws=draws, seed=seed, objective=objective, name=name)
        except ValueError as error:
            absent.append((name, str(error)))
            continue
        candidates.append(candidate(fit, objective, by_lbfgs=_by_lbfgs(name, data, objective) if check else None))
    if not candidates:
        raise ValueError(f"no law could be fitted: {'; '.join(f'{law}: {why}' for law, why in absent)}")
    methods: list[Method] = [*(by_law[one.fit.law] for one in candidates), *others]
    ways: Sequence[By] = by or (("largest budget", "budget") if _has_budgets(data) else ("row",))
    return Choice(
        rows=len(data["loss"]),
        objective=str(objective),
        candidates=tuple(candidates),
        absent=tuple(absent),
        comparisons=tuple(compare(data, methods, way) for way in ways),
        doubts=tuple(doubts),
    )


def candidate(fit: LawFit, objective: Objective, *, by_lbfgs: float | None = None) -> Candidate:
    """A fit with its information criteria: the noise's scale counts as one more parameter."""
    log_likelihood = _log_likelihood(fit.objective, fit.rows, objective)
    free = len(fit.parameters) + 1
    return Candidate(
        fit=fit,
        log_likelihood=log_likelihood,
        aic=2 * free - 2 * log_likelihood,
        bic=free * math.log(fit.rows) - 2 * log_likelihood,
        by_lbfgs=by_lbfgs,
    )


def _has_budgets(data: Data) -> bool:
    """Whether runs can be held out by budget."""
    try:
        return bool(folds(data, "budget"))
    except ValueError:
        return False


def _by_lbfgs(law: str, data: Data, objective: Objective) -> float | None:
    try:
        return fit_by_lbfgs(law_named(law), data, objective).objective
    except ValueError:  # a law that is no sum of terms has no such form
        return None


def _log_likelihood(value: float, rows: int, objective: Objective) -> float:
    """The greatest log likelihood of residuals with that objective, over the scale s of the density exp(-rho / s) /
    Z(s).

    rho is the objective's function of one residual: a normal density within delta and an exponential one beyond, which
    is Huber's least favourable density; Z(s) is in closed form. For squared error it is the normal density throughout.
    """
    if np.isinf(objective.delta):
        variance = max(2 * value / rows, 1e-300)
        return -0.5 * rows * (math.log(2 * math.pi * variance) + 1)
    delta = objective.delta

    def negative(log_scale: float) -> float:
        scale = math.exp(log_scale)
        inner = math.sqrt(2 * math.pi * scale) * special.erf(delta / math.sqrt(2 * scale))
        tails = 2 * scale / delta * math.exp(-(delta**2) / (2 * scale))
        return value / scale + rows * math.log(inner + tails)

    middle = math.log(max(value / rows, 1e-300))
    found = optimize.minimize_scalar(negative, bounds=(middle - 15, middle + 15), method="bounded")
    return -float(found.fun)


def choose_table(
    path: str | Path,
    *,
    laws: Sequence[str] = (),
    experiment: str | None = None,
    outliers: bool = True,
    by: Sequence[By] = (),
    objective: Objective = HUBER,
    draws: int = 200,
    seed: int = 0,
    check: bool = False,
) -> Choice:
    """Competing laws on a table in a file: a run table, or one of dense models.

    `laws` defaults to those that speak of such runs. For dense models, `experiment` and `outliers` are those of
    `read_points`. Raises ValueError as `read_points`, `read_table` and `choose` do.
    """
    dense = is_point_table(path)
    doubts: list[str] = []
    others: list[Method] = []
    cost: AnyCost | None
    if dense:
        data = point_data(read_points(path, experiment=experiment, outliers=outliers))
        far = implausible_losses(data["loss"], data.get("budget"))
        data, cost = {name: values[~far] for name, values in data.items()}, DenseCost()
    else:
        table = read_table(path)
        far = implausible_rows(table)
        data, cost = law_data(table), _cost_model(table, doubts)
        simulated, accounting = bool(table["simulated"].iloc[0]), str(table["accounting"].iloc[0])
        doubts += provenance_caveats(simulated=simulated, accounting=accounting)
    if far.any():
        doubts.append(f"Left out, with a loss {IMPLAUSIBLE_LOSS}: {int(far.sum())} of {len(far)} rows.")
    if cost is not None and "budget" in data:
        others = [MinimaMethod(floor=floor, cost=cost) for floor in (False, True)]
    return choose(
        data,
        laws or (DENSE_LAWS if dense else LOOPED_LAWS),
        others=others,
        by=by,
        objective=objective,
        draws=draws,
        seed=seed,
        check=check,
        doubts=[*doubts, *row_caveats(data)],
    )


def _cost_model(table: pd.DataFrame, doubts: list[str]) -> CostModel | None:
    """The cost of a run table's architecture; None, and said, where it holds several."""
    try:
        return CostModel.from_table(table)
    except ValueError as error:
        doubts.append(f"There are no isoFLOP minima to compare with: {error}.")
        return None
