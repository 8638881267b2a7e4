"""isoFLOP minima as a way of predicting held-out runs, to stand beside the laws."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from fitting.cost import AnyCost
from fitting.holdout import Predicted
from fitting.isoflop import fit_isoflop, predict_from_minima
from fitting.law import Data


@dataclass(frozen=True, kw_only=True)
class MinimaMethod:
    """Parabolas per budget, power laws through their minima: see `predict_from_minima`. A `Method` of `compare`.

    A held-out run is taken to spend its budget exactly.
    """

    floor: bool
    cost: AnyCost

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"isoFLOP minima, L* = {'E + ' if self.floor else ''}k C^-g"

    def predict(self, shown: Data, hidden: Data) -> Predicted:
        """See `Method.predict`; without intervals. Raises ValueError as `fit_isoflop` and `predict_from_minima` do."""
        missing = [name for name in ("budget", self.cost.axis) if name not in shown]
        if missing:
            raise ValueError(f"isoFLOP minima need the columns {', '.join(missing)}, but the runs have none; add them")
        columns = {name: shown[name] for name in ("budget", self.cost.axis, "tokens", "loss")}
        fit = fit_isoflop(pd.DataFrame(columns), self.cost, draws=0)
        return predict_from_minima(fit, hidden["budget"], hidden[self.cost.axis], floor=self.floor), None
