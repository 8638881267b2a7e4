"""The peers that our fitter is held against agree with each other, and find a known law."""

import numpy as np
import pytest

from benchmarks.fitting.brute import brute_grid
from benchmarks.fitting.peers import hoffmann, law_many_starts, missing, scipy_many_starts, with_chinchilla, with_lmfit
from benchmarks.fitting.problem import LogProblem, objective

TRUTH = np.array([1.7, 480.0, 2100.0, 0.35, 0.37])


def table(noise):
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(5e7, 5e9, 7), np.geomspace(1e9, 2e11, 6)))
    E, A, B, alpha, beta = TRUTH
    loss = E + A * N**-alpha + B * D**-beta
    return N, D, loss * np.exp(noise * np.random.default_rng(3).standard_t(3, size=len(loss)))


def test_gradient_and_hessian_are_the_differences_of_the_value():
    problem = LogProblem(*table(5e-3), 1e-3)
    x = problem.coordinates(TRUTH * 1.01)
    for k, step in enumerate(1e-7 * np.eye(5)):
        upper, lower = problem.value_and_gradient(x + step), problem.value_and_gradient(x - step)
        _, gradient = problem.value_and_gradient(x)
        assert gradient[k] == pytest.approx((upper[0] - lower[0]) / 2e-7, rel=1e-5)
        assert problem.hessian(x)[k] == pytest.approx((upper[1] - lower[1]) / 2e-7, rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("delta", [1e-3, np.inf])
def test_peers_agree(delta):
    rows = table(5e-3)
    problem = LogProblem(*rows, delta)
    best = scipy_many_starts(*rows, delta, starts=10).objective
    assert best < objective(TRUTH, *rows, delta)
    found = [brute_grid(*rows, delta, points=20, zooms=2).objective, hoffmann(*rows, delta, starts=45).objective]
    if "lmfit" not in missing():
        found.append(with_lmfit(*rows, delta, starts=3).objective)

    def fitted(x):
        return np.exp(x[0]) + np.exp(x[1] - x[3] * problem.n) + np.exp(x[2] - x[4] * problem.d)

    found.append(law_many_starts(fitted, rows[2], problem.starts(5, 0), delta)[1])
    assert found == pytest.approx([best] * len(found), rel=1e-9)


def test_weights_count_rows_more_than_once():
    N, D, loss = table(5e-3)
    weights = np.random.default_rng(0).multinomial(len(N), np.full(len(N), 1 / len(N)))
    repeated = scipy_many_starts(*(np.repeat(column, weights) for column in (N, D, loss)), starts=5)
    for fit in (
        scipy_many_starts(N, D, loss, weights=weights, starts=5),
        brute_grid(N, D, loss, weights=weights, points=20, zooms=1),
    ):
        assert fit.objective == pytest.approx(repeated.objective, rel=1e-9)
        assert fit.parameters == pytest.approx(repeated.parameters, rel=1e-4)


def test_a_known_law_is_found():
    assert brute_grid(*table(0.0), np.inf).parameters == pytest.approx(TRUTH, rel=1e-4)


def test_what_is_not_installed_is_named():
    for name, peer in (("lmfit", with_lmfit), ("chinchilla", with_chinchilla)):
        if name in missing():
            with pytest.raises(ModuleNotFoundError, match=rf"{name} is left out.*\[peers\]"):
                peer(*table(0.0))
