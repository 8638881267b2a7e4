"""Coverage of intervals by redrawn noise and by redrawn rows, on the residuals of the public tables of dense models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.fitting.results import table
from benchmarks.fitting.tables import public_tables
from isoloop.fitting import fit_law
from isoloop.fitting.estimation.bootstrap import BootstrapKind
from isoloop.fitting.laws.base import Data
from isoloop.fitting.laws.dense import ChinchillaLaw

KINDS: tuple[BootstrapKind, ...] = ("parametric", "rows")
ROWS_PER_BUDGET = (None, 7, 5, 4, 3)
"""Runs that are kept of each budget; all of them for None."""
_NAMES = ("alpha", "beta")


def worlds(data: Data, count: int, rows_per_budget: int | None, seed: int = 0) -> tuple[np.ndarray, list[Data]]:
    """Return the law's parameters (5,) fitted to a public table, and `count` tables whose truth they are.

    A run's residual is that of a run of its budget, drawn at random, with a random sign: the noise has the tails and
    the growth over budgets of the public table.
    """
    fit = fit_law("chinchilla", data, draws=0, seed=0)
    fitted = fit.loss(data)
    residuals = np.log(data["loss"] / fitted)
    rng = np.random.default_rng(seed)
    budgets = [np.flatnonzero(data["budget"] == budget) for budget in np.unique(data["budget"])]
    drawn: list[Data] = []
    for _ in range(count):
        kept = [rng.permutation(rows)[:rows_per_budget] for rows in budgets]
        noise = [rng.choice(residuals[rows], len(few)) for rows, few in zip(budgets, kept, strict=True)]
        rows = np.concatenate(kept)
        signs = rng.choice([-1.0, 1.0], len(rows))
        columns = {name: values[rows] for name, values in data.items()}
        drawn.append({**columns, "loss": fitted[rows] * np.exp(signs * np.concatenate(noise))})
    return fit.vector, drawn


def coverage(data: Data, *, count: int, draws: int, rows_per_budget: int | None = None) -> dict[str, list[list[bool]]]:
    """Return, by kind of bootstrap, which intervals of alpha and beta held the truth in each of `count` worlds.

    The last is that of the law's own loss at four times the largest budget, at 20 tokens per parameter.
    """
    truth, tables = worlds(data, count, rows_per_budget)
    beyond = 4 * data["budget"].max()
    size = np.sqrt(beyond / 120)
    at = {"params": np.array([size]), "tokens": np.array([beyond / 6 / size])}
    loss = float(ChinchillaLaw().loss(truth, at)[0])
    held: dict[str, list[list[bool]]] = {kind: [] for kind in KINDS}
    for number, one in enumerate(tables):
        for kind in KINDS:
            fit = fit_law("chinchilla", one, draws=draws, seed=number, kind=kind)
            ends = {each.name: each.interval for each in fit.parameters}
            bounds = fit.loss_interval(at, measured=False)
            assert bounds is not None
            limits = [ends[name] or (np.nan, np.nan) for name in _NAMES] + [(float(bounds[0][0]), float(bounds[1][0]))]
            true = [*(truth[ChinchillaLaw().parameter_names.index(name)] for name in _NAMES), loss]
            held[kind].append([low <= value <= high for (low, high), value in zip(limits, true, strict=True)])
    return held


def run(data_folder: Path, *, count: int = 100, draws: int = 200, kept: Sequence[int | None] = ROWS_PER_BUDGET) -> str:
    """Return the section of RESULTS.md."""
    began = time.process_time()
    lines = []
    for name, data in public_tables(data_folder, without_outliers=False).items():
        for rows_per_budget in kept:
            held = coverage(data, count=count, draws=draws, rows_per_budget=rows_per_budget)
            shares = [np.mean(held[kind], axis=0) for kind in KINDS]
            rows = "all" if rows_per_budget is None else str(rows_per_budget)
            pairs = [f"{100 * first:.0f} / {100 * second:.0f}" for first, second in zip(*shares, strict=True)]
            lines.append((name, str(len(np.unique(data["budget"]))), rows, *pairs))
            print(*lines[-1], flush=True)
    took = time.process_time() - began
    head = ("table", "budgets", "runs kept of each", "alpha", "beta", "loss beyond")
    return (
        "Chinchilla's law as fitted to a public table is the truth of simulated ones, whose noise is drawn from the "
        "table's own residuals, budget by budget, with random signs. In how many percent of "
        f"{count} of them the 95% interval held the truth, with the parametric bootstrap / with rows redrawn ({draws} "
        f"draws; {took / 60:.1f} CPU-minutes). *Loss beyond* is the law's at four times the largest budget.\n\n"
        + table(head, lines)
    )
