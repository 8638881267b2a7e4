"""lm-evaluation-harness, offline, on tasks that the test makes: of the exported folder, and of the run itself."""

import json
import sys
from functools import partial
from importlib import import_module

import pytest
import torch
import yaml

from isoloop.trainer.config import RecurrenceConfig
from isoloop.trainer.data.stored_tokenizer import save_tokenizer
from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.huggingface import export_model
from isoloop.trainer.model.pretrained import save_published
from isoloop.trainer.quality import load_trained
from isoloop.trainer.quality.generation import GenerationConfig, generate
from tests.trainer.huggingface.conftest import our_logits, random_model

CONTEXT = 48
ROWS = [
    {"question": "two and two", "choices": ["four", "five", "six"], "answer": 0, "text": "a longer text " * 9},
    {"question": "", "choices": ["a", "b", "ab"], "answer": 2, "text": "short"},
    {"question": "many words " * 6, "choices": ["yes", "no", "perhaps"], "answer": 1, "text": "ü" * 40},
]
TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "tiny_continuation": {
        "output_type": "generate_until",
        "doc_to_text": "the question {{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 10, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory):
    """The harness, offline, with its data sets in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        import datasets
        import lm_eval.tasks

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield lm_eval


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks, each a YAML file, on one file of rows."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, "test_split": "test", **data, **task}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model in the published layout, and its export."""
    source, folder = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("exported")
    save_published(source, random_model(context=CONTEXT, core_layers=2), RecurrenceConfig(mean=3))
    save_tokenizer(source, ByteTokenizer(), CONTEXT)
    return source, export_model(source, folder)


def evaluate(lm_eval, tasks, model, **arguments):
    manager = lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=list(TASKS), task_manager=manager, batch_size=2, device="cpu",
        bootstrap_iters=0,
    )  # fmt: skip
    responses = {
        name: [sample["resps"] for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"])]
        for name in TASKS
    }
    return results["results"], responses


def numbers(responses):
    """All log-likelihoods among responses."""
    if isinstance(responses, (list, tuple)):
        return [number for response in responses for number in numbers(response)]
    return [float(responses)]


@pytest.mark.parametrize("arguments", [{"recurrence": 1}, {"recurrence": 4}, {"add_bos_token": True}], ids=str)
def test_the_export_and_the_run_score_alike(arguments, lm_eval, tasks, folders):

    pytest.importorskip("accelerate", reason="the harness's own model needs accelerate: pip install accelerate")
    import_module("isoloop.trainer.quality.harness")  # registers the model
    source, exported = folders
    theirs, their_responses = evaluate(
        lm_eval, tasks, "hf", pretrained=str(exported), trust_remote_code=True, dtype="float32", **arguments
    )
    ours, our_responses = evaluate(lm_eval, tasks, "isoloop", pretrained=str(source), **arguments)
    if "add_bos_token" in arguments:  # theirs then scores the separator, too, which is no part of the text
        del theirs["tiny_text"], their_responses["tiny_text"]
    for name in their_responses.keys() - {"tiny_continuation"}:
        expected = numbers(their_responses[name])
        assert numbers(our_responses[name]) == pytest.approx(expected, abs=1e-4)
    assert our_responses["tiny_continuation"] == their_responses["tiny_continuation"]
    for name, metrics in theirs.items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                assert ours[name][metric] == pytest.approx(value, rel=1e-5), (name, metric)


def request(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.fixture(scope="module")
def adapter(lm_eval, folders):
    from isoloop.trainer.quality.harness import IsoloopLM

    return IsoloopLM(str(folders[0]), recurrence=2, batch_size=4, device="cpu")


def test_likelihoods_are_sums_over_our_own_logits(adapter, folders):
    pairs = [("a context", " and more"), ("a context", " an"), ("", "begins"), ("x" * 60, "yz"), ("a", " b")]
    model = load_trained(folders[0]).model
    results = adapter.loglikelihood([request("loglikelihood", *pair) for pair in pairs])
    for (context, continuation), (score, greedy) in zip(pairs, results, strict=True):
        tokens = torch.tensor([*(context.encode() or b"\0"), *continuation.encode()])[-(CONTEXT + 1) :]
        logits = our_logits(model, tokens[None, :-1], 2)[0].log_softmax(-1)[-len(continuation) :]
        targets = tokens[-len(continuation) :]
        assert score == pytest.approx(logits.gather(1, targets[:, None]).sum().item(), abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == targets).all())


def test_texts_are_those_of_generate_cut_at_stop_strings(adapter, folders):
    trained = load_trained(folders[0])
    contexts, settings = ["one ", "", "another one "], {"max_gen_toks": 12, "until": ["\x13", "\x14"]}
    config = GenerationConfig(max_tokens=12, recurrence=2, temperature=0.0)
    written = adapter.generate_until([request("generate_until", context, settings) for context in contexts])
    for context, text in zip(contexts, written, strict=True):
        whole = generate(trained, context, config.model_copy(update={"begin_document": not context}))[0].text
        assert text == whole.split("\x13")[0].split("\x14")[0]
    drawn = {"max_gen_toks": 12, "temperature": 1.0}
    (whole,) = adapter.generate_until([request("generate_until", "one ", {**drawn, "until": []})])
    (cut,) = adapter.generate_until([request("generate_until", "one ", {**drawn, "until": whole[5]})])
    assert cut == whole.split(whole[5])[0]


def test_a_text_that_is_asked_for_twice_is_drawn_twice(adapter):
    settings = {"max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "top_k": 50}
    requests = [request("generate_until", "again ", settings) for _ in range(3)]
    texts = adapter.generate_until(requests)
    assert len(set(texts)) == 3
    assert adapter.generate_until(requests) == texts


def test_what_it_cannot_do_is_refused(adapter, folders):
    from isoloop.trainer.quality.harness import IsoloopLM

    with pytest.raises(ValueError, match=r"may set until, max_gen_toks, .* but got num_beams"):
        adapter.generate_until([request("generate_until", "a", {"num_beams": 2})])
    with pytest.raises(ValueError, match=f"must fit into the context of {CONTEXT} tokens, but one has 49"):
        adapter.loglikelihood([request("loglikelihood", "a", "b" * 49)])
    for settings, rule in (
        ({"max_gen_toks": 0}, "max_gen_toks: .*greater than or equal to 1, but got 0; correct generation_kwargs"),
        ({"max_gen_toks": "many"}, "max_gen_toks: .*'many'"),
        ({"temperature": -1}, "temperature: .*greater than or equal to 0, but got -1"),
        ({"temperature": 1.0, "top_p": 2}, "top_p: .*less than or equal to 1, but got 2"),
    ):
        with pytest.raises(ValueError, match=f"^a task's generation breaks a rule: {rule}"):
            adapter.generate_until([request("generate_until", "a", settings)])
    for arguments, rule in (
        *(({"recurrence": wrong}, rf"from 1 to 4,096, but got {wrong!r}") for wrong in (0, 2.5, "4", 5000, True)),
        ({"precision": "float16"}, "precision must be float32 or bfloat16"),
        ({"cache": "half"}, "cache must be full, shared or none, but got 'half'"),
        ({"weights": "bets"}, "weights must be last or best, but got 'bets'"),
        ({"dtype": "float32"}, "arguments of the model isoloop are pretrained, .* but got dtype; leave it out"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1, or auto, but got 0"),
        ({"device": "warp"}, "must be one that torch can use here, but got 'warp'"),
    ):
        with pytest.raises(ValueError, match=rule):
            IsoloopLM(str(folders[0]), **{"device": "cpu"} | arguments)


def test_settings_mean_what_they_mean_to_the_harness(adapter):
    """Sampling without a temperature has temperature 1, and the 0 most probable tokens are all of them."""

    def written(**settings):
        return adapter.generate_until([request("generate_until", "again ", {"max_gen_toks": 20, **settings})])

    sampled = written(temperature=1.0)
    assert written(do_sample=True) == written(do_sample=True, top_k=0) == sampled
    assert written(do_sample=False, temperature=1.0) == written() != sampled


def test_the_recurrence_of_an_export_is_the_default_and_notes_are_logged(folders, tmp_path, caplog):
    from isoloop.trainer.quality.harness import IsoloopLM

    exported = export_model(folders[0], tmp_path / "exported", recurrence=2)
    assert IsoloopLM(str(exported), device="cpu").recurrence == 2
    assert not caplog.messages
    IsoloopLM(str(exported), recurrence=99, device="cpu")
    assert "T = 99 is far beyond the loops in training" in caplog.text


def test_ids_without_a_token_are_never_written(tmp_path):
    """Half of the ids of this model have no token in its tokenizer."""
    from isoloop.trainer.quality.harness import IsoloopLM

    save_published(tmp_path, random_model(context=CONTEXT, vocabulary=512), RecurrenceConfig(mean=3))
    save_tokenizer(tmp_path, ByteTokenizer(), CONTEXT)
    model = IsoloopLM(str(tmp_path), device="cpu", cache="shared")
    settings = {"max_gen_toks": 40, "do_sample": True}
    (text,) = model.generate_until([request("generate_until", "a", settings)])
    config = GenerationConfig(max_tokens=40, begin_document=False)
    shared, full = (
        generate(load_trained(tmp_path), "a", config.model_copy(update={"cache": cache}))[0]
        for cache in ("shared", "full")
    )
    assert text == shared.text != full.text
    assert max(shared.tokens) < 256


def test_half_precision_is_near(adapter, folders):
    from isoloop.trainer.quality.harness import IsoloopLM

    half = IsoloopLM(str(folders[0]), recurrence=2, precision="bfloat16", device="cpu")
    requests = [request("loglikelihood", "a context", " and more")]
    ((whole, _),), ((near, _),) = adapter.loglikelihood(requests), half.loglikelihood(requests)
    assert whole != near
    assert near == pytest.approx(whole, rel=0.05)


def test_its_own_command_knows_it(lm_eval, folders, tasks, tmp_path, monkeypatch, capsys):
    from isoloop.trainer.quality import harness

    only_ours = partial(lm_eval.tasks.TaskManager, include_defaults=False)  # finding all others takes many seconds
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", only_ours)
    arguments = ["--model", "isoloop", "--model_args", f"pretrained={folders[0]},recurrence=4", "--device", "cpu"]
    arguments += ["--tasks", "tiny_choice", "--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    harness.main()
    assert "tiny_choice" in capsys.readouterr().out
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["tiny_choice"]["acc,none"] >= 0
