"""CPU time of one fit and of 1,000 refits beside other fitters, with a check that they reach the same minima."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.fitting.brute import brute_grid
from benchmarks.fitting.cpu_time import cpu_time
from benchmarks.fitting.peers import hoffmann, missing, scipy_many_starts, warm_lbfgs, with_chinchilla
from benchmarks.fitting.problem import NAMES, PeerFit, objective
from benchmarks.fitting.results import table
from benchmarks.fitting.tables import table_of_123
from isoloop.fitting import (
    PUBLISHED_TRUTH,
    ChinchillaLaw,
    IsoDepthLaw,
    JointTestTimeLaw,
    Law,
    SixParameterLaw,
    TestTimeLaw,
    TrainingLaw,
    UnifiedLaw,
    bootstrap,
    point_estimate,
    simulate_table,
)
from isoloop.fitting.estimation.bootstrap import refit, resampled_counts
from isoloop.fitting.laws.base import Data
from isoloop.fitting.tables.runs import law_data, test_time_law_data

_SAME = 1e-4
"""Relative difference of objectives below which a refit is at the minimum."""
_MANY_STARTS, _CAREFUL_STARTS, _HOFFMANN_STARTS = 20, 60, 450
_SLOW_ONES = 2
"""Resamples on which slow peers are timed."""
_REPEATS, _FITS = 5, 20
_RUN_NOISE = 1e-3
_WANTED_REFITS, _WANTED_FIT = "at most 0.4", "10"


@dataclass(frozen=True, kw_only=True)
class Refits:
    """Result on the first resamples: CPU seconds, parameters (resamples, 5) and objectives (resamples,)."""

    way: str
    seconds: float
    shown: str
    parameters: np.ndarray
    objectives: np.ndarray


def run(data_folder: Path, *, resamples: int = 1000, careful: int = 100) -> str:
    """Return the section of RESULTS.md."""
    name, data = table_of_123(data_folder)
    parts = [
        f"### {resamples:,} bootstrap refits of the five-parameter law\n",
        _refits(name, data, resamples, min(careful, resamples)),
        "### One fit\n",
        _one_fit(name, data),
        f"### {resamples:,} bootstrap refits of the laws of looped models\n",
        _looped(resamples),
    ]
    return "\n".join(parts)


def _refits(name: str, data: Data, resamples: int, careful: int) -> str:
    rows = len(data["loss"])
    weights = resampled_counts(np.arange(rows), resamples, np.random.default_rng(0))
    ours = _ours(data, weights)
    best = _reference(data, weights, careful)
    peers = [ours, best[0], best[1], *_slow_peers(data, weights), _trap(data, weights, ours.parameters)]
    lowest = best[0].objectives.copy()
    lowest[:careful] = np.minimum(lowest[:careful], best[1].objectives)
    reference = best[0].parameters.copy()
    lower = best[1].objectives < best[0].objectives[:careful]
    reference[:careful][lower] = best[1].parameters[lower]
    lines = []
    for peer in peers:
        at = peer.objectives <= lowest[: len(peer.objectives)] * (1 + _SAME)
        seconds = resamples * peer.seconds / len(peer.objectives)
        lines.append(
            (
                peer.way,
                len(at),
                peer.shown,
                f"{seconds:,.3g}",
                f"{seconds / ours.seconds:,.3g}x",
                f"{at.sum()} ({at.mean():.1%})",
                _narrower(reference, peer.parameters),
            )
        )
    narrow = "times too narrow"
    beyond = int((ours.objectives < lowest * (1 - _SAME)).sum())
    return (
        f"Huber 1e-3 on log loss, {rows} rows of {name}, each resample an integer weight per row. The reference is the "
        f"lower end of scipy from {_MANY_STARTS} starts and, for the first {careful}, of {_CAREFUL_STARTS} starts and "
        f"brute force; none of it starts from our refits. A refit is at the minimum if its objective is within "
        f"{_SAME:g} of the reference; ours is lower by more than that in {beyond} of {resamples}. The last column is "
        f"the width of the reference's 95% interval of each of {', '.join((NAMES[0], *NAMES[3:]))} over the way's, on "
        "the same resamples: above 1, the way's is too narrow. Slow ways ran on the first resamples only, and their "
        f"time is scaled. Wanted of ours: {_WANTED_REFITS} CPU-s for 1,000, and 99.9% at the minimum.\n\n"
        + table(
            ("way", "resamples", "CPU-s", f"CPU-s for {resamples:,}", "times ours", "at the minimum", narrow), lines
        )
        + "".join(f"\n{peer} is left out: {why}.\n" for peer, why in missing().items() if peer == "chinchilla")
    )


def _ours(data: Data, weights: np.ndarray) -> Refits:
    def once() -> tuple[np.ndarray, np.ndarray]:
        return refit(point_estimate(ChinchillaLaw(), data), data, weights=weights)

    took = cpu_time(once, _REPEATS)
    parameters, _ = once()
    return Refits(
        way="`point_estimate` and `refit`",
        seconds=took.median,
        shown=f"{took.shown()}; {_REPEATS} times",
        parameters=parameters,
        objectives=_judged(data, weights, parameters),
    )


def _reference(data: Data, weights: np.ndarray, careful: int) -> tuple[Refits, Refits]:
    """Return scipy from some starts on all resamples, and the careful search on the first of them."""
    whole = scipy_many_starts(*_columns(data), starts=_CAREFUL_STARTS).parameters

    def some(row: np.ndarray) -> PeerFit:
        return scipy_many_starts(*_columns(data), weights=row, starts=_MANY_STARTS, also=[whole])

    def most(row: np.ndarray) -> PeerFit:
        fits = [
            scipy_many_starts(*_columns(data), weights=row, starts=_CAREFUL_STARTS, also=[whole], seed=1),
            brute_grid(*_columns(data), weights=row),
        ]
        return min(fits, key=lambda fit: fit.objective)

    return (
        _each(f"scipy from {_MANY_STARTS} starts", weights, some),
        _each(f"scipy from {_CAREFUL_STARTS} starts, and brute force", weights[:careful], most),
    )


def _slow_peers(data: Data, weights: np.ndarray) -> list[Refits]:
    """Return the rows repeated as often as they were drawn, for peers without weights."""

    def drawn(row: np.ndarray) -> list[np.ndarray]:
        return [np.repeat(column, row.astype(int)) for column in _columns(data)]

    found = [
        _each(
            f"Hoffmann's L-BFGS from {_HOFFMANN_STARTS} starts",
            weights[:_SLOW_ONES],
            lambda row: hoffmann(*drawn(row), starts=_HOFFMANN_STARTS),
        )
    ]
    if "chinchilla" not in missing():
        few = weights[:_SLOW_ONES]
        found.append(_each("the package `chinchilla`, 5^5 starts", few, lambda row: with_chinchilla(*drawn(row))))
    return found


def _trap(data: Data, weights: np.ndarray, ours: np.ndarray) -> Refits:
    start = scipy_many_starts(*_columns(data), starts=_CAREFUL_STARTS).parameters
    way = "one L-BFGS from the whole table's fit, scipy's tolerances"
    return _each(way, weights[: len(ours)], lambda row: warm_lbfgs(*_columns(data), start, row))


def _each(way: str, weights: np.ndarray, fit: Callable[[np.ndarray], PeerFit]) -> Refits:
    began = time.process_time()
    fits = [fit(row) for row in weights]
    seconds = time.process_time() - began
    return Refits(
        way=way,
        seconds=seconds,
        shown=f"{seconds:.3g}",
        parameters=np.array([one.parameters for one in fits]),
        objectives=np.array([one.objective for one in fits]),
    )


def _judged(data: Data, weights: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Return the objective as the peers compute it: (resamples,)."""
    pairs = zip(parameters, weights, strict=True)
    return np.array([objective(one, *_columns(data), 1e-3, row) for one, row in pairs])


def _columns(data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return data["params"], data["tokens"], data["loss"]


def _narrower(reference: np.ndarray, parameters: np.ndarray) -> str:
    if len(parameters) < 20:  # too few for an interval
        return ""
    widths = [np.subtract(*np.percentile(p, [97.5, 2.5], axis=0)) for p in (reference[: len(parameters)], parameters)]
    return ", ".join(f"{widths[0][k] / widths[1][k]:.3g}" for k in (0, 3, 4))


def _one_fit(name: str, data: Data) -> str:
    runs = simulate_table(dataclasses.replace(PUBLISHED_TRUTH, run_noise=_RUN_NOISE))
    at_mean, everywhere = law_data(runs), test_time_law_data(runs)
    one_model = everywhere["run_id"] == at_mean["run_id"][4]
    elsewhere = everywhere["recurrence"] != everywhere["mean_recurrence"]
    simulated = "the simulated published grid"
    cases: list[tuple[Law, Data, str]] = [
        (ChinchillaLaw(), data, name.rstrip(",")),
        (SixParameterLaw(), data, name.rstrip(",")),
        (TrainingLaw(), at_mean, simulated),
        (UnifiedLaw(), everywhere, f"{simulated}, every T"),
        (IsoDepthLaw(), at_mean, simulated),
        (TestTimeLaw(), _rows(everywhere, one_model), "one model of it"),
        (JointTestTimeLaw(), _rows(everywhere, elsewhere), f"{simulated}, every T but mu"),
    ]
    lines = []
    for law, rows, where in cases:
        took = cpu_time(partial(point_estimate, law, rows), _FITS)
        lines.append((law.name, law.formula, f"{len(rows['loss'])} rows of {where}", took.shown(1e3)))
    return (
        f"From no idea to the minimum; median of {_FITS}, the least and the most. Wanted: {_WANTED_FIT} ms.\n\n"
        + table(("law", "form", "rows", "CPU-ms"), lines)
    )


def _looped(resamples: int) -> str:
    runs = simulate_table(dataclasses.replace(PUBLISHED_TRUTH, run_noise=_RUN_NOISE))
    lines = []
    for law, rows, by_run in ((TrainingLaw(), law_data(runs), False), (UnifiedLaw(), test_time_law_data(runs), True)):
        estimate = point_estimate(law, rows)
        run_ids = rows["run_id"] if by_run else None
        again = partial(bootstrap, estimate, rows, draws=resamples, seed=0, runs=run_ids)
        took = [cpu_time(partial(again, kind=kind), 3, 0) for kind in ("parametric", "rows")]
        lines.append((law.name, len(rows["loss"]), "runs" if by_run else "rows", *(one.shown() for one in took)))
    return f"The simulated published grid, run noise {_RUN_NOISE:g}; median of 3, the least and the most.\n\n" + table(
        ("law", "rows", "what is drawn", "CPU-s, new noise (parametric)", "CPU-s, drawn again"), lines
    )


def _rows(data: Data, which: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[which] for name, values in data.items()}
