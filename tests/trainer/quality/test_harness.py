"""Against lm-evaluation-harness, where both define the same quantity; its tasks are made here, nothing is fetched.

The harness asks a model for log-likelihoods, here of an unbatched, uncached pass over the separator and the text.
"""

import random

import pytest
import torch

from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.evaluate import STATE_SEED
from isoloop.trainer.quality.suites import Bundle, Subject, Suite, Task, evaluate_suite
from isoloop.trainer.quality.suites.text import detokenised
from tests.trainer.quality.bundles import small_model, words, write_rows

pytest.importorskip("lm_eval", reason="lm-evaluation-harness isn't installed: pip install lm-eval")

CONTEXT, RECURRENCE = 64, 2


@pytest.fixture(scope="module")
def model():
    return small_model(context=CONTEXT)


def harness_results(model, **config):
    """Evaluate a task of the harness on the model."""
    import datasets
    from lm_eval import utils
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    h0 = model.initial_state([STATE_SEED], CONTEXT)

    def score(before, after):
        tokens = torch.tensor([[*before, *after]])
        with torch.no_grad():
            ((_, logits),) = model.logits(tokens[:, :-1], [RECURRENCE], h0[:, : tokens.shape[1] - 1])
        logs, wanted = logits[0, len(before) - 1 :].log_softmax(-1), tokens[0, len(before) :]
        return logs.gather(1, wanted[:, None]).sum().item(), bool((logs.argmax(-1) == wanted).all())

    class Adapter(LM):
        def loglikelihood(self, requests):
            pairs = [request.args for request in requests]
            return [score([0, *before.encode()], list(after.encode())) for before, after in pairs]

        def loglikelihood_rolling(self, requests):
            sums = []
            for request in requests:
                page = list(request.args[0].encode())
                windows = utils.get_rolling_token_windows(page, prefix_token=0, max_seq_len=CONTEXT, context_len=1)
                sums.append(sum(score(*disjoint(*pair))[0] for pair in windows))
            return sums

        def generate_until(self, requests):
            raise NotImplementedError

    def disjoint(inputs, predicted):
        inputs, predicted = utils.make_disjoint_window((inputs, predicted))
        return inputs[:1], predicted  # the others of the inputs are the predicted ones but the last

    rows = config.pop("rows")
    task = ConfigurableTask(
        config={
            "task": "mine",
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
            "test_split": "test",
            **config,
        }
    )
    return evaluate(Adapter(), {"mine": task}, bootstrap_iters=0)["results"]["mine"]


def our_measures(tmp_path, model, rows, **task):
    write_rows(tmp_path, "t.jsonl", rows)
    subject = Subject.of(model, ByteTokenizer(), name="small")
    suite = Suite(name="s", tasks=(Task(name="t", file="t.jsonl", **task),))
    summary = evaluate_suite(subject, suite, Bundle(tmp_path), tmp_path / "out", recurrences=[RECURRENCE], seeds=[1])
    return {name: by_depth[RECURRENCE].value for name, by_depth in summary.tasks[0].measures.items()}


def test_lambada(model, tmp_path):
    """Perplexity and accuracy of the last word."""
    rng = random.Random(0)
    texts = [words(rng, 3, 9) for _ in range(30)]
    texts += ["e e e e e", "a a a a"]
    theirs = harness_results(
        model,
        rows=[{"text": text} for text in texts],
        output_type="loglikelihood",
        doc_to_text="{{text.split(' ')[:-1]|join(' ')}}",
        doc_to_target="{{' '+text.split(' ')[-1]}}",
        metric_list=[
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    )
    rows = [dict(zip(("context", "continuation"), text.rsplit(" ", 1), strict=True)) for text in texts]
    ours = our_measures(
        tmp_path, model, rows, kind="language_modeling", baselines={"own": 0}, perplexity=True, delimiter=" "
    )
    assert ours["perplexity"] == pytest.approx(theirs["perplexity,none"], rel=1e-5)
    assert ours["accuracy"] == theirs["acc,none"]


def test_multiple_choice(model, tmp_path):
    """The harness's acc_norm is the log-likelihood per character: with bytes, ASCII and no delimiter, our mean."""
    rng = random.Random(1)
    rows = [
        {
            "query": f"{words(rng, 1, 4)}:".replace("µ", "u"),
            "choices": [f"{letter}{'xyz'[: rng.randint(0, 3)]}{rng.choice('pq')}" for letter in "abcd"],
            "gold": rng.randrange(4),
        }
        for _ in range(60)
    ]
    theirs = harness_results(
        model,
        rows=rows,
        output_type="multiple_choice",
        doc_to_text="{{query}}",
        doc_to_choice="{{choices}}",
        doc_to_target="gold",
        target_delimiter="",
        metric_list=[{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
    )
    ours = our_measures(tmp_path, model, rows, kind="multiple_choice", baselines={"own": 25}, delimiter="")
    assert ours["accuracy"] == theirs["acc_norm,none"]
    assert 0 < ours["accuracy"] < 1


def test_wikitext(model, tmp_path):
    """Pages that fill their windows; the harness gives the last window of others a longer context."""
    from lm_eval.tasks.wikitext import preprocess_wikitext

    rng, pages = random.Random(2), []
    for windows in (1, 2, 4):
        page = f" = {words(rng)} = \n \n It 's 3 @.@ 5 , or ( so ) "
        while len(detokenised(page).encode()) % CONTEXT or len(detokenised(page).encode()) < windows * CONTEXT:
            page += rng.choice(["a", "b ", " , "])
        pages.append({"page": page})
    theirs = harness_results(
        model,
        rows=pages,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target=preprocess_wikitext.wikitext_detokenizer,
        process_results=preprocess_wikitext.process_results,
        metric_list=[{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    )
    ours = our_measures(tmp_path, model, pages, kind="rolling")
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert ours[name] == pytest.approx(theirs[f"{name},none"], rel=1e-5)


def test_pages_are_detokenised_as_by_the_harness():
    from lm_eval.tasks.wikitext import preprocess_wikitext

    rng = random.Random(3)
    pieces = [*"'\"()[]{}.,;:!?=N°\n @-", " ", " ", "s ", " 's", "@-@", "@,@", "@.@", "= =", "word", "/' 5/", "\\"]
    for _ in range(300):
        page = "".join(rng.choices(pieces, k=60))
        assert detokenised(page) == preprocess_wikitext.wikitext_detokenizer({"page": page})
