"""Tuned learning rates: the law of a tuning, as a sweep takes it, and the rates of each run with their uncertainty."""

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.paths import Folders
from isoloop.trainer.accounting import count_parameters
from isoloop.trainer.config import SHAPE_FIELDS, ModelConfig, OptimizerConfig, RunSpec
from isoloop.trainer.files import write_atomically

if TYPE_CHECKING:
    from isoloop.fitting.rate_law import BestRates, RateLaw
    from isoloop.sweeps.plan.grid import Cell

FORMAT = "isoloop-rates"
RATE_PATHS = ("optimizer.learning_rate", "optimizer.muon_learning_rate")
DIGITS = 3  # of a rate
_NAMED_RUNS = 6
_TEXT = "data_fingerprint"
# Settings of depth on which the best rates depend besides the mean.
_DEPTH = ("sampling", "distribution", "curriculum_start", "curriculum_fraction", "curriculum_shape", "phases")


@dataclass(frozen=True, kw_only=True)
class RunRates:
    """The tuned learning rates of one run.

    Attributes:
        optimizer: the run's optimizer with them.
        best: the rates by the law, with their intervals and expected cost.
        differences: settings in which the run differs from the trials.
    """

    optimizer: OptimizerConfig
    best: "BestRates"
    differences: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, float]:
        """Columns of the run table: the factor beyond the trials' range (1 inside) and the expected cost in nats."""
        columns = {"rate_extrapolated": max(self.best.beyond.values(), default=1.0)}
        return columns if self.best.nats is None else {**columns, "rate_nats": self.best.nats}


@dataclass(frozen=True, kw_only=True)
class TunedRates:
    """The law of the best learning rates that a tuning found.

    Attributes:
        law: the law; the names of its rates are paths of settings.
        tuning: name of the sweep that was tuned.
        date: day of the result.
        settings: all that the trials had in common besides, by path; the rates are best for these.
        notices: what to tell the user about where the law was read.
    """

    law: "RateLaw"
    tuning: str
    date: str
    settings: Mapping[str, Any]
    notices: tuple[str, ...] = ()
    _runs: dict[Any, RunRates] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_trials(cls, law: "RateLaw", sweep: SweepConfig, spec: RunSpec) -> "TunedRates":
        """Return the rates of a tuning whose trials had the settings of `spec`."""
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        return cls(law=law, tuning=sweep.name, date=date, settings=_settings(spec, sweep.accounting, law.rates))

    def of_run(self, spec: RunSpec, flops: float, accounting: str) -> RunRates:
        """Return the rates of a run that is planned to spend `flops`."""
        key = spec.model_copy(update={"steps": 1, "seed": 0}), flops
        if key not in self._runs:
            best = self.law.at(rate_features(spec.model, flops=flops, mean_recurrence=spec.recurrence.mean))
            rates = {path.rpartition(".")[2]: float(f"{rate:.{DIGITS}g}") for path, rate in best.rates.items()}
            optimizer = OptimizerConfig(**(spec.optimizer.model_dump() | rates))
            own = _settings(spec, accounting, self.law.rates)
            # Those that an older tuning doesn't name had their defaults.
            defaults = _settings(RunSpec(data_fingerprint="", steps=1), accounting, self.law.rates)
            tuned = {**defaults, **self.settings}
            differences = tuple(
                "another text" if path == _TEXT else f"{path} = {own.get(path)} instead of {tuned[path]}"
                for path in tuned
                if own.get(path) != tuned[path]
            )
            self._runs[key] = RunRates(optimizer=optimizer, best=best, differences=differences)
        return self._runs[key]

    def write(self, path: Path) -> None:
        """Write the rates as JSON."""
        content = {"format": FORMAT, "tuning": self.tuning, "date": self.date, "settings": self.settings}
        write_atomically(path, json.dumps(content | {"law": json.loads(self.law.to_json())}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, *, notices: tuple[str, ...] = ()) -> "TunedRates":
        """Read the rates. Raises ValueError if the file holds something else."""
        from isoloop.fitting.rate_law import RateLaw

        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            law = RateLaw.from_json(json.dumps(content["law"]))
            return cls(
                law=law, tuning=content["tuning"], date=content["date"], settings=content["settings"], notices=notices
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"tuned must name a tuning of learning rates, but {path} holds something else; tune again, or correct "
                "the path"
            ) from error


def tuned_rates(sweep: SweepConfig, folders: Folders) -> TunedRates | None:
    """Return the rates that a sweep's runs take; None if its learning rate is a number.

    A sweep that has begun keeps the rates that it began with, since a run with another rate is another run.

    Raises:
        ValueError: there is no such tuning, or an axis or a point sets a tuned rate.
    """
    if sweep.tuned is None:
        return None
    path = Path(sweep.tuned)
    if path.suffix != ".json":
        path = Folders(out=folders.out, name=f"{sweep.tuned}/tune").rates
    rates = None
    if folders.rates.is_file():
        rates = TunedRates.read(folders.rates)
        if path.is_file() and TunedRates.read(path) != rates:
            notice = f"the rates are those that the sweep began with; delete {folders.rates} to take those of {path}"
            rates = TunedRates.read(folders.rates, notices=(notice,))
    elif path.is_file():
        rates = TunedRates.read(path)
    if rates is None:
        raise ValueError(
            f"tuned learning rates need a tuning in several cells, but there is no {path}; set tune.budgets and "
            "tune.mean_recurrences and run 'isoloop tune', or name another sweep's tuning (tuned: NAME)"
        )
    entries = [entry for values in sweep.axes.values() for entry in values if isinstance(entry, Mapping)]
    varied = {*sweep.axes, *(name for part in (*entries, *sweep.points) for name in part)}
    if both := varied & {RATE_PATHS[0], *rates.law.rates}:
        raise ValueError(f"a learning rate must be tuned or varied, but {min(both)} is both; keep one")
    return rates


def rate_features(model: ModelConfig, *, flops: float, mean_recurrence: float) -> dict[str, float]:
    """Return what the best rates depend on: FLOPs, µ_rec, and the distinct parameters without embeddings."""
    counted = count_parameters(model)
    params = counted.effective_fixed + counted.effective_per_loop
    return {"flops": flops, "mean_recurrence": float(mean_recurrence), "params": float(params)}


def rate_lines(rates: TunedRates | None, cells: Sequence["Cell"], *, every_run: bool = False) -> Iterator[str]:
    """Yield what to say of a plan's tuned rates: the law, the runs that it extrapolates to, and what that may cost."""
    from isoloop.fitting.rate_law import describe_beyond

    if rates is None:
        return
    chosen = [(cell, cell.rates) for cell in cells if cell.rates is not None]
    yield from rates.notices
    law = rates.law
    yield f"by the tuning of {rates.tuning} on {rates.date}, {law.trials_used} trials in {law.cells} cell(s)"
    nats = [run.best.nats for _, run in chosen if run.best.nats is not None]
    if nats:
        yield f"the uncertainty of the best rates costs {min(nats):.2g} to {max(nats):.2g} nats per token (expected)"
    beyond = [(cell, run) for cell, run in chosen if run.best.beyond]
    for cell, run in beyond[: None if every_run else _NAMED_RUNS]:
        cost = "at an unknown cost" if run.best.nats is None else f"{run.best.nats:.2g} nats (expected)"
        yield f"extrapolated (*): {cell.label}: {describe_beyond(run.best.beyond)}, {cost}"
    if len(beyond) > _NAMED_RUNS and not every_run:
        yield f"and {len(beyond) - _NAMED_RUNS} more, {len(beyond)} of {len(chosen)} runs in all (--all names them)"
    elif not beyond:
        yield "no run's rate is extrapolated: all lie within the range of the trials"
    differences = dict.fromkeys(text for _, run in chosen for text in run.differences)
    if differences:
        yield f"tuned with other settings, for which other rates may be best: {'; '.join(differences)}"


def _settings(spec: RunSpec, accounting: str, rates: Sequence[str]) -> dict[str, Any]:
    """Return the settings on which the best rates depend, without the `rates` and the features of the law."""
    fields = spec.all_fields()
    content = {
        name: fields[name] for name in ("model", "optimizer", "schedule", "initialisation", "batch", "precision")
    }
    content["recurrence"] = {name: fields["recurrence"][name] for name in _DEPTH}
    content["data"] = {name: fields["data"][name] for name in ("packing", "document_mask")}
    settings = {"accounting": accounting, _TEXT: spec.data_fingerprint}
    for section, values in content.items():
        nested = values if isinstance(values, dict) else None
        settings |= {section: values} if nested is None else {f"{section}.{key}": nested[key] for key in nested}
    left_out = {*rates, *(f"model.{name}" for name in SHAPE_FIELDS - {"context", "vocabulary"})}
    return {path: value for path, value in settings.items() if path not in left_out}
