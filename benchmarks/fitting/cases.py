"""Simulated sweeps of the published grid, whose truth is known, by noise, number of budgets, and outliers."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from isoloop.fitting.cost import CostModel
from isoloop.fitting.laws.base import Data, Optimum
from isoloop.fitting.laws.looped import TrainingLaw
from isoloop.fitting.simulate import PUBLISHED_BUDGETS, PUBLISHED_TRUTH, Truth, simulate_table
from isoloop.fitting.tables.contract import loss_columns

BEYOND = 128e18
"""One budget beyond the published ones, FLOPs."""
_OUTLIER = 10.0
_DRAW_OF_OUTLIERS, _DRAW_BEYOND = 1, 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sweeps that differ in their noise alone, on the last `budgets` of the published ones.

    Of the runs, the share `outliers` have ten times the noise.
    """

    run_noise: float
    budgets: int = len(PUBLISHED_BUDGETS)
    outliers: float = 0.0

    @property
    def name(self) -> str:
        """Name in tables and of the file in the cache."""
        kept = "" if self.budgets == len(PUBLISHED_BUDGETS) else f", last {self.budgets} budgets"
        return f"{self.run_noise:g}{kept}" + (f", {self.outliers:.0%} outliers" if self.outliers else "")

    @property
    def only_noise(self) -> bool:
        """True if it differs from the published grid in its noise alone."""
        return self.budgets == len(PUBLISHED_BUDGETS) and not self.outliers

    @property
    def truth(self) -> Truth:
        """The law that the runs are drawn from, with its noise."""
        return dataclasses.replace(PUBLISHED_TRUTH, run_noise=self.run_noise)

    @property
    def training(self) -> np.ndarray:
        """The training law's true parameters (5,); at T = mu, what loops could still gain is a part of E."""
        truth = self.truth
        return np.array([truth.E + truth.Z * np.exp(-truth.z), truth.X, truth.Y, truth.x, truth.y])

    @cached_property
    def noiseless(self) -> pd.DataFrame:
        """The sweep without noise."""
        silent = dataclasses.replace(self.truth, run_noise=0.0, evaluation_noise=0.0)
        return simulate_table(silent, budgets=PUBLISHED_BUDGETS[-self.budgets :])

    @cached_property
    def cost(self) -> CostModel:
        """Cost of the runs."""
        return CostModel.from_table(self.noiseless)

    @cached_property
    def optimum(self) -> Optimum:
        """The true law's optimum one budget beyond."""
        return TrainingLaw().optimum(self.training, self.cost, BEYOND)

    @property
    def beyond(self) -> Data:
        """The columns of one run at that optimum."""
        return self.cost.columns(BEYOND, np.atleast_1d(self.optimum.at))

    def seed(self, number: int) -> int:
        """Return the seed of one sweep; no two cases share one, so that their noise differs."""
        return 10_000 * zlib.crc32(self.name.encode()) + number

    def sweep(self, number: int) -> pd.DataFrame:
        """Return the run table of one sweep."""
        seed = self.seed(number)
        table = simulate_table(self.truth, budgets=PUBLISHED_BUDGETS[-self.budgets :], seed=seed)
        if not self.outliers:
            return table
        more = np.exp(self._outlying(np.random.default_rng([seed, _DRAW_OF_OUTLIERS]), len(table)))
        return table.assign(**{column: table[column] * more for column in ["loss", *loss_columns(table)]})

    def measured_beyond(self, number: int) -> float:
        """Return the loss of one run at the true optimum one budget beyond, as noisy as the sweep's runs (nats)."""
        rng = np.random.default_rng([self.seed(number), _DRAW_BEYOND])
        noise = self.run_noise * rng.standard_normal() + self._outlying(rng, 1)[0]
        return float(self.optimum.loss * np.exp(noise))

    def _outlying(self, rng: np.random.Generator, runs: int) -> np.ndarray:
        """Return what is added to the noise (runs,) so that an outlier's is ten times as large."""
        chosen = rng.random(runs) < self.outliers
        return np.where(chosen, self.run_noise * np.sqrt(_OUTLIER**2 - 1) * rng.standard_normal(runs), 0.0)


CASES = (
    *(Case(run_noise=noise) for noise in (5e-5, 5e-4, 1e-3, 2e-3)),
    *(Case(run_noise=1e-3, budgets=count) for count in (4, 3, 2)),
    Case(run_noise=1e-3, outliers=0.05),
)
