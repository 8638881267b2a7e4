"""Loading of trained models: what is known of them, and what is refused."""

import json
import shutil

import pytest
import torch

from isoloop.trainer.config import DataConfig, EvaluationConfig, OptimizerConfig, RecurrenceConfig
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.loop import train
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.pretrained import load_published, save_published
from isoloop.trainer.quality import load_trained
from isoloop.trainer.run.result import read_result, write_result


def same_weights(ours, theirs):
    return all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.fixture(scope="module")
def run(spec, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / spec.run_id
    train(spec, corpus, folder)
    return folder


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / run.name)


def test_a_run_is_loaded_with_all_that_is_known_of_it(run, spec):
    trained = load_trained(run)
    result = read_result(run)
    assert (trained.name, trained.spec, trained.result) == (spec.run_id, spec, result)
    assert trained.losses == result.losses
    assert trained.recurrence == spec.recurrence
    assert not trained.model.training
    assert same_weights(trained.model, load_published(run / "model")[0])
    assert isinstance(trained.require_tokenizer(), ByteTokenizer)
    again = load_trained(str(run / "model"))  # the folder within, too
    assert (again.name, again.losses) == (trained.name, trained.losses)


def test_a_model_folder_is_enough_by_itself(run, tmp_path):
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    trained = load_trained(alone)
    assert (trained.name, trained.spec, trained.result, trained.losses) == ("alone", None, None, {})
    assert isinstance(trained.require_tokenizer(), ByteTokenizer)
    assert same_weights(trained.model, load_published(alone)[0])
    with pytest.raises(ValueError, match=r"only a run's folder has its best weights .*leave out weights='best'"):
        load_trained(alone, weights="best")


def test_arguments_without_a_meaning_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="weights must be last or best, but got 'lasst'"):
        load_trained(run, weights="lasst")
    for source in (run, run / "model", shutil.copytree(run / "model", tmp_path / "alone")):
        with pytest.raises(ValueError, match=r"a revision .* is of a model on Hugging Face, but '.*leave it out"):
            load_trained(source, revision="main")


@pytest.fixture(scope="module")
def bpe_run(spec, text_folder, tmp_path_factory):
    """An output folder with a corpus of BPE tokens, whose separator has a name of its own, and a run."""
    out = tmp_path_factory.mktemp("out")
    data = DataConfig(
        corpus=str(text_folder), tokenizer="bpe", tokenizer_vocabulary=300, separator="<end>", validation_fraction=0.3
    )
    corpus = prepare_corpus(data, out / "corpora")
    spec = spec.model_copy(
        update={
            "data": data,
            "data_fingerprint": corpus.facts.fingerprint,
            "model": spec.model.model_copy(update={"vocabulary": 300}),
            "steps": 2,
        }
    )
    folder = out / "runs" / spec.run_id
    train(spec, corpus, folder)
    return folder, corpus


def test_the_weights_of_a_run_have_the_tokenizer_of_its_corpus_beside_them(bpe_run, tmp_path):
    folder, corpus = bpe_run
    ours = load_trained(shutil.copytree(folder / "model", tmp_path / "alone")).require_tokenizer()
    assert ours.digest == corpus.tokenizer.digest
    text = "line 7 of file 3: hhh\n"
    assert ours.decode_bytes(ours.encode_text(text)) == text.encode()


def test_runs_of_older_versions_have_the_tokenizer_of_their_corpus(bpe_run, run, tmp_path):
    folder, corpus = bpe_run
    out = shutil.copytree(folder.parent.parent, tmp_path / "out")
    older = out / "runs" / folder.name
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (older / "model" / name).unlink()
    assert load_trained(older).require_tokenizer().digest == corpus.tokenizer.digest
    shutil.rmtree(out / "corpora")
    trained = load_trained(older)
    assert trained.tokenizer is None
    with pytest.raises(ValueError, match=r"none lies beside the weights of '\w+'; name it with tokenizer"):
        trained.require_tokenizer()
    named = load_trained(older, tokenizer=folder / "model")
    assert named.require_tokenizer().digest == corpus.tokenizer.digest
    assert isinstance(load_trained(older, tokenizer="bytes").tokenizer, ByteTokenizer)
    with pytest.raises(ValueError, match=r"has 256 and .* 300 ids; name the one that it was trained with"):
        load_trained(run, tokenizer=folder / "model" / "tokenizer.json")
    bytes_only = shutil.copytree(run, tmp_path / "bytes")
    (bytes_only / "model" / "tokenizer.json").unlink()
    assert isinstance(load_trained(bytes_only).tokenizer, ByteTokenizer)


@pytest.fixture(scope="module")
def overfitted(spec):
    """A run over 100 tokens 31 times, whose best step isn't its last."""
    return spec.model_copy(
        update={
            "data": DataConfig(unique_tokens=100),
            "evaluation": EvaluationConfig(sequences=8, recurrences=(1, 2), keep_best=True),
            "optimizer": OptimizerConfig(learning_rate=0.02),
            "recurrence": RecurrenceConfig(mean=2),
            "steps": 48,
        }
    )


@pytest.mark.parametrize("setting", [{}, {"residual_scale": 1.0}])
def test_the_best_weights_are_those_of_the_best_step(setting, overfitted, corpus, tmp_path):
    spec = overfitted.model_copy(update={"model": overfitted.model.model_copy(update=setting)})
    result = train(spec, corpus, tmp_path)
    assert result.best_step < result.steps
    last, best = load_trained(tmp_path), load_trained(tmp_path, weights="best")
    assert (last.losses, best.losses) == (result.losses, result.best_losses)
    assert (last.weights, best.weights) == ("last", "best")
    assert not same_weights(last.model, best.model)
    assert (tmp_path / "best-model").exists() == (not setting)
    if not setting:
        assert same_weights(best.model, load_published(tmp_path / "best-model")[0])
        assert load_trained(tmp_path / "best-model").losses == result.best_losses
        assert isinstance(load_trained(shutil.move(tmp_path / "best-model", tmp_path / "b")).tokenizer, ByteTokenizer)
        with pytest.raises(ValueError, match=r"keep_best keeps, but .* has none; use the last ones"):
            load_trained(tmp_path, weights="best")
    else:
        blocks = {getattr(block, "branch_scale", 1.0) for block in best.model.core}
        assert blocks == {1 / 2}  # residual_scale / (µ_rec sqrt(L_R)), as in training


def test_the_best_weights_are_the_last_ones_where_the_last_step_is_the_best(copied):
    write_result(copied, read_result(copied).model_copy(update={"best_step": 12}))
    best = load_trained(copied, weights="best")
    assert (best.losses, best.weights) == (read_result(copied).losses, "last")
    assert same_weights(best.model, load_published(copied / "model")[0])


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"status": "diverged", "reason": "loss 9 in step 3", "loss": None}, "diverged: loss 9 in step 3; use another"),
        ({"simulated": True}, "was simulated: its losses were drawn from a law, and there are no weights"),
    ],
)
def test_what_has_no_usable_weights_is_refused(copied, changes, rule):
    write_result(copied, read_result(copied).model_copy(update=changes))
    with pytest.raises(ValueError, match=rule):
        load_trained(copied)


def test_runs_that_lack_a_file_are_refused_by_name(copied):
    shutil.move(copied / "model", copied / "elsewhere")
    with pytest.raises(ValueError, match=r"has no model/ and no checkpoints/"):
        load_trained(copied)
    shutil.move(copied / "elsewhere", copied / "model")
    (copied / "spec.json").rename(copied / "kept.json")
    with pytest.raises(ValueError, match=r"must hold spec\.json"):
        load_trained(copied)
    (copied / "spec.json").write_text('{"steps": 0}')
    with pytest.raises(ValueError, match=r"spec\.json must be a run's configuration"):
        load_trained(copied)
    (copied / "spec.json").write_text("torn")
    with pytest.raises(ValueError, match=r"fetch the folder again, or use another run"):
        load_trained(copied)
    (copied / "kept.json").replace(copied / "spec.json")
    (copied / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"delete it and rerun what trained the run \(`isoloop run`\), or fetch"):
        load_trained(copied)
    (copied / "result.json").unlink()
    with pytest.raises(ValueError, match=r"has no result\.json yet; wait, or continue"):
        load_trained(copied)


def test_a_folder_that_is_no_model_is_refused(run, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"a model must be a run's folder, .* holds notes\.txt; check the path"):
        load_trained(tmp_path)
    with pytest.raises(ValueError, match=rf"name one of its runs, such as \S+{run.name}"):
        load_trained(shutil.copytree(run.parent, tmp_path / "out" / "runs").parent)
    with pytest.raises(ValueError, match="must be a folder that exists or the OWNER/NAME"):
        load_trained(tmp_path / "nowhere" / "at" / "all")


def test_own_classes_are_imported_only_when_allowed(spec, tmp_path):
    config = spec.model.model_copy(update={"injection": "tests.trainer.own:ScaledInjection"})
    model = build_model(config)
    model.initialise(0)
    save_published(tmp_path, model, spec.recurrence)
    with pytest.raises(ValueError, match="pass own_classes=True"):
        load_trained(tmp_path)
    assert same_weights(load_trained(tmp_path, own_classes=True).model, model)
    assert json.loads((tmp_path / "config.json").read_text())["injection_type"].endswith("ScaledInjection")
