"""Generalised least squares: residuals of unequal or shared noise are made independent and alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """Residuals are divided by `scales` (rows,), and then lose a part of what the rows of a group share.

    The `shared` directions (groups, rows) are those of the groups, each as long as the root of the part that is lost;
    None if nothing is shared.
    """

    scales: np.ndarray | None = None
    shared: np.ndarray | None = None

    @classmethod
    def of_groups(cls, scales: np.ndarray | None, groups: np.ndarray, ratio: float) -> Whitening:
        """Return the whitening of noise with `scales` and an effect that the rows of a group (rows,) share.

        `ratio` is the variance of the effect over that of the noise of scale 1. A row whose group is NaN is alone.
        """
        known = np.flatnonzero(~np.isnan(groups))
        names, group = np.unique(groups[known], return_inverse=True)
        shared = np.zeros((len(names), len(groups)))
        shared[group, known] = 1.0 if scales is None else 1 / scales[known]
        # (I + ratio a a')^(-1/2) = I - lost a a' / |a|^2
        squares = (shared**2).sum(axis=1)
        lost = 1 - 1 / np.sqrt(1 + ratio * squares)
        return cls(scales=scales, shared=shared * np.sqrt(lost / squares)[:, None])

    def subset(self, rows: np.ndarray) -> Whitening:
        """Return the scales of some of the rows (indices); what they share is left in."""
        return Whitening(scales=None if self.scales is None else self.scales[rows])

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Return whitened values (..., rows)."""
        if self.scales is not None:
            values = values / self.scales
        return values if self.shared is None else np.asarray(values - (values @ self.shared.T) @ self.shared)

    def columns(self, values: np.ndarray) -> np.ndarray:
        """Return whitened values (..., rows, columns)."""
        if self.scales is not None:
            values = values / self.scales[:, None]
        return values if self.shared is None else np.asarray(values - self.shared.T @ (self.shared @ values))
