import pytest

from isoloop.fitting.simulate import PUBLISHED_TRUTH
from isoloop.sweeps.config.loading import load_sweep, parse_yaml, preset_names, preset_text, validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.trainer.config import SIZES

BASE = {"name": "x", "budgets": [1e9], "mean_recurrences": [1, 2]}
FIXED = {
    "mean_recurrences": [1],
    "model": {"injection": "none"},
    "depth": {"sampling": "fixed"},
    "evaluation": {"recurrences": [1]},
}


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_named_after_their_file(name):
    sweep = load_sweep(name)
    assert sweep.name == name
    assert validate_sweep(parse_yaml(config_text(sweep)), source=name) == sweep


def test_the_simulated_preset_draws_from_the_published_truth():
    simulation = load_sweep("parcae-140m-simulated").simulation
    for key, value in simulation.model_dump(exclude={"flops_per_second"}).items():
        assert getattr(PUBLISHED_TRUTH, key) == value


@pytest.mark.parametrize("name", ["140m", "370m", "770m", "1.3b"])
def test_a_size_is_a_model(name):
    for model in (name, {"size": name}):
        assert validate_sweep({**BASE, "model": model}, source="here").model == SIZES[name]
    changed = {"size": name, "injection": "concat", "context": 512}
    assert validate_sweep({**BASE, "model": changed}, source="here").model == SIZES[name].model_copy(
        update={"injection": "concat", "context": 512}
    )


def test_a_size_is_overridden_and_overrides():
    """A published preset with another injection; any other sweep at a published size, which replaces its shape."""
    concat = load_sweep("parcae-140m-simulated", ["model.injection=concat"]).model
    assert concat == SIZES["140m"].model_copy(update={"injection": "concat"})
    larger = load_sweep("demo", ["model.size=370m"]).model
    assert larger == SIZES["370m"].model_copy(update={"state_init": "zero"})
    for order in (1, -1):
        narrow = load_sweep("demo", ["model.size=370m", "model.context=64"][::order]).model
        assert (narrow.width, narrow.context) == (1024, 64)


def test_how_a_run_is_executed():
    resources = {"cpus": 3, "gpus": 1, "micro_batch": 4, "compile": True, "keep_checkpoints": 5, "peak_flops": 1e15}
    execution = validate_sweep({**BASE, "resources": resources}, source="here").resources.execution
    assert (execution.device, execution.cpu_threads, execution.micro_batch) == ("cuda", 3, 4)
    assert (execution.compile, execution.keep_checkpoints, execution.peak_flops) == (True, 5, 1e15)


def test_numbers_without_a_dot():
    assert parse_yaml("[1e18, 2E-3, 4, 5.0e1]") == [1e18, 2e-3, 4, 50.0]


def test_a_tracking_uri_is_taken_as_it_stands():
    assert load_sweep("demo", settings={"tracking.uri": "null#{"}).tracking.uri.get_secret_value() == "null#{"


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
        ({"model": {"injection": "injektion"}}, "must be one of diagonal, concat, addition, none, or module:Class"),
        ({"model": "141m"}, "size must be one of 140m, 370m, 770m, 1.3b, but got '141m'"),
        ({"model": {"sixe": "140m"}}, "model.sixe: must be a known key; did you mean 'size'?"),
        ({"model": {"injection": "none"}}, "its mean recurrence must be 1, its sampling 'fixed'"),
        ({**FIXED, "model": {"injection": "none", "prelude_norm": False}}, "has no prelude norm"),
        ({**FIXED, "model": {"injection": "none", "state_init": "zero"}}, "no initial state to choose"),
        ({**FIXED, "depth": {"sampling": "fixed", "backprop_depth": 2}}, "has no loops to carry gradient"),
        ({**FIXED, "resources": {"activation_checkpointing": True}}, "has no loop; leave it out"),
        ({"depth": {"curriculum_start": 2, "curriculum_fraction": 0.5}}, "curriculum_start=2 is over 1"),
        ({"depth": {"curriculum_start": 1}}, "give both or neither"),
        ({"resources": {"processes": 2, "gpus": 0.5}}, "must have a whole GPU each, or none"),
        ({"resources": {"processes": 33}}, "got resources.processes=33, batch=32"),
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
        ("list.yaml", "[1, 2]", "must have keys with values, but 'list.yaml' is a list"),
        ("torn.yaml", "a: [1", "must be YAML"),
    ],
)
def test_unreadable_sweeps_are_named(tmp_path, monkeypatch, name, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        load_sweep(name)
