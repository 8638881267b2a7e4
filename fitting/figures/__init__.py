"""Figures of fits, drawn with matplotlib: by name through `FIGURES`, or one function each on axes of your own."""

from isoloop.fitting.figures.compare import draw_comparison, save_comparison
from isoloop.fitting.figures.isoflop import draw_exponents, draw_isoflop_curves, draw_optima, draw_power_law
from isoloop.fitting.figures.quality import draw_quality_against_flops, draw_quality_against_loss
from isoloop.fitting.figures.registry import (
    COLUMN_WIDTH,
    FIGURES,
    QUALITY_FIGURES,
    SIZES_FIGURES,
    FigureFiles,
    draw_all,
    draw_one,
    draw_power_laws,
    figures_of,
    why_unavailable,
)
from isoloop.fitting.figures.rollouts import draw_rollouts
from isoloop.fitting.figures.sizes import draw_frontier, draw_sizes_surface
from isoloop.fitting.figures.style import STYLE, save_figure, save_figure_as
from isoloop.fitting.figures.test_time import draw_test_time, draw_test_time_collapse
from isoloop.fitting.figures.training import (
    draw_held_out_errors,
    draw_loss_contours,
    draw_predicted_against_measured,
)
