"""The peers of our fitter: other ways to the same minimum, none of which uses code of fitting/.

Each peer takes parameters N, tokens D and loss of the same rows, and Huber's delta on log loss (inf: squared error),
and returns its best fit of L = E + A N^-alpha + B D^-beta. All are judged by one function, `problem.objective`,
whatever they minimise inside. `lmfit` and `chinchilla` come with `pip install -e '.[peers]'`; `missing()` says which
peers are left out where they aren't installed.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from scipy import optimize

from benchmarks.fitting.brute import brute_grid
from benchmarks.fitting.problem import NAMES, LogProblem, PeerFit, huber, objective


def hoffmann(
    N: np.ndarray, D: np.ndarray, loss: np.ndarray, delta: float = 1e-3, *, starts: int = 4500, seed: int = 0
) -> PeerFit:
    """Fit as Hoffmann et al. 2022 (arXiv:2203.15556, appendix D.3): log-sum-exp, L-BFGS, their 4,500 starts.

    `starts` below 4,500 takes that many of them, drawn by `seed`. Gradient and tolerances are better than a default
    call has them: exact, and as tight as double precision bears.
    """
    exponents, amplitudes = np.arange(0, 2.1, 0.5), range(0, 26, 5)
    grid = np.array(list(itertools.product(np.arange(-1, 1.1, 0.5), amplitudes, amplitudes, exponents, exponents)))
    if not 1 <= starts <= len(grid):
        raise ValueError(f"starts must be 1 to {len(grid)}, but got {starts}")
    if starts < len(grid):
        grid = grid[np.random.default_rng(seed).permutation(len(grid))[:starts]]
    problem = LogProblem(N, D, loss, delta, centred=False)
    options = {"maxiter": 20_000, "maxfun": 40_000, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-10}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ends = [
            optimize.minimize(problem.value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
            for start in grid
        ]
    return _best(problem, ends)


def with_lmfit(
    N: np.ndarray, D: np.ndarray, loss: np.ndarray, delta: float = 1e-3, *, starts: int = 20, seed: int = 0
) -> PeerFit:
    """Fit by PyPI's lmfit: Levenberg-Marquardt from each start, the best by trust region, Nelder-Mead, Powell, BFGS.

    The residuals that it gets are signed square roots of twice Huber's function: half their squares add up to the
    objective.
    """
    _need("lmfit")
    import lmfit

    problem = LogProblem(N, D, loss, delta)
    names = ("e", "a", "b", "alpha", "beta")

    def residuals(values: lmfit.Parameters) -> np.ndarray:
        r = problem.residuals(np.array([values[name].value for name in names]))
        return np.nan_to_num(np.sign(r) * np.sqrt(2 * huber(r, delta) / problem.unit), nan=1e9, posinf=1e9, neginf=-1e9)

    def refined(start: np.ndarray, method: str, **options: object) -> np.ndarray:
        at = lmfit.Parameters()
        for name, value in zip(names, start, strict=True):
            at.add(name, value=float(value))
        result = lmfit.minimize(residuals, at, method=method, calc_covar=False, **options)
        return np.array([result.params[name].value for name in names])

    tight = {"xtol": 1e-15, "ftol": 1e-15}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ends = [refined(start, "leastsq", max_nfev=4000, **tight) for start in problem.starts(starts, seed)]
        for end in sorted(ends, key=problem.value)[:3]:
            for _ in range(2):
                end = refined(end, "least_squares", max_nfev=2000, gtol=1e-15, **tight)
                end = refined(end, "nelder", max_nfev=20_000, options={"xatol": 1e-13, "fatol": 1e-13})
                end = refined(end, "powell", max_nfev=20_000, options=tight)
                end = refined(end, "bfgs", max_nfev=20_000, options={"gtol": 1e-10})
                ends.append(end)
    return _best(problem, ends)


def with_chinchilla(
    N: np.ndarray, D: np.ndarray, loss: np.ndarray, delta: float = 1e-3, *, points: int = 5, scale: float = 1.0
) -> PeerFit:
    """Fit by PyPI's chinchilla as its README says: `df.csv` in a folder, a grid of points^5 starts, `fit()`, `params`.

    It goes downhill by BFGS with differences for gradients and scipy's tolerance, which is absolute; the objective, a
    mean of about 1e-6 per row, is soon below that. `scale` multiplies it, for as good a fit as the package can.
    """
    _need("chinchilla")
    os.environ.setdefault("MPLBACKEND", "Agg")  # it draws a figure into its folder
    from chinchilla import Chinchilla

    def log_huber(measured: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        return scale * huber(np.log(measured) - np.log(fitted), delta)

    grid = {
        "E": np.linspace(1, 2, points),
        "a": np.linspace(1, 10, points),
        "b": np.linspace(1, 10, points),
        "alpha": np.linspace(0.1, 0.7, points),
        "beta": np.linspace(0.1, 0.7, points),
    }
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        rows = zip(N.tolist(), D.tolist(), loss.tolist(), strict=True)
        lines = ["C,N,D,loss", *(f"{6 * n * d!r},{n!r},{d!r},{measured!r}" for n, d, measured in rows)]
        (Path(folder) / "df.csv").write_text("\n".join(lines) + "\n")
        fit = Chinchilla(folder, param_grid=grid, loss_fn=log_huber, log_level=50)
        fit.fit(parallel=False)
    parameters = np.array([fit.params[name] for name in NAMES])
    return PeerFit(parameters=parameters, objective=objective(parameters, N, D, loss, delta))


def scipy_many_starts(
    N: np.ndarray,
    D: np.ndarray,
    loss: np.ndarray,
    delta: float = 1e-3,
    *,
    weights: np.ndarray | None = None,
    starts: int = 60,
    seed: int = 0,
    also: Iterable[np.ndarray] = (),
) -> PeerFit:
    """Fit by scipy's BFGS from many starts and from `also`, then trust-region Newton from the best five."""
    problem = LogProblem(N, D, loss, delta, weights=weights)
    begin = [*problem.starts(starts, seed), *(problem.coordinates(parameters) for parameters in also)]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ends = [_downhill(problem, start) for start in begin]
        ends += [_newton(problem, end) for end in sorted(ends, key=problem.value)[:5]]
    return _best(problem, ends)


def warm_lbfgs(
    N: np.ndarray, D: np.ndarray, loss: np.ndarray, start: np.ndarray, weights: np.ndarray, delta: float = 1e-3
) -> PeerFit:
    """Fit by one L-BFGS from the parameters `start`, with scipy's own tolerances, which stop it too soon.

    The tolerances are absolute, and the sum over rows is of the order of 1e-3: the search stops near its start, so
    that refits to resamples scatter far too little.
    """
    problem = LogProblem(N, D, loss, delta, weights=weights, centred=False)

    def plain(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = problem.value_and_gradient(x)
        return problem.unit * value, problem.unit * gradient

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return problem.fit(optimize.minimize(plain, problem.coordinates(start), jac=True, method="L-BFGS-B").x)


def law_many_starts(
    fitted: Callable[[np.ndarray], np.ndarray],
    loss: np.ndarray,
    starts: np.ndarray,
    delta: float = 1e-3,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, float]:
    """Fit any law by scipy's least_squares with its own Huber loss from each of `starts` (count, p).

    `fitted` maps parameters (p,) to losses (rows,) and must bear complex numbers, by which it is differentiated.
    Returns the best parameters and their objective.
    """
    unit = delta if np.isfinite(delta) else 1e-3
    target = np.log(loss)

    def residuals(x: np.ndarray) -> np.ndarray:
        each = (target - np.log(fitted(x))) / unit
        return np.asarray(np.where(np.isfinite(each), each, 1e9))  # too far out to matter

    def value(x: np.ndarray) -> float:
        return float(huber(unit * residuals(x), delta).sum())

    kind = {"loss": "huber", "f_scale": 1.0} if np.isfinite(delta) else {"loss": "linear"}
    options = {"jac": "cs", "x_scale": "jac", "xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "max_nfev": 5000}
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ends = [optimize.least_squares(residuals, start, bounds=(low, high), **kind, **options).x for start in starts]
    best = min(ends, key=value)
    return best, value(best)


def _downhill(problem: LogProblem, start: np.ndarray) -> np.ndarray:
    options = {"maxiter": 3000, "gtol": 1e-9}
    return np.asarray(optimize.minimize(problem.value_and_gradient, start, jac=True, method="BFGS", options=options).x)


def _newton(problem: LogProblem, start: np.ndarray) -> np.ndarray:
    if not np.isfinite(problem.hessian(start)).all():  # a search that got lost
        return start
    options = {"maxiter": 500, "gtol": 1e-9, "initial_trust_radius": 1e-3}
    found = optimize.minimize(
        problem.value_and_gradient, start, jac=True, hess=problem.hessian, method="trust-exact", options=options
    )
    return np.asarray(found.x)


Peer = Callable[..., PeerFit]
PEERS: dict[str, Peer] = {
    "hoffmann": hoffmann,
    "lmfit": with_lmfit,
    "chinchilla": with_chinchilla,
    "brute_grid": brute_grid,
    "scipy_many_starts": scipy_many_starts,
}


def missing() -> dict[str, str]:
    """Return the peers that can't run here, with the reasons."""
    packages = {name: name for name in ("lmfit", "chinchilla")}
    return {
        peer: f"{package} is not installed; `pip install -c constraints.txt -e '.[peers]'` brings it"
        for peer, package in packages.items()
        if importlib.util.find_spec(package) is None
    }


def _need(peer: str) -> None:
    if reason := missing().get(peer):
        raise ModuleNotFoundError(f"the peer {peer} is left out: {reason}")


def _best(problem: LogProblem, ends: Iterable[np.ndarray]) -> PeerFit:
    return min((problem.fit(end) for end in ends), key=lambda fit: fit.objective)
