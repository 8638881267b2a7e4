"""The fit of one law to one table: parameters with intervals, the method, and predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isoloop.fitting.estimation.bootstrap import (
    LEVEL,
    BootstrapKind,
    bootstrap,
    interval,
    noise_scale,
    widening,
)
from isoloop.fitting.estimation.noise import NoiseModel
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.estimation.point_estimate import LARGE_TABLE, PointEstimate, point_estimate
from isoloop.fitting.estimation.profile import profile
from isoloop.fitting.estimation.rise import loss_rise
from isoloop.fitting.estimation.whitening import Whitening
from isoloop.fitting.laws.base import Data, Law
from isoloop.fitting.laws.registry import law_named

_NOISE_DRAWS = 10
"""Draws of the noise for each draw of the parameters in the interval of a measured loss."""
DEGENERATE = "the losses do not tell its parameters apart"
"""Reason of a fit along whose valley the parameters are free, which its refits don't show."""
_PERCENTILES = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
_ELEMENTS_AT_ONCE = 30_000_000
"""Drawn losses that are held in memory together."""
_ROUNDING = 1e-9
"""Residuals below this are rounding, and say nothing about how likely a law is."""
_FEWEST_LEFT = 2
"""Losses beyond the number of parameters below which a fit determines them weakly."""
_BOOTSTRAP_SHARE = 0.35
"""Share of a fit's time before its profiles, as measured on sweeps of 16 to 42 runs with 1000 draws."""
_NEAR_A_BOUND = 1e-3
"""Share of a parameter's value within which an end of its interval is taken to be at the bound."""
_EXACT = 1e-9
"""Scatter about a law, relative to the loss, below which it comes from rounding."""
EXACT = "the losses lie on the law exactly, as in a table without noise, so the intervals only reflect rounding"


@dataclass(frozen=True, kw_only=True)
class ParameterEstimate:
    """One fitted parameter with its 95% interval, None without draws; `at_bound` if it is at a bound.

    `profile` is the interval by profile likelihood, None if there is none; an end is None where the losses set no limit
    on that side.
    """

    name: str
    meaning: str
    unit: str
    value: float
    interval: tuple[float, float] | None
    profile: tuple[float | None, float | None] | None
    at_bound: bool


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """One fitted law; `law` is the name that `law_named` knows it by.

    `draws` are refitted parameter vectors, made by the kind of `bootstrap`; their intervals are widened by `widening`.
    `noise` is the standard deviation of one measured loss about the law, relative if the objective is `on` log loss and
    in nats if it is on loss; known with `noise_dof` degrees of freedom. Where it depends on compute or budgets share a
    part of it, `noise_model` says how, and `noise` is its level. `delta` is Huber's, None for squared error.
    `run_id` and `mean_recurrence` are set where the law describes one model.
    """

    law: str
    parameters: tuple[ParameterEstimate, ...]
    objective: float
    delta: float | None
    on: Literal["log loss", "loss"]
    rows: int
    runs: int
    noise: float
    noise_dof: int
    bootstrap: str
    widening: float
    converged: bool
    reasons: tuple[str, ...]
    draws: tuple[tuple[float, ...], ...] = ()
    run_id: str | None = None
    mean_recurrence: float | None = None
    noise_model: NoiseModel | None = None

    @property
    def method(self) -> str:
        """Name of the objective that was minimised."""
        return str(Objective(delta=np.inf if self.delta is None else self.delta, on=self.on))

    @property
    def form(self) -> Law:
        """The law that was fitted: its formula, columns and optimum."""
        return law_named(self.law)

    @property
    def exact(self) -> bool:
        """True if the losses lie on the law exactly, so that its intervals only reflect rounding."""
        return self.noise < _EXACT

    @property
    def vector(self) -> np.ndarray:
        """Parameter values, shape (p,), in the law's order."""
        return np.array([parameter.value for parameter in self.parameters])

    @property
    def draw_matrix(self) -> np.ndarray:
        """Refitted parameters, shape (draws, p)."""
        return np.array(self.draws).reshape(len(self.draws), len(self.parameters))

    def value(self, name: str) -> float:
        """Return the value of the parameter called `name`."""
        return {parameter.name: parameter.value for parameter in self.parameters}[name]

    def loss(self, data: Data) -> np.ndarray:
        """Return the predicted loss of each row, nats per token: (rows,)."""
        return self.form.loss(self.vector, data)

    def loss_draws(self, data: Data, *, measured: bool = True, first: int | None = None) -> np.ndarray:
        """Return the losses of each row by the refits (all, or the `first` so many): (draws, rows), nats per token.

        They are the law's own values, or of `measured` losses, with the noise of one run: then 10 draws per refit.
        """
        at, vectors = self.loss(data), self.draw_matrix[:first]
        # The losses of a fit gone astray may exceed the largest float, where they end.
        with np.errstate(over="ignore"):
            # Widened before the noise is added, since that is known better than the parameters.
            drawn = at * (self.form.loss(vectors, data) / at) ** self.widening
            if measured:
                # A fixed seed: the same fit gives the same interval each time.
                rng = np.random.default_rng(0)
                drawn = np.tile(drawn, (_NOISE_DRAWS, 1))
                scale = self.noise * np.sqrt(self.noise_dof / rng.chisquare(self.noise_dof, size=(len(drawn), 1)))
                noise = scale * rng.standard_normal(drawn.shape)
                if self.noise_model is not None:
                    shared = self.noise_model.drawn_shared(data, len(drawn), rng)
                    noise = noise * self.noise_model.drawn_ratios(data, len(drawn), rng)
                    noise = noise + (shared if self.on == "log loss" else shared * at)
                drawn = drawn * np.exp(noise) if self.on == "log loss" else drawn + noise
        return np.minimum(drawn, np.finfo(float).max)

    def loss_interval(self, data: Data, *, measured: bool = True) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the ends of the 95% interval of each row's loss, (rows,) each, or None without draws.

        The interval is that of a `measured` loss, with the noise of one run, or else of the law's own value.
        """
        if not self.draws:
            return None
        return interval_of_losses(lambda rows: self.loss_draws(rows, measured=measured), data, len(self.draws))

    @property
    def log_likelihood(self) -> float:
        """Log likelihood of the losses, maximised over the scale of the noise; see `Objective.log_likelihood`."""
        delta = np.inf if self.delta is None else self.delta
        value = max(self.objective, 0.5 * self.rows * _ROUNDING**2)
        return Objective(delta=delta, on=self.on).log_likelihood(value, self.rows)

    @property
    def aic(self) -> float:
        """Akaike's information criterion; the scale of the noise counts as one more parameter."""
        return 2 * (len(self.parameters) + 1) - 2 * self.log_likelihood

    @property
    def aicc(self) -> float:
        """Akaike's information criterion corrected for few losses (Hurvich and Tsai 1989), infinite for too few."""
        free = len(self.parameters) + 1
        left = self.rows - free - 1
        return self.aic + 2 * free * (free + 1) / left if left > 0 else float("inf")


def interval_of_losses(drawn: Callable[[Data], np.ndarray], data: Data, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95% interval of each row, (rows,) each, from what `drawn` gives for a part of the rows.

    `draws` is the number of refits behind them, from which it follows how many rows fit into memory.
    """
    at_once = max(1, _ELEMENTS_AT_ONCE // (_NOISE_DRAWS * draws))
    rows = len(next(iter(data.values())))
    parts = [slice(first, first + at_once) for first in range(0, rows, at_once)]
    ends = [
        np.percentile(drawn({name: values[part] for name, values in data.items()}), _PERCENTILES, axis=0)
        for part in parts
    ]
    low, high = np.concatenate(ends, axis=1)
    return low, high


def fit_law(
    law: Law | str,
    data: Mapping[str, np.ndarray],
    *,
    draws: int,
    seed: int,
    by_run: bool = False,
    objective: Objective = HUBER,
    kind: BootstrapKind = "parametric",
    profiles: bool = False,
    check_rise: bool = True,
    noise: NoiseModel | None = None,
    scales: np.ndarray | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> LawFit:
    """Fit one law with `draws` refits of a bootstrap, and with `profiles` the profile likelihood of each parameter.

    The law may be given by the name that `law_named` knows. With `by_run`, the rows of one `run_id` share the noise of
    their run; this is for data with several rows per run. With `noise`, each residual is divided by the noise of its
    run, and what budgets share of it is part of the fit, its refits and the intervals of measured losses. With
    `scales` (rows,) say by what factor each loss is more uncertain than a measured one, in place of `noise`. With
    `check_rise`, losses that rise with T are among the reasons not to trust a law that saturates (see `loss_rise`).
    `progress` is called with the share of the time that is over. Raises ValueError as `point_estimate` and `bootstrap`
    do.
    """
    name, law = (law, law_named(law)) if isinstance(law, str) else (law.name, law)
    runs = data["run_id"] if by_run else None
    uneven = noise.centred(data) if noise is not None and noise.uneven else None
    whitening = uneven.whitening(data, independent=by_run) if uneven else None
    if scales is not None:
        assert noise is None, "uncertainty of each row takes the place of a noise model"
        whitening = Whitening(scales=scales)
    estimate = point_estimate(law, data, objective, whitening=whitening)
    drawn = np.empty((0, len(law.parameters)))
    if draws:
        drawn = bootstrap(estimate, data, draws=draws, seed=seed, runs=runs, kind=kind, noise=uneven)
    wider = widening(kind, data)
    parameters = _parameters(estimate, data, drawn, wider, runs, profiles, progress)
    level, dof = noise_scale(estimate, runs, uneven)
    rows = len(estimate.residuals)
    return LawFit(
        law=name,
        parameters=parameters,
        objective=estimate.objective,
        delta=objective.delta if np.isfinite(objective.delta) else None,
        on=objective.on,
        rows=rows,
        runs=len(np.unique(data["run_id"])) if "run_id" in data else len(estimate.residuals),
        noise=level,
        noise_dof=dof,
        bootstrap="normal approximation" if draws and rows > LARGE_TABLE else kind,
        widening=wider,
        converged=estimate.converged,
        reasons=_reasons(estimate, parameters, data, check_rise=check_rise),
        draws=tuple(tuple(float(value) for value in draw) for draw in drawn),
        noise_model=replace(uneven, level=level, dof=float(dof)) if uneven else None,
    )


def _parameters(
    estimate: PointEstimate,
    data: Data,
    drawn: np.ndarray,
    wider: float,
    runs: np.ndarray | None,
    profiles: bool,
    progress: Callable[[float], None],
) -> tuple[ParameterEstimate, ...]:
    parameters = []
    profiled = profiles and len(estimate.residuals) <= LARGE_TABLE  # with more rows, both intervals are the same
    for place, parameter in enumerate(estimate.law.parameters):
        if profiled:
            progress(_BOOTSTRAP_SHARE + (1 - _BOOTSTRAP_SHARE) * place / len(estimate.law.parameters))
        value = float(estimate.parameters[place])
        bounds = interval(drawn[:, place], value, wider) if len(drawn) else None
        if bounds is not None:
            bounds = max(bounds[0], parameter.lower), min(bounds[1], parameter.upper)
        parameters.append(
            ParameterEstimate(
                name=parameter.name,
                meaning=parameter.meaning,
                unit=parameter.unit,
                value=value,
                interval=bounds,
                profile=profile(estimate, data, parameter.name, runs=runs).interval if profiled else None,
                at_bound=parameter.name in estimate.at_bounds,
            )
        )
    return tuple(parameters)


def _reasons(
    estimate: PointEstimate, parameters: tuple[ParameterEstimate, ...], data: Data, *, check_rise: bool
) -> tuple[str, ...]:
    law = estimate.law
    reasons = [f"{name} is at its bound" for name in estimate.at_bounds]
    # Not for amplitudes: how near to zero they are depends on the unit of their column.
    in_other_units = law.rescaled(np.ones(len(parameters)), {name: 2.0 for group in law.scaled for name in group})
    for law_parameter, fitted, unit in zip(law.parameters, parameters, in_other_units, strict=True):
        if unit != 1:
            continue
        low, high = fitted.interval or (np.inf, -np.inf)
        span = _NEAR_A_BOUND * (abs(fitted.value) + 1e-300)
        if not fitted.at_bound and (low <= law_parameter.lower + span or high >= law_parameter.upper - span):
            reasons.append(f"the interval of {fitted.name} ends at a bound, so the losses hardly limit it there")
    if estimate.degenerate:
        reasons.append(DEGENERATE)
    elif not estimate.converged:
        reasons.append("the search ran out of steps")
    rows, free = len(estimate.residuals), len(parameters)
    if rows < free + _FEWEST_LEFT:
        reasons.append(f"{rows} losses for {free} parameters determine them weakly")
    reasons += law.undetermined(estimate.parameters, data)
    rise = loss_rise(data) if law.saturates and check_rise else None
    if rise is not None:
        reasons.append(rise.reason)
    return tuple(reasons)
