"""Branches: a run that goes on from the state of another, its trunk, as if it had trained up to there itself.

Runs that differ in their steps alone take the same steps until the learning rate of the shorter one begins to fall:
loops and batches are functions of (seed, step). So the longest saves its state where each shorter one leaves it, under

    <run>/branches/00000400/state.pt
"""

from bisect import bisect_left
from pathlib import Path

from isoloop.trainer.accounting import flops_spent
from isoloop.trainer.config import Config, RunSpec

BRANCHES = "branches"


class TrunkState(Config):
    """A saved state of another run: its id, the steps that it had done, and the folder of the checkpoint."""

    run_id: str
    step: int
    folder: Path


class Branching(Config):
    """The state that a run starts from, None for a start at step 0, and the steps after which it saves its own."""

    start: TrunkState | None = None
    save_at: tuple[int, ...] = ()


def branch_step(spec: RunSpec) -> int:
    """Return the number of steps that a run shares with any longer one: those at the peak rate, but not its last."""

    def is_falling(step: int) -> bool:
        return spec.schedule.rate_factor(step, spec.steps) < 1

    return min(bisect_left(range(spec.steps), True, key=is_falling), spec.steps - 1)


def why_no_branch(spec: RunSpec, *, sees_text_again: bool) -> str | None:
    """Return what in a run's first steps depends on its number of steps, and what to change; None if nothing does."""
    optimizer, recurrence = spec.optimizer, spec.recurrence
    if optimizer.muon_weight_decay and optimizer.muon_weight_decay_schedule == "run":
        return (
            f"weight decay falls over the whole run, as published (muon_weight_decay={optimizer.muon_weight_decay:g}, "
            "muon_weight_decay_schedule='run'); set optimizer.muon_weight_decay_schedule to rate, with which it falls "
            "as the learning rate does, or optimizer.muon_weight_decay to 0"
        )
    if recurrence.phases:
        ends = ", ".join(f"{phase.until:g}" for phase in recurrence.phases)
        return f"the phases (depth.phases, until {ends}) end after fractions of the run's steps; leave them out"
    if recurrence.curriculum_start is not None:
        return (
            f"the curriculum (depth.curriculum_start={recurrence.curriculum_start}) grows over a fraction of the run's "
            "steps; leave it out"
        )
    if (count := spec.evaluation.evaluations(sees_text_again=sees_text_again)) > 0:
        return (
            f"the best of {count} losses during training, evenly spaced over its steps, is kept; set "
            "evaluation.during_training to 0"
        )
    return None


def trunk_counts(spec: RunSpec, step: int, counts: dict[str, float]) -> dict[str, float]:
    """Return what a branch must keep of its trunk's first `step` steps: their number, and their FLOPs by `exact`."""
    sequences = max(1, step * spec.batch)
    loops = counts["forward_loops"] / sequences, counts["backward_loops"] / sequences
    spent = flops_spent(spec.model, spec.recurrence, step * spec.tokens_per_step, *loops)
    return {"trunk_steps": float(step), "trunk_flops": spent["flops_exact"]}
