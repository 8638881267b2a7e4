"""The contract of a cost: FLOPs per token of models that differ along one axis, and the columns that laws read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike


class Cost(ABC):
    """The FLOPs of models that differ along one axis, the column that varies along an isoFLOP curve.

    A cost has the effective parameters outside the loop and per loop, if they are known, for laws that read them, and
    the `unique_tokens` of the text that the models are trained on, None where text is new to the end.
    """

    axis: ClassVar[str]
    unique_tokens: float | None
    effective_params_fixed: float | None
    effective_params_per_loop: float | None

    @property
    @abstractmethod
    def formula(self) -> str:
        """FLOPs per token in words or symbols, for reports."""

    @abstractmethod
    def flops_per_token(self, values: ArrayLike) -> np.ndarray:
        """Return FLOPs per token, forward and backward, of models with `values` on the axis, of their shape."""

    def forward_flops_per_token(self, values: ArrayLike, recurrence: ArrayLike) -> np.ndarray:
        """Return FLOPs per token of a forward pass of `recurrence` loops T, of the arguments' broadcast shape.

        Raises ValueError for a table that counts forward and backward together.
        """
        raise ValueError(
            "the FLOPs of a forward pass need the columns of the cost model (flops_per_token_fixed and so on), but "
            "this table counts those of training alone; add them, or leave out the tokens to be served"
        )

    def model_columns(self, values: ArrayLike, tokens: ArrayLike) -> dict[str, np.ndarray]:
        """Return the columns that laws read of models with `values` on the axis and these tokens, of their shape.

        The loss of a looped model is that at T = mean recurrence.
        """
        mu, tokens = np.asarray(values, dtype=float), np.asarray(tokens, dtype=float)
        columns = {"mean_recurrence": mu, "recurrence": mu, "tokens": tokens, "flops": self.flops_for(tokens, mu)}
        columns |= self.text_columns(tokens)
        if self.effective_params_fixed is None or self.effective_params_per_loop is None:
            return columns
        return columns | architecture_columns(mu, self.effective_params_fixed, self.effective_params_per_loop)

    def text_columns(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Return the column `unique_tokens`, of the shape of `tokens`; nothing where text is new to the end."""
        return {} if self.unique_tokens is None else {"unique_tokens": np.full_like(tokens, self.unique_tokens)}

    def columns(self, budget: ArrayLike, values: ArrayLike) -> dict[str, np.ndarray]:
        """Return the columns that laws read, of the shape of `values`, of models that spend exactly `budget` FLOPs."""
        return self.model_columns(values, self.tokens_for(budget, values))

    def tokens_for(self, budget: ArrayLike, values: ArrayLike) -> np.ndarray:
        """Return the tokens that spend exactly `budget` FLOPs with `values` on the axis."""
        return np.asarray(budget, dtype=float) / self.flops_per_token(values)

    def flops_for(self, tokens: ArrayLike, values: ArrayLike) -> np.ndarray:
        """Return the training FLOPs of `tokens` tokens with `values` on the axis."""
        return np.asarray(tokens, dtype=float) * self.flops_per_token(values)

    def assumption_at(self, value: float) -> str:
        """Return what the FLOPs of a model with `value` on the axis assume that the runs do not show; empty if nothing.

        It completes a sentence such as 'the cost assumes ...'.
        """
        return ""


def architecture_columns(
    mean_recurrence: ArrayLike, effective_params_fixed: ArrayLike, effective_params_per_loop: ArrayLike
) -> dict[str, np.ndarray]:
    """Return the columns of a model's shape that laws read, embeddings apart, of the arguments' broadcast shape.

    `params` counts every parameter once, `effective_params` those of the unrolled model.
    """
    arguments = (mean_recurrence, effective_params_fixed, effective_params_per_loop)
    mu, once, recurrent = np.broadcast_arrays(*(np.asarray(values, dtype=float) for values in arguments))
    return {
        "mean_recurrence": mu,
        "params_once": once,
        "params_recurrent": recurrent,
        "params": once + recurrent,
        "effective_params": once + mu * recurrent,
    }
