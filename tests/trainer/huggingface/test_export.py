"""A run that the test trains, exported: model, tokenizer and card; what is refused, and what a full disk leaves."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from isoloop.trainer.accounting import forward_flops
from isoloop.trainer.config import DataConfig, ModelConfig, RecurrenceConfig
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.huggingface import export, export_model
from isoloop.trainer.huggingface.model_card import advised_recurrence, model_card
from isoloop.trainer.loop import train
from isoloop.trainer.model.pretrained import save_published
from isoloop.trainer.quality import load_trained
from isoloop.trainer.run.result import read_result, write_result
from tests.trainer.huggingface.conftest import our_logits, random_model


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def run(request, spec, text_folder, tmp_path_factory):
    """A run that is trained long enough to repeat the lines of its text."""
    out = tmp_path_factory.mktemp("out")
    words = {"tokenizer": "bpe", "tokenizer_vocabulary": 270, "separator": "<end>"} if request.param == "bpe" else {}
    data = DataConfig(corpus=str(text_folder), validation_fraction=0.3, **words)
    corpus = prepare_corpus(data, out / "corpora")
    spec = spec.model_copy(
        update={
            "data": data,
            "data_fingerprint": corpus.facts.fingerprint,
            "model": spec.model.model_copy(update={"vocabulary": corpus.facts.vocabulary}),
        }
    )
    folder = out / "runs" / spec.run_id
    train(spec, corpus, folder)
    return folder


@pytest.fixture
def exported(run, tmp_path):
    return export_model(run, tmp_path / "exported", sweep="first")


def test_a_run_is_loaded_and_generates(run, exported):
    trained = load_trained(run)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    text = "line 1 of file 2\0: <end> <|endoftext|> Ā"
    ids = tokenizer(text, return_tensors="pt").input_ids
    ours = trained.require_tokenizer()
    assert ids[0].tolist() == ours.encode_text(text).tolist()
    assert tokenizer.decode(ours.encode_text("line 1: Āé"), skip_special_tokens=True) == "line 1: Āé"
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == ours.separator == model.generation_config.eos_token_id
    document = AutoTokenizer.from_pretrained(exported, add_bos_token=True)
    assert document(text).input_ids == [ours.separator, *ids[0].tolist()]
    assert tokenizer.model_max_length == trained.model.config.context
    short = ids[:, :8]
    with torch.no_grad():
        torch.testing.assert_close(model(short).logits, our_logits(trained.model, short, 3), atol=1e-5, rtol=0)

    prompts = tokenizer(["line 1", "a"], return_tensors="pt", padding=True)
    batch = model.generate(**prompts, max_new_tokens=8)
    assert batch.shape[1] <= prompts.input_ids.shape[1] + 8
    alone = model.generate(**tokenizer("line 1", return_tensors="pt"), max_new_tokens=8)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in (batch[0], alone[0])]
    assert texts[0] == texts[1]
    assert texts[0].startswith("line 1")


def test_ids_without_a_token_are_never_generated(run, exported):
    """All rows of the table beyond the tokenizer's ids."""
    trained = load_trained(run)
    tokens, rows = trained.require_tokenizer().vocabulary, trained.model.config.padded_vocabulary
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    assert (model.generation_config.suppress_tokens or []) == list(range(tokens, rows))


def test_the_export_is_a_source_itself(run, exported, tmp_path):
    trained, again = load_trained(run), load_trained(exported)
    assert (again.losses, again.recurrence, again.precision) == (trained.losses, trained.recurrence, trained.precision)
    assert again.model.config == trained.model.config
    assert again.require_tokenizer().digest == trained.require_tokenizer().digest
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    twice = export_model(exported, tmp_path / "twice")
    assert (twice / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    (exported / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"model\.safetensors can't be used: .*export it again"):
        load_trained(exported)
    (exported / "config.json").write_text('{"model_type": "isoloop", "width": 16}')
    with pytest.raises(ValueError, match=r"must be that of an exported model, but: 'training_recurrence'"):
        load_trained(exported)


def test_the_card_tells_what_the_run_recorded(run, exported, text_folder):
    card, result, spec = (exported / "README.md").read_text(), read_result(run), load_trained(run).spec
    for loops, loss in result.losses.items():
        flops = forward_flops(spec.model, loops) / forward_flops(spec.model, 3)
        assert re.search(rf"^\| {loops} \| {loss:.4f} \| [\d.]+ \| {flops:.2f} \|$", card, re.M)
    assert f"| FLOPs | {result.flops_exact:.4g} (accounting `exact`), {result.flops_parcae_release:.4g}" in card
    assert f"| tokens | {result.tokens:,} (12 steps of 4 sequences of 16 tokens)" in card
    assert f"| corpus | {text_folder.name} (fingerprint {spec.data_fingerprint}) |" in card
    assert str(text_folder) not in card  # no path of this machine
    assert "| sweep | first |" in card
    assert f"| seed | {spec.seed} |" in card
    assert "| weights | of the last step |" in card
    assert f"use T = {advised_recurrence(result.losses)}." in card
    assert "Beyond T = 4 nothing was measured" in card
    assert "T is 3 unless you set another" in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_the_code_of_the_card_runs(exported, capsys):
    """In a model whose context is short, too: here 16 tokens."""
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)
    exec(code.replace('folder = "."', f"folder = {str(exported)!r}"), {})
    assert "['The " in capsys.readouterr().out


def test_the_card_says_what_weakens_its_numbers(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / run.name)
    changes = {"best_loss": 1.0, "best_step": 4, "skipped_steps": 2, "unique_tokens": 100, "losses": {1: 3.0, 2: 2.0}}
    write_result(copy, read_result(run).model_copy(update=changes))
    card = model_card(load_trained(copy), 3)
    for sentence in (
        "The loss at T = 3, which it runs by default, was not measured, but at T = 1, 2.",
        "It saw its text 7.68 times",
        "lowest at step 4 of 12 (1.0000)",
        "2 steps were skipped",
        "The loss is lowest at T = 2. No smaller T is within 0.01 of it: use T = 2. No larger T was measured",
    ):
        assert sentence in card


def test_the_advised_recurrence_is_the_cheapest_of_the_best():
    assert advised_recurrence({1: 3.0, 2: 2.506, 4: 2.5, 8: 2.6}) == 2
    assert advised_recurrence({1: 3.0, 2: 2.52, 4: 2.5}) == 4
    assert advised_recurrence({3: 1.0}) == 3


def test_only_a_new_or_empty_folder_or_an_older_export_is_written(run, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    export_model(run, target)
    (target / "README.md").write_text("edited")
    export_model(run, target, recurrence=5)
    assert json.loads((target / "config.json").read_text())["recurrence"] == 5
    assert (target / "README.md").read_text() != "edited"
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt; name another folder"):
        export_model(run, target)
    for path in target.glob("*.json"):
        path.unlink()
    with pytest.raises(ValueError, match=r"holds README\.md, model\.safetensors, modeling_isoloop\.py and 1 more"):
        export_model(run, target)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"but \S+file is a file"):
        export_model(run, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "target"]


def test_a_failure_leaves_the_older_export(run, tmp_path, monkeypatch):
    target = export_model(run, tmp_path / "target")
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def full_disk(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr(export, "model_card", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export_model(run, target, recurrence=7)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_models_that_cannot_be_exported_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="recurrence must be at least 1 loop, but got 0"):
        export_model(run, tmp_path / "to", recurrence=0)
    config = ModelConfig(injection="tests.trainer.own:ScaledInjection")
    from isoloop.trainer.model.build import build_model

    model = build_model(config)
    model.initialise(0)
    save_published(tmp_path / "own", model, RecurrenceConfig())
    with pytest.raises(ValueError, match=r"isoloop's own injections and blocks, .*names \['tests\.trainer\.own"):
        export_model(tmp_path / "own", tmp_path / "to", tokenizer="bytes")
    fixed = random_model(injection="none")
    save_published(tmp_path / "fixed", fixed, RecurrenceConfig(mean=1, sampling="fixed"))
    with pytest.raises(ValueError, match="a fixed-depth model has no loop, so recurrence must be 1, but got 2"):
        export_model(tmp_path / "fixed", tmp_path / "to", recurrence=2, tokenizer="bytes")
    with pytest.raises(ValueError, match="text needs the tokenizer that the model was trained with"):
        export_model(tmp_path / "fixed", tmp_path / "to")
    assert not (tmp_path / "to").exists()
