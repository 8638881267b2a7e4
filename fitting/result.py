"""The result of fitting a sweep: frozen, readable as text, and equal after a round trip through JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import pandas as pd
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from isoloop.fitting.cost import CostModel, DenseCost, MeasuredCost
from isoloop.fitting.cost.family import DenseFamily, FamilyMember, ModelFamily
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.estimation.noise import NoiseModel
from isoloop.fitting.isoflop.bias import ParabolaBias
from isoloop.fitting.isoflop.minima import IsoflopFit
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.quality.fit import QualityFit
from isoloop.fitting.selection.holdout import CrossValidation, HeldOutError, HeldOutRow
from isoloop.fitting.selection.misfit import Misfit
from isoloop.fitting.selection.mixture import LawMixture, law_mixture
from isoloop.fitting.selection.overthinking import Overthinking
from isoloop.fitting.surface.surface import LossSurface
from isoloop.fitting.tables.contract import is_dense
from isoloop.fitting.tables.repetition import epochs_range
from isoloop.fitting.tables.runs import finished_rows, test_time_losses

FIT_FORMAT = "isoloop-fit/4"


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


@dataclass(frozen=True, kw_only=True)
class FittedFile:
    """The file whose table was fitted: its name without folder, and the SHA-256 of its bytes."""

    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FittedFile:
        """Return the name and digest of a file as it is now."""
        with path.open("rb") as file:
            return cls(name=path.name, sha256=hashlib.file_digest(file, "sha256").hexdigest())


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class SweepFit:
    """Everything fitted to one sweep, or to any table of runs.

    `training` is the law of the loss after training: that of the sweep, or for dense models L(N, D). A fit that could
    not be made is None, and `missing_fits` has the reason. `reading` says how the table was read, where that had to be
    guessed. `misfits` are tests of the form of each law. `mixture` weighs the laws of the loss after training, that of
    the sweep and the one that extends it, for predictions; None if none was fitted. `overthinking` is there if losses
    rise with T: then its laws take the place of those of test-time loops in predictions. `file` is the file of the
    table, None for a table that came from elsewhere. `rollouts` are predictions of all runs above each budget by the
    laws after training as fitted below it; if there are none, `why_no_rollouts` has the reason. `quality` is there if
    the table has benchmark scores.
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
    noise: NoiseModel | None = None
    misfits: tuple[Misfit, ...] = ()
    mixture: LawMixture | None = None
    overthinking: Overthinking | None = None
    file: FittedFile | None = None
    rollouts: CrossValidation | None = None
    why_no_rollouts: str = "this fit was made without rollouts"
    quality: QualityFit | None = None

    @property
    def axis(self) -> str:
        """The column in which models differ: `mean_recurrence`, or `params` for dense models."""
        return self.cost_model.axis

    @property
    def laws_after_training(self) -> LawMixture | None:
        """The laws of the loss after training with their weights, which every prediction of it rests on."""
        if self.training is None:
            return None
        return self.mixture or law_mixture([self.training])

    @property
    def surface(self) -> LossSurface | None:
        """The loss as a function of mean recurrence and tokens, or of parameters and tokens; None without a law."""
        laws = self.laws_after_training
        if laws is None:
            return None
        dense = isinstance(self.cost_model, DenseCost)
        return LossSurface(
            family=DenseFamily(cost=self.cost_model)
            if isinstance(self.cost_model, DenseCost)
            else ModelFamily(members=(FamilyMember(label="", cost=self.cost_model),)),
            laws=laws,
            loops_law=None if dense else self.loops_law("joint-test-time"),
            params=self.fitted.params,
            mean_recurrence=self.fitted.mean_recurrence,
            tokens=self.fitted.tokens,
            flops=self.fitted.flops,
            recurrence=self.fitted.recurrence,
        )

    @property
    def method_after_training(self) -> str:
        """Name of the laws after training as a method of predicting; empty if there are none."""
        laws = self.laws_after_training
        if laws is None:
            return ""
        return laws.name if self.axis == "params" else f"{laws.name} at T = mu"

    @property
    def laws(self) -> dict[str, LawFit | None]:
        """The laws fitted to all runs together, by name."""
        return {"training": self.training, "unified": self.unified, "joint-test-time": self.joint_test_time}

    def loops_law(self, name: str) -> LawFit | None:
        """Return the law that predicts losses at other T: the one of that name (unified, joint-test-time), or the law
        that extends it where losses rise with T.
        """
        extension = self.overthinking.extension(name) if self.overthinking else None
        return extension or self.laws[name]

    def why_missing(self, name: str) -> str:
        """Return why there is no fit of that name (isoflop, training, unified, joint-test-time, test-time)."""
        if name == "rollouts":
            return self.why_no_rollouts
        if self.axis == "params" and name in ("unified", "joint-test-time", "test-time"):
            return "dense models have no loops, so their loss doesn't depend on a recurrence at test time"
        return next((missing.reason for missing in self.missing_fits if missing.name == name), "it was fitted")

    def report(self) -> str:
        """Return the whole fit as text: methods, parameters, bounds that were hit, caveats. Intervals are 95%."""
        from isoloop.fitting.report.full import full_report

        return full_report(self) + ("" if self.quality is None else f"\n{self.quality.report()}")

    def summary(self, *, lines: int = 40, printable: Callable[[str], str] = str) -> str:
        """Return the answer, the estimates and what to doubt, in at most `lines` lines of 80 columns.

        `printable` spells out the characters that a terminal lacks.
        """
        from isoloop.fitting.report.screen import screen

        return screen(self, lines=lines, printable=printable)

    def to_json(self) -> str:
        """Return JSON text that `from_json` reads back into an equal fit, with every float exact.

        Raises:
            ValueError: one of its numbers isn't finite.
        """
        return stored_text(FIT_FORMAT, self.name, dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SweepFit:
        """Return the fit that `to_json` wrote. Raises ValueError for any other text, or another format's version."""
        fit = read_stored(text, FIT_FORMAT, _stored_fit())
        _check_laws(fit)
        return fit

    @classmethod
    def read(cls, path: str | Path) -> SweepFit:
        """Return the fit stored at `path`. Raises ValueError if there is none, or the file is something else."""
        return from_file(path, cls.from_json)


@cache
def _stored_fit() -> TypeAdapter[SweepFit]:
    return TypeAdapter(SweepFit)


Fit = TypeVar("Fit")


def from_file(path: str | Path, from_json: Callable[[str], Fit]) -> Fit:
    """Return the fit stored at `path`. Raises ValueError if there is none, or the file is something else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"a stored fit must exist, but there is none at {path}; make one with 'isoloop fit'")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def stored_text(fit_format: str, name: str, content: Mapping[str, object]) -> str:
    """Return the JSON text of a fit called `name`. Raises ValueError if one of its numbers isn't finite."""
    try:
        return json.dumps({"format": fit_format, **content}, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(
            f"a fit must consist of finite numbers, but some in that of {name} are missing or infinite; "
            "leave out the runs whose losses are far from the others' and fit again"
        ) from error


def format_of(text: str) -> object:
    """Return the format of a stored fit. Raises ValueError for text that isn't JSON."""
    return _parsed(text).get("format")


def read_stored(text: str, fit_format: str, adapter: TypeAdapter[Fit]) -> Fit:
    """Return the fit in a text of this format. Raises ValueError for another format, or a fit that isn't whole."""
    data = _parsed(text)
    stored_format = data.pop("format", None)
    if stored_format != fit_format:
        over_sizes = str(stored_format).startswith("isoloop-sizes")
        advice = "name a fit of one size, such as a sweep's groups" if over_sizes else "fit the sweep again"
        raise ValueError(f"a stored fit must have the format {fit_format!r}, but got {stored_format!r}; {advice}")
    try:
        return adapter.validate_json(json.dumps(data))
    except ValidationError as error:
        raise ValueError(f"a stored fit must be whole, but {_first_fault(error)}; fit the sweep again") from None


def _parsed(text: str) -> dict[str, object]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a stored fit must be JSON, but it is not: {error}; fit the sweep again") from error
    return data if isinstance(data, dict) else {}


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
    rising = fit.overthinking
    extensions = [(law_fit.law, law_fit) for law_fit in rising.laws] if rising else []
    of_models = [("test-time", law_fit) for law_fit in fit.test_time]
    of_models += [("overthinking", law_fit) for law_fit in rising.test_time] if rising else []
    for name, law_fit in (*fit.laws.items(), *extensions, *of_models):
        if law_fit is None:
            continue
        # The loss after training may follow any law; the others are what they are called.
        check_stored_law(law_fit.law if name == "training" else name, law_fit)
    check_stored_quality(fit.quality)


def check_stored_quality(quality: QualityFit | None) -> None:
    """Raise ValueError unless the laws of a stored fit of quality can be loaded, with all their values."""
    for score in quality.scores if quality else ():
        for step in filter(None, (score.task_loss, score.wrong)):
            for law_fit in step.laws:
                check_stored_law(law_fit.law, law_fit)


def check_stored_law(due: str, law_fit: LawFit) -> None:
    """Raise ValueError unless a stored fit is one of the law `due`, which can be loaded, with all its values."""
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
