"""What a tuning found, for people and for the next sweep: tuned.yaml, tune.csv and tune.txt."""

import csv
import datetime
import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from isoloop.sweeps.messages import aligned
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.privacy import redacted
from isoloop.sweeps.tuning.search_space import Search, Trial, Values, ended, tuned_names
from isoloop.sweeps.tuning.transfer_check import Check

RUNNERS_UP = 5


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A tuning that has come to its end.

    Attributes:
        source: the sweep as the command names it.
        search: what was searched.
        trials: all of them.
        best: the finished one with the lowest loss.
        check: whether it holds at other recurrences; None if nobody looked.
    """

    source: str
    search: Search
    trials: tuple[Trial, ...]
    best: Trial
    check: Check | None

    @property
    def runners_up(self) -> list[Trial]:
        """Trials that the noise can't tell from the best, or, where it wasn't measured, the next ones."""
        others = [trial for trial in ended(self.trials) if trial is not self.best]
        margin = None if self.check is None else self.check.margin
        if margin is None:
            return others[:RUNNERS_UP]
        assert self.best.loss is not None, "the best trial has a loss"
        most = self.best.loss + margin
        return [trial for trial in others if trial.loss is not None and trial.loss <= most]

    def summary(self) -> list[str]:
        """What was found, line by line."""
        spec = self.search.base.spec
        kind, amount = self.search.asked
        lines = [
            f"best: trial {self.best.number}, validation loss {self.best.loss:.4f} nats per token at µ = "
            f"{self.search.mean}, {kind} {amount:.4g}, seed {spec.seed}",
            f"      {tuned_names(self.best.values)}",
            self._counts(),
            *(f"not tried: {note}" for note in self.search.notes),
            *(
                f"{path} = {self.best.values[path]} lies at an end of its range: widen it in tune.space"
                for path in self.search.at_edge(self.best.values)
            ),
            *self._near(),
        ]
        if self.check is None:
            return [*lines, "not checked at other recurrences and rates (--no-check)"]
        return [*lines, *self._verdicts(self.check)]

    def advice(self, folders: Folders) -> list[str]:
        """What to write into a sweep to take the settings up."""
        name = self.search.sweep.name
        where = folders.sweep / "tuned.yaml"
        return [
            f"To take it up, write into {name}-tuned.yaml (what it extends last wins), and run that:",
            f"  extends: [{self.source}, {where}]",
            f"  name: {name}-tuned",
        ]

    def _counts(self) -> str:
        counts = Counter(trial.outcome for trial in self.trials)
        said = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        return f"of {len(self.trials)} trials: {said}"

    def _near(self) -> list[str]:
        near = self.runners_up
        margin = None if self.check is None else self.check.margin
        if margin is None:
            heading = "next best; the noise to tell them apart was not measured:"
        else:
            heading = f"within the noise of the best (less than {margin:.4f} worse):"
        rows = [f"      trial {trial.number}, {trial.loss:.4f}: {tuned_names(trial.values)}" for trial in near]
        return [heading, *rows] if near else [f"no other trial is {heading[:-1]}"] if margin is not None else []

    def _verdicts(self, check: Check) -> list[str]:
        noise = (
            "noise between seeds was not measured"
            if check.noise is None
            else f"noise between seeds {check.noise:.4f}, from {check.pairs} pair(s); a difference counts from "
            f"{check.margin:.4f} on"
        )
        return [
            f"check at half and twice the learning rates ({noise}):",
            *(f"      µ = {verdict.mean}: {verdict.said}" for verdict in check.verdicts),
        ]


def write_tuned(tuned: Tuned, folders: Folders, command: str) -> None:
    """Write the three files into the tuning's folder."""
    folders.sweep.mkdir(parents=True, exist_ok=True)
    (folders.sweep / "tuned.yaml").write_text(tuned_yaml(tuned, folders, command))
    summary = [*tuned.summary(), "", *trial_table(tuned.trials)]
    if tuned.check is not None:
        summary += ["", *check_table(tuned.check)]
    (folders.sweep / "tune.txt").write_text("\n".join([*summary, ""]))
    _write_csv(tuned, folders)


def tuned_yaml(tuned: Tuned, folders: Folders, command: str) -> str:
    """The winning settings, only those of the space, under a header that says where they come from."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    header = [
        f"Settings that won a tuning of the sweep {tuned.search.sweep.name} on {date}, by isoloop "
        f"{importlib.metadata.version('isoloop')}:",
        f"  {redacted(command)}",
        *tuned.summary(),
        *tuned.advice(folders),
    ]
    content: dict[str, Any] = {}
    for path, value in tuned.best.values.items():
        *sections, last = path.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = list(value) if isinstance(value, tuple) else value
    settings = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}".rstrip() + "\n" for line in header) + settings


def trial_table(trials: Sequence[Trial]) -> list[str]:
    """A row for each trial, best first, then pruned ones, then those without a loss."""
    order = {"finished": 0, "pruned": 1, "diverged": 2, "failed": 3, "running": 4}
    rows = [["trial", "outcome", "loss", "at", "settings"]]
    for trial in sorted(trials, key=lambda trial: (order[trial.outcome], trial.loss or 0.0, trial.number)):
        rows.append(
            [
                str(trial.number),
                trial.outcome,
                "-" if trial.loss is None else f"{trial.loss:.4f}",
                "-" if trial.share is None else f"{trial.share:.0%}",
                tuned_names(trial.values) + (f"  ({trial.reason})" if trial.reason else ""),
            ]
        )
    return aligned(rows, right=True)


def check_table(check: Check) -> list[str]:
    """A row for each run of the check."""
    rows = [["µ", "rates", "seed", "outcome", "loss"]]
    for run in sorted(check.runs, key=lambda run: (run.mean, run.seed, run.factor)):
        loss = f"({run.reason})" if run.loss is None else f"{run.loss:.4f}"
        rows.append([str(run.mean), f"x{run.factor:g}", str(run.seed), run.outcome or "-", loss])
    return aligned(rows, right=True)


def _write_csv(tuned: Tuned, folders: Folders) -> None:
    paths = list(tuned.search.space)
    columns = ["kind", "trial", "run_id", "outcome", "loss", "share", "mean_recurrence", "factor", "seed", "reason"]
    seed = tuned.search.base.spec.seed
    with (folders.sweep / "tune.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*columns, *paths])
        for trial in tuned.trials:
            own = ["trial", trial.number, trial.run_id, trial.outcome, trial.loss, trial.share]
            table.writerow([*own, tuned.search.mean, 1.0, seed, trial.reason, *_row(trial.values, paths)])
        for run in tuned.check.runs if tuned.check else ():
            own = ["check", None, run.cell and run.cell.run_id, run.outcome, run.loss, run.loss and 1.0]
            values = {} if run.cell is None else run.cell.axes
            table.writerow([*own, run.mean, run.factor, run.seed, run.reason, *_row(values, paths)])


def _row(values: Values, paths: Sequence[str]) -> list[Any]:
    return [values.get(path) for path in paths]
