"""Bits per byte, by hand and of a run."""

import math

import numpy as np
import pytest

from isoloop.trainer.config import DataConfig, EvaluationConfig, ModelConfig, RecurrenceConfig, RunSpec
from isoloop.trainer.data.batches import validation_windows
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.evaluate import bits_per_byte, tokens_per_byte
from isoloop.trainer.loop import train


def test_the_first_token_of_a_window_is_no_target():
    token_bytes = np.array([1, 2, 10])
    assert tokens_per_byte(np.array([[2, 0, 1], [2, 1, 1]]), token_bytes) == 4 / 7


def test_bytes_are_bits_over_log_2_exactly(corpus):
    windows = validation_windows(corpus, context=16, sequences=8)
    assert tokens_per_byte(windows, corpus.token_bytes) == 1.0
    assert bits_per_byte(2.5, tokens_per_byte(windows, corpus.token_bytes)) == 2.5 / math.log(2)


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
