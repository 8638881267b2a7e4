"""Runs on packed documents: resumed equals uninterrupted, and they count what they saw and what was dropped."""

import pytest
import torch

from isoloop.trainer.config import DataConfig
from isoloop.trainer.data.batches import batch_reader, tokens_per_pass
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.loop import train
from isoloop.trainer.run.checkpoint import checkpoints
from tests.parquet import write_parquet
from tests.trainer.test_loop import metrics, stop_after, without_clock


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A corpus of documents that are shorter than a row."""
    folder = tmp_path_factory.mktemp("short")
    write_parquet(folder / "a.parquet", [f"{i} is " + "abcd"[i % 4] * (i % 9) for i in range(300)])
    return prepare_corpus(DataConfig(corpus=str(folder)), folder / "corpora")


@pytest.fixture(scope="module")
def packed(spec, rows):
    data = DataConfig(packing="best-fit", unique_tokens=400)
    return spec.model_copy(update={"data": data, "data_fingerprint": rows.facts.fingerprint})


@pytest.fixture(scope="module")
def uninterrupted(packed, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    return folder, train(packed, rows, folder)


def test_resumed_equals_uninterrupted(packed, rows, uninterrupted, tmp_path):
    whole_folder, whole = uninterrupted
    for steps in (1, 3, 4):
        assert train(packed, rows, tmp_path, should_stop=stop_after(steps)) is None
    assert without_clock(train(packed, rows, tmp_path)) == without_clock(whole)
    assert metrics(tmp_path) == metrics(whole_folder)


def test_a_checkpoint_without_a_position_goes_on_with_the_same_rows(packed, rows, uninterrupted, tmp_path):
    assert train(packed, rows, tmp_path, should_stop=stop_after(5)) is None
    file = checkpoints(tmp_path / "checkpoints")[-1] / "state.pt"
    state = torch.load(file, weights_only=True)
    assert state["position"]["packer"]["rows"] <= 5 * packed.batch
    torch.save(state | {"position": None}, file)
    assert without_clock(train(packed, rows, tmp_path)) == without_clock(uninterrupted[1])


def test_a_run_counts_what_it_dropped_and_the_text_it_saw(packed, rows, uninterrupted):
    folder, result = uninterrupted
    reader = batch_reader(packed, rows.first(400))
    for step in range(packed.steps):
        reader.read(step, range(packed.batch))
        assert metrics(folder)[step][1]["dropped_tokens"] == reader.dropped
    assert result.dropped_tokens == reader.dropped > 0
    assert result.unique_tokens == tokens_per_pass(rows.first(400).train, "best-fit", 16) < 400
    assert result.epochs == result.tokens / result.unique_tokens > 1
    assert result.best_loss is not None  # since it saw text again


def test_packing_is_part_of_what_is_trained(packed, rows, tmp_path):
    windows = packed.model_copy(update={"data": DataConfig(unique_tokens=400)})
    assert train(packed, rows, tmp_path / "a").loss != train(windows, rows, tmp_path / "b").loss


def test_a_masked_run_is_resumed_to_the_bit_and_another_than_one_without(packed, rows, uninterrupted, tmp_path):
    masked = packed.model_copy(update={"data": packed.data.model_copy(update={"document_mask": True})})
    whole = train(masked, rows, tmp_path / "whole")
    assert train(masked, rows, tmp_path / "stopped", should_stop=stop_after(5)) is None
    assert without_clock(train(masked, rows, tmp_path / "stopped")) == without_clock(whole)
    assert whole.loss != uninterrupted[1].loss
    assert whole.flops_exact == uninterrupted[1].flops_exact
