"""Keep, for each text size and mean recurrence, the runs of the weight decay that is best there.

python results/limited-text/tuned.py sweep/runs.csv FOLDER

The best decay has the least mean loss over those budgets of seed 0 that see text again; other seeds have no part in the
choice. It writes a table per text size, FOLDER/<size>/runs.csv, and the means that were compared, FOLDER/decay.csv.
"""

import sys
from pathlib import Path

import pandas as pd

DECAY = "optimizer.muon_weight_decay"
CASE = ["data.unique_tokens", "mean_recurrence"]


def main() -> None:
    """Read the sweep's table, choose, and write."""
    table = pd.read_csv(sys.argv[1])
    folder = Path(sys.argv[2])
    first = table[table["seed"] == 0]
    again = first[first["epochs"] > 1]
    means = again.groupby([*CASE, DECAY])["loss"].mean()
    best = means.loc[means.groupby(CASE).idxmin()].reset_index()
    means.rename("mean_loss").reset_index().to_csv(folder / "decay.csv", index=False, float_format="%.4f")
    tuned = table.merge(best[[*CASE, DECAY]], on=[*CASE, DECAY])
    for size, runs in tuned.groupby("data.unique_tokens"):
        place = folder / f"{int(size) // 1000}k"
        place.mkdir(exist_ok=True)
        runs.drop(columns=["group", DECAY, CASE[0]]).to_csv(place / "runs.csv", index=False)


if __name__ == "__main__":
    main()
