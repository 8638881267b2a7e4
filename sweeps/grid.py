"""Sweep config -> the runs of the grid, what each will cost, and why a cell was left out. Pure: nothing is started."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from sweeps.config import SweepConfig
from trainer.accounting import (
    LoopCost,
    count_parameters,
    expected_loops,
    flops_per_token,
    loop_cost,
    steps_for,
)
from trainer.config import RecurrenceConfig, RunSpec
from trainer.recurrence import sample_recurrences

TOLERANCE = 0.01
MOST_STEPS = 10**9
# Up to so many draws the loops are drawn in advance; beyond them their mean is within 0.5% of the expected one.
MOST_DRAWN = 20_000
SIMULATED_DATA = "simulated"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid with its expected cost.

    `budget` is the FLOPs asked for, None in a grid over tokens; `flops` what is expected under the sweep's accounting;
    `epochs` passes over the training split, None without a corpus.
    """

    spec: RunSpec
    run_id: str
    budget: float | None
    flops: float
    epochs: float | None

    @property
    def mean_recurrence(self) -> int:
        """µ_rec."""
        return self.spec.recurrence.mean


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A cell of the grid that won't run, and why."""

    asked: str
    mean_recurrence: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep will run. `cells` has the dearest run first."""

    sweep: SweepConfig
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...] = field(default=())

    @property
    def flops(self) -> float:
        """FLOPs of all runs, under the sweep's accounting."""
        return sum(cell.flops for cell in self.cells)

    @property
    def cost(self) -> LoopCost:
        """FLOPs per token of the sweep's architecture, under its accounting."""
        return loop_cost(self.sweep.model, self.sweep.accounting)

    def hours(self, parallel: int) -> float:
        """Wall time at the stated FLOPs per second, `parallel` runs at a time: the longest run, or the mean load."""
        seconds = [cell.flops / self.sweep.resources.flops_per_second for cell in self.cells]
        return max(*seconds, sum(seconds) / parallel) / 3600 if len(seconds) > 1 else sum(seconds) / 3600


def plan_sweep(sweep: SweepConfig, *, data_fingerprint: str, train_tokens: int | None = None) -> Plan:
    """Solve every cell of the grid for its steps.

    Args:
        sweep: the sweep.
        data_fingerprint: the prepared corpus's, or `SIMULATED_DATA`.
        train_tokens: tokens of the training split, None without a corpus.

    Raises:
        ValueError: a budget or token count is under one step, or no cell is left.
    """
    cells, left_out = [], []
    for asked, budget, mean in _points(sweep):
        recurrence = RecurrenceConfig(mean=mean, **sweep.depth.model_dump())
        per_token = flops_per_token(sweep.model, recurrence, sweep.accounting)
        step_tokens = sweep.batch * sweep.model.context
        unit = per_token * step_tokens if budget else step_tokens
        what = "budget" if budget else "token count"
        label = f"{asked:.4g} {'FLOPs' if budget else 'tokens'}"
        if asked < unit:
            raise ValueError(
                f"a {what} must pay for one step at least, but {label} at µ = {mean} is under the {unit:.4g} "
                f"of one step ({sweep.batch} x {sweep.model.context} tokens); raise it, or make batch or context less"
            )
        if asked / unit > MOST_STEPS:
            raise ValueError(
                f"a run may have {MOST_STEPS:.0e} steps at most, but {label} is {asked / unit:.3g}; lower it"
            )
        steps, spent = _solve(sweep, recurrence, asked, unit) if budget else _whole_steps(asked, unit)
        error = spent / asked - 1
        if steps < sweep.minimum_steps:
            reason = f"only {steps} steps, and minimum_steps is {sweep.minimum_steps}"
        elif abs(error) > TOLERANCE:
            reason = f"{steps} whole steps miss what was asked by {error:+.1%}, more than {TOLERANCE:.0%}"
        else:
            flops = spent if budget else steps * step_tokens * per_token
            cells.append(_cell(sweep, recurrence, data_fingerprint, steps, flops, budget, train_tokens))
            continue
        left_out.append(LeftOut(asked=label, mean_recurrence=mean, reason=reason))
    if not cells:
        last = left_out[-1]
        raise ValueError(
            f"a sweep must have at least one run, but all {len(left_out)} cells were left out (the last: {last.asked}, "
            f"µ = {last.mean_recurrence}: {last.reason}); raise the budgets, or lower minimum_steps"
        )
    _check_distinct(cells)
    cells.sort(key=lambda cell: (-cell.flops, cell.run_id))
    return Plan(sweep=sweep, cells=tuple(cells), left_out=tuple(left_out))


def _points(sweep: SweepConfig) -> Iterator[tuple[float, float | None, int]]:
    """(what was asked, budget or None, mean recurrence) of every cell."""
    for mean in sweep.mean_recurrences:
        for budget in sweep.budgets or ():
            yield budget, budget, mean
        for tokens in sweep.tokens or ():
            yield float(tokens), None, mean


def _whole_steps(asked: float, unit: float) -> tuple[int, float]:
    steps = steps_for(asked, unit)
    return steps, steps * unit


def _solve(sweep: SweepConfig, recurrence: RecurrenceConfig, budget: float, unit: float) -> tuple[int, float]:
    """Steps that spend `budget` and the FLOPs they are expected to spend, `unit` FLOPs a step on average.

    Loops are random: in a short run those drawn differ from those expected. As they are a function of (seed, step),
    a short run's are drawn here, and the steps are those whose compute comes closest. Under a curriculum, which
    stretches with the steps, the expected ones count.
    """
    steps = steps_for(budget, unit)
    drawn = sweep.accounting == "exact" and recurrence.curriculum_start is None
    draws = steps * (1 if recurrence.sampling == "per-batch" else sweep.batch)
    if not drawn or draws > MOST_DRAWN:
        return steps, steps * unit
    cost = loop_cost(sweep.model, sweep.accounting)
    spent, steps_taken = 0.0, 0
    while True:
        loops = sample_recurrences(recurrence, batch=sweep.batch, seed=sweep.seed, step=steps_taken, steps=steps)
        backward = loops.clip(max=recurrence.gradient_loops).mean()
        more = sweep.batch * sweep.model.context * cost.flops_per_token(float(loops.mean()), float(backward))
        if abs(spent + more - budget) >= abs(spent - budget):
            return steps_taken, spent
        spent, steps_taken = spent + more, steps_taken + 1


def _check_distinct(cells: list[Cell]) -> None:
    """Refuse askings so close that they solve to the same run."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.run_id, cell)
        if twin is not cell:
            raise ValueError(
                f"cells must be different runs, but {twin.budget or twin.spec.tokens:.10g} and "
                f"{cell.budget or cell.spec.tokens:.10g} at µ = {cell.mean_recurrence} both come to {cell.spec.steps} "
                "steps; drop one of them"
            )


def _cell(
    sweep: SweepConfig,
    recurrence: RecurrenceConfig,
    data_fingerprint: str,
    steps: int,
    flops: float,
    budget: float | None,
    train_tokens: int | None,
) -> Cell:
    spec = RunSpec(
        model=sweep.model,
        recurrence=recurrence,
        data=sweep.data,
        data_fingerprint=data_fingerprint,
        optimizer=sweep.optimizer,
        schedule=sweep.schedule,
        evaluation=sweep.evaluation,
        batch=sweep.batch,
        steps=steps,
        precision=sweep.precision,
        seed=sweep.seed,
    )
    run_id = spec.run_id
    if sweep.simulation is not None:
        content = run_id + sweep.simulation.model_dump_json()
        run_id = "sim-" + hashlib.sha256(content.encode()).hexdigest()[:12]
    return Cell(
        spec=spec,
        run_id=run_id,
        budget=budget,
        flops=flops,
        epochs=spec.tokens / train_tokens if train_tokens else None,
    )


def cost_columns(plan: Plan, cell: Cell) -> dict[str, float | int | str]:
    """The columns of the run table that are known before the run: the axes, and the architecture as numbers."""
    parameters = count_parameters(cell.spec.model)
    columns: dict[str, float | int | str] = {
        "accounting": plan.sweep.accounting,
        "seed": cell.spec.seed,
        "mean_recurrence": cell.mean_recurrence,
        "backprop_depth": cell.spec.recurrence.gradient_loops,
        "flops_per_token_fixed": plan.cost.fixed,
        "flops_per_token_forward_loop": plan.cost.per_forward_loop,
        "flops_per_token_backward_loop": plan.cost.per_backward_loop,
        "effective_params_fixed": parameters.effective_fixed,
        "effective_params_per_loop": parameters.effective_per_loop,
    }
    return columns if cell.budget is None else {**columns, "budget": cell.budget}


def nominal_loops(cell: Cell) -> tuple[float, float]:
    """Loops per token that `parcae-release` counts, forward and backward."""
    return expected_loops(cell.spec.recurrence, "parcae-release")
