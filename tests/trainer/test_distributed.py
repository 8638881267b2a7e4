"""Two processes that share every batch train what one process trains."""

import os
import socket
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from isoloop.trainer.config import EvaluationConfig, ExecutionConfig, RunSpec
from isoloop.trainer.data.corpus import Corpus
from isoloop.trainer.loop import train
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import read_result

# Processes are forked from one that has imported what takes seconds.
mp.get_context("forkserver").set_forkserver_preload(["isoloop.trainer.loop", "torch.distributed"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def process(rank, size, port, spec_json, corpus_folder, folder, execution_json, stops):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    spec, corpus = RunSpec.model_validate_json(spec_json), Corpus(Path(corpus_folder))
    execution = ExecutionConfig.model_validate_json(execution_json)
    for stop in stops:  # steps after which it is asked to stop, then to the end
        asked = iter(range(1, 10**9))
        result = train(
            spec,
            corpus,
            Path(folder),
            execution=execution,
            should_stop=lambda stop=stop, asked=asked: stop is not None and next(asked) >= stop,
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


TOLD = ("train_loss", "gradient_norm", "state_norm", "last_loop_residual")


def told_by_step(folder):
    records, _ = read_journal(folder / "journal.jsonl")
    return {r["step"]: {key: r["values"][key] for key in TOLD} for r in records if r["kind"] == "metrics"}


@pytest.fixture(scope="module")
def alone(spec, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, train(spec, corpus, folder)


@pytest.mark.parametrize("execution", [{}, {"micro_batch": 1}], ids=["whole", "one at a time"])
def test_the_same_losses_as_one_process(spec, corpus, alone, tmp_path, execution):
    together = train_in(2, spec, corpus, tmp_path, **execution)
    folder, result = alone
    ours, theirs = told_by_step(tmp_path), told_by_step(folder)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    # From there on sums in another order drift apart: torch's Muon orthogonalises in bfloat16, which magnifies them.
    for step, told in theirs.items():
        assert ours[step]["train_loss"] == pytest.approx(told["train_loss"], rel=3e-4)
    assert together.losses == pytest.approx(result.losses, rel=3e-4)
    assert (together.forward_loops, together.backward_loops) == (result.forward_loops, result.backward_loops)
    started = next(r for r in read_journal(tmp_path / "journal.jsonl")[0] if r.get("name") == "started")
    assert started["processes"] == 2


def test_stopped_and_gone_on_together_is_the_same_to_the_bit(spec, corpus, tmp_path):
    """Validations in between don't show either."""
    whole = train_in(2, spec, corpus, tmp_path / "whole")
    stopped = train_in(2, spec, corpus, tmp_path / "stopped", stops=(5, None), validations=2)
    assert stopped.losses == whole.losses
    assert told_by_step(tmp_path / "stopped") == told_by_step(tmp_path / "whole")
    records = read_journal(tmp_path / "stopped" / "journal.jsonl")[0]
    assert [r["step"] for r in records if "validation_loss" in r.get("values", {})] == [4, 8]


def test_a_process_without_a_validation_window_has_no_say(spec, corpus, tmp_path):
    one = spec.model_copy(update={"steps": 2, "evaluation": EvaluationConfig(sequences=1, recurrences=(1,))})
    together = train_in(2, one, corpus, tmp_path / "two")
    assert together.status == "finished"
    assert together.losses == pytest.approx(train(one, corpus, tmp_path / "one").losses, rel=1e-4)


def test_more_processes_than_sequences_are_refused(spec, corpus, tmp_path):
    lonely = spec.model_copy(update={"batch": 1})
    with pytest.raises(mp.ProcessRaisedException, match="each process must have at least one sequence of a batch"):
        train_in(2, lonely, corpus, tmp_path)
