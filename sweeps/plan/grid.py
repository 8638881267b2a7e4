"""From a sweep's configuration to its runs: steps, expected cost, and the reason for each cell that is left out."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from isoloop.sweeps.config.resources import Resources
from isoloop.sweeps.config.schema import RunSettings, SweepConfig
from isoloop.sweeps.messages import Progress, broken_rules
from isoloop.sweeps.plan import allocation
from isoloop.sweeps.plan.axes import Point, axis_texts, grid_points, separates
from isoloop.sweeps.plan.packing import Job
from isoloop.sweeps.plan.rates import RunRates, TunedRates
from isoloop.sweeps.plan.trunks import FROM_SCRATCH, Origin, trunk_groups
from isoloop.trainer.accounting import (
    Accounting,
    LoopCost,
    count_parameters,
    expected_loops,
    loop_cost,
    steps_for,
)
from isoloop.trainer.config import LARGEST_INTEGER, DataConfig, DepthConfig, ModelConfig, RecurrenceConfig, RunSpec
from isoloop.trainer.memory import inference_numbers
from isoloop.trainer.recurrence import RecurrenceSampler

TOLERANCE = 0.01
MOST_STEPS = 10**9
# Beyond this, more passes over the text are no advice: repeated tokens are worth ever less.
MOST_EPOCHS_ADVISED = 40
# Loops are drawn in advance up to this number; their mean over more draws is within 0.5% of the expected one.
MOST_DRAWS = 20_000
ONE_GROUP = "all"
_NAMED_CELLS = 3
_REPORT_SECONDS = 0.25


class PlannedCorpus(NamedTuple):
    """The fingerprint of a corpus and the training tokens that a run sees of it (None without a corpus).

    With packed documents, `packed_tokens` returns those that one pass trains on, which depend on the context. As runs
    of one context see it, these are the `train_tokens`, and `unpacked_tokens` those of the text.
    """

    fingerprint: str
    train_tokens: int | None = None
    packed_tokens: Callable[[int], int] | None = None
    unpacked_tokens: int | None = None

    def at(self, context: int) -> "PlannedCorpus":
        """Return the corpus as runs of this context see it."""
        if self.packed_tokens is None:
            return self
        return PlannedCorpus(self.fingerprint, self.packed_tokens(context), unpacked_tokens=self.train_tokens)


CorpusLookup = Callable[[DataConfig], PlannedCorpus]


def simulated_corpus(data: DataConfig) -> PlannedCorpus:
    """Return the stand-in for the corpus of runs that aren't trained. Raises ValueError if they are to repeat text."""
    if data.unique_tokens is not None:
        raise ValueError(
            "simulated losses are those of new text, which never runs out, but got data.unique_tokens="
            f"{data.unique_tokens}; leave it out, or train on a corpus"
        )
    return PlannedCorpus("simulated")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid with its expected cost.

    Attributes:
        spec: everything that determines the run's result.
        run_id: the run's identity.
        budget: FLOPs that the configuration gives, None if it gives tokens.
        flops: FLOPs expected under the sweep's accounting.
        epochs: passes over the training text that the run sees, None without a corpus.
        axes: the values that tell the cell from others, besides budget, tokens and mean recurrence.
        resources: the run's resources, with `auto` resolved.
        seconds: expected wall time, of the whole run.
        memory: estimated bytes of one process on its device.
        rates: the run's tuned learning rates; None if its rate is a setting.
        origin: the state of another run, its trunk, that it starts from.
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
    rates: RunRates | None = None
    origin: Origin = FROM_SCRATCH

    @property
    def trained_flops(self) -> float:
        """FLOPs of the steps that the run trains itself; its trunk has trained the others."""
        return self.trained_flops_at(self.spec.steps)

    def trained_flops_at(self, step: int) -> float:
        """Return the FLOPs that the run itself has spent after `step` steps."""
        return self.flops * max(0, min(step, self.spec.steps) - self.origin.step) / self.spec.steps

    @property
    def trained_seconds(self) -> float:
        """Expected wall time of the steps that the run trains itself."""
        return self.seconds * (1 - self.origin.step / self.spec.steps)

    @property
    def mean_recurrence(self) -> float:
        """µ_rec."""
        return self.spec.recurrence.mean

    @property
    def group(self) -> str:
        """The runs that one law is fitted to: the values of all axes that separate runs."""
        own = {name: value for name, value in self.axes.items() if separates(name)}
        return ", ".join(axis_texts(own)) or ONE_GROUP

    @property
    def label(self) -> str:
        """The cell in a few words."""
        size = f"C = {self.budget:.3g}" if self.budget else f"D = {self.spec.tokens:.3g}"
        return ", ".join([f"µ = {self.mean_recurrence}", size, *axis_texts(self.axes)])


@dataclass(frozen=True, kw_only=True)
class LeftOutCell:
    """A cell of the grid that can't be run.

    Attributes:
        label: the cell in a few words.
        rule: the rule that it breaks, in a word or two; the same for all cells that break it.
        reason: the rule, what the cell has, and what to change.
    """

    label: str
    rule: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a sweep, longest first, and the cells that were left out."""

    sweep: SweepConfig
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOutCell, ...] = ()
    rates: TunedRates | None = None

    @property
    def flops(self) -> float:
        """FLOPs of all runs, under the sweep's accounting."""
        return sum(cell.flops for cell in self.cells)

    @property
    def tokens(self) -> int:
        """Training tokens of all runs."""
        return sum(cell.spec.tokens for cell in self.cells)

    @property
    def trained_flops(self) -> float:
        """FLOPs that all runs cost, where those that share their first steps train them once."""
        return sum(cell.trained_flops for cell in self.cells)

    @cached_property
    def groups(self) -> list[str]:
        """The groups of runs; a law is fitted to each."""
        return list(dict.fromkeys(cell.group for cell in self.cells))

    @cached_property
    def jobs(self) -> list[Job]:
        """The cells as the scheduler sees them."""
        return jobs_of(self.cells)

    def left_out_lines(self) -> list[str]:
        """Return what to say of the cells that were left out: how many, and an example for each reason."""
        if not self.left_out:
            return []
        count = len(self.left_out)
        return [f"{count} of {len(self.cells) + count} cells left out:", *_by_rule(self.left_out)]

    def price(self, cells: Iterable[Cell] | None = None) -> float | None:
        """Return the price of all runs, or of `cells`, in the currency of `price_per_hour`; None if it isn't given."""
        cells = self.cells if cells is None else cells
        prices = [allocation.price(cell.trained_seconds, cell.resources, self.sweep.cluster) for cell in cells]
        return None if None in prices else sum(price for price in prices if price is not None)


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """Return the cells as the scheduler sees them: one that waits for its trunk follows that job, if it is there."""
    places = {cell.run_id: place for place, cell in enumerate(cells)}
    jobs = []
    for cell in cells:
        trunk = places.get(cell.origin.trunk or "") if cell.origin.waits else None
        follows = None
        if trunk is not None:
            steps = cell.origin.step - cells[trunk].origin.step
            follows = trunk, cells[trunk].seconds * max(0, steps) / cells[trunk].spec.steps
        jobs.append(Job(cell.trained_seconds, allocation.needs(cell.resources), follows))
    return jobs


def plan_sweep(
    sweep: SweepConfig, corpus_of: CorpusLookup, progress: Progress | None = None, rates: TunedRates | None = None
) -> Plan:
    """Plan every cell of the grid: its steps, resources and expected cost.

    Args:
        sweep: the sweep, with its centres filled in if it is centred on a fit.
        corpus_of: returns the prepared corpus of a data configuration; `simulated_corpus` if nothing is trained.
        progress: the watcher of the number of planned cells.
        rates: the tuned learning rates that the runs take, if they do.

    Raises:
        ValueError: the configuration is inconsistent, two cells are the same run, no cell can be run, or runs that are
            to share a trunk can't.
    """
    cells, left_out = plan_cells(sweep, corpus_of, progress, rates)
    if not cells:
        raise ValueError(_why_no_cell(left_out))
    _check_distinct(cells)
    _check_one_tokenizer(cells)
    if sweep.trunk:
        trunk_groups(cells)  # raises where runs can't share one
    cells.sort(key=lambda cell: (-cell.seconds, -cell.flops, cell.run_id))
    return Plan(sweep=sweep, cells=tuple(cells), left_out=tuple(left_out), rates=rates)


def plan_cells(
    sweep: SweepConfig, corpus_of: CorpusLookup, progress: Progress | None = None, rates: TunedRates | None = None
) -> tuple[list[Cell], list[LeftOutCell]]:
    """Return the cells in the order of the configuration and those that can't be run.

    There may be no cell, and the same run may occur twice.
    """
    progress, planner = progress or Progress(), _Planner(sweep, corpus_of, rates)
    cells, left_out = [], []
    points, reported = grid_points(sweep), time.monotonic()
    for number, point in enumerate(points):
        if time.monotonic() - reported > _REPORT_SECONDS:
            progress.update("planning", number, len(points))
            reported = time.monotonic()
        cell = planner.cell(point)
        if isinstance(cell, Cell):
            cells.append(cell)
        else:
            rule, reason = cell
            left_out.append(LeftOutCell(label=point.label, rule=rule, reason=reason))
    return cells, left_out


def _why_no_cell(left_out: list[LeftOutCell]) -> str:
    """Return the message for a sweep without a cell that can be run: for each broken rule its first cell."""
    if not left_out:
        return "a sweep must have at least one run, but every cell is excluded; drop an entry of exclude"
    lines = "".join(f"\n{line}" for line in _by_rule(left_out))
    return f"a sweep must have at least one run, but all {len(left_out)} cells were left out:{lines}"


def _by_rule(left_out: Sequence[LeftOutCell]) -> list[str]:
    """Return a line for each broken rule: the first cell that breaks it, why, and the others in short."""
    by_rule: dict[str, list[LeftOutCell]] = {}
    for cell in left_out:
        by_rule.setdefault(cell.rule, []).append(cell)
    lines = []
    for first, *others in by_rule.values():
        named = [other.label for other in others[:_NAMED_CELLS]] + ["..."] * (len(others) > _NAMED_CELLS)
        more = f" (and {len(others)} more like it: {'; '.join(named)})" if others else ""
        lines.append(f"  {first.label}: {first.reason}{more}")
    return lines


class _Variant:
    """The settings of a run and a mean recurrence, with all that their cells share: only budget or tokens differ."""

    def __init__(self, sweep: SweepConfig, settings: RunSettings, mean: float, corpus: PlannedCorpus) -> None:
        self.sweep, self.settings, self.corpus = sweep, settings, corpus.at(settings.model.context)
        self.recurrence = _recurrence(settings.depth, mean)
        self.loops = _loop_cost(settings.model, sweep.accounting)
        self.per_token = self.loops.flops_per_token(*_expected_loops(self.recurrence, sweep.accounting))
        self.step_tokens = settings.batch * settings.model.context
        self.most_steps = min(MOST_STEPS, LARGEST_INTEGER // self.step_tokens)

    @cached_property
    def longest_spec(self) -> RunSpec:
        """The specification with the most steps; with fewer it breaks no rule either."""
        inherited = {name: value for name, value in self.settings if name not in ("depth", "resources")}
        inherited["evaluation"] = self.settings.evaluation.of_run
        return RunSpec(
            recurrence=self.recurrence,
            data_fingerprint=self.corpus.fingerprint,
            steps=self.most_steps,
            **inherited,
        )

    @cached_property
    def allocations(self) -> tuple[allocation.Allocation, ...]:
        """The resources that a run may have, from the least on."""
        workload = allocation.Workload(
            model=self.settings.model,
            recurrence=self.recurrence,
            batch=self.settings.batch,
            precision=self.settings.precision,
            muon=self.settings.optimizer.muon,
            document_mask=self.settings.data.document_mask,
            trains=self.sweep.simulation is None,
            one_machine=self.sweep.storage is not None,
        )
        return allocation.allocations(workload, self.settings.resources, self.sweep.cluster)

    def allocated(self, flops: float) -> allocation.Allocation:
        """Return the least with which a run of so many FLOPs takes at most `longest_hours`, else the most."""
        longest = self.settings.resources.longest_hours or math.inf
        enough = (each for each in self.allocations if flops / each.flops_per_second / 3600 <= longest)
        return next(enough, self.allocations[-1])


class _Planner:
    """The way from points of the grid to cells. What several cells have in common is worked out once."""

    def __init__(self, sweep: SweepConfig, corpus_of: CorpusLookup, rates: TunedRates | None) -> None:
        self._sweep, self._corpus_of, self._rates, self._drawn = sweep, corpus_of, rates, _DrawnLoops()
        self._variants: dict[tuple[RunSettings, float], _Variant] = {}
        self._law = None  # as part of a run's id; no loss depends on the speed
        if sweep.simulation is not None:
            self._law = sweep.simulation.model_dump_json(exclude={"flops_per_second"})

    def cell(self, point: Point) -> Cell | tuple[str, str]:
        """Return the cell of a point, or the rule that it breaks and the reason if it can't be run."""
        # The target (tokens or FLOPs) and how much of it one step takes.
        sweep, settings, variant = self._sweep, point.settings, self._variant(point)
        step_tokens, corpus = variant.step_tokens, variant.corpus
        target, step_cost = point.target, step_tokens * (1 if point.budget is None else variant.per_token)
        quantity = "tokens" if point.budget is None else "budget"
        if target < step_cost:
            size = f"{settings.batch} x {settings.model.context} tokens"
            return "one step", f"under the {step_cost:.4g} of one step ({size}); raise it, or lower batch or context"
        if target / step_cost > variant.most_steps:
            return "most steps", (
                f"{target / step_cost:.3g} steps of {step_tokens} tokens, but a run may have at most {MOST_STEPS:.0e} "
                f"steps and {LARGEST_INTEGER:.3g} tokens; lower the {quantity} to {variant.most_steps * step_cost:.3g}"
            )

        # Steps whose cost is closest to the target.
        steps = steps_for(target, step_cost)
        total = steps * step_cost
        recurrence = variant.recurrence
        worth_drawing = _DrawnLoops.are_worth_drawing(recurrence, settings.batch, steps, sweep.accounting)
        if point.budget is not None and worth_drawing:
            steps, total = self._drawn.closest_steps(recurrence, settings, steps, target, variant.loops)
        if steps < sweep.minimum_steps:
            return "minimum_steps", (
                f"only {steps} steps, and minimum_steps is {sweep.minimum_steps}; raise the {quantity} to about "
                f"{sweep.minimum_steps * step_cost:.3g}, or lower minimum_steps or batch"
            )
        if abs(total / target - 1) > TOLERANCE:
            return "whole steps", (
                f"{steps} whole steps miss the target by {total / target - 1:+.1%}, more than {TOLERANCE:.0%}; set the "
                f"{quantity} to {total:.6g}, or lower batch"
            )
        tokens, unique = steps * step_tokens, settings.data.unique_tokens
        if unique is not None and unique <= step_tokens:
            return "unique_tokens", (
                f"{unique} unique tokens are less than one batch sees ({settings.batch} x {settings.model.context} "
                f"tokens and the one that follows); raise data.unique_tokens to {step_tokens + 1} or more, or lower "
                "batch or context"
            )
        epochs = tokens / corpus.train_tokens if corpus.train_tokens else None
        if epochs is not None and epochs > sweep.maximum_epochs:
            return "maximum_epochs", _too_little_text(tokens, epochs, quantity, corpus, sweep, settings.data)

        # Resources, identity and expected cost.
        flops = tokens * variant.per_token if point.budget is None else total
        allocated = variant.allocated(flops)
        if allocated.reason is not None:
            return "resources", allocated.reason
        try:
            spec = variant.longest_spec.model_copy(update={"steps": steps})
            rates = None
            if self._rates is not None:
                rates = self._rates.of_run(spec, point.budget or flops, sweep.accounting)
                spec = spec.model_copy(update={"optimizer": rates.optimizer})
        except ValidationError as error:
            raise ValueError(f"the sweep '{sweep.name}' at {point.label} breaks {broken_rules(error)}") from error
        run_id = spec.run_id
        if self._law is not None:
            run_id = "sim-" + hashlib.sha256((run_id + self._law).encode()).hexdigest()[:12]
        return Cell(
            spec=spec,
            run_id=run_id,
            budget=point.budget,
            flops=flops,
            epochs=epochs,
            axes=point.axes,
            resources=allocated.resources,
            seconds=flops / allocated.flops_per_second,
            memory=allocated.memory,
            rates=rates,
        )

    def _variant(self, point: Point) -> _Variant:
        key = point.settings, point.mean_recurrence
        variant = self._variants.get(key)
        if variant is None:
            corpus = self._corpus_of(point.settings.data)
            variant = self._variants[key] = _Variant(self._sweep, point.settings, point.mean_recurrence, corpus)
        return variant


def _too_little_text(
    tokens: int, epochs: float, quantity: str, corpus: PlannedCorpus, sweep: SweepConfig, data: DataConfig
) -> str:
    """Return the reason for a cell that passes over its text too often."""
    assert corpus.train_tokens is not None, "only a corpus can be too small"
    unpacked = corpus.unpacked_tokens or corpus.train_tokens
    is_cut = data.max_tokens is not None and unpacked >= data.max_tokens
    more = "raise data.max_tokens, at which the text is cut" if is_cut else "use more text"
    if data.is_synthetic and not is_cut:
        more = f"raise data.{data.corpus}.lines"
    more = more if data.unique_tokens is None else "raise data.unique_tokens"
    advice = [f"lower the {quantity} by a factor of {epochs / sweep.maximum_epochs:.3g}", more]
    if epochs <= MOST_EPOCHS_ADVISED or data.unique_tokens is not None:
        advice.append("raise maximum_epochs")
    text = "of the training text"
    if data.packing == "best-fit":
        text = "that best-fit rows keep of the training text"
        if not data.answers_only:  # which needs rows that begin with a line
            advice.append("set data.packing to contiguous, which crops nothing")
    return (
        f"{tokens:.4g} tokens are {epochs:.3g} times the {corpus.train_tokens:.4g} {text}, and "
        f"maximum_epochs is {sweep.maximum_epochs:g}; {', or '.join(advice)}"
    )


# Many cells share these results. Configurations are frozen, so they can be keys of a cache.
@cache
def _recurrence(depth: DepthConfig, mean: float) -> RecurrenceConfig:
    try:
        return RecurrenceConfig(mean=mean, **depth.model_dump())
    except ValidationError as error:
        raise ValueError(f"a run at µ = {mean} breaks {broken_rules(error)}") from error


_loop_cost = cache(loop_cost)
_expected_loops = cache(expected_loops)


class _DrawnLoops:
    """The loop counts that short runs will draw.

    In a short run the loops drawn differ from those expected. As they are a function of (seed, step), they are drawn
    here in advance, to find the steps whose compute comes closest to a budget. Under a curriculum, which depends on the
    number of steps, the expected loops are used.
    """

    def __init__(self) -> None:
        self._sampler = RecurrenceSampler()
        self._totals: dict[tuple[RecurrenceConfig, int, int], np.ndarray] = {}

    @staticmethod
    def are_worth_drawing(recurrence: RecurrenceConfig, batch: int, steps: int, accounting: Accounting) -> bool:
        """Return whether the loops of a run of about `steps` steps should be drawn."""
        draws = steps * (1 if recurrence.sampling == "per-batch" else batch)
        return accounting == "exact" and recurrence.is_constant and draws <= MOST_DRAWS

    def closest_steps(
        self, recurrence: RecurrenceConfig, settings: RunSettings, steps: int, budget: float, loop_cost: LoopCost
    ) -> tuple[int, float]:
        """Return the steps whose FLOPs come closest to `budget`, and these FLOPs; about `steps` are expected."""
        step_tokens = settings.batch * settings.model.context
        limit = steps + steps // 8 + 8
        while True:
            forward, backward = self._cumulative(recurrence, settings.batch, settings.seed, limit)
            flops = step_tokens * (
                loop_cost.fixed * np.arange(1, limit + 1)
                + loop_cost.per_forward_loop * forward
                + loop_cost.per_backward_loop * backward
            )
            index = int(np.searchsorted(flops, budget))  # the first number of steps that reaches the budget
            if index < limit:
                break
            limit *= 2
        below, above = float(flops[index - 1]) if index else 0.0, float(flops[index])
        return (index + 1, above) if abs(above - budget) < abs(below - budget) else (index, below)

    def _cumulative(self, recurrence: RecurrenceConfig, batch: int, seed: int, steps: int) -> np.ndarray:
        """Return a sequence's mean forward and backward loops, summed over the first 1, 2, ... steps: [2, steps]."""
        key = recurrence, batch, seed
        totals = self._totals.get(key, np.zeros((2, 0)))
        known = totals.shape[1]
        if known < steps:
            loops = self._sampler.sample(recurrence, batch=batch, seed=seed, steps=range(known, steps))
            means = [loops.mean(axis=1), loops.clip(max=recurrence.gradient_loops).mean(axis=1)]
            start = totals[:, -1:] if known else 0.0
            totals = np.hstack([totals, start + np.cumsum(means, axis=1)])
            self._totals[key] = totals
        return totals[:, :steps]


def _check_distinct(cells: list[Cell]) -> None:
    """Refuse budgets or tokens so close to each other that they come to the same run."""
    by_run: dict[str, Cell] = {}
    for cell in cells:
        twin = by_run.setdefault(cell.run_id, cell)
        if twin is not cell:
            raise ValueError(
                f"cells must be different runs, but {twin.budget or twin.spec.tokens:.10g} and "
                f"{cell.budget or cell.spec.tokens:.10g} ({cell.label}) both come to the same {cell.spec.steps} steps; "
                "drop one of them"
            )


def _check_one_tokenizer(cells: list[Cell]) -> None:
    """Refuse numbers of unique tokens that are counted in several tokenizers: each would be another text."""
    tokenizers = {(cell.spec.data.tokenizer, cell.spec.data.tokenizer_vocabulary) for cell in cells}
    if len(tokenizers) > 1 and any(cell.spec.data.unique_tokens for cell in cells):
        names = ", ".join(sorted({name for name, _ in tokenizers}))
        raise ValueError(
            "data.unique_tokens counts tokens of one tokenizer, since so many tokens of another are another text, but "
            f"the runs have {len(tokenizers)} ({names}); make a sweep for each tokenizer"
        )


def planned_columns(plan: Plan, cell: Cell) -> dict[str, Any]:
    """Return the columns of the run table that are known before the run: the axes, and the architecture as numbers.

    With several groups, the column `group` names the one that the run belongs to.
    """
    columns = spec_columns(cell.spec, plan.sweep.accounting)
    return columns | {name: value for name, value in grid_columns(plan, cell).items() if name not in columns}


def spec_columns(spec: RunSpec, accounting: Accounting) -> dict[str, Any]:
    """Return the columns of the run table that follow from a run's specification alone."""
    return {
        "accounting": accounting,
        "seed": spec.seed,
        "mean_recurrence": spec.recurrence.mean,
        **cost_model_columns(spec.model, spec.recurrence, accounting),
        **inference_columns(spec.model),
    }


def grid_columns(plan: Plan, cell: Cell) -> dict[str, Any]:
    """Return the columns of the run table that only the grid knows: the axes, the group and the budget."""
    columns = {**cell.axes, **({} if cell.rates is None else cell.rates.columns)}
    if len(plan.groups) > 1:
        columns["group"] = cell.group
    return columns if cell.budget is None else {**columns, "budget": cell.budget}


def cost_model_columns(model: ModelConfig, recurrence: RecurrenceConfig, accounting: Accounting) -> dict[str, float]:
    """Return the columns of the run table that describe a model and its cost per token."""
    parameters, loops = count_parameters(model), _loop_cost(model, accounting)
    return {
        "backprop_depth": recurrence.gradient_loops,
        "flops_per_token_fixed": loops.fixed,
        "flops_per_token_forward_loop": loops.per_forward_loop,
        "flops_per_token_backward_loop": loops.per_backward_loop,
        "effective_params_fixed": parameters.effective_fixed,
        "effective_params_per_loop": parameters.effective_per_loop,
    }


def inference_columns(model: ModelConfig) -> dict[str, float]:
    """Return the columns of the run table that say what a model needs of a device at inference."""
    return {f"inference_{name}": value for name, value in dataclasses.asdict(inference_numbers(model)).items()}
