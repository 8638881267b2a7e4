"""The kind of cost that the columns of a run table allow."""

from __future__ import annotations

import pandas as pd

from isoloop.fitting.cost.dense import DenseCost
from isoloop.fitting.cost.looped import CostModel, MeasuredCost


def cost_of(table: pd.DataFrame) -> CostModel | MeasuredCost | DenseCost:
    """Return the cost of the runs of a checked run table: by cost model if it has the columns, else as it counts FLOPs.

    Raises ValueError as the `from_table` of the kind of cost does.
    """
    if "mean_recurrence" not in table:
        return DenseCost.from_table(table)
    return CostModel.from_table(table) if "flops_per_token_fixed" in table else MeasuredCost.from_table(table)
