"""What a fit found: frozen, readable as text, and equal after a round trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from isoloop.fitting.cost import CostModel
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.isoflop.bias import ParabolaBias
from isoloop.fitting.isoflop.minima import IsoflopFit
from isoloop.fitting.isoflop.report import isoflop_text, parabola_bias_text
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.selection.holdout import HeldOutError, HeldOutRow
from isoloop.fitting.tables.runs import finished_rows, loss_columns

FORMAT = "isoloop-fit/2"


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What was kept out of every fit: all runs at the largest `value` of `column` (budget in FLOPs, or tokens)."""

    column: str
    value: float
    runs: int
    times_beyond: float
    errors: tuple[HeldOutError, ...]
    rows: tuple[HeldOutRow, ...]


@dataclass(frozen=True, kw_only=True)
class FittedRange:
    """Smallest and largest value of each quantity among the fitted runs: what lies outside is extrapolated."""

    flops: tuple[float, float]
    tokens: tuple[float, float]
    mean_recurrence: tuple[float, float]
    recurrence: tuple[float, float] | None

    @classmethod
    def of(cls, table: pd.DataFrame) -> FittedRange:
        """The ranges of the finished runs of a checked table."""
        runs = finished_rows(table)
        measured = [T for name, T in loss_columns(runs).items() if runs[name].notna().any()]

        def ends(name: str) -> tuple[float, float]:
            return float(runs[name].min()), float(runs[name].max())

        return cls(
            flops=ends("flops"),
            tokens=ends("tokens"),
            mean_recurrence=ends("mean_recurrence"),
            recurrence=(measured[0], measured[-1]) if measured else None,
        )


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A fit that could not be made, and why."""

    what: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SweepFit:
    """Everything fitted to one sweep. A fit that could not be made is None, and `absent` says why."""

    name: str
    simulated: bool
    accounting: str
    finished_runs: int
    fitted: FittedRange
    cost_model: CostModel
    isoflop: IsoflopFit | None
    parabola_bias: ParabolaBias | None
    training: LawFit | None
    unified: LawFit | None
    joint_test_time: LawFit | None
    test_time: tuple[LawFit, ...]
    held_out: HeldOut | None
    absent: tuple[Absent, ...]
    doubts: tuple[str, ...]

    def why_absent(self, what: str) -> str:
        """Why there is no fit of that name (isoflop, training, unified, test-time)."""
        return next((absent.reason for absent in self.absent if absent.what == what), "it was fitted")

    def report(self) -> str:
        """The whole fit as readable text: methods, parameters, bounds hit, what to doubt. Intervals are 95%."""
        simulated = "  (simulated)" if self.simulated else ""
        flops = self.fitted.flops
        parts = [
            f"Fit of {self.name}{simulated}\n"
            f"  runs fitted    {self.finished_runs}\n"
            f"  compute        {flops[0]:.3g} to {flops[1]:.3g} FLOPs, accounting {self.accounting}\n"
            f"  tokens         {self.fitted.tokens[0]:.3g} to {self.fitted.tokens[1]:.3g}\n"
            f"  mean loops     {self.fitted.mean_recurrence[0]:g} to {self.fitted.mean_recurrence[1]:g}"
        ]
        parts.append(
            isoflop_text(self.isoflop) if self.isoflop else _absent("isoFLOP curves", self.why_absent("isoflop"))
        )
        if self.isoflop and self.parabola_bias:
            parts.append(parabola_bias_text(self.parabola_bias, self.isoflop.axis))
        laws = (("training", self.training), ("unified", self.unified), ("joint-test-time", self.joint_test_time))
        for what, law in laws:
            parts.append(_law(law) if law else _absent(f"{what} law", self.why_absent(what)))
        parts.append(
            _test_time(self.test_time) if self.test_time else _absent("test-time law", self.why_absent("test-time"))
        )
        if self.held_out:
            parts.append(_held_out(self.held_out))
        doubts = [textwrap.fill(doubt, 100, initial_indent="  - ", subsequent_indent="    ") for doubt in self.doubts]
        parts.append("\n".join(["What to doubt", *doubts]))
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """JSON text that `from_json` reads back into an equal fit, every float exactly."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SweepFit:
        """The fit that `to_json` wrote; raises ValueError if the text is something else or of another version."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a stored fit must be JSON, but it is not: {error}; fit the sweep again") from error
        found = data.pop("format", None) if isinstance(data, dict) else None
        if found != FORMAT:
            raise ValueError(f"a stored fit must have the format {FORMAT!r}, but got {found!r}; fit the sweep again")
        try:
            fit = typing.cast(SweepFit, _build(cls, data))
            _check_laws(fit)
            return fit
        except KeyError as error:
            raise ValueError(f"a stored fit must be whole, but {error} is missing; fit the sweep again") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"a stored fit must be whole, but: {error}; fit the sweep again") from error

    @classmethod
    def read(cls, path: str | Path) -> SweepFit:
        """The fit stored at `path`; raises ValueError where there is none, or it is not one."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"a stored fit must exist, but there is none at {path}; fit the sweep first")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _build(kind: Any, data: Any) -> Any:
    """A value of the annotated type `kind` from plain JSON data."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if data is None else _build(next(part for part in arguments if part is not type(None)), data)
    if origin is tuple:
        if not isinstance(data, list) or (arguments[-1] is not Ellipsis and len(data) != len(arguments)):
            size = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
            raise TypeError(f"{size}values belong where {json.dumps(data):.60} is")
        kinds = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(_build(part, value) for part, value in zip(kinds, data, strict=True))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(data, dict):
            raise TypeError(f"a {kind.__name__} belongs where {json.dumps(data):.60} is")
        hints = typing.get_type_hints(kind)
        return kind(**{field.name: _build(hints[field.name], data[field.name]) for field in dataclasses.fields(kind)})
    plain = (int, float) if kind is float else kind
    if not isinstance(data, plain) or (isinstance(data, bool) and kind is not bool):
        raise TypeError(f"a {kind.__name__} belongs where {json.dumps(data):.60} is")
    return float(data) if kind is float else data


def _check_laws(fit: SweepFit) -> None:
    """Raises ValueError where a law's fit is another law's, or has too few or too many values."""
    alone = (("training", fit.training), ("unified", fit.unified), ("joint-test-time", fit.joint_test_time))
    for what, found in (*alone, *(("test-time", one) for one in fit.test_time)):
        if found is None:
            continue
        names, due = tuple(parameter.name for parameter in found.parameters), law_named(what).parameter_names
        if found.law != what or names != due:
            got = f"the {found.law} law with {', '.join(names)}"
            raise ValueError(f"the {what} law has the parameters {', '.join(due)}, where {got} is")
        sizes = {len(draw) for draw in found.draws} - {len(due)}
        if sizes:
            raise ValueError(f"each refit of the {what} law has {len(due)} values, where one has {min(sizes)}")


def _absent(title: str, reason: str) -> str:
    return textwrap.fill(f"{title}: not fitted. {reason}", 100, subsequent_indent="  ")


def _interval(bounds: tuple[float, float] | None) -> str:
    return f"({bounds[0]:.5g} to {bounds[1]:.5g})" if bounds else "(no interval)"


def _law(fit: LawFit) -> str:
    law = law_named(fit.law)
    scatter = f"{100 * fit.noise:.3g}%" if fit.on == "log loss" else f"{fit.noise:.3g} nats"
    lines = [
        f"{law.name} law: {law.formula}",
        f"  source      {law.source}",
        f"  method      {fit.kind} on {fit.on}; {fit.rows} losses of {fit.runs} runs, {len(fit.parameters)} free",
        f"  objective   {fit.objective:.6g}; scatter of one loss {scatter}; {len(fit.draws)} refits, {fit.bootstrap}",
    ]
    profiled = any(parameter.profile is not None for parameter in fit.parameters)
    heading = f"  {'':<6}{'':>12}  {'95% by refits':<26}  {'95% by profile' if profiled else '':<26}"
    lines += [heading.rstrip()] if fit.draws or profiled else []
    for parameter in fit.parameters:
        bound = ", at its bound" if parameter.at_bound else ""
        by_profile = f"{_profile(parameter.profile):<26}  " if profiled else ""
        lines.append(
            f"  {parameter.name:<6}{parameter.value:>12.5g}  {_interval(parameter.interval):<26}  {by_profile}"
            f"{parameter.meaning}, {parameter.unit}{bound}"
        )
    lines.append(f"  in effect: {law.effective(fit.vector)}")
    lines += [f"  warning: {reason}" for reason in fit.reasons]
    return "\n".join(lines)


def _profile(ends: tuple[float | None, float | None] | None) -> str:
    low, high = ends or (None, None)
    return f"({'no limit' if low is None else f'{low:.5g}'} to {'no limit' if high is None else f'{high:.5g}'})"


def _test_time(fits: tuple[LawFit, ...]) -> str:
    law = law_named(fits[0].law)
    lines = [f"{law.name} law: {law.formula}, one per model ({len(fits)} models)"]
    lines.append(f"  {'mu':>5}  {'L_inf':>8}  {'Z':>8}  {'z':>8}  {'scatter':>8}  run")
    for fit in fits:
        said = f"  ({'; '.join(fit.reasons)})" if fit.reasons else ""
        lines.append(
            f"  {fit.mean_recurrence:>5g}  {fit.value('L_inf'):>8.4f}  {fit.value('Z'):>8.4f}  {fit.value('z'):>8.4f}  "
            f"{100 * fit.noise:>7.3g}%  {fit.run_id}{said}"
        )
    return "\n".join(lines)


def _held_out(held: HeldOut) -> str:
    runs = "1 run" if held.runs == 1 else f"{held.runs} runs"
    lines = [f"Held out: {runs} at the largest {held.column}, {held.value:.4g} ({held.times_beyond:.1f}x beyond)"]
    for error in held.errors:
        covered = "" if error.coverage is None else f"; {error.coverage:.0%} inside their 95% intervals"
        lines.append(
            f"  mean absolute error {error.mean_absolute_error:8.4f}%  {error.method}, {error.rows} losses{covered}"
        )
    at_mu = [row for row in held.rows if row.method.startswith("training")]
    if not at_mu:
        return "\n".join([*lines, "  no training law was fitted that could predict them at T = mu"])
    lines.append(f"  {'mu':>5}  {'T':>4}  {'predicted':>9}  {'95%':>18}  {'measured':>9}  {'error':>8}")
    for row in at_mu:
        bounds = f"{row.interval[0]:.4f} to {row.interval[1]:.4f}" if row.interval else "-"
        lines.append(
            f"  {row.mean_recurrence:>5g}  {row.recurrence:>4g}  {row.predicted:>9.4f}  {bounds:>18}  "
            f"{row.measured:>9.4f}  {row.error:>+7.3f}%"
        )
    return "\n".join(lines)
