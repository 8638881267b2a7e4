"""Runs on synthetic texts: losses over answers alone, and how many answers are right, against slow references."""

from itertools import chain
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from isoloop.trainer.config import (
    AutomatonConfig,
    DataConfig,
    DepoConfig,
    EvaluationConfig,
    ExecutionConfig,
    ModelConfig,
    OptimizerConfig,
    RecurrenceConfig,
    RunSpec,
)
from isoloop.trainer.data.batches import batch_reader, validation_windows
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.data.synthetic import answer_mask, synthetic_text
from isoloop.trainer.distributed import BatchShare, GradientSums, Ranks
from isoloop.trainer.evaluate import STATE_SEED, evaluate, evaluate_answers
from isoloop.trainer.loop import _accumulate_gradients, train
from isoloop.trainer.model.pretrained import load_published
from tests.trainer.model.test_parcae import build, gradients
from tests.trainer.test_loop import metrics, stop_after, without_clock

# Two cells, so that a model that has learned little is often right by chance.
DATA = {
    "automaton": DataConfig(
        corpus="automaton",
        automaton=AutomatonConfig(lines=400, cells=2, rows=2, largest_k=3),
        packing="best-fit",
        answers_only=True,
        validation_fraction=0.3,
    ),
    "depo": DataConfig(
        corpus="depo", depo=DepoConfig(lines=400, queries=2, largest_n=4), packing="best-fit", answers_only=True
    ),
}
TEXT = synthetic_text(DATA["depo"])
each = pytest.mark.parametrize("name", DATA)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    cache = tmp_path_factory.mktemp("corpora")
    return {name: prepare_corpus(data, cache) for name, data in DATA.items()}


@pytest.fixture(scope="module")
def specs(corpora):
    """Runs of seconds, with rows that cut a line."""
    return {
        name: RunSpec(
            model=ModelConfig(width=16, heads=2, context=20),
            recurrence=RecurrenceConfig(mean=2),
            data=data,
            data_fingerprint=corpora[name].facts.fingerprint,
            optimizer=OptimizerConfig(learning_rate=0.02),
            evaluation=EvaluationConfig(sequences=9, recurrences=(1, 2, 3)),
            batch=5,
            steps=8,
        )
        for name, data in DATA.items()
    }


@pytest.fixture(scope="module")
def trained(specs, corpora, tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in DATA}
    return {name: (folders[name], train(specs[name], corpora[name], folders[name])) for name in DATA}


@each
def test_a_run_counts_what_it_predicts_and_spends_the_same(specs, corpora, trained, name, tmp_path):
    spec, corpus, result = specs[name], corpora[name], trained[name][1]
    reader = batch_reader(spec, corpus)
    rows = [reader.read(step, range(spec.batch)) for step in range(spec.steps)]
    assert result.predicted_tokens == sum(int(answer_mask(spec.data, batch).sum()) for batch in rows)
    assert 0 < result.predicted_tokens < result.tokens == 8 * 5 * 20
    every = spec.model_copy(update={"data": spec.data.model_copy(update={"answers_only": False})})
    whole = train(every, corpus, tmp_path)
    assert whole.predicted_tokens is None
    assert "predicted_tokens" not in whole.model_dump()
    assert (whole.flops_exact, whole.tokens, whole.dropped_tokens) == (
        result.flops_exact,
        result.tokens,
        result.dropped_tokens,
    )
    assert whole.loss != result.loss
    assert whole.answers.keys() == result.answers.keys()  # also of a run that predicts all


@each
def test_losses_and_answers_are_those_of_each_row_alone(corpora, specs, trained, name):
    """One row, one T and one answer at a time, with the weights that the run has left."""
    folder, result = trained[name]
    model = load_published(folder / "model")[0]
    data, text = DATA[name], synthetic_text(DATA[name])
    rows = validation_windows(corpora[name], context=20, sequences=9, packing="best-fit")
    mask, answers = answer_mask(data, rows), text.answers(rows)
    assert set(result.losses) == set(next(iter(result.answers.values()))) == {1, 2, 3}
    for recurrence in (1, 2, 3):
        nats, right = [], {}
        for i, row in enumerate(torch.from_numpy(rows)):
            h0 = model.initial_state([STATE_SEED + i], 20)
            with torch.no_grad():
                ((_, logits),) = model.logits(row[None, :-1], [recurrence], h0)
            nats.append(F.cross_entropy(logits[0], row[1:], reduction="none")[mask[i]])
            is_right = torch.cat([torch.tensor([False]), logits[0].argmax(-1) == row[1:]]).tolist()
            for first in range(1, 22 - text.answer_tokens):
                if answers.k[i, first] and answers.place[i, first] == 0:
                    of_k = right.setdefault(int(answers.k[i, first]), [])
                    of_k.append(all(is_right[first : first + text.answer_tokens]))
        assert result.losses[recurrence] == pytest.approx(float(torch.cat(nats).mean()), rel=1e-5)
        assert {k: exact[recurrence] for k, exact in result.answers.items()} == pytest.approx(
            {k: np.mean(found) for k, found in sorted(right.items())}
        )
        if recurrence == 2:
            assert result.exact_answers == pytest.approx(np.mean([*chain(*right.values())]))
    assert 0 < result.exact_answers < 1


def test_the_result_says_nothing_of_answers_where_there_are_none(spec, corpus, tmp_path):
    result = train(spec, corpus, tmp_path)
    assert not {"answers", "exact_answers", "predicted_tokens"} & set(result.model_dump())


@each
def test_micro_batches_weigh_by_their_answers(specs, corpora, trained, name, tmp_path):
    """Each of one or two sequences, with different numbers of answers."""
    result = train(specs[name], corpora[name], tmp_path, execution=ExecutionConfig(micro_batch=2))
    assert result.losses == pytest.approx(trained[name][1].losses, rel=1e-4)
    assert result.training_loss == pytest.approx(trained[name][1].training_loss, rel=1e-4)


@each
@pytest.mark.parametrize("micro_batch", [1, 2, None])
def test_gradients_of_processes_and_micro_batches_add_up_to_those_of_the_mean_over_all_answers(
    specs, corpora, name, micro_batch
):
    """Each process's and micro-batch's share has another number of answers; one has none."""
    spec = specs[name].model_copy(update={"recurrence": RecurrenceConfig(mean=2, backprop_depth=9)})
    model = build("diagonal", config=spec.model)
    windows = torch.from_numpy(batch_reader(spec, corpora[name]).read(0, range(5)))
    mask = torch.from_numpy(answer_mask(spec.data, windows.numpy()))
    mask[1] = False
    mask[2, 9:] = False
    h0 = model.initial_state(range(5), 20)
    loops = torch.tensor([3, 3, 2, 2, 1])
    nats = []
    for i, recurrence in enumerate(loops.tolist()):
        ((_, logits),) = model.logits(windows[i : i + 1, :-1], [recurrence], h0[i : i + 1])
        nats.append(F.cross_entropy(logits[0], windows[i, 1:], reduction="none")[mask[i]])
    expected = torch.cat(nats).mean()
    expected_gradients = gradients(model, expected)
    model.zero_grad()
    execution, stats = ExecutionConfig(micro_batch=micro_batch), torch.zeros(3)
    for rank in (0, 1):
        share = BatchShare(
            windows[rank::2], loops[rank::2], [*range(rank, 5, 2)], None, 0, mask[rank::2], int(mask.sum())
        )
        stats += _accumulate_gradients(spec, model, share, execution, None, GradientSums(Ranks(), []))
    assert float(stats[0]) == pytest.approx(expected.item(), rel=1e-5)
    whole = model.loss(windows[:, :-1], windows[:, 1:], loops, 9, h0)
    torch.testing.assert_close(stats[1:], torch.stack([whole.state_norm, whole.residual]))  # over all tokens, as ever
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in expected_gradients:
            torch.testing.assert_close(parameter.grad, expected_gradients[parameter_name], atol=1e-6, rtol=1e-4)


def test_resumed_equals_uninterrupted(specs, corpora, trained, tmp_path):
    folder, whole = trained["depo"]
    for steps in (3, 2):
        assert train(specs["depo"], corpora["depo"], tmp_path, should_stop=stop_after(steps)) is None
    assert without_clock(train(specs["depo"], corpora["depo"], tmp_path)) == without_clock(whole)
    assert metrics(tmp_path) == metrics(folder)


def test_a_text_whose_windows_cut_lines_is_evaluated_on_whole_lines(specs, corpora, tmp_path):
    data = DataConfig(corpus="automaton", automaton=DATA["automaton"].automaton, validation_fraction=0.3)
    spec = specs["automaton"].model_copy(update={"data": data})
    result = train(spec, corpora["automaton"], tmp_path)
    model = load_published(tmp_path / "model")[0]
    rows = validation_windows(corpora["automaton"], context=20, sequences=9, packing="best-fit")
    assert (rows[:, 0] == 0).all()
    assert result.answers == evaluate_answers(model, rows, synthetic_text(data), [1, 2, 3]).by_k
    assert result.dropped_tokens is None


def test_rows_too_short_for_an_answer_are_refused_before_training(specs, corpora, tmp_path):
    spec = specs["automaton"].model_copy(update={"model": ModelConfig(width=16, heads=2, context=3)})
    with pytest.raises(ValueError, match="rows must hold answers, but none of 9 rows of context \\+ 1 = 4 tokens does"):
        train(spec, corpora["automaton"], tmp_path)
    every = spec.model_copy(update={"data": spec.data.model_copy(update={"answers_only": False})})
    assert train(every, corpora["automaton"], tmp_path / "every").answers == {}


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_mean_over_some_targets_depends_neither_on_the_batch_nor_on_processes(corpora, batch):
    model = build("diagonal")
    rows = validation_windows(corpora["depo"], context=12, sequences=11, packing="best-fit")
    mask = answer_mask(DATA["depo"], rows)
    mask[2] = False
    found = evaluate(model, rows, [1, 3], predicted=mask, batch=batch)
    with mock.patch.object(Ranks, "sum", lambda _, values: values):  # each process's part of all
        parts = [
            (
                evaluate(model, rows, [1, 3], predicted=mask, ranks=Ranks(rank=rank, size=3), batch=batch),
                evaluate_answers(model, rows, TEXT, [1, 3], ranks=Ranks(rank=rank, size=3), batch=batch).overall,
            )
            for rank in range(3)
        ]
    exact = evaluate_answers(model, rows, TEXT, [1, 3]).overall
    for recurrence in (1, 3):
        assert sum(part[0][recurrence] for part in parts) == pytest.approx(found[recurrence])
        assert sum(part[1][recurrence] for part in parts) == pytest.approx(exact[recurrence])
    assert found == pytest.approx(evaluate(model, rows, [1, 3], predicted=mask, batch=11), rel=1e-5)
    every = evaluate(model, rows, [1, 3], predicted=np.ones_like(mask), batch=batch)
    assert every == pytest.approx(evaluate(model, rows, [1, 3], batch=batch), rel=1e-5)


def test_a_model_learns_to_copy_and_its_answers_are_right(tmp_path):
    """Of rule 204 each row is the one before: a loss of 0 and exact answers, which no average of rows gives."""
    settings = AutomatonConfig(rule=204, cells=3, rows=2, largest_k=2, lines=500)
    data = DataConfig(
        corpus="automaton", automaton=settings, packing="best-fit", answers_only=True, validation_fraction=0.2
    )
    corpus = prepare_corpus(data, tmp_path / "corpora")
    spec = RunSpec(
        model=ModelConfig(width=16, heads=2, context=10),
        recurrence=RecurrenceConfig(mean=1),
        data=data,
        data_fingerprint=corpus.facts.fingerprint,
        optimizer=OptimizerConfig(learning_rate=0.03),
        evaluation=EvaluationConfig(sequences=64, recurrences=(1,)),
        batch=16,
        steps=70,
    )
    result = train(spec, corpus, tmp_path / "run")
    assert result.exact_answers > 0.95
    assert result.loss < 0.2 < np.log(2)
    assert result.dropped_tokens == 0
