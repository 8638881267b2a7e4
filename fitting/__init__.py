"""Scaling laws from a run table, and their predictions, without torch, Ray or MLflow. See `fitting.figures` to draw."""

from isoloop.fitting.answer.answer import Answer, answer
from isoloop.fitting.answer.marginal import Growth, Marginal, growth, marginal
from isoloop.fitting.answer.optima import BudgetOptimum, LawOptima, exponent_shift, law_optima
from isoloop.fitting.answer.predict import Prediction, predict
from isoloop.fitting.answer.recommendation import ANSWER_MULTIPLE, BestModel, Recommendation, recommendation
from isoloop.fitting.answer.verdict import NOT_DETERMINED, Verdict, verdict
from isoloop.fitting.compare.comparison import SweepComparison, compare_sweeps
from isoloop.fitting.compare.difference import Difference
from isoloop.fitting.compare.side import ComparedSweep
from isoloop.fitting.cost import Cost, CostModel, DenseCost, MeasuredCost, cost_of
from isoloop.fitting.curve import CurveFit, fit_curve
from isoloop.fitting.estimation.bootstrap import BOOTSTRAP_KINDS, bootstrap
from isoloop.fitting.estimation.law_fit import LawFit, fit_law
from isoloop.fitting.estimation.objective import HUBER, SQUARED, Objective
from isoloop.fitting.estimation.point_estimate import PointEstimate, point_estimate
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
from isoloop.fitting.laws.iso_depth import IsoDepthLaw, IsoDepthSixParameterLaw, LoopTermLaw, TruncatedIsoDepthLaw
from isoloop.fitting.laws.looped import LoopedSixParameterLaw, LoopsLaw, TrainingLaw
from isoloop.fitting.laws.registry import LAWS, law_named
from isoloop.fitting.laws.test_time import (
    JointOverthinkingLaw,
    JointTestTimeLaw,
    OverthinkingLaw,
    TestTimeLaw,
    UnifiedLaw,
    UnifiedOverthinkingLaw,
)
from isoloop.fitting.quality.fit import QualityFit, QualityPrediction, fit_quality
from isoloop.fitting.quality.score import HeldOutScore, ScoreFit, ScorePrediction
from isoloop.fitting.result import HeldOut, SweepFit
from isoloop.fitting.selection.choose import Choice, MinimaPredictor, choose, choose_table
from isoloop.fitting.selection.holdout import CrossValidation, LawPredictor, cross_validate
from isoloop.fitting.simulate import (
    PUBLISHED_BUDGETS,
    PUBLISHED_RECURRENCES,
    PUBLISHED_TEST_RECURRENCES,
    PUBLISHED_TRUTH,
    SIZES_TRUTH,
    Truth,
    draw_losses,
    published_cost_model,
    simulate_sizes,
    simulate_table,
)
from isoloop.fitting.sizes.any_fit import AnyFit, fit_table, predict_any, read_fit
from isoloop.fitting.sizes.fit import fit_sizes
from isoloop.fitting.sizes.predict import predict_sizes
from isoloop.fitting.sizes.result import FrontierPoint, SizesFit
from isoloop.fitting.sweep_fit import fit_sweep
from isoloop.fitting.tables.contract import (
    ACCOUNTINGS,
    COLUMNS,
    DENSE_COLUMNS,
    LOOPED_COLUMNS,
    STATUSES,
    RunTable,
    check_runs,
    check_table,
    is_dense,
    loss_column,
)
from isoloop.fitting.tables.mapping import ColumnSource, parse_columns
from isoloop.fitting.tables.runs import law_data, read_runs, read_table, test_time_losses
