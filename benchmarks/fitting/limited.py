"""Laws of text that runs out, compared out of sample on published runs; and forms that were tried and not kept.

The runs are the candidate pool of ScaleBench's task `data_constrained` (Li et al. 2026, arXiv:2604.22753), 161 runs of
Muennighoff et al. 2023. Laws of the registry are fitted as `isoloop fit` does. The others are written here as plain
functions and fitted by scipy from random starts, by the same objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.fitting.results import table as table_of
from isoloop.fitting import PUBLISHED_TRUTH, fit_law, law_named, point_estimate
from isoloop.fitting.cost import DenseCost
from isoloop.fitting.selection.mixture import law_mixture
from isoloop.fitting.simulate import published_cost_model
from isoloop.fitting.tables.runs import law_data, read_runs

FILE = "data_constrained_train.csv"
_DELTA = 1e-3
_STARTS, _DRAWN = 16, 320
_SIZE, _TOKENS, _TEXT, _AGAIN = 2e8, 5e9, 1e9, 30.0
"""Units in which parameters, tokens, unique tokens and repetitions are of order 1."""
_CHINCHILLA = [(-1.0, 1.0), (-2.0, 0.5), (-2.3, -0.3), (-2.0, 0.5), (-2.3, -0.3)]
_WORTH, _EXPONENT, _SMALL = (1.0, 5.0), (-2.0, 0.5), (-5.0, 0.0)
_TRUTH = np.array([1.8, 400.0, 1800.0, 0.34, 0.36, 6e7, 0.75])
"""The sized law of simulated tables: R* of 60 at 1e8 parameters, 11 at 1e9."""
_SCATTER = 0.003
_PUBLISHED_WORTH = 15.4
Columns = Mapping[str, np.ndarray]


def chinchilla(p: np.ndarray, size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return E + A N^-alpha + B D^-beta in units of the table, for the exponentials `p` of all parameters."""
    return p[0] + p[1] * size ** -p[2] + p[3] * tokens ** -p[4]


def effective(data: Columns, worth: np.ndarray | float) -> np.ndarray:
    """Return effective tokens (Muennighoff et al. 2023, eq. 5) in units of the table."""
    return data["seen"] * (1 - worth * np.expm1(-data["again"] / worth)) / _TOKENS


def _compute_optimal_size(p: np.ndarray, data: Columns) -> np.ndarray:
    """Return the size whose compute-optimal tokens, by Chinchilla's law and C = 6 N D, are the unique tokens."""
    ratio = (p[2] * p[1] / (p[4] * p[3])) ** (1 / p[2])
    return ratio * (data["seen"] / _TOKENS) ** (p[4] / p[2])


def _effective_size(p: np.ndarray, data: Columns) -> np.ndarray:
    enough = np.minimum(data["size"], _compute_optimal_size(p, data))
    return enough * (1 - p[6] * np.expm1(-(data["size"] / enough - 1) / p[6]))


def _overfitted(p: np.ndarray, data: Columns) -> np.ndarray:
    """Return the factor by which effective tokens shrink again: 1 + repetitions / R_o, R_o = p0 (N / U^.6)^-p1."""
    return 1 + data["again"] / p[0] * (data["size"] / data["text"] ** 0.6) ** p[1]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form that is not in the registry: its loss by the exponentials of its parameters, and ranges of starts."""

    name: str
    loss: Callable[[np.ndarray, Columns], np.ndarray]
    starts: list[tuple[float, float]]

    def predicted(self, fitted: Columns, data: Columns) -> np.ndarray:
        """Return the losses of all rows by the best of many fits to the rows `fitted`."""

        def residuals(logs: np.ndarray) -> np.ndarray:
            loss = self.loss(np.exp(np.clip(logs, -30, 30)), fitted)
            left = np.log(np.maximum(loss, 1e-6) / fitted["loss"])
            return np.where(np.isfinite(left), left, 10.0)

        low, high = np.array(self.starts).T
        drawn = low + (high - low) * np.random.default_rng(0).random((_DRAWN, len(low)))
        with np.errstate(all="ignore"):
            near = sorted(drawn, key=lambda logs: float(np.abs(residuals(logs)).mean()))[:_STARTS]
            rough = [least_squares(residuals, logs, loss="huber", f_scale=0.02, max_nfev=120) for logs in near]
            best = min(rough, key=lambda fit: float(fit.cost)).x
            best = least_squares(residuals, best, loss="huber", f_scale=_DELTA, max_nfev=400).x
            return self.loss(np.exp(np.clip(best, -30, 30)), data)


FORMS = (
    Form(
        name="one R*, and effective parameters N' (arXiv:2305.16264, eq. 6)",
        loss=lambda p, data: chinchilla(p, _effective_size(p, data), effective(data, p[5])),
        starts=[*_CHINCHILLA, _WORTH, (0.0, 4.0)],
    ),
    Form(
        name="R* fixed at the published 15.4",
        loss=lambda p, data: chinchilla(p, data["size"], effective(data, _PUBLISHED_WORTH)),
        starts=_CHINCHILLA,
    ),
    Form(
        name="R* = R / N",
        loss=lambda p, data: chinchilla(p, data["size"], effective(data, p[5] / data["size"])),
        starts=[*_CHINCHILLA, _WORTH],
    ),
    Form(
        name="R* = R N^-k U^m",
        loss=lambda p, data: chinchilla(
            p, data["size"], effective(data, p[5] * data["size"] ** -p[6] * data["text"] ** p[7])
        ),
        starts=[*_CHINCHILLA, _WORTH, _EXPONENT, _EXPONENT],
    ),
    Form(
        name="R* = R (U/N)^k",
        loss=lambda p, data: chinchilla(p, data["size"], effective(data, p[5] * (data["text"] / data["size"]) ** p[6])),
        starts=[*_CHINCHILLA, _WORTH, _EXPONENT],
    ),
    Form(
        name="six-parameter form with R* = R N^-k",
        loss=lambda p, data: (
            p[0] + (chinchilla(p, data["size"], effective(data, p[6] * data["size"] ** -p[7])) - p[0]) ** p[5]
        ),
        starts=[*_CHINCHILLA, (-0.5, 1.0), _WORTH, _EXPONENT],
    ),
    Form(
        name="Chinchilla + P (D/U - 1)^kappa (N/U)^delta (after arXiv:2605.01640)",
        loss=lambda p, data: (
            chinchilla(p, data["size"], data["tokens"] / _TOKENS)
            + p[5] * (data["again"] / _AGAIN) ** p[6] * (data["size"] / data["text"]) ** p[7]
        ),
        starts=[*_CHINCHILLA, _SMALL, _EXPONENT, _EXPONENT],
    ),
    Form(
        name="R* = R N^-k, and effective tokens that fall again",
        loss=lambda p, data: chinchilla(
            p, data["size"], effective(data, p[5] * data["size"] ** -p[6]) / _overfitted(p[7:], data)
        ),
        starts=[*_CHINCHILLA, _WORTH, _EXPONENT, (4.0, 10.0), (0.0, 2.0)],
    ),
)
LAWS = ("chinchilla", "six-parameter", "effective-tokens", "sized-effective-tokens", "bounded-loss")


def splits(data: Columns) -> dict[str, np.ndarray]:
    """Return masks (rows,) of the runs that are held out, by what is largest in them."""
    epochs = data["again"] + 1
    return {
        "C >= 3e20": data["flops"] >= 3e20,
        "C >= 7e19": data["flops"] >= 7e19,
        "C >= 2e19": data["flops"] >= 2e19,
        "N > 1e9": data["params"] > 1e9,
        "N >= 5e8": data["params"] >= 5e8,
        "D >= 9e10": data["tokens"] >= 9e10,
        "U >= 4e9": data["table_unique"] >= 4e9,
        "epochs >= 100": epochs >= 100,
        "epochs >= 500": epochs >= 500,
    }


def run(folder: Path) -> str:
    """Return the table of errors on held-out runs, of every law and form."""
    table = read_runs(folder / FILE).frame
    data = law_data(table)
    data["table_unique"] = table["unique_tokens"].to_numpy(dtype=float)
    data["seen"] = data["unique_tokens"]
    data["again"] = data["tokens"] / data["seen"] - 1
    data["size"], data["text"] = data["params"] / _SIZE, data["seen"] / _TEXT
    held_out = splits(data)

    def by_law(name: str, least: float = 0.0) -> Callable[[Columns, Columns], np.ndarray]:
        law = law_named(name)

        def predicted(fitted: Columns, rows: Columns) -> np.ndarray:
            large = {column: values[fitted["flops"] >= least] for column, values in fitted.items()}
            return law.loss(point_estimate(law, large).parameters, rows)

        return predicted

    methods = {f"`{name}`": by_law(name) for name in LAWS}
    methods["`sized-effective-tokens`, fitted without runs below 1e18 FLOPs"] = by_law("sized-effective-tokens", 1e18)
    methods |= {form.name: form.predicted for form in FORMS}
    rows: list[tuple[str, ...]] = []
    for name, predicted in methods.items():
        errors, sizes = [], []
        for mask in held_out.values():
            fitted = {column: values[~mask] for column, values in data.items()}
            off = predicted(fitted, data)[mask] - data["loss"][mask]
            sizes.append(float(100 * np.mean(np.abs(off) / data["loss"][mask])))
            errors.append(f"{sizes[-1]:.1f} / {np.sqrt(np.mean(off**2)):.2f}")
        rows.append((name, *errors, f"{np.exp(np.mean(np.log(sizes))):.2f}"))
    counts = ", ".join(f"{split} ({int(mask.sum())})" for split, mask in held_out.items())
    return (
        f"Mean absolute error in percent, and root mean square error in nats, of the held-out runs of {FILE} "
        f"({len(data['loss'])} runs; held out: {counts}). Huber, delta 1e-3, on log loss. `mean` is the geometric mean "
        "of the percentages.\n\n" + table_of(("law or form", *held_out, "mean"), rows)
    )


def coverage(*, sweeps: int = 100, draws: int = 100) -> str:
    """Return how often 95% intervals hold the truth in simulated tables of dense models on texts of three sizes."""
    law, cost, budget = law_named("sized-effective-tokens"), DenseCost(unique_tokens=1e9), 1e21
    sizes, unique = np.geomspace(2e7, 1e9, 5), (1e8, 5e8, 2.5e9)
    grid = np.meshgrid(sizes, np.geomspace(1e9, 2e10, 4), unique, indexing="ij")
    rows = dict(zip(("params", "tokens", "unique_tokens"), (axis.ravel() for axis in grid), strict=True))
    due = law.loss(_TRUTH, rows)
    best = law.optimum(_TRUTH, cost, budget, (1e6, 1e12))
    beyond = {
        f"L(1e9, 1e11, U = {text:.0e})": {
            name: np.array([value]) for name, value in zip(rows, (1e9, 1e11, text), strict=True)
        }
        for text in (1e9, 1e11)
    }
    names = (*law.parameter_names, *beyond, "N*(1e21, U = 1e9)")
    held: dict[str, int] = dict.fromkeys(names, 0)
    widths: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(sweeps):
        scatter = np.exp(np.random.default_rng(seed).normal(0, _SCATTER, len(due)))
        fit = fit_law(law, {**rows, "loss": due * scatter}, draws=draws, seed=seed, kind="rows")
        found: dict[str, tuple[Any, float]] = {
            p.name: (p.interval, truth) for p, truth in zip(fit.parameters, _TRUTH, strict=True)
        }
        for name, at in beyond.items():
            low, high = fit.loss_interval(at, measured=False) or (np.zeros(1), np.zeros(1))
            found[name] = (float(low[0]), float(high[0])), float(law.loss(_TRUTH, at)[0])
        found[names[-1]] = law_mixture([fit]).optimum(cost, budget, (1e6, 1e12)).interval_of("at"), float(best.at)
        for name, (span, truth) in found.items():
            held[name] += span[0] <= truth <= span[1]
            widths[name].append(span[1] / span[0] if span[0] > 0 else np.inf)
    lines = [(name, f"{100 * held[name] / sweeps:.0f}%", f"{np.median(widths[name]):.3g}") for name in names]
    return (
        f"Share of {sweeps} simulated tables ({len(due)} runs, {len(sizes)} sizes, texts of "
        f"{', '.join(f'{text:.0e}' for text in unique)} tokens, up to 200 epochs, scatter {100 * _SCATTER:g}%, the "
        f"law's own form) whose 95% interval holds the truth; redrawn rows, {draws} draws. *ratio* is the median of "
        "upper over lower end.\n\n" + table_of(("quantity", "held", "ratio"), lines)
    )


def best_recurrences() -> str:
    """Return the best mean recurrence of the published 140m model by budget and text, by a law with a known R*."""
    law, texts = law_named("looped-effective-tokens"), (np.inf, 1e10, 3e9, 1e9, 3e8, 1e8)
    truth = np.array([getattr(PUBLISHED_TRUTH, name) for name in ("E", "X", "Y", "x", "y")] + [_PUBLISHED_WORTH])
    cost = published_cost_model()
    lines = []
    for budget in (1e18, 1e19, 6.4e19):
        on = [cost if np.isinf(text) else replace(cost, unique_tokens=text) for text in texts]
        best = [law.optimum(truth, each, budget) for each in on]
        epochs = [float(each.tokens) / text for each, text in zip(best, texts, strict=True)]
        cells = [f"{float(each.at):.3g} ({seen:.2g})" for each, seen in zip(best, epochs, strict=True)]
        lines.append((f"{budget:.2g}", *cells))
    head = ("FLOPs", "new text", *(f"U = {text:.0e}" for text in texts[1:]))
    return (
        "What the law says of looped models, before any run of ours: the best mean recurrence (and the epochs there) "
        "of the published 140m model by its training law with R* = 15.4 for all loops. Overfitting goes with unique "
        "parameters here; if it went with effective ones, more loops would gain less.\n\n" + table_of(head, lines)
    )
