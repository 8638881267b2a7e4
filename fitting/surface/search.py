"""The minimum of many functions at once on a box of a few dimensions, by grids that zoom in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

_FIRST_WIDTH = 0.2
"""Width of the second grid relative to the box: several steps of the first, to lose no minimum between points."""
_POINTS, _SHRINK = 5, 0.5
"""Points per dimension of the grids after the first, and the width of each relative to the one before."""


def minimise_on_box(
    function: Callable[[np.ndarray], np.ndarray],
    bounds: Sequence[tuple[float, float]],
    *,
    points: int = 25,
    zooms: int = 22,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimisers (..., d) of functions on the box `bounds` of d dimensions, and their values (...).

    `function` takes points (n, d), or (..., n, d) with points for each function, and returns (..., n); infinite where a
    point is not allowed. The first grid has `points` values per dimension, and each of the `zooms` a few about the best
    point so far, with half the width of the one before. An end of the box that is the best stays exactly that end.
    """
    if not bounds:  # a box of one point
        return _best(function, np.empty((1, 0)))
    low, high = np.array(bounds, dtype=float).T
    first, offsets = (
        np.array(list(product(np.linspace(-0.5, 0.5, count), repeat=len(low)))) for count in (points, _POINTS)
    )
    best, value = _best(function, np.clip((low + high) / 2 + first * (high - low), low, high))
    width = (high - low) * _FIRST_WIDTH
    for _ in range(zooms):
        grid = np.clip(best[..., None, :] + offsets * width, low, high)
        candidate, least = _best(function, grid)
        better = least < value
        best, value = np.where(better[..., None], candidate, best), np.where(better, least, value)
        width = width * _SHRINK
    return best, value


def _best(function: Callable[[np.ndarray], np.ndarray], grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = function(grid)
    place = np.argmin(values, axis=-1)
    grid = np.broadcast_to(grid, (*values.shape, grid.shape[-1]))
    best = np.take_along_axis(grid, place[..., None, None], axis=-2)[..., 0, :]
    return best, np.take_along_axis(values, place[..., None], axis=-1)[..., 0]
