"""Whole evaluations: resumed, repeated, summarised, compared; and what chance gives."""

import json
import math

import numpy as np
import pytest
import torch

from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.quality.suites import SUITES, Bundle, Subject, Suite, Task, evaluate_suite, read_results
from isoloop.trainer.quality.suites import evaluation as evaluation_module
from isoloop.trainer.quality.suites.difference import compare_models
from isoloop.trainer.quality.suites.reader import Reader
from isoloop.trainer.quality.suites.resampling import interval, resampled_sums
from isoloop.trainer.quality.suites.result import Answers, Identity, TaskResult
from isoloop.trainer.quality.suites.summary import summarise
from tests.trainer.quality.bundles import choice_rows, exact_rows, schema_rows, small_model, write_rows

SUITE = Suite(
    name="own",
    score="Mean",
    tasks=(
        Task(name="mc", kind="multiple_choice", file="mc.jsonl", shots=2, baselines={"v1": 20, "v2": 25}),
        Task(name="schema", kind="schema", file="schema.jsonl", baselines={"v1": 50, "v2": 50}),
        Task(name="lm", kind="language_modeling", file="lm.jsonl", shots=1, baselines={"v1": 0, "v2": 0}),
    ),
)


@pytest.fixture
def bundle(tmp_path):
    write_rows(tmp_path, "mc.jsonl", choice_rows(15))
    write_rows(tmp_path, "schema.jsonl", schema_rows(10))
    write_rows(tmp_path, "lm.jsonl", exact_rows(10))
    return Bundle(tmp_path)


def subject(seed=0, **changes):
    return Subject.of(small_model(seed, **changes), ByteTokenizer(), name=f"small-{seed}")


def stored(folder):
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


class _StopError(Exception):
    pass


def test_interrupted_evaluations_go_on_and_end_the_same(bundle, tmp_path):
    """After each unit of work, a task with a seed, the process is stopped; nothing that was stored is done again."""
    whole = evaluate_suite(subject(), SUITE, bundle, tmp_path / "whole", recurrences=[1, 2], seeds=[1, 2])
    parts, stops = tmp_path / "parts", []

    def stored_units():
        return sum(len(result["seeds"]) for result in stored(parts).values()) if parts.exists() else 0

    def stop(label, done, total):
        if stored_units() > len(stops):
            stops.append(label.split()[1])
            raise _StopError

    for _ in range(5):
        with pytest.raises(_StopError):
            evaluate_suite(subject(), SUITE, bundle, parts, recurrences=[1, 2], seeds=[1, 2], progress=stop)
    assert stops == ["mc", "mc", "schema", "lm", "lm"]
    assert evaluate_suite(subject(), SUITE, bundle, parts, recurrences=[1, 2], seeds=[1, 2]) == whole
    assert stored(parts) == stored(tmp_path / "whole")


def test_further_recurrences_and_seeds_cost_only_themselves(bundle, tmp_path, monkeypatch):
    folder, calls = tmp_path / "results", []
    scored = evaluation_module.score_questions

    def counting(reader, questions, recurrences, **options):
        calls.append(list(recurrences))
        return scored(reader, questions, recurrences, **options)

    monkeypatch.setattr(evaluation_module, "score_questions", counting)
    evaluate_suite(subject(), SUITE, bundle, folder, recurrences=[1, 2], seeds=[1])
    assert calls == [[1, 2]] * 3
    calls.clear()
    evaluate_suite(subject(), SUITE, bundle, folder, recurrences=[1, 2, 4], seeds=[1])
    assert calls == [[4]] * 3
    calls.clear()
    evaluate_suite(subject(), SUITE, bundle, folder, recurrences=[1, 2], seeds=[1, 5])
    assert calls == [[1, 2]] * 2  # the task without examples has no seeds
    calls.clear()
    again = evaluate_suite(subject(), SUITE, bundle, folder, recurrences=[4], seeds=[1])
    assert calls == []
    assert again == evaluate_suite(subject(), SUITE, bundle, tmp_path / "anew", recurrences=[4], seeds=[1])


def test_rows_are_the_same_however_many_are_read_at_once(bundle, tmp_path, monkeypatch):
    """Also of texts, whose initial states are numbered through, with one too short to be read among them."""
    texts = [{"text": text, "page": text} for text in ("a core", "x", "loop " * 60, "head", "norm", "µ µ")]
    write_rows(tmp_path, "text.jsonl", texts)
    kinds = (("pages", "rolling"), ("documents", "documents"))
    suite = Suite(name="all", tasks=(*SUITE.tasks, *(Task(name=n, kind=k, file="text.jsonl") for n, k in kinds)))
    options = {"recurrences": [1, 2], "seeds": [1]}
    whole = evaluate_suite(subject(context=64), suite, Bundle(tmp_path), tmp_path / "whole", **options)
    monkeypatch.setattr(evaluation_module, "QUESTIONS_AT_ONCE", 4)
    parts = evaluate_suite(subject(context=64), suite, Bundle(tmp_path), tmp_path / "parts", **options)
    for ours, theirs in zip(parts.tasks, whole.tasks, strict=True):
        assert ours.rows == theirs.rows == (5 if ours.name == "documents" else theirs.rows)
        for name, by_depth in ours.measures.items():
            for depth, estimate in by_depth.items():
                assert estimate.value == pytest.approx(theirs.measures[name][depth].value, rel=1e-6)


def test_answers_of_other_weights_or_rows_are_not_reused(bundle, tmp_path):
    folder = tmp_path / "results"
    evaluate_suite(subject(0), SUITE, bundle, folder, recurrences=[1], seeds=[1])
    evaluate_suite(subject(1), SUITE, bundle, folder, recurrences=[1], seeds=[1])
    evaluate_suite(subject(1), SUITE, bundle, tmp_path / "other", recurrences=[1], seeds=[1])
    assert stored(folder) == stored(tmp_path / "other")
    write_rows(tmp_path, "mc.jsonl", choice_rows(15, seed=9))
    evaluate_suite(subject(1), SUITE, Bundle(tmp_path), folder, recurrences=[1], seeds=[1])
    evaluate_suite(subject(1), SUITE, Bundle(tmp_path), tmp_path / "new", recurrences=[1], seeds=[1])
    assert stored(folder) == stored(tmp_path / "new") != stored(tmp_path / "other")


def test_corrected_baselines_change_the_summary_and_its_digest_but_no_answer(bundle, tmp_path, monkeypatch):
    folder = tmp_path / "results"
    first = evaluate_suite(subject(), SUITE, bundle, folder, recurrences=[1], seeds=[1])
    assert first.data == {task.name: bundle.digest(task) for task in SUITE.tasks}
    corrected = SUITE.tasks[1].model_copy(update={"baselines": {"v1": 40, "v2": 40}})
    suite = SUITE.model_copy(update={"tasks": (SUITE.tasks[0], corrected, SUITE.tasks[2])})
    monkeypatch.setattr(evaluation_module, "score_questions", None)  # nothing is answered again
    second = evaluate_suite(subject(), suite, bundle, folder, recurrences=[1], seeds=[1])
    assert {name for name in first.data if first.data[name] != second.data[name]} == {"schema"}
    assert second.tasks[1].measures["centred v1"] != first.tasks[1].measures["centred v1"]
    for read in (suite, SUITE):  # which are those of the suite that asks, as answers don't depend on them
        assert read_results(folder, read)["schema"].task.baselines == read.tasks[1].baselines


def test_notes_are_made_before_anything_is_computed(bundle, tmp_path, monkeypatch):
    """An evaluation doesn't fail at its end because of the bundle's list, which it doesn't need."""
    (tmp_path / "core.yaml").write_text("icl_tasks: [{label: mc, num_fewshot: [9]}, 5]")
    order = []
    notes, score = Bundle.notes, evaluation_module.score_questions
    monkeypatch.setattr(Bundle, "notes", lambda self, suite: order.append("notes") or notes(self, suite))
    monkeypatch.setattr(
        evaluation_module, "score_questions", lambda *args, **options: order.append("score") or score(*args, **options)
    )
    summary = evaluate_suite(subject(), SUITE, Bundle(tmp_path), tmp_path / "results", recurrences=[1], seeds=[1])
    assert order == ["notes", "score", "score", "score"]
    assert "core.yaml must list tasks as `icl_tasks`" in summary.notes[0]


def test_own_suites_keep_their_answers_apart(bundle, tmp_path):
    """Two suites with a task of one name, on other data: neither loses its answers to the other."""
    write_rows(tmp_path, "other.jsonl", choice_rows(15, seed=5))
    task = SUITE.tasks[0]
    suites = [
        Suite(name=name, tasks=(task.model_copy(update={"file": file}),), is_own=True)
        for name, file in (("one", "mc.jsonl"), ("two", "other.jsonl"))
    ]
    for suite in suites:
        evaluate_suite(subject(), suite, Bundle(tmp_path), tmp_path / "results", recurrences=[1], seeds=[1])
    first, second = (read_results(tmp_path / "results", suite)["mc"] for suite in suites)
    assert first.data != second.data
    assert first.task.file == "mc.jsonl"
    assert {path.name for path in (tmp_path / "results").glob("*.json")} == {"one.summary.json", "two.summary.json"}


def test_progress_grows_to_the_whole(bundle, tmp_path):
    steps = []
    evaluate_suite(
        subject(),
        SUITE,
        bundle,
        tmp_path / "results",
        recurrences=[1],
        seeds=[1],
        progress=lambda *args: steps.append(args),
    )
    shares = [done / total for _, done, total in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [label for label, _, _ in steps[-1:]] == ["3/3 lm"]


def test_impossible_requests_are_refused(bundle, tmp_path):
    fixed = subject(injection="none")
    with pytest.raises(ValueError, match="its only T is 1"):
        evaluate_suite(fixed, SUITE, bundle, tmp_path / "results", recurrences=[1, 2])
    for recurrences, seeds, message in [([0], [1], "from 1 on"), ([], [1], "from 1 on"), ([1], [2, 2], "different")]:
        with pytest.raises(ValueError, match=message):
            evaluate_suite(subject(), SUITE, bundle, tmp_path / "results", recurrences=recurrences, seeds=seeds)


def test_a_model_that_has_diverged_is_refused(bundle, tmp_path):
    broken = small_model()
    with torch.no_grad():
        broken.final_norm.weight.fill_(math.nan)
    model = Subject.of(broken, ByteTokenizer(), name="broken")
    with pytest.raises(ValueError, match="those of 'broken' on mc aren't"):
        evaluate_suite(model, SUITE, bundle, tmp_path / "results", recurrences=[1])


def test_a_missing_file_stops_before_anything_is_evaluated(bundle, tmp_path):
    (tmp_path / "eval_data" / "lm.jsonl").unlink()
    with pytest.raises(ValueError, match=r"lm.jsonl is missing"):
        evaluate_suite(subject(), SUITE, Bundle(tmp_path), tmp_path / "results", recurrences=[1])
    assert not (tmp_path / "results").exists()


IDENTITY = Identity(name="a model", weights="w", tokenizer="t", context=8, precision="float32")


def result_of(task, answers, data="d", of=IDENTITY):
    """A result with given answers: text by seed."""
    seeds = {
        seed: Answers(correct={2: text}, gold_nats={2: 1.0}, nats={2: (1.0,) * len(text)} if task.perplexity else {})
        for seed, text in answers.items()
    }
    return TaskResult(task=task, data=data, of=of, rows=len(next(iter(answers.values()))), seeds=seeds)


def test_centred_accuracies_and_their_mean_by_hand():
    mc, schema, lm = SUITE.tasks
    results = {
        "mc": result_of(mc, {1: "1100", 2: "1110"}),  # .5 and .75
        "schema": result_of(schema, {0: "1110"}),
        "lm": result_of(lm, {1: "1000", 2: "0000"}),
    }
    summary = summarise(SUITE, results, seeds=[1, 2], recurrences=[2])
    v1 = [np.mean([(x - 0.2) / 0.8, (s - 0.5) / 0.5, y]) for x, s, y in ((0.5, 0.75, 0.25), (0.75, 0.75, 0))]
    v2 = [np.mean([(x - 0.25) / 0.75, (s - 0.5) / 0.5, y]) for x, s, y in ((0.5, 0.75, 0.25), (0.75, 0.75, 0))]
    for version, by_seed in (("v1", v1), ("v2", v2)):
        estimate = summary.scores[version][2]
        assert estimate.value == pytest.approx(np.mean(by_seed))
        assert estimate.deviation == pytest.approx(np.std(by_seed))  # of the population
        assert estimate.low < estimate.value < estimate.high
    accuracy = summary.tasks[0].measures["accuracy"][2]
    assert (accuracy.value, accuracy.deviation) == (0.625, 0.125)
    assert summary.tasks[1].measures["accuracy"][2].deviation is None  # no examples, so no seeds
    report = summary.report()
    assert "Mean, baselines v1" in report
    assert "Mean, baselines v2" in report


def test_a_summary_is_over_all_seeds():
    """The nats of the right options are a mean over seeds, the counts of long prompts the most of any seed."""
    task = SUITE.tasks[0]
    answers = {
        1: Answers(correct={2: "10"}, gold_nats={2: 1.0}, cropped=1, cut=0),
        2: Answers(correct={2: "10"}, gold_nats={2: 4.0}, cropped=2, cut=1),
        3: Answers(correct={2: "10"}, gold_nats={2: 4.0}, cropped=0, cut=0),
    }
    result = TaskResult(task=task, data="d", of=IDENTITY, rows=2, seeds=answers)
    suite = Suite(name="s", tasks=(task,))
    (summary,) = summarise(suite, {"mc": result}, seeds=[1, 2, 3], recurrences=[2]).tasks
    assert (summary.gold_nats, summary.cropped, summary.cut) == ({2: 3.0}, 2, 1)


def test_joined_answers_have_every_t_and_the_newer_counts():
    old = Answers(correct={4: "10"}, gold_nats={4: 1.0}, cropped=1, cut=1)
    new = Answers(correct={1: "01"}, gold_nats={1: 2.0}, cropped=5, cut=3)
    expected = Answers(correct={1: "01", 4: "10"}, gold_nats={1: 2.0, 4: 1.0}, cropped=5, cut=3)
    assert old.joined(new) == expected
    assert list(old.joined(new).correct) == [1, 4]


def documents_of(tokenizer, units, nats, left_out=0):
    task = Task(name="text", kind="documents", file="text.jsonl")
    return TaskResult(
        task=task, data="d", of=IDENTITY.model_copy(update={"name": tokenizer, "tokenizer": tokenizer}),
        rows=len(nats), left_out=left_out, units=units, seeds={0: Answers(nats={1: nats})},
    )  # fmt: skip


def test_of_documents_two_tokenizers_share_only_the_bytes():
    """Nats per token are of other tokens; bits per byte are of the same text, if all documents were read."""
    ours = documents_of("a", {"tokens": (2, 4), "bytes": (8, 16)}, (2.0, 4.0))
    theirs = documents_of("b", {"tokens": (4, 8), "bytes": (8, 16)}, (3.0, 6.0))
    suite = Suite(name="s", tasks=(ours.task,))
    options = {"recurrences": (1, 1), "seeds": [1]}
    same = compare_models(suite, {"text": ours}, {"text": ours}, **options)
    assert set(same.tasks["text"]) == {"loss", "perplexity", "bits_per_byte"}
    assert same.notes == ()
    between = compare_models(suite, {"text": ours}, {"text": theirs}, **options)
    assert set(between.tasks["text"]) == {"bits_per_byte"}
    assert between.tasks["text"]["bits_per_byte"].value == pytest.approx((6 - 9) / 24 / math.log(2))
    assert "only bits per byte are compared" in between.report()
    cut = documents_of("a", {"tokens": (2, 3), "bytes": (8, 12)}, (2.0, 3.0))
    (note,) = compare_models(suite, {"text": ours}, {"text": cut}, **options).notes
    assert note.startswith("text: documents are cut to the context")
    shorter = documents_of("b", {"tokens": (4,), "bytes": (8,)}, (3.0,), left_out=1)
    unknown = documents_of("b", {"tokens": (4, 8)}, (3.0, 6.0))
    for other, reason in ((shorter, "documents of one token were left out"), (unknown, "'b' are unknown")):
        for pair in ((ours, other), (other, ours)):
            with pytest.raises(ValueError, match=f"can't be subtracted, .*{reason}"):
                compare_models(suite, *({"text": each} for each in pair), **options)


def test_documents_that_are_left_out_are_counted_in_the_report(tmp_path):
    write_rows(tmp_path, "text.jsonl", [{"text": text} for text in ("a core", "x", "head")])
    suite = Suite(name="s", tasks=(Task(name="text", kind="documents", file="text.jsonl"),))
    summary = evaluate_suite(subject(), suite, Bundle(tmp_path), tmp_path / "results", recurrences=[1])
    assert (summary.tasks[0].rows, summary.tasks[0].left_out) == (2, 1)
    assert "text: 1 of 3 documents have fewer than two tokens and were left out" in summary.report()


def test_intervals_are_those_of_resampled_rows():
    """The interval of a mean is that of a normal, within the bootstrap's own noise."""
    values = np.random.default_rng(0).random((2, 400)) < [[0.3], [0.7]]
    sums = resampled_sums(values.astype(float), "a file", draws=4000)
    for row, column in zip(values, sums.T / 400, strict=True):
        error = math.sqrt(row.mean() * (1 - row.mean()) / 400)
        low, high = interval(column)
        assert low == pytest.approx(row.mean() - 1.96 * error, abs=0.15 * error)
        assert high == pytest.approx(row.mean() + 1.96 * error, abs=0.15 * error)
    assert (resampled_sums(values.astype(float), "a file", draws=10) == sums[:10]).all()
    assert (resampled_sums(values.astype(float), "other", draws=10) != sums[:10]).any()


def test_tasks_on_one_file_are_resampled_together():
    """A task that is there twice says nothing new, so the interval of the mean stays as wide."""
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(["0", "1"], 200))
    task = Task(name="a", kind="multiple_choice", file="a.jsonl", baselines={"own": 50})
    twice = Suite(name="s", score="Mean", tasks=(task, task.model_copy(update={"name": "b"})))
    once = Suite(name="s", score="Mean", tasks=(task,))
    results = {each.name: result_of(each, {0: text}) for each in twice.tasks}
    assert (
        summarise(twice, results, seeds=[1], recurrences=[2]).scores
        == summarise(once, results, seeds=[1], recurrences=[2]).scores
    )


def test_differences_are_paired_by_row():
    """Two models that agree on nearly all rows differ for certain, though their own intervals overlap."""
    task = Task(name="a", kind="multiple_choice", file="a.jsonl", baselines={"v1": 20, "v2": 25})
    suite = Suite(name="s", score="Core", tasks=(task,))
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.5
    better = right.copy()
    better[np.flatnonzero(~right)[:12]] = True
    results = [
        {"a": result_of(task, {0: "".join("1" if each else "0" for each in answers)}, of=of)}
        for answers, of in ((better, IDENTITY), (right, IDENTITY.model_copy(update={"name": "other"})))
    ]
    difference = compare_models(suite, *results, recurrences=(2, 2), seeds=[1])
    assert difference.tasks["a"]["accuracy"].value == pytest.approx(12 / 400)
    assert 0 < difference.tasks["a"]["accuracy"].low < 12 / 400 < difference.tasks["a"]["accuracy"].high
    assert difference.scores["v1"].value == pytest.approx(12 / 400 / 0.8)
    assert difference.scores["v2"].value == pytest.approx(12 / 400 / 0.75)
    assert (difference.first, difference.second) == ("a model", "other")
    alone = [summarise(suite, result, seeds=[1], recurrences=[2]).scores["v1"][2] for result in results]
    assert alone[0].low < alone[1].high  # unpaired, one can't tell
    other = {"a": result_of(task, {0: "1" * 400}, data="other rows")}
    with pytest.raises(ValueError, match="'other' has no answers to a at T = 3 with the seeds 1"):
        compare_models(suite, *results, recurrences=(2, 3), seeds=[1])
    with pytest.raises(ValueError, match="a differ in rows"):
        compare_models(suite, results[0], other, recurrences=(2, 2), seeds=[1])


class RandomReader(Reader):
    """A uniformly random model: the logits of a token depend on nothing but the dice."""

    context, device, is_looped, vocabulary = 256, torch.device("cpu"), True, 256

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def states(self, tokens, recurrences, seeds):
        for recurrence in sorted(recurrences):
            yield recurrence, torch.randn(*tokens.shape, 256, generator=self.generator)

    def logits(self, states):
        return states


CHOICES = [task for task in SUITES["core"].tasks if task.kind == "multiple_choice" and task.name != "boolq"]


@pytest.mark.parametrize("options", sorted({round(100 / task.baselines["v1"]) for task in CHOICES}))
def test_chance_scores_0_within_its_interval(options, tmp_path):
    """On questions with as many options as the tasks of Core have, each of which is the right one equally often."""
    write_rows(tmp_path, "a.jsonl", choice_rows(300, options=options, least=1, most=1))
    task = Task(name="a", kind="multiple_choice", file="a.jsonl", baselines={"own": 100 / options})
    model = Subject(reader=RandomReader(options), tokenizer=ByteTokenizer(), identity=IDENTITY)
    suite = Suite(name="s", score="Mean", tasks=(task,))
    summary = evaluate_suite(model, suite, Bundle(tmp_path), tmp_path / "results", recurrences=[1], seeds=[1])
    estimate = summary.scores["own"][1]
    assert estimate.low < 0 < estimate.high
    assert estimate.high - estimate.low < 0.4
    assert {len(set(row)) for row in [read_results(tmp_path / "results", suite)["a"].seeds[0].correct[1]]} == {2}


def test_chance_scores_0_on_schemas_too(tmp_path):
    """Of two beginnings either is the right one equally often."""
    estimate = score_of_chance("schema", schema_rows(300), 50, tmp_path)
    assert estimate.low < 0 < estimate.high


def test_against_the_more_frequent_answer_chance_scores_less_than_0(tmp_path):
    """BoolQ's baseline is not that of a uniform choice, 50, but 62: who always says the more frequent answer."""
    expected = (0.5 - 0.62) / (1 - 0.62)
    estimate = score_of_chance("multiple_choice", choice_rows(300, options=2, least=1, most=1), 62, tmp_path)
    assert estimate.low < expected < estimate.high < 0


def score_of_chance(kind, rows, baseline, folder):
    write_rows(folder, "a.jsonl", rows)
    task = Task(name="a", kind=kind, file="a.jsonl", baselines={"own": baseline})
    model = Subject(reader=RandomReader(2), tokenizer=ByteTokenizer(), identity=IDENTITY)
    suite = Suite(name="s", score="Mean", tasks=(task,))
    return evaluate_suite(model, suite, Bundle(folder), folder / "r", recurrences=[1], seeds=[1]).scores["own"][1]


def test_losses_that_are_not_finite_are_named_by_t(bundle, tmp_path):
    """A model whose state grows a million times at each loop has answers at T = 1, and none at 60."""
    model = small_model(injection="concat", prelude_norm=False)
    with torch.no_grad():
        model.injection.weight[:, :16] = 1e6 * torch.eye(16)
    explosive = Subject.of(model, ByteTokenizer(), name="explosive")
    evaluate_suite(explosive, SUITE, bundle, tmp_path / "few", recurrences=[1], seeds=[1])
    with pytest.raises(ValueError, match=r"'explosive' on \w+ aren't at T = 60; leave these T out"):
        evaluate_suite(explosive, SUITE, bundle, tmp_path / "many", recurrences=[1, 60], seeds=[1])
