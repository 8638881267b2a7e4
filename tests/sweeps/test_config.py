import pytest

from fitting.simulate import PUBLISHED_TRUTH
from sweeps.config import config_text, load_sweep, parse_yaml, preset_text, presets, validate_sweep

BASE = {"name": "x", "budgets": [1e9], "mean_recurrences": [1, 2]}


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_and_named_after_their_file(name):
    sweep = load_sweep(name)
    assert sweep.name == name
    assert validate_sweep(parse_yaml(config_text(sweep)), source=name) == sweep


def test_the_simulated_preset_draws_from_the_published_truth():
    simulation = load_sweep("parcae-140m-simulated").simulation
    for key, value in simulation.model_dump().items():
        assert getattr(PUBLISHED_TRUTH, key) == value


def test_numbers_without_a_dot():
    assert parse_yaml("[1e18, 2E-3, 4, 5.0e1]") == [1e18, 2e-3, 4, 50.0]


def test_a_tracking_uri_is_taken_as_it_stands():
    assert load_sweep("demo", tracking_uri="null#{").tracking.uri == "null#{"


def test_overrides(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(preset_text("demo"))
    sweep = load_sweep(str(file), ["batch=8", "data.corpus=/some/text", "model.heads=3", "tracking.uri=null"])
    assert (sweep.batch, sweep.data.corpus, sweep.model.heads) == (8, "/some/text", 3)
    for bad, rule in (("batch", "must read section"), ("batch.x=1", "is a value"), ("budgets=[1e9", "must be YAML")):
        with pytest.raises(ValueError, match=rule):
            load_sweep("demo", [bad])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bugdets": [1]}, "bugdets: must be a known key; did you mean 'budgets'?"),
        ({"model": {"widht": 8}}, "model.widht: must be a known key; did you mean 'width'?"),
        ({"batch": "many"}, "batch: must be a number, but got 'many'"),
        ({"batch": "32"}, "batch: must be a number, but got '32'"),
        ({"batch": True}, "batch: must be a number, but got True"),
        ({"batch": 1.5}, "batch: input should be a valid integer"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"batch": 0}, "batch: input should be greater than or equal to 1, but got 0"),
        ({"mean_recurrences": [0, 1]}, "mean_recurrences.0: input should be greater than or equal to 1, but got 0"),
        ({"mean_recurrences": []}, "at least 1 item"),
        ({"mean_recurrences": [2, 2]}, "values must be distinct"),
        ({"budgets": [-1e9]}, "greater than 0"),
        ({"budgets": [float("nan")]}, "budgets.0"),
        ({"tokens": [100]}, "one of budgets (FLOPs) and tokens must be given, but got both"),
        ({"budgets": None}, "but got neither"),
        ({"accounting": "approximate"}, "'exact' or 'parcae-release'"),
        ({"name": "../up"}, "name: string should match pattern"),
        ({"model": {"width": 10, "heads": 4}}, "even multiple of heads"),
    ],
)
def test_broken_rules_are_named(change, said):
    with pytest.raises(ValueError, match=r"the sweep 'here' breaks") as caught:
        validate_sweep({**BASE, **change}, source="here")
    assert said.lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dem", None, "did you mean 'demo'"),
        ("nothing-like-it", None, "presets are demo"),
        ("absent.yaml", None, "there is no file"),
        ("list.yaml", "[1, 2]", "must be a YAML mapping, but 'list.yaml' is a list"),
        ("torn.yaml", "a: [1", "must be YAML"),
    ],
)
def test_unreadable_sweeps_are_named(tmp_path, monkeypatch, name, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        load_sweep(name)
