"""Simulated sweeps over sizes whose further runs are designed, against further budgets of the grid at the same cost."""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.fitting.coverage import fingerprint, simulate
from benchmarks.fitting.results import table
from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.design.belief import Belief
from isoloop.fitting.design.design import Candidates, candidate_budgets, candidate_values, design_runs
from isoloop.fitting.design.targets import Target
from isoloop.fitting.laws.base import LARGEST_RECURRENCE, Data, Law
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.simulate import SIZES_TRUTH, simulate_sizes
from isoloop.fitting.surface.quick import quick_surface
from isoloop.fitting.surface.search import minimise_on_box
from isoloop.fitting.surface.surface import LossSurface
from isoloop.fitting.tables.contract import check_table
from isoloop.fitting.tables.runs import law_data

BUDGETS = (1e18, 4e18, 16e18)
"""Budgets of the first runs, FLOPs."""
FURTHER = (2e18, 8e18)
"""Budgets of the regular further runs."""
LARGEST = 64e18
"""The largest budget of designed runs."""
LOOPS = (1.0, 2.0, 4.0, 8.0)
BEYOND = 256e18
"""The budget that the best size and its loss are wanted at."""
TARGETS = Target.parse(f"params@{BEYOND:g}"), Target.parse(f"loss@{BEYOND:g}")
QUANTITIES = ("best size", "loss")
SEEDS = 2
_FAMILY = ModelFamily.from_table(simulate_sizes(budgets=BUDGETS, mean_recurrences=LOOPS))
_CELLS = len(LOOPS) * len(_FAMILY.sizes)
Held = dict[str, list[float]]
"""By quantity the ends of an interval, the estimate and the truth, all in logarithms; `runs` has the further runs."""


@dataclass(frozen=True, kw_only=True)
class SizesWorld:
    """The law that losses of several sizes are drawn from, and the relative noise of one run."""

    name: str
    law: str
    parameters: tuple[float, ...]
    noise: float = SIZES_TRUTH.run_noise

    @property
    def _law(self) -> Law:
        return law_named(self.law)

    @cached_property
    def truth(self) -> tuple[float, float]:
        """The logarithms of the true best size at `BEYOND` FLOPs and of its loss."""

        def loss(logs: np.ndarray) -> np.ndarray:
            size, loops = np.exp(logs[..., 0]), np.exp(logs[..., 1])
            return self._law.loss(np.array(self.parameters), _columns(size, loops, np.array(BEYOND)))

        low, high = np.log(_FAMILY.sizes[0] / 16), np.log(_FAMILY.sizes[-1] * 16)
        best, least = minimise_on_box(loss, [(low, high), (0.0, float(np.log(LARGEST_RECURRENCE)))])
        return float(best[0]), float(np.log(least))

    def measured(self, params: np.ndarray, loops: np.ndarray, flops: np.ndarray, rng: np.random.Generator) -> Data:
        """Return runs with these sizes, mean recurrences and FLOPs (rows,), and their losses."""
        # Whole loops carry gradient; between them the family, and so the truth, interpolates depths as it does costs.
        columns = _columns(params, loops, flops) | {"backprop_depth": np.ceil(loops / 2)}
        loss = self._law.loss(np.array(self.parameters), columns)
        return {**columns, "budget": flops, "loss": loss * np.exp(self.noise * rng.standard_normal(len(loss)))}

    def grid(self, budgets: tuple[float, ...], rng: np.random.Generator) -> Data:
        """Return runs of every size and mean recurrence at some budgets."""
        flops, params, loops = (each.ravel() for each in np.meshgrid(budgets, _FAMILY.sizes, LOOPS, indexing="ij"))
        return self.measured(params, loops, flops, rng)


_SHARED = {"E": 1.9, "A": 90.0, "B": 190.0, "alpha": 0.29, "beta": 0.26}
WORLDS = (
    SizesWorld(name="iso-depth", law="iso-depth", parameters=(*_SHARED.values(), 0.46)),
    SizesWorld(name="truncated", law="iso-depth-truncated", parameters=(*_SHARED.values(), 0.6, 0.2)),
    SizesWorld(name="loop term", law="loop-term", parameters=(1.9, 90.0, 0.25, 190.0, 0.29, 0.7, 0.26)),
)


def held(world: SizesWorld, number: int, draws: int) -> dict[str, Held]:
    """Return the intervals after the first runs and those that a grid, or a design, adds to them for the same FLOPs."""
    rng = np.random.default_rng([zlib.crc32(world.name.encode()), number])
    first = world.grid(BUDGETS, rng)
    regular = world.grid(FURTHER, rng)
    # The design, by what the first runs have shown
    candidates = Candidates.of_sizes(
        _FAMILY,
        _FAMILY.sizes,
        candidate_values("mean_recurrence", 1, 2 * LOOPS[-1]).tolist(),
        candidate_budgets(BUDGETS[0], LARGEST, BUDGETS).tolist(),
        seeds=SEEDS,
    )
    runs = _table(first)
    laws = quick_surface(runs, draws=draws, seed=number).laws
    known = Belief.of_runs(laws, law_data(runs), _FAMILY, candidates.columns, flops=(BUDGETS[0], BUDGETS[-1]))
    counts = design_runs(known, candidates, TARGETS, _CELLS * sum(FURTHER)).rounds[0].counts
    cells = (candidates.columns["params"], candidates.values, candidates.flops)
    designed = world.measured(*(np.repeat(each, counts) for each in cells), rng)
    return {
        way: _answers(quick_surface(_table(first, more), draws=draws, seed=number), world, len(more["loss"]))
        for way, more in (("grid", regular), ("design", designed))
    }


def _columns(params: np.ndarray, loops: np.ndarray, flops: np.ndarray) -> Data:
    return _FAMILY.columns(params, loops, _FAMILY.tokens_for(flops, params, loops))


def _table(*parts: Data) -> pd.DataFrame:
    """Return the run table of several parts, with FLOPs as its owner counted them."""
    rows = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    shape = {"params_once": "effective_params_fixed", "params_recurrent": "effective_params_per_loop"}
    names = ["mean_recurrence", "backprop_depth", "tokens", "flops", "budget", "loss", *shape]
    return check_table(rows[names].rename(columns=shape).assign(accounting="own"))


def _answers(surface: LossSurface, world: SizesWorld, runs: int) -> Held:
    def tokens_for(params: np.ndarray, loops: np.ndarray) -> np.ndarray:
        return surface.family.tokens_for(BEYOND, params, loops)

    best, drawn = surface.best(tokens_for), surface.best_draws(tokens_for)
    assert drawn is not None
    found: Held = {"runs": [float(runs)]}
    for quantity, own, draws, truth in zip(
        QUANTITIES, (best.params, best.loss), (drawn.params, drawn.loss), world.truth, strict=True
    ):
        found[quantity] = [*map(float, np.percentile(np.log(draws), [2.5, 97.5])), float(np.log(own)), truth]
    return found


def run(cache: Path, *, sweeps: int = 40, draws: int = 100) -> str:
    """Return the section of RESULTS.md; sweeps in the cache are not simulated again."""
    made_with = f"{draws} draws, {fingerprint(sys.modules[__name__])}"
    names = {world: f"sizes {world.name}" for world in WORLDS}
    found, seconds = simulate(names, held, cache, made_with, sweeps, draws)
    rows = []
    for world, records in found.items():
        numbers = {}
        for way in ("grid", "design"):
            for quantity in QUANTITIES:
                low, high, estimate, truth = np.array([record[way][quantity] for record in records]).T
                error = float(np.sqrt(np.mean((estimate - truth) ** 2)))
                share = float(np.mean((low <= truth) & (truth <= high)))
                numbers[way, quantity] = float(np.median(high - low)), share, error
            count = f"{np.mean([record[way]['runs'][0] for record in records]):.0f}"
            cells = []
            for quantity in QUANTITIES:
                width, share, error = numbers[way, quantity]
                of_grid = numbers["grid", quantity]
                ratio = f"x {width / of_grid[0]:.2f}, {share:.1%} (error x {error / of_grid[2]:.2f})"
                cells.append(f"{width:.3g}, {share:.1%}" if way == "grid" else ratio)
            rows.append((f"{world.name}: {sweeps} sweeps", way, count, *cells))
    return (
        f"Simulated sweeps of three sizes (140m, 370m, 770m) x {len(LOOPS)} recurrences x {len(BUDGETS)} budgets "
        f"({BUDGETS[0]:.3g} to {BUDGETS[-1]:.3g} FLOPs), each with further runs in two ways at the same cost "
        f"({_CELLS * sum(FURTHER):.3g} FLOPs): all cells at {' and '.join(f'{each:.3g}' for each in FURTHER)} FLOPs, "
        f"or one round designed for {' and '.join(map(str, TARGETS))} among recurrences to {2 * LOOPS[-1]:g} and "
        f"budgets to {LARGEST:.3g} FLOPs, {SEEDS} seeds each. Losses have {WORLDS[0].noise:.1%} of noise and follow "
        "the law that the row names. Intervals are those of the mixture of laws over sizes: their median width in "
        "logarithms, and in how many percent of the sweeps they held the truth. Widths (and in brackets rms errors) of "
        f"designs are multiples of the grid's. {draws} refits of each law; {seconds / 60:.1f} CPU-minutes.\n\n"
        f"{table(('world', 'further runs', 'runs', *QUANTITIES), rows)}\n"
    )
