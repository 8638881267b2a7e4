"""The command `isoloop design`: the next runs that leave the least uncertainty for their cost."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.console import show_progress
from isoloop.sweeps.cli.options import (
    DEFAULT_OUT,
    BudgetTolerance,
    Columns,
    Experiment,
    MapFile,
    Out,
    Outliers,
    TrackingUri,
    files_of,
    load_config,
    table_options,
)
from isoloop.sweeps.cli.stored_fits import fit_or_stored

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from isoloop.fitting import AnyFit
    from isoloop.fitting.cost import Cost
    from isoloop.fitting.cost.family import ModelFamily
    from isoloop.fitting.design import Belief, Candidates, Noise, Target
    from isoloop.sweeps.config.schema import SweepConfig
    from isoloop.sweeps.plan.grid import Cell
    from isoloop.sweeps.plan.next_runs import NextCells
    from isoloop.sweeps.runs import TableOptions

_BEYOND = 2.0
"""Loops, or parameters, of candidates go up to this factor beyond those of the runs."""
_USUAL_LOOPS = 12


def design(
    target: Annotated[
        str, typer.Argument(help="A sweep that was run, any table of runs, or a preset or YAML file to start from.")
    ],
    targets: Annotated[
        list[str],
        typer.Option(
            "--target",
            help="What is to be known: mu@1e21, params@1e21 (or N@1e21), tokens@1e21, loss@1e21, decision@1e21, "
            "gamma_mu, gamma_N, gamma_D, or a parameter of the law; can be repeated.",
        ),
    ],
    spend: Annotated[float, typer.Option(help="FLOPs of all rounds together, or with --money their price.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of equal cost; the first is written.")] = 3,
    money: Annotated[
        bool, typer.Option("--money", help="--spend is in the currency of cluster.price_per_hour.")
    ] = False,
    width: Annotated[
        float | None, typer.Option(help="The width of the first target's 95% interval at which to stop.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of one cell at most.")] = 2,
    noise: Annotated[
        float | None, typer.Option(help="Relative noise of a run's loss, if the runs don't show it: 0.001 is .1%.")
    ] = None,
    values: Annotated[
        str | None, typer.Option("--values", help="Mean loops, or parameters, of candidates: LOW:HIGH.")
    ] = None,
    budgets: Annotated[str | None, typer.Option(help="Budgets of candidates in FLOPs: LOW:HIGH.")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Sizes of candidates by name, such as 370m,770m; by default those of the runs.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="The file to write: a sweep's .yaml that `run` takes, or a .csv of cells.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the chosen runs among the candidates into this .png, .svg or .pdf file.")
    ] = None,
    out: Out = DEFAULT_OUT,
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
) -> None:
    """Choose the next runs that tell most for what they cost.

    It says how much certainty each further round would buy, and when to stop. The first round is written as a sweep
    that `isoloop run` takes: of a sweep that was run, the same sweep with further runs; design anew once they have
    ended. A preset or a YAML file that was not run starts from what the published law says, with wide doubts. Runs of
    several sizes are designed together: cells differ in size, mean recurrence and budget.
    """
    with show_progress(transient=True) as progress:
        progress.begin("Reading the runs")
        from isoloop.fitting.design import Noise, Target, design_report, design_runs

        options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
        question = _Question(
            targets=tuple(Target.parse(text) for text in targets),
            spend=spend,
            rounds=rounds,
            money=money,
            seeds=seeds,
            noise=None if noise is None else Noise(level=noise, source="--noise"),
            values=_range(values, "--values"),
            budgets=_range(budgets, "--budgets"),
            sizes=_names(sizes, "--sizes"),
        )
        if _is_new(target, out):
            known = _from_nothing(target, out, question)
        else:
            known = _from_runs(target, out, options, question)
        file = _checked_file(to, known)
        progress.begin("Choosing runs")
        result = design_runs(known.belief, known.candidates, question.targets, spend, rounds=rounds)
    unit = "money" if money else "FLOPs"
    print(known.news + design_report(result, axis=known.axis, unit=unit, width=width))
    print(_written(known, result.rounds[0].counts, file))
    if figure is not None:
        from isoloop.fitting.figures.design import save_design

        print(f"figure: {save_design(result, figure, axis=known.axis)}")


@dataclass(frozen=True, kw_only=True)
class _Question:
    """The options that say what is to be known, for how much, and by which candidates (None: the default ranges).

    `sizes` are the names of the candidates' sizes, empty for those of the runs.
    """

    targets: "tuple[Target, ...]"
    spend: float
    rounds: int
    money: bool
    seeds: int
    noise: "Noise | None"
    values: tuple[float, float] | None
    budgets: tuple[float, float] | None
    sizes: tuple[str, ...]

    def largest(self, measured: float) -> float:
        """Return the largest budget of candidates: what a round pays for, but not beyond both runs and targets."""
        wanted = max([measured, *(target.flops for target in self.targets if target.flops is not None)])
        return wanted if self.money else min(wanted, self.spend / self.rounds)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """The knowledge before the design, and its candidates; for a sweep also their planned cells.

    `extends` says that the sweep was run, and gets further runs.
    """

    belief: "Belief"
    candidates: "Candidates"
    news: str = ""
    sweep: "SweepConfig | None" = None
    cells: "tuple[Cell, ...]" = ()
    extends: bool = False

    @property
    def axis(self) -> str:
        """The column that the values of candidates are of: the mean recurrence, or of dense models the parameters."""
        return self.belief.models.axes[-1]


def _is_new(target: str, out: Path) -> bool:
    """Return True for a preset or a YAML file whose sweep has no run table yet."""
    from isoloop.sweeps.config.loading import preset_names

    if target not in preset_names() and Path(target).suffix not in (".yaml", ".yml"):
        return False
    return not load_config(target, out)[1].table.is_file()


def _from_nothing(target: str, out: Path, question: _Question) -> _Known:
    """Return what published laws say about the models of a configuration, and what can be run of it."""
    import pandas as pd

    from isoloop.fitting.cost import Cost, CostModel
    from isoloop.fitting.cost.family import ModelFamily
    from isoloop.fitting.design import Belief, candidate_budgets, candidate_values
    from isoloop.sweeps.plan.grid import PlannedCorpus, simulated_corpus
    from isoloop.sweeps.plan.next_runs import next_cells, planned_cost_table, sizes_of
    from isoloop.sweeps.plan.rates import tuned_rates

    sweep, folders = load_config(target, out)
    low, high = question.values or (1, _BEYOND * max(sweep.mean_recurrences or (_USUAL_LOOPS,)))
    values = candidate_values("mean_recurrence", low, high, sweep.mean_recurrences or ())
    if question.budgets is None and not sweep.budgets:
        raise ValueError(f"candidates need budgets, but '{target}' has none; give --budgets LOW:HIGH in FLOPs")
    given = sweep.budgets or ()
    least, most = question.budgets or (min(given), question.largest(max(given)))
    _check_affordable(least, most, question)
    # Text may be prepared later, so no cell is left out for want of it here.
    planned = next_cells(
        sweep,
        values,
        candidate_budgets(least, most, given),
        simulated_corpus if sweep.simulation is not None else lambda data: PlannedCorpus("planned"),
        run=False,
        rates=tuned_rates(sweep, folders),
        sizes=question.sizes or sizes_of(sweep),
    )
    costs = pd.DataFrame(planned_cost_table(planned, sweep.accounting))
    several = len(set(planned.sizes)) > 1
    cost: Cost | ModelFamily = ModelFamily.from_table(costs) if several else CostModel.from_table(costs)
    candidates = _candidates(planned, cost, sweep, question)
    belief = Belief.of_published(cost, candidates.columns, flops=(least, most), noise=question.noise)
    return _Known(belief=belief, candidates=candidates, sweep=sweep, cells=planned.cells)


def _from_runs(target: str, out: Path, options: "TableOptions", question: _Question) -> _Known:
    """Return what the fit of a target's runs leaves plausible, and the candidates about their ranges."""
    from isoloop.fitting import SizesFit
    from isoloop.fitting.design import Belief, Candidates, candidate_budgets, candidate_values
    from isoloop.fitting.tables.runs import finished_rows, law_data
    from isoloop.sweeps.config.loading import load_sweep
    from isoloop.sweeps.messages import Progress
    from isoloop.sweeps.pipeline import corpus_lookup
    from isoloop.sweeps.plan.grid import simulated_corpus
    from isoloop.sweeps.plan.next_runs import next_cells
    from isoloop.sweeps.plan.rates import tuned_rates
    from isoloop.sweeps.runs import joint_runs, load_table

    # The fit of one architecture, or of several sizes
    files = files_of(target, out)
    files.check_table("a design")
    loaded = load_table(target, out, options).frame
    joined = joint_runs(loaded)
    table = loaded if joined is None else joined
    if question.sizes:
        _check_sizes(question.sizes, target, table, published=files.folders is not None)
    fit, news = fit_or_stored(files, out, options)
    cost: Cost | ModelFamily
    if isinstance(fit, SizesFit):
        laws, cost, axis = fit.laws, fit.family, "mean_recurrence"
    else:
        if fit.laws_after_training is None:
            raise ValueError(
                f"a design needs a law of the loss, but there is none: {fit.why_missing('training')}; add runs"
            )
        laws, cost, axis = fit.laws_after_training, fit.cost_model, fit.axis
    # The ranges of candidates
    low, high = fit.fitted.of_axis(axis)
    low, high = question.values or (low if axis == "mean_recurrence" else low / _BEYOND, _BEYOND * high)
    least, most = question.budgets or (fit.fitted.flops[0], question.largest(fit.fitted.flops[1]))
    _check_affordable(least, most, question)
    rows = finished_rows(table)
    values = candidate_values(axis, low, high, rows[axis].dropna().unique() if axis == "mean_recurrence" else ())
    measured = rows["budget"].dropna().unique() if "budget" in rows else ()
    budgets = candidate_budgets(least, most, [float(budget) for budget in measured])
    # The candidates, of a sweep of ours as it would run them
    sweep: SweepConfig | None = None
    cells: tuple[Cell, ...] = ()
    if files.folders is not None:
        sweep = load_sweep(str(files.folders.config))
        corpus_of = simulated_corpus if sweep.simulation else corpus_lookup(files.folders, {}, Progress())
        planned = next_cells(
            sweep,
            values,
            budgets,
            corpus_of,
            run=True,
            rates=tuned_rates(sweep, files.folders),
            sizes=question.sizes or _own_sizes(fit, table, sweep),
        )
        candidates, cells = _candidates(planned, cost, sweep, question), planned.cells
    elif question.money:
        raise ValueError("--money is for a sweep with cluster.price_per_hour, but the target is a table; leave it out")
    elif isinstance(fit, SizesFit):
        params = [fit.params_of(name) for name in question.sizes or [size.label for size in fit.sizes]]
        candidates = Candidates.of_sizes(fit.family, params, values.tolist(), budgets.tolist(), seeds=question.seeds)
    else:
        candidates = Candidates.grid(fit.cost_model, values.tolist(), budgets.tolist(), seeds=question.seeds)
    belief = Belief.of_runs(
        laws, law_data(table), cost, candidates.columns, flops=fit.fitted.flops, noise=question.noise
    )
    return _Known(belief=belief, candidates=candidates, news=news, sweep=sweep, cells=cells, extends=sweep is not None)


def _check_sizes(sizes: tuple[str, ...], target: str, table: "pd.DataFrame", *, published: bool) -> None:
    """Raise ValueError unless candidates of a table can have the sizes: published ones, or those of its runs."""
    from isoloop.fitting.cost.family import ModelFamily
    from isoloop.fitting.sizes.fit import several_sizes
    from isoloop.fitting.tables.runs import finished_rows
    from isoloop.trainer.config import SIZES

    if not several_sizes(table):
        raise ValueError(f"--sizes is for runs of several sizes, but those of '{target}' have one; leave it out")
    own = [member.label for member in ModelFamily.from_table(finished_rows(table)).members]
    known = dict.fromkeys([*own, *(SIZES if published else ())])
    wrong = [name for name in sizes if name not in known]
    if wrong:
        raise ValueError(f"--sizes must name some of {', '.join(known)}, but got '{wrong[0]}'; correct the name")


def _own_sizes(fit: "AnyFit", table: "pd.DataFrame", sweep: "SweepConfig") -> list[str]:
    """Return the names of the sizes that a fit is of: all of the sweep, or that of its only architecture.

    Raises ValueError where a fit of one architecture has runs of several sizes.
    """
    from isoloop.fitting import SizesFit
    from isoloop.fitting.tables.runs import finished_rows
    from isoloop.sweeps.plan.axes import SIZE
    from isoloop.sweeps.plan.next_runs import sizes_of

    sizes = sizes_of(sweep)
    if isinstance(fit, SizesFit) or not sizes:
        return sizes
    own = [str(size) for size in finished_rows(table)[SIZE].unique()] if SIZE in table else []
    if len(own) != 1:
        raise ValueError(
            f"a design by the law of one architecture needs runs of one size, but {fit.name!r} has {len(own) or 'none'}"
            f" of {', '.join(sizes)}; design {sweep.name}, whose sizes are fitted together"
        )
    return own


def _check_affordable(least: float, most: float, question: _Question) -> None:
    if most < least:
        raise ValueError(
            f"the spend of a round must pay for the cheapest candidate of {least:.3g} FLOPs, but {question.spend:.3g} "
            f"in {question.rounds} round(s) does not; raise --spend, lower --rounds, or give --budgets LOW:HIGH"
        )


def _candidates(
    planned: "NextCells", cost: "Cost | ModelFamily", sweep: "SweepConfig", question: _Question
) -> "Candidates":
    """Return the planned cells as candidates, at what they cost and as often as their seeds allow."""
    import numpy as np

    from isoloop.fitting.cost.family import ModelFamily
    from isoloop.fitting.design import Candidates

    values = np.array([float(cell.mean_recurrence) for cell in planned.cells])
    tokens = np.array([float(cell.spec.tokens) for cell in planned.cells])
    columns = (
        cost.columns(planned.params, values, tokens)
        if isinstance(cost, ModelFamily)
        else cost.model_columns(values, tokens)
    )
    return Candidates(
        values=values,
        flops=np.array([cell.budget for cell in planned.cells], dtype=float),
        costs=planned.prices(sweep) if question.money else planned.flops,
        columns=columns,
        most=np.maximum(question.seeds - np.array(planned.trained), 0),
        sizes=planned.sizes,
    )


def _checked_file(to: Path | None, known: _Known) -> Path:
    """Return the file to write. Raises ValueError for a suffix that can't be."""
    allowed = (".csv",) if known.sweep is None else (".csv", ".yaml", ".yml")
    file = to or Path("next.csv" if known.sweep is None else f"{known.sweep.name}-next.yaml")
    if file.suffix.lower() not in allowed:
        why = "; a .yaml needs a sweep of isoloop" if known.sweep is None else ""
        raise ValueError(f"--to must name a file that ends in {' or '.join(allowed)}, but got '{to}'{why}; rename it")
    return file


def _written(known: _Known, counts: "np.ndarray", file: Path) -> str:
    """Write the runs of the first round, and return the command that goes on."""
    import numpy as np
    import pandas as pd

    from isoloop.sweeps.config.schema import config_text
    from isoloop.sweeps.plan.next_runs import next_sweep

    chosen = np.flatnonzero(counts)
    if file.suffix.lower() == ".csv":
        candidates = known.candidates
        axis: dict[str, object] = {}
        if candidates.sizes:
            axis = {"model.size": [candidates.sizes[place] for place in chosen]}
        if candidates.sizes and "params" in candidates.columns:
            axis["params"] = candidates.columns["params"][chosen]
        axis |= {known.axis: candidates.values[chosen], "tokens": candidates.columns["tokens"][chosen]}
        runs = {"budget": candidates.flops[chosen], "runs": counts[chosen], "cost_of_a_run": candidates.costs[chosen]}
        pd.DataFrame(axis | runs).to_csv(file, index=False)
        return f"round 1 written to {file}: train these, add them to the table, and design again"
    assert known.sweep is not None
    cells = [(known.cells[place], int(counts[place])) for place in chosen]
    sweep = next_sweep(known.sweep, cells, extend=known.extends)
    file.write_text(config_text(sweep), encoding="utf-8")
    kept = " (the runs that it has are kept)" if known.extends else ""
    return f"round 1 written to {file}{kept}\nnext: {shlex.join(['isoloop', 'run', str(file)])}"


def _names(text: str | None, option: str) -> tuple[str, ...]:
    """Return the names between commas, each once; none for None. Raises ValueError for a text without a name."""
    if text is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError(
            f"{option} must name one size or more, but got '{text}'; write it as 370m,770m, or leave it out"
        )
    return names


def _range(text: str | None, option: str) -> tuple[float, float] | None:
    """Return both ends of LOW:HIGH. Raises ValueError for another text."""
    if text is None:
        return None
    try:
        low, high = (float(end) for end in text.split(":"))
    except ValueError:
        low = high = -1.0
    if not 0 < low <= high < float("inf"):
        raise ValueError(
            f"{option} must be LOW:HIGH, two positive numbers, but got '{text}'; write it as 1:24 or 1e18:6e19"
        )
    return low, high
