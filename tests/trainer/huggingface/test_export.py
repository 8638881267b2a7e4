"""A run that the test trains, exported: model, tokenizer and card; what is refused, and what a full disk leaves."""

import ast
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
from isoloop.trainer.huggingface.model_card import advised_recurrence, model_card, training_facts
from isoloop.trainer.loop import train
from isoloop.trainer.model.pretrained import save_published
from isoloop.trainer.quality import load_trained
from isoloop.trainer.quality.generation import GenerationConfig, default_recurrence, generate
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
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    text = "line 1 of file 2\0: <end> <|endoftext|> Ā"
    ids = tokenizer(text, return_tensors="pt").input_ids
    ours = trained.require_tokenizer()
    assert ids[0].tolist() == ours.encode_text(text).tolist()
    assert tokenizer.decode(ours.encode_text("line 1: Āé"), skip_special_tokens=True) == "line 1: Āé"
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == ours.separator == model.generation_config.eos_token_id
    document = AutoTokenizer.from_pretrained(exported, add_bos_token=True, trust_remote_code=True)
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
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        load_trained(exported)
    (exported / "config.json").write_text('{"model_type": "isoloop", "width": 16}')
    with pytest.raises(
        ValueError, match=r"must be that of an exported model, but .*training_recurrence: must be given"
    ):
        load_trained(exported)


def test_its_recurrence_stays_with_it(run, tmp_path):
    exported = export_model(run, tmp_path / "exported", recurrence=2)
    trained = load_trained(exported)
    assert default_recurrence(trained) == 2
    assert generate(trained, "a", GenerationConfig(max_tokens=1))[0].recurrence == 2
    twice = export_model(exported, tmp_path / "twice")
    assert json.loads((twice / "config.json").read_text())["recurrence"] == 2
    for wrong, rule in ((5000, "less than or equal to 4096"), (0, "greater than or equal to 1"), ("two", "a number")):
        content = json.loads((twice / "config.json").read_text()) | {"recurrence": wrong}
        (twice / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"must be that of an exported model, but recurrence: .*{rule}"):
            load_trained(twice)


def test_exports_of_an_export_have_its_facts(run, exported, tmp_path):
    """Also in its own place."""
    card = (exported / "README.md").read_text()
    assert (export_model(exported, tmp_path / "twice") / "README.md").read_text() == card
    export_model(exported, exported, recurrence=2)
    again = (exported / "README.md").read_text()
    assert "T is 2 unless you set another" in again
    of_training = [text.split("## Training")[1].split("## Loss")[0] for text in (card, again)]
    assert of_training[0] == of_training[1]
    assert "| sweep | first |" in again
    assert f"with one seed ({read_seed(run)})" in again


def read_seed(run):
    return load_trained(run).spec.seed


def test_a_folder_that_transformers_saved_is_a_source(exported, tmp_path):
    """It has a configuration with all defaults filled in, and its weights may lie in several files.

    They may have been trained further, so the losses are no longer known.
    """
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True, recurrence=2)
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    ours, theirs = load_trained(exported), load_trained(tmp_path / "saved")
    assert theirs.model.config == ours.model.config
    assert (theirs.losses, theirs.facts, theirs.exported_recurrence) == ({}, None, 2)
    assert ours.losses
    assert ours.facts is not None
    card = (export_model(tmp_path / "saved", tmp_path / "to", tokenizer=exported) / "README.md").read_text()
    assert "Its validation loss isn't known" in card
    assert "All that is known of its training is the number of loops" in card
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(theirs.model.state_dict()[name], tensor), name
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load_trained(tmp_path / "half").model.embedding.weight.dtype == torch.float32


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
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)
    exec(code.replace('folder = "."', f"folder = {str(exported)!r}"), {})
    (text,) = ast.literal_eval(capsys.readouterr().out)
    assert text.startswith("The ")
    assert code.count("trust_remote_code=True") == code.count("from_pretrained(")  # nothing asks whether to trust it


def test_the_card_says_what_weakens_its_numbers(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / run.name)
    changes = {"best_loss": 1.0, "best_step": 4, "skipped_steps": 2, "unique_tokens": 100, "losses": {1: 3.0, 2: 2.0}}
    write_result(copy, read_result(run).model_copy(update=changes))
    trained = load_trained(copy)
    card = model_card(trained, training_facts(trained), 3)
    for sentence in (
        "The loss at T = 3, which it runs by default, was not measured, but at T = 1, 2.",
        "It saw its text 7.68 times",
        "lowest at step 4 of 12 (1.0000)",
        "2 steps were skipped",
        "The loss is lowest at T = 2. No smaller T is within 0.01 of it: use T = 2. No larger T was measured",
    ):
        assert sentence in card


def test_the_card_names_the_weights_that_are_exported(run, tmp_path):
    """`best-model` in a run's folder means the best weights, whatever else is said."""
    copy = shutil.copytree(run, tmp_path / run.name)
    shutil.copytree(copy / "model", copy / "best-model")
    changes = {"best_loss": 1.0, "best_step": 4, "best_losses": {1: 1.5, 3: 1.0}}
    write_result(copy, read_result(run).model_copy(update=changes))
    best, last = "| weights | of step 4, whose validation loss was the lowest |", "| weights | of the last step |"
    for source, weights, row in (
        (copy, "last", last),
        (copy, "best", best),
        (copy / "model", "last", last),
        (copy / "best-model", "last", best),
    ):
        card = (export_model(source, tmp_path / "to", weights=weights) / "README.md").read_text()
        assert row in card
        assert ("| 3 | 1.0000 |" in card) == (row == best)


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


def test_a_link_stays_and_the_folder_behind_it_is_written(run, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert export_model(run, tmp_path / "link") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert load_trained(tmp_path / "real").losses == load_trained(run).losses


def test_the_folder_in_which_the_command_runs_is_refused(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for to in (".", "..", tmp_path / "here"):
        with pytest.raises(
            ValueError, match=r"the one in which the command runs; name a new folder in it, such as \S+"
        ):
            export_model(run, to)
    export_model(run, "model")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["model"]


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
    for wrong in (0, 5000):
        with pytest.raises(ValueError, match=rf"a whole number of loops from 1 to 4,096, but got {wrong}"):
            export_model(run, tmp_path / "to", recurrence=wrong)
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
