"""Needs of models of each size on a device: numbers held at inference, and time per token of training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from isoloop.fitting.cost.family import between_sizes
from isoloop.fitting.tables.contract import is_dense

_NEEDS = tuple(
    f"inference_{name}"
    for name in ("weights", "cache_per_token_fixed", "cache_per_token_loop", "activations_per_token")
)
_SHAPE = ["effective_params_fixed", "effective_params_per_loop"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """Numbers that a device holds for one size: weights, cached keys and values and activations, the latter per token.

    The cache has a part per loop, because each loop attends to keys and values of its own.
    """

    weights: float
    cache_fixed: float = 0.0
    cache_per_loop: float = 0.0
    activations: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """Seconds per token of training of one size on the device of its runs: a fixed part, and one per loop of mu.

    `scatter` is the root mean square of the runs' relative deviations from it.
    """

    fixed: float
    per_loop: float
    scatter: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DeviceNeeds:
    """Needs of the models of a run table on a device, by size: `sizes` are parameters, embeddings apart, growing.

    `held` and `times` have an entry per size, and are empty where the table does not tell; then `why_no_time` says why.
    Between sizes, and beyond them, totals are interpolated as powers of the size. Of dense models any number of
    parameters is a size: they hold their parameters, and `flops_per_second` gives their time.
    """

    sizes: tuple[float, ...]
    held: tuple[Held, ...] = ()
    times: tuple[TrainingTime, ...] = ()
    why_no_time: str = ""
    flops_per_second: float | None = None

    @property
    def dense(self) -> bool:
        """True for dense models, whose weights are their parameters."""
        return not self.sizes

    @classmethod
    def of_table(cls, table: pd.DataFrame) -> DeviceNeeds:
        """Return the needs of the models of a checked run table, from what its columns hold."""
        timed, why = _timed_runs(table)
        if is_dense(table):
            rates = timed["flops"] / timed["seconds"] if len(timed) else pd.Series(dtype=float)
            return cls(sizes=(), why_no_time=why, flops_per_second=float(rates.median()) if len(rates) else None)
        sized = set(_SHAPE) <= set(table)
        groups = [group for _, group in table.groupby(_SHAPE)] if sized else [table]
        groups.sort(key=lambda group: float(group[_SHAPE].iloc[0].sum()) if sized else 0.0)
        held = [_held(group) for group in groups]
        times = (
            [_training_time(timed.loc[timed.index.intersection(group.index)]) for group in groups] if not why else []
        )
        if any(each is None for each in times):
            why = "a size needs finished runs of at least two mean recurrences with their seconds"
        return cls(
            sizes=tuple(float(group[_SHAPE].iloc[0].sum()) if sized else float("nan") for group in groups),
            held=tuple(each for each in held if each) if all(held) else (),
            times=() if why else tuple(each for each in times if each),
            why_no_time=why,
        )

    def memory(
        self, params: ArrayLike, recurrence: ArrayLike, *, context: float, batch: float, bytes_per_number: float
    ) -> np.ndarray:
        """Return the bytes of weights, cache and activations at `recurrence` loops T, of the broadcast shape.

        Raises ValueError where the table does not tell.
        """
        size, loops = np.broadcast_arrays(np.asarray(params, dtype=float), np.asarray(recurrence, dtype=float))
        if self.dense:
            return np.asarray(bytes_per_number * size)
        logs = self._log_memory(loops, context=context, batch=batch, bytes_per_number=bytes_per_number)
        return np.exp(between_sizes(self.sizes, size, logs))

    def largest_params(
        self, memory: float, recurrence: ArrayLike, *, context: float, batch: float, bytes_per_number: float
    ) -> np.ndarray:
        """Return the size that takes exactly `memory` bytes at T loops, of the shape of `recurrence`; see `memory`."""
        loops = np.asarray(recurrence, dtype=float)
        if self.dense:
            return np.full(loops.shape, memory / bytes_per_number)
        logs = self._log_memory(loops, context=context, batch=batch, bytes_per_number=bytes_per_number)
        nodes, wanted = np.log(self.sizes), math.log(memory)
        first = np.clip((logs <= wanted).sum(axis=-1) - 1, 0, len(nodes) - 2)
        low, high = (np.take_along_axis(logs, (first + step)[..., None], axis=-1)[..., 0] for step in (0, 1))
        return np.exp(nodes[first] + (wanted - low) / (high - low) * (nodes[first + 1] - nodes[first]))

    def _log_memory(self, loops: np.ndarray, *, context: float, batch: float, bytes_per_number: float) -> np.ndarray:
        """Return the logarithm of the bytes of each size, (..., sizes), at T loops (...)."""
        if not self.held:
            raise ValueError(
                f"a limit of memory needs the columns {', '.join(_NEEDS)}, but it has none; rerun 'isoloop run', "
                "which writes them and trains nothing twice, or add them to a table of your own"
            )
        totals = [
            each.weights + batch * context * (each.cache_fixed + each.cache_per_loop * loops + each.activations)
            for each in self.held
        ]
        return np.log(bytes_per_number * np.stack(totals, axis=-1))

    def seconds_per_token(self, params: ArrayLike, mean_recurrence: ArrayLike) -> np.ndarray:
        """Return seconds per training token on one device, of the arguments' broadcast shape; only with `times`."""
        size, mu = np.broadcast_arrays(np.asarray(params, dtype=float), np.asarray(mean_recurrence, dtype=float))
        assert self.times, self.why_no_time
        seconds = np.stack([each.fixed + each.per_loop * mu for each in self.times], axis=-1)
        return np.exp(between_sizes(self.sizes, size, np.log(seconds)))


def _timed_runs(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the runs whose time was measured, with numbers as `seconds`, and why there are none."""
    if "seconds" not in table:
        return table.iloc[:0], "the table has no column `seconds`"
    if bool(table["simulated"].iloc[0]):
        return table.iloc[:0], "the runs were simulated"
    seconds = pd.to_numeric(table["seconds"], errors="coerce")
    timed = table.assign(seconds=seconds)[(seconds > 0) & np.isfinite(seconds) & (table["status"] == "finished")]
    return timed, "" if len(timed) else "no finished run has its seconds"


def _held(runs: pd.DataFrame) -> Held | None:
    if not set(_NEEDS) <= set(runs):
        return None
    known = runs[list(_NEEDS)].dropna()
    return (
        None if known.empty else Held(**dict(zip(Held.__dataclass_fields__, known.iloc[0].astype(float), strict=True)))
    )


def _training_time(runs: pd.DataFrame) -> TrainingTime | None:
    """Fit seconds per token, linear in mu, by least squares of relative errors, with no negative part."""
    if runs["mean_recurrence"].nunique() < 2:
        return None
    per_token = (runs["seconds"] / runs["tokens"]).to_numpy(dtype=float)
    loops = runs["mean_recurrence"].to_numpy(dtype=float)
    (fixed, per_loop), residual = nnls(np.stack([1 / per_token, loops / per_token], axis=-1), np.ones(len(runs)))
    return TrainingTime(fixed=float(fixed), per_loop=float(per_loop), scatter=float(residual / np.sqrt(len(runs))))
