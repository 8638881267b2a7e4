"""Trunks: runs that differ in tokens alone share their first steps, which the longest of them trains for all.

Where a shorter one leaves it, the longest saves its state, from which the other goes on. What exists decides: a state
that is saved is used, one that an unfinished run has still to reach is waited for, and otherwise a run trains alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isoloop.trainer.run.branch import branch_step, why_no_branch

if TYPE_CHECKING:
    from isoloop.sweeps.plan.grid import Cell

Group = Sequence["Cell"]  # runs whose specifications differ in their steps alone, the longest first


@dataclass(frozen=True)
class Origin:
    """The state that a run starts from: `step` steps of the run `trunk`, or nothing.

    `waits` is True while the trunk hasn't saved it.
    """

    step: int = 0
    trunk: str | None = None
    waits: bool = False


FROM_SCRATCH = Origin()


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The traces of a run.

    Attributes:
        finished: it has a result.
        newest: steps of its newest checkpoint.
        branches: steps of the states that it has saved for others.
        origin: the state of another run from which it has started.
    """

    finished: bool = False
    newest: int = 0
    branches: frozenset[int] = frozenset()
    origin: Origin = FROM_SCRATCH


NOTHING = Saved()


def trunk_groups(cells: Iterable["Cell"]) -> list[Group]:
    """Return the groups of several runs whose specifications differ in their steps alone, each the longest run first.

    Raises:
        ValueError: in a run of a group, more than its decay depends on its number of steps.
    """
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.spec.model_copy(update={"steps": 1}), []).append(cell)
    several = [group for group in groups.values() if len(group) > 1]
    for group in several:
        again = any(cell.epochs is not None and cell.epochs > 1 for cell in group)
        if (reason := why_no_branch(group[0].spec, sees_text_again=again)) is not None:
            raise ValueError(
                f"with trunk: true, runs that differ in tokens alone must do the same until the learning rate decays, "
                f"but at {group[0].label} {reason}; or set trunk to false"
            )
    return [sorted(group, key=lambda cell: -cell.spec.steps) for group in several]


def find_origins(
    group: Group, saved: Mapping[str, Saved], given_up: Collection[str] = frozenset()
) -> dict[str, Origin]:
    """Return where each unfinished run of a group starts; those of `given_up` save nothing any more.

    From its own checkpoint, if that is newer than what others have saved, a run goes on as it began.
    """
    origins: dict[str, Origin] = {}
    ahead: list[tuple[str, int]] = []  # runs that will save states, and the steps that they have done already
    for cell in group:
        own, step = saved.get(cell.run_id, NOTHING), branch_step(cell.spec)
        if own.finished:
            continue
        best, trunk = _best_state(cell, group, saved)
        done = max(own.newest, best)
        provider = next((run_id for run_id, done in ahead if done < step), None)
        if done < step and provider is not None:
            origins[cell.run_id] = Origin(step, provider, waits=True)
            continue
        origins[cell.run_id] = Origin(best, trunk) if best > own.newest else own.origin
        if cell.run_id not in given_up:
            ahead.append((cell.run_id, done))
    return origins


def states_to_save(cell: "Cell", group: Group, saved: Mapping[str, Saved]) -> tuple[int, ...]:
    """Return the steps after which a run must save its state for shorter ones."""
    steps = set()
    for other in group:
        theirs, step = saved.get(other.run_id, NOTHING), branch_step(other.spec)
        if other.spec.steps < cell.spec.steps and not theirs.finished and theirs.newest < step:
            steps.add(step)
    return tuple(sorted(steps - {step for trace in saved.values() for step in trace.branches}))


def unneeded_states(group: Group, saved: Mapping[str, Saved]) -> list[tuple[str, int]]:
    """Return the saved states, run and step, from which no unfinished run of the group would start now."""
    needed = set()
    for cell in group:
        own = saved.get(cell.run_id, NOTHING)
        best, trunk = _best_state(cell, group, saved)
        if not own.finished and best > own.newest:
            needed.add((trunk, best))
    present = [(cell.run_id, step) for cell in group for step in saved.get(cell.run_id, NOTHING).branches]
    return [state for state in present if state not in needed]


def _best_state(cell: "Cell", group: Group, saved: Mapping[str, Saved]) -> tuple[int, str | None]:
    """Return the steps and the run of the furthest state that others have saved and a run can start from; else 0."""
    others = (other.run_id for other in group if other is not cell)
    states = [(step, run_id) for run_id in others for step in saved.get(run_id, NOTHING).branches]
    return max((state for state in states if state[0] <= branch_step(cell.spec)), default=(0, None))
