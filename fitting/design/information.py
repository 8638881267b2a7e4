"""Fisher information of runs about the parameters of a law, about the vectors that are plausible so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from isoloop.fitting.design.models import Models
from isoloop.fitting.design.targets import EXPONENTS, TARGET_AXES, Target
from isoloop.fitting.estimation.levenberg_marquardt import Problem
from isoloop.fitting.estimation.objective import SQUARED
from isoloop.fitting.laws.base import Data, Law

_STEP = 1e-2
"""Step of derivatives by the logarithm of a parameter."""
_FLAT = 1e-12
"""Second derivative of a loss, nats, that counts as none."""
_SMALLEST = 0.05
"""A parameter counts as this share of its typical value at least, since one of 0 could not change by any factor."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best model for `flops` by each of s parameter vectors, with derivatives by the logarithms of parameters.

    `at` (s, d) are the logarithms of the values on the d axes, `tokens` and `loss` (s,) those of the tokens and of the
    loss; `by_at` (s, d, p), `by_tokens` and `by_loss` (s, p) their derivatives. `curvature` (s, d, d) is half the
    second derivative of the loss (nats) by `at` along the budget: a wrong choice costs its product with the error from
    both sides. A value at the end of the search does not move.
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

    def best(self, models: Models, flops: float) -> Best:
        """Return the best model for `flops` by each vector.

        The derivative of its loss is that of the law there, and that of its place follows from the loss's second
        derivatives (the implicit function theorem).
        """
        at, at_end = models.best(lambda data: self.law.loss(self.vectors, self._scaled(data)), flops)
        # The loss about it, at every combination of a step back, none, and a step on
        axes = len(models.axes)
        steps = models.step * np.array(list(product((-1.0, 0.0, 1.0), repeat=axes)))
        columns = models.columns(flops, at[:, None, :] + steps)
        loss, slopes = self._loss_and_gradient(columns)
        second = _second_differences(loss, axes) / models.step**2
        moving = _central_differences(slopes, axes) / (2 * models.step)
        by_tokens = _central_differences(np.log(columns["tokens"]), axes) / (2 * models.step)
        # Values at an end of the search stay there.
        free = ~at_end
        second = second * free[:, :, None] * free[:, None, :] + np.eye(axes) * at_end[:, :, None]
        roots, directions = np.linalg.eigh(second)
        second = np.einsum("sij,sj,skj->sik", directions, np.maximum(roots, _FLAT), directions)
        by_at = -np.linalg.solve(second, moving * free[..., None])
        own = len(steps) // 2
        return Best(
            at=at,
            tokens=np.log(columns["tokens"][:, own]),
            loss=np.log(loss[:, own]),
            by_at=by_at,
            by_tokens=np.einsum("sd,sdp->sp", by_tokens, by_at),
            by_loss=slopes[:, own] / loss[:, own, None],
            curvature=second / 2,
        )

    def target(self, target: Target, models: Models, flops: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Return a target by each vector (s,), and its derivative by the logarithm of each parameter (s, k, p).

        Targets are logarithms, except exponents, which are taken over the range `flops`, and parameters that may be
        negative. They have one component, k = 1, except a decision, which has one per axis: the place of the best model
        in units in which an error of 1 costs 1 nat, so that the sum of its variances is in nats. It has no value.
        """
        if target.name in EXPONENTS:
            low, high = (self.target(Target(name=EXPONENTS[target.name], flops=end), models, flops) for end in flops)
            octaves = np.log(flops[1] / flops[0])
            return (high[0] - low[0]) / octaves, (high[1] - low[1]) / octaves
        if target.is_parameter:
            value, slopes = self._parameter(target.name)
            return value, slopes[:, None]
        assert target.flops is not None, target
        best = self.best(models, target.flops)
        if target.name == "decision":
            root = np.linalg.cholesky(best.curvature)
            return np.zeros(len(self.vectors)), np.einsum("sij,sip->sjp", root, best.by_at)
        if target.name in TARGET_AXES:
            place = models.axes.index(TARGET_AXES[target.name])
            return best.at[:, place], best.by_at[:, place, None]
        return getattr(best, target.name), getattr(best, f"by_{target.name}")[:, None]

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


def _central_differences(values: np.ndarray, axes: int) -> np.ndarray:
    """Return what `values` (s, 3^axes, ...) gain along each axis from a step back to a step on: (s, axes, ...)."""
    gains = [values[:, _place(axes, {axis: 1})] - values[:, _place(axes, {axis: -1})] for axis in range(axes)]
    return np.stack(gains, axis=1)


def _second_differences(values: np.ndarray, axes: int) -> np.ndarray:
    """Return the second differences of `values` (s, 3^axes) about their middle: (s, axes, axes)."""
    found = np.empty((len(values), axes, axes))
    for i in range(axes):
        ends = values[:, _place(axes, {i: 1})] + values[:, _place(axes, {i: -1})]
        found[:, i, i] = ends - 2 * values[:, _place(axes, {})]
        for j in range(i):
            signs = ((1, 1), (-1, -1), (1, -1), (-1, 1))
            corners = [a * b * values[:, _place(axes, {i: a, j: b})] for a, b in signs]
            found[:, i, j] = found[:, j, i] = np.sum(corners, axis=0) / 4
    return found


def _place(axes: int, moves: dict[int, int]) -> int:
    """Return the place, among all combinations of steps along the axes, of the one with these `moves`."""
    return sum((1 + moves.get(axis, 0)) * 3 ** (axes - 1 - axis) for axis in range(axes))
