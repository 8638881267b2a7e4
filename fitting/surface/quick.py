"""The loss surface of a run table by its laws after training alone, for an answer before a sweep has ended."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from isoloop.fitting.cost import DenseCost, cost_of
from isoloop.fitting.cost.family import DenseFamily, ModelFamily
from isoloop.fitting.estimation.bootstrap import BootstrapKind, default_kind
from isoloop.fitting.estimation.law_fit import LawFit, fit_law
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.laws.base import Law
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.selection.choose import default_laws
from isoloop.fitting.selection.mixture import mixture_beside
from isoloop.fitting.surface.surface import LossSurface
from isoloop.fitting.tables.contract import is_dense
from isoloop.fitting.tables.repetition import only_text
from isoloop.fitting.tables.runs import finished_rows, law_data


def quick_surface(
    table: pd.DataFrame,
    *,
    errors: Mapping[str, float] | None = None,
    draws: int = 200,
    seed: int = 0,
    objective: Objective = HUBER,
    kind: BootstrapKind | None = None,
) -> LossSurface:
    """Fit the law after training and the one that extends it to a checked run table, and return their surface.

    That is the default law of the table. `errors` are the standard deviations of log losses that were not measured but
    extrapolated, by run id; such losses count by as much less. `kind` is that of the bootstrap, by default the
    `default_kind` of the table. Raises ValueError as `fit_law` and
    `ModelFamily.from_table` do.
    """
    data, runs = law_data(table), finished_rows(table)
    family: ModelFamily | DenseFamily
    if is_dense(table):
        cost = cost_of(table)
        assert isinstance(cost, DenseCost)
        family, name = DenseFamily(cost=cost), default_laws(table)[0]
    else:
        family = ModelFamily.from_table(table)
        name = default_laws(table)[0]
    if law_named(name).reads_unique_tokens:
        family = family.on_text(only_text(runs))
    scales = _scales(data, name, errors or {})
    of_kind = kind or default_kind(data)

    def fitted(law: Law | str) -> LawFit:
        return fit_law(law, data, draws=draws, seed=seed, objective=objective, kind=of_kind, scales=scales)

    laws = mixture_beside(fitted(name), lambda law: fitted(law.name), family.columns(*(np.ones(1),) * 3))

    def measured(column: str) -> tuple[float, float]:
        return float(runs[column].min()), float(runs[column].max())

    sizes = family.sizes
    return LossSurface(
        family=family,
        laws=laws,
        loops_law=None,
        params=measured("params") if is_dense(table) else (sizes[0], sizes[-1]) if len(sizes) > 1 else None,
        mean_recurrence=None if is_dense(table) else measured("mean_recurrence"),
        tokens=measured("tokens"),
        flops=measured("flops"),
    )


def _scales(data: Mapping[str, np.ndarray], law: str, errors: Mapping[str, float]) -> np.ndarray | None:
    """Return how much more uncertain each row is than a measured one, (rows,); None if all were measured."""
    extra = np.array([errors.get(str(run_id), 0.0) for run_id in data["run_id"]])
    if not extra.any():
        return None
    measured = extra == 0
    noise = fit_law(law, {name: values[measured] for name, values in data.items()}, draws=0, seed=0).noise
    return np.sqrt(1 + (extra / max(noise, np.finfo(float).eps)) ** 2)
