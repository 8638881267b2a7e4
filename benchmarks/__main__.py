"""`python -m benchmarks [NAME ...]`: run benchmarks of the trainer, by default all, and write their results."""

import argparse
import os
from pathlib import Path

import torch

from benchmarks import (
    evaluation,
    generation,
    head,
    leaving_the_batch,
    shared_prefixes,
    small_steps,
    training_speed,
)
from benchmarks.measure import machine
from benchmarks.results import Results, table

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADER = ("what", "result", "wanted")
BENCHMARKS = {
    "leaving_the_batch": leaving_the_batch,
    "head": head,
    "evaluation": evaluation,
    "shared_prefixes": shared_prefixes,
    "small_steps": small_steps,
    "training_speed": training_speed,
    "generation": generation,
}
SECTIONS = Results(
    title="# The trainer, measured",
    introduction="Every number is from `python -m benchmarks`; each section says when and on what it was made.",
    sections={
        "leaving_the_batch": "Sequences leave the batch",
        "head": "The chunked head",
        "evaluation": "Evaluation at many T",
        "shared_prefixes": "Few-shot questions, examples read once",
        "small_steps": "Small steps on one thread",
        "training_speed": "Compiled steps, recomputed loops",
        "generation": "Generation with a cache",
    },
    module="benchmarks",
)


def main() -> None:
    """Run the named benchmarks, print their tables and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(BENCHMARKS)}")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"NAME must be one of {', '.join(BENCHMARKS)}, but got {unknown[0]}")
    torch.set_num_threads(os.cpu_count() or 1)
    for name in names:
        rows = BENCHMARKS[name].run()
        if rows:
            text = table(HEADER, [(row.name, row.result, row.wanted) for row in rows])
            print(text, flush=True)
            SECTIONS.write(RESULTS, name, text, machine())
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
