"""The tables that fits are measured on: the public ones, or a simulated one where these are not available."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from isoloop.fitting import law_data, read_runs
from isoloop.fitting.laws.base import Data
from isoloop.fitting.tables.reading import read_raw

FILE = "isoflops_public.csv"
MASSIVETEXT = "massivetext"
"""The table of 123 runs, read off Hoffmann et al. 2022, figure 4."""
_BUDGETS = np.array([6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21])
_TRUTH = (1.8, 480.0, 2100.0, 0.35, 0.37)
_NOISE = 5e-3


def why_absent(folder: Path) -> str | None:
    """Return the message for public tables that are not in `folder`."""
    path = folder / FILE
    return None if path.is_file() else f"the public tables are not at {path}; give their folder as --data"


def public_tables(folder: Path, *, without_outliers: bool = True) -> dict[str, Data]:
    """Return the public tables by name, and each again without the rows that its collectors advise leaving out."""
    path = folder / FILE
    tables: dict[str, Data] = {}
    for experiment in dict.fromkeys(read_raw(path).frame["experiment"]):
        # The name says who collected it, on what data and with what architecture.
        name = experiment.split("__")[1]
        tables[name] = law_data(read_runs(path, experiment=experiment).frame)
        if without_outliers:
            tables[f"{name}, no outliers"] = law_data(read_runs(path, experiment=experiment, outliers=False).frame)
    return tables


def table_of_123(folder: Path) -> tuple[str, Data]:
    """Return the public table of 123 runs with its name, or a simulated one of as many runs where that is missing."""
    if why_absent(folder) is None:
        return f"the public table {MASSIVETEXT}", public_tables(folder, without_outliers=False)[MASSIVETEXT]
    return "a simulated table, since the public one is not here,", simulated_points()


def simulated_points(rows: int = 123, seed: int = 0) -> dict[str, np.ndarray]:
    """Return dense models on a grid of 9 budgets, C = 6 N D; noise with the long tails of losses read off a figure."""
    rng = np.random.default_rng(seed)
    budget = np.resize(_BUDGETS, rows)
    # The best N goes about as the root of C, and the runs of a budget lie around it.
    params = np.sqrt(budget / 120) * np.exp(rng.uniform(-1.5, 1.5, size=rows))
    tokens = budget / (6 * params)
    E, A, B, alpha, beta = _TRUTH
    loss = (E + A * params**-alpha + B * tokens**-beta) * np.exp(_NOISE * rng.standard_t(3, size=rows))
    run_id = np.array([f"row {index}" for index in range(rows)])
    return {"params": params, "tokens": tokens, "loss": loss, "budget": budget, "run_id": run_id}
