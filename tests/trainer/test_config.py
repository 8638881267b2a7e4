import pytest
from pydantic import ValidationError

from isoloop.trainer.config import ModelConfig, RecurrenceConfig, RunSpec


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
