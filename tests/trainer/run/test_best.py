"""Runs on a prefix of the text: the prefix, and the best step that they keep beside the last."""

import json

import numpy as np
import pytest
import torch

from isoloop.trainer.config import DataConfig, EvaluationConfig, OptimizerConfig, RecurrenceConfig
from isoloop.trainer.data.batches import batch_windows, validation_windows
from isoloop.trainer.evaluate import evaluate
from isoloop.trainer.loop import train
from isoloop.trainer.model.pretrained import load_published
from isoloop.trainer.run.checkpoint import checkpoints
from isoloop.trainer.run.result import read_result
from tests.trainer.test_loop import metrics, stop_after, without_clock

UNIQUE = 100


@pytest.fixture(scope="module")
def overfitting(spec, corpus):
    """A run over 100 tokens 31 times, whose loss on other text rises long before its end."""
    return spec.model_copy(
        update={
            "data": DataConfig(unique_tokens=UNIQUE),
            "recurrence": RecurrenceConfig(mean=2),
            "optimizer": OptimizerConfig(learning_rate=0.02),
            "evaluation": EvaluationConfig(sequences=8, recurrences=(1, 2, 4), keep_best=True),
            "steps": 48,
        }
    )


@pytest.fixture(scope="module")
def uninterrupted(overfitting, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("overfitting")
    return folder, train(overfitting, corpus, folder)


def test_fewer_unique_tokens_are_a_prefix_of_more(corpus):
    whole = corpus.train.read(0, len(corpus.train))
    for unique in (100, 1000, len(corpus.train) - 1):
        part = corpus.first(unique)
        assert len(part.train) == unique
        assert np.array_equal(part.train.read(0, unique), whole[:unique])
        assert np.array_equal(
            validation_windows(part, context=16, sequences=8), validation_windows(corpus, context=16, sequences=8)
        )
    assert corpus.first(None) is corpus


def test_a_prefix_may_end_within_any_shard(parquet_folder, tmp_path):
    from isoloop.trainer.data.corpus import prepare_corpus

    corpus = prepare_corpus(DataConfig(corpus=str(parquet_folder)), tmp_path)
    whole = corpus.train.read(0, len(corpus.train))
    for unique in range(1000, len(whole), len(whole) // 7):
        part = corpus.first(unique).train
        assert np.array_equal(part.read(0, unique), whole[:unique])
        assert np.array_equal(part.read(unique - 10, unique), whole[unique - 10 : unique])


def test_a_run_sees_its_prefix_alone_and_all_of_it_in_each_epoch(corpus):
    part = corpus.first(UNIQUE)
    windows = part.train.count_windows(16)
    seen = np.concatenate([batch_windows(part, context=16, batch=windows, seed=3, step=step) for step in range(2)])
    expected = [corpus.train.read(16 * i, 16 * i + 17).tolist() for i in range(windows)] * 2
    assert sorted(seen.tolist()) == sorted(expected)


@pytest.mark.parametrize("unique", [10**9, "all"])
def test_more_unique_tokens_than_there_are_are_refused(spec, corpus, tmp_path, unique):
    unique = len(corpus.train) if unique == "all" else unique
    with pytest.raises(ValueError, match=rf"below the {len(corpus.train)} training tokens .* got {unique}; lower it"):
        train(spec.model_copy(update={"data": DataConfig(unique_tokens=unique)}), corpus, tmp_path)


def test_identity_depends_on_these_settings_only_where_they_are_used(spec):
    assert "during_training" not in spec.model_dump_json()
    changes = [
        {"data": DataConfig(unique_tokens=1000)},
        {"data": DataConfig(unique_tokens=1001)},
        {"evaluation": EvaluationConfig(sequences=8, recurrences=(1, 2, 4), during_training=0)},
        {"evaluation": EvaluationConfig(sequences=8, recurrences=(1, 2, 4), keep_best=True)},
    ]
    ids = {spec.model_copy(update=each).run_id for each in ({}, *changes)}
    assert len(ids) == 5
    written = json.loads(spec.model_copy(update=changes[0]).model_dump_json())
    assert type(spec).model_validate(written).run_id == spec.model_copy(update=changes[0]).run_id
    with pytest.raises(ValueError, match="keep_best requires evaluations during training"):
        EvaluationConfig(keep_best=True, during_training=0)


def test_the_best_step_is_that_of_the_lowest_loss_with_its_weights(overfitting, corpus, uninterrupted):
    folder, result = uninterrupted
    assert (result.unique_tokens, result.epochs) == (UNIQUE, 48 * 4 * 16 / UNIQUE)
    losses = {step: values["validation_loss"] for step, values in metrics(folder) if "validation_loss" in values}
    assert len(losses) == 15
    assert result.best_step == min(losses, key=losses.get) < 48
    assert result.best_loss == losses[result.best_step] == result.best_losses[2] < result.loss
    assert result.best_losses.keys() == result.losses.keys() == {1, 2, 4}
    windows = validation_windows(corpus, context=16, sequences=8)
    assert evaluate(load_published(folder / "best-model")[0], windows, [1, 2, 4]) == result.best_losses
    assert evaluate(load_published(folder / "model")[0], windows, [1, 2, 4]) == result.losses
    assert not checkpoints(folder / "checkpoints")
    assert read_result(folder) == result


def test_a_resumed_run_keeps_the_same_best_step_to_the_bit(overfitting, corpus, uninterrupted, tmp_path):
    """Stopped before the best step, at it, and after it, where the only copy of its weights is in a checkpoint."""
    whole_folder, whole = uninterrupted
    best = whole.best_step
    for steps in (best - 1, 1, 8):
        assert train(overfitting, corpus, tmp_path, should_stop=stop_after(steps)) is None
    assert without_clock(train(overfitting, corpus, tmp_path)) == without_clock(whole)
    assert metrics(tmp_path) == metrics(whole_folder)
    ours, theirs = (load_published(each / "best-model")[0].state_dict() for each in (tmp_path, whole_folder))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_looking_for_the_best_step_changes_no_loss(overfitting, corpus, uninterrupted, tmp_path):
    """Nor are there weights of the best step unless they are asked for."""
    evaluation = EvaluationConfig(sequences=8, recurrences=(1, 2, 4), during_training=0)
    result = train(overfitting.model_copy(update={"evaluation": evaluation}), corpus, tmp_path)
    assert result.losses == uninterrupted[1].losses
    assert (result.best_loss, result.best_step, result.best_losses) == (None, None, {})
    assert not (tmp_path / "best-model").exists()


def test_the_best_step_of_a_run_that_still_learns_is_its_last(spec, corpus, tmp_path):
    evaluation = EvaluationConfig(sequences=8, recurrences=(1, 2, 4), keep_best=True)
    result = train(spec.model_copy(update={"evaluation": evaluation}), corpus, tmp_path)
    assert (result.best_loss, result.best_step) == (result.loss, spec.steps)
    assert result.best_losses == result.losses
    assert not (tmp_path / "best-model").exists()


def test_runs_are_compared_by_the_lowest_loss_where_repeated_text_made_it_rise(uninterrupted):
    _, result = uninterrupted
    assert result.compared_loss == result.best_loss
    new_text = result.model_copy(update={"unique_tokens": result.tokens})
    assert new_text.compared_loss == result.model_copy(update={"best_loss": None}).compared_loss == result.loss
    assert result.model_copy(update={"loss": None}).compared_loss is None


def test_a_model_that_the_published_layout_cannot_say_keeps_its_last_checkpoint(overfitting, corpus, tmp_path):
    scaled = overfitting.model_copy(
        update={"model": overfitting.model.model_copy(update={"residual_scale": 1.0}), "steps": 4}
    )
    result = train(scaled, corpus, tmp_path)
    assert result.status == "finished"
    assert read_result(tmp_path) == result
    assert not (tmp_path / "model").exists()
    (last,) = checkpoints(tmp_path / "checkpoints")
    assert int(last.name) == 4
