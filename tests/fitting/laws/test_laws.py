"""One contract for every law, and the compute-optimal split."""

import importlib
import sys

import numpy as np
import pytest

from isoloop.fitting import LAWS, PUBLISHED_TRUTH, TrainingLaw, choose, law_named, point_estimate, published_cost_model
from isoloop.fitting.cost.backprop import poisson_loops
from isoloop.fitting.laws.base import PowerOfSumLaw
from isoloop.fitting.laws.registry import check_law

EXAMPLES = {
    "training": [2.28, 32.3, 34.65, 0.26, 0.19],
    "test-time": [2.9, 0.84, 0.9],
    "joint-test-time": [0.84, 7.5],
    "unified": [2.28, 32.3, 34.65, 0.84, 0.26, 0.19, 7.5],
    "chinchilla": [1.8, 480.0, 2085.0, 0.35, 0.37],
    "iso-depth": [1.8, 480.0, 2085.0, 0.35, 0.37, 0.46],
    "six-parameter": [1.5, 5000.0, 20000.0, 0.5, 0.55, 0.7],
    "looped-six-parameter": [1.5, 5000.0, 20000.0, 0.5, 0.55, 0.7],
    "loops": [2.28, 0.9, 34.65, 0.26, 0.19, 3.1],
    "overthinking": [2.9, 0.84, 0.4, 0.9, 6.0, 1.7],
    "joint-overthinking": [0.84, 0.4, 7.5, 2.5, 1.7],
    "iso-depth-six-parameter": [1.5, 5000.0, 20000.0, 0.5, 0.55, 0.46, 0.7],
    "iso-depth-truncated": [1.8, 480.0, 2085.0, 0.35, 0.37, 0.5, 0.3],
    "loop-term": [1.8, 480.0, 0.3, 2085.0, 0.35, 0.8, 0.37],
    "unified-overthinking": [2.28, 32.3, 34.65, 0.84, 0.4, 0.26, 0.19, 7.5, 2.5, 1.7],
    "effective-tokens": [1.8, 480.0, 2085.0, 0.35, 0.37, 15.0],
    "sized-effective-tokens": [1.8, 480.0, 2085.0, 0.35, 0.37, 3e4, 0.45],
    "looped-effective-tokens": [2.28, 32.3, 34.65, 0.26, 0.19, 15.0],
    "looped-sized-effective-tokens": [2.28, 32.3, 34.65, 0.26, 0.19, 3e4, 0.45],
    "iso-depth-effective-tokens": [1.8, 480.0, 2085.0, 0.35, 0.37, 0.46, 15.0],
    "iso-depth-sized-effective-tokens": [1.8, 480.0, 2085.0, 0.35, 0.37, 0.46, 3e4, 0.45],
    "iso-depth-unique-effective-tokens": [1.8, 480.0, 2085.0, 0.35, 0.37, 0.46, 3e4, 0.45],
    "bounded-loss": [1.8, 10.8, 20.0, 900.0, 0.03, 0.35, 0.37, 0.3, 0.32],
    "looped-bounded-loss": [1.8, 10.8, 20.0, 900.0, 0.03, 0.35, 0.37, 0.3, 0.32],
}
DATA = {
    "effective_params": np.array([42e6, 85e6, 1.4e8, 2e8]),
    "params": np.array([42e6, 42e6, 8e7, 8e7]),
    "params_once": np.array([28e6, 28e6, 5e7, 5e7]),
    "params_recurrent": np.array([14e6, 14e6, 3e7, 3e7]),
    "loss_at_mean": np.array([3.3, 3.2, 3.1, 3.0]),
    "tokens": np.array([1e9, 3e9, 2e9, 8e9]),
    "unique_tokens": np.array([5e9, 1e8, 7e8, 4e8]),
    "mean_recurrence": np.array([1.0, 4.0, 8.0, 12.0]),
    "recurrence": np.array([1.0, 2.0, 8.0, 20.0]),
    "backprop_depth": np.array([1.0, 2.0, 5.0, 6.0]),
}


@pytest.fixture(params=LAWS, ids=lambda law: law.name)
def law(request):
    return request.param


def test_gradient_is_the_derivative_of_the_loss(law):
    at = np.array(EXAMPLES[law.name])
    gradient = law.loss_and_gradient(at, DATA)[1]
    assert gradient.shape == (4, len(at))
    for i, value in enumerate(at):
        step = np.zeros_like(at)
        step[i] = 1e-6 * value
        slope = (law.loss(at + step, DATA) - law.loss(at - step, DATA)) / (2 * step[i])
        np.testing.assert_allclose(gradient[:, i], slope, rtol=1e-6, atol=1e-9)


def test_loss_is_linear_in_its_amplitudes(law):
    at, k = np.array(EXAMPLES[law.name]), law.linear_count
    if not isinstance(law, PowerOfSumLaw):  # linear in its floor alone
        linear = law.offset(DATA) + law.basis(at[k:], DATA) @ at[:k]
        np.testing.assert_allclose(law.loss(at, DATA), linear, rtol=1e-13)
    twice = np.concatenate([2 * at[:k], at[k:]])
    more = law.basis(at[k:], DATA) @ at[:k]
    np.testing.assert_allclose(law.loss(twice, DATA), law.loss(at, DATA) + more, rtol=1e-13)


def test_loss_and_gradient_gives_the_same_loss(law):
    at = np.array(EXAMPLES[law.name])
    np.testing.assert_allclose(law.loss_and_gradient(at, DATA)[0], law.loss(at, DATA), rtol=1e-14)


def test_parameters_follow_the_units_of_the_columns(law):
    at = np.array(EXAMPLES[law.name])
    units = {name: 7.0 ** (1 + place) for place, group in enumerate(law.scaled) for name in group}
    smaller = {name: values / units.get(name, 1.0) for name, values in DATA.items()}
    in_units = law.rescaled(at, {name: 1 / unit for name, unit in units.items()})
    np.testing.assert_allclose(law.loss(in_units, smaller), law.loss(at, DATA), rtol=1e-12)
    np.testing.assert_allclose(law.rescaled(in_units, units), at, rtol=1e-12)


def test_parameters_have_bounds_units_and_starts(law):
    for place, parameter in enumerate(law.parameters):
        assert parameter.unit
        assert parameter.lower < parameter.upper
        if place < law.linear_count:
            assert parameter.lower == 0
    grid = law.start_grid()
    assert grid.shape[1] == len(law.parameters) - law.linear_count
    for column, parameter in zip(grid.T, law.parameters[law.linear_count :], strict=True):
        assert ((column >= parameter.lower) & (column <= parameter.upper)).all()


def test_what_a_fit_means_is_said_in_numbers(law):
    said = law.effective(np.array(EXAMPLES[law.name]))
    assert any(character.isdigit() for character in said)


def test_many_parameter_vectors_at_once_are_each_alone(law):
    rng = np.random.default_rng(0)
    many = np.array(EXAMPLES[law.name]) * rng.uniform(0.8, 1.2, size=(2, 3, len(law.parameters)))
    assert law.loss(many, DATA).shape == (2, 3, 4)
    gradient = law.loss_and_gradient(many, DATA)[1]
    assert gradient.shape == (2, 3, 4, len(law.parameters))
    np.testing.assert_allclose(law.loss(many, DATA)[1, 2], law.loss(many[1, 2], DATA), rtol=1e-14)
    np.testing.assert_allclose(gradient[1, 2], law.loss_and_gradient(many[1, 2], DATA)[1], rtol=1e-14)


def test_law_reads_no_column_that_it_does_not_name(law):
    named = {name: DATA[name] for name in law.columns}
    law.loss(np.array(EXAMPLES[law.name]), named)


def test_law_describes_itself(law):
    assert law.formula.startswith("L")
    assert law.source
    assert len(set(law.parameter_names)) == len(law.parameters)
    assert all(parameter.lower < parameter.upper and parameter.meaning for parameter in law.parameters)
    assert law_named(law.name) is law


def test_an_unknown_law_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"training, test-time, .*, loops, .*, or module:Class, but got 'chilla'"):
        law_named("chilla")


OWN_LAW = """
from typing import final
import numpy as np
from isoloop.fitting import Law, Parameter

@final
class TokensOnly(Law):
    \"\"\"Loss from tokens alone.\"\"\"
    name, formula, source = "tokens-only", "L(D) = E + B D^-beta", "this test"
    columns, scaled, linear_count = ("tokens",), (("tokens",),), 2
    parameters = (
        Parameter(name="E", meaning="floor", unit="nats per token"),
        Parameter(name="B", meaning="the term at D = 1", unit="nats per token"),
        Parameter(name="beta", meaning="exponent", unit="1", lower=0.01, upper=3.0, starts=(0.1, 0.3, 0.6, 1.0)),
    )

    def basis(self, nonlinear, data):
        power = np.exp(-nonlinear[..., 0, None] * np.log(data["tokens"]))
        return np.stack([np.ones_like(power), power], axis=-1)

    def nonlinear_gradient(self, parameters, data, basis):
        by_beta = -parameters[..., 1, None] * basis[..., 1] * np.log(data["tokens"])
        return by_beta[..., None]

    def rescaled(self, parameters, units):
        changed = np.array(parameters)
        changed[..., 1] *= units.get("tokens", 1.0) ** changed[..., 2]
        return changed

    def effective(self, parameters):
        return f"D's term halves with {2 ** (1 / parameters[2]):.3g}x the tokens"
"""


LAST_LINE = "        return by_beta[..., None]\n"
SCALED_LINEAR_SLOPES = """
    def loss_and_gradient(self, parameters, data):
        loss, slopes = super().loss_and_gradient(parameters, data)
        return loss, slopes * [1.1, 1.1, 1]
"""
TWICE_THE_LOSS = """
    def loss_and_gradient(self, parameters, data):
        loss, slopes = super().loss_and_gradient(parameters, data)
        return 2 * loss, slopes
"""


def test_a_law_of_ones_own_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "my_laws.py").write_text(OWN_LAW)
    monkeypatch.syspath_prepend(tmp_path)
    law = law_named("my_laws:TokensOnly")
    tokens = np.geomspace(1e9, 1e11, 12)
    truth = np.array([2.0, 400.0, 0.3])
    estimate = point_estimate(law, {"tokens": tokens, "loss": law.loss(truth, {"tokens": tokens})})
    np.testing.assert_allclose(estimate.parameters, truth, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:Law", "can't be imported: .*; put its folder on PYTHONPATH"),
        ("no_such_package.laws:Law", "can't be imported: .*; put its folder on PYTHONPATH"),
        ("isoloop.fitting:Lawless", "can't be imported: isoloop.fitting has no Lawless; correct the name"),
        ("json:JSONDecoder", "derives from"),
    ],
)
def test_a_law_that_is_none_is_refused(name, words):
    with pytest.raises(ValueError, match=words):
        law_named(name)


def test_chinchillas_optimum_is_that_of_hoffmanns_equation_4():
    law, at = law_named("chinchilla"), np.array([1.69, 406.4, 410.7, 0.34, 0.28])
    cost, (_, A, B, alpha, beta) = SixND(), at
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    for budget in (1e18, 5.76e23):
        best = law.optimum(at, cost, budget, bounds=(1e6, 1e14))
        assert float(best.at) == pytest.approx(G * (budget / 6) ** (beta / (alpha + beta)), rel=1e-6)
        assert float(6 * best.at * best.tokens) == pytest.approx(budget)
        assert f"N* ~ C^{beta / (alpha + beta):.3f}" in law.effective(at)


class SixND:
    axis = "params"

    def columns(self, budget, values):
        return {"params": values, "tokens": budget / (6 * values)}


def test_gamma_moves_no_optimum():
    chinchilla, six = law_named("chinchilla"), law_named("six-parameter")
    at = np.array([1.69, 406.4, 410.7, 0.34, 0.28])
    plain = chinchilla.optimum(at, SixND(), 1e20, bounds=(1e6, 1e14))
    bent = six.optimum(np.array([*at, 0.6]), SixND(), 1e20, bounds=(1e6, 1e14))
    assert float(bent.at) == pytest.approx(float(plain.at), rel=1e-6)


def test_a_law_without_tokens_has_no_optimum():
    with pytest.raises(ValueError, match="the test-time law does not depend on tokens"):
        law_named("test-time").optimum(np.array(EXAMPLES["test-time"]), published_cost_model(), 1e18)


def test_at_phi_one_the_iso_depth_law_is_the_training_law():
    at = np.array([1.8, 480.0, 2085.0, 0.35, 0.37])
    unrolled = DATA["params_once"] + DATA["mean_recurrence"] * DATA["params_recurrent"]
    iso_depth = law_named("iso-depth").loss(np.array([*at, 1.0]), DATA)
    np.testing.assert_allclose(iso_depth, TrainingLaw().loss(at, {**DATA, "effective_params": unrolled}), rtol=1e-13)


def test_unified_law_at_its_mean_recurrence_is_the_training_law():
    for mu in (1.0, 8.0, 12.0):
        size = PUBLISHED_TRUTH.effective_params_fixed + mu * PUBLISHED_TRUTH.effective_params_per_loop
        data = {"effective_params": np.array([size]), "tokens": np.array([1e9])}
        at = np.array([getattr(PUBLISHED_TRUTH, name) for name in TrainingLaw().parameter_names])
        training = TrainingLaw().loss(at, data)[0]
        assert PUBLISHED_TRUTH.loss(mu, 1e9, mu) == pytest.approx(training, abs=1e-3)


@pytest.mark.parametrize("budget", [1e18, 1.6e19, 6.4e19])
def test_optimum_is_the_least_loss_and_spends_the_budget(budget):
    law, cost, at = TrainingLaw(), published_cost_model(), np.array(EXAMPLES["training"])
    best = law.optimum(at, cost, budget)
    assert float(cost.flops_for(best.tokens, best.mean_recurrence)) == pytest.approx(budget, rel=1e-12)
    mu = np.geomspace(1, 100, 20_001)
    data = {"effective_params": cost.effective_params(mu), "tokens": cost.tokens_for(budget, mu)}
    losses = law.loss(at, data)
    assert float(best.loss) <= losses.min() + 1e-12
    assert float(best.mean_recurrence) == pytest.approx(mu[losses.argmin()], rel=1e-3)
    assert not best.at_bound


def test_optimum_at_the_end_of_the_search_is_said():
    best = TrainingLaw().optimum(np.array(EXAMPLES["training"]), published_cost_model(), 1e18, bounds=(6.0, 12.0))
    assert best.at_bound
    assert float(best.mean_recurrence) == pytest.approx(6)


def test_optimum_of_many_laws_is_each_alone():
    law, cost = TrainingLaw(), published_cost_model()
    many = np.array([EXAMPLES["training"], [2.0, 40, 30, 0.3, 0.2]])
    both = law.optimum(many, cost, 4e18)
    for i in range(2):
        assert both.mean_recurrence[i] == pytest.approx(float(law.optimum(many[i], cost, 4e18).mean_recurrence))


@pytest.mark.parametrize("bounds", [(0.0, 4.0), (4.0, 2.0), (1.0, np.inf)])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds of `mean_recurrence`"):
        TrainingLaw().optimum(np.array(EXAMPLES["training"]), published_cost_model(), 1e18, bounds)


def test_poisson_loops_against_drawn_depths():
    depths = np.maximum(1, np.random.default_rng(0).poisson(6, size=400_000))
    forward, backward = poisson_loops(6.0, 3)
    assert forward == pytest.approx(depths.mean(), abs=0.02)
    assert backward == pytest.approx(np.minimum(depths, 3).mean(), abs=0.005)


def own(tmp_path, monkeypatch, text, name="broken_law"):
    """Writes a module; gives its name. Each test needs another: Python keeps what it imported."""
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    return name


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("def f(:", "can't be imported: .*correct that module"),
        ("C = no_such_name", "can't be imported: .*no_such_name"),
        ("import no_such_library", "can't be imported: .*no_such_library.*, or install what it imports"),
        (
            "from isoloop.fitting import Law\nclass C(Law):\n    name = 'c'",
            "lacks basis, effective, rescaled, nonlinear_gradient; add them",
        ),
        ("from isoloop.fitting import Law as C", "must be a class that derives from isoloop.fitting.Law, but got"),
        (OWN_LAW.replace("TokensOnly", "C").replace("linear_count = ", "other = "), "lacks linear_count; add it"),
        (OWN_LAW.replace("TokensOnly", "C") + "\n    def __init__(self, size):\n        pass\n", "without arguments"),
    ],
)
def test_a_module_without_a_whole_law_is_refused(tmp_path, monkeypatch, module, words):
    name = own(tmp_path, monkeypatch, module)
    with pytest.raises(ValueError, match=words):
        law_named(f"{name}:C")


def test_a_module_must_have_its_full_name():
    with pytest.raises(ValueError, match=r"must have its full name, but got '\.rel:C'"):
        law_named(".rel:C")


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('(("tokens",),), 2', '(("tokens",),), 4', r"between 0 and 3, .*\(E, B, beta\), but got 4"),
        ('name="B"', 'name="E"', "unique and not empty, but number 1 is 'E'"),
        ('name="B"', 'name=""', "unique and not empty, but number 1 is ''"),
        ("starts=(0.1, 0.3, 0.6, 1.0)", "starts=()", r"shape \(points, 1\) for beta"),
        ("starts=(0.1, 0.3, 0.6, 1.0)", "starts=(0.1, 4.0)", "beta = 4 is outside 0.01 to 3"),
        ("by_beta = -", "by_beta = +", "the loss's derivative, but by beta at E = 1, B = 1, beta = 0.6"),
        (LAST_LINE, LAST_LINE + SCALED_LINEAR_SLOPES, "the loss's derivative, but by E at"),
        (LAST_LINE, LAST_LINE + TWICE_THE_LOSS, "the same finite loss"),
        ('(data["tokens"]))\n        return np.stack', '(data["params"]))\n        return np.stack', "reads 'params'"),
        ("return by_beta[..., None]", "return basis", r"gradient \(8, 3\), but got"),
        ("by_beta[..., None]", "by_beta", "must take arrays as"),
    ],
)
def test_a_law_that_breaks_the_contract_is_refused(tmp_path, monkeypatch, right, wrong, words):
    assert right in OWN_LAW
    name = own(tmp_path, monkeypatch, OWN_LAW.replace(right, wrong))
    with pytest.raises(ValueError, match=words):
        law_named(f"{name}:TokensOnly")


def test_every_law_of_ours_keeps_the_contract(law):
    check_law(law)


def test_a_law_of_ones_own_is_checked_once(tmp_path, monkeypatch):
    name = own(tmp_path, monkeypatch, OWN_LAW)
    assert law_named(f"{name}:TokensOnly") is law_named(f"{name}:TokensOnly")


def test_a_law_with_the_name_of_another_is_not_averaged_with_it(tmp_path, monkeypatch):
    name = own(tmp_path, monkeypatch, OWN_LAW.replace('"tokens-only"', '"chinchilla"'))
    with pytest.raises(ValueError, match="there are two called 'chinchilla law'"):
        choose(DATA | {"loss": np.ones(4)}, ["chinchilla", f"{name}:TokensOnly"])
