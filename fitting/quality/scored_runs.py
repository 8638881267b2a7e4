"""The runs whose scores are fitted, with the loss of the weights that were scored."""

from __future__ import annotations

import numpy as np
import pandas as pd

from isoloop.fitting.tables.best_loss import overfitted_rows
from isoloop.fitting.tables.quality import SCORED_WEIGHTS
from isoloop.fitting.tables.runs import finished_rows


def scored_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that can be fitted (`finished_rows`), with the `loss` of the weights that the scores are of.

    An overfitted run is read at its best step, but its last weights were scored where `scored_weights` is `last`.
    """
    rows = finished_rows(table.assign(_last_loss=table["loss"]))
    if SCORED_WEIGHTS in rows:
        rows["loss"] = rows["loss"].mask(rows[SCORED_WEIGHTS] == "last", rows["_last_loss"])
    return rows.drop(columns="_last_loss")


def of_unknown_weights(table: pd.DataFrame, score: str) -> np.ndarray:
    """Return a mask (rows,) of the overfitted runs with this score of which nothing says what weights it is of."""
    known = table[SCORED_WEIGHTS].isin(["last", "best"]) if SCORED_WEIGHTS in table else pd.Series(False, table.index)
    return overfitted_rows(table) & table[score].notna().to_numpy() & ~known.to_numpy(dtype=bool)
