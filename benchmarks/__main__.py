"""`python -m benchmarks`: run the benchmarks that this machine can, and write benchmarks/RESULTS.md."""

import datetime
import os
from pathlib import Path

import torch

from benchmarks import evaluation, head, leaving_the_batch, small_steps, training_speed
from benchmarks.measure import Row, machine
from benchmarks.results import table

RESULTS = Path(__file__).with_name("RESULTS.md")


HEADER = ("what", "result", "wanted")


def main() -> None:
    """Run all benchmarks and write their table."""
    torch.set_num_threads(os.cpu_count() or 1)
    rows: list[Row] = []
    for benchmark in (leaving_the_batch, head, evaluation, small_steps, training_speed):
        measured = benchmark.run()
        print(table(HEADER, [(row.name, row.result, row.wanted) for row in measured]), flush=True)
        rows += measured
    text = f"# Measured {datetime.date.today().isoformat()}\n\n{machine()}. Made by `python -m benchmarks`.\n\n"
    RESULTS.write_text(text + table(HEADER, [(row.name, row.result, row.wanted) for row in rows]))
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
