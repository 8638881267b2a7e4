"""The scaling laws of training on text that runs out, so that a run sees it more than once: one final class each.

They read `unique_tokens`, the distinct tokens that a run could see (U), beside the tokens that it was trained on (D).
A run has seen min(U, D) of them, so that U above D changes nothing; without the column, or where it is infinite, text
is new to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import ClassVar, final

import numpy as np

from isoloop.fitting.laws.base import (
    IRREDUCIBLE,
    Data,
    Law,
    Parameter,
    amplitude,
    exponent,
    power,
)
from isoloop.fitting.laws.dense import ChinchillaLaw
from isoloop.fitting.laws.iso_depth import IsoDepthLaw
from isoloop.fitting.laws.looped import TrainingLaw

UNIQUE_TOKENS = "unique_tokens"
"""The column of the distinct tokens that a run could see."""
_MUCH_REPEATED = 2.0
"""R* in units of the most repetitions in a table from which on that table hardly determines it."""
_TOKENS = ("tokens", UNIQUE_TOKENS)
_WORTH = Parameter(
    name="R",
    meaning="repetitions that text is worth at most (R*)",
    unit="repetitions",
    lower=1e-3,
    starts=(2.0, 10.0, 50.0),
    logarithmic=True,
)
_WORTH_BY_SIZE = Parameter(
    name="R",
    meaning="R* at N = 1, repetitions that text is worth at most",
    unit="repetitions",
    lower=1e-3,
    starts=(2.0, 10.0, 50.0),
    logarithmic=True,
)
_MEMORY = Parameter(name="k", meaning="exponent of N in R*", unit="1", lower=-2.0, upper=3.0, starts=(0.0, 0.4, 1.0))
_LOOP_WORTH = Parameter(name="phi", meaning="worth of a loop", unit="1", lower=-1.0, upper=3.0, starts=(0.0, 0.5, 1.0))
_FEW_EXPONENTS = (0.15, 0.35, 0.7)


def seen_tokens(data: Data) -> np.ndarray:
    """Return the distinct tokens that a run has seen, min(U, D), of the shape of the tokens."""
    return np.minimum(data["tokens"], data.get(UNIQUE_TOKENS, np.inf))


def repetitions(data: Data) -> np.ndarray:
    """Return how often a run saw its text again, D / U - 1, of the shape of the tokens: 0 for text seen once."""
    return np.asarray(data["tokens"] / seen_tokens(data) - 1)


class EffectiveTokensLaw(Law):
    """The form L = E + A N^-alpha + B D'^-beta, where repeated text counts less and less.

    D' = U + U R* (1 - exp(-(D / U - 1) / R*)) are effective tokens, new ones that would be worth as much as all that
    were seen (Muennighoff et al. 2023, arXiv:2305.16264, eq. 5). R* is a parameter, or where the law has one named k,
    falls with the size as R N^-k. The size N is the column `size`, or for a law with phi, N_once + r^phi N_rec. The
    size that R* goes with is the same, or the column sum `memory`, for the idea that what a model remembers of its
    text is up to the parameters it has and not to how often they run.
    """

    linear_count = 3
    size: ClassVar[str] = ""
    memory: ClassVar[tuple[str, ...]] = ()

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-alpha, D'^-beta."""
        named = self._named(nonlinear)
        size = power(np.exp(self._log_size(named, data)), named["alpha"])
        tokens = power(self._effective_tokens(named, data)[0], named["beta"])
        return np.stack([np.ones_like(tokens), np.broadcast_to(size, tokens.shape), tokens], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`: by the chain rule through log N, log D' and log R*."""
        named = self._named(parameters[..., 3:])
        log_size, (tokens, by_log_worth) = self._log_size(named, data), self._effective_tokens(named, data)
        by_log_size = -named["alpha"] * parameters[..., 1, None] * basis[..., 1]
        by_log_tokens = -named["beta"] * parameters[..., 2, None] * basis[..., 2]
        slopes = {
            "alpha": by_log_size / named["alpha"] * log_size,
            "beta": by_log_tokens / named["beta"] * np.log(tokens),
            "R": by_log_tokens * by_log_worth / named["R"],
        }
        if "k" in named:
            slopes["k"] = -by_log_tokens * by_log_worth * self._log_memory(named, data)
        if "phi" in named:
            once, recurrent = data["params_once"], self._looped_params(named, data)
            by_phi = recurrent / (once + recurrent) * np.log(data["mean_recurrence"])
            through_memory = -named["k"] * by_log_tokens * by_log_worth if "k" in named and not self.memory else 0.0
            slopes["phi"] = (by_log_size + through_memory) * by_phi
        return np.stack(np.broadcast_arrays(*(slopes[name] for name in self.parameter_names[3:])), axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: A and B grow as the units of N and D to alpha and beta, R as that of N to the k."""
        changed, named = np.array(parameters), self._named(np.asarray(parameters)[..., 3:])
        unit = units.get(self.size or "params_once", 1.0)
        changed[..., 1] *= unit ** named["alpha"][..., 0]
        changed[..., 2] *= units.get("tokens", 1.0) ** named["beta"][..., 0]
        if "k" in named:
            unit = units.get(self.memory[0], 1.0) if self.memory else unit
            changed[..., self.parameter_names.index("R")] *= unit ** named["k"][..., 0]
        return changed

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the law that this one extends at k = 0, or else that of new text, with R* beyond any."""
        if self.extends is not None:
            return [np.append(fit(self.extends, data), 0.0)]
        return [np.append(fit(self._fresh(), data), 10 * (1 + repetitions(data).max()))]

    def undetermined(self, parameters: np.ndarray, data: Data) -> list[str]:
        """See `Law.undetermined`: text that no run saw often enough."""
        most = float(repetitions(data).max())
        if most == 0:
            return ["no run saw its text again, so that R* is not determined"]
        worth = float(self.worth(parameters, data).min())
        if worth < _MUCH_REPEATED * most:
            return []
        return [f"no run saw its text more than {most:.3g} times again, which hardly determines an R* of {worth:.3g}"]

    def worth(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """Return R* of each row, the repetitions that its text is worth at most: parameters (..., p) to (..., rows)."""
        named = self._named(np.asarray(parameters)[..., 3:])
        return np.broadcast_to(self._worth(named, data), (*np.shape(parameters)[:-1], len(data["tokens"])))

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        named = {name: float(values[0]) for name, values in self._named(parameters[3:]).items()}
        loops = f"; 8 loops of a block are worth {8 ** named['phi']:.3g} blocks" if "phi" in named else ""
        if "k" not in named:
            one, worth = 1 - np.exp(-1 / named["R"]), named["R"]
            return (
                f"text repeated without end is worth {1 + worth:.3g} times its tokens as new text, and the first "
                f"repetition {100 * worth * one:.3g}% of new text{loops}"
            )
        at = [f"{named['R'] * size ** -named['k']:.3g} at {size:.0e}" for size in (1e8, 1e9)]
        return (
            f"the repetitions that text is worth at most, R*, are {' and '.join(at)} parameters, and "
            f"{10 ** -named['k']:.3g} times as many for ten times the parameters{loops}"
        )

    def _fresh(self) -> Law:
        """Return the law of new text, which this one is where no text repeats."""
        if not self.size:
            return IsoDepthLaw()
        return ChinchillaLaw() if self.size == "params" else TrainingLaw()

    def _named(self, nonlinear: np.ndarray) -> dict[str, np.ndarray]:
        """Return the nonlinear parameters (..., q) by name, (..., 1) each."""
        return {name: nonlinear[..., place, None] for place, name in enumerate(self.parameter_names[3:])}

    def _looped_params(self, named: Mapping[str, np.ndarray], data: Data) -> np.ndarray:
        return np.asarray(np.exp(named["phi"] * np.log(data["mean_recurrence"])) * data["params_recurrent"])

    def _log_size(self, named: Mapping[str, np.ndarray], data: Data) -> np.ndarray:
        if self.size:
            return np.asarray(np.log(data[self.size]))
        return np.asarray(np.log(data["params_once"] + self._looped_params(named, data)))

    def _log_memory(self, named: Mapping[str, np.ndarray], data: Data) -> np.ndarray:
        if self.memory:
            return np.asarray(np.log(sum(data[column] for column in self.memory)))
        return self._log_size(named, data)

    def _worth(self, named: Mapping[str, np.ndarray], data: Data) -> np.ndarray:
        if "k" not in named:
            return named["R"]
        return np.asarray(named["R"] * np.exp(-named["k"] * self._log_memory(named, data)))

    def _effective_tokens(self, named: Mapping[str, np.ndarray], data: Data) -> tuple[np.ndarray, np.ndarray]:
        """Return effective tokens D' (..., rows), and d log D' / d log R*."""
        seen, again = seen_tokens(data), repetitions(data)
        worth = np.maximum(self._worth(named, data), np.finfo(float).tiny)
        share = again / worth
        counted = -worth * np.expm1(-share)  # repetitions as new text
        return seen * (1 + counted), (counted - again * np.exp(-share)) / (1 + counted)


@final
class DenseEffectiveTokensLaw(EffectiveTokensLaw):
    """Chinchilla's law with effective tokens, whose R* is the same for all sizes."""

    name = "effective-tokens"
    formula = "L(N, D, U) = E + A N^-alpha + B D'^-beta, D' = U + U R (1 - exp(-(D/U - 1)/R))"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, without their effective parameters"
    columns = ("params", "tokens", UNIQUE_TOKENS)
    scaled = (("params",), _TOKENS)
    vary = ("params", "tokens")
    parameters = (
        IRREDUCIBLE,
        amplitude("A", "N"),
        amplitude("B", "D'"),
        exponent("alpha", "exponent of N"),
        exponent("beta", "exponent of D'"),
        _WORTH,
    )
    size = "params"


@final
class SizedEffectiveTokensLaw(EffectiveTokensLaw):
    """Chinchilla's law with effective tokens, whose R* falls with the size: large models use their text up sooner."""

    name = "sized-effective-tokens"
    formula = "L(N, D, U) = E + A N^-alpha + B D'^-beta, D' = U + U R* (1 - exp(-(D/U - 1)/R*)), R* = R N^-k"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, with an R* that depends on N"
    columns = DenseEffectiveTokensLaw.columns
    scaled = DenseEffectiveTokensLaw.scaled
    vary = DenseEffectiveTokensLaw.vary
    parameters = (*DenseEffectiveTokensLaw.parameters[:5], _WORTH_BY_SIZE, _MEMORY)
    extends = DenseEffectiveTokensLaw()
    size = "params"


@final
class LoopedEffectiveTokensLaw(EffectiveTokensLaw):
    """The training law with effective tokens. One R* for all loops: overfitting goes with unique parameters."""

    name = "looped-effective-tokens"
    formula = "L(mu, D, U) = E + X N(mu)^-alpha + Y D'^-beta, D' = U + U R (1 - exp(-(D/U - 1)/R))"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, with N(mu) of Parcae (arXiv:2604.12946)"
    columns = ("effective_params", "tokens", UNIQUE_TOKENS)
    scaled = (("effective_params",), _TOKENS)
    vary = ("effective_params", "tokens")
    parameters = (
        IRREDUCIBLE,
        amplitude("X", "N"),
        amplitude("Y", "D'"),
        exponent("alpha", "exponent of N(mu)"),
        exponent("beta", "exponent of D'"),
        _WORTH,
    )
    size = "effective_params"


@final
class LoopedSizedEffectiveTokensLaw(EffectiveTokensLaw):
    """The training law with effective tokens, whose R* falls with N(mu): overfitting goes with effective parameters."""

    name = "looped-sized-effective-tokens"
    formula = "L(mu, D, U) = E + X N(mu)^-alpha + Y D'^-beta, D' = U + U R* (1 - exp(-(D/U - 1)/R*)), R* = R N(mu)^-k"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, with an R* that depends on N(mu)"
    columns = LoopedEffectiveTokensLaw.columns
    scaled = LoopedEffectiveTokensLaw.scaled
    vary = LoopedEffectiveTokensLaw.vary
    parameters = (*LoopedEffectiveTokensLaw.parameters[:5], _WORTH_BY_SIZE, _MEMORY)
    extends = LoopedEffectiveTokensLaw()
    size = "effective_params"


@final
class IsoDepthEffectiveTokensLaw(EffectiveTokensLaw):
    """The iso-depth law with effective tokens, whose R* is the same for all models."""

    name = "iso-depth-effective-tokens"
    formula = "L = E + A (N_once + r^phi N_rec)^-alpha + B D'^-beta, D' = U + U R (1 - exp(-(D/U - 1)/R))"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, with the size of Schwethelm et al. 2026, arXiv:2604.21106"
    columns = ("params_once", "params_recurrent", "mean_recurrence", "tokens", UNIQUE_TOKENS)
    scaled = (("params_once", "params_recurrent"), _TOKENS)
    vary = ("mean_recurrence", "tokens")
    may_be_zero = ("params_recurrent",)
    parameters = (*DenseEffectiveTokensLaw.parameters[:5], _LOOP_WORTH, _WORTH)


@final
class IsoDepthSizedEffectiveTokensLaw(EffectiveTokensLaw):
    """The iso-depth law with effective tokens: overfitting goes with the same size as the loss, loops counted."""

    name = "iso-depth-sized-effective-tokens"
    formula = f"{IsoDepthEffectiveTokensLaw.formula[:-1]}R*), R* = R (N_once + r^phi N_rec)^-k"
    source = IsoDepthEffectiveTokensLaw.source
    columns = IsoDepthEffectiveTokensLaw.columns
    scaled = IsoDepthEffectiveTokensLaw.scaled
    vary = IsoDepthEffectiveTokensLaw.vary
    may_be_zero = IsoDepthEffectiveTokensLaw.may_be_zero
    parameters = (*IsoDepthEffectiveTokensLaw.parameters[:6], _WORTH_BY_SIZE, _MEMORY)
    extends = IsoDepthEffectiveTokensLaw()


@final
class IsoDepthUniqueEffectiveTokensLaw(EffectiveTokensLaw):
    """The iso-depth law with effective tokens: overfitting goes with unique parameters, each counted once."""

    name = "iso-depth-unique-effective-tokens"
    formula = f"{IsoDepthEffectiveTokensLaw.formula[:-1]}R*), R* = R (N_once + N_rec)^-k"
    source = IsoDepthEffectiveTokensLaw.source
    columns = IsoDepthEffectiveTokensLaw.columns
    scaled = IsoDepthEffectiveTokensLaw.scaled
    vary = (*IsoDepthEffectiveTokensLaw.vary, "params_once")
    may_be_zero = IsoDepthEffectiveTokensLaw.may_be_zero
    parameters = IsoDepthSizedEffectiveTokensLaw.parameters
    memory = ("params_once", "params_recurrent")

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: one R* for all models, at k = 0."""
        return [np.append(fit(IsoDepthEffectiveTokensLaw(), data), 0.0)]


class BoundedLossLaw(Law):
    """The form L = E + (L0 - E) h / (1 + h), which stays between the irreducible loss and that of an untrained model.

    h = a N^-alpha + b D^-beta + c N^gamma / min(U, D)^delta, of too few parameters, too little training, and
    overfitting. The last term doesn't know how often text was seen, only how much of it there was. N is the column
    `size`.
    """

    linear_count = 2
    size: ClassVar[str] = ""

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: 1 / (1 + h) for E and h / (1 + h) for L0."""
        whole = 1 + sum(self._terms(nonlinear, data))
        return np.stack([1 / whole, 1 - 1 / whole], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        E, L0, a, b, c = (parameters[..., i, None] for i in range(5))
        few, short, over = self._terms(parameters[..., 2:], data)
        by_h = (L0 - E) * basis[..., 0] ** 2
        log_size, log_tokens, log_seen = (np.log(x) for x in (data[self.size], data["tokens"], seen_tokens(data)))
        slopes = (few / a, short / b, over / c, -few * log_size, -short * log_tokens, over * log_size, -over * log_seen)
        return np.stack([by_h * slope for slope in slopes], axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: a, b and c grow as the units of N and of tokens to their exponents."""
        changed = np.array(parameters)
        size, tokens = units.get(self.size, 1.0), units.get("tokens", 1.0)
        alpha, beta, gamma, delta = (changed[..., i] for i in range(5, 9))
        changed[..., 2] *= size**alpha
        changed[..., 3] *= tokens**beta
        changed[..., 4] *= size**-gamma * tokens**delta
        return changed

    def start_grid(self) -> np.ndarray:
        """See `Law.start_grid`: terms of h from .02 to .3, with two values of each exponent."""
        return np.array(list(product((0.02, 0.1, 0.3), (0.02, 0.1, 0.3), (0.003, 0.03, 0.15), *[(0.3, 0.7)] * 4)))

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        _, most, *_, gamma, delta = parameters
        return (
            f"an untrained model has a loss of {most:.3g}, and ten times the parameters need "
            f"{10 ** (gamma / delta):.3g} times the text to overfit no more"
        )

    def _terms(self, nonlinear: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the three terms of h, (..., rows) each."""
        a, b, c, alpha, beta, gamma, delta = (nonlinear[..., i, None] for i in range(7))
        size = data[self.size]
        over = c * power(size, -gamma) * power(seen_tokens(data), delta)
        return a * power(size, alpha), b * power(data["tokens"], beta), over


def _factor(name: str, of: str) -> Parameter:
    """Return the factor of a term of h in a `BoundedLossLaw`."""
    return Parameter(name=name, meaning=f"the term of h at {of} = 1", unit="1", logarithmic=True)


def _bounded_parameters(size: str) -> tuple[Parameter, ...]:
    """Return the parameters of a `BoundedLossLaw`; `size` is the symbol of N."""
    return (
        IRREDUCIBLE,
        Parameter(name="L0", meaning="loss of an untrained model", unit="nats per token", upper=13.0),
        _factor("a", size),
        _factor("b", "D"),
        _factor("c", f"{size} = U"),
        exponent("alpha", f"exponent of {size}"),
        exponent("beta", "exponent of D"),
        exponent("gamma", f"exponent of {size} in overfitting"),
        exponent("delta", "exponent of U in overfitting"),
    )


@final
class DenseBoundedLossLaw(BoundedLossLaw):
    """The bounded form for dense models."""

    name = "bounded-loss"
    formula = "L(N, D, U) = E + (L0 - E) h/(1 + h), h = a N^-alpha + b D^-beta + c N^gamma U^-delta, U <= D"
    source = "arXiv:2605.09189, where D is T and U is D"
    columns = ("params", "tokens", UNIQUE_TOKENS)
    scaled = (("params",), _TOKENS)
    vary = ("params", "tokens")
    parameters = _bounded_parameters("N")
    size = "params"


@final
class LoopedBoundedLossLaw(BoundedLossLaw):
    """The bounded form in N(mu): overfitting goes with effective parameters."""

    name = "looped-bounded-loss"
    formula = "L(mu, D, U) = E + (L0 - E) h/(1 + h), h = a N(mu)^-alpha + b D^-beta + c N(mu)^gamma U^-delta, U <= D"
    source = "arXiv:2605.09189, with N(mu) of Parcae (arXiv:2604.12946)"
    columns = ("effective_params", "tokens", UNIQUE_TOKENS)
    scaled = (("effective_params",), _TOKENS)
    vary = ("effective_params", "tokens")
    parameters = _bounded_parameters("N(mu)")
    size = "effective_params"
