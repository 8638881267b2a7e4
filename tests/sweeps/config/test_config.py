import pytest

from isoloop.fitting.simulate import PUBLISHED_TRUTH
from isoloop.sweeps.config.loading import load_sweep, parse_yaml, preset_names, preset_text, validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.plan.grid import plan_sweep, planned_columns, simulated_corpus
from isoloop.trainer.config import SIZES, RunSpec

BASE = {"name": "x", "budgets": [1e9], "mean_recurrences": [1, 2]}
SIMULATION = {
    "E": 1.5, "X": 10, "x": 0.3, "Y": 100, "y": 0.3, "Z": 1, "z": 1, "run_noise": 0, "evaluation_noise": 0
}  # fmt: skip
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
    ("change", "expected"),
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
        ({"mean_recurrences": []}, "mean_recurrences: must have at least 1 entry, but got []"),
        ({"mean_recurrences": [2, 2]}, "values must be distinct"),
        ({"budgets": [-1e9]}, "greater than 0"),
        ({"budgets": [float("nan")]}, "budgets.0"),
        ({"tokens": [100]}, "one of budgets (FLOPs) and tokens must be given, but got both"),
        ({"budgets": None}, "but got neither"),
        ({"accounting": "approximate"}, "'exact' or 'parcae-release'"),
        ({"name": "../up"}, "name: must be of letters, digits and ._- and begin with a letter or a digit, but got"),
        ({"name": "runs.csv"}, "name: must not end like a file"),
        ({"name": "x" * 300}, "nor have more than 200 characters"),
        ({"budgets": 1e12}, "budgets: must be a list, such as [1, 2], but got 1000000000000.0"),
        ({"optimizer": None}, "optimizer: must have keys with values, but got None"),
        ({"data": {"corpus": 8}}, "data.corpus: must be a text (in quotes, if it looks like a number), but got 8"),
        ({"model": {"width": 10, "heads": 4}}, "even multiple of heads"),
        ({"model": {"injection": "injektion"}}, "must be one of diagonal, concat, addition, none, or module:Class"),
        ({"model": "141m"}, "size must be one of 140m, 370m, 770m, 1.3b, but got '141m'"),
        ({"model": {"sixe": "140m"}}, "model.sixe: must be a known key; did you mean 'size'?"),
        ({"model": {"injection": "none"}}, "its mean recurrence must be 1, its sampling 'fixed'"),
        ({**FIXED, "model": {"injection": "none", "prelude_norm": False}}, "has no norm around a loop"),
        ({**FIXED, "model": {"injection": "none", "state_init": "zero"}}, "no initial state to choose"),
        ({**FIXED, "depth": {"sampling": "fixed", "backprop_depth": 2}}, "has no loops to carry gradient"),
        ({**FIXED, "resources": {"activation_checkpointing": True}}, "has no loop; leave it out"),
        ({"depth": {"curriculum_start": 2, "curriculum_fraction": 0.5}}, "curriculum_start=2 is over 1"),
        ({"depth": {"curriculum_start": 1}}, "give both or neither"),
        ({"resources": {"processes": 2, "gpus": 0.5}}, "must have a whole GPU each, or none"),
        ({"resources": {"processes": 33}}, "got resources.processes=33, batch=32"),
    ],
)
def test_broken_rules_are_named(change, expected):
    with pytest.raises(ValueError, match=r"the sweep 'here' breaks") as caught:
        validate_sweep({**BASE, **change}, source="here")
    assert expected.lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("dem", None, "did you mean 'demo'"),
        ("nothing-like-it", None, "presets are demo"),
        ("absent.yaml", None, "there is no file"),
        ("list.yaml", "[1, 2]", "must have keys with values, but 'list.yaml' is a list"),
        ("torn.yaml", "a: [1", "must be YAML"),
    ],
)
def test_unreadable_sweeps_are_named(tmp_path, monkeypatch, name, content, expected):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=expected):
        load_sweep(name)


class TestNumbersBeyond64Bits:
    """Run tables, databases and torch keep integers in 64 bits with a sign."""

    LARGEST = 2**63 - 1

    @pytest.mark.parametrize(
        ("change", "place"),
        [
            ({"seed": 2**63}, "seed"),
            ({"seed": 99999999999999999999}, "seed"),
            ({"batch": 1e19}, "batch"),
            ({"budgets": None, "tokens": [2**63]}, "tokens.0"),
            ({"model": {"context": 2**63}}, "model.context"),
            ({"data": {"max_tokens": 1e20}}, "data.max_tokens"),
            ({"data": {"tokenizer": "bpe", "tokenizer_vocabulary": 2**64}}, "data.tokenizer_vocabulary"),
            ({"resources": {"micro_batch": 2**70}}, "resources.micro_batch"),
            ({"tune": {"seed": 2**64}}, "tune.seed"),
        ],
    )
    def test_are_refused(self, change, place):
        with pytest.raises(ValueError, match="the sweep 'here' breaks 1 rule") as caught:
            validate_sweep({**BASE, **change}, source="here")
        assert f"{place}: must be at most {self.LARGEST} (2^63 - 1), but got" in str(caught.value)

    def test_the_largest_is_kept_in_the_run_table(self):
        sweep = validate_sweep(
            {**BASE, "budgets": [1e12], "seed": self.LARGEST, "simulation": SIMULATION}, source="here"
        )
        plan = plan_sweep(sweep, simulated_corpus)
        assert [planned_columns(plan, cell)["seed"] for cell in plan.cells] == [self.LARGEST] * 2
        with pytest.raises(ValueError, match=r"seed = 9223372036854775808 breaks seed: must be at most"):
            plan_sweep(sweep.model_copy(update={"axes": {"seed": (1, 2**63)}}), simulated_corpus)

    def test_products_are_refused_too(self):
        with pytest.raises(ValueError, match=r"must have at most 9223372036854775807 \(2\^63 - 1\) tokens"):
            RunSpec(data_fingerprint="x", batch=2**40, steps=2**30)


def test_a_negative_zero_is_zero():
    """Else it would give the same run another id."""
    specs = [
        RunSpec(data_fingerprint="x", steps=1, optimizer={"muon_weight_decay": zero}, schedule={"decay_fraction": zero})
        for zero in (0.0, -0.0)
    ]
    assert specs[0].run_id == specs[1].run_id


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: 1\nb: 2\na: 3", "line 3: a key must be given once, but 'a' is also in line 1; drop one of them"),
            ("x:\n  a: 1\n  'a': 1", "line 3: a key must be given once, but 'a' is also in line 2"),
            ("[{a: 1, b: {c: 1, c: 2}}]", "line 1: a key must be given once, but 'c' is also in line 1"),
            ("1: a\n1.0: b", "line 2: a key must be given once, but '1.0' is also in line 1"),
            ("b: &b {p: 1}\nc: {<<: *b, <<: *b}", "line 2: a key must be given once, but '<<'"),
            ("a:\n\tb: 1", "line 2: .*; indent with spaces, not with tabs"),
            ("a: 1\n---\nb: 2", "line 2: but found another document"),
            ("[" * 5000, "it is nested too deeply"),
        ],
    )
    def test_a_repeated_key_and_bad_yaml_are_named_with_their_line(self, tmp_path, text, message):
        file = tmp_path / "mine.yaml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"must be YAML, but '.*mine.yaml' isn't: {message}"):
            load_sweep(str(file))

    def test_a_repeated_key_is_found_in_what_a_sweep_extends_and_in_overrides(self, tmp_path):
        (tmp_path / "base.yaml").write_text("seed: 1\nseed: 2\n", encoding="utf-8")
        (tmp_path / "mine.yaml").write_text("extends: base.yaml\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"base.yaml' isn't: line 2: a key must be given once, but 'seed'"):
            load_sweep(str(tmp_path / "mine.yaml"))
        with pytest.raises(ValueError, match="isn't: line 1: a key must be given once, but 'context'"):
            load_sweep("demo", ["model={context: 64, context: 128}"])

    def test_anchors_and_merge_keys_work(self):
        text = "b: &b {p: 1, q: 2}\nc: &c {<<: *b, q: 3}\nd: {<<: [*b, *c], r: 1}\ne: *c"
        merged = {"p": 1, "q": 3}
        assert parse_yaml(text) == {"b": {"p": 1, "q": 2}, "c": merged, "d": {"p": 1, "q": 2, "r": 1}, "e": merged}

    def test_plain_values_are_those_of_yaml_1_2(self):
        text = "[1e18, .5e3, 1.e5, 010, 08, 0x10, 1_000, -0, +3, -.5, 12:30, no, Off, true, 2024-01-02, ~, '010']"
        values = [1e18, 500.0, 1e5, 10, 8, 16, 1000, 0, 3, -0.5, "12:30", "no", "Off", True, "2024-01-02", None, "010"]
        assert parse_yaml(text) == values
        assert [type(value) for value in parse_yaml(text)] == [type(value) for value in values]

    @pytest.mark.parametrize("text", ["12e5678", "08", "12:30", "no", "0x1f", "~", "<<", "true", "1_0", "µ"])
    def test_a_text_is_written_so_that_it_is_read_back(self, text):
        sweep = validate_sweep({**BASE, "data": {"corpus": "a/b", "revision": text}}, source="here")
        assert validate_sweep(parse_yaml(config_text(sweep)), source="here").data.revision == text

    @pytest.mark.parametrize(("text", "expected"), [("yes", True), ("no", False), ("off", False)])
    def test_a_yes_or_no_is_understood_where_one_is_expected(self, text, expected):
        assert load_sweep("demo", [f"cluster.elastic={text}"]).cluster.elastic is expected

    def test_a_file_in_another_encoding_is_refused(self, tmp_path):
        (tmp_path / "mine.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
        with pytest.raises(ValueError, match="it is not in UTF-8; save it in that encoding"):
            load_sweep(str(tmp_path / "mine.yaml"))


def test_a_setting_is_given_once_on_the_command_line():
    with pytest.raises(ValueError, match="must be given once on the command line, but batch is given several times"):
        load_sweep("demo", ["batch=8", "batch=16"])
    with pytest.raises(ValueError, match=r"once on the command line, but tracking\.uri"):
        load_sweep("demo", ["tracking.uri=a"], settings={"tracking.uri": "b"})
    for order in (1, -1):  # a section replaces what is set; its keys come after it
        sweep = load_sweep("demo", ["optimizer={muon_momentum: 0.9}", "optimizer.learning_rate=0.1"][::order])
        assert (sweep.optimizer.muon_momentum, sweep.optimizer.learning_rate) == (0.9, 0.1)
