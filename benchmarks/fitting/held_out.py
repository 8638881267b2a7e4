"""Predictions of the largest budget of the public tables from the others, by several methods."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.fitting.results import table
from benchmarks.fitting.tables import public_tables
from isoloop.fitting import cross_validate, fit_law, law_named
from isoloop.fitting.cost import DenseCost
from isoloop.fitting.laws.base import Data
from isoloop.fitting.selection.choose import MinimaPredictor
from isoloop.fitting.selection.holdout import CrossValidation, HeldOutError, LawPredictor, PredictedLosses, Predictor
from isoloop.fitting.selection.mixture import mixture_beside


@dataclass(frozen=True, kw_only=True)
class MixturePredictor:
    """Predictions by a law and the one that extends it, weighed; a `Predictor` for `cross_validate`."""

    law: str
    draws: int

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"{law_named(self.law).name} law, weighed with the one that extends it"

    def predict(self, fitted: Data, held_out: Data) -> PredictedLosses:
        """See `Predictor.predict`; raises ValueError as `fit_law` does."""
        fit = partial(fit_law, draws=self.draws, seed=0)
        mixture = mixture_beside(fit(self.law, fitted), lambda law: fit(law, fitted), held_out)
        return mixture.loss(held_out), mixture.loss_interval(held_out)


def run(data_folder: Path, *, draws: int = 400) -> str:
    """Return the section of RESULTS.md."""
    began = time.process_time()
    found = {name: (data, cross_validate(data, _methods(draws))) for name, data in public_tables(data_folder).items()}
    took = time.process_time() - began
    methods = [method.name for method in _methods(draws)]
    lines = [
        (name, _held_out(data), *(_shown(_error(one, method)) for method in methods))
        for name, (data, one) in found.items()
    ]
    lines.append(
        ("**on average**", "", *(_average([_error(one, method) for _, one in found.values()]) for method in methods))
    )
    absent = [f"{name}, {method}: {why}" for name, (_, one) in found.items() for method, why in one.missing]
    return (
        "The runs of the largest budget are predicted from the others: mean absolute error in percent of the loss and, "
        "in brackets, the share of them inside the 95% prediction interval. isoFLOP minima as a way of predicting give "
        f"no interval. Parametric bootstrap of {draws} draws, Huber 1e-3 on log loss; one run, {took:.3g} CPU-s. On "
        "average, each table counts the same.\n\n"
        + table(("table", "held out", *methods), lines)
        + "".join(f"\n- Not predicted: {one}." for one in absent)
    )


def _methods(draws: int) -> list[Predictor]:
    return [
        LawPredictor(law="chinchilla", draws=draws),
        LawPredictor(law="six-parameter", draws=draws),
        MixturePredictor(law="chinchilla", draws=draws),
        MinimaPredictor(floor=False, cost=DenseCost()),
        MinimaPredictor(floor=True, cost=DenseCost()),
    ]


def _held_out(data: Data) -> str:
    largest = data["budget"].max()
    top = int((data["budget"] == largest).sum())
    return f"{top} of {len(data['loss'])} at {largest:.3g}"


def _error(comparison: CrossValidation, method: str) -> HeldOutError | None:
    return next((error for error in comparison.errors if error.method == method), None)


def _shown(error: HeldOutError | None) -> str:
    if error is None:
        return "-"
    return f"{error.mean_absolute_error:.3f}" + ("" if error.coverage is None else f" ({error.coverage:.0%})")


def _average(errors: list[HeldOutError | None]) -> str:
    there = [error for error in errors if error is not None]
    if not there:
        return "-"
    shares = [error.coverage for error in there if error.coverage is not None]
    covered = f" ({np.mean(shares):.0%})" if shares else ""
    some = f", of {len(there)}" if len(there) < len(errors) else ""
    return f"**{np.mean([error.mean_absolute_error for error in there]):.3f}**{covered}{some}"
