"""Run table -> scaling laws -> predictions. Imports no torch, Ray or MLflow; drawing is `fitting.figures`."""

from fitting.catalogue import LAWS, law_named
from fitting.cost import CostModel
from fitting.dense_laws import ChinchillaLaw, SixParameterLaw
from fitting.estimate import Estimate, fit_law
from fitting.isoflop import IsoflopFit, Minimum, PowerLaw, fit_isoflop
from fitting.law import Law, Optimum, Parameter
from fitting.laws import IsoDepthLaw, JointTestTimeLaw, TestTimeLaw, TrainingLaw, UnifiedLaw
from fitting.objective import HUBER, SQUARED, Objective
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
    "ChinchillaLaw",
    "CostModel",
    "Estimate",
    "HeldOut",
    "IsoDepthLaw",
    "IsoflopFit",
    "JointTestTimeLaw",
    "Law",
    "LawFit",
    "Minimum",
    "Objective",
    "Optimum",
    "Parameter",
    "PowerLaw",
    "Prediction",
    "SixParameterLaw",
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
    "predict",
    "published_cost_model",
    "read_table",
    "simulate_table",
    "test_time_losses",
]
