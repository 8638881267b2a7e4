"""What a page computes from: the numbers of a fit that the calculator needs to say what `isoloop predict` says."""

import base64
from typing import Any

import numpy as np

from isoloop.fitting import SweepFit
from isoloop.fitting.cost import BACKWARD_SLOPE
from isoloop.fitting.estimation.law_fit import LUCK_DRAWS, LawFit
from isoloop.fitting.isoflop.power_law import MinimalLossLaw, PowerLaw
from isoloop.fitting.laws.base import GOLDEN_STEPS, GRID_POINTS
from isoloop.fitting.predict import named_power_laws, recurrence_bounds

MOST_DRAWS = 4000
"""More refits than these aren't put into a page; its intervals then differ a little from those of the fit."""


def calculator_data(fit: SweepFit | None) -> dict[str, Any] | None:
    """What calculator.js takes; None where the fit has neither a training law nor a power law of µ*."""
    laws = [] if fit is None else [_power_law(name, law) for name, law in named_power_laws(fit)]
    if fit is None or (fit.training is None and not laws):
        return None
    cost, least = fit.cost_model, _least_loss(fit)
    return {
        "fitted": {
            "flops": fit.fitted.flops,
            "tokens": fit.fitted.tokens,
            "meanRecurrence": fit.fitted.mean_recurrence,
        },
        "cost": {
            "fixed": cost.flops_per_token_fixed,
            "forward": cost.flops_per_token_forward_loop,
            "backward": cost.flops_per_token_backward_loop,
            "backwardSlope": BACKWARD_SLOPE,
            "paramsFixed": cost.effective_params_fixed,
            "paramsPerLoop": cost.effective_params_per_loop,
            "meanRecurrences": cost.mean_recurrences,
            "forwardLoops": cost.forward_loops,
            "backwardLoops": cost.backward_loops,
        },
        "search": {"bounds": recurrence_bounds(fit), "points": GRID_POINTS, "steps": GOLDEN_STEPS},
        "training": None if fit.training is None else _training(fit.training),
        "powerLaws": laws,
        "leastLoss": None
        if least is None
        else {
            "vector": (least.floor, least.coefficient, least.exponent),
            "reference": least.reference,
            "draws": _packed(np.array(least.draws[:MOST_DRAWS])),
        },
    }


def draws_in(fit: SweepFit) -> tuple[int, int]:
    """How many refits of the training law (or, without it, of the power law) a page has, and how many there are."""
    law = fit.isoflop.mean_recurrence_law if fit.isoflop else None
    there = len(fit.training.draws) if fit.training else len(law.draws) if law else 0
    return min(there, MOST_DRAWS), there


def why_no_calculator(fit: SweepFit | None) -> str:
    """Why a page has no calculator: for sweeps without training law and power law."""
    if fit is None:
        return "nothing could be fitted to these runs"
    curves = fit.why_missing("isoflop") if fit.isoflop is None else fit.isoflop.reason
    return f"there is no training law ({fit.why_missing('training')}) and no power law of µ* ({curves})"


def _power_law(name: str, law: PowerLaw) -> dict[str, Any]:
    return {
        "name": name,
        "logCoefficient": law.log_coefficient,
        "exponent": law.exponent,
        "draws": _packed(np.array(law.draws[:MOST_DRAWS])),
    }


def _training(law: LawFit) -> dict[str, Any]:
    count = min(len(law.draws), MOST_DRAWS)
    luck = law.noise_draws()[:, 0].reshape(LUCK_DRAWS, len(law.draws))[:, :count]
    return {
        "vector": law.vector.tolist(),
        "widening": law.widening,
        "onLogLoss": law.on == "log loss",
        "draws": _packed(law.draw_matrix[:count]),
        "luck": _packed(luck),
    }


def _least_loss(fit: SweepFit) -> MinimalLossLaw | None:
    """The power law of the least loss, with a floor where there is one."""
    return None if fit.isoflop is None else fit.isoflop.loss_floor_law or fit.isoflop.loss_law


def _packed(values: np.ndarray) -> str:
    """Numbers as base64 of little-endian doubles, row by row: exact, and half as long as text."""
    return base64.b64encode(values.astype("<f8").tobytes()).decode()
