"""The result of fitting a sweep: frozen, readable as text, and equal after a round trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from isoloop.fitting.cost import CostModel, DenseCost, MeasuredCost
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.isoflop.bias import ParabolaBias
from isoloop.fitting.isoflop.minima import IsoflopFit
from isoloop.fitting.isoflop.report import interval_text, isoflop_text, parabola_bias_text
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.selection.holdout import HeldOutError, HeldOutRow
from isoloop.fitting.tables.contract import is_dense
from isoloop.fitting.tables.repetition import epochs_range, epochs_text
from isoloop.fitting.tables.runs import finished_rows, test_time_losses

FIT_FORMAT = "isoloop-fit/4"
REPORT_WIDTH = 100
_ROWS_SHOWN = 200
"""Held-out runs that the report lists."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The runs that every fit left out, all at the largest `value` of `column` (budget in FLOPs, or tokens).

    `times_beyond` is that value divided by the largest fitted one.
    """

    column: str
    value: float
    runs: int
    times_beyond: float
    errors: tuple[HeldOutError, ...]
    rows: tuple[HeldOutRow, ...]

    @property
    def quantity(self) -> str:
        """The quantity in `column`, in words."""
        return "token count" if self.column == "tokens" else self.column


@dataclass(frozen=True, kw_only=True)
class FittedRange:
    """Smallest and largest value of each quantity among the fitted runs; anything outside is extrapolated.

    Dense models have `params` instead of `mean_recurrence` and `recurrence`. `epochs`, passes over the training text,
    are None if no run saw any of it again.
    """

    flops: tuple[float, float]
    tokens: tuple[float, float]
    mean_recurrence: tuple[float, float] | None
    recurrence: tuple[float, float] | None
    params: tuple[float, float] | None = None
    epochs: tuple[float, float] | None = None

    @classmethod
    def of(cls, table: pd.DataFrame) -> FittedRange:
        """Return the ranges of the finished runs of a checked table."""
        runs = finished_rows(table)
        dense = is_dense(table)
        measured = test_time_losses(table)["recurrence"]

        def limits(name: str) -> tuple[float, float]:
            return float(runs[name].min()), float(runs[name].max())

        return cls(
            flops=limits("flops"),
            tokens=limits("tokens"),
            mean_recurrence=None if dense else limits("mean_recurrence"),
            recurrence=(float(measured.min()), float(measured.max())) if len(measured) else None,
            params=limits("params") if dense else None,
            epochs=epochs_range(runs),
        )

    def of_axis(self, axis: str) -> tuple[float, float]:
        """Return the range of the mean recurrence, or of dense models the parameters."""
        values = self.params if axis == "params" else self.mean_recurrence
        assert values is not None, axis
        return values


@dataclass(frozen=True, kw_only=True)
class MissingFit:
    """A fit that could not be made (isoflop, parabola bias, or a law's name) and the reason."""

    name: str
    reason: str


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class SweepFit:
    """Everything fitted to one sweep, or to any table of runs.

    `training` is the law of the loss after training: that of the sweep, or for dense models L(N, D). A fit that could
    not be made is None, and `missing_fits` has the reason. `reading` says how the table was read, where that had to be
    guessed.
    """

    name: str
    simulated: bool
    accounting: str
    finished_runs: int
    fitted: FittedRange
    cost_model: CostModel | MeasuredCost | DenseCost
    isoflop: IsoflopFit | None
    parabola_bias: ParabolaBias | None
    training: LawFit | None
    unified: LawFit | None
    joint_test_time: LawFit | None
    test_time: tuple[LawFit, ...]
    held_out: HeldOut | None
    missing_fits: tuple[MissingFit, ...]
    caveats: tuple[str, ...]
    reading: tuple[str, ...] = ()

    @property
    def axis(self) -> str:
        """The column in which models differ: `mean_recurrence`, or `params` for dense models."""
        return self.cost_model.axis

    @property
    def training_method(self) -> str:
        """Name of the law after training as a method of predicting; empty if there is none."""
        if self.training is None:
            return ""
        return f"{self.training.form.name} law" if self.axis == "params" else self.training.at_mean

    @property
    def laws(self) -> dict[str, LawFit | None]:
        """The laws fitted to all runs together, by name."""
        return {"training": self.training, "unified": self.unified, "joint-test-time": self.joint_test_time}

    def why_missing(self, name: str) -> str:
        """Return why there is no fit of that name (isoflop, training, unified, joint-test-time, test-time)."""
        if self.axis == "params" and name in ("unified", "joint-test-time", "test-time"):
            return "dense models have no loops, so their loss doesn't depend on a recurrence at test time"
        return next((missing.reason for missing in self.missing_fits if missing.name == name), "it was fitted")

    def report(self) -> str:
        """Return the whole fit as text: methods, parameters, bounds that were hit, caveats. Intervals are 95%."""
        simulated = "  (simulated)" if self.simulated else ""
        low, high = self.fitted.flops
        least, most = self.fitted.of_axis(self.axis)
        axis = f"mean loops     {least:g} to {most:g}"
        if self.axis == "params":
            axis = f"parameters     {least:.3g} to {most:.3g}"
        epochs = ""
        if self.fitted.epochs is not None:
            epochs = f"  epochs         {' to '.join(map(epochs_text, self.fitted.epochs))} (see caveats)\n"
        parts = [
            f"Fit of {self.name}{simulated}\n"
            f"  runs fitted    {self.finished_runs}\n"
            f"  compute        {low:.3g} to {high:.3g} FLOPs, accounting {self.accounting}\n"
            f"  tokens         {self.fitted.tokens[0]:.3g} to {self.fitted.tokens[1]:.3g}\n"
            f"{epochs}"
            f"  {axis}\n"
            f"  FLOPs/token    {self.cost_model.formula}"
        ]
        if self.reading:
            parts.insert(0, "\n".join(_bullets("How the table was read", self.reading)))
        parts.append(isoflop_text(self.isoflop) if self.isoflop else self._not_fitted("isoFLOP curves", "isoflop"))
        if self.isoflop and self.parabola_bias:
            parts.append(parabola_bias_text(self.parabola_bias, self.isoflop.axis))
        if self.axis == "params":
            parts.append(_law_text(self.training) if self.training else self._not_fitted("law L(N, D)", "training"))
        else:
            for name, law in self.laws.items():
                parts.append(_law_text(law) if law else self._not_fitted(f"{name} law", name))
            parts.append(
                _test_time_text(self.test_time) if self.test_time else self._not_fitted("test-time law", "test-time")
            )
        if self.held_out:
            parts.append(_held_out_text(self.held_out, self.training_method, dense=self.axis == "params"))
        parts.append("\n".join(_bullets("Caveats", self.caveats)))
        return "\n\n".join(parts) + "\n"

    def _not_fitted(self, title: str, name: str) -> str:
        return textwrap.fill(f"{title}: not fitted. {self.why_missing(name)}", REPORT_WIDTH, subsequent_indent="  ")

    def to_json(self) -> str:
        """Return JSON text that `from_json` reads back into an equal fit, with every float exact.

        Raises:
            ValueError: one of its numbers isn't finite.
        """
        try:
            return json.dumps({"format": FIT_FORMAT, **dataclasses.asdict(self)}, indent=1, allow_nan=False) + "\n"
        except ValueError as error:
            raise ValueError(
                f"a fit must consist of finite numbers, but some in that of {self.name} are missing or infinite; "
                "leave out the runs whose losses are far from the others' and fit again"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> SweepFit:
        """Return the fit that `to_json` wrote. Raises ValueError for any other text, or another format's version."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a stored fit must be JSON, but it is not: {error}; fit the sweep again") from error
        stored_format = data.pop("format", None) if isinstance(data, dict) else None
        if stored_format != FIT_FORMAT:
            raise ValueError(
                f"a stored fit must have the format {FIT_FORMAT!r}, but got {stored_format!r}; fit the sweep again"
            )
        try:
            fit = _stored_fit().validate_json(json.dumps(data))
        except ValidationError as error:
            raise ValueError(f"a stored fit must be whole, but {_first_fault(error)}; fit the sweep again") from None
        _check_laws(fit)
        return fit

    @classmethod
    def read(cls, path: str | Path) -> SweepFit:
        """Return the fit stored at `path`. Raises ValueError if there is none, or the file is something else."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"a stored fit must exist, but there is none at {path}; fit the sweep first")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


@cache
def _stored_fit() -> TypeAdapter[SweepFit]:
    return TypeAdapter(SweepFit)


_FAULTS = {"missing": "is missing", "unexpected_keyword_argument": "is unknown", "too_long": "has too many values"}


def _first_fault(error: ValidationError) -> str:
    """Return the first field that does not fit and what is wrong with it."""
    fault = error.errors(include_url=False)[0]
    field = f"`{'.'.join(map(str, fault['loc']))}`"
    if fault["type"] in _FAULTS:
        return f"{field} {_FAULTS[fault['type']]}"
    if fault["type"] == "value_error":
        return f"in {field} {fault['msg'].removeprefix('Value error, ')}"
    return f"{fault['msg'].replace('Input should', f'{field} must')}, and is {json.dumps(fault['input']):.60}"


def _check_laws(fit: SweepFit) -> None:
    """Raise ValueError if a law can't be loaded, or its fit is that of another law or has a wrong number of values."""
    for name, law_fit in (*fit.laws.items(), *(("test-time", model_fit) for model_fit in fit.test_time)):
        if law_fit is None:
            continue
        # The loss after training may follow any law; the others are what they are called.
        due = law_fit.law if name == "training" else name
        try:
            expected = law_named(due).parameter_names
        except ValueError as error:
            raise ValueError(f"a stored fit needs the laws that it names, but {error}") from error
        names, sizes = tuple(parameter.name for parameter in law_fit.parameters), {len(draw) for draw in law_fit.draws}
        fault = None
        if law_fit.law != due or names != expected:
            got = f"the {law_fit.law} law with {', '.join(names)}"
            fault = f"the {due} law has the parameters {', '.join(expected)}, where {got} is"
        elif sizes - {len(expected)}:
            wrong = min(sizes - {len(expected)})
            fault = f"each refit of the {due} law has {len(expected)} values, where one has {wrong}"
        if fault:
            raise ValueError(f"a stored fit must be whole, but {fault}; fit the sweep again")


def _law_text(fit: LawFit) -> str:
    law = fit.form
    scatter = f"{100 * fit.noise:.3g}%" if fit.on == "log loss" else f"{fit.noise:.3g} nats"
    lines = [
        f"{law.name} law: {law.formula}",
        f"  source      {law.source}",
        f"  method      {fit.method}; {fit.rows} losses of {fit.runs} runs, {len(fit.parameters)} free",
        f"  objective   {fit.objective:.6g}; scatter of one loss {scatter}; {len(fit.draws)} refits, {fit.bootstrap}",
    ]
    profiled = any(parameter.profile is not None for parameter in fit.parameters)
    heading = f"  {'':<6}{'':>12}  {'95% by refits':<26}  {'95% by profile' if profiled else '':<26}"
    lines += [heading.rstrip()] if fit.draws or profiled else []
    for parameter in fit.parameters:
        bound = ", at its bound" if parameter.at_bound else ""
        by_profile = f"{_profile_text(parameter.profile):<26}  " if profiled else ""
        lines.append(
            f"  {parameter.name:<6}{parameter.value:>12.5g}  {interval_text(parameter.interval):<26}  {by_profile}"
            f"{parameter.meaning}, {parameter.unit}{bound}"
        )
    lines.append(f"  in effect: {law.effective(fit.vector)}")
    lines += [f"  warning: {reason}" for reason in fit.reasons]
    return "\n".join(lines)


def _profile_text(limits: tuple[float | None, float | None] | None) -> str:
    low, high = ("no limit" if limit is None else f"{limit:.5g}" for limit in limits or (None, None))
    return f"({low} to {high})"


def _test_time_text(fits: tuple[LawFit, ...]) -> str:
    law = fits[0].form
    lines = [f"{law.name} law: {law.formula}, one per model ({len(fits)} models)"]
    lines.append(f"  {'mu':>5}  {'L_inf':>8}  {'Z':>8}  {'z':>8}  {'scatter':>8}  run")
    for fit in fits:
        reasons = f"  ({'; '.join(fit.reasons)})" if fit.reasons else ""
        lines.append(
            f"  {fit.mean_recurrence:>5g}  {fit.value('L_inf'):>8.4f}  {fit.value('Z'):>8.4f}  {fit.value('z'):>8.4f}  "
            f"{100 * fit.noise:>7.3g}%  {fit.run_id}{reasons}"
        )
    return "\n".join(lines)


def _bullets(title: str, sentences: Sequence[str]) -> list[str]:
    filled = (textwrap.fill(text, REPORT_WIDTH, initial_indent="  - ", subsequent_indent="    ") for text in sentences)
    return [title, *filled]


def _held_out_text(held: HeldOut, training: str, *, dense: bool) -> str:
    runs = "1 run" if held.runs == 1 else f"{held.runs} runs"
    lines = [f"Held out: {runs} at the largest {held.quantity}, {held.value:.4g} ({held.times_beyond:.1f}x beyond)"]
    for error in held.errors:
        covered = "" if error.coverage is None else f"; {error.coverage:.0%} inside their 95% intervals"
        lines.append(
            f"  mean absolute error {error.mean_absolute_error:8.4f}%  {error.method}, {error.rows} losses{covered}"
        )
    at_mean = [row for row in held.rows if row.method == training]
    if not at_mean:
        return "\n".join([*lines, "  no law of the loss after training was fitted to predict them"])
    model = f"{'run':<14}" if dense else f"{'mu':>5}  {'T':>4}"
    lines.append(f"  {model}  {'predicted':>9}  {'95%':>18}  {'measured':>9}  {'error':>8}")
    worst = sorted(at_mean, key=lambda row: -abs(row.error))[:_ROWS_SHOWN]
    for row in at_mean if len(at_mean) <= _ROWS_SHOWN else worst:
        bounds = f"{row.interval[0]:.4f} to {row.interval[1]:.4f}" if row.interval else "-"
        model = f"{row.run_id:<14.14}" if dense else f"{row.mean_recurrence:>5g}  {row.recurrence:>4g}"
        lines.append(f"  {model}  {row.predicted:>9.4f}  {bounds:>18}  {row.measured:>9.4f}  {row.error:>+7.3f}%")
    if len(at_mean) > _ROWS_SHOWN:
        lines.append(f"  ... these {_ROWS_SHOWN} have the largest errors of {len(at_mean)}")
    return "\n".join(lines)
