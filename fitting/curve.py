"""The losses of one trained model at several test-time recurrences T: both laws, and the best T."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from isoloop.fitting.estimation.law_fit import LawFit, fit_law
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.estimation.rise import LossRise, loss_rise
from isoloop.fitting.laws.base import Data
from isoloop.fitting.report.full import law_text
from isoloop.fitting.tables.mapping import column_key, names_of

_FEWEST_LOOPS = 4


@dataclass(frozen=True, kw_only=True)
class CurveFit:
    """The test-time law of one model and, where its losses rise with T, the law that can follow them.

    `best` is the measured T of the least loss, between the measured T beside it (`between`), in loops. `measured` are
    the smallest and the largest T.
    """

    test_time: LawFit
    overthinking: LawFit | None
    rise: LossRise | None
    best: float
    between: tuple[float, float]
    measured: tuple[float, float]
    least: float
    missing: str | None

    def report(self) -> str:
        """Return the rise, the best T and the laws as text."""
        low, high = self.between
        rise = self.rise.caveat if self.rise else "The losses do not rise with T beyond their noise."
        used = "the overthinking law" if self.overthinking else "the test-time law"
        lines = [
            rise,
            f"The least of the {self.test_time.rows} losses is {self.least:.5g}, at T = {self.best:g} (measured beside "
            f"it: {low:g} and {high:g}). Other T are predicted by {used}: isoloop predict FILE --recurrence T.",
            *([f"There is no overthinking law: {self.missing}."] if self.missing else []),
        ]
        laws = [law_text(law) for law in (self.test_time, self.overthinking) if law is not None]
        return "\n\n".join(["\n".join(lines), *laws]) + "\n"

    def prediction(self, recurrence: float) -> str:
        """Return the loss at `recurrence` loops as text, with the 95% interval of one measured loss.

        Raises ValueError for less than one loop.
        """
        if not (recurrence >= 1 and math.isfinite(recurrence)):
            raise ValueError(f"--recurrence must be at least 1 and finite, but got {recurrence:g}; give loops")
        law = self.overthinking or self.test_time
        data = {"recurrence": np.array([recurrence])}
        loss, span = float(law.loss(data)[0]), law.loss_interval(data)
        interval = f" (95%: {float(span[0][0]):.5g} to {float(span[1][0]):.5g})" if span else ""
        lines = [f"Loss at T = {recurrence:g} by the {law.form.name} law: {loss:.5g}{interval} nats per token"]
        if self.rise is not None:
            lines.append(f"{self.rise.caveat} The least measured loss is {self.least:.5g}, at T = {self.best:g}.")
        low, high = self.measured
        if not low <= recurrence <= high:
            lines.append(f"Note: T was measured from {low:g} to {high:g}; T = {recurrence:g} is outside.")
        return "\n".join(lines) + "\n"


def curve_columns(frame: pd.DataFrame) -> dict[str, np.ndarray] | None:
    """Return recurrence and loss (rows,), and mean_recurrence if it is there, of a table that holds nothing else.

    None for any other table, which may be one of runs. Raises ValueError for values that are no numbers.
    """
    wanted = ("recurrence", "loss", "mean_recurrence")
    names = {name: next((each for each in wanted if column_key(str(name)) in names_of(each)), None) for name in frame}
    if None in names.values() or set(names.values()) < {"recurrence", "loss"} or len(set(names.values())) < len(names):
        return None
    try:
        return {str(ours): pd.to_numeric(frame[name]).to_numpy(dtype=float) for name, ours in names.items()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"the losses of one model at several T must be numbers, but {error}; correct it") from error


def fit_curve(data: Data, *, draws: int = 1000, seed: int = 0, objective: Objective = HUBER) -> CurveFit:
    """Fit the losses of one model at several T: recurrence and loss (rows,), and mean_recurrence if mu is known.

    Raises ValueError for fewer than 4 different T, and as `fit_law` does.
    """
    if (count := len(np.unique(data["recurrence"]))) < _FEWEST_LOOPS:
        raise ValueError(
            f"the test-time law of one model needs its loss at {_FEWEST_LOOPS} or more different T, but got {count}; "
            "evaluate it at more T"
        )
    order = np.argsort(data["recurrence"], kind="stable")
    data = {name: np.asarray(values, dtype=float)[order] for name, values in data.items() if name != "run_id"}
    data["run_id"] = np.full(len(order), "")
    test_time = fit_law("test-time", data, draws=draws, seed=seed, objective=objective)
    rise, rising, missing = loss_rise(data), None, None
    if rise is not None:
        try:
            rising = fit_law("overthinking", data, draws=draws, seed=seed, objective=objective)
        except ValueError as error:
            missing = str(error)
    recurrences, place = data["recurrence"], int(np.argmin(data["loss"]))
    return CurveFit(
        test_time=test_time,
        overthinking=rising,
        rise=rise,
        best=float(recurrences[place]),
        between=(float(recurrences[max(place - 1, 0)]), float(recurrences[min(place + 1, len(recurrences) - 1)])),
        measured=(float(recurrences[0]), float(recurrences[-1])),
        least=float(data["loss"][place]),
        missing=missing,
    )
