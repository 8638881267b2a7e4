"""Knowledge before the next runs: plausible laws with the information of all runs so far, and the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from isoloop.fitting.cost import Cost
from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.design.information import Plausible
from isoloop.fitting.design.models import Models, models_of
from isoloop.fitting.design.targets import Target
from isoloop.fitting.estimation.objective import HUBER
from isoloop.fitting.laws.base import Data, Law
from isoloop.fitting.laws.registry import law_named, richer_law
from isoloop.fitting.selection.mixture import LawMixture
from isoloop.fitting.simulate import PUBLISHED_TRUTH

ASSUMED_NOISE = 1e-3
"""Relative noise of one run's loss where no run shows it; seeds of real runs differ by .1 to .2%."""
_PUBLISHED_OVER_SIZES = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28, "phi": 0.46}
"""Parameters of L(N, D) as Hoffmann et al. 2022, arXiv:2203.15556, give them, and phi of arXiv:2604.21106."""
_LEAST_NOISE = 1e-9
_PRIOR_SD = 0.5
"""Standard deviation of the logarithm of each parameter where nothing was run: a factor of 2.7 either way."""
_RIDGE_SD = 2.0
"""The same in the information that designs count on, wide enough that runs must determine every parameter."""
_LEAST_WEIGHT = 0.25
"""Share that the other laws together have in a design at least, so that those which fit a little less well today are
provided for, too."""
_REFUTED = 1e-3
"""Weight below which a law that extends no other is refuted by the runs, and has no share in a design."""
_VECTORS = 24
"""Parameter vectors of each law."""
_FEWEST_DOF = 4
"""Degrees of freedom of repeated cells from which their scatter is taken for the noise."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Relative standard deviation of one run's loss, at any budget, and where it is known from."""

    level: float
    source: str

    def __post_init__(self) -> None:
        if not (self.level > _LEAST_NOISE and np.isfinite(self.level)):
            raise ValueError(
                f"a design needs the noise of a run's loss, but by {self.source} it is {self.level:.3g} of the loss; "
                "give --noise, such as 0.001"
            )

    @classmethod
    def of_runs(cls, laws: LawMixture, data: Data) -> Noise:
        """Return the scatter of seeds where a cell was run several times, else that about the best law."""
        level, dof = repeated_noise(data)
        if dof >= _FEWEST_DOF:
            return cls(level=level, source=f"seeds of the same cell, {dof} degrees of freedom")
        best = laws.best
        relative = best.noise if best.on == "log loss" else best.noise / float(np.exp(np.log(data["loss"]).mean()))
        return cls(
            level=relative, source=f"the scatter about the {best.form.name} law, {best.noise_dof} degrees of freedom"
        )

    def in_fits(self, delta: float | None) -> float:
        """Return the noise that a fit by Huber's function with this `delta` makes of it.

        Huber's function uses less of normal noise beyond delta: its variance is that of Huber 1964 (1.0 for squares).
        """
        if delta is None or not np.isfinite(delta):
            return self.level
        k = delta / self.level
        within = float(special.erf(k / np.sqrt(2)))
        squares = within - np.sqrt(2 / np.pi) * k * np.exp(-(k**2) / 2) + k**2 * (1 - within)
        return self.level * float(np.sqrt(squares)) / within


def repeated_noise(data: Data) -> tuple[float, int]:
    """Return the standard deviation of log loss among runs of the same model and tokens, and its degrees of freedom."""
    model = ("mean_recurrence", "params", "tokens", "unique_tokens")
    columns = [np.round(np.log(data[name]), 2) for name in model if name in data]
    _, cell = np.unique(np.stack(columns, axis=-1), axis=0, return_inverse=True)
    logs, counts = np.log(data["loss"]), np.bincount(cell.ravel())
    residuals = logs - (np.bincount(cell.ravel(), weights=logs) / counts)[cell.ravel()]
    dof = len(logs) - len(counts)
    return (float(np.sqrt(residuals @ residuals / dof)), dof) if dof else (float("nan"), 0)


def _spread_weights(weights: np.ndarray) -> np.ndarray:
    """Return weights (laws,) that sum to 1, those beside the largest to a quarter at least, none of them nearly 0."""
    if len(weights) == 1:
        return np.ones(1)
    spread = weights / weights.sum()
    others = np.arange(len(weights)) != np.argmax(weights)
    share = max(_LEAST_WEIGHT, float(spread[others].sum()))
    floored = np.maximum(spread[others], _LEAST_WEIGHT / others.sum())
    spread[others], spread[~others] = share * floored / floored.sum(), 1 - share
    return spread


@dataclass(frozen=True, kw_only=True)
class Belief:
    """Laws with plausible parameters and the information about them, the noise, and the models to choose among.

    `effective_noise` is the noise as the fit sees it. Exponents are taken over the range `flops`.
    """

    parts: tuple[Plausible, ...]
    noise: Noise
    effective_noise: float
    models: Models
    flops: tuple[float, float]

    @classmethod
    def of_runs(
        cls,
        laws: LawMixture,
        data: Data,
        cost: Cost | ModelFamily,
        columns: Data,
        *,
        flops: tuple[float, float],
        noise: Noise | None = None,
    ) -> Belief:
        """Return what fits to `data` leave plausible: each law's estimate and refits, with the runs' information.

        `columns` are those of the candidates. Raises ValueError where the noise is not known.
        """
        noise = noise or Noise.of_runs(laws, data)
        level = noise.in_fits(laws.best.delta)
        kept = [
            (law, weight)
            for law, weight in zip(laws.laws, laws.weights, strict=True)
            if law is laws.laws[0] or law.form.extends is not None or weight >= _REFUTED
        ]
        weights = _spread_weights(np.array([weight for _, weight in kept]))
        parts = []
        for (law, _), weight in zip(kept, weights, strict=True):
            vectors = np.vstack([law.vector, law.draw_matrix[: _VECTORS - 1]])
            part = Plausible.of(law.form, vectors, columns, sd=_RIDGE_SD, weight=float(weight))
            parts.append(part.with_runs(data, np.full(len(data["loss"]), level)))
        return cls(
            parts=tuple(parts),
            noise=noise,
            effective_noise=level,
            models=models_of(cost, columns),
            flops=flops,
        )

    @classmethod
    def of_published(
        cls,
        cost: Cost | ModelFamily,
        columns: Data,
        *,
        flops: tuple[float, float],
        noise: Noise | None = None,
        seed: int = 0,
    ) -> Belief:
        """Return what is plausible before any run: the published training law, or over several sizes Chinchilla's with
        the published worth of a loop, and the law that extends it. Parameters are known within a factor of 2.7 only.
        """
        law = law_named("iso-depth" if isinstance(cost, ModelFamily) else "training")
        published = np.array([getattr(PUBLISHED_TRUTH, name) for name in law_named("training").parameter_names])
        if isinstance(cost, ModelFamily):
            published = np.array([_PUBLISHED_OVER_SIZES[name] for name in law.parameter_names])
        return cls.of_prior(law, published, cost, columns, flops=flops, noise=noise, seed=seed)

    @classmethod
    def of_prior(
        cls,
        law: Law,
        parameters: np.ndarray,
        cost: Cost | ModelFamily,
        columns: Data,
        *,
        flops: tuple[float, float],
        noise: Noise | None = None,
        seed: int = 0,
    ) -> Belief:
        """Return what is plausible about `parameters` (p,) of a law; the one that extends it has 1 for one more."""
        rng = np.random.default_rng(seed)
        noise = noise or Noise(level=ASSUMED_NOISE, source="assumption, since nothing was run")
        richer = richer_law(law)
        forms = [(law, parameters)] + ([(richer, np.append(parameters, 1.0))] if richer else [])
        parts = []
        for form, middle in forms:
            part = Plausible.of(form, np.tile(middle, (_VECTORS, 1)), columns, sd=_RIDGE_SD, weight=1 / len(forms))
            drawn = part.vectors * np.exp(_PRIOR_SD * rng.standard_normal(part.vectors.shape))
            parts.append(replace(part, vectors=drawn))
        return cls(
            parts=tuple(parts),
            noise=noise,
            effective_noise=noise.in_fits(HUBER.delta),
            models=models_of(cost, columns),
            flops=flops,
        )

    def targets(self, targets: Sequence[Target]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the values (targets, s) of each part and their derivatives (targets, s, k, p).

        Components that a target lacks are 0, as are all of a parameter that the law of the part does not have.
        """
        found = []
        for part in self.parts:
            components = len(self.models.axes)
            values = np.zeros((len(targets), len(part.vectors)))
            slopes = np.zeros((len(targets), len(part.vectors), components, part.vectors.shape[1]))
            for place, target in enumerate(targets):
                if target.is_of(part.law):
                    values[place], by = part.target(target, self.models, self.flops)
                    slopes[place, :, : by.shape[1]] = by
            found.append((values, slopes))
        return found

    def gain_per_flop(self, flops: float) -> float:
        """Return by how many nats the best model's loss falls per FLOP more, at `flops`."""
        low, high = (
            sum(float(part.shares @ np.exp(part.best(self.models, budget).loss)) for part in self.parts)
            for budget in (flops, 1.1 * flops)
        )
        return (low - high) / (0.1 * flops)
