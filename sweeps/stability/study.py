"""At which learning rates each injection trains: converges, spikes or diverges, from the run table and the journals.

The rule, applied to what the runs recorded (`Rule` holds its numbers):

diverges
    The run ended early, on a loss or gradient that wasn't finite or a loss that exploded (trainer/loop.py); or
    ‖h_T‖ wasn't finite in a logged step; or the loss at T = µ ended more than `within` nats above the best run's of
    the study, so that whatever it learned at first was lost, or nothing was learned.
spikes
    It ended near the best run, but after the first tenth of its steps the training loss (median of 3 logged steps)
    rose by more than `spike` nats over the lowest before.
converges
    Neither.

The best run is that of the study, so the rule compares runs of the same tokens and mean recurrence only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from isoloop.sweeps.messages import align_columns

if TYPE_CHECKING:
    import pandas as pd

    from isoloop.sweeps.config.schema import SweepConfig

Outcome = Literal["converges", "spikes", "diverges", "failed"]

LEARNING_RATE = "optimizer.learning_rate"
INJECTION = "model.injection"
SEED = "seed"
_SETTLED = 0.1
_RADIUS = 1.0


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What counts as converged, in nats per token.

    Args:
        within: most that the loss at T = µ may end above the best run's.
        spike: most that the smoothed training loss may rise over the lowest before.
    """

    within: float = 0.5
    spike: float = 1.0

    def says(self) -> str:
        """The rule in words."""
        return (
            "diverges: the run ended early on a loss that was not finite or exploded, or ‖h_T‖ overflowed in a logged\n"
            f"  step, or its loss at T = µ ended more than {self.within:g} nats above the best run's of the study;\n"
            "spikes: it ended near the best, but after the first tenth of its steps the training loss (median of 3\n"
            f"  logged steps) rose by more than {self.spike:g} nats over the lowest before;\n"
            "converges: neither. 'n of m': n of m seeds converge, and not all agree."
        )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a run logged, by step: training loss (nats per token), ρ(Ā), and ‖h_T‖, the mean over tokens."""

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    spectral_radii: tuple[float, ...] = ()
    state_norms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StabilityRun:
    """One run of the study.

    Attributes:
        reason: what the outcome rests on; empty where it converges.
        loss: validation loss at T = µ, nats per token; None without one. `losses` has it by recurrence T.
        spectral_radius: ρ(Ā) in the last logged step, and `greatest_radius` in any; None where none was logged.
        norm_growth: the greatest ‖h_T‖ over the first one logged; inf where it overflowed.
        spike: the greatest rise of the smoothed training loss, nats per token.
    """

    run_id: str
    variant: str
    learning_rate: float
    seed: int
    outcome: Outcome
    reason: str
    steps: int
    loss: float | None
    losses: Mapping[float, float]
    spectral_radius: float | None
    greatest_radius: float | None
    norm_growth: float | None
    spike: float | None
    curve: Curve


@dataclass(frozen=True, kw_only=True)
class StabilityStudy:
    """Every run of a study with its outcome; `variants` in the order asked for, learning rates ascending."""

    name: str
    mean_recurrence: float
    variants: tuple[str, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    rule: Rule
    runs: tuple[StabilityRun, ...]

    def at(self, variant: str, learning_rate: float) -> tuple[StabilityRun, ...]:
        """The runs of one cell, a seed each."""
        return tuple(run for run in self.runs if (run.variant, run.learning_rate) == (variant, learning_rate))

    def says(self, variant: str, learning_rate: float) -> str:
        """One cell in words: the outcome if all seeds agree, else how many converge; '-' where nothing ran."""
        outcomes = [run.outcome for run in self.at(variant, learning_rate)]
        if len(set(outcomes)) <= 1:
            return outcomes[0] if outcomes else "-"
        return f"{outcomes.count('converges')} of {len(outcomes)}"

    def converges_up_to(self, variant: str) -> float | None:
        """The largest learning rate at which, and at all smaller ones, every seed converges; None without any."""
        highest = None
        for rate in self.learning_rates:
            if self.says(variant, rate) != "converges":
                break
            highest = rate
        return highest

    def frame(self) -> "pd.DataFrame":
        """A row per run, in natural units; the columns are named as in the run table where that has them."""
        import pandas as pd

        recurrences = sorted({recurrence for run in self.runs for recurrence in run.losses})
        return pd.DataFrame(
            [
                {
                    "variant": run.variant,
                    LEARNING_RATE: run.learning_rate,
                    "seed": run.seed,
                    "run_id": run.run_id,
                    "outcome": run.outcome,
                    "reason": run.reason,
                    "steps": run.steps,
                    "loss": run.loss,
                    **{f"loss_T{recurrence:g}": run.losses.get(recurrence) for recurrence in recurrences},
                    "spectral_radius": run.spectral_radius,
                    "greatest_spectral_radius": run.greatest_radius,
                    "state_norm_growth": run.norm_growth,
                    "spike": run.spike,
                }
                for run in self.runs
            ]
        )

    def summary(self) -> str:
        """The table of outcomes, the rule, and what each variant's ρ(Ā) had to do with it."""
        rates = [f"{rate:g}" for rate in self.learning_rates]
        cells = [[name, *(self.says(name, rate) for rate in self.learning_rates)] for name in self.variants]
        seeds = f"{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        lines = [
            f"Stability of '{self.name}' by learning rate, µ = {self.mean_recurrence:g}, {seeds}",
            "",
            *align_columns([["learning rate", *rates], *cells]),
            "",
            *self.rule.says().splitlines(),
            *self._sensitivity(),
            "",
            *(self._radius_line(variant) for variant in self.variants),
        ]
        return "\n".join(lines) + "\n"

    def report(self) -> str:
        """The summary and a line for every run."""
        shown = sorted({1.0, self.mean_recurrence, 2 * self.mean_recurrence})
        head = ["", "learning rate", "seed", "outcome", *(f"T = {recurrence:g}" for recurrence in shown)]
        rows = [[*head, "ρ(Ā) end", "most", "‖h_T‖ x", "why"]]
        for run in self.runs:
            losses = [_number(run.losses.get(recurrence), "4f") for recurrence in shown]
            radii = [_number(run.spectral_radius, "3g"), _number(run.greatest_radius, "3g")]
            about = [run.variant, f"{run.learning_rate:g}", str(run.seed), run.outcome]
            rows.append([*about, *losses, *radii, _number(run.norm_growth, "3g"), run.reason])
        told = "Every run: validation loss at T loops, nats per token; ρ(Ā); the most that ‖h_T‖ grew to over its first"
        return "\n".join([self.summary(), told, "", *align_columns(rows)]) + "\n"

    def _sensitivity(self) -> list[str]:
        """Between which limits the judgement by the final loss would be the same."""
        best = min((run.loss for run in self.runs if run.loss is not None), default=inf)
        above = [run.loss - best for run in self.runs if run.loss is not None and run.norm_growth != inf]
        near = max((gap for gap in above if gap <= self.rule.within), default=0.0)
        far = min((gap for gap in above if gap > self.rule.within), default=inf)
        if far == inf:
            return [f"Any limit from {near:.2f} nats on gives the same outcomes, instead of {self.rule.within:g}."]
        return [
            f"Any limit from {near:.2f} to {far:.2f} nats gives the same outcomes, instead of {self.rule.within:g}."
        ]

    def _radius_line(self, variant: str) -> str:
        """How far a variant converges, and whether ρ(Ā) >= 1 tells its diverged runs from the others."""
        highest = self.converges_up_to(variant)
        how_far = "at no learning rate from the smallest on" if highest is None else f"up to {highest:g}"
        runs = [run for run in self.runs if run.variant == variant and run.greatest_radius is not None]
        learned = {radius for run in runs for radius in run.curve.spectral_radii}
        if len(learned) == 1:
            return f"{variant}: converges {how_far}; ρ(Ā) is {learned.pop():g} throughout"
        said = []
        for what, wanted in (("diverged", True), ("did not", False)):
            some = [run for run in runs if (run.outcome == "diverges") == wanted]
            reached = sum((run.greatest_radius or 0.0) >= _RADIUS for run in some)
            if some:
                said.append(f"{reached} of {len(some)} runs that {what}")
        return f"{variant}: converges {how_far}; ρ(Ā) reached 1 in {' and '.join(said) or 'no run that logged it'}"


def is_study(sweep: "SweepConfig") -> bool:
    """Whether the sweep's runs differ in learning rate and injection, and beside these in seed at most."""
    return _why_no_study(sweep) is None


def variant_axis(sweep: "SweepConfig") -> str:
    """The axis of a stability study that varies the injection, by its name.

    Raises:
        ValueError: the sweep isn't a study.
    """
    reason = _why_no_study(sweep)
    if reason is not None:
        raise ValueError(reason)
    return _injection_axes(sweep)[0]


def variant_names(sweep: "SweepConfig") -> tuple[str, ...]:
    """The variants of a study as its configuration lists them.

    Raises:
        ValueError: the sweep isn't a study.
    """
    entries = sweep.axes[variant_axis(sweep)]
    return tuple(str(entry["name"] if isinstance(entry, Mapping) else entry) for entry in entries)


def _why_no_study(sweep: "SweepConfig") -> str | None:
    name = sweep.name
    if sweep.simulation is not None:
        return f"a stability study must train, but '{name}' draws its losses from a law; take simulation out"
    varied = _injection_axes(sweep)
    if LEARNING_RATE not in sweep.axes or len(varied) != 1:
        return (
            f"a stability study must have an axis {LEARNING_RATE} and one that sets {INJECTION}, but '{name}' has "
            f"{', '.join(sweep.axes) or 'no axes'}; see the preset 'stability'"
        )
    asked = (len(sweep.budgets or sweep.tokens or ()), len(sweep.mean_recurrences or ()))
    others = set(sweep.axes) - {LEARNING_RATE, SEED, *varied}
    if others or sweep.points or asked != (1, 1):
        return (
            f"a stability study's runs must differ in learning rate, injection and seed alone, but those of '{name}' "
            f"also differ in {', '.join(sorted(others)) or 'tokens, mean recurrence or single points'}; make it "
            "several sweeps"
        )
    return None


def _injection_axes(sweep: "SweepConfig") -> list[str]:
    """The axes that set the injection, by themselves or among others."""
    return [
        axis
        for axis, entries in sweep.axes.items()
        if axis == INJECTION or any(isinstance(entry, Mapping) and INJECTION in entry for entry in entries)
    ]


def study_stability(
    table: "pd.DataFrame",
    journals: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    name: str,
    variant: str,
    variants: Sequence[str] = (),
    rule: Rule | None = None,
) -> StabilityStudy:
    """Judge every run of a study.

    Args:
        table: its run table, with the columns `optimizer.learning_rate` and `variant`.
        journals: the records of each run's journal, by run id; a run without one is judged by the table alone.
        name: the sweep's.
        variant: the column that names the injection.
        variants: the order to show them in; those that aren't named follow as the table has them.
        rule: what counts as converged.

    Raises:
        ValueError: a column is missing, or the table's runs are of several mean recurrences.
    """
    from isoloop.fitting.tables.runs import loss_columns

    rule = rule or Rule()
    missing = {LEARNING_RATE, variant} - set(table.columns)
    if missing:
        raise ValueError(f"a stability study's table must have {', '.join(sorted(missing))}, but hasn't; run it again")
    means = sorted(set(table["mean_recurrence"]))
    if len(means) != 1:
        raise ValueError(f"a stability study must have one mean recurrence, but got {means}; keep one")
    columns = loss_columns(table)
    rows = [_present(row) for row in table.to_dict("records")]
    best = min((row["loss"] for row in rows if "loss" in row), default=inf)
    runs = []
    for row in rows:
        losses = {at: row[column] for column, at in columns.items() if column in row}
        curve = read_curve(journals.get(row["run_id"], ()))
        runs.append(_judged(row, losses, curve, best, variant, rule))
    found = dict.fromkeys(str(value) for value in table[variant])
    ordered = tuple(dict.fromkeys([*(name for name in variants if name in found), *found]))
    order = {name: place for place, name in enumerate(ordered)}
    runs.sort(key=lambda run: (order[run.variant], run.learning_rate, run.seed))
    return StabilityStudy(
        name=name,
        mean_recurrence=float(means[0]),
        variants=ordered,
        learning_rates=tuple(sorted({run.learning_rate for run in runs})),
        seeds=tuple(sorted({run.seed for run in runs})),
        rule=rule,
        runs=tuple(runs),
    )


def read_curve(records: Sequence[Mapping[str, Any]]) -> Curve:
    """What a journal's records say of training loss, ρ(Ā) and ‖h_T‖; nothing where there is no loop."""
    logged = [record for record in records if record["kind"] == "metrics" and "state_norm" in record["values"]]
    return Curve(
        steps=tuple(record["step"] for record in logged),
        losses=tuple(record["values"]["train_loss"] for record in logged),
        spectral_radii=tuple(record["values"]["spectral_radius"] for record in logged),
        state_norms=tuple(record["values"]["state_norm"] for record in logged),
    )


def rise(losses: Sequence[float]) -> float:
    """The most by which the smoothed loss exceeded its lowest so far, after the first tenth of what was logged."""
    if len(losses) < 3:
        return 0.0
    smooth = [median(losses[place : place + 3]) for place in range(len(losses) - 2)]
    lowest, most = inf, 0.0
    for place, loss in enumerate(smooth):
        lowest = min(lowest, loss)
        if place >= _SETTLED * len(losses):
            most = max(most, loss - lowest)
    return most


def _judged(
    row: Mapping[str, Any], losses: Mapping[float, float], curve: Curve, best: float, variant: str, rule: Rule
) -> StabilityRun:
    """One run with its outcome: the rule of this file, first what it names first."""
    # What isn't a number overflowed: inf - inf came before it.
    norms, radii = ([x if isfinite(x) else inf for x in xs] for xs in (curve.state_norms, curve.spectral_radii))
    loss, greatest = row.get("loss"), max(norms, default=None)
    spike = rise(curve.losses) if curve.losses else None
    outcome: Outcome = "diverges"
    reason = ""
    if row["status"] == "failed":
        outcome, reason = "failed", "it has no result"
    elif loss is None:
        reason = f"loss not finite, or exploded, in step {row.get('steps', 0):.0f}"
    elif greatest == inf:
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
        greatest_radius=max(radii, default=None),
        norm_growth=greatest / norms[0] if greatest is not None else None,
        spike=spike,
        curve=curve,
    )


def _present(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row without what is missing."""
    return {str(name): value for name, value in row.items() if value is not None and value == value}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:.{form}}"
