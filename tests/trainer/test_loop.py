"""One run from spec to result: resumed equals uninterrupted, divergence, journal, checkpoints."""

import json
import math
import os
import re
import weakref

import pytest
import torch

from isoloop.trainer import loop
from isoloop.trainer.accounting import flops_per_token
from isoloop.trainer.config import (
    DataConfig,
    ExecutionConfig,
    ModelConfig,
    OptimizerConfig,
    RecurrenceConfig,
    RunSpec,
    ScheduleConfig,
)
from isoloop.trainer.data.batches import batch_reader, validation_windows
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.distributed import Ranks, load_share
from isoloop.trainer.evaluate import bits_per_byte, evaluate
from isoloop.trainer.files import FolderBusyError, sole_owner
from isoloop.trainer.loop import train
from isoloop.trainer.model import build as compilation
from isoloop.trainer.model.parcae import Parcae
from isoloop.trainer.model.pretrained import load_published
from isoloop.trainer.optim import make_optimizers
from isoloop.trainer.run.checkpoint import CheckpointWriter, checkpoints, load_checkpoint
from isoloop.trainer.run.environment import environment
from isoloop.trainer.run.journal import Journal, journal_id, read_journal
from isoloop.trainer.run.result import RunResult, read_result


def stop_after(steps):
    """A stop signal that comes true at the given step."""
    calls = iter(range(1, 10**9))
    return lambda: next(calls) >= steps


def without_clock(result: RunResult) -> dict:
    return result.model_dump(exclude={"seconds"})


NO_DECAY = OptimizerConfig(muon_weight_decay=0.0)
CLOCK = {
    "tokens_per_second", "model_flop_utilisation", "peak_memory",
    "system/cpu_utilization_percentage", "system/system_memory_usage_megabytes",
}  # fmt: skip


def metrics(folder):
    """The journal's metrics of each step, except those of the clock and the machine."""
    records, _ = read_journal(folder / "journal.jsonl")
    return [
        (r["step"], {key: value for key, value in r["values"].items() if key not in CLOCK})
        for r in records
        if r["kind"] == "metrics"
    ]


@pytest.fixture(scope="module")
def uninterrupted(spec, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(spec, corpus, folder)


def test_a_run_records_what_it_did(spec, corpus, uninterrupted):
    folder, result = uninterrupted
    assert result == read_result(folder)
    assert result.run_id == spec.run_id
    assert result.status == "finished"
    assert not result.simulated
    assert (result.steps, result.tokens) == (12, 12 * 4 * 16)
    assert result.unique_tokens == len(corpus.train)
    assert result.epochs == result.tokens / len(corpus.train)
    assert set(result.losses) == {1, 2, 3, 4}  # those of the spec, and the mean recurrence
    assert result.loss == result.losses[3]
    assert result.bits_per_byte == pytest.approx(result.loss / 0.6931471805599453)
    assert 0 < result.spectral_radius < 1
    assert result.backward_loops <= 2
    assert [step for step, _ in metrics(folder)] == list(range(1, 13))
    recorded = [r["values"] for r in read_journal(folder / "journal.jsonl")[0] if r["kind"] == "metrics"]
    assert recorded[0].keys() == {
        "train_loss", "gradient_norm", "spectral_radius", "state_norm", "last_loop_residual", "learning_rate",
        "matrix_learning_rate", "tokens", *CLOCK,
    }  # fmt: skip
    assert all(value > 0 for values in recorded for value in values.values())
    assert recorded[0]["spectral_radius"] == pytest.approx(0.2**0.5, abs=0.02)
    started = read_journal(folder / "journal.jsonl")[0][1]
    assert (started["name"], started["torch"], started["cpu_threads"]) == ("started", torch.__version__, 1)
    assert started.items() >= environment().items()
    model, recurrence = load_published(folder / "model")
    assert (model.config, recurrence.mean) == (spec.model, spec.recurrence.mean)
    assert model.spectral_radius() == pytest.approx(result.spectral_radius)
    assert not checkpoints(folder / "checkpoints")  # a finished run needs none
    assert metrics(folder)[-1][1]["train_loss"] < metrics(folder)[0][1]["train_loss"]


def test_the_same_spec_gives_the_same_numbers(spec, corpus, uninterrupted, tmp_path):
    assert without_clock(train(spec, corpus, tmp_path)) == without_clock(uninterrupted[1])


@pytest.mark.parametrize("stops", [[1], [3, 4]])
def test_resumed_equals_uninterrupted(spec, corpus, uninterrupted, tmp_path, stops):
    whole_folder, whole = uninterrupted
    for steps in stops:
        assert train(spec, corpus, tmp_path, should_stop=stop_after(steps)) is None
    assert without_clock(train(spec, corpus, tmp_path)) == without_clock(whole)
    assert metrics(tmp_path) == metrics(whole_folder)


@pytest.mark.parametrize("muon", ["torch", "released"])
def test_resumed_state_is_the_uninterrupted_one_to_the_bit(spec, corpus, tmp_path, muon):
    """Weights, optimizer state, counts: the checkpoint at step 9, with and without a stop at 4."""
    spec = spec.model_copy(update={"optimizer": OptimizerConfig(muon=muon)})

    def state_at_nine(folder):
        assert (
            train(spec, corpus, folder, should_stop=stop_after(9 - len(checkpoints(folder / "checkpoints")) * 4))
            is None
        )
        return torch.load(folder / "checkpoints" / "00000009" / "state.pt", weights_only=True)

    straight = state_at_nine(tmp_path / "straight")
    assert train(spec, corpus, tmp_path / "stopped", should_stop=stop_after(4)) is None
    resumed = state_at_nine(tmp_path / "stopped")
    for state in (straight, resumed):
        state["counts"].pop("seconds")
    flat, expected = (dict(flatten(state)) for state in (resumed, straight))
    assert flat.keys() == expected.keys()
    assert sum(isinstance(value, torch.Tensor) for value in flat.values()) > 50
    for key, value in expected.items():
        same = torch.equal(flat[key], value) if isinstance(value, torch.Tensor) else flat[key] == value
        assert same, key


def flatten(tree, path=""):
    if isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from flatten(value, f"{path}/{key}")
    else:
        yield path, tree


def test_the_number_of_checkpoints_kept_is_a_setting(spec, corpus, tmp_path):
    always = ExecutionConfig(checkpoint_seconds=1e-6, keep_checkpoints=4)
    assert train(spec, corpus, tmp_path, execution=always, should_stop=stop_after(8)) is None
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [f"{step:08d}" for step in (5, 6, 7, 8)]


@pytest.mark.parametrize(
    "execution",
    [{"micro_batch": 3}, {"activation_checkpointing": True}],
    ids=["three at a time", "recomputed"],
)
def test_how_it_is_executed_changes_rounding_alone(spec, corpus, uninterrupted, tmp_path, execution):
    """Gradient accumulation and activation checkpointing: the same run, up to the order of sums."""
    result = train(spec, corpus, tmp_path, execution=ExecutionConfig(**execution))
    assert result.losses == pytest.approx(uninterrupted[1].losses, rel=1e-4)  # 4e-5 on some processors
    assert result.forward_loops == uninterrupted[1].forward_loops
    ours, theirs = metrics(tmp_path)[0][1], metrics(uninterrupted[0])[0][1]
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_validations_in_mid_run_change_nothing_but_the_journal(spec, corpus, uninterrupted, tmp_path):
    """Three of them, at steps 3, 6 and 9, also where the run is stopped at one and goes on behind it."""
    execution = ExecutionConfig(validations=3)
    calls = []
    assert train(spec, corpus, tmp_path, execution=execution, should_stop=stop_after(6)) is None
    result = train(spec, corpus, tmp_path, execution=execution, heartbeat=lambda: calls.append(1))
    assert without_clock(result) == without_clock(uninterrupted[1])
    recorded = metrics(tmp_path)
    assert [step for step, values in recorded if "validation_loss" in values] == [3, 6, 9]
    validated = [values.pop("validation_loss") for _, values in recorded if "validation_loss" in values]
    assert recorded == metrics(uninterrupted[0])
    assert math.log(256) * 3 > validated[0] > validated[-1] > result.loss
    assert len(calls) == 6 + 1 + len(result.losses)  # steps 7 to 12, one evaluation between, each T at the end
    for name, theirs in (load_published(uninterrupted[0] / "model")[0]).state_dict().items():
        assert torch.equal(load_published(tmp_path / "model")[0].state_dict()[name], theirs)


def test_a_validation_is_that_of_the_model_at_its_step(spec, corpus, tmp_path):
    """A run that ends at step 6 evaluates what another one evaluates there, with a constant learning rate."""
    constant = spec.model_copy(update={"schedule": ScheduleConfig(decay_fraction=0), "optimizer": NO_DECAY})
    train(constant, corpus, tmp_path / "long", execution=ExecutionConfig(validations=1))
    short = train(constant.model_copy(update={"steps": 6}), corpus, tmp_path / "short")
    (values,) = [values for _, values in metrics(tmp_path / "long") if "validation_loss" in values]
    assert values["validation_loss"] == short.loss


MODELS = {
    "concat": ModelConfig(width=16, heads=2, context=16, injection="concat", prelude_norm=False, block="residual-norm"),
    "addition": ModelConfig(width=16, heads=2, context=16, injection="addition"),
}


def test_the_text_of_a_run_ends_at_max_tokens(spec, parquet_folder, tmp_path):
    config = DataConfig(corpus=str(parquet_folder), validation_fraction=0.1, max_tokens=25_000)
    corpus = prepare_corpus(config, tmp_path)
    changes = {"data_fingerprint": corpus.facts.fingerprint, "data": config, "steps": 2}
    result = train(spec.model_copy(update=changes), corpus, tmp_path / "run")
    assert result.unique_tokens == corpus.facts.train_tokens
    assert 25_000 <= result.unique_tokens < 26_000


@pytest.mark.parametrize("name", MODELS)
def test_other_injections_train(spec, corpus, tmp_path, name):
    result = train(spec.model_copy(update={"model": MODELS[name]}), corpus, tmp_path)
    assert result.status == "finished"
    assert metrics(tmp_path)[-1][1]["train_loss"] < metrics(tmp_path)[0][1]["train_loss"]
    assert (result.spectral_radius == 1.0) == (name == "addition")


def test_a_model_with_all_options_of_head_and_attention_trains_and_is_published(spec, corpus, uninterrupted, tmp_path):
    options = {"key_value_heads": 1, "tied_head": False, "logit_soft_cap": 15.0}
    changed = spec.model_copy(update={"model": spec.model.model_copy(update={**options, "z_loss": 1e-3})})
    result = train(changed, corpus, tmp_path)
    assert metrics(tmp_path)[-1][1]["train_loss"] < metrics(tmp_path)[0][1]["train_loss"]
    assert result.run_id != uninterrupted[1].run_id
    model, _ = load_published(tmp_path / "model")
    assert model.config == spec.model.model_copy(update=options)  # a z-loss is training's
    windows = validation_windows(corpus, context=16, sequences=8)
    assert evaluate(model, windows, result.losses) == pytest.approx(result.losses, rel=1e-6)


def test_the_fixed_depth_model_trains(spec, corpus, tmp_path):
    content = spec.model_dump()
    content["model"]["injection"] = "none"
    with pytest.raises(ValueError, match="runs each block once, so its mean recurrence must be 1"):
        RunSpec.model_validate(content)
    content["recurrence"] = {"mean": 1, "sampling": "fixed"}
    content["evaluation"]["recurrences"] = [1]
    fixed = RunSpec.model_validate(content)
    result = train(fixed, corpus, tmp_path)
    assert result.losses.keys() == {1}
    assert result.spectral_radius is None
    assert not {"spectral_radius", "state_norm", "last_loop_residual"} & metrics(tmp_path)[0][1].keys()
    assert result.flops_exact == fixed.tokens * flops_per_token(
        fixed.model, RecurrenceConfig(mean=1, sampling="fixed"), "exact"
    )


def test_one_depth_for_all_and_a_curriculum_train(spec, corpus, tmp_path):
    recurrence = RecurrenceConfig(mean=6, sampling="fixed", curriculum_start=1, curriculum_fraction=0.5)
    result = train(spec.model_copy(update={"recurrence": recurrence}), corpus, tmp_path)
    assert result.forward_loops == pytest.approx((1 + 2 + 2 + 4 + 4 + 5 + 6 * 6) / 12, abs=0.3)
    assert result.status == "finished"


def test_a_fractional_mean_has_the_loss_between_whole_loops(spec, corpus, tmp_path):
    recurrence = RecurrenceConfig(mean=2.25, phases=({"until": 0.5, "mean": 1},))
    result = train(spec.model_copy(update={"recurrence": recurrence}), corpus, tmp_path)
    assert {2, 3} <= result.losses.keys()
    assert result.loss == pytest.approx(0.75 * result.losses[2] + 0.25 * result.losses[3], rel=1e-12)
    assert read_result(tmp_path) == result
    assert load_published(tmp_path / "model")[1].mean == 2.25


def test_rdm_as_published_trains(spec, corpus, tmp_path):
    """Scaled embeddings, a second norm behind the loop, and loops drawn about a log-normal rate."""
    width = spec.model.width
    model = {"injection": "concat", "block": "residual-norm", "prelude_norm": False, "loop_norm": True}
    model |= {"embedding_scale": width**0.5}
    recurrence = RecurrenceConfig(mean=3, distribution="log-normal-poisson", sampling="per-batch")
    changed = {"model": spec.model.model_copy(update=model), "recurrence": recurrence}
    result = train(spec.model_copy(update=changed), corpus, tmp_path)
    assert result.status == "finished"
    assert result.forward_loops > 3


def test_a_crash_goes_on_from_the_last_checkpoint(spec, corpus, uninterrupted, tmp_path):
    """Steps behind the checkpoint run again, to the same numbers, and stand in the journal once."""

    def crash():
        if not checkpoints(tmp_path / "checkpoints"):
            return True
        raise MemoryError("a crash")

    assert train(spec, corpus, tmp_path, should_stop=crash) is None
    with pytest.raises(MemoryError):
        train(spec, corpus, tmp_path, should_stop=crash)
    assert without_clock(train(spec, corpus, tmp_path)) == without_clock(uninterrupted[1])
    assert metrics(tmp_path) == metrics(uninterrupted[0])


def test_a_torn_checkpoint_gives_way_to_the_one_before(spec, corpus, uninterrupted, tmp_path):
    for steps in (3, 4):
        assert train(spec, corpus, tmp_path, should_stop=stop_after(steps)) is None
    older, newest = checkpoints(tmp_path / "checkpoints")
    os.truncate(newest / "state.pt", 1000)
    (tmp_path / "checkpoints" / ".building-left-by-a-kill").mkdir()
    assert without_clock(train(spec, corpus, tmp_path)) == without_clock(uninterrupted[1])
    assert metrics(tmp_path) == metrics(uninterrupted[0])
    events = [r["name"] for r in read_journal(tmp_path / "journal.jsonl")[0] if r["kind"] == "event"]
    assert "checkpoint refused" in events
    assert not list((tmp_path / "checkpoints").iterdir())
    assert older.name < newest.name


def test_torn_checkpoints_alone_are_refused_by_name(spec, corpus, tmp_path):
    assert train(spec, corpus, tmp_path, should_stop=stop_after(3)) is None
    (only,) = checkpoints(tmp_path / "checkpoints")
    os.truncate(only / "state.pt", 1000)
    with pytest.raises(ValueError, match=r"00000003/state.pt can't be read"):
        train(spec, corpus, tmp_path)


def test_a_finished_run_is_not_trained_again(spec, corpus, uninterrupted):
    folder, result = uninterrupted
    before = (folder / "journal.jsonl").read_bytes()
    assert train(spec, corpus, folder) == result
    assert (folder / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("rate", "said"), [(30.0, r"training loss \d.*, ρ\(Ā\) \d.*"), (1e6, "training loss nan.*, ρ.*")]
)
def test_a_diverged_run_is_a_result(spec, corpus, tmp_path, rate, said):
    """An exploding loss and one that is no number: with the step, the loss and ρ(Ā) there."""
    wild = spec.model_copy(update={"optimizer": OptimizerConfig(learning_rate=rate, gradient_clip=1e9)})
    result = train(wild, corpus, tmp_path)
    assert result.status == "diverged"
    assert result.loss is None
    assert result.losses == {}
    assert re.fullmatch(rf"{said} in step {result.steps}", result.reason)
    assert result.steps < spec.steps
    assert (result.training_loss is None) == ("nan" in said)
    assert result.training_loss is None or result.training_loss > 3 * math.log(256)
    assert (result.spectral_radius is None) == ("ρ(Ā) nan" in result.reason)
    assert result.flops_exact > 0
    events = [r for r in read_journal(tmp_path / "journal.jsonl")[0] if r["kind"] == "event"]
    assert (events[-1]["name"], events[-1]["reason"]) == ("diverged", result.reason)


@pytest.fixture
def poison(spec, corpus, monkeypatch):
    """A function that makes one entry of the gradient infinite in the given steps (0-based)."""
    whole = loop._accumulate_gradients

    def in_steps(*steps):
        seeds = [load_share(spec, batch_reader(spec, corpus), Ranks(), step).state_seeds for step in steps]

        def accumulate(spec, model, share, *more):
            stats = whole(spec, model, share, *more)
            if share.state_seeds in seeds:
                model.final_norm.weight.grad[3] = math.inf
            return stats

        monkeypatch.setattr(loop, "_accumulate_gradients", accumulate)

    return in_steps


RELEASED = OptimizerConfig(muon="released")


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(spec, corpus, tmp_path, poison):
    """Also where the run is stopped between two such steps; with torch's Muon the first ends the run, as ever."""
    poison(3, 4, 8)
    released = spec.model_copy(update={"optimizer": RELEASED})
    result = train(released, corpus, tmp_path / "whole")
    assert (result.status, result.steps, result.skipped_steps) == ("finished", 12, 3)
    recorded = dict(metrics(tmp_path / "whole"))
    assert {step: r["skipped_steps"] for step, r in recorded.items() if "skipped_steps" in r} == {4: 1, 5: 2, 9: 3}
    assert "gradient_norm" not in recorded[4]
    assert "gradient_norm" in recorded[6]
    radii = {step: r["spectral_radius"] for step, r in recorded.items()}  # of the weights before the step
    assert radii[3] != radii[4] == radii[5] == radii[6] != radii[7]  # they stayed in steps 4 and 5

    assert train(released, corpus, tmp_path / "stopped", should_stop=stop_after(4)) is None
    assert without_clock(train(released, corpus, tmp_path / "stopped")) == without_clock(result)
    ended = train(spec, corpus, tmp_path / "torch")
    assert (ended.status, ended.steps, ended.skipped_steps) == ("diverged", 4, 1)
    assert re.fullmatch(r"training loss \S+, gradient norm inf, ρ\(Ā\) \S+ in step 4", ended.reason)


def test_too_many_skipped_steps_in_a_row_are_a_divergence(spec, corpus, tmp_path, poison):
    poison(1, 5, 6, 7, 8)
    strict = spec.model_copy(update={"optimizer": OptimizerConfig(divergence_steps=3)})
    whole = train(strict, corpus, tmp_path / "whole")
    assert (whole.status, whole.steps, whole.skipped_steps) == ("diverged", 8, 4)
    assert whole.reason.endswith("in step 8, the last of 3 steps in a row that were skipped")
    assert train(strict, corpus, tmp_path / "stopped", should_stop=stop_after(6)) is None
    assert without_clock(train(strict, corpus, tmp_path / "stopped")) == without_clock(whole)


def test_the_released_optimizer_trains(spec, corpus, uninterrupted, tmp_path):
    released = spec.model_copy(update={"optimizer": RELEASED})
    assert (OptimizerConfig().skips_to_divergence, RELEASED.skips_to_divergence) == (1, 10)
    assert released.run_id != spec.run_id
    result = train(released, corpus, tmp_path)
    assert result.skipped_steps == 0
    assert result.loss == pytest.approx(uninterrupted[1].loss, rel=0.1)
    assert result.loss != uninterrupted[1].loss


def test_the_released_initialisation_trains_and_is_part_of_a_runs_identity(spec, corpus, uninterrupted, tmp_path):
    released = spec.model_copy(update={"initialisation": "released"})
    assert released.run_id != spec.run_id
    assert "initialisation" not in spec.model_dump()
    result = train(released, corpus, tmp_path)
    assert result.status == "finished"
    assert result.losses != uninterrupted[1].losses


@pytest.mark.parametrize("rate", [30.0, 8e-3], ids=["diverged", "finished"])
def test_a_run_that_ended_holds_nothing(spec, corpus, tmp_path, monkeypatch, rate):
    """Model and optimizers are gone when `train` returns; what diverged is not evaluated first."""
    made = []

    def make(*arguments):
        optimizers = make_optimizers(*arguments)
        made.extend(weakref.ref(thing) for thing in (arguments[0], *optimizers))
        return optimizers

    monkeypatch.setattr("isoloop.trainer.loop.make_optimizers", make)
    if rate > 1:
        monkeypatch.setattr("isoloop.trainer.loop.evaluate", None)
    wild = spec.model_copy(update={"optimizer": OptimizerConfig(learning_rate=rate, gradient_clip=1e9)})
    assert train(wild, corpus, tmp_path).status == ("diverged" if rate > 1 else "finished")
    assert len(made) == 3
    assert [thing() for thing in made] == [None] * 3


def test_bfloat16_trains(spec, corpus, tmp_path, uninterrupted):
    half = spec.model_copy(update={"precision": "bfloat16"})
    assert half.run_id != spec.run_id
    unmeasured = ExecutionConfig(peak_flops=1e12)  # measuring takes seconds on processors without bfloat16
    assert train(half, corpus, tmp_path, execution=unmeasured).loss == pytest.approx(uninterrupted[1].loss, rel=2e-3)


# As in test_compilation.py: torch hides its own warning too late.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_run_is_the_same_run_also_when_stopped(spec, corpus, uninterrupted, tmp_path, monkeypatch):
    """With micro-batches, a stop, a resumption and the evaluation; graphs are traced, not made into machine code."""
    compiled = []

    def compile_blocks(model, *settings):
        compiled.append(model)
        compilation.compile_blocks(model, *settings, backend="eager")

    monkeypatch.setattr("isoloop.trainer.loop.compile_blocks", compile_blocks)
    execution = ExecutionConfig(compile=True, micro_batch=2)
    assert train(spec, corpus, tmp_path, execution=execution, should_stop=stop_after(5)) is None
    result = train(spec, corpus, tmp_path, execution=execution)
    assert len(compiled) == 2
    assert result.losses == pytest.approx(uninterrupted[1].losses, rel=3e-4)


def test_one_writer_a_run(spec, corpus, tmp_path):
    with sole_owner(tmp_path), pytest.raises(FolderBusyError, match="another is at work"):
        train(spec, corpus, tmp_path)


def test_a_corpus_that_was_not_planned_is_refused(spec, corpus, tmp_path):
    with pytest.raises(ValueError, match="the corpus must be the one the run was planned with"):
        train(spec.model_copy(update={"data_fingerprint": "0" * 12}), corpus, tmp_path)


def test_evaluation_at_many_recurrences_is_that_at_each(spec, corpus):
    model = Parcae(spec.model)
    model.initialise(1)
    windows = validation_windows(corpus, context=16, sequences=70)
    together = evaluate(model, windows, [4, 1, 2])
    assert list(together) == [1, 2, 4]
    for recurrence, loss in together.items():
        assert evaluate(model, windows, [recurrence])[recurrence] == loss
    assert bits_per_byte(together[1], 1.0) == pytest.approx(together[1] / 0.6931471805599453)


class TestJournal:
    def test_goes_on_behind_a_torn_line(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        journal = Journal(path)
        journal.metrics(1, {"a": 1.0})
        journal.close()
        with path.open("ab") as file:
            file.write(b'{"kind": "metr')
        assert [r["kind"] for r in read_journal(path)[0]] == ["journal", "metrics"]
        identity = journal_id(path)
        journal = Journal(path)
        journal.metrics(1, {"a": 9.0})  # known from before the restart
        journal.metrics(2, {"a": 2.0})
        journal.close()
        assert [r["values"]["a"] for r in read_journal(path)[0][1:]] == [1.0, 2.0]
        assert journal_id(path) == identity
        path.unlink()
        assert journal_id(path) is None
        Journal(path).close()
        assert journal_id(path) != identity

    def test_reads_from_an_offset(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        assert read_journal(path) == ([], 0)
        journal = Journal(path)
        journal.event("started", step=0)
        _, offset = read_journal(path)
        journal.metrics(5, {"a": 1.0})
        records, end = read_journal(path, offset)
        assert [r["step"] for r in records] == [5]
        assert end == path.stat().st_size
        journal.close()


class TestCheckpoint:
    @pytest.fixture
    def state(self, spec):
        model = Parcae(spec.model)
        model.initialise(0)
        return {"model": model, "optimizers": make_optimizers(model, spec.optimizer)}

    def save(self, folder, state, step, run_id="a"):
        CheckpointWriter("cpu").save(folder, run_id=run_id, step=step, counts={}, **state)
        return folder / f"{step:08d}"

    def test_keeps_the_newest(self, tmp_path, state):
        for step in (1, 2, 10):
            self.save(tmp_path, state, step)
        assert [path.name for path in checkpoints(tmp_path)] == ["00000002", "00000010"]
        assert load_checkpoint(checkpoints(tmp_path)[-1], run_id="a", **state)[0] == 10

    def test_a_torn_one_is_refused_by_name(self, tmp_path, state):
        file = self.save(tmp_path, state, 1) / "state.pt"
        os.truncate(file, file.stat().st_size // 2)
        with pytest.raises(ValueError, match=r"00000001/state.pt can't be read"):
            load_checkpoint(tmp_path / "00000001", run_id="a", **state)

    def test_a_foreign_one_is_refused_by_name(self, tmp_path, state):
        checkpoint = self.save(tmp_path, state, 1, run_id="b")
        with pytest.raises(ValueError, match=r"must belong to run a, but .* is of b"):
            load_checkpoint(checkpoint, run_id="a", **state)

    def test_an_unsafe_pickle_is_refused(self, tmp_path, state):
        folder = tmp_path / "00000001"
        folder.mkdir()
        torch.save({"format": os.system}, folder / "state.pt")
        with pytest.raises(ValueError, match="can't be read"):
            load_checkpoint(folder, run_id="a", **state)


def test_a_result_of_a_version_that_did_not_count_its_text_is_read(uninterrupted, tmp_path):
    _, result = uninterrupted
    old = result.model_dump(mode="json")
    assert old.pop("unique_tokens") > 0
    (tmp_path / "result.json").write_text(json.dumps(old))
    read = read_result(tmp_path)
    assert (read.unique_tokens, read.epochs) == (None, None)
    assert read.model_copy(update={"unique_tokens": result.unique_tokens}) == result


def test_a_foreign_result_is_refused(tmp_path):
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text(json.dumps({"loss": 1}))
    with pytest.raises(ValueError, match="must be a run's result"):
        read_result(tmp_path)
