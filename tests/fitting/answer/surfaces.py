"""Loss surfaces whose truth is known in closed form: dense models of Chinchilla's law, looped ones of several sizes."""

from dataclasses import dataclass

import numpy as np

from isoloop.fitting import CostModel, DenseCost, LawFit, Verdict
from isoloop.fitting.answer.verdict import Undetermined
from isoloop.fitting.cost.family import DenseFamily, FamilyMember, ModelFamily
from isoloop.fitting.estimation.law_fit import ParameterEstimate
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.selection.mixture import law_mixture
from isoloop.fitting.surface.surface import LossSurface
from tests.run_tables import CHINCHILLA

SYMMETRIC = np.array([1.7, 400.0, 400.0, 0.3, 0.3])
"""E, A, B, alpha, beta of a law that N and D enter in the same way, so that best models have N = D."""
ISO_DEPTH = np.array([1.7, 60.0, 400.0, 0.25, 0.28, 0.5])
"""E, A, B, alpha, beta, phi."""
TEST_TIME = np.array([0.8, 3.0])
"""Z and z of the joint law of test-time loops."""


@dataclass(frozen=True, kw_only=True)
class SurfaceFit:
    """A fit that is nothing but a surface, as the fit of several sizes is to an answer."""

    surface: LossSurface
    name: str = "known"
    simulated: bool = True
    accounting: str = "exact"
    undetermined: tuple[Undetermined, ...] = ()

    def verdict(self, flops=None, limited=None):
        """Return the verdict that the test says."""
        return Verdict(answer=self.undetermined)


def known_law(name, vector, *, scatter=0.0, draws=100, seed=0, rows=40):
    """Return the fit of a law that is known, its refits scattered about it by `scatter`, relative."""
    drawn = vector * np.exp(scatter * np.random.default_rng(seed).standard_normal((draws, len(vector))))
    parameters = tuple(
        ParameterEstimate(
            name=each.name, meaning="", unit="1", value=float(value), interval=None, profile=None, at_bound=False
        )
        for each, value in zip(law_named(name).parameters, vector, strict=True)
    )
    return LawFit(
        law=name, parameters=parameters, objective=1e-3, delta=None, on="log loss", rows=rows, runs=rows, noise=1e-3,
        noise_dof=rows - len(vector), bootstrap="parametric", widening=1.0, converged=True, reasons=(),
        draws=tuple(map(tuple, drawn.tolist())) if draws else (),
    )  # fmt: skip


def dense_surface(vector=CHINCHILLA, **law):
    """Return the surface of dense models at C = 6 N D."""
    return LossSurface(
        family=DenseFamily(cost=DenseCost()),
        laws=law_mixture([known_law("chinchilla", vector, **law)]),
        loops_law=None,
        params=(1e8, 1e10),
        mean_recurrence=None,
        tokens=(1e9, 1e11),
        flops=(1e18, 1e21),
    )


def member(label, params, **device):
    """Return looped models of 6 FLOPs per parameter and token, half of them in the loop, with gradient in each loop."""
    return FamilyMember(
        label=label,
        cost=CostModel(
            flops_per_token_fixed=3 * params,
            flops_per_token_forward_loop=params,
            flops_per_token_backward_loop=2 * params,
            effective_params_fixed=params / 2,
            effective_params_per_loop=params / 2,
            mean_recurrences=(1.0, 4.0, 16.0),
            forward_loops=(1.0, 4.0, 16.0),
            backward_loops=(1.0, 4.0, 16.0),
            **device,
        ),
    )


def looped_surface(vector=ISO_DEPTH, *, members=None, one_size=False, **law):
    """Return the surface of looped models of two sizes, or of one, by the iso-depth law."""
    members = members or (member("small", 1e8), member("large", 1e9))
    return LossSurface(
        family=ModelFamily(members=members[:1] if one_size else members),
        laws=law_mixture([known_law("iso-depth", vector, **law)]),
        loops_law=known_law("joint-test-time", TEST_TIME, **law),
        params=None if one_size else (1e8, 1e9),
        mean_recurrence=(1.0, 16.0),
        tokens=(1e9, 1e11),
        flops=(1e18, 1e21),
        recurrence=(1.0, 32.0),
    )
