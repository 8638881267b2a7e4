"""Designed runs as a sweep: the cells that can be run, what they cost, and the configuration that adds them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.plan.axes import BUDGET, MEAN_RECURRENCE, SEED, SIZE, TOKENS, Point, grid_points
from isoloop.sweeps.plan.grid import Cell, CorpusLookup, cost_model_columns, plan_cells
from isoloop.sweeps.plan.rates import TunedRates
from isoloop.trainer.accounting import Accounting, expected_loops
from isoloop.trainer.config import whole_as_integer

_SAME = 0.01
"""Budgets within this fraction of one another are one."""
_NEW_SUFFIX = "-designed"
Place = tuple[str, float, float]
"""The name of a size (empty where all runs have one), a mean recurrence, and a budget in FLOPs."""


@dataclass(frozen=True, kw_only=True)
class NextCells:
    """The cells of a candidate grid that a sweep can run, and how many of its runs each has already."""

    cells: tuple[Cell, ...]
    trained: tuple[int, ...]
    left_out: int

    @property
    def sizes(self) -> tuple[str, ...]:
        """The name of the size of each cell; empty where all have one."""
        return tuple(str(cell.axes[SIZE]) for cell in self.cells) if SIZE in self.cells[0].axes else ()

    @property
    def params(self) -> np.ndarray:
        """Parameters of the model of each cell, each counted once, embeddings apart."""
        return np.array([_params(cell) for cell in self.cells])

    @property
    def flops(self) -> np.ndarray:
        """FLOPs of a run of each cell."""
        return np.array([cell.flops for cell in self.cells])

    def prices(self, sweep: SweepConfig) -> np.ndarray:
        """Return the price of a run of each cell. Raises ValueError where the sweep has no price per hour."""
        from isoloop.sweeps.plan.allocation import price

        prices = [price(cell.seconds, cell.resources, sweep.cluster) for cell in self.cells]
        if any(each is None for each in prices):
            raise ValueError(
                f"a spend in money needs cluster.price_per_hour, but '{sweep.name}' has none; set it, or give --spend "
                "in FLOPs"
            )
        return np.array(prices, dtype=float)


def next_cells(
    sweep: SweepConfig,
    means: Iterable[float],
    budgets: Iterable[float],
    corpus_of: CorpusLookup,
    *,
    run: bool,
    rates: TunedRates | None = None,
    sizes: Iterable[str] = (),
) -> NextCells:
    """Return the cells of means x budgets that can be run with the settings of a sweep, which was `run` or is not.

    With `sizes`, names of published ones, there are as many cells of each. Raises ValueError where runs differ in more
    than size, budget, mean recurrence and seed, and where no cell can be run.
    """
    planned = trained_seeds(sweep)
    seeds = planned if run else {}
    places = product(budgets, [{SIZE: size} for size in sizes] or [{}], means)
    points = tuple(
        {BUDGET: float(budget), MEAN_RECURRENCE: whole_as_integer(float(mean)), **size} for budget, size, mean in places
    )
    cells, left_out = plan_cells(_points_only(sweep, points), corpus_of, rates=rates)
    if not cells:
        raise ValueError(
            f"a candidate must be a run that can be made, but none of {len(points)} can: {left_out[0].reason}"
        )
    trained = tuple(len(_seeds_at(seeds, _place(cell))) for cell in cells)
    return NextCells(cells=tuple(cells), trained=trained, left_out=len(left_out))


def sizes_of(sweep: SweepConfig) -> list[str]:
    """Return the names of the sizes that a sweep's runs have, in their order; none where all have one."""
    return list(dict.fromkeys(_size(point) for point in grid_points(sweep) if SIZE in point.axes))


def trained_seeds(sweep: SweepConfig) -> dict[Place, set[int]]:
    """Return the seeds of the sweep's runs by size, mean recurrence and budget.

    Raises ValueError where its runs differ in more than these and the seed.
    """
    seeds = defaultdict(set)
    for point in grid_points(sweep):
        others = [name for name in point.axes if name not in (SEED, SIZE)]
        if others:
            raise ValueError(
                "a design takes a sweep whose runs differ in model.size, budget, mean recurrence and seed alone, but "
                f"those of '{sweep.name}' differ in {', '.join(others)}, too; design for the table of one group of them"
            )
        if point.budget is not None:
            seeds[_size(point), point.mean_recurrence, point.budget].add(point.settings.seed)
    return dict(seeds)


def next_sweep(sweep: SweepConfig, chosen: Sequence[tuple[Cell, int]], *, extend: bool) -> SweepConfig:
    """Return a configuration of `chosen` cells, each with the number of its runs.

    With `extend`, it is the same sweep with more points, so that what it has trained is kept and fitted together with
    them; otherwise a sweep of its own with these points alone. A cell that was run before gets new seeds.
    """
    seeds = trained_seeds(sweep) if extend else {}
    points: list[dict[str, Any]] = []
    for cell, count in chosen:
        assert cell.budget is not None, cell
        used = set(_seeds_at(seeds, _place(cell)))
        for _ in range(count):
            seed = next(seed for seed in range(sweep.seed, sweep.seed + len(used) + 1) if seed not in used)
            used.add(seed)
            place: dict[str, Any] = {BUDGET: cell.budget, MEAN_RECURRENCE: cell.mean_recurrence, **_sized(cell)}
            points.append(place if seed == sweep.seed else place | {SEED: seed})
    if not extend:
        return _points_only(sweep, points).model_copy(update={"name": f"{sweep.name}{_NEW_SUFFIX}"})
    if not (sweep.axes or sweep.exclude):
        return sweep.model_copy(update={"points": (*sweep.points, *points)})
    # Points are multiplied by axes, so the product becomes points, too.
    old = [
        {
            **({TOKENS: point.tokens} if point.budget is None else {BUDGET: point.budget}),
            MEAN_RECURRENCE: point.mean_recurrence,
            **_sized(point),
            SEED: point.settings.seed,
        }
        for point in grid_points(sweep)
    ]
    return _points_only(sweep, [*old, *points])


def planned_cost_table(cells: NextCells, accounting: Accounting) -> list[dict[str, Any]]:
    """Return rows with the columns of a run table that costs are made from, one for each model of the cells."""
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    for cell in cells.cells:
        forward, backward = expected_loops(cell.spec.recurrence, accounting)
        rows[_place(cell)[:2]] = {
            MEAN_RECURRENCE: float(cell.mean_recurrence),
            **cost_model_columns(cell.spec.model, cell.spec.recurrence, accounting),
            "forward_loops": forward,
            "backward_loops": backward,
            **_sized(cell),
        }
    return list(rows.values())


def _points_only(sweep: SweepConfig, points: Iterable[dict[str, Any]]) -> SweepConfig:
    """Return the sweep with `points` in place of its grid."""
    nothing: dict[str, Any] = dict.fromkeys(("budgets", "tokens", "mean_recurrences", "around"))
    nothing |= {"axes": {}, "exclude": ()}
    return sweep.model_copy(update={**nothing, "points": tuple(points)})


def _size(point: Point | Cell) -> str:
    return str(point.axes.get(SIZE, ""))


def _sized(point: Point | Cell) -> dict[str, str]:
    """Return the size of a point among its settings by path; nothing where all have one."""
    return {SIZE: _size(point)} if SIZE in point.axes else {}


def _place(cell: Cell) -> Place:
    return _size(cell), cell.mean_recurrence, cell.budget or 0.0


def _params(cell: Cell) -> float:
    columns = cost_model_columns(cell.spec.model, cell.spec.recurrence, "exact")
    return columns["effective_params_fixed"] + columns["effective_params_per_loop"]


def _seeds_at(seeds: dict[Place, set[int]], place: Place) -> set[int]:
    """Return the seeds that were run at a place, where budgets within 1% are one."""
    size, mean, budget = place
    near = (
        known for (name, at, of), known in seeds.items() if (name, at) == (size, mean) and abs(of / budget - 1) <= _SAME
    )
    return set().union(*near)
