"""The typical size of residuals, which a few outliers do not change."""

from __future__ import annotations

import numpy as np

_MEDIAN_OF_NORMAL = 0.6745
"""Median of the absolute value of a standard normal variable."""


def typical_size(residuals: np.ndarray, dof: int) -> float:
    """Return the standard deviation that normal residuals (rows,) would have if their median size were the same.

    A fit of nearly absolute residuals makes some of them zero, so the median is that of the `dof` largest.
    """
    return float(np.median(np.sort(np.abs(residuals))[-dof:])) / _MEDIAN_OF_NORMAL
