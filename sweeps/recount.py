"""The same runs with their compute counted in another way. Nothing that was measured changes, only what it cost."""

import math
from typing import TYPE_CHECKING, Any

from sweeps.axes import points
from sweeps.config import RunSettings, SweepConfig
from sweeps.runs import Runs
from trainer.accounting import Accounting, count_parameters, expected_loops, loop_cost
from trainer.config import DepthConfig, RecurrenceConfig

if TYPE_CHECKING:
    import pandas as pd

_SAME = 1e-9
_DEPTH = tuple(DepthConfig.model_fields)


def recount(runs: Runs, accounting: Accounting) -> "pd.DataFrame":
    """The checked run table of `runs` under an accounting: compute, cost per token and loops that count.

    Runs of equal budgets have unequal ones when counted otherwise, so the column `budget` is then gone, and there are
    no isoFLOP curves: a law must be fitted. Loops are the nominal ones under `parcae-release`, and under `exact` those
    that the sampler is expected to draw.

    Raises:
        ValueError: nothing says what the models are, or the table is of other models than its configuration.
    """
    from fitting import check_table

    table = runs.table
    if table["accounting"].iloc[0] == accounting:
        return table
    if runs.sweep is None:
        raise ValueError(
            f"recounting compute needs the models' shape, but the run table of '{runs.name}' only has what a token "
            "cost; name the sweep that it is of, or put its config.yaml beside the table"
        )
    settings = _settings_of(table, runs.sweep)
    cost = loop_cost(settings.model, accounting)
    loops = [expected_loops(_recurrence(settings, mean), accounting) for mean in table["mean_recurrence"]]
    forward, backward = ([each[way] for each in loops] for way in (0, 1))
    counted = table.assign(
        accounting=accounting,
        flops=table["tokens"] * [cost.flops_per_token(*each) for each in loops],
        forward_loops=forward,
        backward_loops=backward,
        flops_per_token_fixed=cost.fixed,
        flops_per_token_forward_loop=cost.per_forward_loop,
        flops_per_token_backward_loop=cost.per_backward_loop,
    )
    return check_table(counted.drop(columns="budget", errors="ignore"))


def _settings_of(table: "pd.DataFrame", sweep: SweepConfig) -> RunSettings:
    """The settings of the sweep whose models cost what the table says."""
    row: dict[str, Any] = table.iloc[0].to_dict()
    for point in points(sweep):
        told = all(_missing(row.get(name)) or row[name] == value for name, value in point.axes.items())
        if told and point.mean == row["mean_recurrence"] and _agrees(row, point.settings):
            return point.settings
    raise ValueError(
        f"a table must be of the models of its configuration, but none of '{sweep.name}' costs what its first run "
        f"({row['run_id']}) did; use the configuration that was run"
    )


def _agrees(row: dict[str, Any], settings: RunSettings) -> bool:
    cost, parameters = loop_cost(settings.model, row["accounting"]), count_parameters(settings.model)
    said = {
        "flops_per_token_fixed": cost.fixed,
        "flops_per_token_forward_loop": cost.per_forward_loop,
        "flops_per_token_backward_loop": cost.per_backward_loop,
        "backprop_depth": _recurrence(settings, row["mean_recurrence"]).gradient_loops,
        "effective_params_fixed": parameters.effective_fixed,
        "effective_params_per_loop": parameters.effective_per_loop,
    }
    return all(math.isclose(row[name], value, rel_tol=_SAME) for name, value in said.items())


def _recurrence(settings: RunSettings, mean: float) -> RecurrenceConfig:
    return RecurrenceConfig(mean=int(mean), **{name: getattr(settings.depth, name) for name in _DEPTH})


def _missing(value: Any) -> bool:
    return value is None or value != value
