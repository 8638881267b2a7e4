"""Collect what a run table leaves out: exact answers by k and T, and the state at the end of training, of each run.

python results/collect.py NAME FOLDER --out out

It writes FOLDER/states.csv, and where the text is synthetic, FOLDER/answers.csv.
"""

import argparse
from pathlib import Path

import pandas as pd

from isoloop.sweeps.paths import Folders
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import read_result

STATES = ("train_loss", "spectral_radius", "state_norm", "last_loop_residual")


def main() -> None:
    """Read every run of the sweep's table, and write one row per run and k, and one row per run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("isoloop-out"))
    given = parser.parse_args()
    folders = Folders(out=given.out, name=given.name)
    answers, states = [], []
    for run_id in pd.read_csv(folders.table)["run_id"]:
        result = read_result(folders.run(run_id))
        assert result is not None, f"the run {run_id} of the table has no result"
        for k, shares in (result.answers or {}).items():
            answers.append({"run_id": run_id, "k": k, **{f"T{loops}": share for loops, share in shares.items()}})
        records, _ = read_journal(folders.run(run_id) / "journal.jsonl")
        last = [record["values"] for record in records if "state_norm" in record.get("values", {})][-1]
        states.append({"run_id": run_id, **{name: last[name] for name in STATES}})
    if answers:
        pd.DataFrame(answers).to_csv(given.folder / "answers.csv", index=False, float_format="%.4f")
    pd.DataFrame(states).to_csv(given.folder / "states.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
