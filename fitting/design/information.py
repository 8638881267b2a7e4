"""Fisher information of runs about the parameters of a law, about the vectors that are plausible so far."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from isoloop.fitting.cost import Cost
from isoloop.fitting.design.targets import EXPONENTS, Target
from isoloop.fitting.estimation.levenberg_marquardt import Problem
from isoloop.fitting.estimation.objective import SQUARED
from isoloop.fitting.laws.base import Data, Law, best_split

_STEP = 1e-2
"""Step of derivatives, in the logarithm of a parameter or of the value on the axis."""
_SMALLEST = 0.05
"""A parameter counts as this share of its typical value at least, since one of 0 could not change by any factor."""
_SEARCH = {"mean_recurrence": (0.02, 1e5), "params": (1e3, 1e15)}
"""Values on the axis between which best models are searched for, wide enough that none sits at an end."""


@dataclass(frozen=True, kw_only=True)
class SmoothCost(Cost):
    """FLOPs per token of looped models as a line in the mean recurrence, without the kinks of whole loops.

    A best model that sits at a kink does not move with the parameters of a law, so that its derivative would be 0.
    """

    axis = "mean_recurrence"

    flops_per_token_fixed: float
    flops_per_token_loop: float
    effective_params_fixed: float | None = None
    effective_params_per_loop: float | None = None
    unique_tokens: float | None = None

    @property
    def formula(self) -> str:
        """See `Cost.formula`."""
        return f"{self.flops_per_token_fixed:.4g} + {self.flops_per_token_loop:.4g} mu"

    def flops_per_token(self, values: ArrayLike) -> np.ndarray:
        """See `Cost.flops_per_token`."""
        return np.asarray(self.flops_per_token_fixed + self.flops_per_token_loop * np.asarray(values, dtype=float))


def smooth_cost(cost: Cost, values: np.ndarray) -> Cost:
    """Return a cost without kinks near `cost` at `values` on its axis: a line, by least squares of the ratio."""
    if cost.axis != "mean_recurrence":
        return cost
    exact = cost.flops_per_token(values)
    line, _ = nnls(np.stack([1 / exact, values / exact], axis=-1), np.ones(len(values)))
    return SmoothCost(
        flops_per_token_fixed=float(line[0]),
        flops_per_token_loop=float(line[1]),
        effective_params_fixed=cost.effective_params_fixed,
        effective_params_per_loop=cost.effective_params_per_loop,
        unique_tokens=cost.unique_tokens,
    )


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best model for `flops` by each of s parameter vectors, with derivatives by the logarithms of parameters.

    `at` (s,) is the logarithm of the value on the axis, `tokens` and `loss` (s,) those of the tokens and of the loss;
    `by_at`, `by_tokens` and `by_loss` (s, p) their derivatives. `curvature` (s,) is half the second derivative of the
    loss (nats) by `at` along the budget: what the square of a wrong choice costs.
    """

    at: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    by_at: np.ndarray
    by_tokens: np.ndarray
    by_loss: np.ndarray
    curvature: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Plausible:
    """Parameter vectors of one law that are plausible so far, and what is known about each: its information matrix.

    `vectors` (s, p) are for the columns of `problem`, which are divided by units. `information` (s, p, p) is the
    inverse of the covariance of their logarithms that runs about each of them leave. `weight` is the share of the law
    among several.
    """

    law: Law
    problem: Problem
    vectors: np.ndarray
    information: np.ndarray
    weight: float

    @classmethod
    def of(cls, law: Law, vectors: np.ndarray, columns: Data, *, sd: float, weight: float = 1.0) -> Plausible:
        """Return vectors (s, p), for columns in their own units, before any run counts.

        The logarithm of each parameter is known with the standard deviation `sd`, where amplitudes are the terms in
        the middle of `columns`, those of the candidates.
        """
        problem = Problem.of(law, {**_with_text(columns), "loss": np.ones(len(columns["tokens"]))}, SQUARED)
        prior = np.broadcast_to(np.eye(len(law.parameters)) / sd**2, (len(vectors), *2 * (len(law.parameters),)))
        return cls(law=law, problem=problem, vectors=problem.scaled(vectors), information=prior, weight=weight)

    @property
    def shares(self) -> np.ndarray:
        """The weight of each vector: (s,)."""
        return np.full(len(self.vectors), self.weight / len(self.vectors))

    def slopes(self, data: Data) -> np.ndarray:
        """Return the derivative of log loss by the logarithm of each parameter: (s, rows, p).

        `data` are columns of shape (rows,), or (s, rows).
        """
        loss, slopes = self._loss_and_gradient(data)
        return np.asarray(slopes / loss[..., None])

    def with_runs(self, data: Data, noise: np.ndarray) -> Plausible:
        """Return the vectors with the information of runs whose log losses have the standard deviations `noise`."""
        scaled = self.slopes(data) / noise[:, None]
        return replace(self, information=self.information + np.einsum("sri,srj->sij", scaled, scaled))

    def best(self, cost: Cost, flops: float) -> Best:
        """Return the best model for `flops` by each vector, where `cost` has no kinks.

        The derivative of its loss is that of the law there, and that of its place follows from the loss's second
        derivatives (the implicit function theorem).
        """
        optimum = best_split(
            lambda data: self.law.loss(self.vectors, self._scaled(data)), cost, flops, _SEARCH[cost.axis]
        )
        at = np.log(optimum.at)
        around = np.exp(at[:, None] + _STEP * np.array([-1.0, 0.0, 1.0]))
        loss, slopes = self._loss_and_gradient(cost.columns(flops, around))
        second = np.maximum((loss[:, 0] - 2 * loss[:, 1] + loss[:, 2]) / _STEP**2, 1e-12)
        by_at = -(slopes[:, 2] - slopes[:, 0]) / (2 * _STEP) / second[:, None]
        tokens = np.log(cost.tokens_for(flops, around))
        by_tokens = by_at * ((tokens[:, 2] - tokens[:, 0]) / (2 * _STEP))[:, None]
        return Best(
            at=at,
            tokens=tokens[:, 1],
            loss=np.log(loss[:, 1]),
            by_at=by_at,
            by_tokens=by_tokens,
            by_loss=slopes[:, 1] / loss[:, 1, None],
            curvature=second / 2,
        )

    def target(self, target: Target, cost: Cost, flops: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Return a target by each vector (s,), and its derivative by the logarithm of each parameter (s, p).

        Targets are logarithms, except exponents, which are taken over the range `flops`, and parameters that may be
        negative. That of a decision is log mu or log N times the root of what its square costs, so that its variance
        is in nats.
        """
        if target.name in EXPONENTS:
            low, high = (self.target(Target(name=EXPONENTS[target.name], flops=end), cost, flops) for end in flops)
            octaves = np.log(flops[1] / flops[0])
            return (high[0] - low[0]) / octaves, (high[1] - low[1]) / octaves
        if target.is_parameter:
            return self._parameter(target.name)
        assert target.flops is not None, target
        best = self.best(cost, target.flops)
        if target.name == "decision":
            root = np.sqrt(best.curvature)
            return root * best.at, root[:, None] * best.by_at
        name = target.name if target.name in ("tokens", "loss") else "at"
        return getattr(best, name), getattr(best, f"by_{name}")

    def _parameter(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        place = self.law.parameter_names.index(name)
        logarithmic = Target(name=name).is_ratio(self.law)

        def value(vectors: np.ndarray) -> np.ndarray:
            values = self.problem.unscaled(vectors)[..., place]
            return np.log(np.maximum(values, 1e-300)) if logarithmic else values

        changes = _STEP * np.eye(self.vectors.shape[1])[:, None, :] * self._steps
        slopes = (value(self.vectors + changes) - value(self.vectors - changes)) / (2 * _STEP)
        return value(self.vectors), slopes.T

    @property
    def _steps(self) -> np.ndarray:
        """The change of each parameter (s, p) that counts as 1 in its logarithm."""
        sizes = np.abs(self.vectors)
        return np.maximum(sizes, _SMALLEST * np.median(sizes, axis=0) + 1e-300)

    def _scaled(self, data: Data) -> Data:
        columns = _with_text(data)
        return {name: columns[name] / self.problem.units.get(name, 1.0) for name in self.law.columns}

    def _loss_and_gradient(self, data: Data) -> tuple[np.ndarray, np.ndarray]:
        loss, slopes = self.law.loss_and_gradient(self.vectors, self._scaled(data))
        return loss, slopes * self._steps[:, None, :]


def _with_text(data: Data) -> Data:
    """Return the columns with those of the text: new text, of as many tokens as are trained, where none is named."""
    return data if "unique_tokens" in data else {**data, "unique_tokens": data["tokens"]}
