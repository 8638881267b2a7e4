"""The search space of a tuning, and the run that a proposal comes to. Nothing is started here.

A proposal becomes a cell by the grid's own code, so a run that a sweep has trained isn't trained again.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal, cast

from isoloop.sweeps.config.schema import RunSettings, SweepConfig, setting_paths
from isoloop.sweeps.config.tuning import Dimension, Range
from isoloop.sweeps.plan.axes import (
    BUDGET,
    GRID_KEYS,
    LEARNING_RATE,
    MEAN_RECURRENCE,
    SIZE,
    TOKENS,
    SettingChanges,
    axis_combinations,
    grid_points,
    setting_at,
)
from isoloop.sweeps.plan.grid import Cell, CorpusLookup, plan_cells
from isoloop.sweeps.plan.rates import RATE_PATHS, rate_features

MUON_RATE, MUON_DECAY, BATCH = "optimizer.muon_learning_rate", "optimizer.muon_weight_decay", "batch"
_CELL_PATHS = (BUDGET, MEAN_RECURRENCE, SIZE)
RATE_FACTOR = 8.0  # default ranges go from a learning rate / RATE_FACTOR to the rate x RATE_FACTOR
EDGE = 0.05  # of a range's width
# Losses of runs that differ in these can't be compared, or they aren't settings to tune.
_NOT_TUNABLE = ("data", "evaluation", "resources", "seed", "model.context", "model.vocabulary")

TrialOutcome = Literal["running", "finished", "diverged", "pruned", "failed"]
TrialValues = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One proposal and how its run ended.

    Attributes:
        number: number in the study.
        values: settings by path.
        run_id: the proposal's run, None if there is none.
        outcome: how the run ended.
        loss: validation loss at T = µ_rec, nats per token; the last one of a pruned run. None if there is none.
        share: share of the steps at which `loss` was measured.
        reason: why the run diverged, was pruned or failed.
    """

    number: int
    values: TrialValues
    run_id: str | None
    outcome: TrialOutcome
    loss: float | None = None
    share: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The dimensions of a tuning, at one budget and one mean recurrence, or in the cells of `tune`.

    In the latter case budgets, mean recurrences and sizes are dimensions, too.

    Attributes:
        sweep: the sweep with one point instead of its grid; its runs are evaluated during training.
        size: `budget` or `tokens`, and the amount; of the first cell.
        mean_recurrence: µ_rec of the trials; of the first cell.
        grid_recurrences: all mean recurrences of the sweep's grid, ascending.
        fixed: settings that the sweep's axes set: the first entry of each.
        dimensions: range or choices by path.
        base: the run with the sweep's own settings.
        corpus_of: returns the prepared corpora.
        notes: choices that were left out, with the reasons.
    """

    sweep: SweepConfig
    size: tuple[str, float]
    mean_recurrence: float
    grid_recurrences: tuple[float, ...]
    fixed: SettingChanges
    dimensions: Mapping[str, Dimension]
    base: Cell
    corpus_of: CorpusLookup
    notes: tuple[str, ...] = ()

    @property
    def study_name(self) -> str:
        """The sweep's name, and a hash of everything on which losses and proposals depend."""
        dimensions = {
            path: dimension.model_dump() if isinstance(dimension, Range) else dimension
            for path, dimension in self.dimensions.items()
        }
        content = json.dumps([self.base.run_id, dimensions], sort_keys=True, default=str)
        return f"{self.sweep.name} {hashlib.sha256(content.encode()).hexdigest()[:12]}"

    @cached_property
    def grid_cells(self) -> tuple[dict[str, Any], ...]:
        """The cells of a tuning that finds a law, cheapest first: budget, mean recurrence and size as in a proposal."""
        if not self.sweep.tune.finds_law:
            return ()
        paths = [path for path in self.dimensions if path in _CELL_PATHS]
        choices = (sorted(cast(tuple[Any, ...], self.dimensions[path])) for path in paths)
        return tuple(dict(zip(paths, values, strict=True)) for values in product(*choices))

    @property
    def flops_per_trial(self) -> float:
        """The mean FLOPs of a trial."""
        if not self.grid_cells:
            return self.base.flops
        return sum(cell[BUDGET] for cell in self.grid_cells) / len(self.grid_cells)

    @cached_property
    def features(self) -> tuple[dict[str, float], ...]:
        """The quantities that the best rates may depend on, for each of `grid_cells`."""
        cells = [self.cell(values) for values in self.grid_cells]
        return tuple(
            rate_features(cell.spec.model, flops=cast(float, cell.budget), mean_recurrence=cell.mean_recurrence)
            for cell in cells
            if isinstance(cell, Cell)
        )

    @cached_property
    def settings(self) -> RunSettings:
        """The settings of a run that no proposal changes."""
        (point,) = grid_points(self.sweep)
        return point.settings

    @property
    def start(self) -> dict[str, Any]:
        """The sweep's own settings as a proposal, as far as they are in the space; none in several cells."""
        if self.sweep.tune.finds_law:
            return {}
        own = {path: current_value(self.settings, path) for path in self.dimensions}
        return {path: value for path, value in own.items() if _contains(self.dimensions[path], value)}

    @property
    def combinations(self) -> int | None:
        """The number of possible proposals, None if there is a range."""
        choices = [dimension for dimension in self.dimensions.values() if not isinstance(dimension, Range)]
        return math.prod(map(len, choices)) if len(choices) == len(self.dimensions) else None

    def cell(
        self, values: TrialValues, *, labels: Mapping[str, Any] | None = None, mean_recurrence: float | None = None
    ) -> Cell | str:
        """Return the run of `values`, or the reason if it can't be run.

        Args:
            values: settings by path.
            labels: more columns that describe the run.
            mean_recurrence: µ_rec if it isn't that of the trials.

        Raises:
            ValueError: a value breaks a rule.
        """
        size, amount = self.size
        place: dict[str, Any] = {MEAN_RECURRENCE: mean_recurrence or self.mean_recurrence}
        place |= {} if BUDGET in values else {size: amount}
        point = {**place, **self.fixed, **values}
        cells, left_out = plan_cells(self.sweep.model_copy(update={"points": (point,)}), self.corpus_of)
        if left_out:
            return left_out[0].reason
        (cell,) = cells
        plain = str | int | float | bool
        axes = {
            path: value if isinstance(value, plain) else str(value)
            for path, value in values.items()
            if path not in GRID_KEYS
        }
        return replace(cell, axes={**(labels or {}), **axes})

    def describe(self) -> list[str]:
        """Return a line for each dimension and for each choice that was left out."""
        lines = []
        for path, dimension in self.dimensions.items():
            if isinstance(dimension, Range):
                spacing = ", log-uniform" if dimension.log else ""
                spacing += f", in steps of {dimension.step:g}" if dimension.step is not None else ""
                lines.append(f"{path} from {dimension.low:g} to {dimension.high:g}{spacing}")
            else:
                lines.append(f"{path} from {', '.join(map(str, dimension))}")
        return [*lines, *(f"left out: {note}" for note in self.notes)]

    def holds(self, path: str, value: Any) -> bool:
        """Return whether a value can be proposed."""
        return _contains(self.dimensions[path], value)

    def paths_at_edge(self, values: TrialValues) -> list[str]:
        """Return the paths whose values lie at an end of their range."""
        ranges = {path: dimension for path, dimension in self.dimensions.items() if isinstance(dimension, Range)}
        return [
            path
            for path, value in values.items()
            if path in ranges and not EDGE < ranges[path].position(value) < 1 - EDGE
        ]


def reduce_to_one_point(sweep: SweepConfig) -> tuple[SweepConfig, tuple[float, ...]]:
    """Return the sweep with one point instead of its grid, and the mean recurrences of the grid, ascending.

    The point has the smallest budget, the mean recurrence to tune at, and the first entry of each axis.

    Raises:
        ValueError: the sweep draws its losses from a law.
    """
    if sweep.simulation is not None:
        raise ValueError(
            f"a sweep must train to be tuned, but '{sweep.name}' draws its losses from a law, which has no learning "
            "rate; name another sweep"
        )
    tune, points = sweep.tune, grid_points(sweep)
    means = tuple(sorted({point.mean_recurrence for point in points}))
    smallest = min(points, key=lambda point: point.target)
    place: dict[str, Any] = {TOKENS if smallest.budget is None else BUDGET: smallest.target}
    if tune.finds_law:
        if tune.budgets is None and smallest.budget is None:
            raise ValueError(
                "a law of the learning rates needs budgets in FLOPs, but the sweep has tokens; set tune.budgets"
            )
        place = {BUDGET: min(tune.budgets or (place[BUDGET],))}
    tuned_at = tune.mean_recurrence or min(tune.mean_recurrences or (means[len(means) // 2],))
    point = {**place, MEAN_RECURRENCE: tuned_at, **next(axis_combinations(sweep.axes))[0]}
    point |= {SIZE: tune.sizes[0]} if tune.sizes else {}
    resources = sweep.resources.model_copy(update={"validations": tune.validations})
    no_product = dict.fromkeys(["budgets", "tokens", "mean_recurrences", "around", "tuned"])
    update: dict[str, Any] = {**no_product, "axes": {}, "exclude": (), "points": (point,), "resources": resources}
    update["trunk"] = False
    return sweep.model_copy(update=update), means


def make_search_space(
    sweep: SweepConfig, grid_recurrences: tuple[float, ...], base: Cell, corpus_of: CorpusLookup
) -> SearchSpace:
    """Return the search space of `isoloop tune`.

    Args:
        sweep: a sweep with one point, from `reduce_to_one_point`.
        grid_recurrences: the mean recurrences of the grid.
        base: the run of the one point.
        corpus_of: returns the prepared corpora.

    Raises:
        ValueError: a path can't be tuned, an end of a range can't be run, or no choice can.
    """
    (point,) = sweep.points
    fixed = {path: value for path, value in point.items() if path not in GRID_KEYS}
    size = next((key, point[key]) for key in (BUDGET, TOKENS) if key in point)
    space = SearchSpace(
        sweep=sweep,
        size=size,
        mean_recurrence=base.mean_recurrence,
        grid_recurrences=grid_recurrences,
        fixed=fixed,
        dimensions={},
        base=base,
        corpus_of=corpus_of,
    )
    settings = space.settings

    def reason_against(path: str, value: Any) -> str | None:
        cell = space.cell({path: value})
        return cell if isinstance(cell, str) else None

    # Check that both ends of each range can be run, and keep the choices that can.
    dimensions: dict[str, Dimension] = {}
    notes: list[str] = []
    if sweep.tune.finds_law:
        return _with_cells(replace(space, dimensions=_rate_dimensions(settings, fixed, sweep.tune.space)))
    requested = _default_dimensions(settings, fixed) if sweep.tune.space is None else sweep.tune.space
    for path, dimension in requested.items():
        _check_path(path, fixed)
        if isinstance(dimension, Range):
            for end in (dimension.low, dimension.high):
                reason = reason_against(path, _as_setting(settings, path, end))
                if reason is not None:
                    raise ValueError(
                        f"both ends of a range must give a run, but {path} = {end:g} is {reason}; narrow the range"
                    )
            dimensions[path] = dimension
            continue
        reasons = {index: reason_against(path, choice) for index, choice in enumerate(dimension)}
        notes += [f"{path} = {dimension[index]} can't be run: {reason}" for index, reason in reasons.items() if reason]
        dimensions[path] = tuple(dimension[index] for index, reason in reasons.items() if reason is None)
        if not dimensions[path]:
            raise ValueError(f"a list of choices must have one that can be run, but {path} has none; {notes[-1]}")
    return replace(space, dimensions=dimensions, notes=tuple(notes))


def current_value(settings: RunSettings, path: str) -> Any:
    """Return the sweep's own value of a setting; Muon's learning rate is AdamW's unless it is set."""
    if path == "model.size":
        return None
    return settings.optimizer.matrix_learning_rate if path == MUON_RATE else setting_at(settings, path)


def round_to_setting(settings: RunSettings, path: str, dimension: Range, value: float) -> float | int:
    """Return a proposed value as the run has it: a whole number if the setting is one, else with three digits."""
    if dimension.step is not None:
        return _as_setting(settings, path, float(f"{value:.10g}"))
    return _as_setting(settings, path, min(max(float(f"{value:.3g}"), dimension.low), dimension.high))


def is_whole(settings: RunSettings, path: str) -> bool:
    """Return whether a setting is a whole number."""
    value = current_value(settings, path)
    return isinstance(value, int) and not isinstance(value, bool)


def describe_values(values: TrialValues) -> str:
    """Return settings in a few words."""
    texts = {path: f"{value:g}" if path == BUDGET else value for path, value in values.items()}
    return ", ".join(f"{path.rpartition('.')[2]} = {text}" for path, text in texts.items())


def finished_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that finished, best first."""
    finished = [trial for trial in trials if trial.outcome == "finished" and trial.loss is not None]
    return sorted(finished, key=lambda trial: (trial.loss, trial.number))


def _as_setting(settings: RunSettings, path: str, value: float) -> float | int:
    return round(value) if is_whole(settings, path) else float(value)


def _with_cells(space: SearchSpace) -> SearchSpace:
    """Return a space of learning rates with the cells to tune them in as dimensions.

    Raises:
        ValueError: a cell can't be run.
    """
    tune = space.sweep.tune
    cells: dict[str, Dimension] = {
        BUDGET: tune.budgets or (space.size[1],),
        MEAN_RECURRENCE: tune.mean_recurrences or (space.mean_recurrence,),
    }
    cells |= {SIZE: tune.sizes} if tune.sizes else {}
    space = replace(space, dimensions={**cells, **space.dimensions})
    for values in space.grid_cells:
        cell = space.cell(values)
        if isinstance(cell, str):
            raise ValueError(
                f"every combination of tune's cells must give a run, but {describe_values(values)} is {cell}"
            )
    return space


def _rate_dimensions(
    settings: RunSettings, fixed: SettingChanges, space: Mapping[str, Dimension] | None
) -> dict[str, Dimension]:
    """Return the ranges of the learning rates, by default AdamW's, and Muon's if the sweep sets it apart.

    Raises:
        ValueError: something else is to be tuned.
    """
    default = {path: value for path, value in _default_dimensions(settings, fixed).items() if path in RATE_PATHS}
    if settings.optimizer.muon_learning_rate is None:
        default.pop(MUON_RATE, None)
    dimensions = default if space is None else dict(space)
    for path, dimension in dimensions.items():
        _check_path(path, fixed)
        if path not in RATE_PATHS or not isinstance(dimension, Range) or not dimension.log:
            raise ValueError(
                "a tuning in several cells must have log-uniform ranges of learning rates only, but tune.space has "
                f"{path}; tune it in one cell first (without budgets, mean_recurrences and sizes), and set what is best"
            )
    if dimensions and RATE_PATHS[0] not in dimensions:
        raise ValueError(
            f"a tuning in several cells must tune {RATE_PATHS[0]}, but tune.space has {', '.join(dimensions)} alone, "
            "whose rates a sweep could not take; add it"
        )
    if not dimensions:
        raise ValueError("a tuning in several cells must tune a learning rate, but all are axes; drop one of these")
    return dimensions


def _default_dimensions(settings: RunSettings, fixed: SettingChanges) -> dict[str, Dimension]:
    """Return both learning rates, Muon's weight decay and the batch, unless an axis of the sweep sets them."""
    dimensions: dict[str, Dimension] = {}
    for path in (LEARNING_RATE, MUON_RATE):
        rate = current_value(settings, path)
        low, high = (float(f"{bound:.3g}") for bound in (rate / RATE_FACTOR, rate * RATE_FACTOR))
        dimensions[path] = Range(low=low, high=high, log=True)
    decay, batch = settings.optimizer.muon_weight_decay or 0.1, settings.batch
    dimensions[MUON_DECAY] = tuple(sorted({0.0, decay / 2, decay, decay * 2}))
    dimensions[BATCH] = tuple(sorted({max(batch // 2, settings.resources.processes), batch, batch * 2}))
    return {path: dimension for path, dimension in dimensions.items() if path not in fixed}


def _check_path(path: str, fixed: SettingChanges) -> None:
    if path not in setting_paths():
        raise ValueError(
            f"tune.space must name settings, but got '{path}'; name them as in the configuration, for example "
            f"{LEARNING_RATE}"
        )
    if any(path == name or path.startswith(f"{name}.") for name in _NOT_TUNABLE):
        raise ValueError(
            f"a tuned setting must leave losses comparable, but tune.space has {path}; make it an axis of the sweep"
        )
    if path in fixed:
        raise ValueError(f"a setting must be tuned or an axis of the sweep, but {path} is both; keep one")


def _contains(dimension: Dimension, value: Any) -> bool:
    if not isinstance(dimension, Range):
        return value in dimension
    return isinstance(value, int | float) and dimension.contains(value)
