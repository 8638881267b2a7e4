import pytest
from pydantic import ValidationError

from isoloop.trainer.config import DataConfig, ModelConfig, RecurrenceConfig, RunSpec


def test_json_round_trip_keeps_the_run_id(spec):
    again = RunSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.run_id == spec.run_id


def test_the_run_id_is_what_determines_the_result(spec):
    elsewhere = spec.model_copy(update={"data": spec.data.model_copy(update={"corpus": "/other/place"})})
    assert elsewhere.run_id == spec.run_id
    for change in ({"seed": 1}, {"steps": 13}, {"batch": 5}, {"data_fingerprint": "x"}):
        assert spec.model_copy(update=change).run_id != spec.run_id


def test_value_embeddings_every_other_layer_from_the_last():
    six = ModelConfig(prelude_layers=2, core_layers=2, coda_layers=2)
    assert [i for i in range(6) if six.has_value_embedding(i)] == [1, 3, 5]
    three = ModelConfig()
    assert [i for i in range(3) if three.has_value_embedding(i)] == [0, 2]


@pytest.mark.parametrize(("mean", "depth"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_backprop_depth_is_half_the_mean_rounded_up(mean, depth):
    assert RecurrenceConfig(mean=mean).gradient_loops == depth
    assert RecurrenceConfig(mean=mean, backprop_depth=7).gradient_loops == 7


@pytest.mark.parametrize(
    ("model", "change", "rule"),
    [
        (ModelConfig, {"width": 10, "heads": 4}, "even multiple of heads"),
        (ModelConfig, {"widht": 16}, "Extra inputs"),
        (ModelConfig, {"core_layers": 0}, "greater than or equal to 1"),
        (RecurrenceConfig, {"mean": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_values_are_refused(model, change, rule):
    with pytest.raises(ValidationError, match=rule):
        model(**change)


def test_frozen(spec):
    with pytest.raises(ValidationError, match="frozen"):
        spec.steps = 3


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


def test_a_model_without_a_loop_has_no_phases(spec):
    content = spec.model_dump() | {"evaluation": {"recurrences": [1]}}
    content["model"] = {**content["model"], "injection": "none"}
    content["recurrence"] = {"mean": 1, "sampling": "fixed"}
    RunSpec(**content)
    content["recurrence"]["phases"] = [{"until": 0.5, "mean": 3}]
    with pytest.raises(ValidationError, match=r"runs each block once from the first step to the last.*leave them out"):
        RunSpec(**content)
