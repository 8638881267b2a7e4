"""Packing, order and makespans, in virtual time."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloop.sweeps.plan import packing
from isoloop.sweeps.plan.packing import ORDERS, Job, Needs, Node, Pool, Queue, best_order, lower_bound, makespan

SHARES = [0.125, 0.25, 1 / 3, 0.5, 0.7, 1.0]


def nodes(count=2, gpus=4, cpus=64):
    return [Node(f"node {i}", cpus, [1.0] * gpus) for i in range(count)]


def gpu(share, processes=1):
    return Needs(cpus=1, gpus=share, processes=processes)


def free(pool):
    return [share for node in pool.nodes.values() for share in node.gpus]


def state(pool):
    return {name: (node.cpus, list(node.gpus)) for name, node in pool.nodes.items()}


some_needs = st.one_of(
    st.builds(lambda share: gpu(share), st.sampled_from(SHARES)),
    st.builds(lambda processes: gpu(1.0, processes), st.integers(2, 8)),
    st.builds(lambda cpus, processes: Needs(cpus, 0, processes), st.integers(1, 8), st.integers(1, 3)),
)
some_jobs = st.lists(st.builds(Job, st.floats(0.1, 100), some_needs, st.none()), min_size=1, max_size=30)


class TestPacking:
    def test_shares_fill_a_gpu_before_the_next(self):
        pool = Pool(nodes())
        for share in (0.5, 0.25, 0.125, 0.125):
            assert pool.place(gpu(share)) is not None
        assert sorted(free(pool)) == [0.0] + [1.0] * 7

    def test_a_share_goes_where_the_least_is_left_but_enough(self):
        pool = Pool([Node("a", 64, [0.75, 0.5, 1.0])])
        (slot,) = pool.place(gpu(0.5))
        assert slot.gpu == 1

    def test_whole_gpus_go_to_the_fuller_node(self):
        """So that a run of several processes still finds a node of its own."""
        pool = Pool(nodes())
        pool.place(gpu(1.0))
        pool.place(gpu(1.0))
        wide = pool.place(gpu(1.0, 4))
        assert len({slot.node for slot in wide}) == 1

    def test_a_wide_run_spreads_over_nodes_only_if_it_must(self):
        pool = Pool(nodes())
        assert len({slot.node for slot in pool.place(gpu(1.0, 3))}) == 1
        slots = pool.place(gpu(1.0, 5))
        assert len({slot.node for slot in slots}) == 2
        assert len(set(slots)) == 5
        assert Pool(nodes(), spread=False).place(gpu(1.0, 5)) is None

    def test_cores_run_out_too(self):
        pool = Pool([Node("a", 2, [1.0] * 4)])
        assert [pool.place(gpu(0.25)) is not None for _ in range(3)] == [True, True, False]

    def test_thirds_make_a_whole_again(self):
        pool = Pool(nodes(1, 1))
        slots = [pool.place(gpu(1 / 3)) for _ in range(3)]
        assert pool.place(gpu(1 / 3)) is None
        for slot in slots:
            pool.release(gpu(1 / 3), slot)
        assert pool.place(gpu(1.0)) is not None

    def test_what_is_rejected_does_not_fit_and_neither_does_more(self):
        pool = Pool(nodes())
        pool.reject([gpu(0.5, 2)])
        assert pool.place(gpu(0.5, 2)) is None
        assert pool.place(gpu(1.0, 3)) is None
        slots = pool.place(gpu(0.5))
        pool.release(gpu(0.5), slots)
        assert pool.place(gpu(0.5, 2)) is not None

    @given(st.lists(st.tuples(some_needs, st.integers(0, 3)), max_size=60))
    def test_nothing_is_lost_or_given_twice(self, asked):
        """Shares stay within 0 and 1 and the cores above 0; when all is given back, all is there."""
        pool, held = Pool(nodes()), []
        for needs, gone in asked:
            slots = pool.place(needs)
            if slots is not None:
                assert len(slots) == needs.processes
                held.append((needs, slots))
            if held and gone == 0:
                pool.release(*held.pop(random.Random(len(held)).randrange(len(held))))
            assert all(-1e-8 <= share <= 1 for share in free(pool))
            assert all(node.cpus >= 0 for node in pool.nodes.values())
        for needs, slots in held:
            pool.release(needs, slots)
        assert state(pool) == state(Pool(nodes()))

    @given(st.lists(some_needs, max_size=25), some_needs)
    def test_what_does_not_fit_takes_nothing(self, before, needs):
        pool = Pool(nodes())
        for taken in before:
            pool.place(taken)
        was = state(pool)
        if pool.place(needs) is None:
            assert state(pool) == was


class TestQueue:
    def test_the_smallest_priority_goes_first_and_what_does_not_fit_is_passed_over(self):
        queue, pool = Queue(), Pool(nodes(1, 2))
        for index, (priority, needs) in enumerate([(2, gpu(1.0)), (0, gpu(1.0, 2)), (1, gpu(0.5)), (3, gpu(1.0, 2))]):
            queue.add(index, (float(priority),), needs)
        first, needs, slots = queue.next(pool)
        assert first == 1
        assert queue.next(pool) is None
        pool.release(needs, slots)
        assert [queue.next(pool)[0] for _ in range(2)] == [2, 0]
        assert queue.next(pool) is None
        assert len(queue) == 1


class TestMakespan:
    def test_two_gpus_by_hand(self):
        jobs = [Job(seconds, gpu(1.0)) for seconds in (1, 1, 2)]
        assert makespan(jobs, nodes(1, 2), lambda _: (0.0,)) == 3
        assert makespan(jobs, nodes(1, 2), ORDERS["longest first"]) == 2
        assert best_order(jobs, nodes(1, 2)) == ("longest first", 2)

    def test_what_ends_together_is_freed_together(self):
        """A wide run isn't overtaken because its GPUs are freed one by one in the same instant."""
        jobs = [Job(5, gpu(1.0)), Job(5, gpu(1.0)), Job(4, gpu(1.0, 2)), Job(3, gpu(1.0)), Job(3, gpu(1.0))]
        assert makespan(jobs, nodes(1, 2), ORDERS["longest first"]) == 5 + 4 + 3

    def test_a_job_that_follows_another_waits_for_it(self):
        jobs = [Job(5, gpu(1.0)), Job(4, gpu(1.0), (0, 3.0)), Job(2.5, gpu(1.0))]
        assert makespan(jobs, nodes(1, 2), ORDERS["longest first"]) == 3 + 4
        assert makespan(jobs, nodes(1, 1), ORDERS["longest first"]) == 5 + 4 + 2.5

    def test_giving_up(self):
        jobs = [Job(1, gpu(1.0))] * 4
        assert makespan(jobs, nodes(1, 1), ORDERS["longest first"], limit=4) == math.inf
        assert makespan(jobs, nodes(1, 1), ORDERS["longest first"], limit=4.1) == 4

    @pytest.mark.parametrize("needs", [gpu(1.0, 9), Needs(65, 0), gpu(1.5)])
    def test_a_run_that_never_fits_is_refused(self, needs):
        with pytest.raises(ValueError, match="every run must fit the cluster"):
            makespan([Job(1, gpu(0.5)), Job(1, needs)], nodes(), ORDERS["longest first"])

    def test_the_bound_counts_cores_too(self):
        """Four GPUs would do it in 10 s, but there are cores for two runs at a time."""
        jobs = [Job(10, Needs(cpus=4, gpus=1.0))] * 4
        assert lower_bound(jobs, [Node("a", 8, [1.0] * 4)]) == 20
        assert lower_bound([], nodes()) == 0

    @settings(deadline=None)
    @given(some_jobs, st.sampled_from(list(ORDERS)))
    def test_no_order_beats_the_bound(self, jobs, order):
        assert makespan(jobs, nodes(), ORDERS[order]) >= lower_bound(jobs, nodes()) * (1 - 1e-9)
        assert best_order(jobs, nodes())[1] >= lower_bound(jobs, nodes()) * (1 - 1e-9)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("on", [nodes(8, 8, 96), nodes(1, 64, 640)], ids=["8 x 8", "1 x 64"])
    def test_500_runs_of_mixed_size_are_within_a_tenth_of_the_bound(self, on, seed):
        """An eighth of a GPU to eight of them, durations 1:20, on 64 GPUs."""
        rng = random.Random(seed)
        widths = [gpu(0.125), gpu(0.25), gpu(0.5), gpu(1.0), gpu(1.0, 2), gpu(1.0, 4), gpu(1.0, 8)]
        jobs = [Job(20 ** rng.random(), rng.choice(widths)) for _ in range(500)]
        assert best_order(jobs, on)[1] <= 1.10 * lower_bound(jobs, on)

    def test_a_few_wide_runs_do_not_starve_behind_many_narrow_ones(self):
        rng = random.Random(0)
        jobs = [Job(20 ** rng.random(), gpu(1.0)) for _ in range(490)] + [Job(5.0, gpu(1.0, 8))] * 10
        assert best_order(jobs, nodes(8, 8, 96))[1] <= 1.10 * lower_bound(jobs, nodes(8, 8, 96))

    def test_a_sample_of_many_jobs_stands_for_all(self, monkeypatch):
        rng = random.Random(1)
        widths = [gpu(0.25), gpu(1.0), gpu(1.0, 2), gpu(1.0, 8)]
        jobs = [Job(20 ** rng.random(), rng.choice(widths)) for _ in range(4000)]
        order, exact = best_order(jobs, nodes(8, 8, 96))
        monkeypatch.setattr(packing, "MOST_SIMULATED", 1000)
        assert best_order(jobs, nodes(8, 8, 96)) == (order, pytest.approx(exact, rel=0.01))
        with pytest.raises(ValueError, match="every run must fit the cluster"):
            best_order([*jobs, Job(0.1, gpu(1.0, 65))], nodes(8, 8, 96))
