"""FLOPs per token of fixed-depth models, as a function of their parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from isoloop.fitting.cost.base import Cost

_NO_DRIFT = 0.01


@dataclass(frozen=True, kw_only=True)
class DenseCost(Cost):
    """FLOPs of fixed-depth models of N parameters: `flops_per_param_token` N^`exponent` per token.

    By default 6 N, as Kaplan et al. 2020 (arXiv:2001.08361) count: 2 forward and 4 backward, without attention.
    """

    axis = "params"
    effective_params_fixed = None
    effective_params_per_loop = None

    flops_per_param_token: float = 6.0
    exponent: float = 1.0
    unique_tokens: float | None = None

    def __post_init__(self) -> None:
        if not (self.flops_per_param_token > 0 and np.isfinite(self.flops_per_param_token)):
            raise ValueError(
                f"FLOPs per parameter and token must be positive, but got {self.flops_per_param_token}; 6 is usual"
            )

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> DenseCost:
        """Return the cost of a checked table of dense models, from its flops.

        FLOPs per parameter and token are the median of all runs; where they drift with the parameters, as with
        attention that counts, or an output head, the exponent of a line through their logarithms is fitted, too.
        """
        ran = table[table["flops"].notna() & table["tokens"].notna()]
        if ran.empty:
            raise ValueError("a cost needs flops and tokens, but those of all runs are missing; fill them in")
        log_params = np.log(ran["params"].to_numpy(dtype=float))
        log_factor = np.log((ran["flops"] / ran["tokens"]).to_numpy(dtype=float)) - log_params
        offset = log_params - log_params.mean()
        slope = float(offset @ log_factor / (offset @ offset)) if np.ptp(offset) else 0.0
        scatter = float(np.std(log_factor - slope * offset)) / np.sqrt(len(ran))
        # A slope that moves FLOPs by less than 1% over the table, or less than the scatter explains, is none.
        if abs(slope) * np.ptp(offset) < _NO_DRIFT or abs(slope) * np.std(offset) < 3 * scatter:
            return cls(flops_per_param_token=float(np.exp(np.median(log_factor))))
        level = float(np.exp(log_factor.mean() - slope * log_params.mean()))
        return cls(flops_per_param_token=level, exponent=1.0 + slope)

    @property
    def formula(self) -> str:
        """See `Cost.formula`."""
        power = "" if self.exponent == 1 else f"^{self.exponent:.4g}"
        return f"{self.flops_per_param_token:.4g} N{power}"

    def flops_per_token(self, values: ArrayLike) -> np.ndarray:
        """See `Cost.flops_per_token`."""
        return np.asarray(self.flops_per_param_token * np.asarray(values, dtype=float) ** self.exponent)

    def forward_flops_per_token(self, values: ArrayLike, recurrence: ArrayLike) -> np.ndarray:
        """See `Cost.forward_flops_per_token`: a third of those of training, whatever the loops."""
        return np.broadcast_arrays(self.flops_per_token(values) / 3, np.asarray(recurrence, dtype=float))[0]

    def model_columns(self, values: ArrayLike, tokens: ArrayLike) -> dict[str, np.ndarray]:
        """See `Cost.model_columns`."""
        params, tokens = np.asarray(values, dtype=float), np.asarray(tokens, dtype=float)
        columns = {"params": params, "tokens": tokens, "flops": self.flops_for(tokens, params)}
        return columns | self.text_columns(tokens)
