"""Sweep config -> the runs of the grid, what each will cost, and why a cell was left out. Pure: nothing is started."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from isoloop.sweeps.config.resources import Resources
from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.messages import broken_rules
from isoloop.sweeps.plan import resources as cost
from isoloop.sweeps.plan.axes import RESOURCES, SEED, Point, points
from isoloop.sweeps.plan.packing import Job
from isoloop.trainer.accounting import (
    Accounting,
    LoopCost,
    count_parameters,
    expected_loops,
    loop_cost,
    steps_for,
)
from isoloop.trainer.config import DataConfig, DepthConfig, ModelConfig, RecurrenceConfig, RunSpec
from isoloop.trainer.recurrence import RecurrenceSampler

TOLERANCE = 0.01
MOST_STEPS = 10**9
# Up to so many draws the loops are drawn in advance; beyond them their mean is within 0.5% of the expected one.
MOST_DRAWN = 20_000
ONE_GROUP = "all"


class Text(NamedTuple):
    """What the plan asks of a prepared corpus: its fingerprint, and its training tokens (None: there is no corpus)."""

    fingerprint: str
    train_tokens: int | None = None


TextOf = Callable[[DataConfig], Text]


def simulated_text(_: DataConfig) -> Text:
    """The text of runs that are not trained."""
    return Text("simulated")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid with its expected cost.

    Attributes:
        spec: what determines the run's result.
        run_id: its identity.
        budget: FLOPs asked for, None where tokens were.
        flops: FLOPs expected under the sweep's accounting.
        epochs: passes over the training split, None without a corpus.
        axes: what tells this cell from others besides budget, tokens and mean recurrence.
        resources: what the run is given, `auto` resolved.
        seconds: expected wall time.
        memory: estimated bytes of one process on its device.
    """

    spec: RunSpec
    run_id: str
    budget: float | None
    flops: float
    epochs: float | None
    axes: Mapping[str, Any]
    resources: Resources
    seconds: float
    memory: float

    @property
    def mean_recurrence(self) -> int:
        """µ_rec."""
        return self.spec.recurrence.mean

    @property
    def group(self) -> str:
        """What the cell shares with those that one law is fitted to: the values of all axes but seed and resources."""
        told = [(name, value) for name, value in self.axes.items() if name != SEED and not name.startswith(RESOURCES)]
        return ", ".join(f"{name} = {value}" for name, value in told) or ONE_GROUP

    @property
    def label(self) -> str:
        """The cell in a few words."""
        asked = f"C = {self.budget:.3g}" if self.budget else f"D = {self.spec.tokens:.3g}"
        return ", ".join([f"µ = {self.mean_recurrence}", asked, *(f"{name} = {v}" for name, v in self.axes.items())])


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A cell of the grid that won't run, and why."""

    label: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep will run. `cells` has the longest run first."""

    sweep: SweepConfig
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...] = field(default=())

    @property
    def flops(self) -> float:
        """FLOPs of all runs, under the sweep's accounting."""
        return sum(cell.flops for cell in self.cells)

    @property
    def tokens(self) -> int:
        """Training tokens of all runs."""
        return sum(cell.spec.tokens for cell in self.cells)

    @property
    def price(self) -> float | None:
        """What all runs cost in the currency of `cluster.price_per_hour`, None where no price was given."""
        prices = [cost.price(cell.seconds, cell.resources, self.sweep.cluster) for cell in self.cells]
        return None if None in prices else sum(price for price in prices if price is not None)

    @cached_property
    def groups(self) -> list[str]:
        """What laws are fitted to, each apart."""
        return list(dict.fromkeys(cell.group for cell in self.cells))

    @cached_property
    def jobs(self) -> list[Job]:
        """The cells as the scheduler sees them."""
        return [Job(cell.seconds, cost.needs(cell.resources)) for cell in self.cells]


def plan_sweep(sweep: SweepConfig, text_of: TextOf) -> Plan:
    """Solve every cell of the grid for its steps, and say what it will cost.

    Args:
        sweep: the sweep; what is to be centred on a fit has its centres.
        text_of: the prepared corpus of a data configuration, or `simulated_text`.

    Raises:
        ValueError: the configuration names or sets what can't be, two cells are the same run, or no cell is left.
    """
    cells, left_out = solve_cells(sweep, text_of)
    if not cells:
        why = f"; the last: {left_out[-1].label}: {left_out[-1].reason}" if left_out else ""
        raise ValueError(
            f"a sweep must have at least one run, but all {len(left_out)} cells were left out{why}; change the axes, "
            "raise the budgets, or lower minimum_steps"
        )
    _check_distinct(cells)
    cells.sort(key=lambda cell: (-cell.seconds, -cell.flops, cell.run_id))
    return Plan(sweep=sweep, cells=tuple(cells), left_out=tuple(left_out))


def solve_cells(sweep: SweepConfig, text_of: TextOf) -> tuple[list[Cell], list[LeftOut]]:
    """Cells in the order of the configuration, and what can't be; there may be none, and the same run twice."""
    cells, left_out = [], []
    draws = _Draws()
    for point in points(sweep):
        found = _solve_point(sweep, point, text_of(point.settings.data), draws)
        if isinstance(found, str):
            left_out.append(LeftOut(label=point.label, reason=found))
        else:
            cells.append(found)
    return cells, left_out


def _solve_point(sweep: SweepConfig, point: Point, text: Text, draws: "_Draws") -> Cell | str:
    """The cell, or why there can't be one."""
    settings = point.settings
    recurrence = _recurrence(settings.depth, point.mean)
    loops = _loop_cost(settings.model, sweep.accounting)
    per_token = loops.flops_per_token(*_expected_loops(recurrence, sweep.accounting))
    step_tokens = settings.batch * settings.model.context
    asked, unit = (point.tokens, step_tokens) if point.budget is None else (point.budget, per_token * step_tokens)
    assert asked is not None, "a point has a budget or tokens"
    if asked < unit:
        size = f"{settings.batch} x {settings.model.context} tokens"
        return f"under the {unit:.4g} of one step ({size}); raise it, or make batch or context less"
    if asked / unit > MOST_STEPS:
        return f"{asked / unit:.3g} steps, and a run may have {MOST_STEPS:.0e} at most"
    steps, spent = steps_for(asked, unit), steps_for(asked, unit) * unit
    if point.budget is not None and draws.decide(recurrence, settings.batch, steps, sweep.accounting):
        steps, spent = draws.solve(recurrence, settings.batch, settings.seed, steps, asked, loops, step_tokens)
    if steps < sweep.minimum_steps:
        return f"only {steps} steps, and minimum_steps is {sweep.minimum_steps}"
    if abs(spent / asked - 1) > TOLERANCE:
        return f"{steps} whole steps miss what was asked by {spent / asked - 1:+.1%}, more than {TOLERANCE:.0%}"
    epochs = steps * step_tokens / text.train_tokens if text.train_tokens else None
    if epochs is not None and epochs > sweep.maximum_epochs:
        return (
            f"{steps * step_tokens:.4g} tokens are {epochs:.3g} times the {text.train_tokens:.4g} of the training "
            f"text, and maximum_epochs is {sweep.maximum_epochs:g}; raise it, or use more text"
        )
    flops = steps * step_tokens * per_token if point.budget is None else spent
    return _cell(sweep, point, recurrence, text, steps, flops, epochs)


def _cell(
    sweep: SweepConfig,
    point: Point,
    recurrence: RecurrenceConfig,
    text: Text,
    steps: int,
    flops: float,
    epochs: float | None,
) -> Cell | str:
    settings = point.settings
    demand = cost.Demand(
        model=settings.model,
        recurrence=recurrence,
        batch=settings.batch,
        precision=settings.precision,
        flops=flops,
        trains=sweep.simulation is None,
        together=sweep.storage is not None,
    )
    fit = cost.fit_run(demand, settings.resources, sweep.cluster)
    if fit.reason is not None:
        return fit.reason
    try:
        spec = RunSpec(
            model=settings.model,
            recurrence=recurrence,
            data=settings.data,
            data_fingerprint=text.fingerprint,
            optimizer=settings.optimizer,
            schedule=settings.schedule,
            evaluation=settings.evaluation,
            batch=settings.batch,
            steps=steps,
            precision=settings.precision,
            seed=settings.seed,
        )
    except ValidationError as error:
        raise ValueError(f"the sweep '{sweep.name}' at {point.label} breaks {broken_rules(error)}") from error
    run_id = spec.run_id
    if sweep.simulation is not None:
        content = run_id + sweep.simulation.model_dump_json(exclude={"flops_per_second"})  # no loss depends on it
        run_id = "sim-" + hashlib.sha256(content.encode()).hexdigest()[:12]
    return Cell(
        spec=spec,
        run_id=run_id,
        budget=point.budget,
        flops=flops,
        epochs=epochs,
        axes=point.axes,
        resources=fit.resources,
        seconds=flops / cost.rate(fit.resources, sweep.cluster, settings.precision).flops_per_second,
        memory=fit.memory,
    )


# What many cells share is worked out once. Configurations are frozen, so they can be keys.
@cache
def _recurrence(depth: DepthConfig, mean: int) -> RecurrenceConfig:
    try:
        return RecurrenceConfig(mean=mean, **depth.model_dump())
    except ValidationError as error:
        raise ValueError(f"a run at µ = {mean} breaks {broken_rules(error)}") from error


@cache
def _loop_cost(model: ModelConfig, accounting: Accounting) -> LoopCost:
    return loop_cost(model, accounting)


@cache
def _expected_loops(recurrence: RecurrenceConfig, accounting: Accounting) -> tuple[float, float]:
    return expected_loops(recurrence, accounting)


class _Draws:
    """The loops that short runs will draw, as far as they were asked for.

    Loops are random: in a short run those drawn differ from those expected. As they are a function of (seed, step), a
    short run's are drawn here, and the steps are those whose compute comes closest. Under a curriculum, which
    stretches with the steps, the expected ones count.
    """

    def __init__(self) -> None:
        self.draws = RecurrenceSampler()
        self.sums: dict[tuple[RecurrenceConfig, int, int], np.ndarray] = {}

    @staticmethod
    def decide(recurrence: RecurrenceConfig, batch: int, steps: int, accounting: Accounting) -> bool:
        """Whether the loops of a run of about `steps` steps are drawn in advance."""
        draws = steps * (1 if recurrence.sampling == "per-batch" else batch)
        return accounting == "exact" and recurrence.curriculum_start is None and draws <= MOST_DRAWN

    def solve(
        self,
        recurrence: RecurrenceConfig,
        batch: int,
        seed: int,
        steps: int,
        budget: float,
        cost: LoopCost,
        step_tokens: int,
    ) -> tuple[int, float]:
        """Steps that come closest to `budget`, and the FLOPs that they spend."""
        enough = steps + steps // 8 + 8
        while True:
            forward, backward = self._sums(recurrence, batch, seed, enough)
            taken = np.arange(1, enough + 1)
            spent = step_tokens * (
                cost.fixed * taken + cost.per_forward_loop * forward + cost.per_backward_loop * backward
            )
            over = int(np.searchsorted(spent, budget))
            if over < enough:
                break
            enough *= 2
        before = float(spent[over - 1]) if over else 0.0
        if abs(float(spent[over]) - budget) < abs(before - budget):
            return over + 1, float(spent[over])
        return over, before

    def _sums(self, recurrence: RecurrenceConfig, batch: int, seed: int, steps: int) -> np.ndarray:
        """Mean loops of a sequence summed over the first 1, 2, ... steps: forward and backward, shape [2, steps]."""
        key = recurrence, batch, seed
        known = self.sums.get(key, np.zeros((2, 0)))
        if known.shape[1] < steps:
            loops = self.draws.sample(recurrence, batch=batch, seed=seed, steps=range(known.shape[1], steps))
            means = [loops.mean(axis=1), loops.clip(max=recurrence.gradient_loops).mean(axis=1)]
            start = known[:, -1:] if known.shape[1] else 0.0
            known = np.hstack([known, start + np.cumsum(means, axis=1)])
            self.sums[key] = known
        return known[:, :steps]


def _check_distinct(cells: list[Cell]) -> None:
    """Refuse askings so close that they solve to the same run."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.run_id, cell)
        if twin is not cell:
            raise ValueError(
                f"cells must be different runs, but {twin.budget or twin.spec.tokens:.10g} and "
                f"{cell.budget or cell.spec.tokens:.10g} ({cell.label}) both come to the same {cell.spec.steps} steps; "
                "drop one of them"
            )


def cost_columns(plan: Plan, cell: Cell) -> dict[str, Any]:
    """The columns of the run table that are known before the run: the axes, and the architecture as numbers.

    Where several laws will be fitted, `group` says which one a run belongs to.
    """
    parameters, loops = count_parameters(cell.spec.model), _loop_cost(cell.spec.model, plan.sweep.accounting)
    columns: dict[str, Any] = {
        "accounting": plan.sweep.accounting,
        "seed": cell.spec.seed,
        "mean_recurrence": cell.mean_recurrence,
        "backprop_depth": cell.spec.recurrence.gradient_loops,
        "flops_per_token_fixed": loops.fixed,
        "flops_per_token_forward_loop": loops.per_forward_loop,
        "flops_per_token_backward_loop": loops.per_backward_loop,
        "effective_params_fixed": parameters.effective_fixed,
        "effective_params_per_loop": parameters.effective_per_loop,
    }
    columns |= {name: value for name, value in cell.axes.items() if name not in columns}
    if len(plan.groups) > 1:
        columns["group"] = cell.group
    return columns if cell.budget is None else {**columns, "budget": cell.budget}


def nominal_loops(cell: Cell) -> tuple[float, float]:
    """Loops per token that `parcae-release` counts, forward and backward."""
    return expected_loops(cell.spec.recurrence, "parcae-release")
