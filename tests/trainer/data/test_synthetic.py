"""Synthetic texts against slow references: their lines, their answers, their split, and their entropies."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from isoloop.trainer.config import AutomatonConfig, DataConfig, DepoConfig, EvaluationConfig, ModelConfig, RunSpec
from isoloop.trainer.data.batches import batch_reader, tokens_per_pass, validation_windows
from isoloop.trainer.data.corpus import CorpusRequest, prepare_corpus
from isoloop.trainer.data.synthetic import Automaton, Depo, answer_mask, synthetic_text

TEXTS = {
    "automaton": DataConfig(corpus="automaton", automaton=AutomatonConfig(lines=3000, exponent=1.5, cells=9, rows=3)),
    "depo": DataConfig(corpus="depo", depo=DepoConfig(lines=3000, largest_n=6, queries=3, exponent=1)),
}
each = pytest.mark.parametrize("name", TEXTS)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    cache = tmp_path_factory.mktemp("corpora")
    return {name: prepare_corpus(data, cache) for name, data in TEXTS.items()}


def next_row(row: str, rule: int) -> str:
    """One step of an elementary automaton, cell by cell, as Wolfram numbers its rules."""
    padded = f"0{row}0"
    return "".join(str(rule >> int(padded[i : i + 3], 2) & 1) for i in range(len(row)))


def computed_rows(k: int, row: str, rule: int, rows: int) -> list[str]:
    found = []
    for _ in range(rows):
        for _ in range(k):
            row = next_row(row, rule)
        found.append(row)
    return found


def lines_of(text) -> list[str]:
    return [line.decode() for line in text.lines()]


@pytest.mark.parametrize("settings", [
    AutomatonConfig(lines=300),
    AutomatonConfig(lines=300, rule=30, cells=7, rows=2, largest_k=3, seed=5),
    AutomatonConfig(lines=50, rule=105, cells=64, rows=1, largest_k=9),
    AutomatonConfig(lines=50, rule=1, cells=1, rows=3, largest_k=1),
])  # fmt: skip
def test_rows_of_an_automaton_are_those_computed_cell_by_cell(settings):
    lines = lines_of(Automaton(settings))
    assert len(lines) == settings.lines
    for line in lines:
        k, row, rest = int(line[0]), line[1 : 1 + settings.cells], line[1 + settings.cells :]
        assert 1 <= k <= settings.largest_k
        assert rest == "".join(computed_rows(k, row, settings.rule, settings.rows))
    assert len({line[1 : 1 + settings.cells] for line in lines}) > 0.8 * min(2**settings.cells, settings.lines)


def test_queries_of_depo_are_answered_by_following_the_edges():
    settings = DepoConfig(lines=500)
    for line in lines_of(Depo(settings)):
        first = next(i for i, letter in enumerate(line) if letter.isdigit())
        pairs = [line[i : i + 2] for i in range(0, first, 2)]
        after = dict(pairs)
        assert 3 <= len(after) == len(pairs) <= 8
        assert set(after) == set(after.values()) <= set("ABCDEFGH")
        node, seen = pairs[0][0], set()
        while node not in seen:
            seen.add(node)
            node = after[node]
        assert seen == set(after)  # one cycle
        queries = line[first:]
        assert len(queries) == 3 * 8
        for k, node, answer in zip(queries[::3], queries[1::3], queries[2::3], strict=True):
            assert 1 <= int(k) <= 7
            for _ in range(int(k)):
                node = after[node]
            assert node == answer


def close(counts, weights):
    """Whether counts agree with weights, by chi squared at about 5 standard deviations."""
    expected = sum(counts) * np.array(weights) / sum(weights)
    return ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * math.sqrt(2 * len(counts))


@pytest.mark.parametrize("exponent", [0, 1.5])
def test_k_and_the_sizes_of_cycles_are_as_frequent_as_their_weights(exponent):
    weights = np.arange(1, 8.0) ** -exponent
    lines = lines_of(Automaton(AutomatonConfig(lines=20_000, largest_k=7, exponent=exponent, rows=1)))
    assert close(np.bincount([int(line[0]) for line in lines])[1:], weights)
    assert close(np.bincount([int(line[1:5], 2) for line in lines]), np.ones(16))
    lines = lines_of(Depo(DepoConfig(lines=20_000, exponent=exponent)))
    assert close(np.bincount([int(line[-3]) for line in lines])[1:], weights)
    sizes = np.bincount([(len(line) - 24) // 2 for line in lines])[3:]
    assert close(sizes, 1 / (np.arange(3, 9) + math.sqrt(8)))
    assert close(np.array(list(Counter(line[0] for line in lines).values())), np.ones(8))
    of_four = [line for line in lines if len(line) == 24 + 2 * 4]
    first = Counter(sorted(line[0:8:2]).index(line[0]) for line in of_four)  # edges come in no order of their nodes
    assert close(np.array(list(first.values())), np.ones(4))


def test_the_lines_are_the_same_bytes_everywhere_and_fewer_are_the_first_of_more():
    def digest(text):
        return hashlib.sha256(b"\n".join(text.lines())).hexdigest()[:16]

    assert digest(Automaton(AutomatonConfig(lines=20_000, exponent=1.5))) == "9ee4860239408215"
    assert digest(Depo(DepoConfig(lines=20_000))) == "108a07a932e62146"
    more, fewer = (lines_of(Automaton(AutomatonConfig(lines=lines))) for lines in (40_000, 17_000))
    assert more[:17_000] == fewer
    assert lines_of(Automaton(AutomatonConfig(lines=5, seed=1))) != fewer[:5]


def documents_of(tokens):
    return bytes(tokens.read(0, len(tokens)).astype(np.uint8)).split(b"\0")[:-1]


@each
def test_no_line_that_is_held_out_is_trained_on_however_often_it_is_drawn(corpora, name):
    corpus, facts = corpora[name], corpora[name].facts
    train, held_out = documents_of(corpus.train), documents_of(corpus.validation)
    assert len(train) + len(held_out) == facts.train_documents + facts.validation_documents == 3000
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(synthetic_text(TEXTS[name]).lines())
    assert 0.03 < facts.validation_share < 0.07
    assert (len(set(train)) < 0.7 * len(train)) == (name == "automaton")  # of 8 x 2^9 lines that are possible


def test_a_prepared_text_says_that_it_is_synthetic_and_is_another_with_other_settings(corpora, tmp_path):
    assert {corpora[name].facts.name for name in TEXTS} == {"automaton (synthetic)", "depo (synthetic)"}
    assert any("synthetic" in note and "of 4,096 that are possible" in note for note in corpora["automaton"].notes)
    data, seen = TEXTS["automaton"], {corpora["automaton"].facts.fingerprint}
    for change in ({"seed": 1}, {"exponent": 1.0}, {"rule": 30}, {"lines": 2999}):
        other = data.model_copy(update={"automaton": data.automaton.model_copy(update=change)})
        assert CorpusRequest(other, tmp_path).folder != CorpusRequest(data, tmp_path).folder
        seen.add(prepare_corpus(other, tmp_path).facts.fingerprint)
    assert len(seen) == 5
    assert prepare_corpus(data, tmp_path).facts == corpora["automaton"].facts


def test_a_text_of_which_no_line_is_held_out_is_refused_with_advice_for_it(tmp_path):
    data = DataConfig(corpus="automaton", automaton=AutomatonConfig(rule=204, cells=2, largest_k=2, rows=3, lines=99))
    with pytest.raises(ValueError, match=r"99 go to training and 0 .* use settings with more different lines, another"):
        prepare_corpus(data, tmp_path)


def slow_mask(data, row):
    """Which tokens of a row that begins with a line can be computed, and what each answer asks for, by reading it."""
    k, place, at = [0] * len(row), [0] * len(row), 0
    for line in bytes(row.astype(np.uint8)).split(b"\0")[1:]:
        at += 1  # the separator before the line
        for i in range(len(line)):
            if data.corpus == "automaton" and i > data.automaton.cells:
                k[at + i], place[at + i] = int(line[:1]), (i - 1) % data.automaton.cells
            elif data.corpus == "depo" and i >= 2 and line[i - 2 : i - 1].isdigit():
                k[at + i] = int(line[i - 2 : i - 1])
        at += len(line)
    return k, place


@each
@pytest.mark.parametrize("context", [37, 50, 75])
def test_answers_are_the_tokens_that_can_be_computed_also_in_rows_that_cut_a_line(corpora, name, context):
    data = TEXTS[name].model_copy(update={"packing": "best-fit", "answers_only": True})
    rows = validation_windows(corpora[name], context=context, sequences=20, packing="best-fit")
    answers = synthetic_text(data).answers(rows)
    for number, row in enumerate(rows):
        k, place = slow_mask(data, row)
        np.testing.assert_array_equal(answers.k[number], k)
        np.testing.assert_array_equal(answers.place[number], place)
    np.testing.assert_array_equal(answer_mask(data, rows), answers.k[:, 1:] > 0)
    assert 0.1 < answer_mask(data, rows).mean() < 0.9


@pytest.mark.parametrize("lines_per_row", [1, 2])
def test_best_fit_rows_are_whole_lines_where_the_context_is_that_of_lines_and_drop_nothing(corpora, lines_per_row):
    line = 1 + 9 + 3 * 9 + 1  # with the separator
    context = lines_per_row * line - 1
    data = TEXTS["automaton"].model_copy(update={"packing": "best-fit"})
    corpus = corpora["automaton"]
    spec = RunSpec(
        model=ModelConfig(context=context), data=data, data_fingerprint=corpus.facts.fingerprint, batch=8, steps=10
    )
    reader = batch_reader(spec, corpus)
    known = set(documents_of(corpus.train))
    for step in range(spec.steps):
        for row in reader.read(step, range(8)):
            lines = bytes(row.astype(np.uint8)).split(b"\0")
            assert lines[0] == b""
            assert set(lines[1:]) <= known
            assert len(lines) == 1 + lines_per_row
    assert reader.dropped == 0
    predicted = round(len(corpus.train) * context / (context + 1))  # all but the first token of each row
    assert tokens_per_pass(corpus.train, "best-fit", context) == predicted


def entropy(weights) -> float:
    """Entropy of a distribution in nats."""
    p = np.array(weights, float) / np.sum(weights)
    return -float((p[p > 0] * np.log(p[p > 0])).sum())


@pytest.fixture(scope="module")
def after_steps():
    """Every row of 12 cells after 0, 1, ... 32 steps of rule 110, as numbers, [steps, rows]."""
    names = [f"{row:012b}" for row in range(2**12)]
    step = np.array([int(next_row(row, 110), 2) for row in names])
    found = [np.arange(2**12)]
    for _ in range(32):
        found.append(step[found[-1]])
    return np.array(found)


@pytest.mark.parametrize(("exponent", "computed", "density", "rows_alone"), [
    (0, 0.168, 0.696, 0.539),
    (1.5, 0.158, 0.687, 0.576),
])  # fmt: skip
def test_entropy_of_a_byte_with_and_without_computing(after_steps, exponent, computed, density, rows_alone):
    """As docs/synthetic.md has it, from all 8 x 4,096 lines: each is as probable as its k, and has 62 bytes."""
    k = np.arange(1, 9)
    weights = k ** -float(exponent)
    weights /= weights.sum()
    given = entropy(weights) + 12 * math.log(2)
    assert given / 62 == pytest.approx(computed, abs=5e-4)
    cells = (after_steps[..., None] >> np.arange(12)) & 1
    ones = sum(w * cells[row * n].mean() for n, w in zip(k, weights, strict=True) for row in (1, 2, 3, 4)) / 4
    assert (given + 48 * entropy([ones, 1 - ones])) / 62 == pytest.approx(density, abs=5e-4)
    # Which rows there are after so many steps, without the row that they follow from.
    alone = sum(
        w * entropy(np.bincount(after_steps[row * n])) for n, w in zip(k, weights, strict=True) for row in (1, 2, 3, 4)
    )
    assert (given + alone) / 62 == pytest.approx(rows_alone, abs=5e-4)


def test_the_settings_of_the_entropies_are_the_defaults():
    settings = AutomatonConfig()
    assert (settings.rule, settings.cells, settings.rows, settings.largest_k) == (110, 12, 4, 8)
    assert len(next(iter(Automaton(settings).lines()))) + 1 == 62  # and the separator


@pytest.mark.parametrize(("data", "message"), [
    ({"answers_only": True}, "needs a text with answers, automaton or depo, but got corpus='stdlib'"),
    ({"answers_only": True, "corpus": "depo"}, "set data.packing to best-fit"),
    ({"corpus": "automaton", "column": "x"}, "the synthetic text 'automaton' has none for data.column='x'"),
    ({"corpus": "automaton", "tokenizer": "bpe"}, "the tokens of a synthetic text are its bytes"),
    ({"corpus": "automaton", "depo": {"queries": 3}}, "has none for data.depo"),
    ({"automaton": {"rule": 30}}, "'stdlib', which isn't synthetic, has none for data.automaton"),
    ({"corpus": "automaton", "automaton": {"largest_k": 10}}, "less than or equal to 9"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(data, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig(**data)


def test_published_perplexity_and_answers_alone_exclude_each_other():
    data = {**TEXTS["depo"].model_dump(), "packing": "best-fit", "answers_only": True}
    with pytest.raises(ValidationError, match="predicts every token of a document"):
        RunSpec(data=data, data_fingerprint="x", steps=1, evaluation=EvaluationConfig(documents=3))


def test_settings_at_their_defaults_leave_other_runs_as_they_were():
    content = DataConfig().model_dump(mode="json")
    assert not {"automaton", "depo", "answers_only"} & set(content)
    base = RunSpec(data=DataConfig(corpus="depo", packing="best-fit"), data_fingerprint="x", steps=1)
    only = base.model_copy(update={"data": base.data.model_copy(update={"answers_only": True})})
    assert only.run_id != base.run_id
    assert only.data.whole == DataConfig(corpus="depo")
