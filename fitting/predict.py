"""From a stored fit to the loss of a model that nobody has trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.isoflop.power_law import PowerLaw
from isoloop.fitting.laws.looped import TrainingLaw
from isoloop.fitting.result import SweepFit

_MOST_LOOPS = 1024.0
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class PowerLawOptimum:
    """What the isoFLOP power laws say is best at the asked compute: beside the training law's answer, to compare."""

    name: str
    mean_recurrence: float
    mean_recurrence_interval: tuple[float, float] | None
    tokens: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted loss (nats per token) of one model at `recurrence` loops.

    Intervals are 95% and None where the fit has no draws; the loss interval holds parameters and the noise of one run.
    `optimal` says that mean recurrence and tokens were chosen as the best for `flops`; their intervals are then given.
    """

    loss: float
    loss_interval: tuple[float, float] | None
    perplexity: float
    perplexity_interval: tuple[float, float] | None
    mean_recurrence: float
    mean_recurrence_interval: tuple[float, float] | None
    tokens: float
    tokens_interval: tuple[float, float] | None
    flops: float
    recurrence: float
    law: str
    optimal: bool
    power_laws: tuple[PowerLawOptimum, ...]
    simulated: bool
    accounting: str
    notes: tuple[str, ...]

    def report(self) -> str:
        """The prediction as readable lines."""

        def line(label: str, value: float, bounds: tuple[float, float] | None, unit: str) -> str:
            said = f"   95%: {bounds[0]:.5g} to {bounds[1]:.5g}" if bounds else ""
            return f"  {label:<18}{value:<12.5g}{unit:<16}{said}".rstrip()

        lines = [
            f"Prediction by the {self.law} law" + (", from simulated runs" if self.simulated else ""),
            line("loss", self.loss, self.loss_interval, "nats per token"),
            line("perplexity", self.perplexity, self.perplexity_interval, "per token"),
            line("mean recurrence", self.mean_recurrence, self.mean_recurrence_interval, "loops"),
            line("tokens", self.tokens, self.tokens_interval, "tokens"),
            line("compute", self.flops, None, f"FLOPs, {self.accounting}"),
            line("recurrence T", self.recurrence, None, "loops at test time"),
        ]
        for other in self.power_laws:
            lines.append(f"Beside it, the {other.name}")
            lines.append(line("mean recurrence", other.mean_recurrence, other.mean_recurrence_interval, "loops"))
            lines.append(line("tokens", other.tokens, None, "tokens"))
        return "\n".join([*lines, *(f"  Note: {note}." for note in self.notes)]) + "\n"


def predict(
    fit: SweepFit,
    *,
    mean_recurrence: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    recurrence: float | None = None,
    loss_at_mean: float | None = None,
) -> Prediction:
    """Predict the loss of a model with a mean recurrence (loops) and either tokens or training FLOPs.

    With `flops` alone, mean recurrence and tokens are those that the training law finds best for it. Without
    `recurrence`, the loss is that at T = mean recurrence, from the training law; with it, from the unified law; with
    `loss_at_mean` as well, the loss measured at T = mean recurrence (nats per token), from the joint test-time law.
    Raises ValueError for any other combination, for values out of range, and where the needed law has no fit.
    """
    _check_question(mean_recurrence, tokens, flops, recurrence)
    _check_given(mean_recurrence, recurrence, loss_at_mean)
    model = _model(fit, mean_recurrence, tokens, flops)
    law = _needed(fit, "training" if recurrence is None else "unified" if loss_at_mean is None else "joint-test-time")
    loops = model.mean_recurrence if recurrence is None else recurrence
    loss, loss_interval = _loss(fit, law, model, loops, loss_at_mean)
    extrapolated = extrapolation_notes(fit, model.flops, model.tokens, model.mean_recurrence, recurrence)
    return Prediction(
        loss=loss,
        loss_interval=loss_interval,
        perplexity=math.exp(loss),
        perplexity_interval=(math.exp(loss_interval[0]), math.exp(loss_interval[1])) if loss_interval else None,
        mean_recurrence=model.mean_recurrence,
        mean_recurrence_interval=model.mean_recurrence_interval,
        tokens=model.tokens,
        tokens_interval=model.tokens_interval,
        flops=model.flops,
        recurrence=loops,
        law=law.law,
        optimal=mean_recurrence is None,
        power_laws=_power_law_optima(fit, model.flops) if mean_recurrence is None else (),
        simulated=fit.simulated,
        accounting=fit.accounting,
        notes=(*model.notes, *extrapolated),
    )


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What is asked about, whole; intervals where it is an optimum."""

    mean_recurrence: float
    tokens: float
    flops: float
    mean_recurrence_interval: tuple[float, float] | None = None
    tokens_interval: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def _model(fit: SweepFit, mean_recurrence: float | None, tokens: float | None, flops: float | None) -> _Model:
    if mean_recurrence is None:
        assert flops is not None
        return _optimum(fit, flops)
    if tokens is None:
        assert flops is not None
        tokens = float(fit.cost_model.tokens_for(flops, mean_recurrence))
    else:
        flops = float(fit.cost_model.flops_for(tokens, mean_recurrence))
    return _Model(mean_recurrence=mean_recurrence, tokens=tokens, flops=flops)


def _loss(
    fit: SweepFit, law: LawFit, model: _Model, recurrence: float, loss_at_mean: float | None
) -> tuple[float, tuple[float, float] | None]:
    """The loss, nats per token, and its 95% interval."""
    data = {
        "effective_params": fit.cost_model.effective_params([model.mean_recurrence]),
        "tokens": np.array([model.tokens]),
        "mean_recurrence": np.array([model.mean_recurrence]),
        "recurrence": np.array([recurrence]),
    }
    if loss_at_mean is not None:
        data["loss_at_mean"] = np.array([loss_at_mean])
    bounds = law.loss_interval(data)
    return float(law.loss(data)[0]), (float(bounds[0][0]), float(bounds[1][0])) if bounds else None


def _check_question(
    mean_recurrence: float | None, tokens: float | None, flops: float | None, recurrence: float | None
) -> None:
    for name, value in (("mean_recurrence", mean_recurrence), ("tokens", tokens), ("flops", flops)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, but got {value}; ask with a positive number")
    if mean_recurrence is not None and mean_recurrence < 1:
        raise ValueError(
            f"mean_recurrence must be at least 1, but got {mean_recurrence}; a loop runs at least once, so ask for that"
        )
    if recurrence is not None and not (recurrence >= 1 and math.isfinite(recurrence)):
        raise ValueError(f"recurrence must be at least 1 and finite, but got {recurrence}; ask for 1 loop or more")
    if mean_recurrence is not None and (tokens is None) == (flops is None):
        got = "neither" if tokens is None else "both"
        raise ValueError(f"a mean recurrence needs either tokens or flops, but got {got}; give one of the two")
    if mean_recurrence is None and (flops is None or tokens is not None):
        given = {"tokens": tokens, "flops": flops, "recurrence": recurrence}
        got = " and ".join(name for name, value in given.items() if value is not None)
        raise ValueError(
            "without a mean recurrence a prediction takes flops and no tokens, and finds the best split, but got "
            f"{got or 'nothing'}; give flops alone, or mean_recurrence with tokens or with flops"
        )


def _check_given(mean_recurrence: float | None, recurrence: float | None, loss_at_mean: float | None) -> None:
    if loss_at_mean is None:
        return
    if not (loss_at_mean > 0 and math.isfinite(loss_at_mean)):
        raise ValueError(f"loss_at_mean must be positive and finite, but got {loss_at_mean}; give nats per token")
    if mean_recurrence is None or recurrence is None:
        missing = "mean_recurrence" if mean_recurrence is None else "recurrence"
        raise ValueError(
            f"a measured loss at T = mean recurrence predicts that at another T, but {missing} is missing; give both"
        )


def _needed(fit: SweepFit, what: str) -> LawFit:
    found = {"training": fit.training, "unified": fit.unified, "joint-test-time": fit.joint_test_time}[what]
    if found is None:
        raise ValueError(
            f"this prediction needs the {what} law, but {fit.name!r} has no fit of it: {fit.why_absent(what)}; "
            "add runs to the sweep and fit again"
        )
    return found


def named_power_laws(fit: SweepFit) -> list[tuple[str, PowerLaw]]:
    """The isoFLOP power laws of the best mean recurrence, as fitted and without the parabola's bias, by name."""
    fitted = fit.isoflop.mean_recurrence_law if fit.isoflop else None
    corrected = fit.parabola_bias.axis_exponent.corrected if fit.parabola_bias else None
    named = (("isoFLOP power laws", fitted), ("isoFLOP power laws without the parabola's bias", corrected))
    return [(name, law) for name, law in named if law is not None]


def searched(fit: SweepFit) -> tuple[float, float]:
    """Between which mean recurrences the best one is searched, loops."""
    return min(1.0, fit.fitted.mean_recurrence[0]), _MOST_LOOPS


def _optimum(fit: SweepFit, flops: float) -> _Model:
    """The best model for `flops` under the training law, with a note where the search ended before it did."""
    law = _needed(fit, "training")
    bounds = searched(fit)
    best = TrainingLaw().optimum(law.vector, fit.cost_model, flops, bounds)
    search = f"the end of the search from {bounds[0]:g} to {bounds[1]:g}"
    notes = [f"the best mean recurrence is at {search}"] if bool(best.at_bound) else []
    mu_interval = tokens_interval = None
    if law.draws:
        drawn = TrainingLaw().optimum(law.draw_matrix, fit.cost_model, flops, bounds)
        low, high = interval(drawn.mean_recurrence, float(best.mean_recurrence), law.widening)
        mu_interval = max(low, bounds[0]), min(high, bounds[1])
        tokens_interval = interval(drawn.tokens, float(best.tokens), law.widening)
        # The search is in logs, so that an end of it comes back with a rounding error.
        if low <= bounds[0] * (1 + _ROUNDING) or high >= bounds[1] * (1 - _ROUNDING):
            notes.append(f"the 95% interval of the mean recurrence ends at {search}, so it may be wider")
    return _Model(
        mean_recurrence=float(best.mean_recurrence),
        tokens=float(best.tokens),
        flops=flops,
        mean_recurrence_interval=mu_interval,
        tokens_interval=tokens_interval,
        notes=tuple(notes),
    )


def _power_law_optima(fit: SweepFit, flops: float) -> tuple[PowerLawOptimum, ...]:
    """What the isoFLOP power law says, as fitted and without the parabola's bias, as far as there are such."""
    return tuple(_power_law_optimum(fit, name, law, flops) for name, law in named_power_laws(fit))


def _power_law_optimum(fit: SweepFit, name: str, law: PowerLaw, flops: float) -> PowerLawOptimum:
    mean_recurrence = law.at(flops)
    return PowerLawOptimum(
        name=name,
        mean_recurrence=mean_recurrence,
        mean_recurrence_interval=law.interval_at(flops),
        tokens=float(fit.cost_model.tokens_for(flops, mean_recurrence)),
    )


def extrapolation_notes(
    fit: SweepFit, flops: float, tokens: float, mean_recurrence: float, recurrence: float | None = None
) -> list[str]:
    """Return a note for each quantity that lies outside its fitted range, with how far outside it is."""
    asked = [
        ("compute", flops, fit.fitted.flops, "FLOPs"),
        ("token count", tokens, fit.fitted.tokens, "tokens"),
        ("mean recurrence", mean_recurrence, fit.fitted.mean_recurrence, "loops"),
    ]
    if recurrence is not None and fit.fitted.recurrence is not None:
        asked.append(("recurrence T", recurrence, fit.fitted.recurrence, "loops"))
    said = []
    for label, value, (low, high), unit in asked:
        # Budgets are met within 1%, so the largest budget itself is no extrapolation.
        if value > 1.02 * high:
            said.append(f"{value / high:.1f}x beyond the largest fitted {label} ({high:.4g} {unit})")
        elif value < low / 1.02:
            said.append(f"{low / value:.1f}x below the smallest fitted {label} ({low:.4g} {unit})")
    return said
