"""Branches: a run from its trunk's state equals the run trained alone, to the bit on the CPU."""

from functools import partial

import pytest
import torch

from isoloop.trainer import loop
from isoloop.trainer.accounting import loop_cost
from isoloop.trainer.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    OptimizerConfig,
    RecurrenceConfig,
    RunSpec,
    ScheduleConfig,
)
from isoloop.trainer.model.pretrained import load_published
from isoloop.trainer.recurrence import sample_recurrences
from isoloop.trainer.run.branch import BRANCHES, Branching, TrunkState, branch_step, why_no_branch
from isoloop.trainer.run.checkpoint import checkpoints
from isoloop.trainer.run.journal import read_journal

SHORT, LONG = 12, 24
train = partial(loop.train, execution=ExecutionConfig(peak_flops=1e9))  # without measuring the machine's speed


def stop_after(steps):
    calls = iter(range(1, 10**9))
    return lambda: next(calls) >= steps


def outcome(result):
    return result.model_dump(exclude={"seconds", "trunk_steps", "flops_trained"})


def events(folder):
    return [(r["name"], r.get("step")) for r in read_journal(folder / "journal.jsonl")[0] if r["kind"] == "event"]


@pytest.fixture(scope="module")
def short(spec):
    """Its rate is constant over 10 of its 12 steps (the one at which the decay begins is at the full rate, too)."""
    optimizer = OptimizerConfig(muon_weight_decay_schedule="rate")
    return spec.model_copy(update={"optimizer": optimizer, "schedule": ScheduleConfig(decay_fraction=0.25)})


@pytest.fixture(scope="module")
def long(short):
    return short.model_copy(update={"steps": LONG})


@pytest.fixture(scope="module")
def alone(short, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, train(short, corpus, folder)


@pytest.fixture(scope="module")
def trunk(short, long, corpus, tmp_path_factory):
    """The folder of the longer run, which has saved its state for the shorter one, and its result."""
    folder = tmp_path_factory.mktemp("trunk")
    return folder, train(long, corpus, folder, branching=Branching(save_at=(branch_step(short),)))


def from_trunk(short, long, folder):
    (saved,) = checkpoints(folder / BRANCHES)
    return Branching(start=TrunkState(run_id=long.run_id, step=int(saved.name), folder=saved))


def test_a_branch_goes_on_with_the_packed_rows_of_its_trunk(short, corpus, tmp_path):
    evaluation = short.evaluation.model_copy(update={"during_training": 0})
    short = short.model_copy(update={"data": DataConfig(packing="best-fit"), "evaluation": evaluation})
    long = short.model_copy(update={"steps": LONG})
    assert train(long, corpus, tmp_path / "trunk", branching=Branching(save_at=(branch_step(short),)))
    branching = from_trunk(short, long, tmp_path / "trunk")
    result = train(short, corpus, tmp_path / "branch", branching=branching)
    assert outcome(result) == outcome(train(short, corpus, tmp_path / "alone"))
    assert result.trunk_steps == branch_step(short)


@pytest.mark.parametrize(
    ("fraction", "steps", "shared"), [(0.5, 12, 7), (0.2, 10, 9), (0.25, 12, 10), (0, 8, 7), (1, 8, 1)]
)
def test_what_is_shared_ends_where_the_rate_falls(spec, fraction, steps, shared):
    run = spec.model_copy(update={"steps": steps, "schedule": ScheduleConfig(decay_fraction=fraction)})
    assert branch_step(run) == shared
    factors = [run.schedule.rate_factor(step, steps) for step in range(steps)]
    assert all(factor == 1 for factor in factors[:shared])
    assert all(factor < 1 for factor in factors[shared:]) or fraction == 0  # a branch trains one step at least


def test_a_branch_equals_the_run_alone_to_the_bit(short, long, corpus, alone, trunk, tmp_path):
    result = train(short, corpus, tmp_path, branching=from_trunk(short, long, trunk[0]))
    assert outcome(result) == outcome(alone[1])
    weights, expected = (load_published(folder / "model")[0].state_dict() for folder in (tmp_path, alone[0]))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert events(tmp_path) == [("branched", 10), ("resumed", 10), ("finished", SHORT)]
    # What it has spent itself: the loops of its last two steps.
    cost, drawn = loop_cost(short.model, "exact"), [
        sample_recurrences(short.recurrence, batch=short.batch, seed=short.seed, step=step, steps=SHORT)
        for step in (10, 11)
    ]  # fmt: skip
    loops = [(steps.mean(), steps.clip(max=short.recurrence.gradient_loops).mean()) for steps in drawn]
    spent = short.tokens_per_step * sum(cost.flops_per_token(*each) for each in loops)
    assert (result.trunk_steps, result.flops_trained) == (10, pytest.approx(spent))
    assert (alone[1].trunk_steps, alone[1].flops_trained) == (0, alone[1].flops_exact)


def test_a_trunk_is_the_run_that_saves_nothing(long, corpus, trunk, tmp_path):
    assert outcome(train(long, corpus, tmp_path)) == outcome(trunk[1])
    assert not (tmp_path / BRANCHES).exists()


def crash_after(steps):
    """A heartbeat at which the process ends at the begin of a later step, without a word."""
    calls = iter(range(1, 10**9))

    def heartbeat():
        if next(calls) > steps:
            raise KeyboardInterrupt

    return heartbeat


def test_a_stop_or_a_kill_of_branch_or_trunk_changes_no_bit(short, long, corpus, alone, tmp_path):
    folder, save = tmp_path / "trunk", Branching(save_at=(branch_step(short),))
    for steps in (4, 3):
        assert train(long, corpus, folder, branching=save, should_stop=stop_after(steps)) is None
    with pytest.raises(KeyboardInterrupt):  # three steps after it has saved the branch's state, and no checkpoint since
        train(long, corpus, folder, branching=save, heartbeat=crash_after(6))
    start = from_trunk(short, long, folder)
    with pytest.raises(KeyboardInterrupt):
        train(short, corpus, tmp_path / "branch", branching=start, heartbeat=crash_after(1))
    assert train(short, corpus, tmp_path / "branch", branching=start, should_stop=stop_after(1)) is None
    result = train(short, corpus, tmp_path / "branch", branching=start)
    assert outcome(result) == outcome(alone[1])
    assert result.trunk_steps == 10
    twice = [("branched", 10), ("resumed", 10)] * 2
    assert events(tmp_path / "branch") == [*twice, ("stopped", 11), ("resumed", 11), ("finished", SHORT)]


def test_the_newer_state_is_taken_of_the_runs_own_and_its_trunks(short, long, corpus, alone, trunk, tmp_path):
    assert train(short, corpus, tmp_path, should_stop=stop_after(3)) is None
    assert outcome(train(short, corpus, tmp_path, branching=from_trunk(short, long, trunk[0]))) == outcome(alone[1])
    assert ("branched", 10) in events(tmp_path)


def test_without_its_trunks_state_a_run_trains_alone(short, long, corpus, alone, tmp_path):
    gone = Branching(start=TrunkState(run_id=long.run_id, step=10, folder=tmp_path / "removed"))
    result = train(short, corpus, tmp_path / "run", branching=gone)
    assert result.model_dump(exclude={"seconds"}) == alone[1].model_dump(exclude={"seconds"})
    assert [name for name, _ in events(tmp_path / "run")] == ["checkpoint refused", "started", "finished"]


def test_a_trunk_that_diverges_leaves_the_state_before_to_its_branches(short, long, corpus, tmp_path):
    """The branch repeats the one step that fails, as it would have alone."""
    wild = OptimizerConfig(learning_rate=30.0, muon_weight_decay_schedule="rate")
    short, long = (run.model_copy(update={"optimizer": wild}) for run in (short, long))
    diverged = train(long, corpus, tmp_path / "trunk", branching=Branching(save_at=(branch_step(short),)))
    alone = train(short, corpus, tmp_path / "alone")
    assert diverged.status == alone.status == "diverged"
    assert 1 < alone.steps <= branch_step(short)
    branch = train(short, corpus, tmp_path / "branch", branching=from_trunk(short, long, tmp_path / "trunk"))
    assert outcome(branch) == outcome(alone)
    assert branch.trunk_steps == alone.steps - 1


@pytest.mark.parametrize(
    ("change", "again", "reason"),
    [
        ({}, False, None),
        ({"optimizer": OptimizerConfig(muon_weight_decay=0.0)}, False, None),
        ({"optimizer": OptimizerConfig()}, False, "muon_weight_decay_schedule to rate"),
        ({"recurrence": RecurrenceConfig(mean=3, curriculum_start=1, curriculum_fraction=0.5)}, False, "curriculum"),
        ({"evaluation": EvaluationConfig(during_training=2)}, False, "during_training to 0"),
        ({}, True, "during_training to 0"),
        ({"evaluation": EvaluationConfig(during_training=0)}, True, None),
    ],
)
def test_recipes_that_depend_on_the_length_are_named(short, change, again, reason):
    found = why_no_branch(short.model_copy(update=change), sees_text_again=again)
    assert found is None if reason is None else reason in found


def test_a_setting_that_came_later_keeps_the_ids_of_runs():
    assert RunSpec(data_fingerprint="f", steps=10).run_id == "43e2ee310433"  # before it had a decay schedule
    set_now = OptimizerConfig(muon_weight_decay_schedule="rate")
    assert RunSpec(data_fingerprint="f", steps=10, optimizer=set_now).run_id != "43e2ee310433"
