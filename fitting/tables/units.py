"""Implausible units in a table of runs: each is asked about, with the factor that would fit."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from isoloop.fitting.tables.contract import DENSE_ACCOUNTING
from isoloop.fitting.tables.mixed_losses import loss_mixture
from isoloop.fitting.tables.trend import expected_losses

_TOO_SMALL = {"params": 1e4, "tokens": 1e5, "flops": 1e8, "budget": 1e8}
"""Medians below which a column is hardly in natural units; tiny models have 1e5 parameters, 1e6 tokens, 1e10 FLOPs."""
_FACTORS = {"params": (1e6, 1e9), "tokens": (1e9, 1e6, 1e12), "flops": (1e18, 1e21, 1e15, 1e12)}
"""Factors that people use, the most usual first."""
_LESS_USUAL = 0.05
"""Decades of misfit by which a factor must be better than the next more usual one."""
_COMPUTE = ("flops", "budget")
_TOKENS_PER_PARAM = 20.0
_FLOPS_PER_PARAM_TOKEN = 6.0
_PLAUSIBLE = (3.0, 12.0)
"""FLOPs per parameter and token between which C = 6 N D is near enough."""
_PLAUSIBLE_LOOPED = (1.0, 100.0)
"""The same for looped models, whose head and truncated backpropagation are not in the parameters."""
_FORWARD_ONLY = (1.5, 2.7)
_MIXED_UNITS = 3.0
"""Ratio of the largest to the smallest FLOPs per parameter and token from which units seem to be mixed."""
_SWAPPED = 1e-4
"""FLOPs per token below which FLOPs and tokens seem to be swapped, rather than FLOPs to be in another unit."""
_GAP = 1e4
"""Ratio of neighbouring values of a column, sorted, from which units seem to be mixed."""
_HIGH_LOSS = 12.0
"""Median above which losses are hardly nats per token: a uniform guess among 163,000 tokens has 12."""
_HIGH_RATIO = 1.9
"""Ratio to the usual loss of such models from which losses may be perplexities, if their logarithms are as usual."""
_SAME_LOSS = (0.6, 1.4)
_LOW_LOSS = 1.3


def unit_caveats(table: pd.DataFrame) -> list[str]:
    """Return what in a checked table seems to be in another unit than the natural one, and what to do about it.

    A column whose values lie far below any real model's is named first, since it explains the rest.
    """
    columns = {name: table[name].to_numpy(dtype=float) for name in (*_TOO_SMALL, "loss") if name in table}
    losses = columns.pop("loss", np.zeros(0))
    if "accounting" in table and (table["accounting"] == DENSE_ACCOUNTING).all():
        columns = {name: columns[name] for name in ("params", "tokens")}  # the rest is computed from these
    caveats = _mixed_columns(columns) or _small_columns(columns)
    if not caveats:
        swapped, compute = _swapped_columns(columns, dense="mean_recurrence" not in table), _compute(table)
        per_token = float(np.nanmedian(columns["flops"] / columns["tokens"])) if "flops" in columns else 1.0
        # Swapped, a model of N parameters has 1 / (6 N); FLOPs in another unit have more, and a factor that fits.
        caveats = compute or swapped if _SWAPPED < per_token < 1 else swapped or compute
    mixture = loss_mixture(table)
    if mixture is not None:
        return [mixture.caveat, *caveats]
    finished = table[losses > 0] if len(losses) else table.head(0)
    return [*caveats, *_losses(finished, stated="loss_unit" in table)]


def _mixed_columns(columns: dict[str, np.ndarray]) -> list[str]:
    """Return a caveat for each column with a gap of four decades between its values."""
    caveats = []
    for name in _TOO_SMALL:
        values = columns.get(name, np.zeros(0))
        values = np.sort(values[np.isfinite(values) & (values > 0)])
        if len(values) < 2:
            continue
        gaps = values[1:] / values[:-1]
        place = int(np.argmax(gaps))
        if gaps[place] >= _GAP:
            caveats.append(
                f"`{name}` has values up to {values[place]:.3g} and others from {values[place + 1]:.3g}: were units "
                "mixed? If so, bring all rows to one unit."
            )
    return caveats


def _small_columns(columns: dict[str, np.ndarray]) -> list[str]:
    """Return a caveat for each column whose values are too small, with the factors that agree best with each other.

    About 20 tokens per parameter and C = 6 N D are expected.
    """
    compute = _compute_columns(columns)[0]
    medians = {
        name: float(np.nanmedian(columns[name]))
        for name in ("params", "tokens", compute)
        if name in columns and np.isfinite(columns[name]).any()
    }
    choices = {
        name: _FACTORS["flops" if name == compute else name] if median < _TOO_SMALL[name] else (1.0,)
        for name, median in medians.items()
    }
    if all(factors == (1.0,) for factors in choices.values()):
        return []

    def misfit(factors: tuple[float, ...]) -> float:
        """Return the decades by which scaled medians miss what is expected."""
        scaled = {name: medians[name] * factor for name, factor in zip(choices, factors, strict=True)}
        tokens, flops = scaled.get("tokens", np.nan), scaled.get(compute, np.nan)
        params = scaled.get("params", tokens / _TOKENS_PER_PARAM)
        misses = [tokens / params / _TOKENS_PER_PARAM, (flops / (_FLOPS_PER_PARAM_TOKEN * params * tokens)) ** 3]
        rarity = sum(choices[name].index(factor) for name, factor in zip(choices, factors, strict=True))
        return float(np.nansum(np.abs(np.log10(misses)))) + _LESS_USUAL * rarity

    best = min(itertools.product(*choices.values()), key=misfit)
    return [
        f"The median of `{name}` is {medians[name]:.3g}, far below that of any model: if it is in units of "
        f"{_factor(factor)}, use --columns {name}={name}*{_factor(factor)}."
        for name, factor in zip(choices, best, strict=True)
        if factor != 1
    ]


def _swapped_columns(columns: dict[str, np.ndarray], *, dense: bool) -> list[str]:
    """Return a caveat if models have fewer FLOPs than tokens, or dense ones fewer tokens than parameters."""
    if "flops" in columns and float(np.nanmedian(columns["flops"] / columns["tokens"])) < 1:
        return [
            "Half of the runs have fewer FLOPs than tokens, where a token takes a few FLOPs per parameter: were the "
            "columns flops and tokens swapped? If so, use --columns flops=tokens,tokens=flops."
        ]
    if not dense or "params" not in columns:
        return []
    ratio = float(np.nanmedian(columns["tokens"] / columns["params"]))
    if ratio >= 1:
        return []
    return [
        f"Half of the runs have fewer than {ratio:.2g} tokens per parameter, an implausible optimum (published "
        "ones have about 20): were the columns params and tokens swapped? If so, use --columns "
        "params=tokens,tokens=params."
    ]


def _compute(table: pd.DataFrame) -> list[str]:
    """Return a caveat for each column of compute that is far from 6 N D, or varies from it by row.

    N of looped models is that of the unrolled model; without effective parameters, they are skipped.
    """
    looped = "mean_recurrence" in table
    if not looped and "params" in table:
        params = table["params"].to_numpy(dtype=float)
    elif looped and {"effective_params_fixed", "effective_params_per_loop"} <= set(table.columns):
        unrolled = table["effective_params_fixed"] + table["mean_recurrence"] * table["effective_params_per_loop"]
        params = unrolled.to_numpy(dtype=float)
    else:
        return []
    caveats: list[str] = []
    medians: list[float] = []
    for name in _compute_columns({name: table[name].to_numpy(dtype=float) for name in table if name in _COMPUTE}):
        ratios = table[name].to_numpy(dtype=float) / (params * table["tokens"].to_numpy(dtype=float))
        ratios = ratios[np.isfinite(ratios)]
        caveat = _ratio_caveat(name, ratios, looped=looped) if len(ratios) else None
        if caveat and not np.isclose(medians, np.median(ratios), rtol=0.1).any():  # budgets found in flops say the same
            caveats.append(caveat)
            medians.append(float(np.median(ratios)))
    return caveats


def _compute_columns(columns: dict[str, np.ndarray]) -> list[str]:
    """Return the columns of compute that the table's author gave: flops that only repeat the budget are not counted."""
    both = "flops" in columns and "budget" in columns
    if both and np.array_equal(columns["flops"], columns["budget"], equal_nan=True):
        return ["budget"]
    return [name for name in _COMPUTE if name in columns] or ["flops"]


def _ratio_caveat(name: str, ratios: np.ndarray, *, looped: bool) -> str | None:
    """Return a caveat about compute that is `ratios` (rows,) times params x tokens, None if that is plausible."""
    low, median, high = float(ratios.min()), float(np.median(ratios)), float(ratios.max())
    label, verb = (name, "are") if name == "flops" else (name, "is")
    size = "effective params" if looped else "params"
    if high > _MIXED_UNITS * low and not looped:
        return (
            f"The {label} {verb} {low:.3g} to {high:.3g} times {size} x tokens, where one accounting gives about one "
            "number: were units mixed? If so, bring all rows to one unit."
        )
    lower, upper = _PLAUSIBLE_LOOPED if looped else _PLAUSIBLE
    if lower <= median <= upper:
        return None
    text = f"The median {label} {verb} {median:.3g} times {size} x tokens: C = 6 N D does not hold here, so D* from it "
    text += "is off"
    power = 10.0 ** (3 * round(np.log10(_FLOPS_PER_PARAM_TOKEN / median) / 3))
    if power != 1 and lower <= median * power <= upper:
        scale = f"{name}*{_factor(power)}" if power > 1 else f"{name}/{_factor(1 / power)}"
        return f"{text}; if only its unit differs, use --columns {name}={scale}."
    if _FORWARD_ONLY[0] <= median <= _FORWARD_ONLY[1]:
        return f"{text}; if it is C = 2 N D, of the forward pass alone, use --columns {name}={name}*3."
    return f"{text}; check the units of {name}, params and tokens, and what each counts."


def _losses(runs: pd.DataFrame, *, stated: bool) -> list[str]:
    """Return a caveat about losses that are hardly nats per token; a `stated` unit is believed if low."""
    if runs.empty:
        return []
    median, usual = float(runs["loss"].median()), float(np.median(expected_losses(runs)))
    as_nats = np.log(median)
    if median > _HIGH_LOSS or (median > _HIGH_RATIO * usual and _SAME_LOSS[0] < as_nats / usual < _SAME_LOSS[1]):
        more_than = "any trained model" if median > _HIGH_LOSS else f"models like these, which have about {usual:.2g}"
        return [
            f"The median loss is {median:.3g}, more than nats per token of {more_than}: if it is a perplexity, "
            f"whose logarithm would be {as_nats:.3g}, use --columns perplexity=loss."
        ]
    if median < _LOW_LOSS and not stated:
        return [
            f"The median loss is {median:.3g}, low for nats per token of text: if it is in bits per byte, multiply it "
            "by ln 2 x bytes per token, as in --columns loss=loss*2.9 for 4.2 bytes per token."
        ]
    return []


def _factor(factor: float) -> str:
    return f"1e{round(np.log10(factor))}"
