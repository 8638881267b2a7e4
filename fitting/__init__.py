"""Run table -> scaling laws -> predictions. Imports no torch, Ray or MLflow; drawing is `fitting.figures`."""

from fitting.catalogue import LAWS, law_named
from fitting.choice import Choice, choose, choose_table
from fitting.compared_sweep import ComparedSweep
from fitting.cost import AnyCost, CostModel, DenseCost
from fitting.dense_laws import ChinchillaLaw, SixParameterLaw
from fitting.difference import Difference
from fitting.estimate import Estimate, fit_law
from fitting.holdout import Comparison, LawMethod, compare
from fitting.isoflop import Disagreement, IndependentTokens, IsoflopFit, Minimum, fit_isoflop, predict_from_minima
from fitting.law import Law, Optimum, Parameter
from fitting.law_fit import LawFit, estimate_law
from fitting.laws import IsoDepthLaw, JointTestTimeLaw, TestTimeLaw, TrainingLaw, UnifiedLaw
from fitting.minima_method import MinimaMethod
from fitting.objective import HUBER, SQUARED, Objective
from fitting.optima import BudgetOptimum, LawOptima, exponent_shift, law_optima
from fitting.parabola_bias import BudgetBias, ExponentBias, ParabolaBias, parabola_bias
from fitting.points import check_points, is_point_table, point_data, read_points
from fitting.power_law import MinimalLossLaw, PowerLaw
from fitting.predict import Prediction, predict
from fitting.profile import Profile, profile
from fitting.result import HeldOut, SweepFit
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
from fitting.sweep_comparison import SweepComparison, compare_sweeps
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
from fitting.uncertainty import BOOTSTRAP_KINDS, bootstrap

__all__ = [
    "ACCOUNTINGS",
    "BOOTSTRAP_KINDS",
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
    "AnyCost",
    "BudgetBias",
    "BudgetOptimum",
    "ChinchillaLaw",
    "Choice",
    "ComparedSweep",
    "Comparison",
    "CostModel",
    "DenseCost",
    "Difference",
    "Disagreement",
    "Estimate",
    "ExponentBias",
    "HeldOut",
    "IndependentTokens",
    "IsoDepthLaw",
    "IsoflopFit",
    "JointTestTimeLaw",
    "Law",
    "LawFit",
    "LawMethod",
    "LawOptima",
    "MinimaMethod",
    "MinimalLossLaw",
    "Minimum",
    "Objective",
    "Optimum",
    "ParabolaBias",
    "Parameter",
    "PowerLaw",
    "Prediction",
    "Profile",
    "SixParameterLaw",
    "SweepComparison",
    "SweepFit",
    "TestTimeLaw",
    "TrainingLaw",
    "Truth",
    "UnifiedLaw",
    "bootstrap",
    "check_points",
    "check_table",
    "choose",
    "choose_table",
    "compare",
    "compare_sweeps",
    "draw_losses",
    "estimate_law",
    "exponent_shift",
    "fit_isoflop",
    "fit_law",
    "fit_sweep",
    "is_point_table",
    "law_named",
    "law_optima",
    "loss_column",
    "parabola_bias",
    "point_data",
    "predict",
    "predict_from_minima",
    "profile",
    "published_cost_model",
    "read_points",
    "read_table",
    "simulate_table",
    "test_time_losses",
]
