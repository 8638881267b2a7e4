"""Every kind of task against a slow reference from the protocol's text: one prompt at a time, without a cache."""

import json
import math
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch.nn.attention import SDPBackend, sdpa_kernel

from isoloop.trainer.data.tokenizer import BpeTokenizer, ByteTokenizer
from isoloop.trainer.evaluate import STATE_SEED, evaluate_documents
from isoloop.trainer.quality.suites import Bundle, Subject, Suite, Task, evaluate_suite, read_results
from isoloop.trainer.quality.suites import scoring as scoring_module
from isoloop.trainer.quality.suites.prompts import Option, Question, make_questions
from isoloop.trainer.quality.suites.reader import LoopedReader
from isoloop.trainer.quality.suites.scoring import score_questions
from isoloop.trainer.quality.suites.text import detokenised, make_documents
from tests.trainer import pretend
from tests.trainer.quality.bundles import choice_rows, exact_rows, schema_rows, small_model, words, write_rows

SEED = 2345


def merging_tokenizer():
    """Byte-level BPE that merges across the delimiter: a space, or a line's end, joins what stands before it."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces = {"<|end|>": 0, **{piece: number for number, piece in enumerate(sorted(alphabet), start=1)}}
    merges = [("e", "Ġ"), ("h", "Ġ"), ("a", "Ġ"), ("Ġ", "c"), ("o", "r"), ("l", "o"), ("lo", "o"), (":", "Ġ")]
    for first, second in merges:
        pieces[first + second] = len(pieces)
    library = LibraryTokenizer(models.BPE(vocab=pieces, merges=merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|end|>"])
    return BpeTokenizer("merging", library.to_str(), "<|end|>")


TOKENIZERS = {"bytes": ByteTokenizer(), "merging": merging_tokenizer()}


def are_equal(parts, length):
    """Return whether all parts have that many tokens, and the same ones."""
    return all(len(part) == length and part == parts[0] for part in parts)


def reference_answers(model, tokenizer, task, rows, seed, recurrence):
    """Answer the shuffled rows as the protocol's text has it. Returns 0 or 1 for each."""
    rows = list(rows)
    random.Random(1337).shuffle(rows)
    context, right = model.config.context, []
    h0 = model.initial_state([STATE_SEED], context)

    def read(text):
        return [tokenizer.separator, *tokenizer.encode_text(text).tolist()]

    def losses_of(tokens):
        """The loss and the argmax at each token but the first, by the whole prompt's own forward pass."""
        with torch.no_grad():
            ((_, logits),) = model.logits(torch.tensor([tokens[:-1]]), [recurrence], h0[:, : len(tokens) - 1])
        loss = [-logits[0, place].log_softmax(-1)[token].item() for place, token in enumerate(tokens[1:])]
        return loss, logits[0].argmax(-1).tolist()

    for number, row in enumerate(rows):
        others = [other for other in range(len(rows)) if other != number]
        examples = [rows[other] for other in random.Random(seed + number).sample(others, task.shots)]
        before = ""
        for example in examples:
            if task.kind == "multiple_choice":
                before += example["query"] + task.delimiter + example["choices"][example["gold"]] + "\n\n"
            elif task.kind == "schema":
                before += example["context_options"][example["gold"]] + task.delimiter + example["continuation"]
                before += "\n\n"
            else:
                before += example["context"].strip() + task.delimiter + example["continuation"] + "\n\n"
        if task.kind == "language_modeling":
            question = before + row["context"].strip() + task.delimiter
            tokens, without = read(question + row["continuation"]), read(question.strip())
            start = 0
            while start < len(without) and tokens[start] == without[start]:
                start += 1
            cut = max(len(tokens) - context, 0)
            tokens, start = tokens[cut:], start - cut
            _, likeliest = losses_of(tokens)
            right.append(int(likeliest[start - 1 :] == tokens[start:]))
            continue
        if task.kind == "multiple_choice":
            prompts = [read(before + row["query"] + task.delimiter + choice) for choice in row["choices"]]
        else:
            options = row["context_options"]
            prompts = [read(before + option + task.delimiter + row["continuation"]) for option in options]
        losses = []
        for tokens in prompts:
            if task.kind == "multiple_choice":
                scored = len(tokens)
                while are_equal([prompt[: len(tokens) - scored + 1] for prompt in prompts], len(tokens) - scored + 1):
                    scored -= 1
            else:
                scored = 0
                while are_equal([prompt[-scored - 1 :] for prompt in prompts], scored + 1):
                    scored += 1
            tokens = tokens[-context:]
            losses.append(np.mean(losses_of(tokens)[0][-scored:]))
        right.append(int(losses.index(min(losses)) == row["gold"]))
    return right


CASES = {
    "choice": (Task(name="t", kind="multiple_choice", file="t.jsonl", shots=3, baselines={"own": 25}), choice_rows(12)),
    "choice, line": (
        Task(name="t", kind="multiple_choice", file="t.jsonl", shots=2, delimiter="\nAnswer: ", baselines={"own": 25}),
        choice_rows(12, seed=1),
    ),
    "choice, no examples": (
        Task(name="t", kind="multiple_choice", file="t.jsonl", baselines={"own": 25}),
        choice_rows(12, seed=2, options=3),
    ),
    "schema": (Task(name="t", kind="schema", file="t.jsonl", baselines={"own": 50}), schema_rows(12)),
    "schema, examples": (
        Task(name="t", kind="schema", file="t.jsonl", shots=4, delimiter="\n", baselines={"own": 50}),
        schema_rows(12, seed=1),
    ),
}


def evaluated(tmp_path, model, tokenizer, task, rows, recurrences, seeds=(SEED,), **options):
    write_rows(tmp_path, task.file, rows)
    subject = Subject.of(model, tokenizer, name="small")
    folder = tmp_path / "results"
    suite = Suite(name="own", tasks=(task,))
    evaluate_suite(subject, suite, Bundle(tmp_path), folder, recurrences=recurrences, seeds=seeds, **options)
    return read_results(folder, suite)[task.name]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("case", CASES)
def test_options_are_chosen_as_by_the_reference(case, tokenizer, tmp_path):
    task, rows = CASES[case]
    model = small_model(vocabulary=320, context=256)
    result = evaluated(tmp_path, model, TOKENIZERS[tokenizer], task, rows, [1, 3])
    for recurrence in (1, 3):
        expected = reference_answers(model, TOKENIZERS[tokenizer], task, rows, SEED, recurrence)
        assert result.correct([SEED], recurrence)[0].tolist() == expected


def echoing_model():
    """A model that predicts the token that it reads: right where a continuation repeats one character."""
    model = small_model(vocabulary=320, state_init="zero")
    with torch.no_grad():
        for block in (*model.prelude, *model.core, *model.coda):
            block.attention.out.weight.zero_()
            block.mlp.down.weight.zero_()
        torch.nn.init.orthogonal_(model.embedding.weight)
        model.embedding.weight.copy_(torch.nn.functional.normalize(torch.randn(320, 16), dim=-1))
        model.injection.B.weight.copy_(torch.eye(16))
        model.state_to_width.weight.copy_(torch.eye(16))
    return model


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("shots", [0, 2])
def test_continuations_are_predicted_as_by_the_reference(shots, tokenizer, tmp_path):
    torch.manual_seed(0)
    model, rng = echoing_model(), random.Random(0)
    rows = [
        {"context": f" say {letter} ", "continuation": letter * rng.randint(1, 3)}
        for letter in (rng.choice("xyz ") for _ in range(16))
        if letter.strip()
    ] + [{"context": words(rng), "continuation": words(rng)} for _ in range(4)]
    rows += [{"context": "zzz", "continuation": "zz"}, {"context": "say h", "continuation": "hh"}]
    task = Task(name="t", kind="language_modeling", file="t.jsonl", shots=shots, delimiter="", baselines={"own": 0})
    result = evaluated(tmp_path, model, TOKENIZERS[tokenizer], task, rows, [2])
    expected = reference_answers(model, TOKENIZERS[tokenizer], task, rows, SEED, 2)
    assert result.correct([SEED], 2)[0].tolist() == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize("case", CASES)
def test_long_prompts_lose_their_beginning(case, tmp_path):
    task, rows = CASES[case]
    model = small_model(context=64)
    result = evaluated(tmp_path, model, ByteTokenizer(), task, rows, [2])
    assert result.correct([SEED], 2)[0].tolist() == reference_answers(model, ByteTokenizer(), task, rows, SEED, 2)
    answers = result.seeds[task.seed(SEED)]
    assert answers.cropped > 0 or task.shots == 0
    assert answers.cut == 0


def test_what_is_longer_than_the_context_is_counted(tmp_path):
    rows = [{"context": "a b", "continuation": "c" * 20}, {"context": "a b", "continuation": "c"}]
    task = Task(name="t", kind="language_modeling", file="t.jsonl", baselines={"own": 0})
    result = evaluated(tmp_path, small_model(context=16), ByteTokenizer(), task, rows, [1])
    (answers,) = result.seeds.values()
    assert (answers.cropped, answers.cut) == (1, 1)


@pytest.mark.parametrize("kind", ["looped", "fixed", "grouped"])
@pytest.mark.parametrize("case", CASES)
def test_shared_prefixes_change_nothing(case, kind, tmp_path, monkeypatch):
    """Cached equals uncached at every T, also where a batch holds questions with prefixes of several lengths."""
    changes = {"looped": {}, "fixed": {"injection": "none"}, "grouped": {"key_value_heads": 1}}[kind]
    task, rows = CASES[case]
    model = small_model(context=256, **changes)
    subject = Subject.of(model, ByteTokenizer(), name="small")
    questions = make_questions(task, rows, range(len(rows)), seed=SEED, tokenizer=ByteTokenizer(), context=256)
    monkeypatch.setattr(scoring_module, "EXCESS", 0.5)
    depths = [1] if kind == "fixed" else [1, 2, 4]
    batches = scoring_module._batches(questions, 2**13, subject.reader.prefix_bytes(depths), 2**30)
    if task.shots:
        assert any(batch.shared and len({number for number, _ in batch.options}) > 1 for batch in batches)
    shared, alone = (
        score_questions(subject.reader, questions, depths, share_prefixes=share) for share in (True, False)
    )
    for ours, theirs in zip(shared, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.nats, other.nats, rtol=2e-5)
            assert one.tokens == other.tokens
            assert (one.greedy == other.greedy).all()


def test_batches_are_of_bounded_size_and_hold_every_option():
    task, rows = CASES["choice"]
    questions = make_questions(task, rows, range(len(rows)), seed=1, tokenizer=ByteTokenizer(), context=256)
    for cache_bytes in (0, 1000):
        batches = scoring_module._batches(questions, 700, cache_bytes, 2**30)
        assert sorted(place for batch in batches for place in batch.options) == [
            (number, option) for number in range(12) for option in range(4)
        ]
        for batch in batches:
            tails = [len(questions[number].options[option].tokens) - batch.shared for number, option in batch.options]
            numbers = {number for number, _ in batch.options}
            positions = len(numbers) * (batch.shared + 4 * max(tails)) if batch.shared else len(tails) * max(tails)
            assert positions <= 700 or len(numbers) == 1
        assert any(batch.shared for batch in batches) == bool(cache_bytes)
    small = scoring_module._batches(questions, 700, 1000, 200_000)  # most prefixes are too large for such a cache
    assert sum(len(batch.options) for batch in small) == 48
    assert {bool(batch.shared) for batch in small} == {True, False}


def question_of(prefix, *tails):
    """A question whose options share `prefix` tokens, and differ in their `tails`."""
    return Question(
        options=tuple(
            Option(tokens=np.concatenate([np.ones(prefix, np.int64), np.full(tail, 2 + number)]), start=prefix)
            for number, tail in enumerate(tails)
        ),
        gold=0,
    )


@pytest.mark.parametrize(("prefix", "together"), [(101, True), (98, True), (97, False), (80, False)])
def test_questions_are_read_together_while_that_costs_a_sixteenth(prefix, together):
    """By hand, for a first question of 100 tokens that are read once, and 2 options of which 5 tokens are read each.

    With one whose prefix is shorter, both options of the first become longer by the difference.
    """
    lost = 101 - prefix
    batches = scoring_module._batches([question_of(101, 4, 4), question_of(prefix, 4, 4)], 2**13, 1, 2**30)
    assert [batch.shared for batch in batches] == ([prefix - 1] if together else [100, prefix - 1])
    assert (2 * lost <= (prefix - 1 + 2 * (5 + lost)) / 16) == together


def test_the_caches_of_a_batch_stay_below_their_limit():
    """Three equal questions: 100 shared tokens and 2 options of 5 tokens are 110 positions each."""
    questions = [question_of(101, 4, 4) for _ in range(3)]
    for limit, sizes in ((330, [6]), (329, [4, 2]), (220, [4, 2]), (219, [2, 2, 2]), (110, [2, 2, 2])):
        batches = scoring_module._batches(questions, 2**13, 10, 10 * limit)
        assert [len(batch.options) for batch in batches if batch.shared] == sizes
    assert not any(batch.shared for batch in scoring_module._batches(questions, 2**13, 10, 1099))


@pytest.mark.parametrize(
    ("context", "cropped", "cut"), [(9, False, False), (8, True, False), (6, True, False), (5, True, True)]
)
def test_a_prompt_is_cut_where_a_scored_token_has_no_token_before_it(context, cropped, cut):
    """9 tokens with the separator, of which the last 5 are scored: with 6 of context, all 5 are predicted."""
    task = Task(name="t", kind="language_modeling", file="t.jsonl", delimiter="", baselines={"own": 0})
    rows = [{"context": "abc", "continuation": "defgh"}]
    (question,) = make_questions(task, rows, [0], seed=0, tokenizer=ByteTokenizer(), context=context)
    (option,) = question.options
    assert (option.is_cropped, option.is_cut) == (cropped, cut)
    assert len(option.tokens) - option.start == min(5, context - 1)


def test_options_that_differ_in_nothing_are_scored_by_their_last_token():
    """The protocol's mean over no token isn't defined, for bytes `5` beside `50`."""
    task = Task(name="t", kind="multiple_choice", file="t.jsonl", baselines={"own": 50})
    rows = [{"query": "q", "choices": ["5", "50"], "gold": 0}]
    (question,) = make_questions(task, rows, [0], seed=0, tokenizer=ByteTokenizer(), context=16)
    assert [option.tokens[option.start :].tolist() for option in question.options] == [[ord("5")], [ord("5"), ord("0")]]


def test_tokens_that_merge_across_the_border_are_scored_from_where_they_part():
    task = Task(name="t", kind="language_modeling", file="t.jsonl", delimiter="", baselines={"own": 0})
    tokenizer = TOKENIZERS["merging"]
    (question,) = make_questions(
        task, [{"context": "col", "continuation": "o"}], [0], seed=0, tokenizer=tokenizer, context=16
    )
    (option,) = question.options
    assert tokenizer.decode_bytes(option.tokens[option.start :]) == b"lo"  # one token, half of it the context's


def test_lambada_perplexity(tmp_path):
    """exp of the mean over rows of the nats of the continuation."""
    rows = exact_rows(10)
    model = small_model()
    task = Task(name="t", kind="language_modeling", file="t.jsonl", baselines={"own": 0}, perplexity=True)
    result = evaluated(tmp_path, model, ByteTokenizer(), task, rows, [2])
    h0, total = model.initial_state([STATE_SEED], 256), 0.0
    for row in rows:
        before, after = row["context"].strip(), f" {row['continuation']}"
        tokens = [0, *f"{before}{after}".encode()]
        with torch.no_grad():
            ((_, logits),) = model.logits(torch.tensor([tokens[:-1]]), [2], h0[:, : len(tokens) - 1])
        logs = logits[0].log_softmax(-1)
        total -= sum(
            logs[place - 1, tokens[place]].item() for place in range(len(tokens) - len(after.encode()), len(tokens))
        )
    summary = json.loads((tmp_path / "results" / "own.summary.json").read_text())
    assert summary["tasks"][0]["measures"]["perplexity"]["2"]["value"] == pytest.approx(math.exp(total / 10), rel=1e-5)
    assert result.nats(2).sum() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("length", [5, 16, 17, 40])
def test_pages_are_read_in_disjoint_windows(length, tmp_path):
    """By hand: each token is predicted in the window that holds the one before it."""
    model, page = small_model(context=16), "µ loop core"[:3].ljust(length - 1, "x")
    task = Task(name="t", kind="rolling", file="t.jsonl")
    result = evaluated(tmp_path, model, ByteTokenizer(), task, [{"page": page}, {"page": "a"}], [1, 2])
    tokens, nats = [0, *page.encode()], 0.0
    h0 = model.initial_state([STATE_SEED], 16)
    for place in range(1, len(tokens)):
        window = tokens[(place - 1) // 16 * 16 : place]
        with torch.no_grad():
            ((_, logits),) = model.logits(torch.tensor([window]), [2], h0[:, : len(window)])
        nats -= logits[0, -1].log_softmax(-1)[tokens[place]].item()
    assert result.nats(2)[0] == pytest.approx(nats, rel=1e-5)
    assert result.units == {"words": (2, 1), "bytes": (length, 1)}


def test_pages_lose_the_spaces_around_punctuation():
    page = ' = A = \n He said " hi " , then 3 @.@ 5 @-@ fold ( or so ) ; N of the dogs \' tails ! \n'
    assert detokenised(page) == ' = A =\nHe said "hi", then 3.5-fold (or so); 1 of the dogs\' tails!\n'


@pytest.mark.parametrize("state_init", ["zero", "like-init"])
def test_validation_loss_is_that_of_evaluate_documents(state_init, tmp_path):
    rng = random.Random(0)
    rows = [{"text": words(rng, 1, 9)} for _ in range(9)] + [{"text": "a"}, {"text": "µ" * 40}]
    model = small_model(context=32, state_init=state_init)
    task = Task(name="t", kind="documents", file="t.jsonl")
    evaluated(tmp_path, model, ByteTokenizer(), task, rows, [1, 4])
    documents = [np.array(list(row["text"].encode()[:33])) for row in rows if len(row["text"]) > 1]
    expected = evaluate_documents(model, documents, [1, 4])
    summary = json.loads((tmp_path / "results" / "own.summary.json").read_text())
    measures = summary["tasks"][0]["measures"]
    for recurrence, loss in expected.items():
        assert measures["loss"][str(recurrence)]["value"] == pytest.approx(loss, rel=1e-6)
        assert measures["bits_per_byte"][str(recurrence)]["value"] == pytest.approx(loss / math.log(2), rel=1e-6)


def test_bfloat16_scores_are_near_those_of_float32():
    """With the cache and without; an error of bfloat16's 8 bits in each of the model's products."""
    task, rows = CASES["choice"]
    model = small_model(context=256)
    questions = make_questions(task, rows, range(len(rows)), seed=SEED, tokenizer=ByteTokenizer(), context=256)
    exact = score_questions(LoopedReader(model), questions, [2])
    for share in (True, False):
        rounded = score_questions(LoopedReader(model, "bfloat16"), questions, [2], share_prefixes=share)
        pairs = [(a.nats[0], b.nats[0]) for x, y in zip(exact, rounded, strict=True) for a, b in zip(x, y, strict=True)]
        ours, theirs = np.array(pairs).T
        np.testing.assert_allclose(theirs, ours, rtol=0.05)
        assert (theirs != ours).all()


def score_on(device):
    """Score questions and texts on a device; return the nats, the host's waits for it, and the batches."""
    model = small_model(context=256).to(device)
    reader, tokenizer = LoopedReader(model), ByteTokenizer()
    choice, schema = (CASES[name] for name in ("choice", "schema"))
    questions = [
        *make_questions(choice[0], choice[1], range(12), seed=1, tokenizer=tokenizer, context=256),
        *make_questions(schema[0], schema[1], range(12), seed=1, tokenizer=tokenizer, context=256),
        *make_documents([{"text": "a core loop"}, {"text": "µ"}], 0, tokenizer=tokenizer, context=256),
    ]
    pretend.SYNCS.clear()
    with sdpa_kernel(SDPBackend.MATH):  # the pretend device has no other
        scores = score_questions(reader, questions, [1, 3])
    batches = len(scoring_module._batches(questions, reader.tokens_at_once, reader.prefix_bytes([1, 3]), 2**30))
    return [score.nats.tolist() for row in scores for score in row], dict(pretend.SYNCS), batches


def test_an_accelerator_has_all_tensors_of_an_operation_and_is_waited_for_rarely():
    """On a pretend device, which refuses operations with tensors of the CPU: the same nats, few waits for a batch."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=pretend.register) as pool:
        nats, waits, batches = pool.submit(score_on, pretend.NAME).result()
    expected, _, _ = score_on("cpu")
    np.testing.assert_allclose(nats, expected, rtol=2e-5)
    assert waits["copy to the host"] == batches
    assert sum(waits.values()) <= 4 * batches, waits
