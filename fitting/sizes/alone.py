"""Each size by a fit to its own runs, beside what the joint fit says of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.estimation.bootstrap import BootstrapKind
from isoloop.fitting.estimation.objective import Objective
from isoloop.fitting.result import MissingFit
from isoloop.fitting.sizes.frontier import frontier_point
from isoloop.fitting.sizes.result import SizeAlone, SizesFit
from isoloop.fitting.surface.quick import quick_surface

_DRAWS = 200
"""Refits at most behind the intervals of a size alone."""
_DIFFERENT = 1.1
"""Ratio of two best recurrences from which intervals that do not overlap are worth a caveat."""


def sizes_alone(
    table: pd.DataFrame,
    family: ModelFamily,
    budget: float,
    *,
    draws: int,
    seed: int,
    objective: Objective,
    kind: BootstrapKind | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[tuple[SizeAlone, ...], tuple[MissingFit, ...]]:
    """Return the best model of each size at a budget by the laws of its own runs, and the sizes that have none.

    `kind` is that of the bootstrap, by default the one for the runs of a size. `progress` is told the share done.
    """
    params = table["effective_params_fixed"] + table["effective_params_per_loop"]
    found, missing = [], []
    for place, member in enumerate(family.members):
        progress(place / len(family.members))
        own = table[np.isclose(params, member.params)].reset_index(drop=True)
        try:
            surface = quick_surface(own, draws=min(draws, _DRAWS), seed=seed, objective=objective, kind=kind)
            best = frontier_point(surface, budget)
        except ValueError as error:
            missing.append(MissingFit(name=f"{member.label} alone", reason=str(error)))
        else:
            found.append(
                SizeAlone(
                    label=member.label,
                    runs=surface.laws.best.runs,
                    budget=budget,
                    method=surface.laws.name,
                    mean_recurrence=best.mean_recurrence,
                    tokens=best.tokens,
                    loss=best.loss,
                )
            )
    return tuple(found), tuple(missing)


def alone_caveats(fit: SizesFit) -> list[str]:
    """Return a caveat for each size whose own runs put its best recurrence elsewhere than the joint fit does."""
    caveats = []
    for own in fit.alone:
        joint = fit.at_size(own.label, own.budget).mean_recurrence
        alone = own.mean_recurrence
        if alone.interval is None or joint.interval is None:
            continue
        apart = alone.interval[0] > joint.interval[1] or joint.interval[0] > alone.interval[1]
        if apart and max(alone.value / joint.value, joint.value / alone.value) > _DIFFERENT:
            caveats.append(
                f"At {own.budget:.3g} FLOPs the runs of {own.label} alone put its best mean recurrence at "
                f"{alone.text()}, the joint fit at {joint.text()}: the joint law's form may be wrong for this size."
            )
    return caveats
