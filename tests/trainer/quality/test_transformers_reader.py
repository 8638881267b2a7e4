"""Models of Transformers as subjects: the same answers as ours give, and as one prompt at a time gives."""

import json
import shutil

import numpy as np
import pytest
import torch

from isoloop.trainer.data.sources import Document
from isoloop.trainer.quality.suites import Bundle, Suite, Task, evaluate_suite, read_results
from isoloop.trainer.quality.suites.prompts import make_questions
from isoloop.trainer.quality.suites.scoring import score_questions
from isoloop.trainer.quality.suites.transformers_reader import is_transformers_model, load_transformers
from tests.trainer.quality.bundles import choice_rows, exact_rows, write_rows
from tests.trainer.quality.test_scoring import merging_tokenizer

transformers = pytest.importorskip("transformers", reason="Transformers isn't installed: isoloop[huggingface]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small GPT-2 with random weights, and a tokenizer, in one folder."""
    path = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(vocab_size=320, n_positions=128, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text(merging_tokenizer().content)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>", "eos_token": "<|end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_scores_are_those_of_one_prompt_at_a_time(folder):
    subject = load_transformers(str(folder))
    assert (subject.reader.context, subject.reader.is_looped, subject.tokenizer.separator) == (128, False, 0)
    task = Task(name="t", kind="multiple_choice", file="t.jsonl", shots=1, baselines={"own": 25})
    questions = make_questions(
        task, choice_rows(6), range(6), seed=1, tokenizer=subject.tokenizer, context=subject.reader.context
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for question, scores in zip(questions, score_questions(subject.reader, questions, [1]), strict=True):
        for option, score in zip(question.options, scores, strict=True):
            tokens = torch.from_numpy(option.tokens)
            with torch.no_grad():
                logs = model(tokens[None]).logits[0].log_softmax(-1)
            places = torch.arange(option.start, len(tokens))
            expected = -logs[places - 1, tokens[places]].sum().item()
            np.testing.assert_allclose(score.nats, [expected], rtol=1e-5)


def test_folders_of_one_name_are_told_apart(folder, tmp_path):
    """Their results lie in folders of their names."""
    other = tmp_path / folder.name
    shutil.copytree(folder, other)
    same = load_transformers(str(other)).identity
    model = transformers.AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(other)
    first, second = (load_transformers(str(each)).identity for each in (folder, other))
    assert first.name == same.name == f"{folder.name}-{first.weights[:8]}"
    assert second.name != first.name


def test_its_tokenizer_gives_the_same_tokens(folder):
    theirs, ours = load_transformers(str(folder)).tokenizer, merging_tokenizer()
    documents = [Document("d", text.encode(), "train", 0) for text in ("a core loop: µ", "", "col or")]
    for mine, other in zip(ours.encode(documents), theirs.encode(documents), strict=True):
        assert mine.tolist() == other.tolist()


def test_a_suite_runs_at_t_1_alone(folder, tmp_path):
    write_rows(tmp_path, "mc.jsonl", choice_rows(8))
    write_rows(tmp_path, "lm.jsonl", exact_rows(8))
    write_rows(tmp_path, "text.jsonl", [{"text": "a core loop"}, {"text": "norm"}])
    suite = Suite(
        name="s",
        tasks=(
            Task(name="mc", kind="multiple_choice", file="mc.jsonl", baselines={"own": 25}),
            Task(name="lm", kind="language_modeling", file="lm.jsonl", baselines={"own": 0}, perplexity=True),
            Task(name="text", kind="documents", file="text.jsonl"),
        ),
    )
    subject = load_transformers(str(folder), context=64)
    summary = evaluate_suite(subject, suite, Bundle(tmp_path), tmp_path / "results", recurrences=[1])
    assert summary.of.context == 64
    assert list(summary.tasks[2].measures) == ["loss", "perplexity"]  # the bytes of its tokens are unknown
    assert set(read_results(tmp_path / "results", suite)) == {"mc", "lm", "text"}
    with pytest.raises(ValueError, match="its only T is 1"):
        evaluate_suite(subject, suite, Bundle(tmp_path), tmp_path / "results", recurrences=[2])
    with pytest.raises(ValueError, match=r"as many tokens as .* has positions, 128, but got 129"):
        load_transformers(str(folder), context=129)


def test_models_of_transformers_are_told_from_ours(folder, tmp_path):
    assert is_transformers_model(str(folder))
    for config in ({"_class_name": "ParcaeConfig"}, {"model_type": "isoloop"}, [], "gpt2"):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert not is_transformers_model(str(tmp_path))
    assert not is_transformers_model(str(tmp_path / "nothing"))
