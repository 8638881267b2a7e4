"""The trunks of a plan's runs while they are trained: what is saved, who waits for it, and what can be removed."""

import math
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace

from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import Cell, Plan
from isoloop.sweeps.plan.trunks import (
    FROM_SCRATCH,
    NOTHING,
    Group,
    Origin,
    Saved,
    find_origins,
    states_to_save,
    trunk_groups,
    unneeded_states,
)
from isoloop.sweeps.storage.filesystem import StorageError
from isoloop.sweeps.storage.run_store import RunStore
from isoloop.trainer.run.branch import BRANCHES, Branching, TrunkState
from isoloop.trainer.run.checkpoint import checkpoints
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import read_result

LOOK_SECONDS = 5.0  # between two looks into a storage


class Trunks:
    """The groups of runs that share a trunk, and their traces on disk or in the storage.

    Args:
        cells: the runs of the plan, with those that are done.
        folders: the places of the results.
        run_store: the sweep's storage, where driver and workers share no disk.
    """

    def __init__(self, cells: Iterable[Cell], folders: Folders, run_store: RunStore | None = None) -> None:
        self.folders, self.run_store = folders, run_store
        self._looks: dict[int, tuple[float, dict[str, tuple[int, frozenset[int]]]]] = {}
        self._groups = {cell.run_id: group for group in trunk_groups(cells) for cell in group}

    def origins(self, cells: Collection[Cell], given_up: Collection[str] = frozenset()) -> dict[str, Origin]:
        """Return where each of these unfinished runs starts, by run id.

        Those of `given_up` save nothing any more. Where a run has started, if it has begun already, isn't read.
        """
        found: dict[str, Origin] = {}
        for cell in cells:
            group = self._groups.get(cell.run_id)
            if group is not None and cell.run_id not in found:
                found |= find_origins(group, self._look(group), given_up)
        return {cell.run_id: found.get(cell.run_id, FROM_SCRATCH) for cell in cells}

    def planned_origins(self) -> dict[str, Origin]:
        """Return where each run that shares a trunk starts or has started, also if it is finished."""
        found: dict[str, Origin] = {}
        for group in {id(group): group for group in self._groups.values()}.values():
            saved = {cell.run_id: self._trace(cell.run_id, journal=True) for cell in group}
            found |= {run_id: trace.origin for run_id, trace in saved.items()} | find_origins(group, saved)
        return found

    def branching(self, cell: Cell, given_up: Collection[str] = frozenset()) -> Branching:
        """Return the state that an attempt at a run starts from, and what it saves for others."""
        group = self._groups.get(cell.run_id)
        if group is None:
            return Branching()
        saved = self._look(group)
        origin, start = find_origins(group, saved, given_up).get(cell.run_id, FROM_SCRATCH), None
        if origin.trunk is not None and origin.step in saved.get(origin.trunk, NOTHING).branches:
            folder = self.folders.run(origin.trunk).resolve() / BRANCHES / f"{origin.step:08d}"
            start = TrunkState(run_id=origin.trunk, step=origin.step, folder=folder)
        return Branching(start=start, save_at=states_to_save(cell, group, saved))

    def clean(self, cells: Iterable[Cell]) -> None:
        """Remove the states of these runs' groups from which no unfinished run would start."""
        groups = {id(group): group for cell in cells if (group := self._groups.get(cell.run_id)) is not None}
        for group in groups.values():
            for run_id, step in unneeded_states(group, self._look(group, fresh=True)):
                if self.run_store is not None:
                    with suppress(StorageError):  # the next driver removes it
                        self.run_store.drop_branch(run_id, step)
                else:
                    shutil.rmtree(self.folders.run(run_id) / BRANCHES / f"{step:08d}", ignore_errors=True)

    def _look(self, group: Group, *, fresh: bool = False) -> dict[str, Saved]:
        """Return the traces of a group's runs; while the storage is away, those of the last look."""
        traces = {cell.run_id: self._trace(cell.run_id) for cell in group}
        if self.run_store is None:
            return traces
        last, before = self._looks.get(id(group), (-math.inf, {}))
        steps = before
        if fresh or time.monotonic() - last >= LOOK_SECONDS:
            with suppress(StorageError):
                steps = self.run_store.saved_steps(list(traces))
            self._looks[id(group)] = time.monotonic(), steps
        # What a run has saved for others is newer than its result and its checkpoint, before which it saves that.
        nothing = 0, frozenset[int]()
        return {
            run_id: replace(trace, newest=before.get(run_id, nothing)[0], branches=steps.get(run_id, nothing)[1])
            for run_id, trace in traces.items()
        }

    def _trace(self, run_id: str, *, journal: bool = False) -> Saved:
        folder = self.folders.run(run_id)
        if not folder.is_dir():
            return Saved()
        # The newest checkpoint first, before which a run has saved its states for others.
        newest = max((int(path.name) for path in checkpoints(folder / "checkpoints")), default=0)
        result, origin = read_result(folder), FROM_SCRATCH
        if result is not None:
            origin = Origin(result.trunk_steps)
        elif journal:
            for record in read_journal(folder / "journal.jsonl")[0]:
                if record.get("name") == "branched":
                    origin = Origin(record["step"], record["trunk"])
        branches = frozenset(int(path.name) for path in checkpoints(folder / BRANCHES))
        return Saved(finished=result is not None, newest=newest, branches=branches, origin=origin)


def with_origins(plan: Plan, folders: Folders) -> Plan:
    """Return the plan with the state that each run starts from, by what is on this disk."""
    if not plan.sweep.trunk:
        return plan
    origins = Trunks(plan.cells, folders).planned_origins()
    return replace(
        plan, cells=tuple(replace(cell, origin=origins.get(cell.run_id, FROM_SCRATCH)) for cell in plan.cells)
    )
