"""Run table -> scaling laws -> predictions. Imports no torch, Ray or MLflow; drawing is `fitting.figures`."""

from fitting.cost import Cost, CostModel, DenseCost
from fitting.estimate import HUBER, SQUARED, Estimate, Objective, fit_law
from fitting.isoflop import Disagreement, IndependentTokens, IsoflopFit, Minimum, fit_isoflop, predict_from_minima
from fitting.laws import LAWS, Law, Optimum, Parameter, TestTimeLaw, TrainingLaw, UnifiedLaw, law_named
from fitting.parabola_bias import BudgetBias, ExponentBias, ParabolaBias, parabola_bias
from fitting.power_law import MinimalLossLaw, PowerLaw
from fitting.predict import Prediction, predict
from fitting.result import HeldOut, LawFit, SweepFit
from fitting.simulate import (
    PUBLISHED_BUDGETS,
    PUBLISHED_RECURRENCES,
    PUBLISHED_TEST_RECURRENCES,
    PUBLISHED_TRUTH,
    Truth,
    draw_losses,
    published_cost_model,
    simulate_table,
)
from fitting.sweep_fit import fit_sweep
from fitting.table import (
    ACCOUNTINGS,
    COLUMNS,
    REQUIRED_COLUMNS,
    STATUSES,
    check_table,
    loss_column,
    read_table,
    test_time_losses,
)

__all__ = [
    "ACCOUNTINGS",
    "COLUMNS",
    "HUBER",
    "LAWS",
    "PUBLISHED_BUDGETS",
    "PUBLISHED_RECURRENCES",
    "PUBLISHED_TEST_RECURRENCES",
    "PUBLISHED_TRUTH",
    "REQUIRED_COLUMNS",
    "SQUARED",
    "STATUSES",
    "BudgetBias",
    "Cost",
    "CostModel",
    "DenseCost",
    "Disagreement",
    "Estimate",
    "ExponentBias",
    "HeldOut",
    "IndependentTokens",
    "IsoflopFit",
    "Law",
    "LawFit",
    "MinimalLossLaw",
    "Minimum",
    "Objective",
    "Optimum",
    "ParabolaBias",
    "Parameter",
    "PowerLaw",
    "Prediction",
    "SweepFit",
    "TestTimeLaw",
    "TrainingLaw",
    "Truth",
    "UnifiedLaw",
    "check_table",
    "draw_losses",
    "fit_isoflop",
    "fit_law",
    "fit_sweep",
    "law_named",
    "loss_column",
    "parabola_bias",
    "predict",
    "predict_from_minima",
    "published_cost_model",
    "read_table",
    "simulate_table",
    "test_time_losses",
]
