"""`python -m benchmarks`: run what this machine can, and write it into benchmarks/RESULTS.md with the date."""

import datetime
import os
from pathlib import Path

import torch

from benchmarks import evaluation, head, leaving_the_batch, training_speed
from benchmarks.measure import Row, machine

RESULTS = Path(__file__).with_name("RESULTS.md")


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| what | result | wanted |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {row.name} | {row.result} | {row.wanted} |" for row in rows)])


def main() -> None:
    """Run all and write the table."""
    torch.set_num_threads(os.cpu_count() or 1)
    rows: list[Row] = []
    for benchmark in (leaving_the_batch, head, evaluation, training_speed):
        rows += (found := benchmark.run())
        print(table(found), flush=True)
    text = f"# Measured {datetime.date.today().isoformat()}\n\n{machine()}. Made by `python -m benchmarks`.\n\n"
    RESULTS.write_text(text + table(rows) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
