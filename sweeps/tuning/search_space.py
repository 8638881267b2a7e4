"""What a tuning searches: its dimensions, and the run that a proposal comes to. Pure: nothing is started.

A proposal becomes a cell by the grid's own code, so a run that a sweep has trained is not trained again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from isoloop.sweeps.config.schema import RunSettings, SweepConfig, setting_paths
from isoloop.sweeps.config.tuning import Dimension, Range
from isoloop.sweeps.plan.axes import (
    BUDGET,
    ENTRY_NAME,
    MEAN_RECURRENCE,
    TOKENS,
    Point,
    SettingChanges,
    grid_points,
    setting_at,
)
from isoloop.sweeps.plan.grid import Cell, CorpusLookup, plan_cells

RATE, MUON_RATE, DECAY = "optimizer.learning_rate", "optimizer.muon_learning_rate", "optimizer.muon_weight_decay"
BATCH = "batch"
WIDTH = 8.0  # default ranges reach from a learning rate / WIDTH to the rate x WIDTH
EDGE = 0.05
# Losses of runs that differ in these can't be compared, or differ by nothing that could be tuned.
_NOT_TUNED = ("data", "evaluation", "resources", "seed", "model.context", "model.vocabulary")

Outcome = Literal["running", "finished", "diverged", "pruned", "failed"]
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One proposal and what became of it.

    Attributes:
        number: the study's own.
        values: settings by path.
        run_id: the run that it came to, None where there can't be one.
        outcome: how the run ended.
        loss: validation loss at T = µ_rec, nats per token; of a pruned run the last one. None if it has none.
        share: share of the steps that `loss` was measured at.
        reason: why it diverged, was pruned or failed.
    """

    number: int
    values: Values
    run_id: str | None
    outcome: Outcome
    loss: float | None = None
    share: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, at one budget and one mean recurrence.

    Attributes:
        sweep: the sweep without its grid; its runs evaluate themselves on the way.
        asked: `budget` or `tokens`, and how much.
        mean: µ_rec of the trials.
        means: all mean recurrences of the sweep's grid, ascending.
        fixed: settings that the sweep's axes set: the first entry of each.
        space: the dimensions by path.
        base: the run with the sweep's own settings.
        corpus_of: the prepared corpora.
        notes: what was left out of the space, and why.
    """

    sweep: SweepConfig
    asked: tuple[str, float]
    mean: int
    means: tuple[int, ...]
    fixed: SettingChanges
    space: Mapping[str, Dimension]
    base: Cell
    corpus_of: CorpusLookup
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the study: the sweep's, and a hash of what decides whether losses can be compared and proposals made."""
        space = {
            path: dimension.model_dump() if isinstance(dimension, Range) else dimension
            for path, dimension in self.space.items()
        }
        content = json.dumps([self.base.run_id, space], sort_keys=True, default=str)
        return f"{self.sweep.name} {hashlib.sha256(content.encode()).hexdigest()[:12]}"

    @property
    def settings(self) -> RunSettings:
        """What a run has that no proposal changes."""
        (point,) = grid_points(self.sweep)
        return point.settings

    @property
    def start(self) -> dict[str, Any]:
        """The sweep's own settings as a proposal, as far as the space holds them."""
        own = {path: own_value(self.settings, path) for path in self.space}
        return {path: value for path, value in own.items() if _holds(self.space[path], value)}

    @property
    def combinations(self) -> int | None:
        """How many proposals there are, None where they can't be counted."""
        count = 1
        for dimension in self.space.values():
            if isinstance(dimension, Range):
                return None
            count *= len(dimension)
        return count

    def cell(self, values: Values, *, labels: Mapping[str, Any] | None = None, mean: int | None = None) -> Cell | str:
        """The run of `values`, or why there can't be one; `labels` say more of it.

        Raises:
            ValueError: a value breaks a rule.
        """
        mean = self.mean if mean is None else mean
        return _cell(self.sweep, self.asked, mean, self.fixed, values, self.corpus_of, labels)

    def described(self) -> list[str]:
        """The dimensions, and what was left out of them, a line each."""
        lines = []
        for path, dimension in self.space.items():
            if isinstance(dimension, Range):
                how = ", even in the logarithm" if dimension.log else ""
                how += f", {dimension.step:g} apart" if dimension.step is not None else ""
                lines.append(f"{path} from {dimension.low:g} to {dimension.high:g}{how}")
            else:
                lines.append(f"{path} of {', '.join(map(str, dimension))}")
        return [*lines, *(f"not tried: {note}" for note in self.notes)]

    def at_edge(self, values: Values) -> list[str]:
        """Paths at which `values` lie at an end of their range."""
        found = []
        for path, value in values.items():
            dimension = self.space.get(path)
            if isinstance(dimension, Range) and not EDGE < dimension.position(value) < 1 - EDGE:
                found.append(path)
        return found


def grid_base(sweep: SweepConfig) -> tuple[SweepConfig, tuple[int, ...]]:
    """The sweep with one point instead of its grid, at its smallest budget, and all the mean recurrences of the grid.

    Axes have their first entry.

    Raises:
        ValueError: the sweep draws its losses from a law, or the mean recurrence to tune at isn't one of its own.
    """
    if sweep.simulation is not None:
        raise ValueError(
            f"a sweep must train to be tuned, but '{sweep.name}' draws its losses from a law, which knows no learning "
            "rate; name another sweep"
        )
    asked = grid_points(sweep)
    means = tuple(sorted({point.mean_recurrence for point in asked}))
    mean = sweep.tune.mean_recurrence or means[len(means) // 2]
    smallest = min(asked, key=_size)
    kind, amount = (TOKENS, smallest.tokens) if smallest.budget is None else (BUDGET, smallest.budget)
    point = {kind: amount, MEAN_RECURRENCE: mean, **_first_entries(sweep)}
    resources = sweep.resources.model_copy(update={"validations": sweep.tune.validations})
    grid: dict[str, Any] = {
        "budgets": None,
        "tokens": None,
        "mean_recurrences": None,
        "around": None,
        "axes": {},
        "exclude": (),
    }
    return sweep.model_copy(update={**grid, "points": (point,), "resources": resources}), means


def search_for(sweep: SweepConfig, means: tuple[int, ...], base: Cell, corpus_of: CorpusLookup) -> Search:
    """What `isoloop tune` searches.

    Args:
        sweep: of `grid_base`, with the one point that `base` is the run of.
        means: the grid's mean recurrences.
        base: the run with the sweep's own settings.
        corpus_of: the prepared corpora.

    Raises:
        ValueError: a path can't be tuned, an end of a range can't be run, or no choice is left.
    """
    (point,) = sweep.points
    fixed = {path: value for path, value in point.items() if path not in (BUDGET, TOKENS, MEAN_RECURRENCE)}
    asked = next((kind, point[kind]) for kind in (BUDGET, TOKENS) if kind in point)
    (planned,) = grid_points(sweep)
    wanted = _default_space(planned.settings, fixed) if sweep.tune.space is None else sweep.tune.space
    space: dict[str, Dimension] = {}
    notes: list[str] = []
    for path, dimension in wanted.items():
        _check_path(path, fixed)

        def why_not(value: Any, path: str = path) -> str | None:
            found = _cell(sweep, asked, base.mean_recurrence, fixed, {path: value}, corpus_of, None)
            return found if isinstance(found, str) else None

        if isinstance(dimension, Range):
            for end in (dimension.low, dimension.high):
                reason = why_not(_as_setting(planned.settings, path, end))
                if reason is not None:
                    raise ValueError(f"both ends of a range must be runs, but {path} = {end:g} is {reason}")
            space[path] = dimension
            continue
        reasons = [(choice, why_not(choice)) for choice in dimension]
        notes += [f"{path} = {choice} can't be: {reason}" for choice, reason in reasons if reason is not None]
        left = tuple(choice for choice, reason in reasons if reason is None)
        if not left:
            raise ValueError(f"a list of choices must have one that is a run, but of {path} none is; {notes[-1]}")
        space[path] = left
    return Search(
        sweep=sweep,
        asked=asked,
        mean=base.mean_recurrence,
        means=means,
        fixed=fixed,
        space=space,
        base=base,
        corpus_of=corpus_of,
        notes=tuple(notes),
    )


def own_value(settings: RunSettings, path: str) -> Any:
    """The sweep's own value of a setting; Muon's learning rate is AdamW's unless set apart."""
    if path == "model.size":
        return None
    return settings.optimizer.matrix_learning_rate if path == MUON_RATE else setting_at(settings, path)


def rounded(settings: RunSettings, path: str, dimension: Range, value: float) -> float | int:
    """A proposed value as the run has it: a whole number where the setting is one, else three digits."""
    if dimension.step is not None:
        return _as_setting(settings, path, float(f"{value:.10g}"))
    return _as_setting(settings, path, min(max(float(f"{value:.3g}"), dimension.low), dimension.high))


def is_whole(settings: RunSettings, path: str) -> bool:
    """Whether the setting is a whole number."""
    value = own_value(settings, path)
    return isinstance(value, int) and not isinstance(value, bool)


def _as_setting(settings: RunSettings, path: str, value: float) -> float | int:
    return round(value) if is_whole(settings, path) else float(value)


def _size(point: Point) -> float:
    size = point.tokens if point.budget is None else point.budget
    assert size is not None, "a point has a budget or tokens"
    return size


def _first_entries(sweep: SweepConfig) -> SettingChanges:
    """The settings of the first entry of each axis."""
    changes: SettingChanges = {}
    for name, entries in sweep.axes.items():
        own = {name: entries[0]} if name in setting_paths() else entries[0]
        changes |= {path: value for path, value in own.items() if path != ENTRY_NAME or name in setting_paths()}
    return changes


def _default_space(settings: RunSettings, fixed: SettingChanges) -> dict[str, Dimension]:
    """Both learning rates, Muon's weight decay and the batch, unless an axis of the sweep sets them."""
    space: dict[str, Dimension] = {}
    for path in (RATE, MUON_RATE):
        rate = own_value(settings, path)
        space[path] = Range(low=float(f"{rate / WIDTH:.3g}"), high=float(f"{rate * WIDTH:.3g}"), log=True)
    decay, batch = settings.optimizer.muon_weight_decay or 0.1, settings.batch
    space[DECAY] = tuple(sorted({0.0, decay / 2, decay, decay * 2}))
    batches = {max(batch // 2, settings.resources.processes), batch, batch * 2}
    space[BATCH] = tuple(sorted(batches))
    return {path: dimension for path, dimension in space.items() if path not in fixed}


def _check_path(path: str, fixed: SettingChanges) -> None:
    if path not in setting_paths():
        raise ValueError(
            f"tune.space must name settings, but got '{path}'; name them as in the configuration, for example {RATE}"
        )
    if any(path == name or path.startswith(f"{name}.") for name in _NOT_TUNED):
        raise ValueError(
            f"a tuned setting must leave losses comparable, but tune.space has {path}; make it an axis of the sweep"
        )
    if path in fixed:
        raise ValueError(f"a setting is tuned or an axis of the sweep, but {path} is both; keep one")


def _holds(dimension: Dimension, value: Any) -> bool:
    if not isinstance(dimension, Range):
        return value in dimension
    return isinstance(value, int | float) and dimension.contains(value)


def _cell(
    sweep: SweepConfig,
    asked: tuple[str, float],
    mean: int,
    fixed: SettingChanges,
    values: Values,
    corpus_of: CorpusLookup,
    labels: Mapping[str, Any] | None,
) -> Cell | str:
    kind, amount = asked
    point = {kind: amount, MEAN_RECURRENCE: mean, **fixed, **values}
    cells, left_out = plan_cells(sweep.model_copy(update={"points": (point,)}), corpus_of)
    if left_out:
        return left_out[0].reason
    (cell,) = cells
    plain = str | int | float | bool
    shown = {path: value if isinstance(value, plain) else str(value) for path, value in values.items()}
    return replace(cell, axes={**(labels or {}), **shown})


def tuned_names(values: Values) -> str:
    """Settings in a few words."""
    return ", ".join(f"{path.rpartition('.')[2]} = {value}" for path, value in values.items())


def ended(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that finished, best first."""
    found = [trial for trial in trials if trial.outcome == "finished" and trial.loss is not None]
    return sorted(found, key=lambda trial: (trial.loss, trial.number))
