"""The engine on a cluster in virtual time: order, retries, hangs, machines that come and go, stopping."""

import dataclasses
import errno
import json

import pytest

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution import engine as engine_module
from isoloop.sweeps.execution.engine import (
    BUSY_SECONDS,
    NODE_GRACE_SECONDS,
    RETRY_SECONDS,
    Engine,
    SweepOutcome,
    run_plan,
)
from isoloop.sweeps.execution.worker import AttemptEnd, Task
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.plan.packing import Needs, Node
from isoloop.sweeps.plan.quality import QualityTask
from isoloop.trainer.run.branch import Branching
from isoloop.trainer.run.result import write_result
from tests.sweeps.conftest import SIMULATED
from tests.sweeps.execution import virtual
from tests.sweeps.execution.virtual import BROKEN, DONE, FOREVER, LOST, Act, Clock, VirtualCluster, result_of

PLAN = plan_sweep(validate_sweep({**SIMULATED, "resources": {"gpus": 1}}, source="test"), simulated_corpus)


class Watcher(Progress):
    def __init__(self):
        self.lines = []

    def event(self, line):
        self.lines.append(line)

    def retried(self):
        """Run ids of the runs that were started again."""
        return [line.split()[0] for line in self.lines if "starts again: " in line]


class Evaluations:
    """What a sweep evaluates, without suites."""

    def __init__(self, folders):
        self.folders = folders

    def is_done(self, cell):
        return self.folders.quality(cell.run_id).is_dir()

    def task(self, cell):
        folder = self.folders.quality(cell.run_id)
        return QualityTask(suites={"core": None}, folder=folder, recurrences=(1,), seeds=(1,))


class Trial:
    """A few runs of known durations on virtual machines."""

    def __init__(self, folders, clock):
        self.folders, self.clock = folders, clock
        self.sweep, self.watcher, self.outcome = PLAN.sweep, Watcher(), SweepOutcome()
        self.quality = None
        self.cells, self.started, self.cluster = [], [], VirtualCluster(clock, [Node("a", 8, [1.0] * 2)], {})

    def runs(self, *seconds, **resources):
        """Cells that take so long, each with these resources; returns their ids."""
        given = PLAN.cells[0].resources.model_copy(update=resources)
        first = len(self.cells)
        cells = [
            dataclasses.replace(cell, seconds=float(taken), resources=given)
            for cell, taken in zip(PLAN.cells[first:], seconds, strict=False)
        ]
        self.cells += cells
        self.cluster.seconds |= {cell.run_id: cell.seconds for cell in cells}
        return [cell.run_id for cell in cells]

    def evaluate(self):
        """Let finished runs be evaluated: one that was has a folder of results."""
        self.quality = Evaluations(self.folders)

    def evaluated(self):
        """Ids of the runs that were evaluated."""
        return {cell.run_id for cell in self.cells if self.quality.is_done(cell)}

    def engine(self):
        self.folders.sweep.mkdir(parents=True, exist_ok=True)
        return Engine(
            self.cluster, self.sweep, self.folders, {},
            progress=self.watcher, outcome=self.outcome, on_start=self.started.append, quality=self.quality,
        )  # fmt: skip

    def run(self, meanwhile=lambda engine: None, *, limit=100_000):
        """To the end; then all machines are free again and nothing is left to do."""
        with self.engine() as engine:
            engine.add(self.cells)
            began = self.clock.now
            while engine.busy:
                engine.evaluate(engine.poll())
                meanwhile(engine)
                assert self.clock.now - began < limit, "it never ends"
        assert not self.cluster.attempts
        assert self.cluster.free() == self.cluster.nodes()
        return self.outcome

    def starts(self, run_id):
        return self.cluster.times("start", run_id)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(engine_module, "time", clock)
    return clock


@pytest.fixture
def trial(tmp_path, clock):
    return Trial(Folders(out=tmp_path / "out", name="small"), clock)


class TestOrder:
    def test_longest_first_and_each_once(self, trial):
        ids = trial.runs(1, 4, 2, 8, 3)
        assert set(trial.run().results) == set(ids)
        assert [run for _, what, run in trial.cluster.log if what == "start"] == [ids[i] for i in (3, 1, 4, 2, 0)]
        assert trial.started == [ids[i] for i in (3, 1, 4, 2, 0)]
        assert trial.clock.now - 1000 == pytest.approx(9, abs=0.1)  # 18 s of work on two GPUs

    def test_shares_and_several_gpus(self, trial):
        """Nothing is given twice (the cluster checks), and the wide run isn't forgotten."""
        trial.cluster.machines = [Node("a", 8, [1.0] * 2), Node("b", 8, [1.0] * 2)]
        small, wide = trial.runs(1, 2, 3, 4, 5, 6, gpus=0.5), trial.runs(5, 5, processes=3)
        assert set(trial.run().results) == {*small, *wide}

    def test_what_never_fits_is_refused_before_anything_starts(self, trial):
        trial.runs(1)
        trial.runs(1, processes=3)
        with pytest.raises(ValueError, match=r"a run must fit the cluster, but its resources ask for 3 process\(es\)"):
            trial.run()
        assert not trial.cluster.log

    def test_cells_can_be_added_on_the_way(self, trial):
        ids = trial.runs(5, 5)
        later = []

        def add(engine):
            if not later:
                later.extend(trial.runs(3))
                engine.add(trial.cells[-1:])

        assert set(trial.run(add).results) == {*ids, *later}

    def test_what_is_done_is_not_started(self, trial, clock):
        ids = trial.runs(2, 3)
        folder = trial.folders.run(ids[0])
        folder.mkdir(parents=True)
        write_result(folder, result_of(Task.model_construct(run_id=ids[0])))
        plan = dataclasses.replace(PLAN, cells=tuple(trial.cells))

        class Started:
            def __enter__(self):
                return trial.cluster

            def __exit__(self, *_):
                pass

        assert set(run_plan(plan, trial.folders, Started, corpora={}).results) == set(ids)
        assert {run for _, what, run in trial.cluster.log if what == "start"} == {ids[1]}


class TestTheQueueInRay:
    """The runs that are handed to Ray, which has no order of its own."""

    def test_the_longest_within_the_window(self, trial):
        """1.25 times the cluster, the next in line as soon as there is room in it, and at least one that waits."""
        trial.cluster.machines = [Node("a", 99, [1.0] * 8)]
        trial.runs(*range(20, 4, -1))
        in_ray = []

        def look(engine):
            in_ray.append([trial.cells.index(run.cell) for run in engine.attempts.values()])

        trial.run(look)
        assert in_ray[0] == list(range(10))
        assert max(map(len, in_ray)) == 10
        trial.cluster.machines, trial.outcome = [Node("a", 99, [1.0])], SweepOutcome()
        in_ray.clear()
        trial.run(look)
        assert max(map(len, in_ray)) == 2

    def test_room_that_another_job_frees_is_used_at_once(self, trial):
        trial.cluster.machines = [Node("a", 99, [1.0] * 4), Node("b", 99, [1.0] * 4)]
        free = trial.cluster.hold(Needs(4, 1, 4))
        trial.cluster.at(18, free)
        ids = trial.runs(*[20.0] * 12)
        assert set(trial.run().results) == set(ids)
        assert sorted(trial.starts(run)[0] for run in ids) == pytest.approx([0] * 4 + [18] * 4 + [20] * 4, abs=0.1)

    def test_narrow_runs_use_what_a_wide_one_cannot(self, trial):
        """They are handed in beyond the window where they begin at once: none waits in Ray for the wide one's room."""
        trial.cluster.machines = [Node("a", 99, [1.0] * 4), Node("b", 99, [1.0] * 4)]
        trial.cluster.at(30, trial.cluster.hold(Needs(1, 1, 2)))
        (wide,), narrow = trial.runs(20, processes=8), trial.runs(*[5.0] * 12)
        free_seconds, waiting = [0.0], []

        def look(engine):
            held = sum(sum(node.gpus) for node in trial.cluster.free())
            free_seconds.append(free_seconds[-1] + 0.5 if held and len(engine.queue) else 0.0)
            waiting.extend(run.cell.run_id for run in engine._waiting())

        assert set(trial.run(look).results) == {wide, *narrow}
        assert max(trial.starts(run)[0] for run in narrow) <= 13
        assert max(free_seconds) <= 2.0
        assert set(waiting) == {wide}
        assert trial.starts(wide) == pytest.approx([30], abs=0.6)

    def test_free_shares_on_several_gpus_go_to_those_that_fit(self, trial):
        """Ray tells only their sum, which would be enough for the run that waits."""
        trial.cluster.machines = [Node("a", 99, [1.0] * 2)]
        frees = [trial.cluster.hold(Needs(1, 0.6)) for _ in range(2)]
        trial.cluster.free = lambda: [Node("a", 97, [0.8])]
        (wide,), narrow = trial.runs(20, 20, gpus=0.8)[:1], trial.runs(1, 1, 1, gpus=0.4)
        for free in frees:
            trial.cluster.at(60, free)
        trial.cluster.machines[0].gpus.append(1.0)  # for the check of what is free at the end
        with trial.engine() as engine:
            engine.add(trial.cells)
            while engine.busy and trial.clock.now < 1040:
                engine.poll()
        assert trial.starts(wide) == []
        assert {run for run in narrow if trial.starts(run)} == set(narrow)

    def test_room_that_no_run_can_take_is_not_asked_for_again_and_again(self, trial):
        """Two halves of GPUs are free, which Ray tells as one GPU; few attempts wait for it."""
        trial.cluster.machines = [Node("a", 99, [1.0] * 2)]
        for _ in range(2):
            trial.cluster.at(60, trial.cluster.hold(Needs(1, 0.6)))
        trial.cluster.free, in_ray = lambda: [Node("a", 97, [1.0])], []
        ids = trial.runs(*[5.0] * 16)
        with trial.engine() as engine:
            engine.add(trial.cells)
            while engine.busy and trial.clock.now < 1050:
                engine.poll()
                in_ray.append(len(engine.attempts))
        assert not any(trial.starts(run) for run in ids)
        assert in_ray[-1] == in_ray[len(in_ray) // 2] < len(ids)

    def test_two_drivers_share_it(self, trial, clock):
        """Within 1.15 times the bound of both sweeps together."""
        trial.cluster.machines = [Node("a", 99, [1.0] * 4)]
        trial.runs(*[9, 8, 7, 6, 5, 4, 3, 2] * 2)
        other = Folders(out=trial.folders.out / "other", name="other")
        with trial.engine() as first, Engine(trial.cluster, trial.sweep, other, {}) as second:
            first.add(trial.cells[:8])
            second.add(trial.cells[8:])
            while first.busy or second.busy:
                for engine in (first, second):
                    engine.poll()
        assert clock.now - 1000 <= 1.15 * 88 / 4
        assert len(first.outcome.results) == len(second.outcome.results) == 8

    def test_what_waits_is_said(self, trial):
        """In the state for `isoloop status`, and once in the log if nothing could begin for a while."""
        trial.cluster.machines = [Node("a", 99, [1.0] * 4)]
        for seconds in (300, 300, 300, 500):
            trial.cluster.at(seconds, trial.cluster.hold(Needs(1, 1)))
        ids, notes = trial.runs(200, 100, 100, 100, 90, 80, 70), set()
        assert set(trial.run(lambda _: notes.add(self.state(trial)["note"])).results) == set(ids)
        said = [line.strip() for line in trial.watcher.lines if "wait" in line]
        assert said == ["5 runs wait in Ray for 1 GPU each; 0 of 4 GPUs are free"]
        assert {*said, "2 runs wait in Ray for 1 GPU each; 0 of 4 GPUs are free", None} <= notes

    def test_machines_that_register_after_the_head(self, trial):
        """A sweep on a cluster of fixed size may start before its machines; only what doesn't fit those is refused."""
        trial.cluster.machines, notes = [Node("head", 0.0)], set()
        trial.cluster.at(100, lambda: trial.cluster.add(Node("a", 8, [1.0])))
        ids = trial.runs(40, 40)
        assert set(trial.run(lambda _: notes.add(self.state(trial)["note"])).results) == set(ids)
        assert "1 run waits in Ray for 1 GPU; no machine with cores or GPUs has come up yet" in notes
        assert min(trial.starts(ids[0])) == pytest.approx(100, abs=1)

    def state(self, trial):
        trial.folders.state.touch()
        return {"note": None} | json.loads(trial.folders.state.read_text() or "{}")


class TestFailures:
    def test_a_temporary_cause_is_retried_at_once_after_progress(self, trial):
        (lost,) = trial.runs(10)
        trial.cluster.scripts = {lost: [Act(end=LOST, seconds=4, step=3)]}
        assert set(trial.run().results) == {lost}
        assert trial.starts(lost) == pytest.approx([0, 4], abs=0.1)
        assert lost in trial.watcher.retried()

    def test_then_after_growing_pauses_until_it_is_given_up(self, trial):
        (lost,) = trial.runs(10, retries=4)
        trial.cluster.scripts = {lost: [Act(end=LOST, seconds=0)] * 9}
        outcome = trial.run()
        assert outcome.failed[lost] == "the worker was lost (tried 5 times without getting further)"
        waits = [RETRY_SECONDS, RETRY_SECONDS * 2, RETRY_SECONDS * 4, RETRY_SECONDS * 8]
        gaps = [b - a for a, b in zip(trial.starts(lost), trial.starts(lost)[1:], strict=False)]
        assert gaps == pytest.approx(waits, abs=1.0)

    def test_others_run_while_it_waits(self, trial):
        lost, *others = trial.runs(10, 6, 6, 6, 6)
        trial.cluster.scripts = {lost: [Act(end=LOST, seconds=0)] * 3}
        assert set(trial.run().results) == {lost, *others}
        assert max(trial.starts(other)[0] for other in others) < trial.starts(lost)[-1]

    def test_a_run_that_gets_further_each_time_is_not_given_up(self, trial):
        (lost,) = trial.runs(10, retries=1)
        trial.cluster.scripts = {lost: [Act(end=LOST, seconds=2, step=step) for step in (10, 20, 30, 40)]}
        assert set(trial.run().results) == {lost}
        assert trial.starts(lost) == pytest.approx([0, 2, 4, 6, 8], abs=0.1)

    def test_a_run_that_falls_back_each_time_is(self, trial):
        (lost,) = trial.runs(10, retries=2)
        trial.cluster.scripts = {lost: [Act(end=LOST, seconds=2, step=step) for step in (40, 10, 20, 30)]}
        assert set(trial.run().failed) == {lost}
        assert len(trial.starts(lost)) == 3

    def test_a_permanent_cause_is_reported_at_once(self, trial):
        broken, fine = trial.runs(10, 3)
        trial.cluster.scripts = {broken: [Act(end=BROKEN, seconds=1)]}
        outcome = trial.run()
        assert outcome.failed == {broken: "a rule is broken"}
        assert set(outcome.results) == {fine}
        assert len(trial.starts(broken)) == 1

    def test_a_result_counts_whatever_the_attempt_says(self, trial):
        """A worker that dies after its result was written has done its work."""
        (run,) = trial.runs(10)
        trial.cluster.at(5, lambda: trial.cluster.write(trial.cluster.running[0]))
        trial.cluster.at(5, lambda: trial.cluster.finish(trial.cluster.running[0], LOST))
        assert set(trial.run().results) == {run}
        assert len(trial.starts(run)) == 1

    def test_a_preempted_run_goes_on_and_it_does_not_count(self, trial):
        (run,) = trial.runs(10, retries=0)
        trial.cluster.scripts = {run: [Act(end=AttemptEnd(status="preempted"), seconds=3)] * 5}
        assert set(trial.run().results) == {run}
        assert len(trial.starts(run)) == 6

    @pytest.mark.parametrize("how", ["done", "stopped"])
    def test_an_attempt_that_leaves_nothing_does_not_spin(self, trial, how):
        """Wait a moment when a storage that is away hides the result, or when somebody touched the stop file."""
        (run,) = trial.runs(10)
        trial.cluster.scripts = {run: [Act(end=AttemptEnd(status=how), seconds=0, writes=False)] * 4}
        assert set(trial.run().results) == {run}
        assert trial.starts(run)[-1] >= 4 * BUSY_SECONDS

    def test_the_note_for_status_is_never_late(self, trial):
        broken, lost = trial.runs(10, 9, retries=5)
        trial.cluster.scripts = {broken: [Act(end=BROKEN, seconds=1)], lost: [Act(end=LOST, seconds=2)] * 3}
        seen = []

        def look(engine):
            note = json.loads(trial.folders.state.read_text())
            assert note["failed"] == trial.outcome.failed
            assert set(note["running"]) == {run.cell.run_id for run in engine.running}
            assert set(note["again"]) == {run.cell.run_id for run in engine.retry_queue if run.reason}
            seen.append(note)

        trial.run(look)
        assert any(note["again"] == {lost: "the worker was lost"} for note in seen)

    def test_a_full_disk_of_the_driver_ends_nothing(self, trial, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        ids = trial.runs(10, 9)
        with trial.engine() as engine:
            monkeypatch.setattr(engine_module, "write_atomically", full)
            engine.add(trial.cells)
            while engine.busy:
                engine.poll()
        assert set(trial.outcome.results) == set(ids)


class TestHangs:
    def test_a_run_without_a_sign_of_life_is_ended_and_goes_on(self, trial):
        hung, fine = trial.runs(10, 3, hang_seconds=60.0)
        trial.cluster.scripts = {hung: [Act(seconds=FOREVER, beats=True)]}
        trial.cluster.at(30, lambda: setattr(trial.cluster.running[0].act, "beats", False))
        assert set(trial.run().results) == {hung, fine}
        first, second = trial.starts(hung)
        assert 90 <= second - first <= 100
        assert hung in trial.watcher.retried()

    def test_one_that_always_hangs_is_given_up(self, trial):
        (hung,) = trial.runs(10, hang_seconds=60.0, retries=1)
        trial.cluster.scripts = {hung: [Act(seconds=FOREVER, beats=False) for _ in range(3)]}
        assert "no step for 60 s" in trial.run().failed[hung]
        assert len(trial.starts(hung)) == 2

    def test_one_that_hangs_between_two_looks_at_its_heartbeat_is_ended_as_soon(self, trial):
        """Its first heartbeat is the only one that the engine sees, but its journal has a step."""
        (hung,) = trial.runs(10, hang_seconds=60.0)
        trial.cluster.scripts = {hung: [Act(seconds=FOREVER, beats=False)]}
        trial.cluster.at(0.2, lambda: trial.cluster.record_step(trial.cluster.running[0], 3))
        assert set(trial.run().results) == {hung}
        first, second = trial.starts(hung)
        assert 60 <= second - first <= 70

    def test_an_attempt_that_waits_in_ray_does_not_hang(self, trial):
        first, waits = trial.runs(200, 10, hang_seconds=60.0)
        for seconds in (1500, 1600):
            trial.cluster.at(seconds, trial.cluster.hold(Needs(1, 1)))
        assert set(trial.run().results) == {first, waits}
        assert trial.starts(first) == pytest.approx([1500], abs=1)
        assert trial.starts(waits) == pytest.approx([1600], abs=1)

    def test_a_slow_start_is_no_hang(self, trial):
        """Until its first step a run may take longer, also if an earlier attempt has left its sign of life."""
        (slow,) = trial.runs(300, hang_seconds=60.0)
        trial.cluster.scripts = {slow: [Act(end=LOST, seconds=5), Act(seconds=300, beats=False)]}
        assert set(trial.run().results) == {slow}
        assert len(trial.starts(slow)) == 2

    def test_a_slow_first_step_is_no_hang(self, trial):
        """The first heartbeat is at its begin; then the model is compiled."""
        (slow,) = trial.runs(300, hang_seconds=60.0)
        trial.cluster.scripts = {slow: [Act(beats=False)]}
        trial.cluster.at(20, lambda: trial.cluster.touch(trial.cluster.running[0]))
        assert set(trial.run().results) == {slow}
        assert len(trial.starts(slow)) == 1

    def test_an_end_that_gets_lost_is_asked_for_again(self, trial, monkeypatch):
        """As when the process is just starting."""
        (hung,) = trial.runs(10, hang_seconds=60.0)
        trial.cluster.scripts = {hung: [Act(seconds=FOREVER, beats=True)]}
        trial.cluster.at(30, lambda: setattr(trial.cluster.running[0].act, "beats", False))
        kill, asked = trial.cluster.kill, []

        def lose_the_first(handle):
            asked.append(handle)
            if len(asked) > 1:
                kill(handle)

        monkeypatch.setattr(trial.cluster, "kill", lose_the_first)
        assert set(trial.run().results) == {hung}
        assert len(trial.starts(hung)) == 2


class TestMachines:
    def test_one_that_is_lost_and_another_that_comes(self, trial):
        trial.cluster.machines = [Node("a", 8, [1.0]), Node("b", 8, [1.0])]
        ids = trial.runs(40, 40, 40)
        trial.cluster.at(10, lambda: trial.cluster.lose("a"))
        trial.cluster.at(30, lambda: trial.cluster.add(Node("c", 8, [1.0])))
        assert set(trial.run().results) == set(ids)
        assert sum(len(trial.starts(run)) for run in ids) == 4
        assert trial.clock.now - 1000 < 125

    def test_without_machines_it_waits_and_then_says_so(self, trial):
        trial.runs(40, 40)
        trial.cluster.at(10, lambda: trial.cluster.lose("a"))
        with pytest.raises(
            ValueError, match=r"a run must fit the cluster, but for 300 s its 0 machines could hold none"
        ):
            trial.run()
        assert trial.clock.now - 1000 == pytest.approx(10 + NODE_GRACE_SECONDS, abs=20)

    def test_machines_in_time_are_enough(self, trial):
        ids = trial.runs(40, 40)
        trial.cluster.at(10, lambda: trial.cluster.lose("a"))
        trial.cluster.at(200, lambda: trial.cluster.add(Node("b", 8, [1.0])))
        assert set(trial.run().results) == set(ids)

    def test_a_wide_run_waits_for_machines_that_are_described_but_late(self, trial):
        """What one machine could never hold is refused all the same."""
        described = {"resources": {"gpus": 1}, "cluster": {"nodes": 2, "gpus": 4, "cpus": 8}}
        trial.sweep = validate_sweep({**SIMULATED, **described}, source="test")
        trial.cluster.machines = [Node("a", 8, [1.0] * 4)]
        trial.cluster.at(100, lambda: trial.cluster.add(Node("b", 8, [1.0] * 4)))
        (wide,) = trial.runs(40, processes=8)
        assert set(trial.run().results) == {wide}
        assert trial.starts(wide) == pytest.approx([100], abs=1)
        for misfit in ({"processes": 9}, {"cpus": 9}):
            trial.cells.clear()
            trial.runs(40, **misfit)
            with pytest.raises(ValueError, match="a run must fit the cluster, but its resources ask for"):
                trial.run()

    def test_an_elastic_cluster_is_asked_for_more_than_it_has(self, trial):
        """As many runs are given out as the window of the configured nodes holds, and they begin as nodes come."""
        cluster = {"nodes": 2, "gpus": 2, "elastic": True}  # the cores of its machines are unknown
        trial.sweep = validate_sweep({**SIMULATED, "resources": {"gpus": 1}, "cluster": cluster}, source="test")
        trial.cluster.machines = []
        ids = trial.runs(10, 10, 10, 10, 10, 10, hang_seconds=60.0, cpus=32)
        trial.cluster.at(NODE_GRACE_SECONDS + 100, lambda: trial.cluster.add(Node("a", 64, [1.0] * 2)))
        assert set(trial.run().results) == set(ids)
        assert sorted(trial.cluster.times("queue", run)[0] for run in ids)[:6] == pytest.approx(
            [0, 0, 0, 0, 0, 410], abs=1
        )
        assert [len(trial.starts(run)) for run in ids] == [1] * 6


class TestBusy:
    def test_a_run_of_another_sweep_is_waited_for_without_a_slot(self, trial):
        trial.cluster.machines = [Node("a", 8, [1.0])]
        shared, mine = trial.runs(50, 20)
        trial.cluster.scripts = {shared: [Act(end=AttemptEnd(status="busy"), seconds=0)] * 8 + [Act(seconds=0)]}
        assert set(trial.run().results) == {shared, mine}
        assert trial.starts(mine)[0] < BUSY_SECONDS
        assert len(trial.starts(shared)) == 9


class TestStopping:
    def test_one_run_under_way(self, trial):
        one, other = trial.runs(50, 50)
        stopped = []

        def stop(engine):
            if trial.clock.now - 1000 > 10 and not stopped:
                engine.stop_run(one)
                stopped.append(one)

        assert set(trial.run(stop).results) == {other}
        assert trial.cluster.times("stopped", one)
        assert len(trial.starts(one)) == 1
        assert one not in trial.outcome.failed

    def test_one_that_waits_for_its_turn(self, trial):
        trial.cluster.machines = [Node("a", 8, [1.0])]
        first, waiting = trial.runs(50, 40)
        ended = []
        with trial.engine() as engine:
            engine.add(trial.cells)
            engine.poll()
            engine.poll()
            assert len(engine.attempts) == 2
            engine.stop_run(waiting)
            while engine.busy:
                ended += [cell.run_id for cell in engine.poll()]
        assert sorted(ended) == sorted([first, waiting])
        assert set(trial.outcome.results) == {first}
        assert trial.starts(waiting) == []
        assert trial.cluster.times("cancel", waiting) == trial.cluster.times("failed", waiting) == [1.0]

    def test_one_that_waits_for_its_next_attempt(self, trial):
        (lost,) = trial.runs(50, retries=9)
        trial.cluster.scripts = {lost: [Act(end=LOST, seconds=0)] * 9}

        def stop(engine):
            if len(trial.starts(lost)) == 3:
                engine.stop_run(lost)

        outcome = trial.run(stop)
        assert not outcome.results
        assert not outcome.failed
        assert len(trial.starts(lost)) == 3

    def test_one_that_is_lost_before_it_could_stop_is_not_started_again(self, trial):
        lost, other = trial.runs(50, 50)
        stopped = []

        def stop(engine):
            if trial.clock.now - 1000 > 10 and not stopped:
                stopped.append(lost)
                engine.stop_run(lost)
                for attempt in trial.cluster.running:
                    if attempt.task.run_id == lost:
                        trial.cluster.finish(attempt, LOST)

        assert set(trial.run(stop).results) == {other}
        assert len(trial.starts(lost)) == 1

    def test_an_interrupt_lets_the_runs_save(self, trial):
        ids = trial.runs(50, 50, 50)

        def interrupt(engine):
            if trial.clock.now - 1000 > 10:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trial.run(interrupt)
        assert [run for run in ids if trial.cluster.times("stopped", run)] == ids[:2]
        assert "Stopping: 2 runs save their state, which takes 120 s at most. Ctrl-C again" in trial.watcher.lines[-1]
        assert not trial.folders.stop_file.exists()
        assert json.loads(trial.folders.state.read_text())["running"] == {}
        trial.outcome = SweepOutcome()
        assert set(trial.run().results) == set(ids)

    def test_a_second_interrupt_ends_at_once(self, trial, monkeypatch):
        trial.runs(50)

        def interrupt(*_):
            raise KeyboardInterrupt

        def interrupt_twice(engine):
            monkeypatch.setattr(trial.cluster, "wait", interrupt)
            interrupt()

        with pytest.raises(KeyboardInterrupt):
            trial.run(interrupt_twice)
        assert trial.watcher.lines[-1].startswith("Ended at once: the runs go on from their last checkpoint")
        assert json.loads(trial.folders.state.read_text())["failed"] == {}
        assert not trial.folders.stop_file.exists()

    def test_an_interrupt_does_not_wait_for_what_has_not_begun(self, trial, clock):
        trial.cluster.machines = [Node("a", 99, [1.0] * 8)]
        trial.cluster.hold(Needs(1, 1, 8))
        ids = trial.runs(*[50.0] * 16)
        with trial.engine() as engine:
            engine.add(trial.cells)
            engine.poll()
            now = clock.now
        assert clock.now == now
        assert trial.cluster.attempts == []
        assert [run for run in ids if trial.cluster.times("cancel", run)] == ids[:10]
        assert json.loads(trial.folders.state.read_text())["queued"] == []

    def test_a_result_that_comes_while_it_stops_counts(self, trial):
        (run,) = trial.runs(50)

        def interrupt(engine):
            trial.cluster.write(trial.cluster.running[0])
            trial.cluster.finish(trial.cluster.running[0], DONE)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trial.run(interrupt)
        assert set(trial.outcome.results) == {run}


class TestEvaluations:
    """Evaluations of finished runs, in the same cluster."""

    def test_they_come_after_all_training_and_fill_what_is_free(self, trial):
        trial.evaluate()
        ids = trial.runs(4, 4, 4, 2)
        trial.run()
        assert trial.evaluated() == set(ids)
        starts = [(run, place) for place, (_, what, run) in enumerate(trial.cluster.log) if what == "start"]
        trained = [place for number, (run, place) in enumerate(starts) if run not in [r for r, _ in starts[:number]]]
        assert [place for _, place in starts[:4]] == trained, "an evaluation began before a run that waited"
        # On two GPUs runs end at 4, 4, 6 and 8 s; the evaluations, of 4, 4, 2 and 4 s, begin at 6, 8, 10 and 12 s
        assert trial.clock.now - 1000 == pytest.approx(16, abs=0.6)
        assert not trial.outcome.failed
        assert not trial.outcome.unevaluated

    def test_they_are_one_process_and_tried_again(self, trial):
        trial.evaluate()
        (run,) = trial.runs(3, processes=2)
        trial.cluster.scripts[run] = [Act(), Act(end=LOST, seconds=1), Act(seconds=1)]
        trial.run()
        assert [task.resources.processes for task in trial.cluster.tasks] == [2, 1, 1]
        assert [task.quality is None for task in trial.cluster.tasks] == [True, False, False]
        assert trial.evaluated() == {run}

    def test_a_failed_one_leaves_the_run_as_it_is(self, trial):
        trial.evaluate()
        (run,) = trial.runs(3)
        trial.cluster.scripts[run] = [Act(), Act(end=BROKEN)]
        outcome = trial.run()
        assert outcome.failed == {}
        assert outcome.unevaluated == {run: "a rule is broken"}
        assert outcome.results[run].status == "finished"

    def test_only_finished_runs_are_evaluated(self, trial, monkeypatch):
        trial.evaluate()
        failed, diverged = trial.runs(3, 3)
        trial.cluster.scripts[failed] = [Act(end=BROKEN)]
        monkeypatch.setattr(
            virtual, "result_of", lambda task: result_of(task).model_copy(update={"status": "diverged", "loss": None})
        )
        outcome = trial.run()
        assert outcome.results[diverged].status == "diverged"
        assert len(trial.cluster.tasks) == 2
        assert trial.evaluated() == set()

    def test_one_whose_data_have_changed_ends(self, trial):
        """The worker has evaluated the run, but not on what the plan asks for."""
        trial.evaluate()
        (run,) = trial.runs(3)
        trial.cluster.scripts[run] = [Act(), Act(writes=False)]
        outcome = trial.run(limit=100)
        assert outcome.unevaluated == {run: "the data of the suites changed while the sweep ran; rerun the command"}
        assert len(trial.cluster.tasks) == 2
        assert outcome.results[run].status == "finished"

    @pytest.mark.parametrize(
        ("status", "reason"), [("busy", "another process evaluates"), ("stopped", "another process stopped")]
    )
    def test_one_that_another_process_holds_up_ends(self, trial, status, reason):
        trial.evaluate()
        (run,) = trial.runs(3, retries=2)
        held_up = Act(end=AttemptEnd(status=status), seconds=1)
        trial.cluster.scripts[run] = [Act(), held_up, held_up, held_up]
        outcome = trial.run(limit=500)
        assert outcome.unevaluated[run].startswith(reason)
        assert len(trial.cluster.tasks) == 4
        # While tries are left, it may end well.
        assert trial.watcher.retried() == [run, run]

    def test_one_that_was_held_up_goes_on(self, trial):
        trial.evaluate()
        (run,) = trial.runs(3)
        trial.cluster.scripts[run] = [Act(), Act(end=AttemptEnd(status="busy"), seconds=1), Act(seconds=1)]
        assert trial.run().unevaluated == {}
        assert trial.evaluated() == {run}

    def test_they_are_no_flops_in_progress(self, trial):
        trial.evaluate()
        trial.runs(3)
        seen = []
        trial.run(lambda engine: seen.append((engine.trains, bool(engine.attempts), engine.flops_in_progress())))
        evaluating = [flops for trains, attempts, flops in seen if attempts and not trains]
        assert evaluating
        assert evaluating == [[]] * len(evaluating)
        assert any(len(flops) == 1 for trains, _, flops in seen if trains)

    def test_they_start_from_no_trunk(self, trial, monkeypatch):
        """A branch is evaluated from its own folder, wherever its training began."""
        trial.evaluate()
        trial.runs(3)
        asked = []
        monkeypatch.setattr(
            engine_module.Trunks, "branching", lambda self, cell, failed: asked.append(cell) or Branching()
        )
        trial.run()
        assert len(trial.cluster.tasks) == 2
        assert len(asked) == 1

    def test_the_state_names_runs_that_train_and_counts_evaluations(self, trial):
        trial.evaluate()
        trial.runs(3, 3)
        states = []
        trial.run(lambda engine: states.append(json.loads(trial.folders.state.read_text())))
        assert {len(state["running"]) for state in states} == {2, 0}
        assert "0 of 2 finished runs are evaluated on suites" in {state["note"] for state in states}
        assert states[-1]["note"] == "2 of 2 finished runs are evaluated on suites"
