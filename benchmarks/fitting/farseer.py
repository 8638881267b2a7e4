"""Designs of a public pool's runs at 1, 5 and 10% of its cost, by the error at its own largest runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.fitting.results import table
from isoloop.fitting.design.belief import Noise
from isoloop.fitting.design.information import Plausible
from isoloop.fitting.design.selection import Scores, choose_cells
from isoloop.fitting.estimation.law_fit import fit_law
from isoloop.fitting.estimation.objective import HUBER
from isoloop.fitting.laws.base import Data
from isoloop.fitting.laws.registry import law_named

SHARES = 0.01, 0.05, 0.1
_LAW = law_named("six-parameter")
_TARGETS = 0.05
"""Share of the runs, the largest by cost, that are predicted and can't be chosen."""
_ROUNDS, _VECTORS, _RIDGE_SD = 3, 24, 2.0
_SHAPE = np.array([0.5, 0.25, 0.25, 0.3, 0.3, 1.0])
"""E, A, B (as shares of a middling loss), alpha, beta, gamma before any run, with a scatter of .5 in logs."""
METHODS = ("random", "cheapest", "D-optimal", "V-optimal in one step", "V-optimal in 3 rounds")


def table_of(folder: Path) -> Path:
    """Return the file of the pool."""
    return folder / "farseer_train.csv"


class Pool:
    """The runs of a table: candidates with their costs, 6 N D, and the largest ones to predict."""

    def __init__(self, frame: pd.DataFrame) -> None:
        data = {name: frame[name].to_numpy(dtype=float) for name in ("params", "tokens", "loss")}
        cost = 6 * data["params"] * data["tokens"]
        order = np.argsort(cost)
        cut = len(order) - round(_TARGETS * len(order))
        self.data = {name: values[order[:cut]] for name, values in data.items()}
        self.targets = {name: values[order[cut:]] for name, values in data.items()}
        self.costs, self.whole = cost[order[:cut]], float(cost.sum())

    def chosen(self, method: str, spend: float, seed: int) -> np.ndarray:
        """Return the indices of the runs that a method chooses for `spend`."""
        if method in ("random", "cheapest"):
            count = len(self.costs)
            order = np.random.default_rng(seed).permutation(count) if method == "random" else np.arange(count)
            kept, left = [], spend
            for run in order:
                if self.costs[run] <= left:
                    kept.append(run)
                    left -= self.costs[run]
            return np.array(kept)
        rounds = _ROUNDS if method.endswith("rounds") else 1
        known, runs, noise, left = self._prior(seed), np.empty(0, dtype=int), HUBER.delta, 0.0
        for played in range(rounds):
            left += spend / rounds
            most = np.ones(len(self.costs), dtype=int)
            most[runs] = 0
            slopes = known.slopes(self.data) / noise
            wanted = slopes if method == "D-optimal" else known.slopes(self.targets)
            scores = Scores(
                slopes=slopes,
                gradients=wanted.transpose(1, 0, 2)[:, :, None],
                covariance=np.linalg.inv(known.information),
                shares=known.shares,
            )
            choice = choose_cells(
                [_ByVolume(**vars(scores)) if method == "D-optimal" else scores], self.costs, left, most
            )
            left, runs = choice.left, np.concatenate([runs, np.flatnonzero(choice.counts)])
            if played < rounds - 1:
                known, noise = self._posterior(runs, seed)
        return runs

    def error(self, runs: np.ndarray) -> tuple[float, float]:
        """Return R^2 and the mean absolute error (percent) at the targets of the law fitted to some of the runs."""
        fit = fit_law(_LAW, self._rows(runs), draws=0, seed=0)
        predicted, measured = fit.loss(self.targets), self.targets["loss"]
        squares = ((measured - predicted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
        return float(1 - squares), float(100 * np.abs(predicted / measured - 1).mean())

    def _rows(self, runs: np.ndarray) -> Data:
        return {name: values[runs] for name, values in self.data.items()}

    def _prior(self, seed: int) -> Plausible:
        level = 1.0  # log losses are what counts, so that the unit of the loss does not
        middle = np.concatenate([level * _SHAPE[:3], _SHAPE[3:]])
        prior = Plausible.of(_LAW, middle[None], self.data, sd=_RIDGE_SD)
        drawn = middle * np.exp(0.5 * np.random.default_rng(seed).standard_normal((_VECTORS, len(middle))))
        information = np.broadcast_to(prior.information[0], (_VECTORS, *prior.information.shape[1:]))
        return replace(prior, vectors=drawn, information=information)

    def _posterior(self, runs: np.ndarray, seed: int) -> tuple[Plausible, float]:
        rows = self._rows(runs)
        fit = fit_law(_LAW, rows, draws=_VECTORS, seed=seed)
        noise = Noise(level=max(fit.noise, 1e-5), source="the fit").in_fits(fit.delta)
        known = Plausible.of(_LAW, np.vstack([fit.vector, fit.draw_matrix]), self.data, sd=_RIDGE_SD)
        return known.with_runs(rows, np.full(len(runs), noise)), noise


class _ByVolume(Scores):
    """Scores by the volume of the parameters' uncertainty: D-optimal designs."""

    def gains(self, sign: float = 1.0) -> np.ndarray:
        """Return by how much one more run (or with sign -1 one less) changes the log determinant: (cells,)."""
        own = np.einsum("smp,spq,smq->sm", self.slopes, self.covariance, self.slopes)
        return np.asarray(self.shares @ (sign * np.log(np.maximum(1 + sign * own, 1e-12)) * sign))

    @property
    def variances(self) -> np.ndarray:
        """The volume, as one target: (1, s)."""
        return np.linalg.det(self.covariance)[None]


def run(data: Path, *, seeds: int = 10) -> str:
    """Return the section of RESULTS.md: medians over `seeds` draws of the prior, or of the random choice."""
    pool = Pool(pd.read_csv(table_of(data)))
    rows = []
    for method in METHODS:
        texts = []
        for share in SHARES:
            found = []
            for seed in range(1 if method == "cheapest" else seeds):
                runs = pool.chosen(method, share * pool.whole, seed)
                try:
                    found.append((*pool.error(runs), len(runs)))
                except ValueError:  # too few runs, or runs of one size alone
                    found.append((-np.inf, np.inf, len(runs)))
            r2, percent, count = np.median(found, axis=0)
            texts.append(f"{r2:.3f}, {percent:.2f}% ({count:.0f} runs)")
        rows.append((method, *texts))
    everything = pool.error(np.arange(len(pool.costs)))
    rows.append(("all runs", *[f"{everything[0]:.3f}, {everything[1]:.2f}% ({len(pool.costs)} runs)"] * len(SHARES)))
    return (
        f"The pool `farseer` of ScaleBench (Li et al. 2026, arXiv:2604.22753), {len(pool.costs)} runs to choose from; "
        f"its {len(pool.targets['loss'])} largest by cost are the targets (those of the paper lie farther away and are "
        "not here, so its numbers do not compare). R^2 and mean absolute error at the targets of the six-parameter "
        f"law, fitted to the chosen runs, at {', '.join(f'{share:.0%}' for share in SHARES)} of all FLOPs; medians "
        f"of {seeds} draws of the prior or of the random choice. V-optimal: least variance of the predictions at the "
        "targets per cost, on average over what is plausible.\n\n"
        f"{table(('choice', *(f'{share:.0%} of the cost' for share in SHARES)), rows)}"
    )
