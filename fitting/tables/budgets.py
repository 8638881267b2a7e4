"""Runs grouped by compute: near-equal budgets are one, and without budgets runs of near-equal FLOPs share one."""

from __future__ import annotations

import numpy as np
import pandas as pd

SAME_BUDGET = 0.01
"""Relative difference up to which two budgets are one: runs spend their budget to within a step."""
_CLUSTER_WIDTHS = (0.01, 0.02, 0.05, 0.1)
"""Relative widths of a cluster of FLOPs that are tried, the smallest first."""
_GAP = 3.0
"""Least distance between clusters of FLOPs, in widths of the widest one."""
_CLUSTERED = 0.8
"""Share of the runs that must be in clusters with enough values on the axis for curves."""
_VALUES_NEEDED = 3


def group_values(values: np.ndarray, tolerance: float = SAME_BUDGET) -> np.ndarray:
    """Return the group (rows,) of each positive value (rows,), counted from 0 by growing value, -1 where it is missing.

    A group holds all values up to `tolerance` (relative) above its smallest one.
    """
    values = np.asarray(values, dtype=float)
    groups = np.full(len(values), -1)
    known = ~np.isnan(values)
    starts: list[float] = []
    for value in np.unique(values[known]):
        if not starts or value > starts[-1] * (1 + tolerance):
            starts.append(value)
    groups[known] = np.searchsorted(starts, values[known], side="right") - 1
    return groups


def joined_budgets(budgets: np.ndarray, tolerance: float = SAME_BUDGET) -> np.ndarray:
    """Return budgets (rows,) with those of one group replaced by its most frequent value, or the middle one of them."""
    values, places, counts = np.unique(np.asarray(budgets, dtype=float), return_inverse=True, return_counts=True)
    groups = group_values(values, tolerance)
    joined = values.copy()
    for group in np.unique(groups[1:][groups[1:] == groups[:-1]]):  # the groups of several values
        if group >= 0:
            members = np.flatnonzero(groups == group)
            most = members[counts[members] == counts[members].max()]
            joined[members] = values[most[len(most) // 2]]
    return joined[places].reshape(np.shape(budgets))


def clustered_budgets(flops: np.ndarray, axis: np.ndarray) -> np.ndarray | None:
    """Return a budget (rows,) for runs that spent near-equal FLOPs (rows,): the median of their cluster.

    Runs are clustered if clusters of at most 10% are at least 3 widths apart and 80% of the runs are in clusters with 3
    or more values on the axis (rows,); other runs have no budget (NaN). Returns None if they are not clustered.
    """
    known = np.isfinite(flops) & np.isfinite(axis)
    if known.sum() < _VALUES_NEEDED:
        return None
    logs = np.log(flops[known])
    for width in _CLUSTER_WIDTHS:
        groups = group_values(flops[known], width)
        clusters = pd.DataFrame({"group": groups, "log": logs, "axis": axis[known]}).groupby("group")
        lows, highs, values = clusters["log"].min(), clusters["log"].max(), clusters["axis"].nunique()
        gaps = lows.to_numpy()[1:] - highs.to_numpy()[:-1]
        usable = (values >= _VALUES_NEEDED).to_numpy()
        apart = not len(gaps) or gaps.min() >= _GAP * float((highs - lows).max())
        if apart and usable[groups].mean() >= _CLUSTERED:
            budgets = np.full(len(flops), np.nan)
            medians = clusters["log"].median().to_numpy()
            budgets[known] = np.where(usable[groups], np.exp(medians[groups]), np.nan)
            return budgets
    return None


def why_no_budgets(table: pd.DataFrame) -> str:
    """Return the reason why a run table without budgets has no isoFLOP curves."""
    spent = table["flops"].dropna().to_numpy(dtype=float) if "flops" in table else np.empty(0)
    spent = spent[spent > 0]
    groups = int(group_values(spent).max(initial=-1)) + 1
    finding = f", and the FLOPs of its {len(spent)} runs do not cluster ({groups} different values)" if groups else ""
    return (
        f"isoFLOP curves need runs that spend the same compute, but no run has a `budget`{finding}; sweep over compute "
        "budgets, or add the column"
    )
