"""Expansion of a sweep's grid: the product of its axes and its single points, without what it excludes.

A grid may be centred on an optimum: the best mean recurrence of each budget, as a stored fit predicts it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from isoloop.sweeps.config.schema import RunSettings, SweepConfig, setting_paths
from isoloop.sweeps.messages import broken_rules, did_you_mean
from isoloop.sweeps.paths import Folders
from isoloop.trainer.accounting import Accounting
from isoloop.trainer.config import SHAPE_FIELDS, SIZES, Config, ModelConfig

if TYPE_CHECKING:
    from isoloop.fitting import SweepFit

BUDGET, TOKENS, MEAN_RECURRENCE = GRID_KEYS = ("budget", "tokens", "mean_recurrence")
ENTRY_NAME = "name"
SIZE = "model.size"
SEED = "seed"
LEARNING_RATE = "optimizer.learning_rate"
UNIQUE_TOKENS = "data.unique_tokens"
RESOURCES_PREFIX = "resources."
# Axes along which runs may differ that one law is fitted to, besides budget, tokens and mean recurrence.
JOINT_AXES = frozenset({SEED})

# Columns that every run table has.
RESERVED = frozenset([
    "run_id", "status", "simulated", "accounting", "seed", "mean_recurrence", "backprop_depth", "tokens", "flops",
    "budget", "loss", "flops_per_token_fixed", "flops_per_token_forward_loop", "flops_per_token_backward_loop",
    "forward_loops", "backward_loops", "effective_params_fixed", "effective_params_per_loop", "tokenizer",
    "loss_unit", "params", "params_once", "params_recurrent", "unique_tokens", "epochs", "experiment", "outlier",
    "inference_weights", "inference_cache_per_token_fixed", "inference_cache_per_token_loop",
    "inference_activations_per_token", "best_loss", "best_step", "steps", "bits_per_byte", "spectral_radius", "seconds",
    "group", "trial", "rate_extrapolated", "rate_nats", "skipped_steps",
    "dropped_tokens", "predicted_tokens", "exact_answers", "perplexity", "document_bits_per_byte", "flops_trained",
])  # fmt: skip
_AXIS_NAME = re.compile(r"[A-Za-z][\w-]*")

SettingChanges = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the grid: a budget or a token count, a mean recurrence, and the settings of one run.

    Attributes:
        budget: FLOPs; None if `tokens` are given.
        tokens: training tokens; None if a budget is given.
        mean_recurrence: µ_rec.
        settings: the settings of the run.
        axes: the value, or the name, of each axis at this point.
    """

    budget: float | None
    tokens: int | None
    mean_recurrence: float
    settings: RunSettings
    axes: dict[str, Any]

    @property
    def target(self) -> float:
        """The budget in FLOPs, or the training tokens if there is no budget."""
        target = self.tokens if self.budget is None else self.budget
        assert target is not None, "a point has a budget or tokens"
        return target

    @property
    def label(self) -> str:
        """The point in words."""
        size = f"{self.tokens:.4g} tokens" if self.budget is None else f"{self.budget:.4g} FLOPs"
        return ", ".join([size, f"µ = {self.mean_recurrence}", *axis_texts(self.axes)])


def grid_points(sweep: SweepConfig) -> list[Point]:
    """Return every point of the grid that isn't excluded, in the order of the configuration.

    Raises:
        ValueError: an unknown path, incompatible settings, or an exclusion that excludes nothing.
    """
    _check_keys(sweep)
    variants = _SettingVariants(sweep)
    paths = _varied_paths(sweep)
    sizes_vary = any(SIZE in keys for keys in (sweep.axes, *sweep.points))
    combinations = list(axis_combinations(sweep.axes))
    shared: dict[int, tuple[RunSettings, dict[str, Any]]] = {}  # of points without settings of their own
    points = []
    unused = dict(enumerate(sweep.exclude))
    for place, point_changes in _points_before_axes(sweep):
        for index, (axis_changes, names) in enumerate(combinations):
            changes = point_changes | axis_changes if point_changes else axis_changes
            exclusion = _matching_exclusion(sweep.exclude, place | changes | names) if sweep.exclude else None
            if exclusion is not None:
                unused.pop(exclusion, None)
                continue
            if point_changes or index not in shared:
                settings = variants.settings(changes)
                axes = {path: setting_at(settings, path) for path in paths} | names
                if sizes_vary:
                    axes[SIZE] = size_name(settings.model)
                if not point_changes:
                    shared[index] = settings, axes
            else:
                settings, axes = shared[index]
            points.append(Point(**place, settings=settings, axes=axes))
    if unused:
        raise ValueError(
            f"an exclusion must exclude a cell, but {dict(next(iter(unused.values())))} matches none; correct or "
            "remove it"
        )
    return points


def axis_texts(axes: Mapping[str, Any]) -> list[str]:
    """Return each axis with its value, as the configuration has it."""
    return [f"{name} = {'null' if value is None else value}" for name, value in axes.items()]


def separates(axis: str) -> bool:
    """Return whether runs that differ along an axis are of different groups, each with fits of its own."""
    return axis not in JOINT_AXES and not axis.startswith(RESOURCES_PREFIX)


def is_size(axis: str) -> bool:
    """Return whether models that differ along an axis are of different sizes, to which one law can be fitted."""
    return axis == SIZE or axis.removeprefix("model.") in SHAPE_FIELDS - {"context", "vocabulary"}


def with_centres(sweep: SweepConfig, folders: Folders) -> SweepConfig:
    """Return the sweep with µ*(C) filled in for each budget that lacks it; unchanged if it isn't centred on a fit.

    Args:
        sweep: the sweep.
        folders: its folders, beside which the fits of other sweeps are.

    Raises:
        ValueError: there is no such fit, its accounting differs from the sweep's, or it has no such law.
    """
    around = sweep.around
    if around is None or sweep.budgets is None:
        return sweep
    known = dict(around.centres or ()) if around.centres_of in (None, around.law_and_fit) else {}
    if known.keys() >= set(sweep.budgets):
        return sweep
    from isoloop.fitting import SweepFit

    path = Path(around.fit)
    if path.suffix != ".json":
        path = Folders(out=folders.out, name=around.fit).fit(hold_out=False)
    if not path.is_file():
        advice = "correct the path" if path == Path(around.fit) else f"run 'isoloop fit {around.fit}' first"
        raise ValueError(
            "around.fit must be a sweep with a fit under --out, or a fit's .json file, but there is no "
            f"{path}; {advice}"
        )
    fit = SweepFit.read(path)
    if fit.accounting != sweep.accounting:
        is_ours = fit.accounting in get_args(Accounting)
        advice = f"set accounting to {fit.accounting}" if is_ours else "choose the fit of a sweep that isoloop ran"
        raise ValueError(
            f"a sweep must have the accounting of the fit that it is centred on, but it has {sweep.accounting} and "
            f"{path} has {fit.accounting}; {advice}"
        )
    new = {
        budget: _optimal_recurrence(fit, budget, around.law, path) for budget in sweep.budgets if budget not in known
    }
    update = {"centres": tuple((known | new).items()), "centres_of": around.law_and_fit}
    return sweep.model_copy(update={"around": around.model_copy(update=update)})


def setting_at(settings: RunSettings, path: str) -> Any:
    """Return the value of the setting at a path, as JSON if it isn't a plain value."""
    value: Any = settings
    for key in path.split("."):
        value = getattr(value, key)
    if isinstance(value, str | int | float | bool | None):
        return value
    return json.dumps(value.model_dump(mode="json") if isinstance(value, Config) else value)


def size_name(model: ModelConfig) -> str:
    """Return the name of the published size with a model's shape, or the model's width and layers."""
    for name, size in SIZES.items():
        if all(getattr(model, field) == getattr(size, field) for field in SHAPE_FIELDS):
            return name
    return f"{model.width} x {model.prelude_layers}+{model.core_layers}+{model.coda_layers}"


def _points_before_axes(sweep: SweepConfig) -> Iterator[tuple[dict[str, Any], SettingChanges]]:
    """Yield budget or tokens, mean recurrence and own settings of each cell of the product and of each point."""
    centres = dict(sweep.around.centres or ()) if sweep.around else {}
    sizes = [(budget, None) for budget in sweep.budgets or ()] + [(None, tokens) for tokens in sweep.tokens or ()]
    for budget, tokens in sizes:
        means = sweep.mean_recurrences or (_centred_recurrences(centres[budget], sweep) if budget else ())
        yield from (({BUDGET: budget, TOKENS: tokens, MEAN_RECURRENCE: mean}, {}) for mean in means)
    for point in sweep.points:
        changes = {path: value for path, value in point.items() if path not in GRID_KEYS}
        yield {key: point.get(key) for key in GRID_KEYS}, changes


def _optimal_recurrence(fit: "SweepFit", budget: float, law: str, path: Path) -> float:
    """Return µ* at a budget, in loops, under a law."""
    from isoloop.fitting import predict

    if fit.axis != "mean_recurrence":
        raise ValueError(
            f"a grid is centred on the best mean recurrence, but {path} is a fit of dense models; use another"
        )
    if law == "training":
        return predict(fit, flops=budget).value
    power_law = fit.isoflop.mean_recurrence_law if fit.isoflop else None
    if power_law is None:
        reason = fit.why_missing("isoflop") if fit.isoflop is None else fit.isoflop.reason
        raise ValueError(
            f"around.law: isoflop requires a power law of the minima, but {path} has none ({reason}); set around.law "
            "to training"
        )
    return power_law.at(budget)


def _centred_recurrences(centre: float, sweep: SweepConfig) -> list[int]:
    """Return `count` mean recurrences around `centre`, evenly spaced in log µ; rounded up where two would coincide."""
    assert sweep.around is not None, "only a grid around a fit has centres"
    width, count = sweep.around.width, sweep.around.count
    low, step = centre / width, width ** (2 / (count - 1))
    means: set[int] = set()
    for index in range(count):
        mean = max(1, round(low * step**index))
        while mean in means:
            mean += 1
        means.add(mean)
    return sorted(means)


def axis_combinations(axes: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[SettingChanges, dict[str, Any]]]:
    """Yield the settings and the names of every combination of the axes' entries."""
    for entries in product(*axes.values()):
        changes: SettingChanges = {}
        names = {}
        for axis, entry in zip(axes, entries, strict=True):
            if axis not in setting_paths():
                changes |= {path: value for path, value in entry.items() if path != ENTRY_NAME}
                names[axis] = entry[ENTRY_NAME]
                continue
            changes[axis] = entry
            if axis in ("model", SIZE):  # settings don't keep these, so the entry itself is the name
                names[axis] = entry if isinstance(entry, str) else json.dumps(entry)
        yield changes, names


def _varied_paths(sweep: SweepConfig) -> list[str]:
    """Return the settings whose values tell cells apart: axes that are paths, and what points set."""
    axes = [axis for axis in sweep.axes if axis in setting_paths()]
    in_points = [path for point in sweep.points for path in point if path not in GRID_KEYS]
    return [path for path in dict.fromkeys(axes + in_points) if path not in ("model", SIZE)]


def _matching_exclusion(exclude: tuple[Mapping[str, Any], ...], cell: Mapping[str, Any]) -> int | None:
    """Return the index of the first exclusion that matches a cell, None if there is none."""
    for index, exclusion in enumerate(exclude):
        if all(_matches(cell.get(key), allowed) for key, allowed in exclusion.items()):
            return index
    return None


def _matches(value: Any, allowed: Any) -> bool:
    is_choice = isinstance(allowed, list | tuple) and not isinstance(value, list | tuple)
    return value in allowed if is_choice else value == allowed


class _SettingVariants:
    """The sweep's settings with changes; each section is validated once, as cells share them."""

    def __init__(self, sweep: SweepConfig) -> None:
        self._base, self._sweep_name = sweep.settings, sweep.name
        self._sections: dict[tuple[str, str], Any] = {}
        self._settings: dict[str, RunSettings] = {}

    def settings(self, changes: SettingChanges) -> RunSettings:
        """Return the sweep's settings with `changes` by path.

        Raises:
            ValueError: a value breaks a rule.
        """
        key = _key(changes)
        if key not in self._settings:
            by_section: dict[str, SettingChanges] = {}
            for path, value in changes.items():
                by_section.setdefault(path.partition(".")[0], {})[path] = value
            try:
                changed = {section: self._section(section, part) for section, part in by_section.items()}
                self._settings[key] = RunSettings(**(dict(self._base) | changed))
            except ValidationError as error:
                place = ", ".join(f"{path} = {value}" for path, value in changes.items())
                raise ValueError(f"the sweep '{self._sweep_name}' at {place} breaks {broken_rules(error)}") from error
        return self._settings[key]

    def _section(self, section: str, changes: SettingChanges) -> Any:
        key = section, _key(changes)
        if key not in self._sections:
            value = getattr(self._base, section)
            if isinstance(value, Config):
                whole = changes.get(section, {})  # `model: 140m`, or a mapping of its keys
                whole = {"size": whole} if isinstance(whole, str) else whole
                new = whole | {path.partition(".")[2]: entry for path, entry in changes.items() if path != section}
                old = value.model_dump(exclude=set(SHAPE_FIELDS) if "size" in new else None)
                value = old | new
            else:
                value = changes[section]
            self._sections[key] = getattr(RunSettings(**{section: value}), section)
        return self._sections[key]


def _key(changes: SettingChanges) -> str:
    return json.dumps(changes, sort_keys=True, default=str)


def _check_keys(sweep: SweepConfig) -> None:
    """Refuse axes, points and exclusions whose keys or entries are wrong, before anything is expanded."""
    # Axes: known paths or names of their own, with distinct entries; no setting twice.
    for axis, entries in sweep.axes.items():
        if axis in GRID_KEYS or axis in ("budgets", "mean_recurrences"):
            raise ValueError(
                f"budgets, tokens and mean recurrences must stand at the top level, but got axes.{axis}; move it there"
            )
        if axis.startswith(RESOURCES_PREFIX):
            raise ValueError(
                f"resources don't change a run's result, so they can't be an axis, but got axes.{axis}; set them in a "
                "named axis, next to the settings that require them"
            )
        if axis in setting_paths():
            distinct = {json.dumps(entry, sort_keys=True, default=str) for entry in entries}
        else:
            distinct = {_check_named_entry(axis, entry) for entry in entries}
        if len(distinct) < len(entries):
            raise ValueError(f"an axis's values must be distinct, but axes.{axis} has {list(entries)}; drop one")
    set_by_axes = [path for axis, entries in sweep.axes.items() for path in _paths_set_by(axis, entries)]
    repeated = [path for path in set_by_axes if set_by_axes.count(path) > 1]
    if repeated:
        raise ValueError(f"a setting must be on one axis, but {repeated[0]} is on several; keep one")

    # Points: complete, and setting nothing that an axis sets.
    for point in sweep.points:
        if (BUDGET in point) == (TOKENS in point) or MEAN_RECURRENCE not in point:
            raise ValueError(
                f"a point must have a mean_recurrence, and a budget or tokens, but got {dict(point)}; complete it"
            )
        for path in point:
            if path in set_by_axes:
                raise ValueError(f"a point may not set what an axis sets, but {dict(point)} has {path}; drop it there")
            if path == "model":
                raise ValueError(
                    f"a point may only set keys of the model, but got {dict(point)}; name {SIZE} or others"
                )
            if path not in GRID_KEYS and path not in setting_paths():
                raise ValueError(f"a point's key must be a setting, but got '{path}'; {_suggestion(path)}")

    # Exclusions: keys by which cells differ.
    known = {*GRID_KEYS, *sweep.axes, *set_by_axes, *(path for point in sweep.points for path in point)}
    for key in (key for exclusion in sweep.exclude for key in exclusion):
        if key not in known:
            raise ValueError(
                f"an exclusion's key must be an axis, or a setting that one changes, but got '{key}'; choose from "
                f"{', '.join(sorted(known))}"
            )


def _paths_set_by(axis: str, entries: tuple[Any, ...]) -> set[str]:
    return {axis} if axis in setting_paths() else {path for entry in entries for path in entry if path != ENTRY_NAME}


def _check_named_entry(axis: str, entry: Any) -> str:
    """Check an entry of an axis with a name of its own, and return the entry's name."""
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"an axis must be a setting's path, or a name of your own whose entries set several, but got axes.{axis} "
            f"with {entry!r}; {_suggestion(axis)}"
        )
    if axis in RESERVED or not _AXIS_NAME.fullmatch(axis) or axis.startswith(("loss_T", "best_loss_T")):
        raise ValueError(
            "a named axis must have a name of letters, digits, '_' and '-' that isn't a column of the run table, but "
            f"got axes.{axis}; choose another name"
        )
    if not isinstance(entry.get(ENTRY_NAME), str):
        raise ValueError(f"each entry of a named axis must have a name, but axes.{axis} has {dict(entry)}; add one")
    for path in entry:
        if path != ENTRY_NAME and path not in setting_paths():
            raise ValueError(
                f"the keys of a named axis must be settings, but axes.{axis} has '{path}'; {_suggestion(path)}"
            )
    return str(entry[ENTRY_NAME])


def _suggestion(path: str) -> str:
    example = f"name it as in the configuration, for example {LEARNING_RATE}"
    return did_you_mean(path, setting_paths(), otherwise=example)
