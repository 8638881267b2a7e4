"""Trunks in the engine, on a cluster in virtual time: who waits for whom, and what happens when a trunk fails."""

import dataclasses
import json

import pytest

from isoloop.sweeps.execution.status import read_status, write_manifest
from isoloop.sweeps.execution.trunks import Trunks, with_origins
from isoloop.sweeps.plan.packing import Node
from isoloop.sweeps.plan.trunks import Origin
from isoloop.trainer.run.branch import BRANCHES
from isoloop.trainer.run.checkpoint import checkpoints
from isoloop.trainer.run.journal import Journal
from tests.sweeps.execution import test_engine
from tests.sweeps.execution.test_engine import Trial
from tests.sweeps.execution.virtual import BROKEN, LOST, Act
from tests.sweeps.plan.test_trunks import plan

clock = test_engine.clock


class TrunkTrial(Trial):
    """Runs of 100, 200 and 400 steps of one second each, of which the longest is the trunk; the longest comes first."""

    def __init__(self, folders, clock, gpus=3):
        super().__init__(folders, clock)
        self.plan = plan(100, 200, 400, resources={"gpus": 1})
        self.cluster.machines = [Node("a", 8, [1.0] * gpus)]
        self.set_out()

    def set_out(self):
        planned = with_origins(self.plan, self.folders)
        self.cells = [dataclasses.replace(cell, seconds=float(cell.spec.steps)) for cell in planned.cells]
        self.long, self.middle, self.short = (cell.run_id for cell in self.cells)
        self.cluster.seconds = {cell.run_id: cell.trained_seconds for cell in self.cells}

    def engine(self):
        engine = super().engine()
        engine.trunks = Trunks(self.plan.cells, self.folders)
        return engine

    def states(self, run_id):
        return [int(path.name) for path in checkpoints(self.folders.run(run_id) / BRANCHES)]

    def branching(self, run_id):
        """From where the attempts at a run started."""
        return [
            task.branching.start and (task.branching.start.run_id, task.branching.start.step)
            for task in self.tasks(run_id)
        ]

    def tasks(self, run_id):
        return [task for task in self.cluster.tasks if task.run_id == run_id]


@pytest.fixture
def trial(folders, clock):
    return TrunkTrial(folders, clock)


def test_branches_start_when_their_state_exists_while_the_trunk_goes_on(trial):
    trial.run()
    assert set(trial.outcome.results) == {trial.long, trial.middle, trial.short}
    assert trial.starts(trial.long) == [0]
    assert trial.starts(trial.short) == [pytest.approx(51, abs=2)]
    assert trial.starts(trial.middle) == [pytest.approx(101, abs=2)]
    assert trial.branching(trial.middle) == [(trial.long, 101)]
    assert trial.clock.now - 1000 == pytest.approx(400, abs=2)  # the trunk's own time: the others end before
    assert trial.states(trial.long) == []  # all are taken


def test_a_state_is_removed_when_no_run_would_start_from_it(trial):
    seen = {}
    trial.run(lambda engine: seen.update({trial.clock.now - 1000: trial.states(trial.long)}))

    def in_between(first, last):
        return {tuple(states) for second, states in seen.items() if first < second < last}

    # The first state is the middle run's, too, while that has no better one, and is removed with the first branch.
    assert in_between(53, 98) == {(51,)}
    assert in_between(104, 198) == {(101,)}
    assert in_between(204, 399) == {()}


def test_on_one_gpu_the_trunk_is_first_and_the_branches_train_what_is_theirs(folders, clock):
    trial = TrunkTrial(folders, clock, gpus=1)
    trial.run()
    assert next(run for _, what, run in trial.cluster.log if what == "start") == trial.long
    assert trial.clock.now - 1000 == pytest.approx(400 + 99 + 49, abs=3)


def test_a_trunk_that_fails_for_good_leaves_its_branches_to_the_next_longest(trial):
    trial.cluster.scripts[trial.long] = [Act(end=BROKEN, seconds=60.0)]
    trial.run()
    assert set(trial.outcome.failed) == {trial.long}
    assert set(trial.outcome.results) == {trial.middle, trial.short}
    # The first has saved one state before: from there the middle one goes on.
    assert trial.branching(trial.middle) == [(trial.long, 51)]
    assert trial.branching(trial.short) == [(trial.long, 51)]


def test_a_trunk_that_fails_before_any_state_is_replaced(trial):
    trial.cluster.scripts[trial.long] = [Act(end=BROKEN, seconds=10.0)]
    trial.cluster.seconds[trial.middle] = 200.0  # it trains all of its steps
    trial.run()
    assert set(trial.outcome.results) == {trial.middle, trial.short}
    assert trial.branching(trial.middle) == [None]
    assert trial.branching(trial.short) == [(trial.middle, 51)]
    assert trial.starts(trial.short) == [pytest.approx(10 + 51, abs=3)]


def test_a_lost_trunk_starts_again_and_is_waited_for(trial):
    trial.cluster.scripts[trial.long] = [Act(end=LOST, seconds=30.0, step=30)]
    trial.run()
    assert set(trial.outcome.results) == {trial.long, trial.middle, trial.short}
    assert trial.starts(trial.short)[0] > 30 + 51 - 2


def test_a_kill_of_the_driver_between_two_branches_loses_nothing(trial):
    def kill(engine):
        if trial.short in trial.outcome.results:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trial.run(kill)
    assert trial.states(trial.long) == [51]  # for the middle run, whose state isn't saved yet
    done = dict(trial.outcome.results)
    trial.set_out()
    trial.cells = [cell for cell in trial.cells if cell.run_id not in done]
    trial.run()
    assert set(trial.outcome.results) == {trial.long, trial.middle, trial.short}
    assert trial.branching(trial.middle) == [(trial.long, 101)]


def test_what_waits_is_told(trial):
    state = {}
    trial.run(lambda engine: state.update(json.loads(trial.folders.state.read_text())["held"]))
    assert state[trial.short] == f"waits until {trial.long} has done 51 steps, and branches off"


def test_a_shorter_run_that_comes_later_trains_alone(trial):
    """The longer ones are done, and left nothing."""
    trial.run()
    trial.plan = plan(50, 100, 200, 400, resources={"gpus": 1})
    cells = with_origins(trial.plan, trial.folders).cells
    new = min(cells, key=lambda cell: cell.spec.steps)
    assert new.origin.step == 0
    trial.cells, trial.cluster.seconds = [new], {new.run_id: 50.0}
    trial.run()
    assert new.run_id in trial.outcome.results


def test_the_share_that_is_done_is_of_what_the_runs_train(folders):
    """The branch trains 49 of its 100 steps, and the longer one all of its 200; all steps cost the same."""
    cells = with_origins(plan(100, 200), folders).cells
    write_manifest(cells, folders)
    journal = Journal(folders.run(cells[1].run_id) / "journal.jsonl")
    journal.event("branched", trunk=cells[0].run_id, step=51)
    journal.metrics(75, {"train_loss": 1.0})
    journal.close()
    status = read_status(folders)
    assert status.flops == pytest.approx(249 * cells[0].flops / 200)
    assert status.share == pytest.approx(24 / 249)
    again = with_origins(plan(100, 200), folders)
    assert again.cells[1].origin == Origin(51, cells[0].run_id, waits=True)  # it has no checkpoint yet
    (folders.run(cells[1].run_id) / "checkpoints" / "00000070").mkdir(parents=True)
    assert with_origins(again, folders).cells[1].origin == Origin(51, cells[0].run_id)
