"""The trials of a tuning that finds a law of the learning rates: in which cell, and at which rates.

Every cell gets the same number of trials. The first are spread over the range of the rates; from the first fit on, each
is a factor of 2 off the best rates of its cell as all trials predict them, to alternating sides: the difference of two
losses on both sides tells the minimum between them, and one at the minimum tells nothing of it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any, cast

import numpy as np
from scipy.stats import qmc

from isoloop.fitting.rate_law import RateLaw, fit_rate_law
from isoloop.sweeps.config.tuning import Range
from isoloop.sweeps.plan.rates import RATE_PATHS
from isoloop.sweeps.tuning.search_space import SearchSpace, Trial, TrialValues, finished_trials, round_to_setting

STEP = 2.0
"""Factor between a trial's rates and the best ones of its cell."""
INNER = 0.8
"""Share of the range, about its middle, that the first trials are spread over."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Shift between the first trials of two cells, in shares of the range: multiples of it leave even gaps."""
DIVERGED = 1.5
"""A proposal stays this factor below rates that diverged."""


def fit_trials(space: SearchSpace, trials: Sequence[Trial]) -> RateLaw:
    """Fit the law of the best rates to the trials that finished. Raises ValueError if they don't determine it."""
    finished = finished_trials(trials)
    features = [space.features[_cell_index(space, trial.values)] for trial in finished]
    rates = {path: [trial.values[path] for trial in finished] for path in _rate_paths(space)}
    columns = {name: [each[name] for each in features] for name in (features[0] if features else ())}
    if not finished:
        raise ValueError(
            "a law of the best rates needs trials that finish, but none did; lower the ranges of the rates"
        )
    return fit_rate_law(rates, columns, [cast(float, trial.loss) for trial in finished])


def propose_rates(space: SearchSpace, trials: Sequence[Trial], seed: int, *, at_random: bool = False) -> dict[str, Any]:
    """Return the next trial's cell and rates.

    Args:
        space: the search space, with several cells.
        trials: all trials, including those that are running.
        seed: seed of this proposal.
        at_random: draw the rates at random from the inner part of the range, since the proposal was one before.
    """
    # The cell with the fewest trials, the cheapest of them.
    cells, paths = space.grid_cells, _rate_paths(space)
    tried = [trial for trial in trials if trial.outcome != "failed"]
    counts = Counter(_cell_index(space, trial.values) for trial in tried)
    index = min(range(len(cells)), key=lambda cell: (counts[cell], cell))
    # Rates near the best ones if they are known, else spread over the range.
    ranges = [cast(Range, space.dimensions[path]) for path in paths]
    low, high = (np.log([getattr(each, end) for each in ranges]) for end in ("low", "high"))
    try:
        law = None if at_random else fit_trials(space, trials)
    except ValueError:
        law = None
    if law is None:
        share = np.random.default_rng(seed).random(len(paths))
        if not at_random:  # evenly in each cell, and differently in each
            start = np.random.default_rng(space.sweep.tune.seed).random(len(paths))
            points = qmc.Halton(len(paths), scramble=False).random(counts[index] + 1)
            share = (points[-1] + start + GOLDEN * index) % 1.0
        logs = low + (high - low) * (0.5 + INNER * (share - 0.5))
        comparable = trials
    else:
        best = law.best_at(space.features[index])
        directions = _directions(len(paths))
        logs = np.clip(np.log([best[path] for path in paths]), low, high)
        logs += math.log(STEP) * directions[counts[index] % len(directions)]
        comparable = [trial for trial in trials if _cell_index(space, trial.values) == index]
    # Not where the run would diverge.
    for trial in comparable:
        bad = np.log([trial.values[path] for path in paths])
        if trial.outcome == "diverged" and (logs >= bad - 1e-9).all():
            logs = logs - (logs - bad).min() - math.log(DIVERGED)
    logs = np.clip(logs, low, high)
    rates = {
        path: round_to_setting(space.settings, path, each, math.exp(log))
        for path, each, log in zip(paths, ranges, logs, strict=True)
    }
    return {**cells[index], **rates}


def _rate_paths(space: SearchSpace) -> list[str]:
    return [path for path in space.dimensions if path in RATE_PATHS]


def _cell_index(space: SearchSpace, values: TrialValues) -> int:
    return space.grid_cells.index({path: values[path] for path in space.grid_cells[0]})


def _directions(rates: int) -> list[np.ndarray]:
    """Return unit steps: each rate up and down alone, then (of several) together and against each other."""
    alone = [sign * row for row in np.eye(rates) for sign in (1.0, -1.0)]
    corners = [np.array(signs) / math.sqrt(rates) for signs in product((1.0, -1.0), repeat=rates)]
    return alone if rates == 1 else alone + corners
