"""Runs that a fitted law misses by far more than it misses the others."""

from __future__ import annotations

import numpy as np

from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.estimation.noise import flops_of
from isoloop.fitting.laws.base import Data

_OUTLIER = 10.0
"""A run is named if it is this many times as far from the law as the median run, and at least `_OUTLIER_AT_LEAST`."""
_OUTLIER_AT_LEAST = 5e-3
_OUTLIERS_NAMED = 5


def outlier_caveats(law: LawFit, data: Data) -> list[str]:
    """Return a caveat for each of the fitted runs that the law of the loss after training misses by far."""
    error = data["loss"] / law.loss(data) - 1
    noise = law.noise_model
    scales = noise.scales(flops_of(data)) if noise is not None and noise.exponent else np.ones_like(error)
    typical = float(np.median(np.abs(error) / scales)) * scales
    outliers = np.flatnonzero(np.abs(error) > np.maximum(_OUTLIER * typical, _OUTLIER_AT_LEAST))
    among = "runs" if (scales == 1).all() else "runs of its compute"
    caveats = [
        f"Run {str(data['run_id'][i])!r} lies {100 * error[i]:+.2g}% off the {law.form.name} law, where half of the "
        f"{among} lie within {100 * typical[i]:.2g}%: it may pull the parabolas, which are least squares, towards it."
        for i in outliers[:_OUTLIERS_NAMED]
    ]
    more = len(outliers) - _OUTLIERS_NAMED
    if more > 0:
        caveats.append(f"{more} more {'run lies' if more == 1 else 'runs lie'} as far off.")
    return caveats
