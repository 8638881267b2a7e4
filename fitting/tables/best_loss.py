"""The loss that fits read of a run: that of its last step, or of its best step where repeated text made it rise again.

The rule: a finished run that saw text again (over 1 epoch) and whose lowest loss, `best_loss`, is below its last one,
`loss`, is read at its best step, at every T (`best_loss`, `best_loss_T*`). Every other run is read at its last step.

The lowest of several evaluations is biased low. All are on the same sequences, so only the noise along one run's path
counts: of n evaluations about a flat minimum whose neighbours scatter by s, the lowest lies about s sqrt(2 ln n) below
at most (docs/trainer.md has measured sizes). A run that isn't overfitted has its lowest loss at the end, where the
learning rate has decayed, and no bias.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from isoloop.fitting.tables.contract import best_column, counted, loss_columns
from isoloop.fitting.tables.repetition import epochs_of


def overfitted_rows(table: pd.DataFrame) -> np.ndarray:
    """Return a mask (rows,) of the finished runs that saw text again and whose loss rose after their best step."""
    if "best_loss" not in table or "status" not in table:
        return np.zeros(len(table), dtype=bool)
    rose = (table["status"] == "finished") & (table["best_loss"] < table["loss"])
    return np.asarray(rose.to_numpy(dtype=bool) & (epochs_of(table) > 1))


def with_best_losses(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the losses that fits read in `loss` and `loss_T*`; the same table if no run overfitted.

    At a T where the best step was not evaluated, the loss of an overfitted run is missing.
    """
    overfitted = overfitted_rows(table)
    if not overfitted.any():
        return table
    best = {name: table.get(best_column(name), np.nan) for name in ("loss", *loss_columns(table))}
    return table.assign(**{name: table[name].mask(overfitted, losses) for name, losses in best.items()})


def best_loss_notes(table: pd.DataFrame) -> list[str]:
    """Return the sentence that says of how many finished runs another loss than the last is read, if there are any."""
    overfitted, finished = overfitted_rows(table), (table["status"] == "finished").to_numpy()
    notes = []
    if overfitted.any():
        count = counted(int(finished.sum()), "run")
        notes.append(
            f"Losses of {int(overfitted.sum())} of {count} are those of their best step, because their loss rose after "
            "it. Each is the lowest of several evaluations, so slightly low."
        )
    if "best_loss" in table:
        unknown = finished & np.isnan(epochs_of(table)) & (table["best_loss"] < table["loss"]).to_numpy(dtype=bool)
        if unknown.any():
            notes.append(
                f"Losses of {counted(int(unknown.sum()), 'run')} are those of the last step although `best_loss` is "
                "lower: it is read only where text was seen again (add unique_tokens or epochs)."
            )
    return notes
