"""Run table -> scaling laws -> predictions. Imports no torch, Ray or MLflow; drawing is `isoloop.fitting.figures`."""

from isoloop.fitting.compare.comparison import SweepComparison, compare_sweeps
from isoloop.fitting.compare.difference import Difference
from isoloop.fitting.compare.side import ComparedSweep
from isoloop.fitting.cost import AnyCost, CostModel, DenseCost
from isoloop.fitting.estimation.bootstrap import BOOTSTRAP_KINDS, bootstrap
from isoloop.fitting.estimation.estimate import Estimate, fit_law
from isoloop.fitting.estimation.law_fit import LawFit, estimate_law
from isoloop.fitting.estimation.objective import HUBER, SQUARED, Objective
from isoloop.fitting.estimation.profile import Profile, profile
from isoloop.fitting.isoflop.bias import BudgetBias, ExponentBias, ParabolaBias, parabola_bias
from isoloop.fitting.isoflop.minima import (
    Disagreement,
    IndependentTokens,
    IsoflopFit,
    Minimum,
    fit_isoflop,
    predict_from_minima,
)
from isoloop.fitting.isoflop.power_law import MinimalLossLaw, PowerLaw
from isoloop.fitting.laws.base import Law, Optimum, Parameter
from isoloop.fitting.laws.dense import ChinchillaLaw, SixParameterLaw
from isoloop.fitting.laws.looped import IsoDepthLaw, JointTestTimeLaw, TestTimeLaw, TrainingLaw, UnifiedLaw
from isoloop.fitting.laws.registry import LAWS, law_named
from isoloop.fitting.optima import BudgetOptimum, LawOptima, exponent_shift, law_optima
from isoloop.fitting.predict import Prediction, predict
from isoloop.fitting.result import HeldOut, SweepFit
from isoloop.fitting.selection.choose import Choice, MinimaMethod, choose, choose_table
from isoloop.fitting.selection.holdout import Comparison, LawMethod, compare
from isoloop.fitting.simulate import (
    PUBLISHED_BUDGETS,
    PUBLISHED_RECURRENCES,
    PUBLISHED_TEST_RECURRENCES,
    PUBLISHED_TRUTH,
    Truth,
    draw_losses,
    published_cost_model,
    simulate_table,
)
from isoloop.fitting.sweep_fit import fit_sweep
from isoloop.fitting.tables.dense import check_points, is_point_table, point_data, read_points
from isoloop.fitting.tables.runs import (
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
