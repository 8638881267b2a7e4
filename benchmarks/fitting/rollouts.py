"""Ways of choosing a law, by how well they predict at 4 times the fitted compute: criteria, rollouts, or `choose`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.fitting.results import table
from benchmarks.fitting.tables import public_tables, why_absent
from benchmarks.fitting.worlds import BROKEN, BUDGETS, RECURRENCES, SIX, World
from isoloop.fitting import check_table, choose
from isoloop.fitting.laws.base import Data
from isoloop.fitting.selection.choose import DENSE_LAWS
from isoloop.fitting.selection.distance import rollout_scores
from isoloop.fitting.selection.holdout import HeldOutRow
from isoloop.fitting.tables.runs import law_data

_DISTANCE = 4.0
_CLEAR = 0.9
"""Ratio of errors at which the rule that `choose` had before decided by the next budget alone."""
_LAWS = ("training", "looped-six-parameter")
WORLDS = (
    World(name="five parameters, .02%", noise=(2e-4, 2e-4)),
    World(name="five parameters, .1%"),
    World(name="five parameters, 1%", noise=(1e-2, 1e-2)),
    World(name="sixth parameter, .02%", parameters=tuple(SIX), noise=(2e-4, 2e-4)),
    World(name="sixth parameter, .1%", parameters=tuple(SIX)),
    World(name="sixth parameter, 1%", parameters=tuple(SIX), noise=(1e-2, 1e-2)),
    World(name="neither: broken power law, .02%", parameters=tuple(BROKEN), noise=(2e-4, 2e-4)),
    World(name="neither: broken power law, .1%", parameters=tuple(BROKEN)),
)
Case = tuple[Data, Data, tuple[str, ...]]
"""Rows to fit, rows to predict (losses without noise where they are known), and the laws to choose from."""


def run(data_folder: Path, *, sweeps: int = 100) -> str:
    """Return the section of RESULTS.md."""
    began = time.process_time()
    found = {world.name: [_errors(*_simulated(world, number)) for number in range(sweeps)] for world in WORLDS}
    absent = why_absent(data_folder)
    if absent is None:
        found["the public tables"] = [_errors(*case) for case in _public(data_folder)]
    ways = list(next(iter(found.values()))[0])
    lines = [
        (name, len(rows), *(f"{np.mean([row[way] for row in rows]):.3f}" for way in ways))
        for name, rows in found.items()
    ]
    took = time.process_time() - began
    return (
        f"Mean absolute error in percent of the loss at {_DISTANCE:g} times the largest fitted compute, by the law "
        f"that each way chooses. Simulated sweeps have {len(RECURRENCES)} recurrences x {len(BUDGETS)} budgets, and "
        "losses without noise are predicted at each recurrence; of a public table, the runs of the largest budget from "
        f"those of up to 1/{_DISTANCE:g} of it, with and without outliers. *Rollouts alone*: the least mean over "
        "distances, however small the lead. *Next budget* is what `choose` did before: the next budget alone decided "
        "at 9/10 of the error, else BIC. *Choose*: rollouts decide if they do at the 95% level, else BIC. "
        f"{took / 60:.1f} CPU-minutes.{'' if absent is None else f' {absent}.'}\n\n"
        f"{table(('truth', 'tables', *ways), lines)}"
    )


def _simulated(world: World, number: int) -> Case:
    columns = world.cost.columns(_DISTANCE * BUDGETS[-1], np.array(RECURRENCES))
    truth = world.law.loss(np.array(world.parameters), columns)
    return law_data(check_table(world.sweep(number))), {**columns, "loss": truth}, _LAWS


def _public(folder: Path) -> Iterator[Case]:
    for data in public_tables(folder).values():
        largest = data["budget"].max()
        below, above = data["budget"] <= 1.01 * largest / _DISTANCE, data["budget"] >= 0.99 * largest
        fitted, held_out = ({name: values[mask] for name, values in data.items()} for mask in (below, above))
        yield fitted, held_out, DENSE_LAWS


def _errors(fitted: Data, target: Data, laws: tuple[str, ...]) -> dict[str, float]:
    """Return the mean absolute error on the rows `target`, in percent, by each way of choosing a law."""
    choice = choose(fitted, laws, by=["larger budgets"], draws=0)
    by_law = {one.fit.law: one for one in choice.candidates}
    assert set(by_law) == set(laws), choice.missing
    error = {law: float(100 * np.abs(one.fit.loss(target) / target["loss"] - 1).mean()) for law, one in by_law.items()}
    rows = {
        law: [row for row in choice.cross_validations[0].rows if row.method == f"{one.fit.form.name} law"]
        for law, one in by_law.items()
    }
    scores = rollout_scores([row for of_law in rows.values() for row in of_law])
    by_rollouts = min(laws, key=lambda law: scores[rows[law][0].method].error)
    by_bic = min(laws, key=lambda law: by_law[law].bic)
    # The rule before: the next budget of each cutoff.
    following = {law: np.mean([abs(row.error) for row in _next_budgets(rows[law])]) for law in laws}
    first, second = sorted(laws, key=lambda law: following[law])
    return {
        "fewer parameters": error[laws[0]],
        "more": error[laws[1]],
        "AIC": error[min(laws, key=lambda law: by_law[law].aic)],
        "BIC": error[by_bic],
        "rollouts alone": error[by_rollouts],
        "next budget": error[first if following[first] <= _CLEAR * following[second] else by_bic],
        "choose": error[choice.preferred.law],
        "the better in hindsight": min(error.values()),
    }


def _next_budgets(rows: list[HeldOutRow]) -> list[HeldOutRow]:
    """Return the rows of the budget that follows each cutoff."""
    nearest = {
        cutoff: min(row.beyond for row in rows if row.fitted_to == cutoff) for cutoff in {row.fitted_to for row in rows}
    }
    return [row for row in rows if row.beyond <= 1.02 * nearest[row.fitted_to]]
