"""Trunks on a small real sweep: CPU time and FLOPs, beside each run trained alone, and whether the results are equal.

Besides, what it costs in loss that Muon's weight decay falls with the learning rate and not over the whole run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t

from benchmarks.results import table
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution.trunks import Trunks
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import PreparedSweep, prepare
from isoloop.trainer.config import ExecutionConfig
from isoloop.trainer.loop import train
from isoloop.trainer.run.result import RunResult

DECAYS = (0.5, 0.2)
LENGTHS, MEAN, STEP_TOKENS = (20, 40, 80, 160, 320), 2, 8 * 32
EXECUTION = ExecutionConfig(peak_flops=1e9)  # without measuring the machine's speed in each run


def run(*, seeds: int) -> str:
    """Return the section of RESULTS.md."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        savings = [_savings(decay, out) for decay in DECAYS]
        count = len(LENGTHS)
        head = (
            f"{count} runs on the CPU, one after the other in one process: numbers of tokens growing by 2, up to "
            f"{LENGTHS[-1]} steps, µ = {MEAN}, width 24, bytes of the standard library of Python. The FLOPs are the "
            "plan's, and those that the runs report; neither depends on the machine. The CPU time contains what "
            f"{count} models cost without a step (to build, evaluate and save them), and is measured once."
        )
        header = ["decay", "FLOPs saved, planned", "measured", "CPU-s", "CPU-s alone", "CPU time saved", "equal losses"]
        return f"{head}\n\n{table(header, savings)}" + (f"\n{_weight_decay(out, seeds)}" if seeds else "")


def _savings(decay: float, out: Path) -> list[str]:
    """Return a row: a sweep with trunks, beside the same with each run trained alone."""
    prepared = _prepare(out / f"together-{decay}", {"schedule": {"decay_fraction": decay}, "trunk": True})
    plan = prepared.plan
    together, seconds = _train(prepared, out / f"together-{decay}")
    alone, seconds_alone = _train(
        replace(prepared, plan=replace(plan, sweep=plan.sweep.model_copy(update={"trunk": False}))),
        out / f"alone-{decay}",
    )
    trained, whole = (sum(r.flops_trained or 0.0 for r in results.values()) for results in (together, alone))
    equal = sum(together[run_id].losses == result.losses for run_id, result in alone.items())
    return [
        f"last {decay:.0%}",
        f"{1 - plan.trained_flops / plan.flops:.1%}",
        f"{1 - trained / whole:.1%}",
        f"{seconds:.0f}",
        f"{seconds_alone:.0f}",
        f"{1 - seconds / seconds_alone:.1%}",
        f"{equal} of {len(alone)}, to the bit",
    ]


def _weight_decay(out: Path, seeds: int) -> str:
    """Return what the decay that falls with the rate costs in loss, in a table."""
    rows = []
    for decay in DECAYS:
        losses: dict[str, list[float]] = {}
        for schedule in ("run", "rate"):
            content = {
                "tokens": [LENGTHS[-1] * STEP_TOKENS],
                "axes": {"seed": list(range(seeds))},
                "schedule": {"decay_fraction": decay},
                "optimizer": {"muon_weight_decay_schedule": schedule},
            }
            folder = out / f"{schedule}-{decay}"
            results, _ = _train(prepared := _prepare(folder, content), folder)
            cells = sorted(prepared.plan.cells, key=lambda cell: cell.spec.seed)
            losses[schedule] = [results[cell.run_id].loss or float("nan") for cell in cells]
        differences = [later - first for first, later in zip(losses["run"], losses["rate"], strict=True)]
        half = t.ppf(0.975, seeds - 1) * stdev(differences) / seeds**0.5
        published, own, middle = mean(losses["run"]), mean(losses["rate"]), mean(differences)
        shown = f"{middle:+.4f} ({middle - half:+.4f} to {middle + half:+.4f})"
        rows.append([f"last {decay:.0%}", f"{published:.4f}", f"{own:.4f}", shown])
    head = (
        f"The longest run with the published weight decay (.2, falling over the whole run) and with one that "
        f"falls with the rate: mean loss of {seeds} seeds, and the mean difference with its 95% interval (Student's t, "
        "pairs of equal seeds). The runs are short and small: this doesn't tell what happens at a published size."
    )
    return f"{head}\n\n{table(['decay', 'published', 'with the rate', 'difference, nats'], rows)}"


def _prepare(out: Path, content: Mapping[str, Any]) -> PreparedSweep:
    sweep = {
        "name": "trunks",
        "tokens": [steps * STEP_TOKENS for steps in LENGTHS],
        "mean_recurrences": [MEAN],
        "optimizer": {"muon_weight_decay_schedule": "rate"},
        "model": {"width": 24, "heads": 2, "context": 32},
        "batch": 8,
        "minimum_steps": 1,
        "evaluation": {"sequences": 64, "recurrences": [1, 4]},
        "data": {"max_tokens": 400_000},
        **content,
    }
    return prepare(validate_sweep(sweep, source="benchmark"), Folders(out=out, name="trunks"))


def _train(prepared: PreparedSweep, out: Path) -> tuple[dict[str, RunResult], float]:
    """Train a sweep's runs in this process, the longest first, and return their results and the CPU seconds."""
    folders, plan = Folders(out=out, name="trunks"), prepared.plan
    trunks = Trunks(plan.cells if plan.sweep.trunk else (), folders)
    (corpus,) = prepared.corpora.values()
    results, began = {}, time.process_time()
    for cell in plan.cells:
        result = train(
            cell.spec, corpus, folders.run(cell.run_id), execution=EXECUTION, branching=trunks.branching(cell)
        )
        assert result is not None, "nothing stops it"
        results[cell.run_id] = result
        trunks.clean([cell])
    return results, time.process_time() - began
