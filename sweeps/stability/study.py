"""Stability study: which injection converges, spikes or diverges at which learning rate.

Each run is judged by the run table and its journal, with the numbers of `StabilityRule`:

diverges
    The run ended early, on a loss or gradient that wasn't finite or a loss that exploded (trainer/loop.py); or
    ‖h_T‖ wasn't finite in a logged step; or the loss at T = µ ended more than `within` nats above the best run's of
    the study, so that whatever it had learned was lost, or nothing was learned.
spikes
    It ended near the best run, but after the first tenth of its steps the training loss (median of 3 logged steps)
    rose by more than `spike` nats above its minimum so far.
converges
    Neither.

As the best run is that of the study, the rule only compares runs of the same tokens and mean recurrence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf, isfinite
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from isoloop.sweeps.messages import align_columns
from isoloop.sweeps.plan.axes import LEARNING_RATE, SEED

if TYPE_CHECKING:
    import pandas as pd

    from isoloop.sweeps.config.schema import SweepConfig

StabilityOutcome = Literal["converges", "spikes", "diverges", "failed"]

INJECTION = "model.injection"
_START_SHARE = 0.1  # of the steps, in which a rising loss is no spike
_CRITICAL_RADIUS = 1.0
# Columns of the stored table and the attributes of a run, in their order; loss_T<T> follow `loss`.
RUN_COLUMNS = {"variant": "variant", LEARNING_RATE: "learning_rate"}
RUN_COLUMNS |= {name: name for name in ("seed", "run_id", "outcome", "reason", "steps", "loss", "spectral_radius")}
RUN_COLUMNS |= {"greatest_spectral_radius": "max_spectral_radius", "state_norm_growth": "norm_growth", "spike": "spike"}


@dataclass(frozen=True, kw_only=True)
class StabilityRule:
    """Limits in nats per token.

    Args:
        within: largest difference between a run's loss at T = µ and the best run's.
        spike: largest rise of the smoothed training loss above its minimum so far.
    """

    within: float = 0.5
    spike: float = 1.0

    def describe(self) -> str:
        """Return the rule in words."""
        return (
            "diverges: the run ended early on a loss that was not finite or exploded, or ‖h_T‖ overflowed in a logged\n"
            f"  step, or its loss at T = µ ended more than {self.within:g} nats above the best run's of the study;\n"
            "spikes: it ended near the best, but after the first tenth of its steps the training loss (median of 3\n"
            f"  logged steps) rose by more than {self.spike:g} nats above its minimum so far;\n"
            "converges: neither. 'n of m': n of m seeds converge, and not all agree."
        )


@dataclass(frozen=True, kw_only=True)
class LoggedCurve:
    """Training loss (nats per token), ρ(Ā), and ‖h_T‖ (mean over tokens) of the logged steps of a run."""

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    spectral_radii: tuple[float, ...] = ()
    state_norms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StabilityRun:
    """One run of the study; None where nothing was logged or measured.

    Attributes:
        reason: why the run doesn't converge; empty if it does.
        loss: validation loss at T = µ, nats per token; `losses` are those by recurrence T.
        spectral_radius: ρ(Ā) in the last logged step; `max_spectral_radius` is the largest logged.
        norm_growth: largest ‖h_T‖ divided by the first one logged; inf if it overflowed.
        spike: largest rise of the smoothed training loss, nats per token.
    """

    run_id: str
    variant: str
    learning_rate: float
    seed: int
    outcome: StabilityOutcome
    reason: str
    steps: int
    loss: float | None
    losses: Mapping[float, float]
    spectral_radius: float | None
    max_spectral_radius: float | None
    norm_growth: float | None
    spike: float | None
    curve: LoggedCurve


@dataclass(frozen=True, kw_only=True)
class StabilityStudy:
    """Every run of a study with its outcome; the variants are in the configured order."""

    name: str
    mean_recurrence: float
    variants: tuple[str, ...]
    rule: StabilityRule
    runs: tuple[StabilityRun, ...]

    @property
    def learning_rates(self) -> list[float]:
        """The learning rates, ascending."""
        return sorted({run.learning_rate for run in self.runs})

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return sorted({run.seed for run in self.runs})

    def cell_text(self, variant: str, learning_rate: float) -> str:
        """Return the outcome of a cell if all seeds agree, else how many converge; '-' if nothing ran."""
        cell = [run for run in self.runs if (run.variant, run.learning_rate) == (variant, learning_rate)]
        outcomes = [run.outcome for run in cell]
        if len(set(outcomes)) <= 1:
            return outcomes[0] if outcomes else "-"
        return f"{outcomes.count('converges')} of {len(outcomes)}"

    def converges_up_to(self, variant: str) -> float | None:
        """Return the largest learning rate up to which every seed converges at every rate; None if there is none."""
        converged = takewhile(lambda rate: self.cell_text(variant, rate) == "converges", self.learning_rates)
        return max(converged, default=None)

    def frame(self) -> "pd.DataFrame":
        """Return a row per run in natural units, with the run table's column names as far as it has them."""
        import pandas as pd

        recurrences = sorted({recurrence for run in self.runs for recurrence in run.losses})
        frame = pd.DataFrame([[getattr(run, name) for name in RUN_COLUMNS.values()] for run in self.runs])
        frame.columns = pd.Index(RUN_COLUMNS)
        for index, recurrence in enumerate(recurrences, start=frame.columns.get_loc("loss") + 1):
            frame.insert(index, f"loss_T{recurrence:g}", [run.losses.get(recurrence) for run in self.runs])
        return frame

    def summary(self) -> str:
        """Return the table of outcomes, the rule, and how ρ(Ā) relates to divergence in each variant."""
        rates = [f"{rate:g}" for rate in self.learning_rates]
        cells = [[name, *(self.cell_text(name, rate) for rate in self.learning_rates)] for name in self.variants]
        seeds = f"{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        lines = [
            f"Stability of '{self.name}' by learning rate, µ = {self.mean_recurrence:g}, {seeds}",
            "",
            *align_columns([["learning rate", *rates], *cells]),
            "",
            *self.rule.describe().splitlines(),
            self._sensitivity(),
            "",
            *(self._radius_line(variant) for variant in self.variants),
        ]
        return "\n".join(lines) + "\n"

    def report(self) -> str:
        """Return the summary and a line for every run."""
        recurrences = sorted({1.0, self.mean_recurrence, 2 * self.mean_recurrence})
        head = ["", "learning rate", "seed", "outcome", *(f"T = {recurrence:g}" for recurrence in recurrences)]
        rows = [[*head, "ρ(Ā) end", "max", "‖h_T‖ x", "reason"]]
        for run in self.runs:
            losses = [_format(run.losses.get(recurrence), "4f") for recurrence in recurrences]
            logged = [_format(x, "3g") for x in (run.spectral_radius, run.max_spectral_radius, run.norm_growth)]
            rows.append(
                [run.variant, f"{run.learning_rate:g}", str(run.seed), run.outcome, *losses, *logged, run.reason]
            )
        title = "Every run: validation loss at T loops, nats per token; ρ(Ā); growth of ‖h_T‖ over its first value"
        return "\n".join([self.summary(), title, "", *align_columns(rows)]) + "\n"

    def _sensitivity(self) -> str:
        """Return between which limits the judgement by the final loss is the same."""
        best = min((run.loss for run in self.runs if run.loss is not None), default=inf)
        gaps = [run.loss - best for run in self.runs if run.loss is not None and run.norm_growth != inf]
        near = max((gap for gap in gaps if gap <= self.rule.within), default=0.0)
        far = min((gap for gap in gaps if gap > self.rule.within), default=inf)
        limits = f"from {near:.2f} nats on gives" if far == inf else f"from {near:.2f} to {far:.2f} nats gives"
        return f"Any limit {limits} the same outcomes, instead of {self.rule.within:g}."

    def _radius_line(self, variant: str) -> str:
        """Return how far a variant converges, and in how many runs that diverged, and that didn't, ρ(Ā) reached 1."""
        highest = self.converges_up_to(variant)
        extent = "at no learning rate from the smallest on" if highest is None else f"up to {highest:g}"
        runs = [run for run in self.runs if run.variant == variant and run.max_spectral_radius is not None]
        values = {radius for run in runs for radius in run.curve.spectral_radii}
        if len(values) == 1:
            return f"{variant}: converges {extent}; ρ(Ā) is {values.pop():g} throughout"
        counts = []
        for text, diverged in (("diverged", True), ("did not", False)):
            some = [run for run in runs if (run.outcome == "diverges") == diverged]
            reached = sum((run.max_spectral_radius or 0.0) >= _CRITICAL_RADIUS for run in some)
            if some:
                counts.append(f"{reached} of {len(some)} runs that {text}")
        return f"{variant}: converges {extent}; ρ(Ā) reached 1 in {' and '.join(counts) or 'no run that logged it'}"


def is_study(sweep: "SweepConfig") -> bool:
    """Return whether the sweep's runs differ in learning rate and injection, and otherwise at most in seed."""
    try:
        variant_axis(sweep)
    except ValueError:
        return False
    return True


def variant_axis(sweep: "SweepConfig") -> str:
    """Return the name of the axis of a stability study that varies the injection.

    Raises:
        ValueError: the sweep isn't a study.
    """
    name = sweep.name
    if sweep.simulation is not None:
        raise ValueError(
            f"a stability study must train, but '{name}' draws its losses from a law; remove its simulation"
        )
    injection_axes = [
        axis
        for axis, entries in sweep.axes.items()
        if axis == INJECTION or any(isinstance(entry, Mapping) and INJECTION in entry for entry in entries)
    ]
    if LEARNING_RATE not in sweep.axes or len(injection_axes) != 1:
        raise ValueError(
            f"a stability study must have an axis {LEARNING_RATE} and one that sets {INJECTION}, but '{name}' has "
            f"{', '.join(sweep.axes) or 'no axes'}; see the preset 'stability'"
        )
    counts = (len(sweep.budgets or sweep.tokens or ()), len(sweep.mean_recurrences or ()))
    others = set(sweep.axes) - {LEARNING_RATE, SEED, *injection_axes}
    if others or sweep.points or counts != (1, 1):
        raise ValueError(
            f"a stability study's runs may only differ in learning rate, injection and seed, but those of '{name}' "
            f"also differ in {', '.join(sorted(others)) or 'tokens, mean recurrence or single points'}; make it "
            "several sweeps"
        )
    return injection_axes[0]


def judge_runs(
    table: "pd.DataFrame",
    journals: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    name: str,
    variant: str,
    variants: Sequence[str] = (),
    rule: StabilityRule = StabilityRule(),
) -> StabilityStudy:
    """Judge every run of a study.

    Args:
        table: run table with the columns `optimizer.learning_rate` and `variant`.
        journals: records of each run's journal, by run id; a run without one is judged by the table alone.
        name: name of the sweep.
        variant: the column that names the injection variant.
        variants: order of the variants; others follow in the order of the table.
        rule: the limits.

    Raises:
        ValueError: a column is missing, or the table has several mean recurrences.
    """
    from isoloop.fitting.tables.contract import loss_columns

    # Check the table.
    missing = {LEARNING_RATE, variant} - set(table.columns)
    if missing:
        raise ValueError(
            f"a stability study's table must have {', '.join(sorted(missing))}, but it is missing; rerun the sweep"
        )
    means = sorted(set(table["mean_recurrence"]))
    if len(means) != 1:
        raise ValueError(f"a stability study must have one mean recurrence, but got {means}; keep one")

    # Judge each run, relative to the best.
    columns = loss_columns(table)
    rows = [present_values(row) for row in table.to_dict("records")]
    best = min((row["loss"] for row in rows if "loss" in row), default=inf)
    runs = []
    for row in rows:
        losses = {recurrence: row[column] for column, recurrence in columns.items() if column in row}
        runs.append(_judge(row, losses, read_curve(journals.get(row["run_id"], ())), best, variant, rule))

    # Order the runs by variant, learning rate and seed.
    in_table = dict.fromkeys(str(value) for value in table[variant])
    ordered = list(dict.fromkeys([*(name for name in variants if name in in_table), *in_table]))
    runs.sort(key=lambda run: (ordered.index(run.variant), run.learning_rate, run.seed))
    return StabilityStudy(
        name=name, mean_recurrence=float(means[0]), variants=tuple(ordered), rule=rule, runs=tuple(runs)
    )


def read_curve(records: Sequence[Mapping[str, Any]]) -> LoggedCurve:
    """Return training loss, ρ(Ā) and ‖h_T‖ from a journal's records; nothing for a model without loops."""
    logged = [record for record in records if record["kind"] == "metrics" and "state_norm" in record["values"]]
    return LoggedCurve(
        steps=tuple(record["step"] for record in logged),
        losses=tuple(record["values"]["train_loss"] for record in logged),
        spectral_radii=tuple(record["values"]["spectral_radius"] for record in logged),
        state_norms=tuple(record["values"]["state_norm"] for record in logged),
    )


def largest_rise(losses: Sequence[float]) -> float:
    """Return the largest rise of the smoothed loss above its minimum so far, after the first tenth of the steps."""
    if len(losses) < 3:
        return 0.0
    smooth = [median(losses[index : index + 3]) for index in range(len(losses) - 2)]
    lowest, rise = inf, 0.0
    for index, loss in enumerate(smooth):
        lowest = min(lowest, loss)
        if index >= _START_SHARE * len(losses):
            rise = max(rise, loss - lowest)
    return rise


def present_values(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a table's row without missing values."""
    return {str(name): value for name, value in row.items() if value is not None and value == value}


def _judge(
    row: Mapping[str, Any],
    losses: Mapping[float, float],
    curve: LoggedCurve,
    best: float,
    variant: str,
    rule: StabilityRule,
) -> StabilityRun:
    """Return one run with its outcome: the first of the rule's conditions that applies."""
    # NaN counts as an overflow, too: it comes from inf - inf.
    norms, radii = ([x if isfinite(x) else inf for x in xs] for xs in (curve.state_norms, curve.spectral_radii))
    loss, largest_norm = row.get("loss"), max(norms, default=None)
    spike = largest_rise(curve.losses) if curve.losses else None
    outcome: StabilityOutcome = "diverges"
    reason = ""
    if row["status"] == "failed":
        outcome, reason = "failed", "it has no result"
    elif loss is None:
        reason = f"loss not finite, or exploded, in step {row.get('steps', 0):.0f}"
    elif largest_norm == inf:
        reason = "‖h_T‖ overflowed"
    elif loss - best > rule.within:
        reason = f"ended {loss - best:.2f} nats above the best"
    elif spike is not None and spike > rule.spike:
        outcome, reason = "spikes", f"rose by {spike:.2f} nats"
    else:
        outcome = "converges"
    return StabilityRun(
        run_id=row["run_id"],
        variant=str(row[variant]),
        learning_rate=float(row[LEARNING_RATE]),
        seed=int(row["seed"]),
        outcome=outcome,
        reason=reason,
        steps=int(row.get("steps", 0)),
        loss=loss,
        losses=losses,
        spectral_radius=radii[-1] if radii else None,
        max_spectral_radius=max(radii, default=None),
        norm_growth=largest_norm / norms[0] if largest_norm is not None else None,
        spike=spike,
        curve=curve,
    )


def _format(value: float | None, spec: str) -> str:
    return "-" if value is None else f"{value:.{spec}}"
