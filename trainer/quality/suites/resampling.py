"""Bootstrap over rows: means of resampled rows, by the same draws for whatever was measured on one file of data.

Tasks that share a file (such as HellaSwag with and without examples) and models that are compared answer the same rows,
so these are drawn together, and the interval of a difference is that of pairs.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
LEVEL = 0.95
_SEED = 20_260_412
_COUNTS_AT_ONCE = 2**22


def resampled_sums(values: NDArray[np.float64], file: str, draws: int = DRAWS) -> NDArray[np.float64]:
    """Return the sums of `values` [quantities, rows] over rows drawn with replacement, [draws, quantities].

    Args:
        values: what is summed.
        file: name of the rows' file, which together with their number decides the draws.
        draws: number of draws.
    """
    rows = values.shape[1]
    generator = np.random.default_rng([_SEED, zlib.crc32(file.encode())])
    sums = []
    at_once = max(_COUNTS_AT_ONCE // rows, 1)
    for start in range(0, draws, at_once):
        number = min(at_once, draws - start)
        drawn = generator.integers(rows, size=(number, rows)) + rows * np.arange(number)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=number * rows).reshape(number, rows)
        sums.append(counts @ values.T)
    return np.concatenate(sums)


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95% interval of resampled values, [draws]."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
