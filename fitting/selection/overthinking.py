"""The laws of a sweep whose losses rise with the loops T run at test time, and the T of the least loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.estimation.rise import RISES, LossRise
from isoloop.fitting.laws.base import Data, minimise_on_grid
from isoloop.fitting.laws.registry import law_named

_GRID_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Overthinking:
    """Losses that rise with T, and the laws that can follow them.

    `laws` are fitted to all models together, beside the published ones; those in `used` take their place in
    predictions, since they describe the losses better (by AIC). `test_time` are laws of single models. `best_ratio` is
    the T / mu of the least loss with its 95% interval: by a law of all models, or else the median of the measured ones
    between the measured T beside them.
    """

    rise: LossRise
    laws: tuple[LawFit, ...] = ()
    used: tuple[str, ...] = ()
    test_time: tuple[LawFit, ...] = ()
    best_ratio: float
    best_interval: tuple[float, float] | None = None
    by_law: str | None = None

    def extension(self, name: str) -> LawFit | None:
        """Return the law that takes the place of the published one of that name, None if none does."""
        for law in self.laws:
            extends = law.form.extends
            if law.law in self.used and extends is not None and extends.name == name:
                return law
        return None

    def of_run(self, run_id: str | None) -> LawFit | None:
        """Return the law of one model, None if it has none."""
        return next((law for law in self.test_time if law.run_id == run_id), None)

    def law_of(self, saturating: LawFit) -> LawFit | None:
        """Return the law of one model to judge: its own for a rise, or the saturating one if its losses don't rise."""
        if saturating.run_id in self.rise.runs:
            return self.of_run(saturating.run_id)
        return saturating

    @property
    def best_text(self) -> str:
        """The best T as a multiple of mu, with its interval."""
        if self.best_interval is None:
            return f"T = {self.best_ratio:.3g} mu"
        low, high = self.best_interval
        kind = "95%" if self.by_law else "measured T beside it"
        return f"T = {self.best_ratio:.3g} mu ({kind}: {low:.3g} to {high:.3g})"

    @property
    def sentence(self) -> str:
        """The best T and the laws that predictions use, as sentences of a report."""
        method = f"by the {self.by_law} law" if self.by_law else "as measured, at the median"
        used = "No law that can follow the rise describes the losses better, so predictions use the published laws"
        if self.used:
            laws = "law" if len(self.used) == 1 else "laws"
            used = f"Predictions at other T use the {' and '.join(self.used)} {laws}, which can follow the rise"
        return f"The least loss is at {self.best_text} {method}. {used}."

    def notes(self, law: LawFit, data: Data) -> list[str]:
        """Return notes beside the prediction of one model, whose columns are `data`, by a law of test-time loops."""
        mu = float(data["mean_recurrence"][0])
        best = self.best_ratio * mu
        notes = [f"the least loss is at about {best:.3g} loops, {self.best_text}: the {RISES} beyond"]
        loops = float(data["recurrence"][0])
        if law.law in self.used and loops > best:
            at_best = law.loss({**data, "recurrence": np.array([best])})
            cost = float((law.loss(data) - at_best)[0])
            notes.append(f"T = {loops:g} is beyond it and costs {cost:.2g} nats")
        return notes


def overthinking(rise: LossRise, data: Data, published: Sequence[LawFit], extensions: Sequence[LawFit]) -> Overthinking:
    """Return what follows from losses `data` that rise with T, of the laws without and with a term for it.

    An extension is used where its AIC is below that of the law which it extends. The best T is that of the first
    extension that is used, within the measured T / mu.
    """
    of_name: Mapping[str, LawFit] = {law.law: law for law in published}
    used = []
    for law in extensions:
        extends = law.form.extends
        if extends is not None and extends.name in of_name and law.aic < of_name[extends.name].aic:
            used.append(law)
    median = rise.turn_ratio
    assert median is not None
    if used:
        loops = data["recurrence"] / data["mean_recurrence"]
        best, bounds = _best_ratio(used[0], data, float(loops.min()), float(loops.max()))
    else:
        between = [np.array(model.between) / model.mean_recurrence for model in rise.least if model.mean_recurrence]
        low, high = np.median(between, axis=0)
        best, bounds = median, (float(low), float(high))
    return Overthinking(
        rise=rise,
        laws=tuple(extensions),
        used=tuple(law.law for law in used),
        best_ratio=best,
        best_interval=bounds,
        by_law=used[0].law if used else None,
    )


def _best_ratio(law: LawFit, data: Data, low: float, high: float) -> tuple[float, tuple[float, float] | None]:
    """Return the T / mu of the least loss by a law of all models, between two ends, with its 95% interval."""
    form = law_named(law.law)
    model = {name: data[name][:1] for name in form.columns}

    def loss_at(parameters: np.ndarray) -> np.ndarray:
        def of_logs(logs: np.ndarray) -> np.ndarray:
            loops = np.exp(logs) * model["mean_recurrence"]
            columns = {name: np.broadcast_to(values, loops.shape) for name, values in model.items()}
            return form.loss(parameters, {**columns, "recurrence": loops})

        _, best = minimise_on_grid(of_logs, np.linspace(np.log(low), np.log(high), _GRID_POINTS))
        return np.exp(best)

    best = float(loss_at(law.vector))
    return best, interval(loss_at(law.draw_matrix), best, law.widening) if law.draws else None
