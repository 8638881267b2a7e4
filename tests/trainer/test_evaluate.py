"""Bits per byte, and perplexity by the published protocol, by hand and of a run."""

import math

import numpy as np
import pytest
import torch

from isoloop.trainer.config import DataConfig, EvaluationConfig, ModelConfig, RecurrenceConfig, RunSpec
from isoloop.trainer.data.batches import validation_documents, validation_windows
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.distributed import Ranks
from isoloop.trainer.evaluate import STATE_SEED, bits_per_byte, evaluate_documents, tokens_per_byte
from isoloop.trainer.loop import train
from isoloop.trainer.model.pretrained import load_published
from tests.parquet import write_parquet
from tests.trainer.model.test_parcae import VARIANTS, build


def test_tokens_per_byte_by_hand():
    token_bytes = np.array([1, 2, 10])
    assert tokens_per_byte(np.array([[0, 1], [1, 1]]), token_bytes) == 4 / 7


def test_bytes_are_bits_over_log_2_exactly(corpus):
    windows = validation_windows(corpus, context=16, sequences=8)
    assert tokens_per_byte(windows[:, 1:], corpus.token_bytes) == 1.0
    assert bits_per_byte(2.5, tokens_per_byte(windows[:, 1:], corpus.token_bytes)) == 2.5 / math.log(2)


def test_a_run_on_bpe_tells_its_loss_per_byte(parquet_folder, tmp_path):
    config = DataConfig(corpus=str(parquet_folder), tokenizer="bpe", tokenizer_vocabulary=400, validation_fraction=0.1)
    corpus = prepare_corpus(config, tmp_path / "corpora")
    spec = RunSpec(
        model=ModelConfig(width=16, heads=2, context=16, vocabulary=400),
        recurrence=RecurrenceConfig(mean=2),
        data=config,
        data_fingerprint=corpus.facts.fingerprint,
        evaluation=EvaluationConfig(sequences=8, recurrences=(1, 2)),
        batch=4,
        steps=3,
    )
    result = train(spec, corpus, tmp_path / "run")
    windows = validation_windows(corpus, context=16, sequences=8)
    assert windows.shape == (8, 17)
    text = sum(len(_text(corpus, token)) for token in windows[:, 1:].flatten().tolist())
    assert result.bits_per_byte == pytest.approx(result.loss * 8 * 16 / text / math.log(2), rel=1e-12)
    assert text > 1.5 * 8 * 16


def _text(corpus, token):
    """A token's text, from the tokenizer's own decoder; the separator is one byte."""
    import tokenizers

    decoder = tokenizers.Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    return b"\0" if token == 0 else decoder.id_to_token(token)  # one character for each byte


DOCUMENTS = [np.arange(2, 2 + length) % 256 for length in (2, 13, 5, 5, 9, 13, 3)]


def slow_loss(model, documents, recurrence):
    """Each document by itself, each token by itself."""
    nats, tokens = 0.0, 0
    for number, document in enumerate(documents):
        h0 = model.initial_state([STATE_SEED + number], model.config.context)[:, : len(document) - 1]
        ((_, logits),) = model.logits(torch.from_numpy(document[None, :-1]), [recurrence], h0)
        for place, token in enumerate(document[1:].tolist()):
            nats -= logits[0, place].log_softmax(0)[token].item()
            tokens += 1
    return nats / tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_documents_are_evaluated_as_each_by_itself(variant):
    model = build(variant)
    depths = [1, 2, 4] if model.config.is_looped else [1]
    with torch.no_grad():
        expected = {depth: slow_loss(model, DOCUMENTS, depth) for depth in depths}
    for batch in (1, 3, 64):
        assert evaluate_documents(model, DOCUMENTS, depths, batch=batch) == pytest.approx(expected, abs=1e-6)


def test_ranks_share_the_documents():
    model, sums = build("diagonal"), []

    class Rank(Ranks):
        def sum(self, values):
            sums.append(values.clone())
            return values

    for rank in range(3):
        evaluate_documents(model, DOCUMENTS, [2], ranks=Rank(rank=rank, size=3))
    tokens = sum(len(document) - 1 for document in DOCUMENTS)
    assert sum(sums).item() / tokens == pytest.approx(evaluate_documents(model, DOCUMENTS, [2])[2], abs=1e-6)


def test_the_documents_are_the_first_cut_and_without_separators(tmp_path):
    texts = ["a", "bc", "a longer one", "d" * 16, "e" * 17, "f" * 18, *(f"text {i}" for i in range(40))]
    write_parquet(tmp_path / "a.parquet", texts)
    corpus = prepare_corpus(DataConfig(corpus=str(tmp_path), validation_fraction=0.9), tmp_path / "corpora")
    held_out = bytes(corpus.validation.read(0, len(corpus.validation)).tolist()).split(b"\0")[:-1]
    for count in (5, 1000):
        documents = [bytes(d.tolist()) for d in validation_documents(corpus, context=16, count=count)]
        assert documents == [text[:17] for text in held_out[:count] if len(text) > 1]
    write_parquet(tmp_path / "short" / "a.parquet", ["a"] * 50)
    short = prepare_corpus(DataConfig(corpus=str(tmp_path / "short")), tmp_path / "corpora")
    with pytest.raises(ValueError, match="a document of the first 9 that are held out must have two tokens"):
        validation_documents(short, context=16, count=9)


@pytest.mark.parametrize("texts", [["a"] * 400, [f"{i} is a\0b" for i in range(400)]])
def test_documents_that_cannot_be_evaluated_are_refused_before_the_first_step(texts, tmp_path):
    for number, text in enumerate(texts if "\0" in texts[0] else []):
        (tmp_path / f"{number}.txt").write_text(text * 4)
    if "\0" not in texts[0]:
        write_parquet(tmp_path / "a.parquet", texts)
    config = DataConfig(corpus=str(tmp_path), validation_fraction=0.2)
    corpus = prepare_corpus(config, tmp_path.parent / f"{tmp_path.name}-corpora")
    spec = RunSpec(
        model=ModelConfig(width=16, heads=2, context=16),
        recurrence=RecurrenceConfig(mean=2),
        data=config,
        data_fingerprint=corpus.facts.fingerprint,
        evaluation=EvaluationConfig(sequences=8, recurrences=(1,), documents=9),
        batch=4,
        steps=3,
    )
    folder = tmp_path.parent / f"{tmp_path.name}-run"
    with pytest.raises(ValueError, match=r"or leave (it|evaluation\.documents) out"):
        train(spec, corpus, folder)
    assert not (folder / "journal.jsonl").exists()


def test_a_run_tells_the_published_perplexity(parquet_folder, tmp_path):
    config = DataConfig(corpus=str(parquet_folder), tokenizer="bpe", tokenizer_vocabulary=400, validation_fraction=0.1)
    corpus = prepare_corpus(config, tmp_path / "corpora")
    spec = RunSpec(
        model=ModelConfig(width=16, heads=2, context=64, vocabulary=400),
        recurrence=RecurrenceConfig(mean=2),
        data=config,
        data_fingerprint=corpus.facts.fingerprint,
        evaluation=EvaluationConfig(sequences=8, recurrences=(1, 4), documents=20),
        batch=4,
        steps=3,
    )
    result = train(spec, corpus, tmp_path / "run")
    model, _ = load_published(tmp_path / "run" / "model")
    documents = validation_documents(corpus, context=64, count=20)
    assert len(documents) == 20
    with torch.no_grad():
        losses = {depth: slow_loss(model, documents, depth) for depth in (1, 2, 4)}
    assert result.document_losses == pytest.approx(losses, abs=1e-6)
    assert result.perplexity == pytest.approx(math.exp(losses[2]), rel=1e-6)
    text = sum(len(_text(corpus, token)) for document in documents for token in document[1:].tolist())
    nats = losses[2] * sum(len(document) - 1 for document in documents)
    assert result.document_bits_per_byte == pytest.approx(nats / text / math.log(2), rel=1e-6)
    without = spec.model_copy(update={"evaluation": EvaluationConfig(sequences=8, recurrences=(1, 4))})
    plain = train(without, corpus, tmp_path / "plain")
    assert (plain.loss, plain.perplexity, plain.document_losses) == (result.loss, None, {})
    assert plain.run_id != result.run_id
