"""Tuning: the optimum of a known function is found; pruned, killed, diverged and failed trials leave no trace of harm.

Most runs are made up: a cluster in this process, whose attempts write the journals and results that a trainer would.
"""

import csv
import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from statistics import median

import pytest
import yaml
from sqlalchemy.exc import OperationalError

from isoloop.sweeps.config.loading import load_sweep, validate_sweep
from isoloop.sweeps.config.tuning import Range, TuneConfig
from isoloop.sweeps.execution.engine import Engine
from isoloop.sweeps.execution.status import TrialCounts, read_status
from isoloop.sweeps.execution.worker import AttemptEnd
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import prepare
from isoloop.sweeps.plan.axes import LEARNING_RATE as RATE
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.plan.packing import Node
from isoloop.sweeps.storage.run_store import STOP_FILE
from isoloop.sweeps.tracking.mlflow_store import TrackingStore
from isoloop.sweeps.tracking.schema import KIND, OUTCOME, REASON, metric_name
from isoloop.sweeps.tuning import pipeline as tuning_pipeline
from isoloop.sweeps.tuning import tuner as tuner_module
from isoloop.sweeps.tuning.pipeline import NoTrialFinishedError, prepare_tuning, run_tuning
from isoloop.sweeps.tuning.search_space import MUON_RATE, make_search_space, reduce_to_one_point
from isoloop.sweeps.tuning.study import Study
from isoloop.sweeps.tuning.transfer_check import CheckRun, TransferCheck
from isoloop.sweeps.tuning.tuner import Tuner, default_parallel
from isoloop.trainer.files import sole_owner
from isoloop.trainer.run.journal import Journal, read_journal
from isoloop.trainer.run.result import RunResult, read_result, write_result
from tests.commands import isoloop
from tests.sweeps.conftest import SMALL

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

SPACE = {RATE: {"low": 1e-4, "high": 1.0, "log": True}}
BEST_RATE = 0.02
STEPS = 20


def loss_at(spec):
    """A parabola in log learning rate with its minimum at BEST_RATE."""
    return 2.0 + 0.05 * math.log2(spec.optimizer.learning_rate / BEST_RATE) ** 2


class MadeUp:
    """A cluster whose attempts advance by one validation at each poll.

    Args:
        loss_of: the loss of a spec; None is a run that diverges half-way, an exception one that fails.
        slots: attempts that it holds at a time.
        polls: polls before it is interrupted as by Ctrl-C.
    """

    def __init__(self, loss_of=loss_at, slots=2, polls=math.inf):
        self.loss_of, self.slots, self.polls = loss_of, slots, polls
        self.tasks, self.at, self.started, self.most, self.told_to_stop = {}, {}, [], 0, []

    def nodes(self):
        return [Node("here", float(self.slots), [])]

    def free(self):
        return [Node("here", float(self.slots - len(self.tasks)), [])]

    def begun(self, handles, timeout):
        return dict.fromkeys(handles, "here")

    def start(self, task, needs, *, one_machine):
        handle = len(self.started)
        self.tasks[handle] = task
        self.started.append(task.run_id)
        self.most = max(self.most, len(self.tasks))
        return handle

    def kill(self, handle):
        raise AssertionError("nothing hangs here")

    def wait(self, handles, timeout):
        self.polls -= 1
        if self.polls < 0:
            self.polls = math.inf
            raise KeyboardInterrupt
        done = [(handle, end) for handle in handles if (end := self._get_on(self.tasks[handle])) is not None]
        for handle, _ in done:
            del self.tasks[handle]
        return done

    def _get_on(self, task):
        folder, spec = task.folder, task.spec
        if (folder / STOP_FILE).exists() or task.stop_file.exists():
            self.told_to_stop.append(task.run_id)
            return AttemptEnd(status="stopped")
        try:
            loss = self.loss_of(spec)
        except RuntimeError as error:
            return AttemptEnd(status="failed", reason=str(error), retryable=False)
        validations = task.resources.validations
        done = self.at[task.run_id] = self.at.get(task.run_id, 0) + 1
        step = round(spec.steps * done / (validations + 1))
        journal = Journal(folder / "journal.jsonl")
        if loss is None and 2 * step > spec.steps:
            journal.close()
            write_result(folder, result_of(task, step, None))
            return AttemptEnd(status="done")
        journal.metrics(step, {"validation_loss": (loss or 9.0) + 1 - step / spec.steps, "train_loss": 3.0})
        journal.close()
        if step < spec.steps:
            return None
        write_result(folder, result_of(task, step, loss))
        return AttemptEnd(status="done")


def result_of(task, steps, loss):
    return RunResult(
        run_id=task.run_id,
        status="finished" if loss is not None else "diverged",
        reason=None if loss is not None else f"loss is not finite after step {steps}",
        simulated=False,
        steps=steps,
        tokens=steps * task.spec.tokens_per_step,
        forward_loops=1.0,
        backward_loops=1.0,
        flops_exact=1.0,
        flops_parcae_release=1.0,
        loss=loss,
        losses={} if loss is None else {task.spec.recurrence.mean: loss},
        bits_per_byte=loss,
        spectral_radius=0.5,
        seconds=1.0,
    )


class Records:
    """Stands in for the uploader and remembers what it was given."""

    def __init__(self):
        self.cells, self.given_up = {}, {}

    def add(self, cell):
        self.cells[cell.run_id] = cell

    def watch(self, run_id):
        assert run_id in self.cells

    def record_end(self, run_id, outcome, reason):
        self.given_up[run_id] = outcome, reason


@pytest.fixture(autouse=True)
def look_always(monkeypatch):
    monkeypatch.setattr(tuner_module, "CHECK_SECONDS", 0.0)


def tuning_in(out, text_folder, *, tune=None, **changes):
    """What is tuned, at 20 steps; `tune` and other settings as given."""
    tokens = 64 * STEPS
    tune = {"space": SPACE, "trials": 8, "parallel": 1, "pruner": "none", "validations": 1, **(tune or {})}
    content = {**SMALL, "data": {"corpus": str(text_folder)}, "tokens": [tokens, 2 * tokens], "tune": tune, **changes}
    return prepare_tuning(validate_sweep(content, source="test"), Folders(out=out, name="small"))


@pytest.fixture
def tuning_of(text_folder, tmp_path):
    """Makes what is tuned, in a folder of its own."""
    return lambda out="out", **changes: tuning_in(tmp_path / out, text_folder, **changes)


def study_of(tuning):
    tuning.folders.sweep.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{tuning.folders.sweep / 'tune.db'}"
    return Study(url, tuning.space, tuning.space.sweep.tune)


def run(tuning, cluster=None, uploader=None):
    """All trials with a driver of their own; Ctrl-C ends it."""
    cluster, study = cluster or MadeUp(), study_of(tuning)
    try:
        with Engine(cluster, tuning.space.sweep, tuning.folders, tuning.corpora) as engine:
            started = tuning_pipeline._started_cells(study)
            return Tuner(study, engine, tuning.folders, uploader or Records(), started=started).run()
    finally:
        study.close()


def rates(trials):
    return [trial.values[RATE] for trial in trials]


def test_the_optimum_is_found(tuning_of):
    tuning = tuning_of(tune={"trials": 20, "seed": 1})
    trials = run(tuning)
    assert [trial.outcome for trial in trials] == ["finished"] * 20
    assert rates(trials)[0] == tuning.space.base.spec.optimizer.learning_rate  # first the sweep as it stands
    best = min(trials, key=lambda trial: trial.loss)
    assert abs(math.log2(best.values[RATE] / BEST_RATE)) < 0.35
    off = [abs(math.log2(rate / BEST_RATE)) for rate in rates(trials)]
    assert median(off[-6:]) < median(off[1:7]) / 2
    assert all(float(f"{rate:.3g}") == rate for rate in rates(trials))


def test_trials_are_the_grids_own_runs(tuning_of, small):
    """What a trial has trained a sweep with the same settings has trained, and the other way round."""
    tuning = tuning_of(tune={"trials": 3, "mean_recurrence": 1})
    cluster = MadeUp()
    first = run(tuning, cluster)
    content = {**small.model_dump(), "tokens": [64 * STEPS], "mean_recurrences": [1], "axes": {RATE: rates(first)}}
    planned = prepare(validate_sweep(content, source="test"), tuning.folders).plan
    assert {cell.run_id for cell in planned.cells} == {trial.run_id for trial in first} == set(cluster.started)
    again = run(tuning_of(tune={"trials": 3, "mean_recurrence": 1}), untouched := MadeUp())
    assert again == first
    assert not untouched.started
    (tuning.folders.sweep / "tune.db").unlink()  # another study proposes the same, and finds it trained
    assert run(tuning, untouched) == first
    assert not untouched.started


def test_as_many_at_a_time_as_asked_for(tuning_of):
    cluster = MadeUp(slots=8)
    assert len(run(tuning_of(tune={"parallel": 3}), cluster)) == 8
    assert cluster.most == 3
    search = tuning_of().space
    assert default_parallel(search, [Node("a", 2.0, []), Node("b", 1.0, [])], trials=40) == 3
    assert default_parallel(search, [Node("a", 64.0, [])], trials=10) == 3
    elastic = search.sweep.model_copy(update={"cluster": search.sweep.cluster.model_copy(update={"elastic": True})})
    assert default_parallel(replace(search, sweep=elastic), [], trials=40) >= 1


def test_pruning_stops_a_run_and_keeps_what_it_has(tuning_of):
    cluster, uploader = MadeUp(slots=1), Records()
    tuning = tuning_of(tune={"trials": 16, "pruner": "median", "validations": 3})
    trials = run(tuning, cluster, uploader)
    pruned = [trial for trial in trials if trial.outcome == "pruned"]
    assert 3 <= len(pruned) <= 10
    assert len(trials) == 16
    assert set(cluster.told_to_stop) == set(uploader.given_up) == {trial.run_id for trial in pruned}
    finished = [trial for trial in trials if trial.outcome == "finished"]
    best = min(trial.loss for trial in finished)
    for trial in pruned:
        folder = tuning.folders.run(trial.run_id)
        records, _ = read_journal(folder / "journal.jsonl")
        assert not (folder / "result.json").exists()
        assert trial.share in (0.5, 0.75)
        assert trial.loss == records[-1]["values"]["validation_loss"] > best
        assert f"above the median at {100 * trial.share:.0f}%" in trial.reason
    # None before its time, by default half of the steps: high rates look bad until they decay.
    assert (
        len(run(tuning_of(out="late", tune={"trials": 6, "pruner": "median", "validations": 3, "prune_from": 0.9})))
        == 6
    )


def test_an_interrupted_tuning_goes_on_as_if_it_had_not_been(tuning_of):
    expected = run(tuning_of(out="quiet", tune={"trials": 6}))
    for polls in (1, 8):
        tuning = tuning_of(out=f"after {polls}", tune={"trials": 6})
        cluster = MadeUp(polls=polls)
        with pytest.raises(KeyboardInterrupt):
            run(tuning, cluster)
        study = study_of(tuning)
        assert len(study.trials()) < 6
        assert [trial.outcome for trial in study.trials()][-1] == "running"
        study.close()
        assert run(tuning, cluster) == expected
        assert len(cluster.started) == 6 + 1  # one run was started again, none twice to its end
        assert len(set(cluster.started)) == 6


def test_a_killed_driver_leaves_proposals_that_are_taken_up_first(tuning_of):
    """A driver is lost after a proposal and before, or while, its run is launched: nothing but the database is left."""
    tuning = tuning_of(tune={"parallel": 2})
    study = study_of(tuning)
    proposals = [study.ask() for _ in range(2)]
    cell = tuning.space.cell(proposals[1].values)
    study.record_run(proposals[1], cell.run_id)
    torn = study.study.ask()  # its driver was killed before it had drawn anything
    study.close()
    cluster = MadeUp()
    trials = run(tuning, cluster)
    assert len(trials) == 8
    assert [trial.values for trial in trials[:2]] == [proposal.values for proposal in proposals]
    assert cluster.started[:2] == [trial.run_id for trial in trials[:2]]
    assert cluster.started[1] == cell.run_id
    assert torn.number not in [trial.number for trial in trials]
    assert {trial.outcome for trial in trials} == {"finished"}


def test_a_run_that_was_to_be_pruned_when_its_driver_was_killed_is_not_started(tuning_of):
    tuning = tuning_of(tune={"trials": 6, "pruner": "median", "validations": 3})
    run(tuning_of(tune={"trials": 5, "validations": 3}))  # the same study, without pruning
    study = study_of(tuning)
    study.study.enqueue_trial({RATE: 1e-4})
    proposal = study.ask()
    cell = tuning.space.cell(proposal.values)
    study.record_run(proposal, cell.run_id)
    journal = Journal(tuning.folders.run(cell.run_id) / "journal.jsonl")
    journal.metrics(STEPS // 2, {"validation_loss": 99.0})
    journal.close()
    study.close()
    cluster, uploader = MadeUp(), Records()
    last = run(tuning, cluster, uploader)[-1]
    assert (last.outcome, last.loss, last.share) == ("pruned", 99.0, 0.5)
    assert not cluster.started
    assert set(uploader.given_up) == {cell.run_id}


def test_status_follows_the_trials(tuning_of):
    tuning = tuning_of(tune={"trials": 8, "parallel": 2})
    with pytest.raises(KeyboardInterrupt):
        run(tuning, MadeUp(polls=5))
    status, trials = read_status(tuning.folders), read_status(tuning.folders).trials
    assert (trials.trials, trials.ended) == (8, status.counts()["done"])
    assert 0 < trials.ended < 8
    assert 0 < trials.runs_to_come < 8
    assert sum(status.counts().values()) == 8
    assert trials.flops_to_come == trials.runs_to_come * tuning.space.base.flops
    assert not status.is_complete
    best = min(run(tuning), key=lambda trial: trial.loss)
    status = read_status(tuning.folders)
    assert status.is_complete
    assert status.counts() == {"done": 8}
    assert status.share == 1.0
    assert status.trials.best == f"trial {best.number}  learning_rate = {best.values[RATE]}  loss {best.loss:.4f}"
    assert {run.label.partition("  ")[0] for run in status.runs} == {f"trial {number}" for number in range(8)}


def test_diverged_trials_teach_where_not_to_go(tuning_of):
    """Above 0.05 runs diverge; they count as worse than all others, so that proposals leave them be."""

    def loss_of(spec):
        return None if spec.optimizer.learning_rate > 0.05 else loss_at(spec)

    tuning = tuning_of(tune={"trials": 20})
    trials = run(tuning, MadeUp(loss_of))
    diverged = [trial for trial in trials if trial.outcome == "diverged"]
    assert all(rate > 0.05 for rate in rates(diverged))
    assert all(trial.loss is None and "not finite" in trial.reason for trial in diverged)
    first, last = ([trial.outcome for trial in part].count("diverged") for part in (trials[1:9], trials[-8:]))
    assert last < first
    study = study_of(tuning)
    stored = {trial.number: trial for trial in study.study.trials}
    worst = max(trial.loss for trial in trials if trial.loss is not None)
    assert all(math.isfinite(stored[trial.number].value) and stored[trial.number].value > worst for trial in diverged)
    study.close()


def test_failed_trials_are_told_and_replaced_in_a_later_call(tuning_of):
    def broken(spec):
        if spec.optimizer.learning_rate < 3e-3:
            raise RuntimeError("no such disk")
        return loss_at(spec)

    tuning = tuning_of(tune={"trials": 10})
    trials = run(tuning, MadeUp(broken))
    failed = [trial for trial in trials if trial.outcome == "failed"]
    assert len(trials) == 10
    assert failed
    assert {trial.reason for trial in failed} == {"no such disk"}
    more = run(tuning, MadeUp())
    assert more[:10] == trials
    assert sum(trial.outcome == "finished" for trial in more) == 10


def test_duplicates_are_no_trials(tuning_of):
    """Six combinations give six trials, however many were requested, and each run is started once."""
    space = {RATE: [0.01, 0.02, 0.03], "optimizer.adam_betas": [[0.8, 0.95], [0.9, 0.95]]}
    cluster = MadeUp()
    trials = run(tuning_of(tune={"trials": 12, "space": space, "parallel": 2}), cluster)
    assert len(trials) == len(set(cluster.started)) == len(cluster.started) == 6
    assert len({json.dumps(trial.values) for trial in trials}) == 6
    assert {trial.outcome for trial in trials} == {"finished"}


def test_the_space_is_the_sweeps_own_by_default(tuning_of, small):
    tuning = tuning_of(tune={"space": None})
    optimizer = tuning.space.settings.optimizer
    assert tuning.space.dimensions == {
        RATE: Range(low=1e-3, high=0.064, log=True),
        MUON_RATE: Range(low=1e-3, high=0.064, log=True),
        "optimizer.muon_weight_decay": (0.0, 0.1, 0.2, 0.4),
        "batch": (2, 4, 8),
    }
    assert tuning.space.start == {
        RATE: 0.008, MUON_RATE: 0.008, "optimizer.muon_weight_decay": optimizer.muon_weight_decay, "batch": 4,
    }  # fmt: skip
    assert tuning.space.mean_recurrence == 3
    assert tuning.space.grid_recurrences == (1, 3)
    assert tuning.space.size == ("tokens", 64 * STEPS)
    axes = {"axes": {RATE: [0.01, 0.02], "small": [{"name": "narrow", "model.heads": 1}]}}
    with_axes = tuning_of(tune={"space": None}, **axes).space
    assert RATE not in with_axes.dimensions
    assert with_axes.fixed == {RATE: 0.01, "model.heads": 1}
    assert with_axes.base.spec.optimizer.learning_rate == 0.01
    left = tuning_of(tune={"space": {"batch": [4, 8, 4096]}}).space
    assert left.dimensions == {"batch": (4, 8)}
    assert "batch = 4096 can't be run" in left.notes[0]
    whole = tuning_of(tune={"space": {"batch": {"low": 2, "high": 8, "step": 2}}, "trials": 4})
    assert {type(trial.values["batch"]) for trial in run(whole)} == {int}


@pytest.mark.parametrize(
    ("tune", "expected"),
    [
        ({"space": {"optimizer.rate": [1, 2]}}, "tune.space must name settings, but got 'optimizer.rate'"),
        ({"space": {"data.corpus": ["a", "b"]}}, "must leave losses comparable"),
        ({"space": {"seed": [0, 1]}}, "must leave losses comparable"),
        ({"space": {RATE: {"low": 1, "high": 0.1}}}, "low < high must hold, but got low=1, high=0.1"),
        ({"space": {RATE: {"low": 0, "high": 1, "log": True}}}, "must start above 0"),
        ({"space": {RATE: {"low": 0.1, "high": 1, "log": True, "step": 0.1}}}, "either log or a step"),
        ({"space": {RATE: {"low": 0.1, "high": 1, "step": 0.4}}}, "must be whole steps wide"),
        ({"space": {RATE: [0.1, 0.1]}}, "values must be distinct"),
        ({"space": {RATE: {"low": 0, "high": 1}}}, "learning_rate"),
        ({"space": {"batch": {"low": 2, "high": 4096}}}, "both ends of a range must give a run, but batch = 4096"),
        ({"space": {"batch": [4096]}}, "must have one that can be run"),
        ({"validations": 0, "pruner": "median"}, "pruning requires evaluations"),
        ({"prune_form": 0.5}, "did you mean 'prune_from'"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tuning_of, tune, expected):
    with pytest.raises(ValueError, match=expected):
        tuning_of(tune=tune)


def test_simulated_sweeps_and_foreign_databases_are_refused(simulated, folders, tuning_of):
    with pytest.raises(ValueError, match="must train to be tuned"):
        prepare_tuning(simulated, folders)
    with pytest.raises(ValueError, match="both; keep one"):
        tuning_of(axes={RATE: [0.1, 0.2]})
    tuning = tuning_of(tune={"storage": "sqlite:////no/such/place/tune.db"})
    with pytest.raises(ValueError, match=r"\(tune\.storage\) must be usable, but its file can't be opened"):
        run_tuning(tuning, "small", command="isoloop tune small")
    tuning = tuning_of(tune={"storage": tuning.folders.default_tracking_uri()})
    with pytest.raises(ValueError, match="must have a database of its own"):
        run_tuning(tuning, "small", command="isoloop tune small")
    with sole_owner(tuning.folders.sweep), pytest.raises(ValueError, match="at work"):
        run_tuning(tuning_of(), "small", command="isoloop tune small")


def test_other_settings_are_another_study(tuning_of):
    names = {
        tuning_of(**changes).space.study_name
        for changes in (
            {}, {"precision": "bfloat16"}, {"tune": {"mean_recurrence": 1}}, {"tune": {"space": {RATE: [0.1]}}},
        )
    }  # fmt: skip
    assert len(names) == 4
    assert tuning_of(tune={"trials": 99, "seed": 3, "parallel": 7}).space.study_name in names


class Shares(Progress):
    def __init__(self):
        self.shares, self.counts, self.lines = [], [], []

    def update(self, label, done, total):
        self.shares.append(done / total)
        self.counts += [int(count) for count in re.findall(r"(\d+)/12 trials", label)]

    def event(self, line):
        self.lines.append(line.split()[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text_folder, new_database):
    """A whole tuning, recorded in MLflow, with diverged and pruned trials, and its check: (what, result, watcher)."""
    tuning = tuning_in(
        tmp_path_factory.mktemp("whole"),
        text_folder,
        tune={"trials": 12, "pruner": "median", "validations": 3, "parallel": 2},
    )
    new_database(tuning.folders.out / "mlflow.db")
    cluster, watcher = MadeUp(lambda spec: None if spec.optimizer.learning_rate > 0.1 else loss_at(spec)), Shares()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner_module, "CHECK_SECONDS", 0.0)
        result = run_tuning(
            tuning, "small.yaml", command="isoloop tune small.yaml", cluster=lambda *_: nullcontext(cluster),
            progress=watcher,
        )  # fmt: skip
    assert len(cluster.started) == len(set(cluster.started))
    return tuning, result, watcher


def test_every_trial_is_in_mlflow(whole):
    tuning, result, watcher = whole
    folders = tuning.folders
    store = TrackingStore(folders.default_tracking_uri(), "isoloop", artifacts=None)
    runs = store.client.search_runs([store.experiment_id], max_results=1000)
    (parent,) = [run for run in runs if run.data.tags[KIND] == "tune"]
    children = {run.data.tags["isoloop.run_id"]: run for run in runs if run is not parent}
    assert {trial.outcome for trial in result.trials} == {"finished", "diverged", "pruned"}
    for trial in result.trials:
        child = children[trial.run_id]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags[OUTCOME] == trial.outcome
        assert child.data.tags["isoloop.column.trial"] == str(trial.number)
        assert child.data.tags["isoloop.column.optimizer.learning_rate"] == str(trial.values[RATE])
        assert child.data.params["optimizer.learning_rate"] == str(trial.values[RATE])
        assert child.info.status == "FINISHED"
        records, _ = read_journal(folders.run(trial.run_id) / "journal.jsonl")
        history = store.client.get_metric_history(child.info.run_id, metric_name("validation_loss"))
        curve = [(m.step, m.value) for m in history]
        assert curve == [(r["step"], r["values"]["validation_loss"]) for r in records if r["kind"] == "metrics"]
        if trial.outcome == "pruned":
            assert "above the median" in child.data.tags[REASON]
    assert parent.info.status == "FINISHED"
    assert {file.path for file in store.client.list_artifacts(parent.info.run_id)} >= {"tuned.yaml", "tune.csv"}
    assert len(children) == len({t.run_id for t in result.trials} | {c.cell.run_id for c in result.check.runs})
    assert sorted(set(watcher.counts)) == list(range(13))
    assert watcher.counts == sorted(watcher.counts)
    assert watcher.lines.count("trial") == 12
    assert watcher.shares[-1] == 1.0
    assert watcher.lines.count("check") == 8


def test_status_of_a_whole_tuning(whole):
    """Trials that were pruned count as ended; the runs of the check are there, too."""
    tuning, result, _ = whole
    status = read_status(tuning.folders)
    assert status.is_complete
    assert status.driver.command == "isoloop tune small.yaml"
    outcomes = {trial.run_id: trial.outcome for trial in result.trials}
    states = {run.run_id: run.state for run in status.runs}
    assert {run_id: states[run_id].replace("done", "finished") for run_id in outcomes} == outcomes
    assert set(states) == set(outcomes) | {run.cell.run_id for run in result.check.runs}
    assert status.trials == TrialCounts(
        trials=12, ended=12, best=status.trials.best, runs_to_come=0, flops_to_come=0.0
    )  # fmt: skip
    pruned = next(run for run in status.runs if run.state == "pruned")
    assert 0 < pruned.step < pruned.steps
    assert "above the median" in pruned.reason


def test_what_won_is_a_file_that_a_sweep_extends(whole, small, tmp_path):
    tuning, result, _ = whole
    folders = tuning.folders
    content = small.model_dump(mode="json", exclude_defaults=True) | {"tokens": [64 * STEPS]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    advice = "\n".join(line.strip() for line in result.advice(folders)[1:])
    (tmp_path / "small-tuned.yaml").write_text(advice)
    before, after = (load_sweep(str(tmp_path / name)) for name in ("small.yaml", "small-tuned.yaml"))
    assert after.name == "small-tuned"
    assert after.optimizer.learning_rate == result.best.values[RATE] != before.optimizer.learning_rate
    assert after.optimizer.model_copy(update={"learning_rate": before.optimizer.learning_rate}) == before.optimizer
    assert after.model_copy(update={"name": "small", "optimizer": before.optimizer}) == before
    ids = [{cell.run_id for cell in prepare(sweep, folders).plan.cells} for sweep in (before, after)]
    assert not ids[0] & ids[1]
    assert result.best.run_id in ids[1]
    text = (folders.sweep / "tuned.yaml").read_text()
    assert yaml.safe_load(text) == {"optimizer": {"learning_rate": result.best.values[RATE]}}
    for expected in (
        f"trial {result.best.number}",
        f"{result.best.loss:.4f}",
        "isoloop tune small.yaml",
        "by isoloop 0",
        "µ = 1",
    ):
        assert expected in text
    with (folders.sweep / "tune.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["trial"] * 12 + ["check"] * 8
    for row, trial in zip(rows, result.trials, strict=False):
        assert (row["run_id"], row["outcome"], float(row[RATE])) == (trial.run_id, trial.outcome, trial.values[RATE])
    assert {(row["mean_recurrence"], row["factor"]) for row in rows[12:]} == {
        (mean, factor) for mean in ("1", "3") for factor in ("0.5", "1.0", "2.0")
    }
    table = (folders.sweep / "tune.txt").read_text()
    assert all(f"\n{str(trial.number).rjust(5)}  " in table for trial in result.trials)

    def refuse(*_):
        raise AssertionError("nothing is missing, so no cluster is started")

    assert run_tuning(tuning, "small.yaml", command="isoloop tune small.yaml", cluster=refuse) == result


def check_of(losses, second=None, seed=0):
    """A check at µ = 8 with losses by factor, and with another seed at the best."""
    runs = [
        CheckRun(
            mean_recurrence=8, factor=factor, seed=seed, cell=object(), loss=loss,
            outcome="diverged" if loss is None else "finished", reason="too high" if loss is None else None,
        )
        for factor, loss in losses.items()
    ]  # fmt: skip
    if second is not None:
        runs.append(replace(runs[1], seed=seed + 1, loss=second))
    return TransferCheck.of(runs)


@pytest.mark.parametrize(
    ("losses", "second", "holds", "expected"),
    [
        ({0.5: 2.2, 1.0: 2.0, 2.0: 2.1}, 2.01, True, "holds: the next best, x2, is 0.1000 worse"),
        ({0.5: 1.99, 1.0: 2.0, 2.0: 2.1}, 2.01, True, "holds within the noise: a lower rate is 0.0100 better"),
        ({0.5: 2.2, 1.0: 2.0, 2.0: 1.9}, 2.01, False, "a higher rate is better by 0.1000 nats at µ = 8"),
        ({0.5: 1.9, 1.0: 2.0, 2.0: 2.1}, None, False, "by 0.1000 nats at µ = 8; the noise was not measured"),
        ({0.5: 2.2, 1.0: 2.0, 2.0: None}, 2.01, True, "x0.5, is 0.2000 worse; x2 diverged"),
        ({0.5: 2.2, 1.0: None, 2.0: None}, None, False, "no loss at the best (diverged: too high)"),
        ({0.5: None, 1.0: 2.0, 2.0: None}, 2.01, None, "nothing to compare it with"),
    ],
)  # fmt: skip
def test_the_checks_verdict(losses, second, holds, expected):
    check = check_of(losses, second)
    (verdict,) = check.verdicts
    assert verdict.holds is holds
    assert expected in verdict.text
    if second is not None:
        assert check.noise == pytest.approx(0.01 / math.sqrt(2))
        assert check.margin == pytest.approx(0.02)
        assert check.pairs == 1


def test_the_check_finds_that_deep_models_want_less(tuning_of):
    """At µ = 3 the optimum is a quarter of what it is at µ = 1, where it was tuned; seeds differ by 0.002."""

    def loss_of(spec):
        wanted = BEST_RATE / (4 if spec.recurrence.mean == 3 else 1)
        return 2.0 + 0.05 * math.log2(spec.optimizer.learning_rate / wanted) ** 2 + 0.002 * spec.seed

    space = {RATE: [0.002, 0.005, 0.02, 0.08]}
    tuning = tuning_of(tune={"mean_recurrence": 1, "trials": 4, "space": space})
    study = study_of(tuning)
    with Engine(MadeUp(loss_of), tuning.space.sweep, tuning.folders, tuning.corpora) as engine:
        tuner = Tuner(study, engine, tuning.folders, Records())
        best = min(tuner.run(), key=lambda trial: trial.loss)
        check = tuner.check(best)
    study.close()
    assert best.values == {RATE: 0.02}
    at = {verdict.mean_recurrence: verdict for verdict in check.verdicts}
    assert at[1].text == "holds: the next best, x0.5, is 0.0500 worse"
    assert at[3].text == "a lower rate is better by 0.1500 nats at µ = 3"
    assert (at[1].holds, at[3].holds) == (True, False)
    assert check.noise == pytest.approx(0.002 / math.sqrt(2))
    assert (check.pairs, len(check.runs)) == (2, 8)


def test_nothing_that_finishes_and_a_database_that_goes_away_are_said(tuning_of, new_database, monkeypatch):
    tuning = tuning_of(tune={"trials": 2})
    new_database(tuning.folders.out / "mlflow.db")
    nowhere = MadeUp(lambda spec: None)
    message = "must have a trial that finishes, but of 'small' none did; the last: loss is"
    with pytest.raises(NoTrialFinishedError, match=message):
        run_tuning(tuning, "small", command="isoloop tune", cluster=lambda *_: nullcontext(nowhere))

    class Away(Study):
        def unfinished(self):
            raise OperationalError("SELECT 1", {}, Exception("postgresql://me:secret@host/db is away"))

    monkeypatch.setattr(tuning_pipeline, "Study", Away)
    with pytest.raises(ValueError, match=r"must go on answering, but stopped .*nothing is lost") as caught:
        run_tuning(tuning, "small", command="isoloop tune", cluster=lambda *_: nullcontext(nowhere))
    assert "secret" not in str(caught.value)


def test_axes_of_a_search_at_a_budget(small, folders):
    """By FLOPs, the smallest budget counts, and the middle one of the recurrences."""
    sweep = validate_sweep(
        {
            **small.model_dump(), "tokens": None, "budgets": [4e9, 2e9], "mean_recurrences": [1, 2, 4, 8],
            "tune": {"space": SPACE},
        },
        source="test",
    )  # fmt: skip
    base, means = reduce_to_one_point(sweep)
    (cell,) = plan_sweep(base, simulated_corpus).cells
    search = make_search_space(base, means, cell, simulated_corpus)
    assert (search.size, search.mean_recurrence, search.grid_recurrences) == (("budget", 2e9), 4, (1, 2, 4, 8))
    assert search.cell({RATE: 0.1}, mean_recurrence=8).spec.recurrence.mean == 8
    assert search.paths_at_edge({RATE: 1e-4}) == [RATE]
    assert not search.paths_at_edge({RATE: 1e-2})
    assert "of one step" in search.cell({"batch": 4096})


def test_settings_may_be_overridden_by_path(tmp_path):
    changed = load_sweep("demo", [f"tune.space.{RATE}=[0.1, 0.2]", "tune.trials=5"])
    assert changed.tune == TuneConfig(space={RATE: (0.1, 0.2)}, trials=5)
    (tmp_path / "a.yaml").write_text("batch: 8\nseed: 3\n")
    (tmp_path / "b.yaml").write_text("batch: 16\n")
    (tmp_path / "c.yaml").write_text("extends: [demo, a.yaml, b.yaml]\nname: c\n")
    both = load_sweep(str(tmp_path / "c.yaml"))
    assert (both.batch, both.seed, both.name) == (16, 3, "c")
    (tmp_path / "d.yaml").write_text("extends: [demo, d.yaml]\n")
    with pytest.raises(ValueError, match="may not extend itself"):
        load_sweep(str(tmp_path / "d.yaml"))


def test_from_the_command_line_with_real_models(small, text_folder, tmp_path, new_database, commands_share_ray, faults):
    """A trial that fails, then four trials of real models on a local Ray, and the check."""
    content = {
        **small.model_dump(mode="json", exclude_defaults=True), "tokens": [256], "tune": {"space": SPACE},
        "data": {"corpus": str(text_folder)},
        "model": {**SMALL["model"], "injection": "tests.sweeps.execution.faulty:Faulty"},
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    new_database(tmp_path / "isoloop-out" / "mlflow.db")
    (faults / "always").write_text("bug 0")
    failed = isoloop("tune", "small.yaml", "--trials", 1, cwd=tmp_path, check=1).stderr
    assert "must have a trial that finishes, but of 'small' none did; the last: TypeError: a bug" in failed
    (faults / "always").unlink()
    output = isoloop("tune", "small.yaml", "--trials", 4, "--parallel", 2, cwd=tmp_path).stdout
    folders = Folders(out=tmp_path / "isoloop-out", name="small/tune")
    assert "extends: [small.yaml, isoloop-out/sweeps/small/tune/tuned.yaml]" in output
    assert "check at half and twice the learning rates" in output
    with (folders.sweep / "tune.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = {row["run_id"]: float(row["loss"]) for row in rows if row["loss"]}
    assert losses == {run_id: read_result(folders.run(run_id)).loss for run_id in losses}
    assert len(list(folders.out.glob("runs/*/result.json"))) == len(losses)
