"""Which run starts from whose state, what that saves, and which recipes can't do so."""

import dataclasses
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.plan.summary import PlanSummary, plan_rows, print_plan
from isoloop.sweeps.plan.trunks import (
    FROM_SCRATCH,
    Origin,
    Saved,
    find_origins,
    states_to_save,
    trunk_groups,
    unneeded_states,
)
from tests.sweeps.conftest import SIMULATED

STEP_TOKENS = 4 * 16
RATE = {"muon_weight_decay_schedule": "rate"}


def plan(*steps, means=(2,), decay=0.5, **content):
    """A plan of runs with so many steps at each mean recurrence; each starts as it does where nothing is saved."""
    sweep = {name: value for name, value in SIMULATED.items() if name != "budgets"} | {
        "tokens": [count * STEP_TOKENS for count in steps],
        "mean_recurrences": list(means),
        "schedule": {"decay_fraction": decay},
        "optimizer": RATE,
        "trunk": True,
        **content,
    }
    planned = plan_sweep(validate_sweep(sweep, source="test"), simulated_corpus)
    origins = {}
    for group in trunk_groups(planned.cells) if planned.sweep.trunk else []:
        origins |= find_origins(group, {})
    cells = tuple(dataclasses.replace(cell, origin=origins.get(cell.run_id, FROM_SCRATCH)) for cell in planned.cells)
    return dataclasses.replace(planned, cells=cells)


def group_of(*steps, **content):
    (group,) = trunk_groups(plan(*steps, **content).cells)
    return group


def printed(planned):
    console = Console(file=io.StringIO(), width=300)
    print_plan(console, planned, {}, every_run=False)
    return console.file.getvalue()


class TestSavings:
    @pytest.mark.parametrize(("decay", "trained"), [(0.5, 8000 + 7 * 500 - 3), (0.2, 8000 + 7 * 200 - 3)])
    def test_of_tokens_growing_by_two_by_hand(self, decay, trained):
        """1, 2, 4 and 8 thousand steps: the longest trains 8, the others (7 in all) their decays, less its first step,
        which still has the full rate.
        """
        planned = plan(1000, 2000, 4000, 8000, decay=decay)
        per_step = planned.flops / 15_000
        assert planned.trained_flops == pytest.approx(trained * per_step)
        saved = 1 - trained / 15_000
        assert f"3 of 4 runs branch off a longer one: {trained * per_step:.4g} FLOPs are trained, {saved:.1%} less" in (
            printed(planned)
        )

    @pytest.mark.parametrize(("decay", "saved"), [(0.5, 0.25), (0.2, 0.40)])
    def test_of_many_budgets_growing_by_two_reach_the_published_share(self, decay, saved):
        """With ever more budgets the longest costs half of all, and the others save all but their decay of the rest."""
        planned = plan(*(1000 * 2**i for i in range(12)), means=(1, 4), decay=decay)
        assert 1 - planned.trained_flops / planned.flops == pytest.approx(saved, abs=1e-3)

    def test_price_hours_and_total_time_are_of_what_is_trained(self):
        cluster = {"nodes": 1, "cpus": 2, "price_per_hour": 3600.0}  # 1 a second of a core
        with_trunks = plan(1000, 2000, 4000, resources={"flops_per_second": 1e9}, cluster=cluster)
        alone = dataclasses.replace(
            with_trunks, cells=tuple(dataclasses.replace(c, origin=FROM_SCRATCH) for c in with_trunks.cells)
        )
        second = with_trunks.flops / 7000 / 1e9  # of a step
        assert alone.price() == pytest.approx(7000 * second)
        assert with_trunks.price() == pytest.approx((4000 + 999 + 499) * second)
        summary, apart = (PlanSummary.of(each, {}) for each in (with_trunks, alone))
        assert summary.makespan == apart.makespan == pytest.approx(4000 * second)  # the longest run
        assert f"each alone: {7000 * second / 3600:,.3g} core hours, {7000 * second:,.2f}" in printed(with_trunks)
        rows = {row["steps"]: row for row in plan_rows(with_trunks)}
        assert rows[1000]["price"] == pytest.approx(499 * second)
        assert rows[1000]["flops"] == pytest.approx(1000 * second * 1e9)  # as the laws count it
        assert rows[1000]["trunk"] == next(c.run_id for c in with_trunks.cells if c.spec.steps == 4000)

    def test_a_branch_waits_for_its_trunk_in_the_total_time(self):
        """On many cores the branch of 8,000 steps begins after 4,001 of 8,100, and then has 3,999 to go."""
        cluster = {"nodes": 1, "cpus": 8}
        planned = plan(8000, 8100, resources={"flops_per_second": 1e9}, cluster=cluster)
        second = planned.flops / 16_100 / 1e9
        assert PlanSummary.of(planned, {}).makespan == pytest.approx(8100 * second)
        assert planned.jobs[1].follows == (0, pytest.approx(4001 * second))


class TestOrigins:
    def test_all_wait_for_the_longest(self):
        long, middle, short = group_of(100, 200, 400)
        assert find_origins((long, middle, short), {}) == {
            long.run_id: FROM_SCRATCH,
            middle.run_id: Origin(101, long.run_id, waits=True),
            short.run_id: Origin(51, long.run_id, waits=True),
        }
        assert states_to_save(long, (long, middle, short), {}) == (51, 101)
        assert states_to_save(short, (long, middle, short), {}) == ()

    def test_a_saved_state_is_used_and_then_removed(self):
        group = long, middle, short = group_of(100, 200, 400)
        saved = {long.run_id: Saved(newest=120, branches=frozenset({51, 101}))}
        assert find_origins(group, saved)[short.run_id] == Origin(51, long.run_id)
        assert unneeded_states(group, saved) == []
        saved[short.run_id] = Saved(finished=True)
        assert unneeded_states(group, saved) == [(long.run_id, 51)]
        saved[middle.run_id] = Saved(newest=150)  # it has a state of its own
        assert unneeded_states(group, saved) == [(long.run_id, 51), (long.run_id, 101)]

    def test_a_trunk_that_was_begun_before_is_joined_where_it_is_not_too_late(self):
        group = long, middle, short = group_of(100, 200, 400)
        saved = {long.run_id: Saved(newest=80)}
        origins = find_origins(group, saved)
        assert origins[middle.run_id] == Origin(101, long.run_id, waits=True)
        assert origins[short.run_id] == FROM_SCRATCH  # 51 steps are over
        assert states_to_save(long, group, saved) == (51, 101)

    def test_the_next_longest_is_the_trunk_of_a_sweep_that_grows_downwards(self):
        group = long, middle, short = group_of(100, 200, 400)
        origins = find_origins(group, {long.run_id: Saved(finished=True)})
        assert origins == {middle.run_id: FROM_SCRATCH, short.run_id: Origin(51, middle.run_id, waits=True)}

    def test_a_trunk_that_failed_leaves_the_rest_to_the_next_longest(self):
        """Which goes on from the furthest state that the first one has saved."""
        group = longest, long, middle, short = group_of(100, 200, 400, 800)
        saved = {longest.run_id: Saved(newest=60, branches=frozenset({51}))}
        assert find_origins(group, saved, {longest.run_id}) == {
            longest.run_id: FROM_SCRATCH,
            long.run_id: Origin(51, longest.run_id),
            middle.run_id: Origin(101, long.run_id, waits=True),
            short.run_id: Origin(51, longest.run_id),
        }

    def test_a_branch_in_progress_keeps_its_origin(self):
        group = long, short = group_of(100, 400)
        began = Origin(51, long.run_id)
        saved = {long.run_id: Saved(newest=90), short.run_id: Saved(newest=70, origin=began)}
        assert find_origins(group, saved)[short.run_id] == began


class TestGroups:
    def test_are_of_runs_that_differ_in_tokens_alone(self):
        planned = plan(100, 200, means=(1, 2), axes={"seed": [0, 1]})
        groups = trunk_groups(planned.cells)
        assert [[cell.spec.steps for cell in group] for group in groups] == [[200, 100]] * 4
        assert len({(group[0].mean_recurrence, group[0].spec.seed) for group in groups}) == 4

    def test_that_nothing_is_shared_is_said(self):
        assert "nothing is shared: no two runs differ in tokens alone" in printed(plan(100, means=(1, 2)))

    def test_runs_that_come_too_late_are_said(self):
        planned = plan(100, 200, 400)
        cells = tuple(dataclasses.replace(cell, origin=FROM_SCRATCH) for cell in planned.cells)
        longest, middle = cells[0].run_id, cells[1]
        console = Console(file=io.StringIO(), width=300)
        cells = (cells[0], dataclasses.replace(middle, origin=Origin(101, longest)), cells[2])
        print_plan(
            console, dataclasses.replace(planned, cells=cells), {longest: SimpleNamespace(seconds=0)}, every_run=False
        )
        assert "1 run must train alone, as the longer ones have passed that step" in console.file.getvalue()

    def test_the_published_weight_decay_is_refused_with_what_to_set(self):
        with pytest.raises(ValueError, match=r"weight decay falls over the whole run, as published .* set optimizer"):
            plan(100, 200, optimizer={})
        assert plan(100, 200, optimizer={}, trunk=False).cells
        assert plan(100, optimizer={}).cells  # nothing is shared

    def test_a_trunk_changes_no_run(self):
        ids = [[cell.run_id for cell in plan(100, 200, trunk=trunk).cells] for trunk in (True, False)]
        assert ids[0] == ids[1]
