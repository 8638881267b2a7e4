"""The numbers of a fit that its screen, its whole report and its page show: exponents, parameters, correlations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.isoflop.power_law import POWER_LAWS, WITHOUT_BIAS, PowerLaw
from isoloop.fitting.result import SweepFit

HIGH_CORRELATION = 0.9


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of a fit with its 95% interval (None without draws) and, in words, its method or its meaning."""

    name: str
    value: float
    interval: tuple[float, float] | None
    words: str
    at_bound: bool = False


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """The correlation of two parameters of a law over its refits."""

    parameters: tuple[str, str]
    value: float

    def __str__(self) -> str:
        return f"{' with '.join(self.parameters)} {self.value:+.3f}"


def exponents(fit: SweepFit) -> tuple[Estimate, ...]:
    """Return the exponents of the isoFLOP power laws in compute, as fitted and without the parabola's bias."""
    if fit.isoflop is None:
        return ()
    symbols = f"{AXES[fit.axis].plain_symbol}*", "D*"
    laws: list[tuple[str, str, PowerLaw | None]] = [
        (symbol, POWER_LAWS, law)
        for symbol, law in zip(symbols, (fit.isoflop.axis_law, fit.isoflop.tokens_law), strict=True)
    ]
    if fit.parabola_bias is not None:
        biases = fit.parabola_bias.axis_exponent, fit.parabola_bias.tokens_exponent
        laws += [(symbol, WITHOUT_BIAS, bias.corrected) for symbol, bias in zip(symbols, biases, strict=True)]
    return tuple(
        Estimate(name=f"{symbol} ~ C^", value=law.exponent, interval=law.interval, words=words)
        for symbol, words, law in laws
        if law is not None
    )


def parameters(law: LawFit) -> tuple[Estimate, ...]:
    """Return the parameters of a fitted law."""
    return tuple(
        Estimate(
            name=each.name,
            value=each.value,
            interval=each.interval,
            words=f"{each.meaning}, {each.unit}" if each.unit != "1" else each.meaning,
            at_bound=each.at_bound,
        )
        for each in law.parameters
    )


def correlations(law: LawFit, above: float = HIGH_CORRELATION) -> tuple[Correlation, ...]:
    """Return the pairs of parameters whose correlation over the refits exceeds `above`, the strongest first.

    A parameter that is the same in all refits, as one at its bound may be, has none.
    """
    draws = law.draw_matrix
    varied = [place for place in range(draws.shape[1]) if len(draws) > 2 and np.ptp(draws[:, place]) > 0]
    if len(varied) < 2:
        return ()
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = np.corrcoef(draws[:, varied], rowvar=False)
    names = [law.parameters[place].name for place in varied]
    pairs = [
        Correlation(parameters=(names[one], names[other]), value=float(matrix[one, other]))
        for one, other in zip(*np.triu_indices(len(varied), 1), strict=True)
        if abs(matrix[one, other]) > above
    ]
    return tuple(sorted(pairs, key=lambda pair: -abs(pair.value)))
