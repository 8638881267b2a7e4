"""What is asked for: the product of a sweep's axes, its single points, and what it leaves out. Pure.

Each point of the grid is a budget or a token count, a mean recurrence, and the settings of one run.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from isoloop.sweeps.config.schema import RunSettings, SweepConfig
from isoloop.sweeps.messages import broken_rules
from isoloop.trainer.config import SHAPE_FIELDS, SIZES, Config, ModelConfig

BUDGET, TOKENS, MEAN = "budget", "tokens", "mean_recurrence"
ASKED = (BUDGET, TOKENS, MEAN)
LABEL = "name"
SIZE = "model.size"
SEED = "seed"
RESOURCES = "resources."

# Columns that the run table has anyway.
RESERVED = frozenset(
    [
        "run_id",
        "status",
        "simulated",
        "accounting",
        "seed",
        "mean_recurrence",
        "backprop_depth",
        "tokens",
        "flops",
        "budget",
        "loss",
        "flops_per_token_fixed",
        "flops_per_token_forward_loop",
        "flops_per_token_backward_loop",
        "forward_loops",
        "backward_loops",
        "effective_params_fixed",
        "effective_params_per_loop",
        "tokenizer",
        "loss_unit",
        "steps",
        "bits_per_byte",
        "spectral_radius",
        "seconds",
        "group",
        "trial",
    ]
)
_OWN_NAME = re.compile(r"[A-Za-z][\w-]*")

Changes = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell as it was asked for.

    `budget` (FLOPs) is None where `tokens` were asked for, and the other way round; `axes` is what tells this cell from
    others: the value, or the label, of each axis.
    """

    budget: float | None
    tokens: int | None
    mean: int
    settings: RunSettings
    axes: dict[str, Any]

    @property
    def label(self) -> str:
        """The point in words."""
        asked = f"{self.tokens:.4g} tokens" if self.budget is None else f"{self.budget:.4g} FLOPs"
        return ", ".join([asked, f"µ = {self.mean}", *(f"{name} = {value}" for name, value in self.axes.items())])


def points(sweep: SweepConfig) -> list[Point]:
    """Every point of the grid that isn't excluded, in the order of the configuration.

    Raises:
        ValueError: an unknown path, settings that don't go together, or an exclusion that excludes nothing.
    """
    _check_names(sweep)
    variants = _Variants(sweep)
    paths = _paths(sweep)
    sized = any(SIZE in names for names in (sweep.axes, *sweep.points))
    found = []
    unused = dict(enumerate(sweep.exclude))
    for asked, own in _asked(sweep):
        for changes, labels in _combinations(sweep.axes):
            merged = own | changes
            out = _exclusion(sweep.exclude, asked | merged | labels)
            if out is not None:
                unused.pop(out, None)
                continue
            settings = variants.settings(merged)
            axes = {path: setting_at(settings, path) for path in paths} | labels
            if sized:
                axes[SIZE] = size_name(settings.model)
            found.append(
                Point(budget=asked[BUDGET], tokens=asked[TOKENS], mean=asked[MEAN], settings=settings, axes=axes)
            )
    if unused:
        raise ValueError(
            f"an exclusion must exclude a cell, but {dict(next(iter(unused.values())))} matches none; correct it, or "
            "take it out"
        )
    return found


def setting_at(settings: RunSettings, path: str) -> Any:
    """The value of the setting that a path names."""
    value: Any = settings
    for part in path.split("."):
        value = getattr(value, part)
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(_plain(value))


def size_name(model: ModelConfig) -> str:
    """The published size whose shape a model has, or its width and layers."""
    for name, size in SIZES.items():
        if all(getattr(model, part) == getattr(size, part) for part in SHAPE_FIELDS):
            return name
    return f"{model.width} x {model.prelude_layers}+{model.core_layers}+{model.coda_layers}"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Config) else value


def _asked(sweep: SweepConfig) -> Iterator[tuple[dict[str, Any], Changes]]:
    """(budget or tokens and mean recurrence, settings of its own) of each cell before the axes."""
    around = dict(sweep.around.centres or ()) if sweep.around else {}
    for budget in sweep.budgets or (None,):
        for tokens in sweep.tokens or (None,):
            if budget is None and tokens is None:
                continue
            means = sweep.mean_recurrences or (_around(around[budget], sweep) if budget else ())
            yield from (({BUDGET: budget, TOKENS: tokens, MEAN: mean}, {}) for mean in means)
    for point in sweep.points:
        asked = {name: point.get(name) for name in ASKED}
        yield asked, {path: value for path, value in point.items() if path not in ASKED}


def _around(centre: float, sweep: SweepConfig) -> list[int]:
    """`count` mean recurrences around `centre`, evenly in log µ; the next free one where two round to the same."""
    assert sweep.around is not None, "only a grid around a fit has centres"
    width, count = sweep.around.width, sweep.around.count
    low, step = centre / width, width ** (2 / (count - 1))
    found: set[int] = set()
    for place in range(count):
        mean = max(1, round(low * step**place))
        while mean in found:
            mean += 1
        found.add(mean)
    return sorted(found)


def _combinations(axes: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[Changes, dict[str, Any]]]:
    """(settings changed, labels) of every combination of the axes' entries."""
    for entries in product(*axes.values()):
        changes: Changes = {}
        labels = {}
        for name, entry in zip(axes, entries, strict=True):
            if is_path(name):
                changes[name] = entry
                if name in ("model", SIZE):  # told by what was asked for: a size isn't a setting that stays
                    labels[name] = entry if isinstance(entry, str) else json.dumps(entry)
            else:
                changes |= {path: value for path, value in entry.items() if path != LABEL}
                labels[name] = entry[LABEL]
        yield changes, labels


def _paths(sweep: SweepConfig) -> list[str]:
    """Settings that tell cells apart by their value: the axes that are paths, and what points set."""
    own = [path for point in sweep.points for path in point if path not in ASKED]
    names = dict.fromkeys([*(name for name in sweep.axes if is_path(name)), *own])
    return [name for name in names if name not in ("model", SIZE)]


def _exclusion(exclude: tuple[Mapping[str, Any], ...], cell: Mapping[str, Any]) -> int | None:
    """Which exclusion takes a cell out, None if none does."""
    for number, rule in enumerate(exclude):
        if all(_matches(cell.get(name), wanted) for name, wanted in rule.items()):
            return number
    return None


def _matches(value: Any, wanted: Any) -> bool:
    return (
        value in wanted if isinstance(wanted, list | tuple) and not isinstance(value, list | tuple) else value == wanted
    )


class _Variants:
    """Settings with some of them changed, each different section checked once."""

    def __init__(self, sweep: SweepConfig) -> None:
        self.base = sweep.settings
        self.name = sweep.name
        self.sections: dict[tuple[str, str], Any] = {}
        self.whole: dict[str, RunSettings] = {}

    def settings(self, changes: Changes) -> RunSettings:
        """The sweep's settings with `changes` by path.

        Raises:
            ValueError: a value breaks a rule.
        """
        key = json.dumps(changes, sort_keys=True, default=str)
        if key not in self.whole:
            by_section: dict[str, Changes] = {}
            for path, value in changes.items():
                by_section.setdefault(path.partition(".")[0], {})[path] = value
            try:
                changed = {name: self._section(name, part) for name, part in by_section.items()}
                kept = {name: getattr(self.base, name) for name in RunSettings.model_fields}
                self.whole[key] = RunSettings(**(kept | changed))
            except ValidationError as error:
                said = ", ".join(f"{path} = {value}" for path, value in changes.items())
                raise ValueError(f"the sweep '{self.name}' at {said} breaks {broken_rules(error)}") from error
        return self.whole[key]

    def _section(self, name: str, changes: Changes) -> Any:
        key = name, json.dumps(changes, sort_keys=True, default=str)
        if key not in self.sections:
            value = getattr(self.base, name)
            whole = changes.pop(name, None) if name in changes else None
            if isinstance(value, Config):
                content = value.model_dump()
                if whole is not None:
                    changes = {**_flat_section(name, whole), **changes}
                if f"{name}.size" in changes:
                    content = {part: kept for part, kept in content.items() if part not in SHAPE_FIELDS}
                content |= {path.partition(".")[2]: entry for path, entry in changes.items()}
                field = RunSettings(**{name: content})
                self.sections[key] = getattr(field, name)
            else:
                self.sections[key] = getattr(RunSettings(**{name: whole}), name)
        return self.sections[key]


def _flat_section(name: str, value: Any) -> Changes:
    """A whole section given as a value: `model: 140m`, or a mapping of its keys."""
    if isinstance(value, str):
        return {f"{name}.size": value}
    return {f"{name}.{key}": entry for key, entry in value.items()}


def is_path(name: str) -> bool:
    """Whether `name` is the path of a setting."""
    first, _, rest = name.partition(".")
    section = RunSettings.model_fields.get(first)
    if section is None:
        return False
    kind = section.annotation
    is_section = isinstance(kind, type) and issubclass(kind, Config)
    if not rest:
        return not is_section or first == "model"
    assert kind is not None, "every setting has a type"
    return is_section and (rest in kind.model_fields or (kind is ModelConfig and rest == "size"))


def _known_paths() -> list[str]:
    known = ["model.size"]
    for name, field in RunSettings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            known += [f"{name}.{part}" for part in kind.model_fields]
        else:
            known.append(name)
    return known


def _check_names(sweep: SweepConfig) -> None:
    """Refuse keys that name nothing, before anything is expanded."""
    for name, entries in sweep.axes.items():
        if name in ASKED or name in ("budgets", "mean_recurrences"):
            raise ValueError(f"budgets, tokens and mean recurrences are axes already, but got axes.{name}; move it up")
        if name.startswith(RESOURCES):
            raise ValueError(
                f"what a run is given doesn't change its result, so no axis can multiply runs by it, but got "
                f"axes.{name}; set it beside the settings that call for it, in an axis of your own"
            )
        if is_path(name):
            distinct = {json.dumps(entry, sort_keys=True, default=str) for entry in entries}
        else:
            distinct = {_check_bundle(name, entry) for entry in entries}
        if len(distinct) < len(entries):
            raise ValueError(f"an axis's values must be distinct, but axes.{name} has {list(entries)}; drop one")
    set_by_axes = [path for name, entries in sweep.axes.items() for path in _set_by(name, entries)]
    twice = [path for path in set_by_axes if set_by_axes.count(path) > 1]
    if twice:
        raise ValueError(f"a setting must be on one axis, but {twice[0]} is on several; keep one")
    for point in sweep.points:
        if (BUDGET in point) == (TOKENS in point) or MEAN not in point:
            raise ValueError(
                f"a point must have a mean_recurrence, and a budget or tokens, but got {dict(point)}; complete it"
            )
        for path in point:
            if path in set_by_axes:
                raise ValueError(f"a point may not set what an axis sets, but {dict(point)} has {path}; drop it there")
            if path == "model":
                raise ValueError(f"a point must set parts of the model, but got {dict(point)}; name {SIZE} or others")
            if path not in ASKED and not is_path(path):
                raise ValueError(f"a point's key must be a setting, but got '{path}'; {_hint(path)}")
    known = {*ASKED, *sweep.axes, *set_by_axes, *(path for point in sweep.points for path in point)}
    for rule in sweep.exclude:
        for name in rule:
            if name not in known:
                raise ValueError(
                    f"an exclusion's key must be an axis, or a setting that one changes, but got '{name}'; there are "
                    f"{', '.join(sorted(known))}"
                )


def _set_by(name: str, entries: tuple[Any, ...]) -> set[str]:
    return {name} if is_path(name) else {path for entry in entries for path in entry if path != LABEL}


def _check_bundle(name: str, entry: Any) -> str:
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"an axis must be a setting's path, or a name of your own whose entries set several, but got axes.{name} "
            f"with {entry!r}; {_hint(name)}"
        )
    if name in RESERVED or not _OWN_NAME.fullmatch(name) or name.startswith("loss_T"):
        raise ValueError(
            "an axis of your own must be named in letters, digits, '_' and '-', and not as a column of the run table "
            f"is, but got axes.{name}; choose another name"
        )
    if not isinstance(entry.get(LABEL), str):
        raise ValueError(f"each entry of an axis of your own must have a name, but axes.{name} has {dict(entry)}")
    for path in entry:
        if path != LABEL and not is_path(path):
            raise ValueError(f"axes.{name} must set settings, but got '{path}'; {_hint(path)}")
    return str(entry[LABEL])


def _hint(path: str) -> str:
    close = difflib.get_close_matches(path, _known_paths(), n=1)
    return (
        f"did you mean '{close[0]}'?"
        if close
        else "name it as in the configuration, for example optimizer.learning_rate"
    )
