"""The loss surface of a fit: one function of size, mean recurrence, tokens and loops at test time, with its draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from isoloop.fitting.cost.family import DenseFamily, ModelFamily
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.laws.base import LARGEST_RECURRENCE, Law
from isoloop.fitting.selection.mixture import LawMixture
from isoloop.fitting.surface.search import minimise_on_box

Range = tuple[float, float]
PARAMS_BEYOND = 16.0
"""Sizes are searched up to this factor below and above the measured ones."""
_ZOOMS = 22
"""Zooms of the search for a best model, which find its place to seven digits."""


@dataclass(frozen=True, kw_only=True)
class SurfaceOptimum:
    """The best models by several functions at once: arrays of one shape, `loss` in nats per token at T = mu.

    `at_bound` names the axes whose best value is an end of the search, by an array of flags each.
    """

    params: np.ndarray
    mean_recurrence: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    at_bound: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class LossSurface:
    """The loss of any model of a family: the mixture of laws after training, and what loops at test time change.

    `loops_law` is the joint law of test-time loops (its loss given that at T = mu), None where no run was evaluated at
    other T. `params` and `mean_recurrence` are the measured ranges, None for an axis that the models don't have: one
    size, or no loops. `tokens`, `flops` and `recurrence` (T) are measured ranges, too.
    """

    family: ModelFamily | DenseFamily
    laws: LawMixture
    loops_law: LawFit | None
    params: Range | None
    mean_recurrence: Range | None
    tokens: Range
    flops: Range
    recurrence: Range | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """Columns in which models of the surface may differ, tokens last."""
        axes = {"params": self.params, "mean_recurrence": self.mean_recurrence}
        return (*(name for name, measured in axes.items() if measured is not None), "tokens")

    @property
    def own_params(self) -> float:
        """The parameters of the only size; NaN where the table does not tell, or where sizes differ."""
        return self.family.sizes[0] if self.params is None and len(self.family.sizes) == 1 else float("nan")

    @property
    def draws(self) -> int:
        """Number of refits behind an interval."""
        return sum(count for _, count in self.laws.draws_by_law)

    def loss(
        self,
        params: ArrayLike,
        mean_recurrence: ArrayLike,
        tokens: ArrayLike,
        *,
        recurrence: ArrayLike | None = None,
        extra: Mapping[str, ArrayLike] | None = None,
    ) -> np.ndarray:
        """Return the loss in nats per token, of the arguments' broadcast shape, at T = mu or at `recurrence` loops.

        `extra` are further columns that a law reads, such as `unique_tokens`. Raises ValueError for a `recurrence`
        without a law of test-time loops.
        """
        columns = self.family.columns(params, mean_recurrence, tokens, extra)
        # Laws take rows, so a single model is a row of its own.
        rows = {name: np.atleast_1d(values) for name, values in columns.items()}
        loss = self.laws.loss(rows)
        if recurrence is not None:
            law = self._required_loops_law()
            loss = self._with_loops(law.form, law.vector, rows, loss, recurrence)
        return loss.reshape(
            np.broadcast_shapes(columns["tokens"].shape, () if recurrence is None else np.shape(recurrence))
        )

    def loss_draws(
        self,
        params: ArrayLike,
        mean_recurrence: ArrayLike,
        tokens: ArrayLike,
        *,
        recurrence: ArrayLike | None = None,
        extra: Mapping[str, ArrayLike] | None = None,
    ) -> np.ndarray:
        """Return the losses by each refit, (draws, rows), of models given as rows (rows,); see `loss`.

        They are the laws' own values, without the noise of one run, widened about the laws' own as intervals are.
        """
        columns = self.family.columns(params, mean_recurrence, tokens, extra)
        drawn = self.laws.loss_draws(columns, measured=False)
        if recurrence is None or not len(drawn):
            return drawn
        law = self._required_loops_law()
        vectors = law.draw_matrix if len(law.draws) else law.vector[None]
        vectors = vectors[np.arange(len(drawn)) % len(vectors)]
        return self._with_loops(law.form, vectors, columns, drawn, recurrence)

    def best(
        self,
        tokens_for: Callable[[np.ndarray, np.ndarray], np.ndarray],
        *,
        allowed: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None,
        params: Range | None = None,
        mean_recurrence: Range | None = None,
        extra: Mapping[str, ArrayLike] | None = None,
        zooms: int = _ZOOMS,
    ) -> SurfaceOptimum:
        """Return the model of least loss at T = mu where a budget leaves `tokens_for(params, mu)` tokens: arrays ().

        Args:
            tokens_for: tokens that a limit leaves, such as `family.tokens_for` at a budget; none where they are not
                positive.
            allowed: flags of models (params, mu, tokens) that limits allow; all by default.
            params: range of sizes that is searched, by default 16 times beyond the measured one on both sides; with two
                equal ends, no other size is.
            mean_recurrence: range of loops that is searched, by default 1 to 1024, or to those measured.
            extra: see `loss`.
            zooms: see `minimise_on_box`; fewer find the least loss sooner, and its place less exactly.

        Raises:
            ValueError: no model is allowed.
        """
        return self._best(self.laws.loss, None, tokens_for, allowed, params, mean_recurrence, extra, zooms)

    def best_draws(
        self,
        tokens_for: Callable[[np.ndarray, np.ndarray], np.ndarray],
        *,
        allowed: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None,
        params: Range | None = None,
        mean_recurrence: Range | None = None,
        extra: Mapping[str, ArrayLike] | None = None,
        zooms: int = _ZOOMS,
    ) -> SurfaceOptimum | None:
        """Return the best model by each refit, arrays (draws,), None without draws; see `best`.

        Values are widened about those of the laws they are refits of, as intervals are.
        """
        found = []
        for law, count in self.laws.draws_by_law:
            vectors = np.concatenate([law.vector[None], law.draw_matrix[:count]])
            optimum = self._best(law.form.loss, vectors, tokens_for, allowed, params, mean_recurrence, extra, zooms)
            found.append(_widened(optimum, law.widening))
        if not found:
            return None
        return SurfaceOptimum(
            **{
                name: np.concatenate([getattr(each, name) for each in found])
                for name in ("params", "mean_recurrence", "tokens", "loss")
            },
            at_bound={name: np.concatenate([each.at_bound[name] for each in found]) for name in found[0].at_bound},
        )

    def best_for(
        self,
        flops: float,
        *,
        params: Range | None = None,
        mean_recurrence: Range | None = None,
        zooms: int = _ZOOMS,
    ) -> tuple[SurfaceOptimum, SurfaceOptimum | None]:
        """Return the best model that spends `flops` in training, and those by each refit; see `best`."""
        tokens_for = partial(self.family.tokens_for, flops)
        return (
            self.best(tokens_for, params=params, mean_recurrence=mean_recurrence, zooms=zooms),
            self.best_draws(tokens_for, params=params, mean_recurrence=mean_recurrence, zooms=zooms),
        )

    def search_range(self, axis: str) -> Range | None:
        """Return the range of an axis, `params` or `mean_recurrence`, that is searched by default; None without it."""
        if axis == "params":
            return None if self.params is None else (self.params[0] / PARAMS_BEYOND, self.params[1] * PARAMS_BEYOND)
        measured = self.mean_recurrence
        return None if measured is None else (min(1.0, measured[0]), max(LARGEST_RECURRENCE, measured[1]))

    def _best(
        self,
        loss: Callable[..., np.ndarray],
        vectors: np.ndarray | None,
        tokens_for: Callable[[np.ndarray, np.ndarray], np.ndarray],
        allowed: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None,
        params: Range | None,
        mean_recurrence: Range | None,
        extra: Mapping[str, ArrayLike] | None,
        zooms: int,
    ) -> SurfaceOptimum:
        # The axes that are searched, in logs
        ranges = {
            "params": params or self.search_range("params"),
            "mean_recurrence": mean_recurrence or self.search_range("mean_recurrence"),
        }
        spans = {name: span for name, span in ranges.items() if span is not None}
        fixed = {name: span[0] for name, span in spans.items() if span[0] == span[1]}
        searched = [name for name in spans if name not in fixed]
        bounds = [(float(np.log(spans[name][0])), float(np.log(spans[name][1]))) for name in searched]

        def model(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            values = dict(zip(searched, np.moveaxis(np.exp(logs), -1, 0), strict=True))
            given = {"params": self.own_params, "mean_recurrence": 1.0} | fixed
            of_shape = {name: np.full(logs.shape[:-1], value) for name, value in given.items()} | values
            return of_shape["params"], of_shape["mean_recurrence"]

        def loss_at(logs: np.ndarray) -> np.ndarray:
            size, loops = model(logs)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                tokens = np.asarray(tokens_for(size, loops), dtype=float)
            usable = np.isfinite(tokens) & (tokens > 0)
            if allowed is not None:
                usable &= allowed(size, loops, tokens)
            columns = self.family.columns(size, loops, np.where(usable, tokens, 1.0), extra)
            losses = loss(columns) if vectors is None else loss(vectors, columns)
            return np.where(usable, losses, np.inf)

        # The search, and the model that it found
        logs, least = minimise_on_box(loss_at, bounds, zooms=zooms)
        if not np.isfinite(least).all():
            raise ValueError("a best model needs one model that the limits allow, but they allow none; loosen one")
        size, loops = model(logs)
        ends = np.array(bounds).reshape(-1, 2)
        at_end = np.isclose(logs, ends[:, 0], atol=1e-9) | np.isclose(logs, ends[:, 1], atol=1e-9)
        return SurfaceOptimum(
            params=size,
            mean_recurrence=loops,
            tokens=np.asarray(tokens_for(size, loops), dtype=float),
            loss=least,
            at_bound={name: at_end[..., place] for place, name in enumerate(searched)},
        )

    def _required_loops_law(self) -> LawFit:
        if self.loops_law is None:
            raise ValueError(
                "a loss at other loops than the mean recurrence needs the law of test-time loops, but no run was "
                "evaluated at several T; fill the columns loss_T1, loss_T2 and so on, or leave the recurrence out"
            )
        return self.loops_law

    @staticmethod
    def _with_loops(
        form: Law, vectors: np.ndarray, columns: Mapping[str, np.ndarray], at_mean: np.ndarray, recurrence: ArrayLike
    ) -> np.ndarray:
        data = {**columns, "recurrence": np.asarray(recurrence, dtype=float), "loss_at_mean": at_mean}
        return form.loss(vectors, data)


def _widened(optimum: SurfaceOptimum, widening: float) -> SurfaceOptimum:
    """Return the optima of the refits, the first being the law's own, widened about that one."""

    def about_own(values: np.ndarray) -> np.ndarray:
        return np.asarray(values[0] * (values[1:] / values[0]) ** widening)

    return SurfaceOptimum(
        params=about_own(optimum.params),
        mean_recurrence=about_own(optimum.mean_recurrence),
        tokens=about_own(optimum.tokens),
        loss=about_own(optimum.loss),
        at_bound={name: flags[1:] for name, flags in optimum.at_bound.items()},
    )
