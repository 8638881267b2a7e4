"""Laws of the loss after training, weighed by how well they fit: intervals that include the choice of form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from isoloop.fitting.cost import Cost
from isoloop.fitting.estimation.bootstrap import BootstrapKind, default_kind, interval
from isoloop.fitting.estimation.law_fit import DEGENERATE, LawFit, fit_law, interval_of_losses
from isoloop.fitting.estimation.noise import NoiseModel, noise_model
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.estimation.point_estimate import point_estimate
from isoloop.fitting.laws.base import LARGEST_RECURRENCE, Data, Law, Optimum, best_split
from isoloop.fitting.laws.registry import law_named, laws_beside, richer_law

NAMED_WEIGHT = 0.05
"""Weight from which a law is named."""
_RUNS_PER_PARAMETER = 3
"""Runs for each parameter from which noise is measured about the richer law."""


@dataclass(frozen=True, kw_only=True)
class MixtureOptimum:
    """The best split of a budget by a mixture of laws: arrays of shape () in `best` and (draws,) in `draws`.

    `best` minimises the mixture's loss. `draws` are the optima of the laws' refits, as many of each law as its weight
    says, None without draws.
    """

    best: Optimum
    draws: Optimum | None

    def interval_of(self, name: str) -> tuple[float, float] | None:
        """Return the 95% interval of `at`, `tokens` or `loss`, None without draws."""
        return None if self.draws is None else interval(getattr(self.draws, name))


@dataclass(frozen=True, kw_only=True)
class LawMixture:
    """Fits of several laws to the same losses, with weights that sum to 1 and the reason for them.

    The first law is the one that was asked for, and the others extend it or are its alternatives. A prediction is the
    weighted mean over the laws. Its interval is that of all laws' refits together, as many of each law as its weight
    says.
    """

    laws: tuple[LawFit, ...]
    weights: tuple[float, ...]
    reason: str

    @property
    def best(self) -> LawFit:
        """The law of the largest weight."""
        return self.laws[int(np.argmax(self.weights))]

    @property
    def name(self) -> str:
        """Name as a method of predicting, such as 'training law'."""
        named = [law.form.name for law, weight in zip(self.laws, self.weights, strict=True) if weight >= NAMED_WEIGHT]
        return _law_names(named)

    @property
    def draws_by_law(self) -> tuple[tuple[LawFit, int], ...]:
        """The laws with the number of their refits that count, which is in proportion to the weights."""
        counts = (round(weight * len(law.draws)) for law, weight in zip(self.laws, self.weights, strict=True))
        return tuple((law, count) for law, count in zip(self.laws, counts, strict=True) if count)

    def loss(self, data: Data) -> np.ndarray:
        """Return the predicted loss of each row, nats per token: (..., rows)."""
        return np.asarray(sum(weight * law.loss(data) for law, weight in zip(self.laws, self.weights, strict=True)))

    def loss_draws(self, data: Data, *, measured: bool = True) -> np.ndarray:
        """Return losses (draws, rows) by all laws' refits in proportion to the weights; see `LawFit.loss_draws`."""
        drawn = [law.loss_draws(data, measured=measured, first=count) for law, count in self.draws_by_law]
        return np.concatenate(drawn) if drawn else np.empty((0, *np.shape(self.loss(data))))

    def loss_interval(self, data: Data, *, measured: bool = True) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the ends of the 95% interval of each row's loss, (rows,) each, or None without draws.

        The interval is that of a `measured` loss, with the noise of one run, or else of the laws' own values.
        """
        draws = sum(count for _, count in self.draws_by_law)
        if not draws:
            return None
        return interval_of_losses(lambda rows: self.loss_draws(rows, measured=measured), data, draws)

    def optimum(
        self, cost: Cost, flops: float, bounds: tuple[float, float] = (1.0, LARGEST_RECURRENCE)
    ) -> MixtureOptimum:
        """Return the model of least loss that spends `flops` FLOPs, within `bounds` of the cost's axis, with draws.

        Raises ValueError as `Law.optimum` does.
        """
        best = best_split(self.loss, cost, flops, bounds)
        drawn = [_widened(law, count, cost, flops, bounds) for law, count in self.draws_by_law]
        return MixtureOptimum(best=best, draws=_joined(drawn) if drawn else None)


def mixture_beside(first: LawFit, fit: Callable[[Law], LawFit], columns: Collection[str]) -> LawMixture:
    """Return the mixture of `first` and the laws beside it, fitted by `fit` to the same rows as `first`.

    They are the law that extends it and its alternatives, as far as `columns`, those of a model to predict, have what
    they read, and alternatives only if the losses tell their parameters apart: the loop-term law needs three sizes.
    Where none of them can be fitted, `first` is alone.
    """
    laws, reasons = [first], []
    for law in laws_beside(first.form):
        if unknown := sorted(set(law.columns) - set(columns) - set(first.form.columns)):
            reasons.append(f"the {law.name} law reads {', '.join(unknown)}, which models to predict don't have")
            continue
        try:
            fitted = fit(law)
        except ValueError as error:
            reasons.append(str(error))
            continue
        # Refits stay where the search ended in a valley. A law that contains the first one may, another can't.
        if DEGENERATE in fitted.reasons and law.name in first.form.alternatives:
            reasons.append(f"the {law.name} law is left out, since {DEGENERATE}")
        else:
            laws.append(fitted)
    return law_mixture(laws, not_fitted="; ".join(reasons))


def law_mixture(laws: Sequence[LawFit], *, not_fitted: str = "") -> LawMixture:
    """Return the mixture of fits to the same rows with the same objective, the law that was asked for first.

    The weights are those of Akaike's criterion corrected for few runs, exp(-AICc / 2) over their sum (Burnham and
    Anderson 2002, section 2.9). `not_fitted` says why further laws are not among them.
    """
    assert len({(law.rows, law.method) for law in laws}) == 1, laws
    criteria = np.array([law.aicc for law in laws])
    criteria[0] = min(criteria[0], np.finfo(float).max)
    weights = np.exp(-0.5 * (criteria - criteria.min()))
    weights = weights / weights.sum()
    return LawMixture(
        laws=tuple(laws),
        weights=tuple(float(weight) for weight in weights),
        reason=_reason(laws, weights, not_fitted),
    )


def noise_about(law: Law, data: Data, objective: Objective) -> NoiseModel | None:
    """Return the noise of the losses after training about a law, None if it can't be fitted to them.

    It is measured about the law that extends this one, if there are runs enough: what a wrong form misses is not
    noise.
    """
    richer = richer_law(law)
    if richer is not None and len(data["loss"]) >= _RUNS_PER_PARAMETER * len(richer.parameters):
        law = richer
    try:
        return noise_model(data, point_estimate(law, data, objective))
    except ValueError:  # the fit of the law is missing for the same reason, which is said there
        return None


@dataclass(frozen=True, kw_only=True)
class MixturePredictor:
    """Predictions as a sweep's fit makes them: by a law and those beside it, weighed, about their own noise.

    The bootstrap is of the `kind` given, by default of the `default_kind`.
    """

    law: str
    objective: Objective = HUBER
    kind: BootstrapKind | None = None
    draws: int = 200
    seed: int = 0

    @property
    def name(self) -> str:
        """Name in reports."""
        law = law_named(self.law)
        names = [law.name, *(other.name for other in laws_beside(law))]
        return _law_names(names)

    def predict(self, fitted: Data, held_out: Data) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
        """See `Predictor.predict`; raises ValueError as `fit_law` does."""

        def fit(law: Law | str) -> LawFit:
            return fit_law(
                law,
                fitted,
                draws=self.draws,
                seed=self.seed,
                objective=self.objective,
                kind=self.kind or default_kind(fitted),
                noise=noise,
            )

        noise = noise_about(law_named(self.law), fitted, self.objective)
        laws = mixture_beside(fit(self.law), fit, held_out)
        return laws.loss(held_out), laws.loss_interval(held_out)


def _law_names(names: Sequence[str]) -> str:
    return f"{names[0]} law" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} laws"


def _reason(laws: Sequence[LawFit], weights: np.ndarray, not_fitted: str) -> str:
    first = laws[0]
    if len(laws) == 1:
        reason = not_fitted or "the package has no law to weigh beside it"
        return f"the {first.form.name} law predicts alone: {reason}"
    parts = [f"the {law.form.name} law {weight:.0%}" for law, weight in zip(laws, weights, strict=True)]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]])
    return (
        f"predictions weigh {listed}, by Akaike's criterion for few runs (AICc), which sets how well a "
        "law fits against its number of parameters" + (f"; others are left out: {not_fitted}" if not_fitted else "")
    )


def _widened(law: LawFit, count: int, cost: Cost, flops: float, bounds: tuple[float, float]) -> Optimum:
    """Return the optima of the first `count` refits, widened about the law's own as its intervals are, and within the
    bounds.
    """
    vectors = np.concatenate([law.vector[None], law.draw_matrix[:count]])
    optima = law.form.optimum(vectors, cost, flops, bounds)

    def about_own(values: np.ndarray) -> np.ndarray:
        return np.asarray(values[0] * (values[1:] / values[0]) ** law.widening)

    return Optimum(
        axis=optima.axis,
        at=np.clip(about_own(optima.at), *bounds),
        tokens=about_own(optima.tokens),
        loss=about_own(optima.loss),
        at_bound=optima.at_bound[1:],
    )


def _joined(optima: Sequence[Optimum]) -> Optimum:
    return Optimum(
        axis=optima[0].axis,
        at=np.concatenate([each.at for each in optima]),
        tokens=np.concatenate([each.tokens for each in optima]),
        loss=np.concatenate([each.loss for each in optima]),
        at_bound=np.concatenate([each.at_bound for each in optima]),
    )
