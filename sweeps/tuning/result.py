"""The result of a tuning, for people and for the next sweep: tuned.yaml, tune.csv and tune.txt."""

import csv
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoloop import __version__
from isoloop.sweeps.config.yaml_text import dump_yaml
from isoloop.sweeps.messages import align_columns
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.axes import MEAN_RECURRENCE
from isoloop.sweeps.tuning.search_space import SearchSpace, Trial, TrialValues, describe_values, finished_trials
from isoloop.sweeps.tuning.transfer_check import TransferCheck

RUNNERS_UP = 5


@dataclass(frozen=True, kw_only=True)
class TuningResult:
    """A tuning that has ended.

    Attributes:
        source: the sweep as the command names it.
        space: the search space.
        trials: all trials.
        best: the finished trial with the lowest loss.
        check: the check that the best holds at other recurrences; None if it was left out.
        failed: reasons of this call's failures, by run id.
    """

    source: str
    space: SearchSpace
    trials: tuple[Trial, ...]
    best: Trial
    check: TransferCheck | None
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def margin(self) -> float | None:
        """The smallest significant difference of two losses, None if the noise wasn't measured."""
        return None if self.check is None else self.check.margin

    @property
    def settings(self) -> dict[str, Any]:
        """The best settings of the space, as a configuration has them."""
        content: dict[str, Any] = {}
        for path, value in self.best.values.items():
            *sections, key = path.split(".")
            section = content
            for name in sections:
                section = section.setdefault(name, {})
            section[key] = list(value) if isinstance(value, tuple) else value
        return content

    @property
    def runners_up(self) -> list[Trial]:
        """The trials within the noise of the best, or the next best few if the noise wasn't measured."""
        others = [trial for trial in finished_trials(self.trials) if trial is not self.best]
        if self.margin is None:
            return others[:RUNNERS_UP]
        assert self.best.loss is not None, "the best trial has a loss"
        limit = self.best.loss + self.margin
        return [trial for trial in others if trial.loss is not None and trial.loss <= limit]

    def summary(self) -> list[str]:
        """Return the result in words, line by line."""
        size, amount = self.space.size
        outcomes = Counter(trial.outcome for trial in self.trials)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        lines = [
            f"best: trial {self.best.number}, validation loss {self.best.loss:.4f} nats per token at µ = "
            f"{self.space.mean_recurrence}, {size} {amount:.4g}, seed {self.space.base.spec.seed}",
            f"      {describe_values(self.best.values)}",
            f"of {len(self.trials)} trials: {counts}",
            *(f"left out: {note}" for note in self.space.notes),
            *(
                f"{path} = {self.best.values[path]} lies at an end of its range: widen it in tune.space"
                for path in self.space.paths_at_edge(self.best.values)
            ),
            *self._runners_up_lines(),
        ]
        if self.check is None:
            return [*lines, "not checked at other recurrences and rates (--no-check)"]
        noise = (
            "noise between seeds was not measured"
            if self.check.noise is None
            else f"noise between seeds {self.check.noise:.4f}, from {self.check.pairs} pair(s); differences are "
            f"significant from {self.margin:.4f} on"
        )
        verdicts = (f"      µ = {verdict.mean_recurrence}: {verdict.text}" for verdict in self.check.verdicts)
        return [*lines, f"check at half and twice the learning rates ({noise}):", *verdicts]

    def advice(self, folders: Folders) -> list[str]:
        """Return how a sweep takes up the settings."""
        name = self.space.sweep.name
        return [
            f"To use these settings, write into {name}-tuned.yaml (the last in the list has precedence), and run it:",
            f"  extends: [{self.source}, {folders.sweep / 'tuned.yaml'}]",
            f"  name: {name}-tuned",
        ]

    def _runners_up_lines(self) -> list[str]:
        rows = [
            f"      trial {trial.number}, {trial.loss:.4f}: {describe_values(trial.values)}"
            for trial in self.runners_up
        ]
        if self.margin is None:
            return ["next best (the noise between them was not measured):", *rows] if rows else []
        heading = f"within the noise of the best (less than {self.margin:.4f} worse)"
        return [f"{heading}:", *rows] if rows else [f"no other trial is {heading}"]


def write_result_files(result: TuningResult, folders: Folders, command: str) -> None:
    """Write tuned.yaml, tune.txt and tune.csv into the tuning's folder; `command` without secrets."""
    folders.sweep.mkdir(parents=True, exist_ok=True)
    (folders.sweep / "tuned.yaml").write_text(settings_yaml(result, folders, command), encoding="utf-8")
    lines = [*result.summary(), "", *trial_table(result.trials)]
    if result.check is not None:
        lines += ["", *check_run_table(result.check)]
    (folders.sweep / "tune.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    _write_csv(result, folders)


def settings_yaml(result: TuningResult, folders: Folders, command: str) -> str:
    """Return the best settings of the space, under a header that says where they come from."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    header = [
        f"Best settings of a tuning of the sweep {result.space.sweep.name} on {date}, by isoloop {__version__}:",
        f"  {command}",
        *result.summary(),
        *result.advice(folders),
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in header) + dump_yaml(result.settings)


def trial_table(trials: Sequence[Trial]) -> list[str]:
    """Return a row for each trial, best first, then pruned ones, then those without a loss."""
    order = {"finished": 0, "pruned": 1, "diverged": 2, "failed": 3, "running": 4}
    rows = [["trial", "outcome", "loss", "at", "settings"]]
    for trial in sorted(trials, key=lambda trial: (order[trial.outcome], trial.loss or 0.0, trial.number)):
        loss = "-" if trial.loss is None else f"{trial.loss:.4f}"
        share = "-" if trial.share is None else f"{trial.share:.0%}"
        settings = describe_values(trial.values) + (f"  ({trial.reason})" if trial.reason else "")
        rows.append([str(trial.number), trial.outcome, loss, share, settings])
    return align_columns(rows, right=True)


def check_run_table(check: TransferCheck) -> list[str]:
    """Return a row for each run of the check."""
    rows = [["µ", "rates", "seed", "outcome", "loss"]]
    for run in sorted(check.runs, key=lambda run: (run.mean_recurrence, run.seed, run.factor)):
        loss = f"({run.reason})" if run.loss is None else f"{run.loss:.4f}"
        rows.append([str(run.mean_recurrence), f"x{run.factor:g}", str(run.seed), run.outcome or "-", loss])
    return align_columns(rows, right=True)


def _write_csv(result: TuningResult, folders: Folders) -> None:
    space = result.space
    paths = [path for path in space.dimensions if path != MEAN_RECURRENCE]
    columns = ["kind", "trial", "run_id", "outcome", "loss", "share", "mean_recurrence", "factor", "seed", "reason"]

    def settings(values: TrialValues) -> list[Any]:
        return [values.get(path) for path in paths]

    with (folders.sweep / "tune.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*columns, *paths])
        for trial in result.trials:
            row = ["trial", trial.number, trial.run_id, trial.outcome, trial.loss, trial.share]
            setup = [trial.values.get(MEAN_RECURRENCE, space.mean_recurrence), 1.0, space.base.spec.seed]
            table.writerow([*row, *setup, trial.reason, *settings(trial.values)])
        for run in result.check.runs if result.check else ():
            row = ["check", None, run.cell and run.cell.run_id, run.outcome, run.loss, run.loss and 1.0]
            setup = [run.mean_recurrence, run.factor, run.seed]
            table.writerow([*row, *setup, run.reason, *settings({} if run.cell is None else run.cell.axes)])
