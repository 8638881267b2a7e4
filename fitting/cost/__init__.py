"""The FLOPs of models as functions of what they differ in: mean recurrence, or parameters."""

from isoloop.fitting.cost.base import Cost, architecture_columns
from isoloop.fitting.cost.dense import DenseCost
from isoloop.fitting.cost.looped import CostModel, MeasuredCost
from isoloop.fitting.cost.of_table import cost_of

__all__ = ["Cost", "CostModel", "DenseCost", "MeasuredCost", "architecture_columns", "cost_of"]
