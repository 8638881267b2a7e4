"""Shares of a batch by rank, loaded ahead; two processes that share every batch train what one process trains."""

import os
import socket
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from isoloop.trainer.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    ModelConfig,
    OptimizerConfig,
    RecurrenceConfig,
    RunSpec,
    ScheduleConfig,
)
from isoloop.trainer.data.batches import batch_reader, batch_windows, validation_windows
from isoloop.trainer.data.corpus import Corpus
from isoloop.trainer.distributed import GradientSums, Ranks, load_share, prefetch_shares
from isoloop.trainer.evaluate import evaluate
from isoloop.trainer.loop import train
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.pretrained import load_published
from isoloop.trainer.muon import ReleasedMuon, TorchMuon, compute_alone
from isoloop.trainer.recurrence import sample_recurrences
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import read_result

# Processes are forked from one that has imported what takes seconds.
mp.get_context("forkserver").set_forkserver_preload(["isoloop.trainer.loop", "torch.distributed"])


@pytest.fixture
def large_batch(spec):
    return spec.model_copy(update={"batch": 11, "recurrence": RecurrenceConfig(mean=8)})


def rows(share):
    """The share as comparable rows: window, loops, seed."""
    return sorted(zip(map(tuple, share.windows.tolist()), share.loops.tolist(), share.state_seeds, strict=True))


@pytest.mark.parametrize("size", [2, 3, 11])
def test_the_ranks_shares_are_the_batch_whatever_their_number(large_batch, corpus, size):
    whole = rows(load_share(large_batch, batch_reader(large_batch, corpus), Ranks(), 5))
    parts = [
        load_share(large_batch, batch_reader(large_batch, corpus), Ranks(rank=rank, size=size), 5)
        for rank in range(size)
    ]
    assert sorted(row for part in parts for row in rows(part)) == whole
    work = [int(part.loops.sum()) for part in parts]
    assert size == 11 or max(work) - min(work) <= part_longest(parts)


def part_longest(parts):
    return max(int(part.loops.max()) for part in parts)


def test_a_share_is_the_steps_batch_deepest_first(large_batch, corpus):
    share = load_share(large_batch, batch_reader(large_batch, corpus), Ranks(), 5)
    loops = sample_recurrences(large_batch.recurrence, batch=11, seed=large_batch.seed, step=5, steps=large_batch.steps)
    order = np.argsort(-loops, kind="stable")
    np.testing.assert_array_equal(share.loops, loops[order])
    windows = batch_windows(corpus, context=16, batch=11, seed=large_batch.seed, step=5)
    np.testing.assert_array_equal(share.windows, windows[order])
    assert len(set(share.state_seeds)) == 11
    assert share.state_seeds != load_share(large_batch, batch_reader(large_batch, corpus), Ranks(), 6).state_seeds


def test_made_ahead_in_order(large_batch, corpus):
    found = list(prefetch_shares(large_batch, corpus, Ranks(), 4, pinned=False))
    assert [step for step, _ in found] == list(range(4, large_batch.steps))
    for step, share in found:
        assert torch.equal(
            share.windows, load_share(large_batch, batch_reader(large_batch, corpus), Ranks(), step).windows
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def process(rank, size, port, spec_json, corpus_folder, folder, execution_json, stops):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    spec, corpus = RunSpec.model_validate_json(spec_json), Corpus(Path(corpus_folder))
    execution = ExecutionConfig.model_validate_json(execution_json)
    for stop in stops:  # steps after which it is to stop, then None for the end
        calls = iter(range(1, 10**9))
        result = train(
            spec,
            corpus,
            Path(folder),
            execution=execution,
            # One process of them is enough, whichever it is: a machine that is taken back tells its own.
            should_stop=lambda stop=stop, calls=calls: stop is not None and rank == size - 1 and next(calls) >= stop,
        )
        assert (result is None) == (stop is not None)
    dist.destroy_process_group()
    # The interpreter's end races with threads of torch's own (seen in one of three runs: "terminate called without an
    # active exception", no Python frame). All that counts is written, so this process ends here.
    os._exit(0)


def train_in(size, spec, corpus, folder, stops=(None,), **execution):
    arguments = (size, free_port(), spec.model_dump_json(), str(corpus.folder), str(folder))
    arguments = (*arguments, ExecutionConfig(**execution).model_dump_json(), stops)
    mp.start_processes(process, arguments, nprocs=size, start_method="forkserver")
    return read_result(folder)


def sum_in_buckets(rank, size, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    shapes, found = [(3, 5), (7,), (4, 4), (1,), (40,), (2, 2)], {}
    for bucket_bytes in (1, 40, 100, 10**9):
        model = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])
        for number, parameter in enumerate(model):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * rank + number))
            parameter.grad = None if number == 2 else drawn
        GradientSums(Ranks.current(), [model.parameters()], bucket_bytes).finish()
        found[bucket_bytes] = [parameter.grad for parameter in model]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)


def test_gradients_are_summed_in_buckets_of_any_size(tmp_path):
    """Also of one gradient each, and where one is larger than a bucket or a parameter has none."""
    mp.start_processes(sum_in_buckets, (2, free_port(), str(tmp_path)), nprocs=2, start_method="forkserver")
    for rank in range(2):
        for gradients in torch.load(tmp_path / f"{rank}.pt").values():
            assert gradients[2] is None
            for number, gradient in enumerate(gradients):
                draws = [torch.Generator().manual_seed(10 * other + number) for other in range(2)]
                if number != 2:
                    expected = sum(torch.randn(gradient.shape, generator=draw) for draw in draws)
                    assert torch.equal(gradient, expected)


def sum_beside_backward(rank, size, port, folder):
    """Two micro-batches on one rank, three on the other, with other loops; watched in the last one or not at all."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    config, found, all_reduce = ModelConfig(width=16, heads=2, context=8, core_layers=2), {}, dist.all_reduce
    kinds = {"plain": {}, "recomputed": {"recompute_loops": True}, "spare": {}}
    for kind, watched in product(kinds, (True, False)):
        model = build_model(config, **kinds[kind])
        model.initialise(0)
        if kind == "spare":
            model.injection.spare = nn.Parameter(torch.zeros(3))  # gets no gradient
        sums, sent = GradientSums(Ranks.current(), model.gradient_groups(), 4 * 1500), []

        def recorded(flat, sums=sums, sent=sent, **settings):
            sent.append((flat.numel(), sum(sums._incomplete)))  # how many gradients of the pass are still to come
            return all_reduce(flat, **settings)

        dist.all_reduce = recorded
        for _ in range(2):  # steps
            model.zero_grad()
            for part in range(2 + rank):
                tokens = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(10 * rank + part))
                h0, loops = model.initial_state((rank, part), 8), torch.tensor([4 - rank, 1 + part])
                loss = model.loss(tokens[:, :-1], tokens[:, 1:], loops, 3, h0).nats
                if watched and part == 1 + rank:
                    sums.watch()
                loss.backward()
            sums.finish()
        dist.all_reduce = all_reduce
        found[kind, watched] = [None if p.grad is None else p.grad.clone() for p in model.parameters()], sent
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)


def test_sums_beside_the_backward_pass_are_those_after_it_to_the_bit(tmp_path):
    """In one order on both ranks; a gradient that never comes holds up the buckets behind its own until the end."""
    mp.start_processes(sum_beside_backward, (2, free_port(), str(tmp_path)), nprocs=2, start_method="forkserver")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    sent_last = {}
    for kind in ("plain", "recomputed", "spare"):
        expected, after = found[0][kind, False]
        for rank in range(2):
            gradients, sent = found[rank][kind, True]
            assert all(a is b or torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
            assert [size for size, _ in sent] == [size for size, _ in after]
            to_come = [missing for _, missing in sent[len(sent) // 2 :]]  # in the second step
            assert to_come[0] > len(gradients) // 2
            assert sorted(to_come, reverse=True) == to_come
            assert to_come[3] > 0  # the first bucket behind the coda's three
            sent_last[kind] = to_come.count(0)
        assert not any(missing for _, missing in after)
    assert sent_last["spare"] > sent_last["plain"] == sent_last["recomputed"]


MATRICES = [(8, 8), (32, 8), (8, 8), (8, 32), (8, 8), (32, 8), (3, 8)]  # stacks of three, two and one


def muon_steps(variant, share, steps, state=None):
    """Matrices and optimizer after steps with the same gradients on all ranks, and rows orthogonalised by this one."""
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in MATRICES]
    rows = []

    def counted(function, matrices):
        def own(part):
            rows.append(len(part))
            return function(part)

        return share(own, matrices)

    optimizer = variant(ours, rate=0.02, momentum=0.9, weight_decay=0.1, share=counted)
    for step in range(max(steps)):
        gradients = [torch.randn(shape, generator=generator) for shape in MATRICES]
        if step == min(steps) and state is not None:
            saved, optimizer_state = state
            optimizer.load_state_dict(optimizer_state)
            for matrix, value in zip(ours, saved, strict=True):
                matrix.data.copy_(value)
        if step >= min(steps):
            for matrix, gradient in zip(ours, gradients, strict=True):
                matrix.grad = gradient
            optimizer.step()
    return [matrix.detach() for matrix in ours], optimizer.state_dict(), rows


def share_muon(rank, size, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    found = {kind.__name__: muon_steps(kind, Ranks.current().share_rows, (0, 4)) for kind in (TorchMuon, ReleasedMuon)}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)


def assert_same_muon(one, other):
    assert all(map(torch.equal, one[0], other[0]))
    for key, state in one[1]["state"].items():
        assert all(torch.equal(value, other[1]["state"][key][name]) for name, value in state.items())


def test_each_process_orthogonalises_its_part_and_all_go_the_same_way_to_the_bit(tmp_path):
    """Both hold the whole state, so a process alone goes on from it."""
    mp.start_processes(share_muon, (2, free_port(), str(tmp_path)), nprocs=2, start_method="forkserver")
    for kind in (TorchMuon, ReleasedMuon):
        alone = muon_steps(kind, compute_alone, (0, 4))
        shared = [torch.load(tmp_path / f"{rank}.pt")[kind.__name__] for rank in range(2)]
        for rank, rows in enumerate(([2, 1, 1, 1], [1, 1, 0, 0])):
            assert_same_muon(shared[rank], alone)
            assert len(shared[rank][1]["state"]) == len(MATRICES)
            assert shared[rank][2] == 4 * rows
        gone_on = muon_steps(kind, compute_alone, (4, 6), state=shared[0][:2])
        assert_same_muon(gone_on, muon_steps(kind, compute_alone, (0, 6)))


COMPARED_METRICS = ("train_loss", "gradient_norm", "state_norm", "last_loop_residual")


def metrics_by_step(folder):
    records, _ = read_journal(folder / "journal.jsonl")
    return {r["step"]: {key: r["values"][key] for key in COMPARED_METRICS} for r in records if r["kind"] == "metrics"}


@pytest.fixture(scope="module")
def alone(spec, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, train(spec, corpus, folder)


@pytest.fixture(scope="module")
def two(spec, corpus, tmp_path_factory):
    """The same run by two processes."""
    folder = tmp_path_factory.mktemp("two")
    return folder, train_in(2, spec, corpus, folder)


def test_the_same_losses_as_one_process(alone, two):
    folder, result = alone
    two_folder, together = two
    ours, theirs = metrics_by_step(two_folder), metrics_by_step(folder)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    # From there on sums in another order drift apart: torch's Muon orthogonalises in bfloat16, which magnifies them.
    for step, values in theirs.items():
        assert ours[step]["train_loss"] == pytest.approx(values["train_loss"], rel=3e-4)
    assert together.losses == pytest.approx(result.losses, rel=3e-4)
    assert (together.forward_loops, together.backward_loops) == (result.forward_loops, result.backward_loops)
    started = next(r for r in read_journal(two_folder / "journal.jsonl")[0] if r.get("name") == "started")
    assert started["processes"] == 2


def test_stopped_and_gone_on_together_is_the_same_to_the_bit(spec, corpus, two, tmp_path):
    """Validations in between don't show either."""
    stopped = train_in(2, spec, corpus, tmp_path, stops=(5, None), validations=2)
    assert stopped.losses == two[1].losses
    assert metrics_by_step(tmp_path) == metrics_by_step(two[0])
    records = read_journal(tmp_path / "journal.jsonl")[0]
    assert [r["step"] for r in records if "validation_loss" in r.get("values", {})] == [4, 8]


def test_the_released_optimizer_in_two_processes_is_that_in_one_up_to_rounding(spec, corpus, tmp_path):
    """Stopped in between, so that both processes load its state."""
    released = spec.model_copy(update={"steps": 6, "optimizer": OptimizerConfig(muon="released")})
    together = train_in(2, released, corpus, tmp_path / "two", stops=(3, None))
    assert together.losses == pytest.approx(train(released, corpus, tmp_path / "one").losses, rel=1e-3)


def test_packed_and_masked_rows_in_two_processes_are_those_in_one(spec, corpus, tmp_path):
    """Stopped in between; the index of documents is made by both at once. Perplexity is shared out, too."""
    (corpus.folder / "train-documents.npy").unlink(missing_ok=True)
    data = DataConfig(packing="best-fit", document_mask=True, unique_tokens=500)
    evaluation = EvaluationConfig(sequences=8, recurrences=(1,), during_training=0, documents=3)
    packed = spec.model_copy(update={"steps": 6, "data": data, "evaluation": evaluation})
    together = train_in(2, packed, corpus, tmp_path / "two", stops=(3, None))
    alone = train(packed, corpus, tmp_path / "one")
    assert together.losses == pytest.approx(alone.losses, rel=1e-3)
    assert together.document_losses == pytest.approx(alone.document_losses, rel=1e-3)
    assert (together.dropped_tokens, together.unique_tokens) == (alone.dropped_tokens, alone.unique_tokens)


def test_two_processes_keep_one_best_step_also_where_they_were_stopped_behind_it(spec, corpus, tmp_path):
    """They learn two windows of text by heart."""
    changes = {
        "data": DataConfig(unique_tokens=33),
        "recurrence": RecurrenceConfig(mean=2),
        "optimizer": OptimizerConfig(learning_rate=0.1),
        "schedule": ScheduleConfig(decay_fraction=0),
        "evaluation": EvaluationConfig(sequences=4, recurrences=(1,), during_training=5, keep_best=True),
    }
    result = train_in(2, spec.model_copy(update=changes), corpus, tmp_path, stops=(9, None))
    records = read_journal(tmp_path / "journal.jsonl")[0]
    losses = {r["step"]: r["values"]["validation_loss"] for r in records if "validation_loss" in r.get("values", {})}
    assert result.best_step == min(losses, key=losses.get) < 9
    assert result.best_loss == result.best_losses[2] == losses[result.best_step] < result.loss
    windows = validation_windows(corpus, context=16, sequences=4)
    kept = evaluate(load_published(tmp_path / "best-model")[0], windows, [2])
    assert kept[2] == pytest.approx(result.best_loss, rel=1e-6)


def test_one_sequence_at_a_time_and_a_process_without_a_validation_window(spec, corpus, tmp_path):
    """Gradients are summed over micro-batches and processes, and who has nothing to validate has no say."""
    one = spec.model_copy(update={"steps": 2, "evaluation": EvaluationConfig(sequences=1, recurrences=(1,))})
    together = train_in(2, one, corpus, tmp_path / "two", micro_batch=1)
    alone = train(one, corpus, tmp_path / "one")
    assert together.status == "finished"
    assert together.losses == pytest.approx(alone.losses, rel=1e-4)
    assert metrics_by_step(tmp_path / "two")[1] == pytest.approx(metrics_by_step(tmp_path / "one")[1], rel=1e-6)
    assert (together.forward_loops, together.backward_loops) == (alone.forward_loops, alone.backward_loops)


def test_more_processes_than_sequences_are_refused(spec, corpus, tmp_path):
    lonely = spec.model_copy(update={"batch": 1})
    with pytest.raises(mp.ProcessRaisedException, match="each process must have at least one sequence of a batch"):
        train_in(2, lonely, corpus, tmp_path)
