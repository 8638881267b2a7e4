"""Design of the next runs: those that leave the least uncertainty about a target for their cost."""

from isoloop.fitting.design.belief import Belief, Noise
from isoloop.fitting.design.design import Candidates, Design, candidate_budgets, candidate_values, design_runs
from isoloop.fitting.design.report import design_report
from isoloop.fitting.design.targets import Target
