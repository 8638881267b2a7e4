import pytest
from pydantic import ValidationError

from isoloop.trainer.config import DataConfig


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"column": "body"}, "the standard library has none for data.column='body'; leave it out"),
        ({"files": "*"}, "the standard library has none for data.files="),
        ({"suffixes": (".c",)}, "the standard library has none for data.suffixes="),
        ({"revision": "v1"}, "the standard library has none for data.revision="),
        ({"separator": "<s>"}, "tokenizer 'bytes' has none for data.separator='<s>'"),
        ({"tokenizer_vocabulary": 500}, "tokenizer 'bytes' has none for data.tokenizer_vocabulary=500"),
        ({"tokenizer": "x.json", "tokenizer_vocabulary": 500}, "a tokenizer that is not trained has none for"),
        ({"tokenizer": "o/n", "tokenizer_sample_bytes": 500}, "a tokenizer that is not trained has none for"),
        ({"tokenizer": "bpe", "tokenizer_vocabulary": 256}, "greater than or equal to 257"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"validation_fraction": 1}, "less than 1"),
        ({"corpus": ""}, "at least 1 character"),
        ({"separator": ""}, "at least 1 character"),
    ],
)
def test_an_argument_without_use_is_refused(change, rule):
    with pytest.raises(ValidationError, match=rule):
        DataConfig(**change)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tokenizer": "bpe", "tokenizer_vocabulary": 500, "tokenizer_sample_bytes": 1000, "separator": "<s>"},
        {"tokenizer": "x.json", "separator": "<s>"},
        {"corpus": "owner/name", "files": "*.parquet", "revision": "v1", "column": "body", "max_tokens": 10**13},
    ],
)
def test_what_was_written_out_with_its_defaults_is_read_back(config):
    written = DataConfig(**config)
    assert DataConfig.model_validate(written.model_dump()) == written
    assert DataConfig.model_validate_json(written.model_dump_json()) == written
